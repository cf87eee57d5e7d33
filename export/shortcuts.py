"""Four shortcuts through torch.onnx's exporter: the same graph in half the time.

The exporter traces a network twice, the second time to replace operators that have no ONNX form. In most networks those
are a handful whose replacement is known, so they are replaced in the first trace (`simplified`). The optimiser of
onnxscript tries every rule on every node, of which the rule that joins slices walks the whole graph each time; here a
rule is tried where its operator is (`_targeted_rules`). The table of ONNX functions is made once for a process, and the
Python code of a function is parsed where the network has its operator (`_one_registry`). The pass that looks for mixed
dtypes runs every operator again; here it takes what the trace found until it has changed something (`_traced_types`).

All reach into internals of torch and onnxscript. Where a version has other internals, or a network other operators,
the exporter's own way is gone: slower, with the same result.
"""

from __future__ import annotations

import contextlib
import math
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.export import ExportedProgram

Step = Callable[[torch.fx.Node], None]
ATEN = torch.ops.aten
# What the exporter removes before it writes the graph.
CHECKS = (
    ATEN.sym_constrain_range_for_size.default,
    ATEN._assert_async.default,
    ATEN._assert_async.msg,
    ATEN._assert_scalar.default,
    ATEN._assert_tensor_metadata.default,
)


@contextlib.contextmanager
def shortcuts() -> Iterator[None]:
    """All, while a network is exported; fewer where internals differ."""
    with contextlib.ExitStack() as stack:
        for patch in (_one_registry, _one_trace, _traced_types, _targeted_rules):
            with contextlib.suppress(ImportError, AttributeError):
                stack.enter_context(patch())
        yield


# One table of ONNX functions.
@contextlib.contextmanager
def _one_registry() -> Iterator[None]:
    from onnxscript._internal.values import TracedOnnxFunction
    from torch.onnx._internal.exporter._registration import OnnxDecompMeta, ONNXRegistry

    made: Callable[..., Any] = ONNXRegistry.from_torchlib
    parsed: Callable[[Any], None] = OnnxDecompMeta.__post_init__
    found: Callable[[Any, Any], Any] = ONNXRegistry.get_decomps

    def kept(opset_version: int) -> Any:
        if opset_version not in _registries:
            # The function's IR would be made, and its Python code parsed, for the domain alone.
            unparsed = property(lambda function: types.SimpleNamespace(domain=function.opset.domain))
            with (
                _replaced(OnnxDecompMeta, "__post_init__", lambda meta: None),
                _replaced(TracedOnnxFunction, "function_ir", unparsed),
            ):
                _registries[opset_version] = made(opset_version)
        return _registries[opset_version]

    def parsed_where_asked(registry: Any, target: Any) -> Any:
        metas = found(registry, target)
        for meta in metas:
            parsed(meta)  # which looks whether it was
        return metas

    with (
        _replaced(ONNXRegistry, "from_torchlib", staticmethod(kept)),
        _replaced(ONNXRegistry, "get_decomps", parsed_where_asked),
    ):
        yield


_registries: dict[int, Any] = {}


# One trace.
@contextlib.contextmanager
def _one_trace() -> Iterator[None]:
    from torch.onnx._internal.exporter import _decomp, _fx_passes

    whole: Callable[..., ExportedProgram] = _fx_passes.decompose_with_registry

    def shorter(program: ExportedProgram, registry: Any) -> ExportedProgram:
        implemented = set(_decomp.get_onnx_implemented_overloads(registry))
        return program if simplified(program, implemented) else whole(program, registry)

    with _replaced(_fx_passes, "decompose_with_registry", shorter):
        yield


def simplified(program: ExportedProgram, implemented: set[Any]) -> bool:
    """Whether the program has an ONNX form now; False, and unchanged, when it takes the exporter's decompositions.

    implemented: operators that torch.onnx has a function for.
    """
    nodes = [node for node in program.graph.nodes if node.op not in ("placeholder", "output")]
    steps = [(node, _replacement(node, implemented)) for node in nodes]
    if any(step is None for _, step in steps):
        return False
    for node, step in steps:
        if step is not None:
            step(node)
    program.graph_module.recompile()
    return True


def _replacement(node: torch.fx.Node, implemented: set[Any]) -> Step | None:
    """What to do with a node so that the exporter can write it; None when only a second trace can tell."""
    target = node.target
    if node.op != "call_function":
        return None
    if target in CHECKS or isinstance(target, types.BuiltinFunctionType):
        return _keep
    if target in REPLACED:
        return REPLACED[target](node)
    return _keep if target in implemented and _is_kept(target) else None


def _is_kept(target: Any) -> bool:
    """Whether the exporter's decompositions leave this operator as it is."""
    from torch._export.utils import _is_cia_op, _is_preservable_cia_op

    if not isinstance(target, torch._ops.OpOverload):
        return isinstance(target, types.FunctionType)  # on sizes: torch.sym_not
    if target._schema.is_mutable:
        return False
    return not _is_cia_op(target) or _is_preservable_cia_op(target)


