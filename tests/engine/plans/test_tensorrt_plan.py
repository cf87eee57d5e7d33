"""The TensorRT backend against a module that records every call: the order, and the check of every answer."""

from __future__ import annotations

import contextlib
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pfdiff.engine.artifact import Artifact
from pfdiff.engine.backends import tensorrt_cuda as tensorrt_plan
from pfdiff.engine.backends.abstract import Buffers, CudaOptions, NetworkFiles
from pfdiff.engine.backends.tensorrt_cuda import TensorRt
from pfdiff.engine.contract.contract import DecoderContract
from pfdiff.engine.errors import BackendError
from pfdiff.engine.plans.key import PlanKey
from pfdiff.engine.runtime.cuda.batch import BatchKind, CudaBatch
from pfdiff.engine.runtime.decoder import LoadedDecoder
from pfdiff.engine.runtime.inputs import Inputs
from pfdiff.engine.runtime.loop import make_tables

from ...small.engine import CONTRACT, SHAPE, program
from ..test_devices import MIB, Machine

CPU = torch.device("cpu")
STREAM = 7001
PLAIN = replace(CONTRACT, conditions=())


class Recorder:
    """TensorRT as far as the backend uses it; `refuse` names the calls that answer with failure."""

    def __init__(self, flavour: str) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.refuse: set[str] = set()
        self.dtype = "FLOAT"
        self.sizes = [3 * MIB, 24 * MIB]
        self.contexts = 0
        self.addresses: dict[str, int] = {}
        strategies = types.SimpleNamespace(USER_MANAGED="ours")
        members = {"SM89": 0, "SM90": 1}
        self.module = types.SimpleNamespace(
            __version__="10.13.3",
            Logger=type("Logger", (), {"ERROR": 1, "__init__": lambda *_: None}),
            Runtime=lambda logger: self,
            ExecutionContextAllocationStrategy=strategies,
            CudaGraphStrategy=types.SimpleNamespace(DISABLED="off"),
            DynamicShapesKernelSpecializationStrategy=types.SimpleNamespace(EAGER="eager"),
            ComputeCapability=types.SimpleNamespace(__members__=members),
        )
        self.flavour = flavour

    def answer(self, name: str, *arguments: Any, good: Any = True, bad: Any = False) -> Any:
        self.calls.append((name, *arguments))
        return bad if name in self.refuse else good

    # Runtime and engine.
    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        return self.answer("deserialize", plan, good=self, bad=None)

    def get_tensor_dtype(self, name: str) -> Any:
        return types.SimpleNamespace(name=self.dtype)

    def get_device_memory_size_for_profile_v2(self, index: int) -> int:
        return self.sizes[index]

    @property
    def device_memory_size_v2(self) -> int:
        return max(self.sizes)

    def create_runtime_config(self) -> Any:
        config = types.SimpleNamespace(
            set_execution_context_allocation_strategy=lambda one: self.answer("allocation", one)
        )
        self.config = config
        return config

    def create_execution_context(self, how: Any) -> Any:
        self.contexts += 1
        return self.answer("context", how, good=self, bad=None)

    # Context.
    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        return self.answer("profile", index, stream)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        return self.answer("shape", name, shape)

    def infer_shapes(self) -> list[str]:
        return self.answer("infer", good=[], bad=["label"])

    def update_device_memory_size_for_shapes(self) -> int:
        return self.answer("size", good=2 * MIB, bad=99 * MIB)

    def set_device_memory(self, address: int, size: int) -> None:
        self.answer("memory", address, size)

    def is_stream_capturable(self, stream: int) -> bool:
        return self.answer("capturable", stream)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return self.answer("address", name)

    def execute_async_v3(self, stream: int) -> bool:
        return self.answer("enqueue", stream, self.addresses["t"])


