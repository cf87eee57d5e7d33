"""After an export: does network.onnx say what its source says?

Both are evaluated on the same normal random inputs: at the schedule's first, middle and last time with one sample,
and at all three at once with three samples, so that a frozen batch size or a frozen time shows. A decoder has no time:
one sample, and two.

    float32    max |out - reference| <= 1e-4 max |reference|
    fp16, bf16 rms(out - exact) <= 2 rms(plain - exact) + 4 eps rms(exact), where `exact` is the source in float32
               and `plain` plain PyTorch at the precision: the graph may be twice as far off as PyTorch itself
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.compiler.basis import PRECONDITIONED
from ..engine.compiler.schedule import parse_schedule
from ..engine.contract.condition import Condition
from ..engine.contract.contract import AnyContract, Contract, DecoderContract
from ..engine.errors import InputError

Array = NDArray[Any]
Reference = Callable[["TrialInputs"], Array]

FLOAT32_BOUND = 1e-4
SOURCE = "the source"
EPSILON = {"fp16": 2.0**-10, "bf16": 2.0**-7}
LARGE_BYTES = 1 << 30


@dataclass(frozen=True)
class TrialInputs:
    """One set of inputs: x [B, *shape] float32, t and conditions of the contract's dtypes, in its order.

    A decoder's t is empty.
    """

    x: Array
    t: Array
    conditions: tuple[Array, ...]

    @property
    def inputs(self) -> tuple[Array, ...]:
        return (self.x, *([self.t] if self.t.size else []), *self.conditions)

    @property
    def where(self) -> str:
        time = f"time {', '.join(f'{one:g}' for one in np.unique(self.t))}, " if self.t.size else ""
        return f"{time}batch {len(self.x)}"


def probe_times(contract: Contract) -> Array:
    """The schedule's first, middle and last time as the network is fed them, [3] of the contract's time dtype."""
    schedule = parse_schedule(contract.schedule)
    first, last = float(schedule.first), float(schedule.last)
    times = np.array([first, (first + last) / 2, last])
    if schedule.discrete:
        times = np.rint(times)
    if contract.prediction in PRECONDITIONED:
        times = np.log(schedule.sigma(times) / schedule.alpha(times)) / 4  # c_noise
    if contract.time_dtype == "int64":
        times = np.rint(times * contract.time_scale) / contract.time_scale
    return contract.feed_times(times)


def trial_inputs(contract: Contract | DecoderContract, *, large: bool = False) -> Iterator[TrialInputs]:
    """The inputs of the comparison; a network of more than 1 GiB is compared on two of them."""
    generator = np.random.default_rng(0)
    if isinstance(contract, DecoderContract):
        for batch in (contract.fixed_batch,) if contract.fixed_batch else (1, 2):
            yield TrialInputs(generator.standard_normal((batch, *contract.shape), dtype=np.float32), np.empty(0), ())
        return
    first, middle, last = probe_times(contract)
    if contract.fixed_batch:
        plans = [(contract.fixed_batch, [time]) for time in (first, middle, last)]
    elif large:
        plans = [(1, [middle]), (2, [first, last])]
    else:
        plans = [(1, [first]), (1, [middle]), (1, [last]), (3, [first, middle, last])]
    for batch, times in plans:
        x = generator.standard_normal((batch, *contract.shape), dtype=np.float32)
        t = np.resize(np.array(times), batch) if contract.time_rank else np.array(times[-1])
        yield TrialInputs(x, t, tuple(random_condition(one, batch, generator) for one in contract.conditions))


def _random_inputs(contract: AnyContract, *, large: bool) -> Iterator[TrialInputs]:
    assert isinstance(contract, (Contract, DecoderContract)), "a text encoder takes no random tokens"
    return trial_inputs(contract, large=large)


def random_condition(condition: Condition, batch: int, generator: np.random.Generator) -> Array:
    """[batch, *shape] within the condition's range."""
    shape = (batch, *condition.shape)
    if condition.dtype.startswith("int"):
        low = condition.low if condition.low is not None else int(np.min(condition.default or 0))
        high = condition.high if condition.high is not None else max(low, len(condition.labels) - 1)
        return generator.integers(low, high, shape, dtype=condition.dtype, endpoint=True)
    if condition.dtype == "bool":
        return generator.integers(0, 1, shape, endpoint=True).astype(bool)
    return generator.random(shape, dtype=np.float32)  # 0..1: text features, difficulty, guidance weights


# Running a graph.
class OnnxRun:
    """An ONNX file on ONNX Runtime's CPU provider, fed by position: x, t, conditions. Raises InputError, one line.

    large: no packed copies of the weights, which would double the memory. in_file: nor folded ones, nor float32 ones of
    float16, so that weights stay in their file. Each evaluation is slower then.
    """

    def __init__(
        self, path: Path, inputs: tuple[str, ...], output: str, *, large: bool = False, in_file: bool = False
    ) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.add_session_config_entry("session.disable_quant_qdq", "1")  # what Q/DQ nodes say, by float kernels
        if large:
            options.add_session_config_entry("session.disable_prepacking", "1")
        if in_file:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.enable_cpu_mem_arena = False
        self._inputs, self._output, self._name = inputs, output, path.name
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # pybind exceptions of ONNX Runtime share no base class
            raise InputError(f"{path.name}: ONNX Runtime refuses the graph ({_line(error)})") from error
        self._types = {one.name: (one.type, one.shape) for one in self._session.get_inputs()}
        missing = [name for name in inputs if name not in self._types]
        if missing:
            raise InputError(f"{path.name}: '{missing[0]}' is no input of the graph as ONNX Runtime reads it")

    def __call__(self, values: tuple[Array, ...]) -> Array:
        """The output as float32 for the inputs in order; each is cast to the graph's dtype and shaped to its rank."""
        feed = {name: self._fit(name, value) for name, value in zip(self._inputs, values, strict=True)}
        try:
            (out,) = self._session.run([self._output], feed)
        except Exception as error:
            raise InputError(
                f"{self._name}: fails at batch {len(values[0])} ({_line(error)}); "
                "export it with an open batch, or give the schedule whose times it knows"
            ) from error
        return np.asarray(out).astype(np.float32)

    def _fit(self, name: str, value: Array) -> Array:
        kind, shape = self._types[name]
        names = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}
        value = value.astype(names.get(kind, kind.removeprefix("tensor(").removesuffix(")")))
        if value.ndim == 1 and len(shape) > 1:
            value = value.reshape(-1, *[1] * (len(shape) - 1))  # time as [B, 1]
        return value.reshape(1) if value.ndim == 0 and len(shape) == 1 else value


