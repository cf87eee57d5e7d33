"""LoRA files fused into a pipeline's weights before they are exported, by diffusers and peft.

    style.safetensors[:strength]        what diffusers or kohya's scripts wrote

W <- W + strength alpha / rank B A for every layer that the file has an update of: of the denoiser, and of the text
encoders that are part of the engine. What an engine computes afterwards costs what it cost before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, final

from ...engine.errors import BackendError, InputError, first_line
from ..pipelines.strength import with_strength
from ..pipelines.weights import unseen
from .lora_files import DENOISER, TEXTS, USAGE, layers_of, with_alphas


@final
@dataclass(frozen=True)
class Lora:
    """A file and how strongly it counts."""

    path: Path
    strength: float

    @property
    def record(self) -> dict[str, Any]:
        """What an engine's provenance says of it."""
        with open(self.path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"file": self.path.name, "sha256": digest, "strength": self.strength}


def parse_lora(text: str) -> Lora:
    """'style.safetensors:0.8' or 'style.safetensors', with strength 1. Raises InputError."""
    path, strength = with_strength("lora", text)
    if not path.is_file():
        raise InputError(f"lora '{text}': the file {path} does not exist; give a file, {USAGE}")
    if path.suffix != ".safetensors":
        what = path.suffix or "this"
        raise InputError(f"lora '{text}': {what} may run any code when it is read; give one in safetensors, {USAGE}")
    return Lora(path, strength)


def fuse(pipeline: str, module: Any, part: str, loras: Sequence[Lora], beside: Mapping[str, Any]) -> None:
    """Fuse the files into `module`, the denoiser or a text encoder that is called `part` in `pipeline`, in place.

    pipeline: a class of diffusers. beside: other parts of it, which need no numbers and are left as they are. Raises
    InputError when a file is none of this pipeline's, or some of its layers have no place; BackendError without peft.
    """
    try:
        import diffusers

        import_module("peft")
        transformers = import_module("transformers")
    except ImportError as error:
        raise BackendError(f"a LoRA needs diffusers and peft ({error}); pip install 'pfdiff[diffusers]'") from None
    with unseen(transformers):
        kind = getattr(diffusers, pipeline, None)
    if kind is None or not hasattr(kind, "load_lora_weights"):
        named = f"the pipeline {pipeline}" if kind else "a model alone"
        raise InputError(f"lora: diffusers loads none into {named}; give the folder of a pipeline that takes them")
    parts = _pipeline(kind, {**beside, part: module})
    unet = "unet" in (part, *beside)
    for number, lora in enumerate(loras):
        wanted = layers_of(lora.path)[part if part in TEXTS.values() else DENOISER]
        if wanted:
            with unseen(transformers):
                alphas = with_alphas(lora.path) if unet else None
                _fuse_one(parts, module, part, lora, wanted, f"lora_{number}", alphas)


def _pipeline(kind: Any, modules: Mapping[str, Any]) -> Any:
    import inspect

    needed = [one.name for one in inspect.signature(kind).parameters.values() if one.default is one.empty]
    options = {"requires_safety_checker": False} if "safety_checker" in needed else {}
    made = kind(**{name: modules.get(name) for name in needed}, **options)
    load = getattr(made, "load_lora_into_text_encoder", None)

    def load_where_there_is(*given: Any, text_encoder: Any, **words: Any) -> None:
        if load is not None and text_encoder is not None:
            load(*given, text_encoder=text_encoder, **words)

    made.load_lora_into_text_encoder = load_where_there_is  # diffusers' fails for an encoder that is not there
    return made


def _fuse_one(
    pipeline: Any, module: Any, part: str, lora: Lora, wanted: int, adapter: str, numbers: dict[str, Any] | None
) -> None:
    """numbers: in place of the file's own."""
    from ..to_onnx import quiet

    tuned = import_module("peft.tuners.tuners_utils").BaseTunerLayer

    try:
        with quiet():
            file = {} if numbers else {"weight_name": lora.path.name, "local_files_only": True}
            pipeline.load_lora_weights(numbers or str(lora.path.parent), adapter_name=adapter, **file)
        layers = (one for one in module.modules() if isinstance(one, tuned))
        found = sum(adapter in {**one.lora_A, **one.lora_embedding_A} for one in layers)  # type: ignore[operator]
        if found >= wanted:
            with quiet():
                pipeline.fuse_lora(components=[part], lora_scale=lora.strength, adapter_names=[adapter])
                pipeline.unload_lora_weights()
            return
    except Exception as error:  # of diffusers, peft and torch, without a common base
        why = first_line(Exception(" ".join(str(error).split())))
        raise InputError(
            f"lora '{lora.path}' does not fit this model ({why}); give one that was trained on it"
        ) from error
    raise InputError(
        f"lora '{lora.path}': {found} of its {wanted} layers are in this model; give one that was trained on it"
    )


def check_layers(loras: Sequence[Lora], encoders: Collection[str]) -> None:
    """Raises InputError for a file whose layers are all of text encoders that are not among `encoders`."""
    for lora in loras:
        found = layers_of(lora.path)
        if not found.keys() & {DENOISER, *encoders}:
            names = ", ".join(found)
            raise InputError(f"lora '{lora.path}' has layers of {names} alone, which are not here; leave it out")
