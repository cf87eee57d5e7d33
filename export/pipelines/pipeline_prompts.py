"""Which text encoders and tokenizers stand beside a pipeline's denoiser: in its folder, or as attributes of the object.

model_index.json names the parts, and null for one that is left out on purpose, as SD3's T5 may be.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...engine.errors import InputError
from ..encoders.from_pipeline import PromptSources
from ..encoders.tokenizer import OUT
from ..families.family import Prompting
from ..guidance.options import AT_RUN_TIME, ClassifierFree

NUMBERS = ("", "_2", "_3")
Texts = Mapping[str, tuple[Any, Any]]


def texts_in_folder(path: Path, index: Mapping[str, Any]) -> Texts:
    """(encoder's folder, tokenizer's folder) by the encoder's name, of all that are named or there.

    What is named and missing is found out when it is read.
    """
    found: dict[str, tuple[Any, Any]] = {}
    for number in NUMBERS:
        name, tokenizer = f"text_encoder{number}", f"tokenizer{number}"
        named = index.get(name)
        null = named is None or (isinstance(named, list) and not any(named))
        if not null or (name not in index and (path / name).is_dir()):
            found[name] = path / name, path / tokenizer
    return found


def texts_of_object(pipeline: Any) -> Texts:
    """(encoder, tokenizer) by the encoder's name."""
    found: dict[str, tuple[Any, Any]] = {}
    for number in NUMBERS:
        encoder, tokenizer = (getattr(pipeline, f"{one}{number}", None) for one in ("text_encoder", "tokenizer"))
        if encoder is not None and tokenizer is not None:
            found[f"text_encoder{number}"] = encoder, tokenizer
    return found


def prompts_of(prompting: Prompting | None, texts: Texts, *, zeros: bool) -> PromptSources | None:
    """The encoders that the prompts need; None where there are none. Raises InputError when one is missing."""
    if prompting is None or not texts:
        return None
    needed = dict.fromkeys(part.encoder for part in prompting.parts)
    sources = {name: texts[name] for name in needed if name in texts}
    if not sources:
        return None
    for name, (encoder, _) in sources.items():
        if isinstance(encoder, Path) and not encoder.is_dir():
            raise InputError(
                f"the folder {name}/ is missing, which model_index.json names; copy it there, or leave the encoders "
                f"out {OUT}"
            )
    for condition in dict.fromkeys(part.condition for part in prompting.parts):
        makers = [part.encoder for part in prompting.parts if part.condition == condition]
        if not any(name in sources for name in makers):
            raise InputError(
                f"its pipeline has no {' or '.join(makers)}, which makes '{condition}' of prompts; give the whole "
                f"pipeline, or leave the encoders out {OUT}"
            )
    return PromptSources(prompting, sources, zeros)


def guidance_of(prompts: PromptSources | None) -> ClassifierFree | None:
    """The pipeline's own guidance: by a negative prompt, at its default scale; None where it does none."""
    scale = None if prompts is None else prompts.prompting.scale
    if prompts is None or scale is None:
        return None
    found = prompts.prompting
    names = dict.fromkeys(part.condition for part in found.parts)
    return ClassifierFree(dict.fromkeys(names, AT_RUN_TIME), scale=scale, offset=found.offset, keep=found.keep)
