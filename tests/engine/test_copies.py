"""An engine is shown in one line, and copied by loading it again."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import pfdiff
from pfdiff.engine.artifact import read_artifact

from ..small.engine import write_engine


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_engine(tmp_path / "small.engine", nfe=(4,))
    return tmp_path / "small.engine"


def test_a_copy_draws_the_same_samples(path: Path) -> None:
    artifact = read_artifact(path)
    program = pfdiff.compile("ddim", artifact.contract.schedule, 7, "uniform", prediction=artifact.contract.prediction)
    with pfdiff.Engine.open(replace(artifact, programs={7: program}), backend="onnxruntime", threads=1) as engine:
        given: dict[str, Any] = dict(engine.contract.stand_ins)
        expected = engine.sample(seeds=[3, 9], **given)
        for other in (pickle.loads(pickle.dumps(engine)), copy.deepcopy(engine)):
            with other:
                assert repr(other) == repr(engine)
                assert other.threads == 1
                assert torch.equal(other.sample(seeds=[3, 9], **given), expected)
        assert torch.equal(engine.sample(seeds=[3, 9], **given), expected)


def test_an_engine_is_shown_in_one_line_and_as_a_table(path: Path) -> None:
    with pfdiff.load(path, backend="onnxruntime") as engine:
        assert "\n" not in repr(engine)
        html = engine._repr_html_()
    assert html.startswith("<table>")
    assert "<td>NFE 4</td>" in html


def test_an_engine_of_a_module_says_why_it_is_not_copied(path: Path) -> None:
    class Zero(torch.nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor, *conditions: torch.Tensor) -> torch.Tensor:
            return 0 * x

    with pfdiff.load(path, backend="torch", module=Zero()) as engine, pytest.raises(pfdiff.InputError, match="module="):
        pickle.dumps(engine)


def test_a_network_is_shown_in_one_line() -> None:
    network = pfdiff.Network("fashion")
    assert repr(network) == "Network(fashion: x [1, 28, 28], t, label -> v, linear:1000)"
    assert "<td>predicts</td><td>v</td>" in network._repr_html_()
