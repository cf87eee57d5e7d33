"""evaluate: the same figures from an engine, files and arrays, and as its parts give; what is cached; the command."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pfdiff
from pfdiff import InputError
from pfdiff.cli import main
from pfdiff.cli.evaluate import print_evaluation
from pfdiff.quality.distances.features import Extractor, extractor
from pfdiff.quality.distances.metrics import FrechetDistance, kernel_distance, precision_recall, thinned
from pfdiff.quality.evaluate import Evaluation, evaluate, reference_features
from pfdiff.quality.pictures.write import write_images

COUNT = 30
REAL = np.random.default_rng(0).integers(0, 256, (50, 6, 5, 1), np.uint8)
JUDGE = '''
from torch import nn

class Both(nn.Module):
    """Means of rows and columns, and x as its own map."""

    def forward(self, x):
        return x.sum(2).flatten(1), x

def both():
    return Both()
'''


class Tiny(nn.Module):
    """v for pictures [B, 1, 6, 5]; a label shifts them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(1, 1, 3, padding=1)
        self.shift = nn.Embedding(4, 1)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return self.convolution(x) + self.shift(label)[:, :, None, None] * t[:, None, None, None] / 1000


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.engine (NFE 4 and 6), judge.py and real.npz."""
    folder = tmp_path_factory.mktemp("evaluate")
    condition = pfdiff.Condition("label", "int64", default=0, low=0, high=3, labels=("a", "b", "c"))
    network = pfdiff.Network(
        Tiny(), shape=(1, 6, 5), schedule="linear:1000", prediction="v", conditions={"label": condition}
    )
    pfdiff.build(network, [4, 6], grid="uniform", batch=[1, 8], out=folder / "tiny.engine").close()
    (folder / "judge.py").write_text(JUDGE)
    np.savez(folder / "real.npz", x=REAL[..., 0], y=np.arange(50))
    return folder


@pytest.fixture(autouse=True)
def work(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, a cache of its own, and few subsets."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("pfdiff.quality.distances.metrics.SUBSETS", 3)
    monkeypatch.chdir(built)
    return tmp_path


def features_of(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What Both makes of pixels uint8 [n, 6, 5, 1], in NumPy."""
    x = (pixels[..., 0].astype(np.float64) / 127.5 - 1).astype(np.float32)
    return x.sum(1), x.reshape(len(x), -1)


def test_an_engines_samples_against_real_pictures() -> None:
    with pfdiff.load("tiny.engine") as engine:
        pixels = engine.images(seeds=range(5, 5 + COUNT), nfe=6, label=np.arange(5, 5 + COUNT) % 3).numpy()
    found = pfdiff.evaluate("tiny.engine", "real.npz", features="judge.py:both", nfe=6, count=COUNT, first=5)
    (made, made_maps), (real, real_maps) = features_of(pixels), features_of(REAL)
    assert found.distance == pytest.approx(FrechetDistance(real)(made), rel=1e-4)
    assert found.spatial_distance == pytest.approx(FrechetDistance(real_maps)(made_maps), rel=1e-3)
    assert (found.precision, found.recall) == precision_recall(thinned(real, COUNT), made)
    assert found.kernel_distance == pytest.approx(kernel_distance(real, made)[0], rel=1e-3)
    assert (found.samples, found.real, found.compared) == (COUNT, 50, COUNT)
    assert found.names == ("FD", "sFD", "KD")
    assert found.extractor == "judge.py:both"
    assert found.drawn["solver"] == "pfdiff:k=2,l=1"
    assert found.drawn["seeds"] == f"5-{4 + COUNT}"
    assert found.drawn["conditions"] == {"label": {"0": 10, "1": 10, "2": 10}}
    assert json.loads(json.dumps(found.to_dict()))["distance"] == found.distance


def test_files_arrays_and_engines_agree(work: Path) -> None:
    with pfdiff.load("tiny.engine") as engine:
        from_engine = evaluate(engine, REAL, features="judge.py:both", nfe=4, count=COUNT, conditions={"label": "b"})
        pixels = engine.images(seeds=range(COUNT), nfe=4, label=1).numpy()
    write_images(work / "pictures", pixels, range(COUNT))
    for samples in (pixels, work / "pictures"):
        found = evaluate(samples, "real.npz", features="judge.py:both")
        assert found.distance == from_engine.distance
        assert found.precision == from_engine.precision
    assert from_engine.drawn["conditions"] == {"label": {"1": COUNT}}


