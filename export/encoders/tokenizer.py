"""A pipeline's tokenizer as one tokenizer.json, which the `tokenizers` library runs without transformers.

The file cuts a prompt at the encoder's length and pads it to that length, as the pipelines ask their tokenizers to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, final

from ...engine.errors import BackendError, InputError, first_line
from ..families.family import Prompting
from ..pipelines.weights import unseen

OUT = "(encoders=False, --no-encoders)"
# Either of these is enough; without any, transformers makes a tokenizer of no words.
FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",), ("tokenizer.model",), ("vocab.txt",))
PIECES = ("spiece.model", "tokenizer.model")  # of SentencePiece
MARK = "PROMPT"


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
            f"spiece.model, tokenizer.model or vocab.txt; copy them there, or leave the encoders out {OUT}"
        )
    from ..to_onnx import quiet

    library = transformers_for(source)
    pieces = [name for name in PIECES if (source / name).is_file()]
    if pieces and not (source / "tokenizer.json").is_file() and find_spec("sentencepiece") is None:
        raise BackendError(
            f"the tokenizer '{source}' has {pieces[0]} and no tokenizer.json, which needs sentencepiece; pip install "
            f"sentencepiece, or leave the encoders out {OUT}"
        )
    try:
        with quiet(), unseen(library):
            found = library.AutoTokenizer.from_pretrained(
                source, local_files_only=True, use_fast=True, trust_remote_code=False
            )
    except Exception as error:  # of transformers, tokenizers and sentencepiece, without a common base
        raise InputError(
            f"the tokenizer '{source}' cannot be read ({why_not_read(error)}); save it again, or leave the encoders "
            f"out {OUT}"
        ) from error
    if not {*found.get_vocab()} - {*found.all_special_tokens}:  # the library passes over files that are no words of it
        raise InputError(
            f"the tokenizer '{source}' cannot be read: its files hold no words of a {type(found).__name__}; save it "
            f"again, or leave the encoders out {OUT}"
        )
    return found


def why_not_read(error: Exception) -> str:
    """The library's first line; of a folder with code of its own, which is never run, that."""
    said = first_line(error)
    return "its class is code in the folder, which is never run" if "trust_remote_code" in str(error) else said


def longest(tokenizer: Any) -> int | None:
    """How many tokens a prompt has at most, as the tokenizer's config says it."""
    found = int(getattr(tokenizer, "model_max_length", 0) or 0)
    return found if 0 < found < 1 << 20 else None


@final
@dataclass(frozen=True)
class Around:
    """The texts before and after a prompt; before a negative one, None for the same."""

    before: str = ""
    after: str = ""
    negative_before: str | None = None


def around(prompting: Prompting, tokenizers: Mapping[str, Any]) -> Around:
    """What the pipeline puts around prompts; a chat template is its tokenizer's own. Raises InputError without one."""
    if prompting.thinking is None:
        return Around(prompting.before, prompting.after, prompting.negative_before)
    (name, tokenizer), *_ = tokenizers.items()
    messages = [{"role": "user", "content": MARK}]
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=prompting.thinking
        )
    except Exception as error:  # of transformers and Jinja, without a common base
        raise InputError(
            f"the tokenizer of {name} has no chat template that can be used ({first_line(error)}); copy its "
            f"chat_template.jinja, or leave the encoders out {OUT}"
        ) from error
    before, found, after = str(text).partition(MARK)
    if not found or MARK in after:
        raise InputError(f"the chat template of {name} does not hold the prompt once; leave the encoders out {OUT}")
    return Around(before, after)


def tokenizer_json(tokenizer: Any, name: str, length: int, *, right: bool = False) -> str:
    """The text of a tokenizer.json that cuts and pads to `length` tokens. Raises InputError for a slow tokenizer.

    right: pads on the right; else on its own side.
    """
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
    side = "right" if right else str(getattr(tokenizer, "padding_side", "right"))
    copied.enable_padding(direction=side, length=length, pad_id=int(pad), pad_token=str(tokenizer.pad_token))
    return json.dumps(json.loads(copied.to_str()), ensure_ascii=False)
