"""ONNX Runtime's CUDA provider against a session that records: every buffer by its address, every run on our stream."""

from __future__ import annotations

import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pfdiff.engine.backends import onnxruntime_cuda as ort_cuda
from pfdiff.engine.backends.abstract import Buffers, CudaOptions, NetworkFiles
from pfdiff.engine.backends.onnxruntime_cuda import PROVIDER, OnnxRuntimeCuda
from pfdiff.engine.errors import BackendError

from ...small.engine import CONTRACT, SHAPE
from ..test_devices import Machine

SECOND = torch.device("cuda", 1)


class Binding:
    def __init__(self) -> None:
        self.bound: list[tuple[Any, ...]] = []

    def bind_input(self, *words: Any) -> None:
        self.bound.append(words)

    bind_output = bind_input


class Session:
    """An InferenceSession as far as the backend uses it."""

    made: list[Session]
    asked: list[str]
    starts: bool
    nhwc: str

    def __init__(self, path: str, options: Any, providers: list[Any], enable_fallback: int = 1) -> None:
        if enable_fallback:
            print("EP Error, falling back to CPUExecutionProvider")
        type(self).asked.append(providers[0][1].get("prefer_nhwc", "0"))
        if "absent" in path:
            raise RuntimeError("No such file\nlong C++ trace")
        if self.asked[-1] == "1" and self.nhwc == "refused":
            raise ValueError("Unknown provider option: prefer_nhwc")
        if self.asked[-1] == "1" and self.nhwc == "not started":
            self.starts = False
        self.providers, self.runs = providers, []
        type(self).made.append(self)

    def get_providers(self) -> list[str]:
        return [PROVIDER, "CPUExecutionProvider"] if self.starts else ["CPUExecutionProvider"]

    def io_binding(self) -> Binding:
        return Binding()

    def run_with_iobinding(self, binding: Binding, options: Any) -> None:
        self.runs.append((binding, options))


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> type[Session]:
    kind = type("Fresh", (Session,), {"made": [], "asked": [], "starts": True, "nhwc": "taken"})
    Machine(count=2).install(monkeypatch)
    monkeypatch.setattr(ort_cuda, "own_stream", lambda _: types.SimpleNamespace(cuda_stream=4711))
    monkeypatch.setattr(ort_cuda.onnxruntime, "InferenceSession", kind)
    return kind


def source(path: str = "here", precision: str = "fp16", **options: Any) -> NetworkFiles:
    return NetworkFiles(Path(path), replace(CONTRACT, precision=precision), options=CudaOptions(**options))


def test_every_buffer_is_bound_and_runs_do_not_wait(sessions: type[Session]) -> None:
    backend = OnnxRuntimeCuda(source(tf32=False), SECOND)
    [session] = sessions.made
    name, settings = session.providers[0]
    assert name == PROVIDER
    assert settings == {"device_id": "1", "user_compute_stream": "4711", "use_tf32": "0", "prefer_nhwc": "1"}
    x, out = torch.zeros(2, *SHAPE, dtype=torch.float16), torch.zeros(2, *SHAPE, dtype=torch.float16)
    conditions = (torch.zeros(2, dtype=torch.int64), torch.zeros(2, 3, 1))
    sets = [Buffers(x, t, conditions, out) for t in torch.zeros(3, 2)]
    for one, evaluate in zip(sets, backend.bind(sets), strict=True):
        assert evaluate() is out
        binding, options = session.runs[-1]
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        fed = {words[0]: words[1:] for words in binding.bound}
        assert fed["x"] == ("cuda", 1, np.float16, [2, *SHAPE], x.data_ptr())
        assert fed["t"] == ("cuda", 1, np.float32, [2], one.inputs[1].data_ptr())
        assert fed["label"] == ("cuda", 1, np.int64, [2], conditions[0].data_ptr())
        assert fed["out"] == ("cuda", 1, np.float16, [2, *SHAPE], out.data_ptr())
    backend.close()
    with pytest.raises(BackendError, match="this backend is closed"):
        backend.bind(sets)


def test_it_is_not_captured_and_frees_its_host_arrays_now_and_then(sessions: type[Session]) -> None:
    backend = OnnxRuntimeCuda(source(), SECOND)
    assert "host memory that a replay would read" in backend.not_capturable
    [session] = sessions.made
    x = torch.zeros(2, *SHAPE, dtype=torch.float16)
    conditions = (torch.zeros(2, dtype=torch.int64), torch.zeros(2, 3, 1))
    evaluations = backend.bind([Buffers(x, t, conditions, x.clone()) for t in torch.zeros(3, 2)])
    for n in range(40):
        evaluations[n % 3]()
    waits = []
    for n, (_, options) in enumerate(session.runs, 1):
        try:
            assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        except RuntimeError:  # it has no such entry
            waits.append(n)
    assert waits == [ort_cuda.WAIT_EVERY, 2 * ort_cuda.WAIT_EVERY]


@pytest.mark.parametrize(
    ("precision", "tf32", "wanted"),
    [("fp16", False, "1"), ("fp32", True, "1"), ("fp32", False, "0"), ("bf16", False, "0")],
)
def test_nhwc_is_for_tensor_cores(sessions: type[Session], precision: str, tf32: bool, wanted: str) -> None:
    OnnxRuntimeCuda(source(precision=precision, tf32=tf32), SECOND)
    assert sessions.asked == [wanted]


@pytest.mark.parametrize("nhwc", ["refused", "not started"])
def test_a_provider_without_nhwc_runs_as_before_and_nothing_is_said(
    sessions: type[Session], nhwc: str, capfd: pytest.CaptureFixture[str]
) -> None:
    sessions.nhwc = nhwc
    backend = OnnxRuntimeCuda(source(), SECOND)
    assert sessions.asked == ["1", "0"]
    assert "prefer_nhwc" not in sessions.made[-1].providers[0][1]
    x = torch.zeros(2, *SHAPE, dtype=torch.float16)
    [evaluate] = backend.bind(
        [Buffers(x, torch.zeros(2), (torch.zeros(2, dtype=torch.int64), torch.zeros(2, 3, 1)), x)]
    )
    evaluate()
    assert len(sessions.made[-1].runs) == 1
    assert capfd.readouterr() == ("", "")


def test_what_is_refused(sessions: type[Session]) -> None:
    with pytest.raises(BackendError, match=r"onnxruntime refuses 'absent': No such file$"):
        OnnxRuntimeCuda(source("absent"), SECOND)
    sessions.starts = False
    with pytest.raises(BackendError, match="onnxruntime cannot start its CUDA provider"):
        OnnxRuntimeCuda(source(), SECOND)
