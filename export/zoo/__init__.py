"""The shipped networks by name: each a module with its trained weights and its description."""

from __future__ import annotations

from importlib import resources

from ...engine.condition import Condition
from ...engine.errors import EngineFileError, InputError
from ..described import Described

NAMES = ("fashion",)


def load(name: str) -> Described:
    """The shipped network `name` with its weights. Raises InputError (no such name), EngineFileError (bad weights)."""
    if name not in NAMES:
        raise InputError(f"unknown shipped network '{name}'; shipped: {', '.join(NAMES)}")
    # Weights, float16 on disk.
    import safetensors
    from safetensors.torch import load as read

    from .fashion import CLASSES, NO_LABEL, FashionUNet

    module = FashionUNet()
    weights = resources.files(__name__) / "fashion.safetensors"
    try:
        module.load_state_dict({key: value.float() for key, value in read(weights.read_bytes()).items()})
    except FileNotFoundError:
        raise EngineFileError(
            "the weights fashion.safetensors are missing from this installation; install pfdiff again, "
            "or train them with python -m pfdiff.export.zoo.train_fashion"
        ) from None
    except (safetensors.SafetensorError, RuntimeError) as error:
        line = str(error).splitlines()[0]
        raise EngineFileError(f"the weights fashion.safetensors are damaged ({line}); install pfdiff again") from error
    label = Condition("label", "int64", default=NO_LABEL, low=0, high=NO_LABEL, labels=CLASSES)
    return Described(module.eval(), "fashion", (1, 28, 28), "linear:1000", "v", {label.name: label})
