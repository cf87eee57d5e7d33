"""nn.Module -> network.onnx: torch.onnx's dynamo exporter, opset 21, one dynamic batch dimension.

Opset 21 keeps GroupNormalization whole and writes attention as MatMul and Softmax, the smallest graph that every
backend takes. Precision is the graph's own: the weights of a copy are cast before the export, `t` stays float32.
The same module gives the same bytes: what the exporter notes about the source code and the machine is removed.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from ..engine.backends.casting import cast_copy
from ..engine.contract.contract import AnyContract, Contract
from ..engine.errors import InputError, first_line
from ..engine.tensors import PRECISION_DTYPES, TORCH_DTYPES
from .graph_dtypes import assert_dtypes as assert_dtypes
from .pipelines.weights import free_weights, return_memory
from .shortcuts import shortcuts

if TYPE_CHECKING:
    import onnx_ir

OPSET = 21
# How torch says that a traced size is none but the example's.
FIXED_BATCH = ("Constraints violated", "ConstraintViolation", "conflicts between user-specified ranges")
EXTERNAL_ABOVE_BYTES = 1 << 30  # one protobuf file holds at most 2 GiB


# Evaluation mode and precision.
@contextlib.contextmanager
def prepared(module: nn.Module, dtype: torch.dtype) -> Iterator[nn.Module]:
    """The module for evaluation on the CPU with weights of `dtype`.

    A float32 CPU module is lent as it is and gets its train or eval mode back, submodule by submodule; any other is
    copied, each weight cast once on the way, so that no second copy in the old dtype ever exists, and freed at the end.
    """
    if dtype == torch.float32 and all(_is_plain(tensor) for tensor in _tensors(module)):
        modes = [(one, one.training) for one in module.modules()]
        try:
            yield module.eval()
        finally:
            for one, training in modes:
                one.training = training
    else:
        copied = cast_copy(module, dtype).eval()
        try:
            yield copied
        finally:
            free_weights(copied)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _is_plain(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and (not tensor.is_floating_point() or tensor.dtype == torch.float32)


# Export.
def export_module(normalised: nn.Module, contract: AnyContract, path: Path, *, external: bool | None = None) -> None:
    """Write `normalised` (forward(*inputs) -> out, weights of the contract's precision) as ONNX.

    `external` puts the weights into `path` + ".data"; None means when they pass 1 GiB.
    Raises InputError, one line, when torch cannot export the module or a dtype in the graph is wrong.
    """
    arguments = example_inputs(contract, batch=contract.fixed_batch or 2)
    # A name, not a Dim with bounds: a branch such as `if batch >= 64` would break the bound, and the exporter then
    # tries again with whatever constant torch suggests.
    dynamic: dict[int, Any] = {} if contract.fixed_batch else {0: "batch"}
    others = tuple(dynamic if one.ndim else {} for one in arguments[1:])
    shapes = (dynamic, others) if others else (dynamic,)
    try:
        # torch prints the whole graph before it says why it cannot export it.
        with quiet(), _unprinted(), shortcuts(), torch.no_grad():
            program = torch.onnx.export(
                OneBatch(normalised),
                arguments,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(contract.inputs),
                output_names=[contract.output],
                dynamic_shapes=shapes,
                verbose=False,
            )
    except Exception as error:
        raise InputError(_explain(error, contract)) from error
    assert program is not None
    model: onnx_ir.Model = program.model
    _mend_names(model.graph)
    _mend_squeezes(model.graph)
    _mend_concats(model.graph)
    _assert_batch(model, contract)
    assert_dtypes(model, contract)
    save_model(model, path, external=external)
    _let_go(model)


def _let_go(model: onnx_ir.Model) -> None:
    """Free the weights of a written model before it is compared, which loads them again.

    Rules of onnxscript's (0.7) hold the last graph that they looked at, and that has turned copies of weights; what
    the exporter made refers to itself.
    """
    size = 0
    for value in model.graph.initializers.values():
        size += 0 if value.const_value is None else value.const_value.nbytes
        value.const_value = None
    return_memory(size)


@final
class OneBatch(nn.Module):
    """Says first of all that every input has the batch of x.

    Each input comes with a size of its own. Where a network joins two of them before anything said that they are the
    same (the time's embedding reshaped to the batch of x), torch would settle it with the example's 2.
    """

    def __init__(self, normalised: nn.Module) -> None:
        super().__init__()
        self.normalised = normalised

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        for one in others:
            if one.ndim:
                torch._check(one.shape[0] == x.shape[0])
        return self.normalised(x, *others)


def example_inputs(contract: AnyContract, batch: int) -> tuple[Tensor, ...]:
    """x [batch, *shape], t and every condition, zeros of the contract's dtypes (conditions: their lowest value)."""
    x = torch.zeros(batch, *contract.shape, dtype=PRECISION_DTYPES.get(contract.input_dtype, torch.int64))
    if not isinstance(contract, Contract):
        return (x,)
    time_dtype = torch.int64 if contract.time_dtype == "int64" else torch.float32
    t = torch.ones((batch,) if contract.time_rank else (), dtype=time_dtype)
    conditions = (
        torch.full((batch, *one.shape), one.low or 0, dtype=TORCH_DTYPES[one.dtype]) for one in contract.conditions
    )
    return x, t, *conditions


def _explain(error: BaseException, contract: AnyContract) -> str:
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    line = named_line(root)
    if any(words in f"{type(root).__name__} {root}" for words in FIXED_BATCH):
        return _fixed_batch(contract, line)
    if contract.precision != "fp32" and "dtype" in str(root):
        return (
            f"network '{contract.name}' mixes dtypes at precision {contract.precision} ({line}); "
            "cast the time embedding to x.dtype in forward, or build with precision fp32"
        )
    return (
        f"network '{contract.name}' cannot be exported to ONNX ({line}); "
        "forward must be tensor operations only, without Python branches on values"
    )


def _fixed_batch(contract: AnyContract, found: str) -> str:
    return (
        f"network '{contract.name}' fixes the batch size inside forward, expected any batch: use x.shape[0] "
        f"instead of a number and no Python branch on it ({found})"
    )


def named_line(error: BaseException) -> str:
    """The error's class and the first line of what it says: of a KeyError the text alone would be a bare name."""
    line = first_line(error)
    return line if line == type(error).__name__ else f"{type(error).__name__}: {line}"


@contextlib.contextmanager
def _unprinted() -> Iterator[None]:
    """What is printed inside goes nowhere."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No chatter: warnings and log lines of exporter and diffusers concern their own internals, not the network."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.__trace", "onnxscript", "onnx_ir", "diffusers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# The written graph.
def _mend_names(graph: onnx_ir.Graph) -> None:
    """Inputs and outputs get their names last, whatever inside has the same: a transposed weight is called t."""
    ends = {*graph.inputs, *graph.outputs}
    taken = {value.name for value in ends}
    inside = [*graph.initializers.values(), *(value for node in graph.all_nodes() for value in node.outputs)]
    for value in inside:
        if value not in ends and value.name in taken:
            value.name = f"inside_{value.name}"


def _mend_squeezes(graph: onnx_ir.Graph) -> None:
    """torch's squeeze leaves a dimension other than 1 as it is, ONNX's refuses it: these become Identity."""
    for node in graph.all_nodes():
        if node.op_type != "Squeeze" or len(node.inputs) < 2:
            continue
        x, axes = node.inputs[0], node.inputs[1]
        if x is None or x.shape is None or axes is None or axes.const_value is None:
            continue
        sizes = [x.shape[axis] for axis in axes.const_value.numpy().reshape(-1).tolist()]
        if all(isinstance(size, int) and size != 1 for size in sizes):
            node.op_type = "Identity"
            node.resize_inputs(1)


def _mend_concats(graph: onnx_ir.Graph) -> None:
    """torch's cat takes tensors of several dtypes (half-precision features, float32 angles), ONNX's does not."""
    import onnx_ir

    for node in list(graph.all_nodes()):
        wanted = node.outputs[0].dtype
        if node.op_type != "Concat" or wanted is None:
            continue
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype not in (None, wanted):
                cast = onnx_ir.node("Cast", [value], {"to": wanted})
                cast.outputs[0].dtype, cast.outputs[0].shape = wanted, value.shape
                graph.insert_before(node, cast)
                node.replace_input_with(index, cast.outputs[0])


def _assert_batch(model: onnx_ir.Model, contract: AnyContract) -> None:
    """Check that no input and no output has the example's batch instead of any. Raises InputError."""
    if contract.fixed_batch:
        return
    for value in (*model.graph.inputs, *model.graph.outputs):
        scalar = isinstance(contract, Contract) and value.name == contract.time and not contract.time_rank
        if not scalar and (value.shape is None or isinstance(value.shape[0], int)):
            raise InputError(_fixed_batch(contract, f"'{value.name}' is {value.shape} in the graph"))


def save_model(model: onnx_ir.Model, path: Path, *, external: bool | None = None) -> None:
    """Write the model without notes on source code and machine; weights beside it in `path`.data when `external`.

    None means when the weights pass 1 GiB.
    """
    import onnx_ir

    model.metadata_props.clear()
    model.doc_string = None
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        _strip(graph)
    if external is None:
        tensors = (value.const_value for value in model.graph.initializers.values())
        external = sum(tensor.nbytes for tensor in tensors if tensor is not None) > EXTERNAL_ABOVE_BYTES
    if external:
        onnx_ir.save(model, path, external_data=path.name + ".data", size_threshold_bytes=1024)
    else:
        path.with_name(path.name + ".data").unlink(missing_ok=True)  # of an earlier write
        onnx_ir.save(onnx_ir.external_data.load_to_model(model), path)


def _strip(graph: onnx_ir.Graph) -> None:
    graph.metadata_props.clear()
    graph.doc_string = None
    values: list[onnx_ir.Value] = [*graph.inputs, *graph.initializers.values()]
    for node in graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        values.extend(node.outputs)
    for value in values:
        value.metadata_props.clear()
        value.doc_string = None
        if value.const_value is not None:
            value.const_value.metadata_props.clear()
