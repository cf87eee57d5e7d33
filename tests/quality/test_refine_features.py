"""`tune(refine=True)` with features: through a module by gradients, through an ONNX file without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pfdiff
from pfdiff.engine.errors import InputError
from pfdiff.quality.perceptual.layers import filter_bank
from pfdiff.quality.refining.by_descent import batch_of
from pfdiff.quality.refining.options import Refining
from pfdiff.quality.refining.polish import sized

from ..small.engine import write_onnx

FEW: dict[str, Any] = {"calibration": 4, "held_out": 6, "solvers": ["ddim"], "grids": ["trailing"], "refine": True}


class Shaded(nn.Module):
    """A smooth v-network for pictures [B, 1, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layers = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 1, 3, padding=1))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.layers(x) * torch.cos(t / 700)[:, None, None, None] + 0.4 * x


def network() -> pfdiff.Network:
    return pfdiff.Network(Shaded(), shape=(1, 8, 8), schedule="linear:1000", prediction="v")


def test_features_are_trained_through_a_module() -> None:
    ranking = pfdiff.tune(network(), 3, features="filters", budget=24000, **FEW)
    record = ranking.refinement
    assert record is not None
    assert (record["method"], record["features"], record["family"]) == ("adam", "filters", "whole table")
    assert ranking.evaluations <= 24000
    assert record["kept"]
    assert record["held_out_loss_after"] < record["held_out_loss_before"]
    assert ranking[0].solver == "ddim refined"
    assert ranking[0].program.buffers <= 3
    again = pfdiff.tune(network(), 3, features="filters", budget=24000, **FEW)
    assert again[0].program.digest == ranking[0].program.digest
    assert again.cached > 0


def test_real_pictures_pull_the_distribution() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 1)).astype(np.uint8)
    ranking = pfdiff.tune(network(), 3, features="filters", pictures=pictures, budget=24000, **FEW)
    assert ranking.refinement is not None
    assert ranking.refinement["real_pictures"] == 300


def test_a_file_is_refined_without_gradients(tmp_path: Path) -> None:
    write_onnx(tmp_path / "small.onnx", batch="batch")
    source = pfdiff.Network(tmp_path / "small.onnx", shape=(2, 3, 5), schedule="linear:1000", prediction="eps")
    given = {"label": 0, "shift": np.zeros((3, 1), np.float32)}
    ranking = pfdiff.tune(source, 3, budget=9000, conditions=given, **FEW)
    assert ranking.refinement is not None
    assert ranking.refinement["method"] == "levenberg-marquardt"
    regression = ranking.refinement["regression"]
    assert regression["kept"] == (regression["validation"][1] < regression["validation"][0])
    assert 0 < regression["evaluations"] <= ranking.refinement["evaluations"]
    assert ranking.evaluations <= 9000
    first, *rest = ranking
    assert first.held_out_error is not None
    assert all(one.held_out_error is None or first.held_out_error <= one.held_out_error for one in rest)


def test_fewer_buffers_are_kept_to() -> None:
    ranking = pfdiff.tune(network(), 4, budget=9000, buffers=1, **FEW)
    assert ranking.refinement is not None
    assert ranking.refinement["family"] == "own buffers"
    assert ranking[0].program.buffers == 1


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"features": "filters", "refine": False}, "of metric fd, and of refine"),
        ({"pictures": np.zeros((4, 8, 8, 1), np.uint8)}, "pictures without features"),
        ({"features": "fashion"}, "take samples of 1x28x28"),
        ({"features": "nothing"}, "give no layers to refine on"),
        ({"features": "filters", "buffers": 1, "budget": 12000}, "features need the whole table"),
        ({"buffers": 0}, "buffers=0"),
        ({"buffers": 9}, "buffers=9, expected a number of states from 1 to 8"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        pfdiff.tune(network(), 3, **{**FEW, **change})


def test_samples_of_few_elements_take_more_seeds() -> None:
    assert sized(16, None, 36, 784, 5) == (256, 96)
    assert sized(16, None, 36, 1, 8)[0] == 8 * (45 + 8)
    training, validation = sized(4, 30_000, 36, 12288, 8)
    assert 64 <= training <= 166
    assert validation >= 8


def test_gradients_see_the_rare_seeds_of_small_samples() -> None:
    """As many elements in all as they need, and in each step an eighth of the seeds."""
    assert sized(16, None, 36, 784, 5, by_gradient=True) == (256, 96)
    assert sized(16, None, 36, 64, 5, by_gradient=True) == (2048, 768)
    assert sized(16, None, 36, 2, 5, by_gradient=True) == (2048, 768)
    assert sized(16, None, 36, 64, 5, whole=False, by_gradient=True) == (256, 96)
    assert sized(16, 20_000, 36, 64, 5, by_gradient=True)[0] <= 20_000 // (5 * 36)
    assert batch_of(Refining(2048, 768)) == 256
    assert batch_of(Refining(256, 96)) == 32
    assert batch_of(Refining(512, 128, layers=filter_bank(1))) == 32


def test_a_small_budget_leaves_no_validation_seeds() -> None:
    """Regression alone needs none; features and few buffers do."""
    training, validation = sized(4, 7000, 36, 12288, 8)
    assert 4 <= training <= 48
    assert validation == 0
    assert sized(32, 7000, 36, 12288, 8) == (32, 0)
    for words in ({"perceptual": True}, {"whole": False}):
        training, validation = sized(4, 7000, 36, 12288, 8, **words)
        assert training >= 16
        assert validation >= 8
