"""int8 on a CPU without VNNI, which adds two products in 16 bits: weights of 7 bits, and a warning for 8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from pfdiff.engine import machine
from pfdiff.engine.api import load
from pfdiff.engine.artifact import WEIGHT_BITS, read_artifact
from pfdiff.export.build import build
from pfdiff.export.network import Network
from pfdiff.export.precision.inside import widest_weight
from pfdiff.export.precision.ranges import INT8_CPU, INT8_SMALL, kind_of, quantised_weights, weight_scales

from ...small.precision import SAMPLER, WORDS, small_file

FLAGS = "processor : 0\nflags\t\t: fpu sse avx2 {}\n"


def pairs_in_16_bits(activations: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """vpmaddubsw: uint8 [n] times int8 [n], neighbours added in int16 with saturation."""
    products = activations.astype(np.int32) * weights.astype(np.int32)
    return np.clip(products.reshape(-1, 2).sum(1), -32768, 32767)


def test_seven_bits_never_overflow_and_eight_do() -> None:
    weights = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    activations = np.full(64, 255, np.uint8)
    lost: dict[float, int] = {}
    for kind in (INT8_SMALL, INT8_CPU):
        stored = quantised_weights(weights, weight_scales(weights, 0, kind), 0, kind)
        assert np.abs(stored).max() == kind.most
        wanted = activations.astype(np.int64) @ stored.astype(np.int64).T
        lost[kind.most] = sum(
            int(pairs_in_16_bits(activations, row).sum()) != one for row, one in zip(stored, wanted, strict=True)
        )
    assert lost == {64.0: 0, 127.0: 16} or (lost[64.0] == 0 and lost[127.0] > 0)
    for sign in (-64, 64):
        assert abs(pairs_in_16_bits(np.full(2, 255), np.full(2, sign))[0]) == 2 * 255 * 64


@pytest.mark.parametrize(
    ("kind", "flags", "adds"),
    [
        ("x86_64", "", True),
        ("x86_64", "avx512f avx512_vnni", False),
        ("AMD64", "avx_vnni", False),
        ("aarch64", "", False),
    ],
)
def test_what_a_cpu_has(tmp_path: Path, kind: str, flags: str, adds: bool) -> None:
    (tmp_path / "cpuinfo").write_text(FLAGS.format(flags))
    found = machine._instructions(tmp_path / "cpuinfo")
    assert found == {"fpu", "sse", "avx2", *flags.split()}
    assert machine._lacks_vnni(kind, found) is adds
    assert machine._instructions(tmp_path / "none") == frozenset()  # a system that does not say


def test_an_engine_knows_its_weights_and_warns_where_they_overflow(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: dict[str, Any] = {**SAMPLER, "precision": "int8", "backend": "onnxruntime", "out": tmp_path / "e"}
    network = Network(small_file(tmp_path), **WORDS)

    monkeypatch.setattr(machine, "adds_in_16_bits", lambda: False)
    build(network, 2, **given).close()
    artifact = read_artifact(tmp_path / "e")
    assert artifact.provenance[WEIGHT_BITS] == artifact.provenance["precision_record"]["weight_bits"] == 8

    # The same engine on a CPU without VNNI.
    monkeypatch.setattr(machine, "adds_in_16_bits", lambda: True)
    assert kind_of("int8", for_gpu=False) == INT8_SMALL
    with pytest.warns(RuntimeWarning, match="int8 weights of 8 bits, and this CPU, which has no VNNI, may overflow"):
        load(tmp_path / "e", backend="onnxruntime").close()
    lines: list[str] = []
    build(network, 2, **given, progress=lines.append).close()
    assert any("quantised anew" in line for line in lines)
    artifact = read_artifact(tmp_path / "e")
    assert artifact.provenance[WEIGHT_BITS] == artifact.provenance["precision_record"]["weight_bits"] == 7
    model = onnx.load(tmp_path / "e" / "network.onnx")
    stored = [numpy_helper.to_array(one) for one in model.graph.initializer if one.data_type == onnx.TensorProto.INT8]
    assert 32 < max(np.abs(one.astype(int)).max() for one in stored) <= 64
    assert widest_weight(model) <= 64
    held = artifact.provenance["precision_record"]["samples"]["NFE 2"]
    assert held["added"] <= held["bound"]
    build(network, 2, **given, progress=lines.append).close()
    assert any("up to date" in line for line in lines)  # and no warning, which would be an error
    monkeypatch.setattr(machine, "adds_in_16_bits", lambda: False)
    load(tmp_path / "e", backend="onnxruntime").close()
