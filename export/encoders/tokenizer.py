"""A pipeline's tokenizer as one tokenizer.json, which the `tokenizers` library runs without transformers.

The file cuts a prompt at the encoder's length and pads it to that length, as the pipelines ask their tokenizers to.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...engine.errors import BackendError, InputError, first_line

OUT = "(encoders=False, --no-encoders)"
# Either of these is enough; without any, transformers makes a tokenizer of no words.
FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",))


def transformers_for(source: Any) -> Any:
    """The library. Raises BackendError where it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise BackendError(
            f"'{source}' needs transformers ({error}); pip install 'pfdiff[diffusers]', or leave the encoders out {OUT}"
        ) from None
    return transformers


def tokenizer_of(source: Any, name: str) -> Any:
    """The transformers tokenizer in the folder `source`, or `source` itself. Raises InputError, BackendError."""
    if not isinstance(source, Path):
        return source
    if not source.is_dir():
        raise InputError(f"'{source}' is missing; copy the tokenizer's folder there, or leave the encoders out {OUT}")
    if not any(all((source / file).is_file() for file in files) for files in FILES):
        raise InputError(
            f"the tokenizer '{source}' cannot be read: it needs tokenizer.json, or vocab.json and merges.txt, or "
            f"spiece.model; copy them there, or leave the encoders out {OUT}"
        )
    from ..to_onnx import quiet

    library = transformers_for(source)
    try:
        with quiet():
            return library.AutoTokenizer.from_pretrained(source, local_files_only=True, use_fast=True)
    except Exception as error:  # of transformers, tokenizers and sentencepiece, without a common base
        raise InputError(
            f"the tokenizer '{source}' cannot be read ({first_line(error)}); save it again, or leave the encoders out "
            f"{OUT}"
        ) from error


def longest(tokenizer: Any) -> int | None:
    """How many tokens a prompt has at most, as the tokenizer's config says it."""
    found = int(getattr(tokenizer, "model_max_length", 0) or 0)
    return found if 0 < found < 1 << 20 else None


def tokenizer_json(tokenizer: Any, name: str, length: int) -> str:
    """The text of a tokenizer.json that cuts and pads to `length` tokens. Raises InputError for a slow tokenizer."""
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(
            f"the tokenizer '{name}' is a {type(tokenizer).__name__}, which runs in Python alone; convert it to a fast "
            f"tokenizer with tokenizer.json, or leave the encoders out {OUT}"
        )
    copied = Tokenizer.from_str(backend.to_str())
    copied.enable_truncation(length)
    pad = tokenizer.pad_token_id
    if pad is None:
        raise InputError(f"the tokenizer '{name}' has no padding token; save it with one")
    copied.enable_padding(length=length, pad_id=int(pad), pad_token=str(tokenizer.pad_token))
    return json.dumps(json.loads(copied.to_str()), ensure_ascii=False)