@pytest.fixture(params=["tensorrt", "tensorrt_rtx"])
def recorder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder(request.param)
    monkeypatch.setitem(sys.modules, request.param, made.module)
    Machine().install(monkeypatch)
    stream = types.SimpleNamespace(cuda_stream=STREAM, synchronize=lambda: made.calls.append(("synchronize",)))
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(tensorrt_plan, "own_stream", lambda _: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    monkeypatch.setattr(tensorrt_plan, "obtain_plan", lambda *_, **__: b"plan")
    return made


def opened(recorder: Recorder, contract: Any = CONTRACT, **options: Any) -> TensorRt:
    artifact = Artifact(Path("none"), contract, (1, 8), contract.precision, {})
    source = NetworkFiles(artifact.network_path, contract, artifact=artifact, options=CudaOptions(**options))
    return TensorRt(source, recorder.flavour, CPU)


def buffers(batch: int = 8, count: int = 3) -> list[Buffers]:
    times = torch.zeros(count, batch)
    x, out = torch.zeros(batch, *SHAPE), torch.zeros(batch, *SHAPE)
    conditions = (torch.zeros(batch, dtype=torch.int64), torch.zeros(batch, 3, 1))
    return [Buffers(x, t, conditions, out) for t in times]


def names(recorder: Recorder) -> list[str]:
    return [call[0] for call in recorder.calls]


def test_the_order_is_profile_shapes_infer_memory_addresses_enqueue(recorder: Recorder) -> None:
    backend = opened(recorder)
    recorder.calls.clear()
    sets = buffers()
    evaluations = backend.bind(sets)
    start = ["allocation", "context"] if recorder.flavour == "tensorrt_rtx" else ["context"]
    prepare = ["profile", *["shape"] * 4, "infer", "size", "memory", "synchronize"]
    end = ["capturable"] if recorder.flavour == "tensorrt_rtx" else []
    assert names(recorder) == start + prepare + end
    assert ("profile", 1, STREAM) in recorder.calls
    assert ("shape", "label", (8,)) in recorder.calls
    recorder.calls.clear()
    for _ in range(2):
        for evaluate, one in zip(evaluations, sets, strict=True):
            assert evaluate() is one.out
    assert names(recorder) == (["address"] * 5 + ["enqueue"]) * 6
    fed = [call[2] for call in recorder.calls if call[0] == "enqueue"]
    assert fed == [one.inputs[1].data_ptr() for one in sets] * 2  # each evaluation reads its own row of times


def test_one_context_a_bind_and_memory_of_the_largest_bucket(recorder: Recorder) -> None:
    backend = opened(recorder)
    backend.bind(buffers(8))
    backend.bind(buffers(1))
    assert recorder.contexts == 2
    given = {call[1:] for call in recorder.calls if call[0] == "memory"}
    assert len(given) == 1  # both contexts share one block
    assert next(iter(given))[1] == 24 * MIB
    if recorder.flavour == "tensorrt_rtx":
        assert recorder.config.cuda_graph_strategy == "off"
        assert recorder.config.dynamic_shapes_kernel_specialization_strategy == "eager"
        assert ("allocation", "ours") in recorder.calls
    else:
        assert ("context", "ours") in recorder.calls


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("deserialize", r"cannot load its plan on NVIDIA H200 \(sm90\); delete the engine's plans/ folder"),
        ("context", "cannot make an execution context; too little device memory"),
        ("profile", "refuses the profile of batch 8; delete plans/ and load again"),
        ("shape", r"refuses shape \[8, 2, 3, 5\] for 'x'"),
        ("infer", "lacks the shapes of label"),
        ("size", "needs 103809024 bytes of activations"),
        ("address", "refuses the buffer of 'x'"),
        ("enqueue", "cannot enqueue the network"),
    ],
)
def test_every_answer_is_checked(call: str, message: str, recorder: Recorder) -> None:
    recorder.refuse.add(call)
    with pytest.raises(BackendError, match=f"{recorder.flavour}.*{message}") as caught:
        opened(recorder).bind(buffers())[0]()
    assert "\n" not in str(caught.value)


def test_no_size_is_no_answer(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "update_device_memory_size_for_shapes", lambda: 0)
    with pytest.raises(BackendError, match="cannot tell how much memory batch 8 needs; its log has the reason"):
        opened(recorder).bind(buffers())


def test_a_network_that_cannot_be_captured_is_known_before_the_capture(recorder: Recorder) -> None:
    recorder.refuse.add("capturable")
    backend = opened(recorder)
    assert backend.not_capturable == ""
    backend.bind(buffers())
    assert ("cannot be captured" in backend.not_capturable) == (recorder.flavour == "tensorrt_rtx")


def test_a_plan_of_another_dtype_is_refused(recorder: Recorder) -> None:
    recorder.dtype = "HALF"
    with pytest.raises(BackendError, match="the plan's 'x' is HALF, fp32 means FLOAT"):
        opened(recorder)
    assert opened(recorder, replace(CONTRACT, precision="fp16")).dtype == torch.float16


