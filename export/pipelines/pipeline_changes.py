"""What is changed in a pipeline before it is exported: LoRA in its weights, a ControlNet before its denoiser."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from ...engine.contract.contract import Condition
from ...engine.errors import InputError
from ..encoders.from_pipeline import FusedEncoder, load_encoder
from ..sources.controlnet import check_class, check_fits, control_conditions, control_of
from ..sources.lora import Lora, check_layers, fuse
from .hub import fetch, is_hub_id
from .pipeline_prompts import Texts
from .reread import Reading, Reread
from .saved_models import load_model, read_json
from .strength import with_strength


@final
@dataclass(frozen=True)
class Changes:
    """What LoRA files change in a denoiser and its text encoders, each of them by itself.

    pipeline: the class that they belong to. model: the denoiser, a folder or an object, which is never changed itself.
    """

    pipeline: str
    class_name: str
    model: Any
    loras: Sequence[Lora]

    @property
    def denoiser(self) -> Reading | None:
        """How it is read, with the files in its weights; None for an object that is used as it is."""
        if not self.loras and not isinstance(self.model, Path):
            return None

        def read() -> Any:
            own = _own(self.model, lambda folder: load_model(folder, self.class_name))
            if self.loras:
                fuse(self.pipeline, own, self._part, self.loras, {})
            return own

        return Reading(read, self._places(self.model))

    def texts(self, texts: Texts) -> Texts:
        """The text encoders; with files each is read for its digest, freed, and read again when it is exported."""
        check_layers(self.loras, texts)
        if not self.loras:
            return texts
        return {name: (self._fused(name, one), tokenizer) for name, (one, tokenizer) in texts.items()}

    def _fused(self, name: str, source: Any) -> FusedEncoder:
        def read() -> Any:
            own = _own(source, load_encoder)
            fuse(self.pipeline, own, name, self.loras, {self._part: self._bare()})
            return own

        return FusedEncoder(source, Reading(read, self._places(source)))

    def _bare(self) -> Any:
        """The denoiser without numbers, whose layers a file's are told by."""
        import diffusers
        import torch

        config = self.model.config if not isinstance(self.model, Path) else read_json(self.model / "config.json")
        with torch.device("meta"):
            return getattr(diffusers, self.class_name).from_config(config)

    @property
    def _part(self) -> str:
        return "unet" if self.class_name.startswith("UNet") else "transformer"

    def _places(self, source: Any) -> tuple[Path, ...]:
        return (*([source] if isinstance(source, Path) else []), *(one.path for one in self.loras))


def _own(source: Any, read: Callable[[Path], Any]) -> Any:
    return read(source) if isinstance(source, Path) else copy.deepcopy(getattr(source, "_orig_mod", source))


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


def weights_of(model: Any, reading: Reading, controlnet: Any, source: Any, class_name: str) -> Reread | None:
    """The weights of a denoiser and of its ControlNet, which `source` is; None where somebody else holds the latter."""
    if controlnet is None:
        return Reread([(model, reading)])
    if not isinstance(source, Path):
        return None
    folder = source
    name = control_of(class_name).class_name
    return Reread([(model, reading), (controlnet, Reading(lambda: load_model(folder, name), (folder,)))])
