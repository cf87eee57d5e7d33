"""The mean error of a layer's outputs in eight bits, which its bias takes back at no cost.

    shift = E[W x + b] - E[W_q x_q + b]        by output channel, over calibration's cases and all positions

Rounding a few hundred weights of a channel leaves a mean error, the same for every sample: whole pictures become
brighter or darker. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019), 4.2;
here x is what the sampler itself feeds the layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...check import TrialInputs
from ..insert import insert_differences
from ..layers import Layer
from ..observe import GraphRun
from ..ranges import Kind, Range

if TYPE_CHECKING:
    import onnx

Array = NDArray[Any]


def shifts_of(
    model: onnx.ModelProto,
    inputs: Sequence[str],
    layers: Sequence[Layer],
    ranges: Mapping[str, Range],
    kind: Kind,
    cases: Sequence[TrialInputs],
    ranks: Mapping[str, int],
) -> dict[str, Array]:
    """By layer float32 [channels]. model: float32, whose layers are `layers`. ranks: by layer, of its output."""
    import onnx_ir

    read = onnx_ir.from_proto(model)
    names = insert_differences(read.graph, layers, ranges, kind, ranks)
    run = GraphRun(onnx_ir.to_proto(read), inputs, names.values())
    sums: dict[str, Array] = {}
    for case in cases:
        values = run(case)
        for name, mean in names.items():
            found = values[mean].astype(np.float64)
            sums[name] = found if name not in sums else sums[name] + found
    return {name: (total / len(cases)).astype(np.float32) for name, total in sums.items()}