def widen(path: Path, folder: Path) -> Path:
    """A float32 copy of a bfloat16 graph, values unchanged, for a CPU without bfloat16 kernels."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    short, full = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT

    def widened(tensor: onnx.TensorProto) -> None:
        if tensor.data_type == short:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))

    for tensor in model.graph.initializer:
        widened(tensor)
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == short:
            value.type.tensor_type.elem_type = full
    del model.graph.value_info[:]
    for node in model.graph.node:
        for attribute in node.attribute:
            widened(attribute.t)
            if attribute.name in ("to", "dtype") and attribute.i == short:
                attribute.i = full
    wide = folder / "wide.onnx"
    onnx.save(model, wide, save_as_external_data=True, location="wide.onnx.data")
    return wide


# The comparison.
def check_export(
    path: Path,
    contract: AnyContract,
    exact: Reference,
    plain: Reference | None = None,
    cases: Sequence[TrialInputs] = (),
) -> float:
    """Compare the graph at `path` with its source; the largest relative difference found.

    `exact(case)` is the source in float32, `plain(case)` plain PyTorch at the contract's precision (None for fp32).
    cases: in place of random inputs, which a text encoder does not take.
    Raises InputError, one line, that names the largest difference, its time and batch.
    """
    data = path.with_name(path.name + ".data")
    large = path.stat().st_size + (data.stat().st_size if data.exists() else 0) > LARGE_BYTES
    with tempfile.TemporaryDirectory() as folder:
        graph = widen(path, Path(folder)) if contract.precision == "bf16" else path
        run = OnnxRun(graph, contract.inputs, contract.output, large=large, in_file=large)
        worst: tuple[float, float, TrialInputs] | None = None
        for case in cases or _random_inputs(contract, large=large):
            wanted = exact(case)
            _check_finite(wanted, SOURCE, contract, case.where)
            out = run(case.inputs)
            error, bound = _difference(out, wanted, case, contract, plain)
            if worst is None or error / bound > worst[0] / worst[1]:
                worst = error, bound, case
    assert worst is not None
    error, bound, case = worst
    if error > bound:
        raise InputError(
            f"network '{contract.name}': the exported graph differs from its source by {error:.1e} at {case.where}, "
            f"expected at most {bound:.1e} ({contract.precision}); "
            "forward must not turn tensors into Python numbers or draw random ones"
        )
    return error


def _difference(
    out: Array, wanted: Array, case: TrialInputs, contract: AnyContract, plain: Reference | None
) -> tuple[float, float]:
    if out.shape != wanted.shape:
        raise InputError(
            f"network '{contract.name}': the exported graph returns {list(out.shape)} at {case.where}, "
            f"its source {list(wanted.shape)}; forward must treat every sample alike"
        )
    if plain is None:
        _check_graph(out, contract, case.where)
        scale = float(np.abs(wanted).max()) or 1.0
        return float(np.abs(out - wanted).max()) / scale, FLOAT32_BOUND
    short = plain(case)
    _check_finite(short, f"PyTorch at {contract.precision}", contract, case.where)
    _check_graph(out, contract, case.where)
    scale = _rms(wanted) or 1.0
    return _rms(out - wanted) / scale, 2 * _rms(short - wanted) / scale + 4 * EPSILON[contract.precision]


def _check_finite(values: Array, who: str, contract: AnyContract, where: str) -> None:
    """Of the source, in float32 or in the contract's precision."""
    if np.isfinite(values).all():
        return
    remedy = "check the weights and the time_scale"
    if who != SOURCE:
        remedy = "build with bf16 or fp32" if contract.precision == "fp16" else "build with fp32"
    elif isinstance(contract, Contract) and contract.prediction == "edm":
        remedy = "if it is D(x, sigma), which returns the denoised sample, give schedule='edm' and prediction='x0'"
    raise InputError(f"network '{contract.name}': {who} returns NaN or infinity at {_share(values, where)}; {remedy}")


def _check_graph(values: Array, contract: AnyContract, where: str) -> None:
    """Of the graph, where its source is finite."""
    if np.isfinite(values).all():
        return
    raise InputError(
        f"network '{contract.name}': the source is finite, the exported {contract.precision} graph is not: NaN or "
        f"infinity at {_share(values, where)}; an operator changed, such as attention with rows that are masked "
        "throughout, or logaddexp: write that part of forward otherwise"
    )


def _share(values: Array, where: str) -> str:
    return f"{where} ({100 * (1 - np.isfinite(values).mean()):.0f} % of the values)"


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:240] if lines else type(error).__name__
