"""What is changed in a pipeline before it is exported: LoRA in its weights, a ControlNet before its denoiser."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...engine.contract.contract import Condition
from ...engine.errors import InputError
from ..encoders.from_pipeline import load_encoder
from ..sources.controlnet import check_class, check_fits, control_conditions, control_of
from ..sources.lora import Lora, fuse
from .hub import fetch, is_hub_id
from .pipeline_prompts import Texts
from .saved_models import load_model, read_json
from .strength import with_strength


def with_loras(pipeline: str, class_name: str, model: Any, texts: Texts, loras: Sequence[Lora]) -> tuple[Any, Texts]:
    """Denoiser and text encoders with the files fused into their weights; modules that were given are copied."""

    def own(source: Any, read: Callable[[Path], Any]) -> Any:
        return read(source) if isinstance(source, Path) else copy.deepcopy(getattr(source, "_orig_mod", source))

    denoiser = own(model, lambda folder: load_model(folder, class_name))
    loaded = {name: (own(one, load_encoder), tokenizer) for name, (one, tokenizer) in texts.items()}
    part = "unet" if class_name.startswith("UNet") else "transformer"
    fuse(pipeline, {part: denoiser, **{name: one for name, (one, _) in loaded.items()}}, loras)
    return denoiser, loaded


def controlnet_source(own: Any, given: str | None, class_name: str) -> tuple[Any, float]:
    """The ControlNet that is given, or the pipeline's own, as a folder or an object, and its strength.

    None without. Nothing is loaded. Raises InputError for one that stands before another denoiser than `class_name`.
    """
    found, strength = own, 1.0
    if given is not None:
        found, strength = with_strength("controlnet", given)
        found = fetch(str(found)).folder if is_hub_id(str(found)) else found
    if isinstance(own, Path) and given is None and own.with_name("controlnet_1").exists():
        raise InputError("its pipeline has several ControlNets, which are not supported; leave all but one out")
    if isinstance(found, Path):
        name = read_json(found / "config.json").get("_class_name") if (found / "config.json").is_file() else None
        if name is None:
            what = "no class" if (found / "config.json").is_file() else "no config.json"
            raise InputError(
                f"controlnet '{found}' holds {what}, expected a {control_of(class_name).class_name} that "
                "save_pretrained wrote"
            )
        check_class(str(name), class_name)
    return found, strength


def controlnet_of(
    source: tuple[Any, float], model: Any, class_name: str, shape: tuple[int, ...], pixels: int
) -> tuple[Any, tuple[Condition, ...]]:
    """What `controlnet_source` found, loaded, with its conditions; None and none without."""
    found, strength = source
    if found is None:
        return None, ()
    if isinstance(found, Path):
        found = load_model(found, control_of(class_name).class_name)
    check_fits(found, model, class_name)
    return found, control_conditions(found, class_name, shape, pixels, strength)
