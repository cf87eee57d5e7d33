"""Values of a graph's tensors on given inputs: the graph is run by ONNX Runtime with them as further outputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from ...engine.errors import InputError, first_line
from ..check import TrialInputs
from .large.outside import LARGEST_BYTES, for_a_session

if TYPE_CHECKING:
    import onnx

Array = NDArray[Any]
DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}


@final
class GraphRun:
    """A graph in memory on ONNX Runtime's CPU provider, fed by position; its outputs and `also`, by name.

    exact: no graph optimisations, which may widen what is between two nodes. Raises InputError, one line.
    """

    def __init__(
        self, model: onnx.ModelProto, inputs: Sequence[str], also: Iterable[str] = (), *, exact: bool = False
    ) -> None:
        import onnx
        import onnxruntime

        if model.ByteSize() > LARGEST_BYTES:
            raise InputError(
                f"the graph to measure has {model.ByteSize() / 2**30:.1f} GiB, and a protobuf message holds at most 2; "
                "build with fp16 or bf16"
            )
        held = {one.name for one in model.graph.output}
        asked = [onnx.ValueInfoProto(name=name) for name in also if name not in held]
        model.graph.output.extend(asked)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        # Integer kernels of some graphs are refused (ONNX Runtime 1.32, int8 before a Reshape); values are the same.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        options.enable_cpu_mem_arena = not asked  # what hundreds of tensors take is given back after each run
        if exact:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            with for_a_session(model, options):
                data = model.SerializeToString()
                self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise InputError(f"ONNX Runtime refuses the converted graph ({first_line(error)[:200]})") from error
        finally:
            del model.graph.output[len(model.graph.output) - len(asked) :]
        self._inputs = tuple(inputs)
        self._kinds = {one.name: one.type for one in self._session.get_inputs()}
        self.outputs = [one.name for one in self._session.get_outputs()]

    def __call__(self, case: TrialInputs, **others: Array) -> dict[str, Array]:
        """Every output by its name; floating-point ones as float32."""
        feed = {name: self._fit(name, value) for name, value in zip(self._inputs, case.inputs, strict=True)}
        try:
            found = self._session.run(None, {**feed, **others})
        except Exception as error:
            raise InputError(f"the converted graph fails at {case.where} ({first_line(error)[:200]})") from error
        return {
            name: value.astype(np.float32, copy=False) if value.dtype.kind == "f" else value
            for name, value in zip(self.outputs, map(np.asarray, found), strict=True)
        }

    def _fit(self, name: str, value: Array) -> Array:
        kind = self._kinds.get(name, "")
        with np.errstate(over="ignore"):  # a sample beyond float16: what comes out is not finite, and is said
            return value.astype(DTYPES.get(kind, kind.removeprefix("tensor(").removesuffix(")"))) if kind else value


def largest_values(
    model: onnx.ModelProto, inputs: Sequence[str], names: Sequence[str], cases: Sequence[TrialInputs]
) -> dict[str, float]:
    """Of each tensor the largest absolute value on the cases; NaN where it has one."""
    run = GraphRun(model, inputs, names)
    most = dict.fromkeys(names, 0.0)
    for case in cases:
        for name, value in run(case).items():
            if name in most and value.size:
                most[name] = float(np.maximum(most[name], np.abs(value).max()))  # keeps a NaN
    return most


def float_tensors(model: onnx.ModelProto) -> list[str]:
    """Names of the tensors inside the graph whose dtype is floating-point, as shape inference knows them."""
    import onnx

    floating = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    known = {one.name for one in model.graph.value_info if one.type.tensor_type.elem_type in floating}
    return [name for name in _outputs(model) if name in known]


def _outputs(model: onnx.ModelProto) -> Iterator[str]:
    for node in model.graph.node:
        yield from (name for name in node.output if name)


@final
class Seen:
    """What was seen of a tensor: its ends, its shape for one sample, and at most `KEPT` values of all cases."""

    KEPT = 1 << 16

    def __init__(self, cases: int) -> None:
        self._each = max(256, self.KEPT // max(cases, 1))
        self._values: list[Array] = []
        self.low, self.high = np.inf, -np.inf
        self.shape: tuple[int, ...] = ()

    def add(self, value: Array, generator: np.random.Generator) -> None:
        flat = value.reshape(-1)
        self.low, self.high = float(np.minimum(self.low, flat.min())), float(np.maximum(self.high, flat.max()))
        self.shape = value.shape
        taken = flat if flat.size <= self._each else flat[generator.integers(0, flat.size, self._each)]
        self._values.append(taken.astype(np.float32))

    @property
    def values(self) -> Array:
        return np.concatenate(self._values)


def observed(
    model: onnx.ModelProto, inputs: Sequence[str], names: Iterable[str], cases: Sequence[TrialInputs]
) -> dict[str, Seen]:
    """What was seen of each tensor on the cases; the graph's own inputs included. Raises InputError."""
    asked = list(dict.fromkeys(names))
    run = GraphRun(model, inputs, [name for name in asked if name not in inputs])
    found = {name: Seen(len(cases)) for name in asked}
    generator = np.random.default_rng(0)
    for case in cases:
        values = {**dict(zip(inputs, case.inputs, strict=True)), **run(case)}
        for name, seen in found.items():
            seen.add(values[name], generator)
        del values  # before the next are computed
    return found
