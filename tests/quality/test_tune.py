"""`tune(..., out=ENGINE)`: where the winner goes, and what it leaves alone."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

import pfdiff
from pfdiff.cli.info import print_info
from pfdiff.engine.artifact import read_artifact, write_manifest
from pfdiff.export.convention import Convention
from pfdiff.export.engine_directory import extended
from pfdiff.quality.sampling.reference import Reference

from ..small.engine import CONDITIONS, CONTRACT, SHAPE, Small, program, write_engine

FEW: dict[str, Any] = {
    "calibration": 2,
    "held_out": 2,
    "reference": 8,
    "solvers": ["ddim", "euler"],
    "grids": ["uniform"],
    "bases": ["eps"],
    "local": False,
}

PLAIN: dict[str, Any] = {
    "schedule": "linear:1000",
    "prediction": "eps",
    "clip": None,
    "t_start": 999,
    "sigma_data": 0.5,
}


def network(weight: float = 0.7) -> pfdiff.Network:
    conditions = {one.name: one for one in CONDITIONS}
    return pfdiff.Network(
        Small(weight), shape=SHAPE, schedule="linear:1000", prediction="eps", conditions=conditions, name="small"
    )


def engine_of(source: pfdiff.Network, folder: Path, precision: str = "fp32", **digests: str) -> Path:
    """An engine as `build` leaves it, without the exporter."""
    artifact = write_engine(folder, contract=replace(CONTRACT, precision=precision))
    provenance = {**artifact.provenance, "network_digest": source.digest, **digests}
    write_manifest(replace(artifact, precision=precision, provenance=provenance))
    return folder


def no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*rest: Any, **options: Any) -> Any:
        raise AssertionError("searched")

    monkeypatch.setattr("pfdiff.quality.search.halving.Search.run", run)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# What is there already.
def test_an_engine_is_extended_in_its_own_precision(tmp_path: Path) -> None:
    out = engine_of(network(), tmp_path / "e", "fp16")
    before = read_artifact(out)
    best = pfdiff.tune(network(), 4, **FEW, out=out)[0]
    after = read_artifact(out)
    assert (after.precision, after.batch, sorted(after.programs)) == ("fp16", (1, 8), [4, 6])
    assert after.programs[4].digest == best.program.digest != before.programs[4].digest
    assert after.programs[6].digest == before.programs[6].digest
    assert after.files == before.files


def test_the_record_of_a_search_goes_with_its_program(tmp_path: Path) -> None:
    out = write_engine(tmp_path / "e").path
    for nfe in (4, 6):
        pfdiff.tune(out, nfe, **FEW, out=out)
    tuned = read_artifact(out)
    assert sorted(extended(tuned, {}, {}).provenance["search"]) == ["4", "6"]
    same = {4: tuned.programs[4]}
    assert sorted(extended(tuned, same, {}).provenance["search"]) == ["4", "6"]
    other = {nfe: pfdiff.compile("ipndm:order=2", "linear:1000", nfe, grid="quadratic") for nfe in (4, 5, 6)}
    assert sorted(extended(tuned, {nfe: other[nfe] for nfe in (4, 5)}, {}).provenance["search"]) == ["6"]
    assert "search" not in extended(tuned, other, {}).provenance


def test_info_shows_a_line_for_each_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = write_engine(tmp_path / "e").path
    best = pfdiff.tune(out, 6, **{**FEW, "held_out": 0}, out=out)[0]
    pfdiff.tune(out, 4, **FEW, out=out)
    print_info(out, nfe=None, as_json=False)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    searched = [" ".join(line) for line in lines if line and line[0] == "search"]
    assert len(searched) == 2
    assert searched[0].startswith("search NFE 4: ")
    assert ", held out " in searched[0]
    assert searched[1] == f"search NFE 6: {best.solver} on {best.grid}, error {best.error:.3g}, 2 seeds"


OTHERS: dict[str, tuple[float, dict[str, str], str]] = {
    "weights": (0.8, {}, "another network"),
    "decoder": (0.7, {"decoder_digest": "0" * 64}, "the network with another decoder"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_another_network_is_refused_before_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    weight, digests, holds = OTHERS[case]
    out = engine_of(network(weight), tmp_path / "e", **digests)
    before = content(out)
    no_search(monkeypatch)
    with pytest.raises(pfdiff.InputError, match=f"e' holds {holds}; give the engine another name"):
        pfdiff.tune(network(), 4, **FEW, out=out)
    assert content(out) == before


def test_what_cannot_take_an_engine_is_refused_before_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_search(monkeypatch)
    with pytest.raises(pfdiff.InputError, match="does not exist; create it first"):
        pfdiff.tune(network(), 4, **FEW, out=tmp_path / "no" / "e")
    engine = write_engine(tmp_path / "small.engine").path
    with pytest.raises(pfdiff.InputError, match=r"absent.engine' does not exist, and .*; write into '.*small.engine'"):
        pfdiff.tune(engine, 4, **FEW, out=tmp_path / "absent.engine")


# From one engine into another.
def test_an_engine_of_another_schedule_is_refused_before_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_engine(tmp_path / "a")
    write_engine(tmp_path / "b", contract=replace(CONTRACT, schedule="scaled_linear:1000"))
    before = content(tmp_path / "b")
    no_search(monkeypatch)
    with pytest.raises(pfdiff.InputError, match=r"b' holds another network or schedule than '.*a'"):
        pfdiff.tune(tmp_path / "a", 4, **FEW, out=tmp_path / "b")
    assert content(tmp_path / "b") == before


def test_an_engine_of_the_same_network_takes_the_winner(tmp_path: Path) -> None:
    one, other = (write_engine(tmp_path / name).path for name in ("a", "b"))
    best = pfdiff.tune(one, 5, **FEW, out=other)[0]
    assert read_artifact(other).programs[5].digest == best.program.digest
    assert sorted(read_artifact(one).programs) == [4, 6]


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ({"clip": 1.0, "end": "first"}, (1.0, "first")),
        ({"clip": 2.0, "end": "first"}, (None, "first")),
        ({"clip": 1.0}, (1.0, "clean")),
    ],
    ids=["all agree", "two clips", "two ends"],
)
def test_clip_and_end_are_what_the_programs_agree_on(tmp_path: Path, second: Any, expected: Any) -> None:
    artifact = write_engine(tmp_path / "e")
    programs = {4: program(4, clip=1.0, end="first"), 6: program(6, **second)}
    write_manifest(replace(artifact, programs=programs))
    best = pfdiff.tune(artifact.path, 4, **FEW)[0].program
    assert (best.clip, best.end) == expected
    said = pfdiff.tune(artifact.path, 4, **FEW, clip=3.0, end="clean")[0].program
    assert (said.clip, said.end) == (3.0, "clean")


def test_clip_and_end_are_those_of_a_scheduler() -> None:
    source = network()
    source.convention = Convention("linear:1000", "eps", "leading", end="first", clip=1.5)
    best = pfdiff.tune(source, 4, **FEW)[0].program
    assert (best.clip, best.end) == (1.5, "first")


# What is not there yet.
def test_a_network_of_half_precision_is_built_in_it(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
    half (float16[b,2,3,5] x, float[b] t) => (float16[b,2,3,5] noise) { noise = Tanh(x) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "half.onnx")
    half = pfdiff.Network(tmp_path / "half.onnx", schedule="linear:1000", prediction="eps")
    best = pfdiff.tune(half, 4, **FEW, out=tmp_path / "e")[0]
    with pfdiff.load(tmp_path / "e") as engine:
        assert read_artifact(engine.path).precision == "fp16"
        assert engine.programs[4].digest == best.program.digest
        assert engine.provenance["search"]["4"]["ranking"][0]["solver"] == best.solver


# Samples that are not finite.
class Holed(torch.nn.Module):
    """NaN at times above `low` and up to `high`."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.hole = torch.nn.Parameter(torch.tensor([float(low), float(high)]))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        low, high = self.hole
        return torch.where(((low < t) & (t <= high)).view(-1, 1, 1, 1), torch.nan, 0.1 * torch.tanh(x))


