"""What is known of an engine without running it: enough to check a request and to list it, on any machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol, final

import torch

from ..engine.api import Engine
from ..engine.compiler.program import Program
from ..engine.contract.condition import INPAINTING
from ..engine.contract.contract import Contract, DecoderContract
from ..engine.contract.text_encoders import NEGATIVE, TextEncoders
from ..engine.runtime.noise import Seeds
from ..engine.runtime.pictures.control import Shown
from .samplers import OWN, Sampler, compared, described

PICTURE_CHANNELS = (1, 3, 4)


class Drawing(Protocol):
    """What a server asks of an engine: `pfdiff.Engine`, or anything like it.

    An engine with text encoders has `takes_prompt` true, and its `images` and `sample` take prompt= and
    negative_prompt=, one text for all samples or a list with one for each. What they stand for is `text_encoders`'.
    The picture of a ControlNet is a condition, as `control_picture` describes it.
    An engine with `takes_image` true takes image=, mask=, strength= and strength_counts= there.
    """

    contract: Contract
    decoder: DecoderContract | None
    programs: dict[int, Program]
    batch: tuple[int, ...]
    precision: str
    backend: str
    device: str
    description: str
    provenance: Mapping[str, Any]

    def sample(self, *, seeds: Seeds | None = None, nfe: int | None = None, **given: Any) -> torch.Tensor: ...

    def images(self, *, seeds: Seeds | None = None, nfe: int | None = None, **given: Any) -> torch.Tensor: ...

    def close(self) -> None: ...


@final
@dataclass(frozen=True)
class About:
    """image: [H, W, C] of a picture, None where samples are none. samplers: by name and NFE.

    takes_image: whether it starts from pictures of that size. shown: what its ControlNet takes, None without one.
    encoded: the conditions, by the contract's names, that prompts stand for. usual_negative: the text that the engine
    takes for a negative prompt when there is none; None where it takes no text, or zeros.
    """

    name: str
    contract: Contract
    image: tuple[int, int, int] | None
    batch: tuple[int, ...]
    precision: str
    backend: str
    device: str
    description: str
    takes_prompt: bool
    takes_negative_prompt: bool
    usual_negative: str | None
    takes_image: bool
    shown: Shown | None
    encoded: frozenset[str]
    latent: bool
    samplers: Mapping[str, Mapping[int, Sampler]]

    def stands_for(self, word: str) -> frozenset[str]:
        """The conditions that the text `word` stands for: prompt or negative_prompt."""
        return frozenset(name for name in self.encoded if name.endswith(NEGATIVE) == (word == "negative_prompt"))

    def as_json(self) -> dict[str, Any]:
        """For GET /v1/engines."""
        return {
            "name": self.name,
            "contract": self.contract.to_dict(),
            "image": self.image,
            "nfe": sorted(self.samplers[OWN]),
            "batch": self.batch,
            "precision": self.precision,
            "backend": self.backend,
            "device": self.device,
            "description": self.description,
            "takes_prompt": self.takes_prompt,
            "takes_negative_prompt": self.takes_negative_prompt,
            "takes_image": self.takes_image,
            "from_picture": [one.name for one in self.contract.conditions if one.name in INPAINTING],
            "control_picture": self._control_picture,
            "encoded": sorted(self.encoded),
            "latent": self.latent,
            "samplers": {
                name: {str(nfe): asdict(one) for nfe, one in held.items()} for name, held in self.samplers.items()
            },
        }

    @property
    def _control_picture(self) -> dict[str, Any] | None:
        """The condition that a ControlNet's picture is given as, and its [H, W, C]."""
        shown = self.shown
        if shown is None or (shown.latents and shown.encoded is None):
            return None
        channels, height, width = shown.shape
        return {"condition": shown.condition.name, "image": [height, width, channels]}


def faces(engine: Drawing) -> dict[str, Drawing]:
    """The engine by the name of each sampler, all on one loaded network."""
    if not isinstance(engine, Engine):
        return {OWN: engine}
    return {OWN: engine, **{name: engine.with_programs(programs) for name, programs in compared(engine).items()}}


def about(name: str, engine: Drawing, held: Mapping[str, Drawing]) -> About:
    """held: what `faces` gave."""
    shape = engine.decoder.image if engine.decoder else engine.contract.shape
    takes_prompt = bool(getattr(engine, "takes_prompt", False))
    encoders: TextEncoders | None = getattr(engine, "text_encoders", None)
    encoded = encoders.encoded & {one.name for one in engine.contract.conditions} if encoders else frozenset[str]()
    takes_negative = takes_prompt and (not encoders or any(name.endswith(NEGATIVE) for name in encoded))
    image = (shape[1], shape[2], shape[0]) if len(shape) == 3 and shape[0] in PICTURE_CHANNELS else None
    return About(
        name=name,
        contract=engine.contract,
        image=image,
        batch=tuple(engine.batch),
        precision=engine.precision,
        backend=engine.backend,
        device=engine.device,
        description=engine.description,
        takes_prompt=takes_prompt,
        takes_negative_prompt=takes_negative,
        usual_negative="" if takes_negative and not (encoders and encoders.zeros) else None,
        shown=getattr(engine, "control_picture", None),
        takes_image=image is not None and bool(getattr(engine, "takes_image", False)),
        encoded=encoded,
        latent=engine.decoder is not None,
        samplers={
            sampler: described(face.programs, engine.provenance if sampler == OWN else None)
            for sampler, face in held.items()
        },
    )