def test_too_little_memory_names_the_bucket_that_fits(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(free=10 * MIB).install(monkeypatch)
    message = "needs 24 MiB of activations for batch 8 on cpu, 10 MiB are free; the largest bucket that fits is 1,"
    with pytest.raises(BackendError, match=message):
        opened(recorder)
    Machine(free=2 * MIB).install(monkeypatch)
    with pytest.raises(BackendError, match="no bucket fits, build with a smaller --batch"):
        opened(recorder)


def test_other_batches_and_closed_backends(recorder: Recorder) -> None:
    backend = opened(recorder)
    with pytest.raises(BackendError, match="batch 4 is no bucket of this plan; it has 1, 8"):
        backend.bind(buffers(4))
    backend.close()
    with pytest.raises(BackendError, match="this backend is closed"):
        backend.bind(buffers(8))
    bare = NetworkFiles(Path("none"), CONTRACT)
    with pytest.raises(BackendError, match="needs an engine directory to keep its plans in"):
        TensorRt(bare, recorder.flavour, CPU)


def test_what_the_plan_is_asked_for(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[PlanKey, dict[str, Any]]] = []
    monkeypatch.setattr(tensorrt_plan, "obtain_plan", lambda _, key, **rest: asked.append((key, rest)) or b"plan")
    backend = opened(recorder, tf32=True, trust=True)
    [(key, rest)] = asked
    assert (key.flavour, key.capability, key.batch, key.tf32) == (recorder.flavour, "sm90", (1, 8), True)
    assert key.gpu == ("NVIDIA H200" if recorder.flavour == "tensorrt" else "")
    assert rest["trust"] is True
    assert backend.description == f"{recorder.flavour} 10.13.3, NVIDIA H200, fp32, TF32"
    with pytest.warns(RuntimeWarning, match="no plan for sm90"):
        rest["say"]("no plan for sm90")


def test_the_whole_loop_enqueues_once_for_each_evaluation(recorder: Recorder) -> None:
    backend = opened(recorder, PLAIN)
    tables = make_tables(program(4, PLAIN), PLAIN)
    sampler = CudaBatch(backend, PLAIN, tables, BatchKind(8, False, False))
    recorder.calls.clear()
    sampler.load(Inputs(None, torch.ones(8, 30), ()))
    sampler.run()
    enqueued = [call for call in recorder.calls if call[0] == "enqueue"]
    assert [call[1] for call in enqueued] == [STREAM] * 4
    rows = [
        (call[2] - sampler.static.program.times.data_ptr()) // sampler.static.program.times[0].nbytes
        for call in enqueued
    ]
    assert rows == [0, 1, 2, 3]


def test_a_decoder_has_a_plan_and_a_context_of_its_own_on_the_networks_stream(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[PlanKey] = []
    monkeypatch.setattr(tensorrt_plan, "obtain_plan", lambda _, key, **rest: asked.append(key) or b"plan")
    described = DecoderContract("up", SHAPE, (3, 6, 10))
    artifact = Artifact(Path("none"), PLAIN, (1, 8), "fp32", {}, decoder=described)
    network = TensorRt(NetworkFiles(artifact.network_path, PLAIN, artifact=artifact), recorder.flavour, CPU)
    monkeypatch.setattr(tensorrt_plan, "own_stream", lambda _: pytest.fail("a second stream"))
    source = NetworkFiles(artifact.path / "decoder.onnx", described, artifact=artifact, stream=network.stream)
    loaded = LoadedDecoder(TensorRt(source, recorder.flavour, CPU), described)
    assert [key.file for key in asked] == ["network.onnx", "decoder.onnx"]
    assert "-decoder-" in asked[1].name
    assert loaded.backend.stream is network.stream

    sampler = CudaBatch(network, PLAIN, make_tables(program(4, PLAIN), PLAIN), BatchKind(8, False, True), loaded)
    assert recorder.contexts == 2
    assert ("shape", "latents", (8, *SHAPE)) in recorder.calls
    recorder.calls.clear()
    sampler.load(Inputs(None, torch.ones(8, 30), ()))
    sampler.run()
    assert names(recorder) == (["address"] * 3 + ["enqueue"]) * 4 + ["address"] * 2 + ["enqueue"]
    assert recorder.addresses["latents"] == sampler.samples.data_ptr()
    assert sampler.result.shape == (8, 6, 10, 3)


def test_which_gpus_rtx_says_it_supports(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(capability=(10, 0)).install(monkeypatch)
    said = tensorrt_plan.why_not(recorder.flavour, CPU)
    assert said == ("tensorrt_rtx 10.13.3 does not support sm100" if recorder.flavour == "tensorrt_rtx" else "")
