"""Sums and products with constants, one after the other, as a product and a sum: y = ((t / 1000) w + 1) 2 = a t + b.

OpenVINO joins such chains itself while it compiles, into nodes without the marks of those that they replace. What has
to stay float32 (`openvino_time`) is therefore joined before it is marked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset13 as op

KINDS = ("Add", "Subtract", "Multiply", "Divide")
SHAPED = ("Unsqueeze", "Squeeze", "Reshape")


@final
@dataclass(frozen=True, eq=False)
class Affine:
    """a source + b, float64, by numpy's rules of broadcasting. nodes: how many it takes the place of."""

    source: Any
    a: NDArray[np.float64]
    b: NDArray[np.float64]
    nodes: int


def join_affine(part: Any) -> None:
    """Replace every chain of two or more in `part`, a float32 graph of static shapes; in place."""
    held: dict[str, Affine] = {}
    nodes = part.get_ordered_ops()
    for node in nodes:
        if (found := _of(node, held)) is not None:
            held[node.get_name()] = found
    for node in nodes:
        found = held.get(node.get_name())
        readers = [one.get_node().get_name() for one in node.output(0).get_target_inputs()] if found else []
        if found is not None and found.nodes > 1 and any(one not in held for one in readers):
            made = _made(found).output(0)
            if made.get_partial_shape() == node.get_output_partial_shape(0):
                node.output(0).replace(made)


def _of(node: Any, held: dict[str, Affine]) -> Affine | None:
    kind = node.get_type_name()
    if kind not in (*KINDS, *SHAPED) or node.get_output_element_type(0) != openvino.Type.f32:
        return None
    inputs = [one.get_source_output() for one in node.inputs()]
    constant = [one.get_node().get_type_name() == "Constant" for one in inputs]
    if kind in SHAPED:
        before = held.get(inputs[0].get_node().get_name())
        if before is None or before.a.size > 1 or before.b.size > 1:
            return None  # values along an axis would have to move with it
        form = op.constant(np.array(node.get_output_shape(0), np.int64))
        shaped = op.reshape(before.source, form, special_zero=False).output(0)
        return Affine(shaped, before.a.reshape(()), before.b.reshape(()), before.nodes)
    if constant[0] == constant[1] or (kind == "Divide" and constant[0]):
        return None
    value = inputs[constant[0]]
    number = np.asarray(inputs[constant[1]].get_node().data, np.float64)
    before = held.get(value.get_node().get_name()) or Affine(value, np.ones(()), np.zeros(()), 0)
    return _combined(before, kind, number, reverse=constant[0])


def _combined(before: Affine, kind: str, number: NDArray[np.float64], *, reverse: bool) -> Affine:
    a, b = before.a, before.b
    if kind == "Multiply":
        a, b = a * number, b * number
    elif kind == "Divide":
        a, b = a / number, b / number
    elif kind == "Add":
        b = b + number
    else:
        a, b = (-a, number - b) if reverse else (a, b - number)
    return Affine(before.source, a, b, before.nodes + 1)


def _made(form: Affine) -> Any:
    product = op.multiply(form.source, op.constant(form.a.astype(np.float32)))
    if form.b.ndim or form.b.any():  # zeros along an axis still say its size
        return op.add(product, op.constant(form.b.astype(np.float32)))
    return product
