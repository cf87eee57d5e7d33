"""What OpenVINO's CPU plugin computes slowly, written in a form that it computes fast: three rewrites, equal in value.

A fourth is of what it computes wrongly.

They work on an `openvino.Model` with static shapes, in place. Gains: the 36 M U-Net of bench/NOTES.md, batch 1.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import product
from typing import Any

import numpy as np
import openvino
from openvino import opset13 as op


def rewrite(model: Any, precision: str) -> None:
    """Every rewrite that `precision` (fp32, fp16, bf16) allows. The model must have static shapes."""
    if precision != "fp16":  # which has no room for squares of sums over a picture
        group_normalizations(model)
    tied_weights(model)
    linear_layers(model)
    upsampled_convolutions(model)
    model.validate_nodes_and_infer_types()


def group_normalizations(model: Any) -> None:
    """Group normalisation of [B, C, H, W] by means over H and W of each channel first, over a group's channels last.

    y = a_c (x - mu_g) + beta_c,  a_c = gamma_c / sqrt(mean_g (x - mu_g)^2 + epsilon)

    The plugin would reshape x to [B * groups, C / groups, H, W]: out of the channels-last layout of the convolutions
    before, and back after. This stays in it: a group's mean, in every one of its channels, is a 1x1 convolution of
    constant weights. ONNX normalises in float32 what it stores in less, and the conversion back keeps the plugin from
    joining the SiLU that follows; here none is left. `bench/NOTES.md` has the gains.
    """
    for node in _of_type(model, "GroupNormalization"):
        x = _before_conversion(node.input_value(0))
        if x.get_partial_shape().is_dynamic or len(x.get_shape()) != 4:
            continue
        y = _normalized(node, x)
        dtype = x.get_element_type()
        for target in node.output(0).get_target_inputs():
            consumer = target.get_node()
            if consumer.get_type_name() == "Convert" and consumer.get_output_element_type(0) == dtype:
                consumer.output(0).replace(y.output(0))
        node.output(0).replace(_as(y.output(0), node.get_output_element_type(0)))


def _normalized(node: Any, x: Any) -> Any:
    _, channels, height, width = x.get_shape()
    groups = node.get_attributes()["num_groups"]
    dtype, of_channels = x.get_element_type(), op.constant(np.array([1, channels, 1, 1]))

    def number(value: float) -> Any:
        return _as(op.constant(np.float32(value)).output(0), dtype)

    def mean_of_group(value: Any, sign: int) -> Any:
        size = channels // groups
        weights = op.constant(np.full((groups, size, size, 1, 1), sign / size, np.float32))
        return op.group_convolution(value, _as(weights.output(0), dtype), [1, 1], [0, 0], [0, 0], [1, 1])

    positions = op.constant(np.array([2, 3]))
    centred = op.add(x, mean_of_group(op.reduce_mean(x, positions, keep_dims=True), -1))
    norm = op.reduce_l2(centred, positions, keep_dims=True)
    variance = mean_of_group(op.power(op.multiply(norm, number((height * width) ** -0.5)), number(2)), 1)
    inverse = op.power(op.add(variance, number(node.get_attributes()["epsilon"])), number(-0.5))
    scale, shift = (
        op.reshape(_as(_before_conversion(node.input_value(index)), dtype), of_channels, special_zero=False)
        for index in (1, 2)
    )
    return op.add(op.multiply(centred, op.multiply(inverse, scale)), shift)


def linear_layers(model: Any) -> None:
    """Products of one matrix [B, n] with several constant ones become one product, whose columns are then shared out.

    The embedding of the time goes through a layer for every block of a U-Net: at batch 1 each is a pass over weights
    that costs less than starting it. 0.65 to 0.18 ms in bf16.
    """
    found: dict[tuple[str, int, bool, bool], list[Any]] = defaultdict(list)
    for node in _of_type(model, "MatMul"):
        x, weights = node.input_value(0), node.input_value(1)
        flat = x.get_partial_shape().rank == weights.get_partial_shape().rank == openvino.Dimension(2)
        if flat and weights.get_node().get_type_name() == "Constant":
            how = node.get_attributes()
            key = (x.get_node().get_name(), x.get_index(), how["transpose_a"], how["transpose_b"])
            found[key].append(node)
    for (_, _, transpose_a, transpose_b), nodes in found.items():
        if len(nodes) < 2:
            continue
        weights = op.concat([node.input_value(1) for node in nodes], axis=0 if transpose_b else 1)
        whole = op.matmul(nodes[0].input_value(0), weights, transpose_a, transpose_b)
        widths = op.constant(np.array([node.get_output_shape(0)[1] for node in nodes]))
        parts = op.variadic_split(whole, op.constant(1), widths)
        for node, part in zip(nodes, parts.outputs(), strict=True):
            node.output(0).replace(part)


def tied_weights(model: Any) -> None:
    """Weights that are multiplied both as they are and transposed become two constants.

    OpenVINO 2026.4 packs such weights once and uses them for both, so half of the products are of the wrong matrix. A
    network with x W^T W was off by 80 %.
    """
    found: dict[str, list[Any]] = defaultdict(list)
    for node in _of_type(model, "MatMul"):
        if node.input_value(1).get_node().get_type_name() == "Constant":
            found[node.input_value(1).get_node().get_friendly_name()].append(node)
    for nodes in found.values():
        straight = [node for node in nodes if not node.get_attributes()["transpose_b"]]
        if len(straight) in (0, len(nodes)):
            continue
        weights = straight[0].input_value(1)
        turned = np.ascontiguousarray(weights.get_node().get_data(dtype=np.float32).swapaxes(-1, -2))
        other = _as(op.constant(turned).output(0), weights.get_element_type())
        for node in straight:
            how = node.get_attributes()["transpose_a"]
            node.output(0).replace(op.matmul(node.input_value(0), other, how, True).output(0))


def upsampled_convolutions(model: Any) -> None:
    """A 3x3 convolution of a picture with its pixels repeated 2x2: a transposed one, 4x4, stride 2, of the picture.

    Four of nine products in place of nine, and the large picture is never written. Repeating is itself a transposed
    convolution with a 2x2 kernel of ones; the 4x4 kernel is that one convolved with the 3x3. 1.04 times faster.
    """
    for node in _of_type(model, "Convolution"):
        resize, weights = node.input_value(0).get_node(), node.input_value(1)
        kernel = weights.get_node()
        if not _repeats_pixels(resize) or kernel.get_type_name() != "Constant":
            continue
        how = node.get_attributes()
        around = [*how["pads_begin"], *how["pads_end"], *how["strides"], *how["dilations"]]
        square = list(weights.get_shape()[2:]) == [3, 3]
        if not square or any(one != 1 for one in around) or how["auto_pad"] != "explicit":
            continue
        narrow = kernel.get_data(dtype=np.float32)
        wide = np.zeros((*narrow.shape[:2], 4, 4), np.float32)
        for top, left in product((0, 1), repeat=2):
            wide[:, :, top : top + 3, left : left + 3] += narrow
        transposed = op.constant(np.ascontiguousarray(wide[:, :, ::-1, ::-1].swapaxes(0, 1)))
        kernel = _as(transposed.output(0), weights.get_element_type())
        y = op.convolution_backprop_data(resize.input_value(0), kernel, [2, 2], None, [1, 1], [1, 1], [1, 1])
        node.output(0).replace(y.output(0))


def _repeats_pixels(node: Any) -> bool:
    """Whether a node makes every pixel of [B, C, H, W] 2x2 of the same."""
    if node.get_type_name() != "Interpolate" or node.get_output_partial_shape(0).is_dynamic:
        return False
    how, before, after = node.get_attributes(), node.get_input_partial_shape(0), list(node.get_output_shape(0))
    if before.is_dynamic or len(after) != 4:
        return False
    batch, channels, height, width = before.to_shape()
    kind = (how["mode"], how["coordinate_transformation_mode"], how["nearest_mode"])
    padded = any(how["pads_begin"]) or any(how["pads_end"])
    return (
        kind == ("nearest", "asymmetric", "floor") and not padded and after == [batch, channels, 2 * height, 2 * width]
    )


def _of_type(model: Any, name: str) -> list[Any]:
    return [node for node in model.get_ordered_ops() if node.get_type_name() == name]


def _before_conversion(value: Any) -> Any:
    """What a conversion to a wider type converts; any other value itself."""
    node = value.get_node()
    if node.get_type_name() != "Convert" or node.get_input_element_type(0).size >= value.get_element_type().size:
        return value
    return node.input_value(0) if node.get_input_element_type(0).is_real() else value


def _as(value: Any, dtype: Any) -> Any:
    return value if value.get_element_type() == dtype else op.convert(value, dtype.get_type_name()).output(0)
