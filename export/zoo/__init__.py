"""The shipped networks by name: each a module with its trained weights and its description."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

from ...engine.contract.condition import Condition
from ...engine.errors import EngineFileError, InputError
from ..convention import Convention
from ..described import Described

if TYPE_CHECKING:
    from torch import Tensor

    Weights = Mapping[str, Tensor]  # float32

SCHEDULE, PREDICTION = "linear:1000", "v"
DISTILLED = Convention(SCHEDULE, PREDICTION, "trailing", solver="consistency")


@dataclass(frozen=True)
class Shipped:
    """Its weights, float16 on disk, the script that trains them, and what the network is with them."""

    file: str
    script: str
    described: Callable[[Weights], Described]


def load(name: str) -> Described:
    """The shipped network `name` with its weights. Raises InputError (no such name), EngineFileError (bad weights)."""
    if name not in NAMES:
        raise InputError(f"unknown shipped network '{name}'; shipped: {', '.join(NAMES)}")
    import safetensors
    from safetensors.torch import load as read

    shipped = SHIPPED[name]
    try:
        weights = read((resources.files(__name__) / shipped.file).read_bytes())
        return shipped.described({key: value.float() for key, value in weights.items()})
    except FileNotFoundError:
        raise EngineFileError(
            f"the weights {shipped.file} are missing from this installation; install pfdiff again, "
            f"or train them with python -m pfdiff.export.zoo.{shipped.script}"
        ) from None
    except (safetensors.SafetensorError, RuntimeError) as error:
        line = str(error).splitlines()[0]
        raise EngineFileError(f"the weights {shipped.file} are damaged ({line}); install pfdiff again") from error


def _fashion(name: str, convention: Convention | None) -> Callable[[Weights], Described]:
    """convention: what it is sampled by where nothing is said."""

    def described(weights: Weights) -> Described:
        from .fashion import CLASSES, NO_LABEL, FashionUNet

        module = FashionUNet()
        module.load_state_dict(dict(weights))
        label = Condition("label", "int64", default=NO_LABEL, low=0, high=NO_LABEL, labels=CLASSES)
        conditions = {label.name: label}
        return Described(module.eval(), name, (1, 28, 28), SCHEDULE, PREDICTION, conditions, convention=convention)

    return described


def _gates(weights: Weights) -> Described:
    from .gates_policy import described

    return described(weights)


SHIPPED: dict[str, Shipped] = {
    "fashion": Shipped("fashion.safetensors", "train_fashion", _fashion("fashion", None)),
    "fashion-distilled": Shipped(
        "fashion_distilled.safetensors", "distil_fashion", _fashion("fashion-distilled", DISTILLED)
    ),
    "gates": Shipped("gates.safetensors", "train_gates", _gates),
}
NAMES = tuple(SHIPPED)