def holed(low: float, high: float) -> pfdiff.Network:
    return pfdiff.Network(Holed(low, high), shape=(1, 2, 2), schedule="linear:1000", prediction="eps")


def test_errors_that_are_not_finite_are_none_in_the_record(tmp_path: Path) -> None:
    heun, ddim = (pfdiff.compile(solver, "linear:1000", 4).times for solver in ("heun", "ddim"))
    (only, *_) = set(heun) - set(ddim) - set(Reference.of("linear:1000", 999, 8).compile(**PLAIN).times)
    ranking = pfdiff.tune(holed(only - 0.5, only), 4, **{**FEW, "solvers": ["heun", "ddim"], "t_start": 999})
    assert [math.isfinite(one.error) for one in ranking] == [True, False]
    record = ranking.to_dict()
    assert [one["error"] for one in record["ranking"]] == [ranking[0].error, None]
    assert [one["held_out_error"] for one in record["ranking"]] == [ranking[0].held_out_error, None]
    json.dumps(record, allow_nan=False)  # as engine.json is written


def test_a_winner_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(pfdiff.InputError, match="no candidate for NFE 4 has a finite error"):
        pfdiff.tune(holed(0, 999), 4, **FEW, out=tmp_path / "e")
    assert not (tmp_path / "e").exists()
