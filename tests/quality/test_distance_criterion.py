"""tune --metric fd: its errors are the distances of the engine's own pictures, and its ranking is theirs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn

import pfdiff
from pfdiff import InputError
from pfdiff.cli import main
from pfdiff.engine.artifact import read_artifact
from pfdiff.engine.bulk.cluster import connected
from pfdiff.quality.criteria.on_ray import Dealer, Drawing
from pfdiff.quality.distances.features import with_whole_path
from pfdiff.quality.search.candidates import Setting, all_candidates, compiled

REAL = np.random.default_rng(0).integers(0, 256, (80, 6, 5, 1), np.uint8)
SOLVERS = ["ddim", "pfdiff:k=2,l=1"]
NETWORK = '''
import torch
from torch import nn

class Tiny(nn.Module):
    """eps for pictures [B, 1, 6, 5]."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, t):
        return 0.6 * x + 0.5 * torch.sin(3 * self.convolution(x))

class Rows(nn.Module):
    def forward(self, x):
        return x.sum(3).flatten(1)

def tiny():
    return Tiny()

def rows():
    return Rows()
'''
WORDS = {"shape": (1, 6, 5), "schedule": "linear:1000", "prediction": "eps"}


class Rows(nn.Module):
    """Sums of the rows."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(3).flatten(1)


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETWORK)
    np.savez(tmp_path / "real.npz", x=REAL)
    return tmp_path


def network() -> pfdiff.Network:
    return pfdiff.Network("nets.py:tiny", **WORDS)


def distance(pixels: np.ndarray) -> float:
    """FD of row sums to REAL's, with scipy's matrix root."""
    one, other = (x[..., 0].astype(np.float64).sum(2) / 127.5 - 5 for x in (REAL, pixels))
    c_1, c_2 = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    mean = one.mean(0) - other.mean(0)
    return float(mean @ mean + np.trace(c_1 + c_2 - 2 * np.real(sqrtm(c_1 @ c_2))))


def test_errors_are_distances_of_the_engines_pictures_and_the_ranking_is_theirs() -> None:
    grids = ["uniform", "logsnr"]
    solvers = [*SOLVERS, "dpm++:2m-sde"]  # this one draws noise, of the same seeds in the search and in the engine
    words = {"solvers": solvers, "grids": grids, "bases": ["eps"], "local": False, "t_start": 999}
    judged = {"metric": "fd", "pictures": REAL, "features": Rows(), "calibration": 32, "held_out": 24}
    ranking = pfdiff.tune(network(), 4, **judged, **words)
    assert ranking.criterion == "FD to an array on features Rows"
    assert ranking.reference is None
    found: dict[str, tuple[float, float]] = {}
    for one in ranking:
        settings = {"grid": one.grid, "basis": one.basis, "batch": 8, "out": "one.engine"}
        with pfdiff.build(network(), 4, one.solver, **settings) as engine:
            calibration = engine.images(seeds=range(32), nfe=4).numpy()
            held_out = engine.images(seeds=range(1 << 40, (1 << 40) + 24), nfe=4).numpy()
        found[f"{one.solver}@{one.grid}"] = distance(calibration), distance(held_out)
        assert one.error == pytest.approx(distance(calibration), rel=1e-3)
        assert one.held_out_error == pytest.approx(distance(held_out), rel=1e-3)
    setting = Setting("linear:1000", 4, "eps", 999, draws=True)
    candidates = all_candidates(setting, solvers=solvers, grids=grids, bases=["eps"])
    everything = list(compiled(candidates, setting, set()))
    assert len(found) == len(everything) == 6
    assert list(found) == sorted(found, key=lambda name: found[name][0])


def test_solvers_that_draw_noise_are_candidates_of_distances_alone() -> None:
    for draws in (True, False):
        setting = Setting("linear:1000", 4, "eps", 999, draws=draws)
        found = {one.solver for one in all_candidates(setting)}
        assert ("euler-a" in found) == ("tada:order=2" in found) == draws
    with pytest.raises(InputError, match="ddpm draws noise on the way, so its error to a reference has no meaning"):
        pfdiff.tune(network(), 4, solvers=["ddpm"], calibration=2, held_out=0, reference=8)
    with pytest.raises(InputError, match="has no meaning"):
        pfdiff.compare(network(), [4], ["ddpm@uniform"], seeds=2)


def test_twice_is_the_same_and_the_second_time_free() -> None:
    words = {"metric": "fd", "pictures": "real.npz", "features": "nets.py:rows", "calibration": 16, "local": False}
    first = pfdiff.tune(network(), 4, solvers=SOLVERS, held_out=8, **words)
    again = pfdiff.tune(network(), 4, solvers=SOLVERS, held_out=8, **words)
    assert [(one.solver, one.error) for one in again] == [(one.solver, one.error) for one in first]
    assert first.cached < first.evaluations == again.cached == again.evaluations


def test_the_scale_of_the_features_is_that_of_the_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of x in 0..1 are half of those in -1..1, but for a constant: a quarter of the distance. On workers too."""
    words = {
        "pictures": REAL,
        "metric": "fd",
        "calibration": 16,
        "held_out": 0,
        "solvers": ["ddim"],
        "grids": ["uniform"],
    }
    words |= {"bases": ["eps"], "local": False, "t_start": 999}
    usual = pfdiff.tune(network(), 4, features=Rows(), **words)
    halved = pfdiff.tune(network(), 4, features=Rows(), scale=(0, 1), **words)
    assert halved[0].error == pytest.approx(usual[0].error / 4, rel=1e-3)
    pfdiff.build(network(), 4, "ddim", grid="uniform", out="tiny.engine").close()
    place = (Path("tiny.engine"), "nets.py:rows", range(8), None, "auto", 1)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)  # of a worker's process
    drawing, ours = Drawing(*place, (-1, 1)), Drawing(*place, (0, 1))
    program = read_artifact("tiny.engine").programs[4].to_json()
    x, half = (one.features(program, np.arange(8)) for one in (drawing, ours))
    np.testing.assert_allclose(half, (x + 5) / 2, atol=1e-4)


def test_a_budget_ends_the_search_early() -> None:
    words = {"metric": "fd", "pictures": REAL, "features": Rows(), "calibration": 16, "held_out": 8}
    found = pfdiff.tune(network(), 4, solvers=SOLVERS, budget=100, **words)
    assert not found.complete
    assert found.evaluations <= 100


def test_the_command_shows_what_was_measured_and_writes_the_winner(capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--shape", "1x6x5", "--schedule", "linear:1000", "--prediction", "eps", "--solver", "ddim"]
    words = ["--metric", "fd", "--pictures", "real.npz", "--features", "nets.py:rows", "--calibration", "16"]
    words += ["--scale", "0,1"]
    assert main(["tune", "nets.py:tiny", "--nfe", "4", *where, *words, "--held-out", "8", "-o", "best.engine"]) == 0
    shown = capsys.readouterr().out
    assert "NFE 4: FD to real.npz on features nets.py:rows" in shown
    with pfdiff.load("best.engine") as engine:
        record = engine.provenance["search"]["4"]
    assert record["criterion"] == "FD to real.npz on features nets.py:rows"
    assert record["reference"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"metric": "fid"}, "metric 'fid', expected one of error, fd"),
        ({"metric": "fd"}, "metric fd needs pictures and features"),
        ({"metric": "fd", "pictures": REAL, "features": Rows(), "refine": True}, "takes neither refine nor reference"),
        ({"metric": "fd", "pictures": REAL, "features": Rows(), "calibration": 8}, "calibration=8, expected"),
        ({"metric": "fd", "pictures": "gone.npz", "features": Rows()}, "there is no such file"),
        ({"pictures": REAL}, "pictures and features are of metric fd"),
        ({"buffers": 3}, "buffers is of refine"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(words: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pfdiff.tune(network(), 4, **words)


def test_samples_that_are_no_pictures_are_refused() -> None:
    class Flat(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.tanh(x)

    flat = pfdiff.Network(Flat(), shape=(7,), schedule="linear:1000", prediction="eps")
    with pytest.raises(InputError, match=r"pictures \[C, H, W\], these are of shape \[7\]; use metric error"):
        pfdiff.tune(flat, 4, metric="fd", pictures=REAL, features=Rows())


def test_ray_is_for_engines_and_features_by_name() -> None:
    words = {"pictures": REAL, "features": "nets.py:rows", "metric": "fd", "ray": "local"}
    with pytest.raises(InputError, match="an engine directory and features by name; build the engine first"):
        pfdiff.tune(network(), 4, **words)
    with pytest.raises(InputError, match="ray takes metric fd"):
        pfdiff.tune(network(), 4, ray="local")


def test_what_is_asked_goes_to_the_workers_that_have_answered() -> None:
    """Three workers, one of which the cluster has no room for."""
    dealt: list[tuple[int, int]] = []

    class Task:
        def __init__(self, place: int, name: str) -> None:
            self.place, self.name = place, name

        def remote(self, *given: Any) -> tuple[int, str, int]:
            if self.name == "features":
                dealt.append((self.place, int(given[1][0])))
            return self.place, self.name, int(given[1][0]) if given else -1

    class Worker:
        def __init__(self, place: int) -> None:
            self.ready, self.features = Task(place, "ready"), Task(place, "features")

    def wait(references: list[tuple[int, str, int]]) -> list[tuple[int, str, int]]:
        ready = [one for one in references if one[0] != 1]
        assert ready, "would wait for ever"
        return ready[:1]

    ahead = Dealer([Worker(place) for place in range(3)], wait, lambda reference: [float(reference[2])])
    setting = Setting("linear:1000", 4, "eps", 999)
    _, program = next(compiled(all_candidates(setting, solvers=["ddim"]), setting, set()))
    for first in (0, 7):
        answers = ahead([(program, np.array([first + row])) for row in range(7)])
        assert [float(answer()[0]) for answer in answers] == [first + row for row in range(7)]
    assert sorted(row for _, row in dealt) == list(range(14))  # each once
    assert {place for place, _ in dealt} == {0, 2}


def test_files_of_extractors_are_named_for_another_folder(work: Path) -> None:
    assert with_whole_path("fashion") == "fashion"
    assert with_whole_path("nets.py:rows") == f"{work}/nets.py:rows"
    assert with_whole_path("judge.onnx:/pool/out") == f"{work}/judge.onnx:/pool/out"
    assert with_whole_path("inception:weights.pt") == f"inception:{work}/weights.pt"
    assert with_whole_path("/judge.onnx") == "/judge.onnx"


@pytest.mark.slow
def test_on_ray_the_ranking_is_that_of_this_process(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although the cluster works in another folder and has no room for the third worker."""
    ray = pytest.importorskip("ray", reason="ray is not installed")
    pfdiff.build(network(), 4, "ddim", out="tiny.engine").close()
    words = {"metric": "fd", "pictures": REAL, "features": "nets.py:rows", "held_out": 8}
    words |= {"calibration": 16, "solvers": SOLVERS, "local": False}
    here = pfdiff.tune("tiny.engine", 4, **words)
    monkeypatch.setenv("XDG_CACHE_HOME", str(work / "another"))

    def never(self: object, program: object, rows: object) -> None:
        raise AssertionError("drawn by the driver")

    monkeypatch.setattr("pfdiff.quality.criteria.distance.FeatureSampler.__call__", never)

    class Other:
        def busy(self) -> bool:
            return True

    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(3)), raising=False)
    monkeypatch.chdir("/")
    with connected("local"):
        monkeypatch.chdir(work)
        other: Any = ray.remote(num_cpus=1)(Other)
        other = other.remote()
        assert ray.get(other.busy.remote())
        there = pfdiff.tune(work / "tiny.engine", 4, ray="local", workers=3, **words)
    assert [(one.solver, one.grid) for one in there] == [(one.solver, one.grid) for one in here]
    assert [one.error for one in there] == pytest.approx([one.error for one in here], rel=1e-4)
    held_out = [[one.held_out_error for one in ranking if one.held_out_error is not None] for ranking in (here, there)]
    assert held_out[1] == pytest.approx(held_out[0], rel=1e-4)
    assert len(held_out[0]) >= 10
    assert there.evaluations == here.evaluations
