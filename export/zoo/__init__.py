"""The shipped networks by name: each a module with its trained weights and its description."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import TYPE_CHECKING

from ...engine.condition import Condition
from ...engine.errors import EngineFileError, InputError
from ..described import Described

if TYPE_CHECKING:
    from torch import Tensor

NAMES = ("fashion", "gates")


def load(name: str) -> Described:
    """The shipped network `name` with its weights. Raises InputError (no such name), EngineFileError (bad weights)."""
    if name not in NAMES:
        raise InputError(f"unknown shipped network '{name}'; shipped: {', '.join(NAMES)}")
    import safetensors
    from safetensors.torch import load as read

    weights = f"{name}.safetensors"  # float16
    try:
        held = read((resources.files(__name__) / weights).read_bytes())
        return _fashion(held) if name == "fashion" else _gates(held)
    except FileNotFoundError:
        raise EngineFileError(
            f"the weights {weights} are missing from this installation; install pfdiff again, "
            f"or train them with python -m pfdiff.export.zoo.train_{name}"
        ) from None
    except (safetensors.SafetensorError, RuntimeError) as error:
        line = str(error).splitlines()[0]
        raise EngineFileError(f"the weights {weights} are damaged ({line}); install pfdiff again") from error


def _fashion(weights: Mapping[str, Tensor]) -> Described:
    from .fashion import CLASSES, NO_LABEL, FashionUNet

    module = FashionUNet()
    module.load_state_dict({key: value.float() for key, value in weights.items()})
    label = Condition("label", "int64", default=NO_LABEL, low=0, high=NO_LABEL, labels=CLASSES)
    return Described(module.eval(), "fashion", (1, 28, 28), "linear:1000", "v", {label.name: label})


def _gates(weights: Mapping[str, Tensor]) -> Described:
    from .gates_policy import described

    return described(weights)
