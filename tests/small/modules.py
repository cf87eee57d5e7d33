"""Modules of one convolution with forwards as users write them, and what a written network is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pfdiff.export.check import OnnxRun
from pfdiff.export.network import Network

SHAPE = (2, 4, 4)
WORDS: dict[str, Any] = {"schedule": "linear:1000", "prediction": "eps"}


def wave(x: Tensor, t: Tensor) -> Tensor:
    return x * torch.cos(t.float() / 100)[:, None, None, None]


class Mixing(nn.Module):
    """Without a forward: each subclass has its own signature."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Conv2d(2, 2, 1)


class Plain(Mixing):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return wave(self.mix(x), t)


class Labelled(Mixing):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 2)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return wave(self.mix(x), t) + self.table(y)[:, :, None, None]


@dataclass
class Output:
    sample: Tensor


class LikeDiffusers(Mixing):
    def __init__(self) -> None:
        super().__init__()
        self.text = nn.Linear(5, 2)

    def forward(self, sample, timestep, encoder_hidden_states, mask=None, *, strength=None, return_dict=True) -> Output:
        y = wave(self.mix(sample), timestep) + self.text(encoder_hidden_states).mean(1)[:, :, None, None]
        if strength is not None:
            y = y * strength[:, None, None, None]
        return Output(sample=y) if return_dict else Output(-y)


def check_written(network: Network, folder: Path, **given: Any) -> None:
    """network.onnx at batch 3 equals `network.evaluate`."""
    contract = network.write(folder)
    x = torch.randn(3, *contract.shape)
    t = np.array([3, 200, 999]) if contract.time_rank else np.array(7)
    wanted = network.evaluate(x, t, given).numpy()
    fed = [one.values(given.get(one.name), 3) for one in contract.conditions]
    names = ("x", "t", *(one.name for one in contract.conditions))
    got = OnnxRun(folder / "network.onnx", names, "out")((x.numpy(), t.astype(contract.time_dtype), *fed))
    assert got.shape == (3, *contract.shape)
    np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())
