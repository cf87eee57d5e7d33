"""What is changed in a pipeline before it is exported: LoRA in its weights, a ControlNet before its U-Net."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...engine.contract.contract import Condition
from ...engine.errors import InputError
from ..encoders.from_pipeline import load_encoder
from ..sources.controlnet import CLASS, LATENT, check_class, check_fits, control_conditions
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


def controlnet_of(
    own: Any, given: str | None, model: Any, class_name: str, shape: tuple[int, ...], pixels: int
) -> tuple[Any, tuple[Condition, ...]]:
    """The ControlNet that is given, or the pipeline's own, with its conditions; None and none without."""
    found, strength = own, 1.0
    if given is not None:
        found, strength = with_strength("controlnet", given)
        found = fetch(str(found)).folder if is_hub_id(str(found)) else found
    if found is None:
        return None, ()
    if isinstance(own, Path) and given is None and own.with_name("controlnet_1").exists():
        raise InputError("its pipeline has several ControlNets, which are not supported; leave all but one out")
    if isinstance(found, Path):
        config = read_json(found / "config.json") if (found / "config.json").is_file() else {}
        if config.get("_class_name") in LATENT:
            check_class(str(config["_class_name"]))
        if config.get("_class_name") != CLASS:
            raise InputError(
                f"controlnet '{found}' holds {config.get('_class_name', 'no config.json')}, expected a {CLASS} "
                "that save_pretrained wrote"
            )
        found = load_model(found, CLASS)
    check_fits(found, model, class_name)
    return found, control_conditions(found, shape, pixels, strength)
