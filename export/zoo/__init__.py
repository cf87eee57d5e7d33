"""The shipped networks by name: each a module with its trained weights and its description."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

from ...engine.condition import Condition
from ...engine.errors import EngineFileError, InputError
from ..convention import Convention
from ..described import Described

if TYPE_CHECKING:
    from .fashion import FashionUNet

SCHEDULE, PREDICTION = "linear:1000", "v"
# Name -> (weights, how to train them, what it is sampled by where nothing is said).
SHIPPED: dict[str, tuple[str, str, Convention | None]] = {
    "fashion": ("fashion.safetensors", "train_fashion", None),
    "fashion-distilled": (
        "fashion_distilled.safetensors",
        "distil_fashion",
        Convention(SCHEDULE, PREDICTION, "trailing", spacing="trailing", solver="consistency"),
    ),
}
NAMES = tuple(SHIPPED)


def load(name: str) -> Described:
    """The shipped network `name` with its weights. Raises InputError (no such name), EngineFileError (bad weights)."""
    if name not in NAMES:
        raise InputError(f"unknown shipped network '{name}'; shipped: {', '.join(NAMES)}")
    from .fashion import CLASSES, NO_LABEL

    file, script, convention = SHIPPED[name]
    label = Condition("label", "int64", default=NO_LABEL, low=0, high=NO_LABEL, labels=CLASSES)
    return Described(
        _module(file, script),
        name,
        (1, 28, 28),
        SCHEDULE,
        PREDICTION,
        {label.name: label},
        convention=convention,
    )


def _module(file: str, script: str) -> FashionUNet:
    """The network with the weights in `file`, float16 on disk, in evaluation mode."""
    import safetensors
    from safetensors.torch import load as read

    from .fashion import FashionUNet

    module = FashionUNet()
    try:
        weights = read((resources.files(__name__) / file).read_bytes())
        module.load_state_dict({key: value.float() for key, value in weights.items()})
    except FileNotFoundError:
        raise EngineFileError(
            f"the weights {file} are missing from this installation; install pfdiff again, "
            f"or train them with python -m pfdiff.export.zoo.{script}"
        ) from None
    except (safetensors.SafetensorError, RuntimeError) as error:
        line = str(error).splitlines()[0]
        raise EngineFileError(f"the weights {file} are damaged ({line}); install pfdiff again") from error
    return module.eval()