# Steps. They read a node's arguments when they are taken, as earlier ones may have changed them.
def _keep(node: torch.fx.Node) -> None:
    pass


def _drop(node: torch.fx.Node) -> None:
    """Its input in its place; an output keeps its name, as a copy."""
    x = node.args[0]
    if any(user.op == "output" for user in node.users):
        node.target, node.args, node.kwargs = ATEN.clone.default, (x,), {}
    else:
        assert isinstance(x, torch.fx.Node)
        node.replace_all_uses_with(x)
        node.graph.erase_node(node)


def _cast(node: torch.fx.Node) -> Step | None:
    """to(x, dtype) and to(x, device, dtype) on the CPU."""
    *device, dtype = node.args[1:]
    if node.kwargs or device not in ([], [torch.device("cpu")]) or not isinstance(dtype, torch.dtype):
        return None

    def step(node: torch.fx.Node) -> None:
        node.target, node.args, node.kwargs = ATEN._to_copy.default, node.args[:1], {"dtype": dtype}

    return _drop if _input(node).dtype == dtype else step


def _dropout(node: torch.fx.Node) -> Step | None:
    return _drop if len(node.args) == 3 and node.args[2] is False else None


def _flatten(node: torch.fx.Node) -> Step | None:
    """flatten(x, first) to the end: x itself from its last dimension on; of [batch, *shape] from 1 on."""
    first = node.args[1] if len(node.args) > 1 else 0
    shape = _input(node).shape
    if len(node.args) < 3 and first in (-1, len(shape) - 1):
        return _drop
    if len(node.args) != 2 or first != 1 or not all(type(size) is int for size in shape[1:]):
        return None

    def step(node: torch.fx.Node) -> None:
        x = node.args[0]
        with node.graph.inserting_before(node):
            batch = node.graph.call_function(ATEN.sym_size.int, (x, 0))
        batch.meta["val"] = shape[0]
        node.target, node.args = ATEN.view.default, (x, [batch, math.prod(shape[1:])])

    return step


def _reshape(node: torch.fx.Node) -> Step | None:
    def step(node: torch.fx.Node) -> None:
        node.target = ATEN.view.default

    return step


def _chunk(node: torch.fx.Node) -> Step | None:
    _, parts, axis = (*node.args, 0)[:3]
    if node.kwargs or type(parts) is not int or type(axis) is not int:
        return None
    size = _input(node).shape[axis]
    if type(size) is not int:
        return None

    def step(node: torch.fx.Node) -> None:
        node.target, node.args = ATEN.split.Tensor, (node.args[0], -(-size // parts), axis)

    return step


def _input(node: torch.fx.Node) -> torch.Tensor:
    """The first argument, as it was traced."""
    x = node.args[0]
    assert isinstance(x, torch.fx.Node)
    return x.meta["val"]


REPLACED: dict[Any, Callable[[torch.fx.Node], Step | None]] = {
    ATEN.to.dtype: _cast,
    ATEN.to.device: _cast,
    ATEN.dropout.default: _dropout,
    ATEN.contiguous.default: lambda node: _drop,
    ATEN.flatten.using_ints: _flatten,
    ATEN.reshape.default: _reshape,
    ATEN.chunk.default: _chunk,
}


# Dtypes as they were traced.
@contextlib.contextmanager
def _traced_types() -> Iterator[None]:
    from torch.onnx._internal.fx.passes.type_promotion import _TypePromotionInterpreter, get_type_promotion_rule

    run: Callable[[Any, torch.fx.Node], Any] = _TypePromotionInterpreter.run_node

    def run_node(interpreter: Any, node: torch.fx.Node) -> Any:
        """What `node` gives. From the first on that gives another dtype than in the trace, all are run."""
        if node.op != "call_function" or "val" not in node.meta or interpreter in changed:
            return run(interpreter, node)
        traced, before = node.meta["val"], (node.target, node.args, node.kwargs, len(node.users))
        with interpreter._set_current_node(node):
            if rule := get_type_promotion_rule(node, interpreter.type_promotion_table):
                interpreter._maybe_promote_node(node, rule)
        if before == (node.target, node.args, node.kwargs, len(node.users)):
            return traced
        found = run(interpreter, node)
        if getattr(found, "dtype", None) != getattr(traced, "dtype", None):
            changed.add(interpreter)
        return found

    changed: set[Any] = set()
    with _replaced(_TypePromotionInterpreter, "run_node", run_node):
        yield


# Rules where they can match.
@contextlib.contextmanager
def _targeted_rules() -> Iterator[None]:
    from onnxscript.rewriter._rewrite_rule import RewriteRule

    tried: Callable[..., Any] = RewriteRule.try_rewrite

    def where_it_can_match(rule: Any, model: Any, graph: Any, node: Any, **settings: Any) -> Any:
        root = rule._target_pattern.output_nodes[0].op_identifier()
        if root is not None and root[1] != node.op_type:
            return None
        return tried(rule, model, graph, node, **settings)

    with _replaced(RewriteRule, "try_rewrite", where_it_can_match):
        yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    former = vars(owner)[name]  # a class method, not what it is bound to
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, former)