def test_what_generate_wrote_is_named_and_must_be_complete(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = work / "samples"
    pfdiff.generate("tiny.engine", COUNT, out, nfe=6, first=5, format="npz", shard=8, pixels=True)
    words = ["--reference", "real.npz", "--features", "judge.py:both"]
    assert main(["evaluate", str(out), *words]) == 0
    assert capsys.readouterr().out.startswith("samples: pfdiff:k=2,l=1, 6 evaluations, seeds 5-34\n30 samples")
    found = evaluate(out, "real.npz", features="judge.py:both").drawn
    with pfdiff.load("tiny.engine") as engine:
        assert found["program_digest"] == engine.programs[6].digest
    assert (found["files"], found["solver"], found["nfe"], found["seeds"]) == ("samples", "pfdiff:k=2,l=1", 6, "5-34")

    # An older run, and one that was cut short.
    manifest = json.loads((out / "manifest.json").read_text())
    del manifest["solver"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert "solver" not in evaluate(out, "real.npz", features="judge.py:both").drawn
    assert pfdiff.generate("tiny.engine", COUNT, out, nfe=6, first=5, format="npz", shard=8, pixels=True).made == 0
    (out / "manifest.json").write_text(json.dumps({**manifest, "finished": 16, "complete": False}))
    assert main(["evaluate", str(out), *words]) == 2
    assert "samples': 16 of 30 are generated; run the same generate again" in capsys.readouterr().err


def test_the_real_features_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def counting(network: Extractor) -> Extractor:
        def run(pixels: np.ndarray) -> Any:
            seen.append(len(pixels))
            return network.run(pixels)

        return Extractor(network.name, network.digest, run)

    network = counting(extractor("judge.py:both"))
    first, digest = reference_features(network, REAL)
    assert sum(seen) == 52  # a probe of two
    again, same = reference_features(network, REAL)
    assert sum(seen) == 54
    np.testing.assert_array_equal(again.pooled, first.pooled)
    assert again.spatial is not None
    assert first.spatial is not None
    np.testing.assert_array_equal(again.spatial, first.spatial)
    assert same == digest

    # Other pictures, another extractor, another version.
    changed = REAL.copy()
    changed[7, 0, 0, 0] ^= 1
    assert reference_features(network, changed)[1] != digest
    assert sum(seen) == 54 + 52
    reference_features(counting(extractor("judge.py:both", scale=(0, 1))), REAL)
    assert sum(seen) == 54 + 2 * 52
    monkeypatch.setattr("pfdiff.quality.distances.real_pictures.VERSION", 99)
    reference_features(network, REAL)
    assert sum(seen) == 54 + 3 * 52


def test_progress_counts_real_pictures_and_samples() -> None:
    told: list[tuple[str, int, int]] = []
    evaluate(REAL[:20], REAL, features="judge.py:both", progress=lambda *given: told.append(given))
    assert ("features of the real pictures", 50, 50) in told
    assert ("samples", 20, 20) in told


def test_features_of_a_changed_extractor_with_the_same_digest_are_made_again() -> None:
    """As when something was edited that the digest does not reach."""

    def made(power: int) -> Extractor:
        return Extractor("mine", "0", lambda pixels: (torch.from_numpy(pixels).float().flatten(1) ** power, None))

    for power in (1, 2, 1):
        found, _ = reference_features(made(power), REAL)
        np.testing.assert_array_equal(found.pooled, REAL.reshape(50, -1).astype(np.float32) ** power)


def test_real_pictures_that_are_sorted_by_class_are_compared_with_all_classes() -> None:
    """40 samples of both of two classes that nothing lies between, 400 real ones: one class, then the other."""
    rng = np.random.default_rng(3)
    classes = np.array([40, 200]).repeat(200)
    real = (classes[:, None, None, None] + rng.integers(-20, 20, (400, 6, 5, 1))).astype(np.uint8)
    made = (np.array([40, 200] * 20)[:, None, None, None] + rng.integers(-20, 20, (40, 6, 5, 1))).astype(np.uint8)
    found = evaluate(made, real, features="judge.py:both")
    assert found.precision > 0.8
    assert found.recall > 0.8


def test_only_inceptions_distances_are_called_fid() -> None:
    def run(pixels: np.ndarray) -> tuple[Tensor, None]:
        return torch.from_numpy(pixels).float().flatten(1)[:, :3], None

    from pfdiff.quality.criteria.distance import RealPictures
    from pfdiff.quality.evaluate import compare_features

    nvidia = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
    for digest, names in ((nvidia, ("FID", "sFID", "KID")), ("0", ("FD", "sFD", "KD"))):
        network = Extractor("inception", digest, run)
        real = network(REAL)
        found = compare_features(network, real, real, drawn={}, reference="", reference_digest="")
        assert found.names == names
        judge = RealPictures("real.npz", network, FrechetDistance(real.pooled), 3)
        assert str(judge) == f"{names[0]} to real.npz on features inception"
        assert found.spatial_distance is None
        assert found.distance == pytest.approx(0, abs=1e-6)


def test_the_command_names_what_the_figures_depend_on(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--reference", "real.npz", "--features", "judge.py:both", "--nfe", "6", "--count", str(COUNT)]
    assert main(["evaluate", "tiny.engine", *words, "--label", "c,0", "--json", str(work / "report.json")]) == 0
    shown = capsys.readouterr().out
    report = json.loads((work / "report.json").read_text())
    for word in (
        "pfdiff:k=2,l=1, 6 evaluations, seeds 0-29",
        "30 samples, 50 pictures of the reference real.npz",
        "not FID",
    ):
        assert word in shown
    assert f"{report['distance']:.4f}" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert report["drawn"]["conditions"] == {"label": {"0": COUNT // 2, "2": COUNT // 2}}
    assert report["machine"]["cores"]


def test_zeros_have_no_sign_and_no_spread(capsys: pytest.CaptureFixture[str]) -> None:
    same = Evaluation("f", "0", 512, 512, 512, -1e-9, -1e-9, 1.0, 1.0, -0.002, 1e-9, {"files": "a"}, "a", "0")
    print_evaluation(same)
    assert capsys.readouterr().out.splitlines()[4:7] == [
        "FD         0.0000",
        "sFD        0.0000",
        "KD         -0.002000",
    ]
    print_evaluation(replace(same, kernel_spread=0.0003))
    assert "KD         -0.002000 ± 0.000300\n" in capsys.readouterr().out


BAD = {
    "no engine, no pictures": (["gone", "--features", "fashion"], "there is no such file or folder"),
    "no features": (["tiny.engine", "--features", "vgg"], "unknown features 'vgg'"),
    "features of other pictures": (["tiny.engine", "--nfe", "4", "--features", "fashion"], "take pictures of 28x28x1"),
    "an engine's options for files": (["real.npz", "--nfe", "4", "--features", "judge.py:both"], "leave them out"),
    "which NFE": (["tiny.engine", "--features", "judge.py:both"], "nfe is missing and this engine has several"),
    "one sample": (["tiny.engine", "--nfe", "4", "--count", "1", "--features", "judge.py:both"], "--count 1, expected"),
    "three": (["tiny.engine", "--nfe", "4", "--count", "3", "--features", "judge.py:both"], "expected more than 3"),
    "scale": (["real.npz", "--features", "judge.py:both", "--scale", "1"], "--scale '1': expected two numbers"),
    "condition": (["tiny.engine", "--nfe", "4", "--features", "judge.py:both", "--style", "3"], "unknown argument"),
    "condition of files": (["real.npz", "--features", "judge.py:both", "--label", "3"], "real.npz"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    words, message = BAD[case]
    assert main(["evaluate", *words, "--reference", "real.npz"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
    assert len(shown.err.splitlines()) == 1


def test_no_samples_are_not_ten_thousand() -> None:
    with pytest.raises(InputError, match="count=0, expected an integer of at least 2"):
        evaluate("tiny.engine", REAL, features="judge.py:both", nfe=4, count=0)


def test_without_torchmetrics_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(InputError, match=r"pip install 'pfdiff\[evaluate\]'"):
        FrechetDistance(np.zeros((5, 2), np.float32))
