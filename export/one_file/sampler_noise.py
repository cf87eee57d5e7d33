"""Noise by seed in ONNX's own operators, opset 18 up: the numbers of engine/philox.py inside a one-file sampler.

    seeds uint64 [batch], draw int64 []  ->  float32 [batch, *shape]

Philox-4x32-10's words are int64 in [0, 2^32). c_0 and c_2 are one array [2, batch, elements], c_1 and c_3 another. What
a product gives belongs to the other half, so in place of moving it the halves change places with every round. A product
wraps at 2^64, in ONNX Runtime as everywhere, and its bits are right.

Draw 0, what sampling starts from, is Box-Muller in float64, rounded once. Later draws are computed in float32, as in
kernels/noise.py: the same operations in the same order, each of which IEEE 754 rounds exactly. So their bits are the
engine's. Only the exponent of u_1 is found otherwise, since ONNX cannot look at a float's bits: guessed by a logarithm,
then corrected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...engine.philox import LOGARITHM, MULTIPLIERS, ROUNDS, WEYLS

if TYPE_CHECKING:
    import onnx

LOWEST_OPSET = 18  # BitwiseXor
PREFIX = "noise/"
WORD = 0xFFFFFFFF
TERMS = 9  # of Taylor's series, after the first
LARGEST_EXPONENT = 33  # of a word as a float; a table of powers of two goes that far


class Nodes:
    """Nodes and constants of one graph, in order, under names of their own."""

    def __init__(self, prefix: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Any] = {}
        self._prefix = prefix

    def add(self, operator: str, *inputs: Any, **attributes: Any) -> str:
        """The output of one node; an input that is no name is a constant."""
        from onnx import helper

        names = [one if isinstance(one, str) else self.constant(one) for one in inputs]
        output = f"{self._prefix}{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, names, [output], **attributes))
        return output

    def constant(self, value: Any) -> str:
        array = np.asarray(value)
        for name, held in self.constants.items():
            if held.dtype == array.dtype and held.shape == array.shape and held.tobytes() == array.tobytes():
                return name
        name = f"{self._prefix}constant_{len(self.constants)}"
        self.constants[name] = array
        return name

    def cast(self, value: str, dtype: type[np.generic]) -> str:
        from onnx import helper

        return self.add("Cast", value, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


class SeededNoise:
    """Draws of the input `seeds`: what they have in common stands in the graph around the loop, `outer`."""

    def __init__(self, outer: Nodes, seeds: str, shape: Sequence[int]) -> None:
        self._shape = np.array([0, *shape])  # 0: the batch, as it is
        word = outer.cast(outer.add("BitwiseAnd", seeds, np.uint64(WORD)), np.int64)
        upper = outer.cast(outer.add("BitShift", seeds, np.uint64(32), direction="RIGHT"), np.int64)
        both = [outer.add("Unsqueeze", one, np.array([0, 2])) for one in (word, upper)]
        # [rounds, 2, batch, 1]: after round r, c_0 is at (r + 1) mod 2 and has met the first key there.
        places = np.array([[1, 0] if r % 2 == 0 else [0, 1] for r in range(ROUNDS)])
        steps = WEYLS.astype(np.int64)[places] * np.arange(ROUNDS)[:, None]
        placed = outer.add("Gather", outer.add("Concat", *both, axis=0), places, axis=0)
        keys = outer.add("BitwiseAnd", outer.add("Add", placed, steps[..., None, None]), np.int64(WORD))
        self._keys = [outer.add("Gather", keys, np.int64(r), axis=0) for r in range(ROUNDS)]
        elements = outer.add("Range", np.int64(0), np.int64(math.prod(shape)), np.int64(1))
        self._elements = outer.add("Mul", elements, np.array([1, 0])[:, None, None])  # c_0; c_2 is the draw

    def start(self, graph: Nodes) -> str:
        """Draw 0."""
        r_0, r_1 = self._words(graph, graph.constant(np.int64(0)))
        u_1 = graph.add("Mul", graph.add("Add", graph.cast(r_0, np.float64), 0.5), 2.0**-32)
        radius = graph.add("Sqrt", graph.add("Mul", graph.add("Log", u_1), -2.0))
        # ONNX Runtime 1.20 has no float64 cosine: Taylor's series, 2e-16 from it at most on an eighth of a turn.
        quarter, remainder = _quarter_turn(graph, r_1)
        angle = graph.add("Mul", graph.add("Add", graph.cast(remainder, np.float64), 0.5), 2.0**-32 * (2.0 * math.pi))
        square = graph.add("Mul", angle, angle)
        sine, cosine = (_series(graph, square, first) for first in (1, 0))
        z = graph.add("Mul", radius, _turned(graph, quarter, graph.add("Mul", sine, angle), cosine))
        return graph.add("Reshape", graph.cast(z, np.float32), self._shape)

    def draw(self, graph: Nodes, number: str) -> str:
        """Draw `number`, int64, from 1 on."""
        return graph.add("Reshape", _normal(graph, *self._words(graph, number)), self._shape)

    def _words(self, graph: Nodes, draw: str) -> tuple[str, str]:
        """r_0 and r_1 int64 [batch, elements]."""
        even = graph.add("Add", self._elements, graph.add("Mul", draw, np.array([0, 1])[:, None, None]))
        odd = graph.constant(np.zeros((2, 1, 1), np.int64))
        for r, key in enumerate(self._keys):
            product = graph.add("Mul", even, MULTIPLIERS.astype(np.int64)[:: 1 if r % 2 == 0 else -1, None, None])
            upper = graph.add("BitShift", graph.cast(product, np.uint64), np.uint64(32), direction="RIGHT")
            other = graph.add("Gather", odd, np.array([1, 0]), axis=0)
            mixed = graph.add("BitwiseXor", graph.cast(upper, np.int64), other)
            even, odd = graph.add("BitwiseXor", mixed, key), graph.add("BitwiseAnd", product, np.int64(WORD))
        return graph.add("Gather", even, np.int64(0), axis=0), graph.add("Gather", odd, np.int64(0), axis=0)


def _normal(graph: Nodes, r_0: str, r_1: str) -> str:
    """Box-Muller in float32: `_box_muller_in_float32` of engine/philox.py, its operations in their order."""

    def add(operator: str, *inputs: Any) -> str:
        return graph.add(operator, *(np.float32(one) if isinstance(one, float) else one for one in inputs))

    # ln u_1 = k ln 2 + ln(1 + f); near u_1 = 1 from 1 - u_1.
    upper = add("GreaterOrEqual", r_0, np.int64(0x80000000))
    x = add("Add", graph.cast(add("Where", upper, add("BitwiseXor", r_0, np.int64(WORD)), r_0), np.float32), 0.5)
    exponent, mantissa = _split(graph, x)
    rest = add("Mul", x, 2.3283064365386963e-10)
    halved = add("Greater", rest, 0.29289321881345254)
    near = add("Where", halved, add("Sub", 1.0, add("Mul", rest, 2.0)), add("Neg", rest))
    f = add("Where", upper, near, add("Sub", mantissa, 1.0))
    k = add("Where", upper, add("Where", halved, -1.0, 0.0), add("Sub", exponent, 32.0))
    y = add("Add", add("Mul", f, LOGARITHM[0]), LOGARITHM[1])
    for coefficient in LOGARITHM[2:]:
        y = add("Add", add("Mul", y, f), coefficient)
    square = add("Mul", f, f)
    y = add("Mul", add("Mul", y, f), square)
    y = add("Sub", add("Sub", y, add("Mul", k, 2.12194440e-4)), add("Mul", square, 0.5))
    logarithm = add("Add", add("Mul", k, 0.693359375), add("Add", f, y))
    # ONNX Runtime 1.20's float32 root is a unit off for a third of all values; rounded from float64 it is the nearest.
    radius = graph.cast(add("Sqrt", graph.cast(add("Mul", logarithm, -2.0), np.float64)), np.float32)

    # cos(2 pi u_2): the nearest quarter turn, then |angle| <= pi / 4.
    quarter, remainder = _quarter_turn(graph, r_1)
    angle = add("Mul", add("Add", graph.cast(remainder, np.float32), 0.5), 1.4629180792671596e-9)
    a = add("Mul", angle, angle)
    sine = add("Sub", add("Mul", add("Add", add("Mul", a, -1.9515295891e-4), 8.3321608736e-3), a), 1.6666654611e-1)
    sine = add("Add", add("Mul", add("Mul", sine, a), angle), angle)
    cosine = add("Mul", add("Sub", add("Mul", a, 2.443315711809948e-5), 1.388731625493765e-3), a)
    cosine = add("Mul", add("Mul", add("Add", cosine, 4.166664568298827e-2), a), a)
    cosine = add("Add", add("Sub", cosine, add("Mul", a, 0.5)), 1.0)
    return add("Mul", radius, _turned(graph, quarter, sine, cosine))


def _quarter_turn(graph: Nodes, r_1: str) -> tuple[str, str]:
    """The quarter turn nearest to r_1, 0 to 4, and r_1 less than it, int64 from -2^29 on."""
    moved = graph.cast(graph.add("Add", r_1, np.int64(1 << 29)), np.uint64)
    quarter = graph.cast(graph.add("BitShift", moved, np.uint64(30), direction="RIGHT"), np.int64)
    return quarter, graph.add("Sub", r_1, graph.add("Mul", quarter, np.int64(1 << 30)))


def _turned(graph: Nodes, quarter: str, sine: str, cosine: str) -> str:
    """The cosine after whole quarter turns: cos, -sin, -cos, sin, cos."""
    odd = graph.add("Equal", graph.add("BitwiseAnd", quarter, np.int64(1)), np.int64(1))
    wave = graph.add("Where", odd, sine, cosine)
    left = graph.add("BitwiseAnd", graph.add("Add", quarter, np.int64(1)), np.int64(2))
    return graph.add("Where", graph.add("Equal", left, np.int64(2)), graph.add("Neg", wave), wave)


def _series(graph: Nodes, square: str, first: int) -> str:
    """sum over k of (-1)^k square^k / (2k + first)!, float64: the cosine, and with first 1 the sine by its angle."""
    y: str | float = (-1.0) ** TERMS / math.factorial(2 * TERMS + first)
    for k in range(TERMS - 1, -1, -1):
        y = graph.add("Add", graph.add("Mul", square, y), (-1.0) ** k / math.factorial(2 * k + first))
    assert isinstance(y, str)
    return y


def _split(graph: Nodes, x: str) -> tuple[str, str]:
    """(k, m) float32 with x = m 2^k, m in [lowest, 2 lowest): what the bits of x say, for x in [1/2, 2^31]."""
    lowest = np.uint32(0x3F3504F3).view(np.float32)  # sqrt(1/2)
    guess = graph.add("Round", graph.add("Mul", graph.add("Log", x), np.float32(1 / math.log(2))))
    powers = np.float32(2.0) ** -np.arange(-1, LARGEST_EXPONENT, dtype=np.float32)
    place = graph.cast(graph.add("Add", guess, np.float32(1)), np.int64)
    m = graph.add("Mul", x, graph.add("Gather", graph.constant(powers), place))
    small, large = graph.add("Less", m, lowest), graph.add("GreaterOrEqual", m, np.float32(2) * lowest)
    down, up = np.float32(-1), np.float32(1)
    moved = graph.add("Where", small, down, graph.add("Where", large, up, np.float32(0)))
    factor = graph.add("Where", small, np.float32(2), graph.add("Where", large, np.float32(0.5), np.float32(1)))
    return graph.add("Add", guess, moved), graph.add("Mul", m, factor)
