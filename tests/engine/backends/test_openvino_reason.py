"""What OpenVINO refuses is said by its reason, not by a place in its source."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from pfdiff.engine.errors import BackendError
from pfdiff.export.build import build
from pfdiff.export.network import Network


def test_an_operation_that_it_lacks_is_named(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    text = """<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
    net (float[b,4] x, float[b] t) => (float[b,4] out)
    <float s = {0.1}, uint8 z = {128}, uint8[4,4] w = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7},
    int32[4] bias = {1,2,3,4}> {
    q = QuantizeLinear(x, s, z)  y = com.microsoft.QGemm(q, s, z, w, s, z, bias, s, z)
    out = DequantizeLinear(y, s, z) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "net.onnx")
    network = Network(tmp_path / "net.onnx", schedule="linear:1000", prediction="eps")
    with pytest.raises(BackendError, match=r"No conversion rule found for operations: com\.microsoft\.QGemm"):
        build(network, 2, "ddim", grid="trailing", out=tmp_path / "e", backend="openvino")
