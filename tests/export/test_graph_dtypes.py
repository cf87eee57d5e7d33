"""A half precision needs weights of that dtype; tables that only multiply element by element may stay float32."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn

import pfdiff
from pfdiff.engine.errors import InputError

WIDTH, TOKENS = 16, 2000


class Attended(nn.Module):
    """A layer, and numbers that nobody registered: as weights of a product, or as a table of rotations."""

    def __init__(self, use: str) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.use = use
        generator = torch.Generator().manual_seed(2)
        self.held = [torch.randn(TOKENS, WIDTH, generator=generator) / 8]

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        z = self.layer(x) * (1 + t[:, None, None].to(x.dtype) / 1000)
        (held,) = self.held
        if self.use == "weights":
            return (z.float() @ held.T @ held).to(x.dtype)
        if self.use == "turned weights":
            return (z.float() @ held.reshape(WIDTH, TOKENS) @ held.flip(0)).to(x.dtype)
        turned = z.float()[:, None] * held.reshape(1, TOKENS, 1, WIDTH)
        return turned.mean(1).to(x.dtype)


def network(use: str) -> pfdiff.Network:
    torch.manual_seed(0)
    return pfdiff.Network(Attended(use), shape=(3, WIDTH), schedule="linear:1000", prediction="eps", name="attended")


@pytest.mark.parametrize("use", ["weights", "turned weights"])
def test_weights_that_nobody_registered_are_refused(use: str, tmp_path: Path) -> None:
    model = network(use)
    with pytest.raises(InputError, match=r"weights are .* FLOAT.*, expected FLOAT16; register them as parameters"):
        model.write(tmp_path, "fp16")
    assert not list(tmp_path.iterdir())
    model.write(tmp_path)


def test_tables_stay_float32(tmp_path: Path) -> None:
    network("table").write(tmp_path, "fp16")
    held = onnx.load(tmp_path / "network.onnx").graph.initializer
    sizes = {one.data_type: 0 for one in held}
    for one in held:
        sizes[one.data_type] += int(torch.tensor(list(one.dims)).prod())
    assert sizes[TensorProto.FLOAT] >= TOKENS * WIDTH
    assert sizes[TensorProto.FLOAT16] >= WIDTH * WIDTH
