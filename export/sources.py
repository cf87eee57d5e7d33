"""A user's network, whatever it came as, behind one contract.

    Network(module | "file.py:factory" | "unet.onnx" | "fashion", shape=..., schedule=..., prediction=...)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from ..engine.contract import Condition, Contract

if TYPE_CHECKING:
    from torch import Tensor, nn

Progress = Callable[[str], None]


@final
class Network:
    """A score network and its contract.

    `contract`  what the exported network takes and predicts
    `digest`    sha256 hex of weights, code and contract, computed without exporting
    """

    contract: Contract

    def __init__(
        self,
        source: nn.Module | str | Path,
        *,
        shape: tuple[int, ...] | None = None,
        schedule: str | None = None,
        prediction: str | None = None,
        conditions: Mapping[str, Condition | Tensor] | None = None,
        input: str | None = None,
        time: str | None = None,
        output: str | None = None,
        time_scale: float = 1.0,
        time_dtype: str | None = None,
        learned_sigma: bool = False,
        sigma_data: float = 0.5,
        data_range: tuple[float, float] = (-1.0, 1.0),
        name: str | None = None,
        example: Mapping[str, Tensor] | None = None,
    ) -> None: ...

    @property
    def digest(self) -> str: ...

    def write(
        self, folder: Path, precision: str = "fp32", progress: Progress | None = None, *, external: bool | None = None
    ) -> Contract:
        """Write network.onnx (+ network.onnx.data) into `folder`, compare it with the source; the contract of the file."""
        ...

    def evaluate(self, x: Tensor, t: Any, conditions: Mapping[str, Tensor] | None = None) -> Tensor:
        """The prediction [B, *shape] float32 of the source itself, for x [B, *shape] float32 and t a number or [B]."""
        ...
