"""The dtypes of an exported graph: those of its ends, and of its weights.

A weight is what products take, perhaps turned round before. Other constants may stay float32 in a half precision:
frequencies of times and places, which are computed from the shape alone, and tables of rotations, of which long
prompts have many (FLUX: 16 numbers for each token of a tiny model).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..engine.contract.contract import AnyContract, Contract
from ..engine.errors import InputError

if TYPE_CHECKING:
    import onnx_ir

PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum"})
# What hands numbers on as they are.
LAYOUT = frozenset(
    {"Cast", "Concat", "Expand", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)


def assert_dtypes(model: onnx_ir.Model, contract: AnyContract) -> None:
    """Check that x, out and the weights have the contract's precision, and t its dtype. Raises InputError."""
    import onnx_ir

    names = {"fp32": onnx_ir.DataType.FLOAT, "fp16": onnx_ir.DataType.FLOAT16, "bf16": onnx_ir.DataType.BFLOAT16}
    names["int64"] = onnx_ir.DataType.INT64
    wanted = names[contract.precision]
    expected = {contract.input: names[contract.input_dtype], contract.output: wanted}
    if isinstance(contract, Contract):
        whole = contract.time_dtype == "int64"
        expected[contract.time] = onnx_ir.DataType.INT64 if whole else onnx_ir.DataType.FLOAT
    ends = {value.name: value.dtype for value in [*model.graph.inputs, *model.graph.outputs]}
    for name, dtype in expected.items():
        if ends.get(name) != dtype:
            raise InputError(f"network '{contract.name}': '{name}' is {ends.get(name)} in the graph, expected {dtype}")
    sizes: dict[onnx_ir.DataType, int] = {}
    strays = 0
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype.is_floating_point():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.size
            strays += tensor.size if tensor.dtype != wanted and is_weight(value) else 0
    if strays > max(4096, sum(sizes.values()) // 100):  # time frequencies may stay float32
        found = ", ".join(f"{size} {dtype}" for dtype, size in sizes.items())
        raise InputError(
            f"network '{contract.name}': weights are {found}, expected {wanted}; "
            "register them as parameters of the module, or build with precision fp32"
        )


def is_weight(value: onnx_ir.Value) -> bool:
    """Whether some product takes the numbers of `value`."""
    seen, left = {value}, [value]
    while left:
        for node, _ in left.pop().uses():
            if node.op_type in PRODUCTS:
                return True
            if node.op_type in LAYOUT:
                left += [one for one in node.outputs if one not in seen]
                seen.update(node.outputs)
    return False
