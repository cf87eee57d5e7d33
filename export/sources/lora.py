"""LoRA files fused into a pipeline's weights before they are exported, by diffusers and peft.

    style.safetensors[:strength]        what diffusers or kohya's scripts wrote

W <- W + strength alpha / rank B A for every layer that the file has an update of: of the denoiser, and of the text
encoders that are part of the engine. What an engine computes afterwards costs what it cost before.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, final

from ...engine.errors import BackendError, InputError, first_line
from ..pipelines.strength import with_strength

USAGE = "such as style.safetensors or style.safetensors:0.8"


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
        raise InputError(f"lora '{text}': {path.suffix or 'this'} may run any code when it is read; give {USAGE}")
    return Lora(path, strength)


def fuse(pipeline: str, modules: Mapping[str, Any], loras: Sequence[Lora]) -> None:
    """Fuse the files into `modules`, a denoiser and text encoders by their names in the class `pipeline`, in place.

    Raises InputError when a file is none of this pipeline's, or some of its layers have no place; BackendError without
    peft.
    """
    try:
        import diffusers

        import_module("peft")
    except ImportError as error:
        raise BackendError(f"a LoRA needs diffusers and peft ({error}); pip install 'pfdiff[diffusers]'") from None
    kind = getattr(diffusers, pipeline, None)
    if kind is None or not hasattr(kind, "load_lora_weights"):
        named = f"the pipeline {pipeline}" if kind else "a model alone"
        raise InputError(f"lora: diffusers loads none into {named}; give the folder of a pipeline that takes them")
    parts = _pipeline(kind, modules)
    for number, lora in enumerate(loras):
        _fuse_one(parts, modules, lora, f"lora_{number}")


def _pipeline(kind: Any, modules: Mapping[str, Any]) -> Any:
    import inspect

    needed = [one.name for one in inspect.signature(kind).parameters.values() if one.default is one.empty]
    options = {"requires_safety_checker": False} if "safety_checker" in needed else {}
    return kind(**{name: modules.get(name) for name in needed}, **options)


def _fuse_one(pipeline: Any, modules: Mapping[str, Any], lora: Lora, adapter: str) -> None:
    from ..to_onnx import quiet

    tuned = import_module("peft.tuners.tuners_utils").BaseTunerLayer

    wanted = _layers(lora.path, modules)
    try:
        with quiet():
            pipeline.load_lora_weights(
                str(lora.path.parent), weight_name=lora.path.name, adapter_name=adapter, local_files_only=True
            )
        layers = (one for module in modules.values() for one in module.modules() if isinstance(one, tuned))
        found = sum(adapter in {**one.lora_A, **one.lora_embedding_A} for one in layers)  # type: ignore[operator]
        if found and found >= wanted:
            names = [name for name in pipeline.get_list_adapters() if name in modules]
            with quiet():
                pipeline.fuse_lora(components=names, lora_scale=lora.strength, adapter_names=[adapter])
                pipeline.unload_lora_weights()
            return
    except Exception as error:  # of diffusers, peft and torch, without a common base
        raise InputError(
            f"lora '{lora.path}' does not fit this model ({first_line(error)}); give one that was trained on it"
        ) from error
    raise InputError(
        f"lora '{lora.path}': {found} of its {wanted} layers are in this model; give one that was trained on it"
    )


def _layers(path: Path, modules: Mapping[str, Any]) -> int:
    """How many layers the file has updates for, without those of absent text encoders. Raises InputError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            keys = list(file.keys())
    except (OSError, SafetensorError) as error:
        raise InputError(f"lora '{path}' cannot be read ({first_line(error)}); copy it again") from None
    downs = [
        key for key in keys if re.search(r"\.(lora_A(\.default)?|lora_down|lora\.down|lora_linear_layer\.down)\.", key)
    ]
    if not downs:
        raise InputError(f"lora '{path}' holds no LoRA ({keys[0] if keys else 'it is empty'}); give {USAGE}")
    texts = {"lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2", "lora_te_": "text_encoder"}
    texts |= {f"text_encoder{number}.": f"text_encoder{number}" for number in ("", "_2", "_3")}
    absent = tuple(prefix for prefix, name in texts.items() if name not in modules)
    return sum(not key.startswith(absent) for key in downs) if absent else len(downs)
