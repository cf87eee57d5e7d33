"""A float32 graph becomes an int8 or fp8 one, calibrated on what the engine itself feeds it.

    1. the engine's programs run in float32 from seeds of calibration; every layer's input is observed
    2. each input gets the range whose rounding costs least, each output channel of the weights its own scale, and the
       bias takes back the mean error (calibration/bias.py)
    3. whole samples of other seeds are compared with float32; layers are given back until their distance is at most
       half of the sampler's own error to many evaluations, or what the caller allows

The sampler's own error is the yardstick since both are distances between samples of the same seeds: with half of it
the two together, which are independent, are 1.12 times the sampler's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, final

import numpy as np

from ...engine.errors import InputError
from ..check import TrialInputs
from .added import Added
from .calibration.bias import shifts_of
from .give_back import Chosen, Measure, choose
from .half import convert, prepared
from .insert import SWITCH, insert
from .large.outside import check_eight_bits
from .layers import Layer, counted, quantisable
from .observe import GraphRun, Seen, observed
from .ranges import INT8_SMALL, Kind, Range, activation_range, rules_for
from .trajectory import Array, Evaluate, relative_error

if TYPE_CHECKING:
    import onnx
    import onnx_ir

    from ...engine.contract.contract import AnyContract, Contract
    from ...engine.progress import Lines, Stages

LEAST_SHARE = 5e-4  # of all multiplications: a smaller layer gains nothing
SATURATED = 0.01  # of a layer's inputs on other seeds: more beyond what calibration saw gets a line
SECONDS_ALONE = 300.0  # that the errors of single layers may take: decides on how many evaluations
PART = 1 << 24  # weights that are looked at together
HALF_OPSET = 19  # from which Q/DQ have float16 scales, and float8


class Task(Protocol):
    """What a graph is for: its names, inputs to calibrate on, and errors of what comes out in the end.

    cases: of calibration's seeds; others: of the seeds of the check.
    errors(evaluate, check) -> by name: of calibration's seeds or, with `check`, of others.
    """

    inputs: tuple[str, ...]
    output: str
    time: str

    def cases(self, evaluate: Evaluate) -> list[TrialInputs]: ...

    def others(self, evaluate: Evaluate) -> list[TrialInputs]: ...

    def errors(self, evaluate: Evaluate, *, check: bool) -> dict[str, Added]: ...


@final
@dataclass(frozen=True, eq=False)
class Quantised:
    """The graph, and what was found, as plain JSON data."""

    model: onnx.ModelProto
    record: dict[str, Any]


def quantise(
    model: onnx.ModelProto,
    task: Task,
    kind: Kind,
    *,
    contract: AnyContract | None = None,
    outputs: bool = False,
    say: Lines,
    progress: Stages | None = None,
) -> Quantised:
    """The float32 `model` in eight bits. contract: of a graph whose other layers become fp16 (`kind.halves`).

    outputs: also quantise what convolutions write, for ONNX Runtime's CPU kernels. Raises InputError, one line: nothing
    to quantise, values that are not finite, no layer within the bound.
    """
    start = time.monotonic()
    model = prepared(_of_opset(model, HALF_OPSET if kind.halves or kind.name == "fp8" else 13))
    run = GraphRun(model, task.inputs)
    exact = _evaluate(run, task.output)
    cases = task.cases(exact)
    layers, costs, seen = _calibrated(model, task, cases, outputs=outputs)
    found, session = _best_of_rules(model, task, kind, layers, seen, cases, outputs=outputs)

    chosen = _chosen(session, task, kind, costs, cases, exact, say, progress)
    del session  # and its memory, before further graphs are made
    kept = {layer.name for layer, flag in zip(layers, chosen.flags, strict=True) if not flag}
    taken = [layer for layer in layers if layer.name not in kept]
    if not taken:
        beyond = _saturated(model, task, layers, seen, task.others(exact))
        raise InputError(
            f"{kind.name}: no layer's error is within the bound, so nothing would be quantised"
            f"{f' ({beyond})' if beyond else ''}; build with bf16 or fp16, or allow more (quantise_error, "
            "--quantise-error)"
        )
    final = _inserted(model, taken, found, kind, outputs=outputs)
    if kind.halves:
        assert contract is not None
        final = convert(final, contract, "fp16", cases).model
    if beyond := _saturated(model, task, taken, seen, task.others(exact)):
        say(f"{kind.name}: {beyond} and are clipped; check the conditions, or build with bf16")
    record = _record(model, task, kind, layers, kept, chosen, final, exact, cases)
    record["seconds"] = round(time.monotonic() - start, 1)
    worst = max(error / bound for error, bound in ((one["added"], one["bound"]) for one in record["samples"].values()))
    if worst > 1:
        say(
            f"{kind.name}: the finished graph's samples differ by {worst:.2f} of the bound, more than its layers "
            "suggest; build with bf16 to be safe"
        )
    return Quantised(final, record)


def check_size(model: onnx.ModelProto, contract: Contract, case: TrialInputs) -> None:
    """Raises InputError, before anything is sampled, when the layers worth it pass 2 GiB in eight bits.

    case: inputs of an evaluation, which says what each layer multiplies.
    """
    import onnx_ir

    graph = onnx_ir.from_proto(model).graph
    try:
        check_eight_bits(graph, {one.weights for one in quantisable(graph, contract.time)})
    except InputError:  # of all layers, also those that are not worth it
        worth_quantising(prepared(model), contract.inputs, contract.time, [case])


# Calibration.
def _calibrated(
    model: onnx.ModelProto, task: Task, cases: Sequence[TrialInputs], *, outputs: bool
) -> tuple[list[Layer], list[float], dict[str, Seen]]:
    """The layers worth it, multiplications of each, and what their tensors hold. Raises InputError."""
    layers, costs, held = worth_quantising(model, task.inputs, task.time, cases)
    wanted = {one.input for one in layers}
    wanted |= {one.output for one in layers if one.kind == "convolution"} if outputs else set()
    return layers, costs, {name: held[name] for name in wanted}


def worth_quantising(
    model: onnx.ModelProto, inputs: Sequence[str], time: str, cases: Sequence[TrialInputs]
) -> tuple[list[Layer], list[float], dict[str, Seen]]:
    """The layers, multiplications of each, and what all their tensors hold on the cases. Raises InputError."""
    import onnx_ir

    graph = onnx_ir.from_proto(model).graph
    every = quantisable(graph, time)
    if not every and any(node.op_type == "DequantizeLinear" for node in model.graph.node):
        raise InputError(
            "the network's layers are in eight bits already (Q/DQ); build with precision fp32, which keeps them so"
        )
    if not every:
        raise InputError(
            "the network has no convolution and no linear layer with constant weights in float32, so there is nothing "
            "to quantise; build with fp16 or bf16"
        )
    names = [name for one in every for name in (one.input, one.output)]
    held = observed(model, inputs, names, cases)
    shapes = {name: one.shape for name, one in held.items()}
    weights = {name: one.const_value.shape.numpy() for name, one in graph.initializers.items() if one.const_value}
    costs = [one.products(shapes, weights[one.weights]) for one in every]
    for one in every:
        _check_finite(graph.initializers[one.weights], one)
    least = LEAST_SHARE * sum(costs)
    pairs = [(layer, cost) for layer, cost in zip(every, costs, strict=True) if cost >= least]
    check_eight_bits(graph, {one.weights for one, _ in pairs})
    return [one for one, _ in pairs], [cost for _, cost in pairs], held


def _check_finite(weights: onnx_ir.Value, layer: Layer) -> None:
    """Raises InputError where a weight is infinite or NaN; weights outside the graph are looked at in parts."""
    held = weights.const_value
    assert held is not None
    if not all(np.isfinite(part).all() for part in np.array_split(held.numpy().reshape(-1), -(-held.size // PART))):
        raise InputError(
            f"calibration: weights '{layer.weights}' of '{layer.name}' have infinite values or NaN; build with fp32 "
            "and check the network"
        )


def _saturated(
    model: onnx.ModelProto,
    task: Task,
    layers: Sequence[Layer],
    calibrated: Mapping[str, Seen],
    cases: Sequence[TrialInputs],
) -> str:
    """Of the layer whose inputs on other seeds leave what calibration saw of them most: how many; "" if few."""
    others = observed(model, task.inputs, {one.input for one in layers}, cases)
    beyond = {
        name: float(np.mean((one.values < calibrated[name].low) | (one.values > calibrated[name].high)))
        for name, one in others.items()
    }
    worst = max(beyond, key=beyond.__getitem__)
    if beyond[worst] <= SATURATED:
        return ""
    return f"{100 * beyond[worst]:.1f} % of '{worst}' on other seeds lie beyond all that calibration saw"


@final
@dataclass(frozen=True, eq=False)
class Rounding:
    """By tensor its range, by layer what its bias gains."""

    ranges: Mapping[str, Range]
    shifts: Mapping[str, Array]


def _best_of_rules(
    model: onnx.ModelProto,
    task: Task,
    kind: Kind,
    layers: Sequence[Layer],
    seen: Mapping[str, Seen],
    cases: Sequence[TrialInputs],
    *,
    outputs: bool,
) -> tuple[Rounding, GraphRun]:
    """Of the rules the best, by samples with every layer quantised, and the graph with switches."""
    best: tuple[float, Rounding, GraphRun] | None = None
    ranks = {one.name: max(len(seen[one.input].shape), one.axis + 1) for one in layers}
    for rule in rules_for(kind):
        ranges = {name: activation_range(one.values, one.low, one.high, kind, name, rule) for name, one in seen.items()}
        tried = Rounding(ranges, shifts_of(model, task.inputs, layers, ranges, kind, cases, ranks))
        session = GraphRun(_inserted(model, layers, tried, kind, outputs=outputs, switched=True), task.inputs)
        ratio = _ratio(task, session, np.ones(len(layers), bool), check=False)
        if best is None or ratio < best[0]:
            best = ratio, tried, session
    assert best is not None
    return best[1], best[2]


def _ratio(task: Task, session: GraphRun, flags: Array, *, check: bool) -> float:
    """The error with the layers of `flags` quantised, as a part of the bound; of all samples the largest part."""
    found = task.errors(_evaluate(session, task.output, **{SWITCH: flags}), check=check)
    return max(one.part for one in found.values())


def _chosen(
    session: GraphRun,
    task: Task,
    kind: Kind,
    costs: Sequence[float],
    cases: Sequence[TrialInputs],
    exact: Evaluate,
    say: Lines,
    progress: Stages | None,
) -> Chosen:
    """The layers within the bound, of the graph with switches."""

    def measure(check: bool) -> Callable[[Array], float]:
        return lambda flags: _ratio(task, session, flags, check=check)

    def told(done: int, count: int) -> None:
        if progress:
            progress("measuring layers", done, count)

    def alone() -> Measure:
        few = _few_cases(session, task, cases, len(costs))
        if len(few) == len(cases):
            return measure(False)
        say(f"{kind.name}: single layers are measured on {len(few)} of {len(cases)} evaluations, since these are slow")
        return _alone(session, task, few, [exact(case) for case in few])

    return choose(costs, alone, measure(True), told)


def _few_cases(session: GraphRun, task: Task, cases: Sequence[TrialInputs], layers: int) -> Sequence[TrialInputs]:
    """The evaluations to measure single layers on: all, or as many as the time allows, evenly."""
    start = time.monotonic()
    _evaluate(session, task.output, **{SWITCH: np.ones(layers, bool)})(cases[0])
    count = max(1, int(SECONDS_ALONE / layers / max(time.monotonic() - start, 1e-9)))
    if count >= len(cases):
        return cases
    return [cases[(2 * n + 1) * len(cases) // (2 * count)] for n in range(count)]


def _alone(session: GraphRun, task: Task, cases: Sequence[TrialInputs], wanted: Sequence[Array]) -> Measure:
    """The relative error of single evaluations in place of that of samples; `choose` scales it to what samples show."""

    def measure(flags: Array) -> float:
        evaluate = _evaluate(session, task.output, **{SWITCH: flags})
        return relative_error([evaluate(case) for case in cases], wanted)

    return measure


def _inserted(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    found: Rounding,
    kind: Kind,
    *,
    outputs: bool,
    switched: bool = False,
) -> onnx.ModelProto:
    import onnx_ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    read = onnx_ir.from_proto(model)
    insert(read.graph, layers, found.ranges, kind, outputs=outputs, switched=switched, shifts=found.shifts)
    RemoveUnusedNodesPass()(read)
    return prepared(onnx_ir.to_proto(read)) if kind.halves and not switched else onnx_ir.to_proto(read)


def _evaluate(run: GraphRun, output: str, **others: Array) -> Evaluate:
    return lambda case: run(case, **others)[output]


def _of_opset(model: onnx.ModelProto, least: int) -> onnx.ModelProto:
    """The model at opset `least` or later. Raises InputError where onnx cannot convert it."""
    import onnx

    held = max((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), default=1)
    if held >= least:
        return model
    try:
        return onnx.version_converter.convert_version(model, least)
    except Exception as error:  # of C++, without a class of its own
        raise InputError(
            f"the file has opset {held}, float16 scales need {least}, and onnx cannot convert it; export it again"
        ) from error


# The record.
def _record(
    model: onnx.ModelProto,
    task: Task,
    kind: Kind,
    layers: Sequence[Layer],
    kept: set[str],
    chosen: Chosen,
    final: onnx.ModelProto,
    exact: Evaluate,
    cases: Sequence[TrialInputs],
) -> dict[str, Any]:
    import onnx_ir

    every = quantisable(onnx_ir.from_proto(model).graph, task.time)
    small = {one.name for one in every} - {one.name for one in layers}
    finished = _evaluate(GraphRun(final, task.inputs, exact=True), task.output)
    wanted = [exact(case) for case in cases]
    error = relative_error([finished(case) for case in cases], wanted)
    samples = task.errors(finished, check=True)
    return {
        "precision": kind.name,
        "layers": {name: list(pair) for name, pair in counted(every, kept | small).items()},
        "given_back": sorted(kept),
        "too_small": sorted(small),
        **({"weight_bits": 7 if kind.most == INT8_SMALL.most else 8} if kind.name == "int8" else {}),
        "evaluation_error": float(np.float32(error)),
        "all_quantised": chosen.all_quantised if np.isfinite(chosen.all_quantised) else None,
        "samples": {name: one.record for name, one in samples.items()},
    }
