"""What was given to `Network`, and what a network is once everything about it is said."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from ..engine.contract.condition import Condition
from ..engine.contract.contract import Contract
from ..engine.errors import InputError, shown
from .time_map import TimeMap

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .convention import Convention
    from .decoders.options import Decoder
    from .encoders.from_pipeline import PromptSources
    from .guidance.options import ClassifierFree
    from .pipelines.memory import Need
    from .pipelines.reread import Reread
    from .policies.options import Policy


@final
@dataclass(frozen=True)
class Given:
    """The options of `Network`, which means each of them as it says; None where an option was left out."""

    shape: tuple[int, ...] | None = None
    schedule: str | None = None
    prediction: str | None = None
    conditions: Mapping[str, Condition | Tensor] = field(default_factory=dict)
    input: str | None = None
    time: str | None = None
    output: str | int | None = None
    time_scale: float | None = None
    time_map: str | None = None
    time_dtype: str | None = None
    learned_sigma: bool = False
    sigma_data: float | None = None
    data_range: tuple[float, float] | None = None
    name: str | None = None
    example: Mapping[str, Tensor] = field(default_factory=dict)
    decoder: Decoder | nn.Module | str | Path | None = None
    encoders: bool = True
    lora: tuple[str, ...] = ()
    controlnet: str | None = None
    policy: Policy | None = None


def as_shape(given: Any) -> tuple[Any, ...]:
    """One size as a tuple of one; sizes in any sequence as a tuple, which the contract checks. Raises InputError."""
    if hasattr(given, "__index__") and not isinstance(given, bool):  # of tensors those of one whole number
        try:
            return (operator.index(given),)
        except TypeError:
            pass
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        raise InputError(f"shape {shown(given)}, expected one sample's sizes, such as shape=(3, 64, 64)")
    return tuple(given)


def check_types(texts: Mapping[str, Any], mappings: Mapping[str, Any]) -> None:
    """Raises InputError for what is neither None nor a text, or neither None nor a mapping by names."""
    for name, given in texts.items():
        if given is not None and not isinstance(given, str):
            raise InputError(f"{name}: got {type(given).__name__}, expected a text")
    for name, given in mappings.items():
        if given is not None and not isinstance(given, Mapping):
            raise InputError(f"{name}: got {type(given).__name__}, expected values by the names of forward's inputs")


@final
@dataclass(frozen=True)
class Described:
    """A network with its description. Fields mean the same as the arguments of `Network`.

    source: the module, or a text, "file.py:factory" or the path of an ONNX file. shape: None where only the source
    knows it. time_map: in place of `time_scale`. negated: what the network predicts has the other sign. convention: of
    the scheduler that came with the network, with its times, clip and end. prompts: the text encoders beside it;
    guidance: its pipeline's own, where they are. policy: what makes actions of observations. origin: what an engine's
    provenance says of where it comes from.
    need: parameters of its parts, where a pipeline says them. weights: of a source that is read from files.
    """

    source: nn.Module | str
    name: str
    shape: tuple[int, ...] | None
    schedule: str
    prediction: str
    conditions: Mapping[str, Condition | Tensor] = field(default_factory=dict)
    input: str | None = None
    time: str | None = None
    output: str | int | None = None
    time_scale: float = 1.0
    time_map: TimeMap | None = None
    negated: bool = False
    time_dtype: str | None = None
    learned_sigma: bool = False
    sigma_data: float = 0.5
    data_range: tuple[float, float] = (-1.0, 1.0)
    example: Mapping[str, Tensor] = field(default_factory=dict)
    decoder: Decoder | nn.Module | str | Path | None = None
    convention: Convention | None = None
    prompts: PromptSources | None = None
    guidance: ClassifierFree | None = None
    policy: Policy | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)
    need: Need | None = None
    weights: Reread | None = None

    def contract(
        self,
        shape: tuple[int, ...],
        conditions: tuple[Condition, ...] = (),
        *,
        time_dtype: str = "float32",
        time_rank: int = 1,
        fixed_batch: int | None = None,
        precision: str = "fp32",
    ) -> Contract:
        """The contract of network.onnx, with what only a look at the source shows. Raises InputError."""
        return Contract(
            name=self.name,
            shape=shape,
            schedule=self.schedule,
            prediction=self.prediction,
            time_dtype=time_dtype,
            time_scale=self.time_scale,
            time_rank=time_rank,
            conditions=conditions,
            sigma_data=self.sigma_data,
            data_range=self.data_range,
            fixed_batch=fixed_batch,
            precision=precision,
            learned_sigma=self.learned_sigma,
        )
