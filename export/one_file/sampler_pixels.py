"""The end of the one-file sampler: samples become pixels, through the engine's decoder where it has one.

    pixels [batch, H, W, C] uint8, of videos [batch, frames, H, W, C]
    level = (x - low) * (255 / (high - low)), clamped to 0..255, rounded to the nearest integer, halves to even

The decoder's nodes and weights stand in the outer graph, behind the Loop. It is run once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ...engine.artifact import DECODER, Artifact
from ...engine.errors import EngineFileError, InputError

if TYPE_CHECKING:
    import onnx

PREFIX = "decoder/"
OUTPUT = "pixels"


def shape_of_pixels(artifact: Artifact) -> tuple[int, ...]:
    """[C, H, W] or [C, frames, H, W] of what is shown. Raises InputError when samples are no pictures."""
    shape = artifact.decoder.image if artifact.decoder else artifact.contract.shape
    if len(shape) not in (3, 4) or (artifact.decoder is None and len(shape) != 3):
        raise InputError(f"samples of shape {list(shape)} are no pictures [C, H, W]; leave pixels= (--pixels) out")
    if artifact.decoder is not None and artifact.decoder.precision == "bf16":
        raise InputError("this engine's decoder is bf16, which onnxruntime has not on a CPU; leave --pixels out")
    return shape


def add_pixels(model: onnx.ModelProto, artifact: Artifact, rename: Callable[[onnx.GraphProto, Any, str], None]) -> None:
    """Give the sampler `model` the output `pixels`; external weights keep their place in the engine.

    Raises InputError, EngineFileError (a decoder of another opset).
    """
    import onnx
    from onnx import TensorProto, helper

    shape = shape_of_pixels(artifact)
    graph = model.graph
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, Any] = {}

    def add(operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def constant(name: str, value: Any) -> str:
        constants[PREFIX + name] = value
        return PREFIX + name

    shown = "samples"
    contract = artifact.decoder
    if contract is not None:
        decoder = onnx.load(str(artifact.path / DECODER), load_external_data=False)
        _check_versions(model, decoder)
        element = next(one.type.tensor_type.elem_type for one in decoder.graph.input if one.name == contract.input)
        ends = {contract.input: PREFIX + "latents", contract.output: PREFIX + "image"}
        rename(decoder.graph, ends, PREFIX + "inside/")
        add("Cast", ["samples"], ends[contract.input], to=element)
        nodes.extend(decoder.graph.node)
        graph.initializer.extend(decoder.graph.initializer)
        graph.sparse_initializer.extend(decoder.graph.sparse_initializer)
        shown = add("Cast", [ends[contract.output]], PREFIX + "decoded", to=TensorProto.FLOAT)
    # Levels, channels last.
    low, high = artifact.contract.data_range
    moved = add("Sub", [shown, constant("low", np.float32(low))], PREFIX + "moved")
    level = add("Mul", [moved, constant("factor", np.float32(255.0 / (high - low)))], PREFIX + "level")
    bounds = [constant("black", np.float32(0)), constant("white", np.float32(255))]
    level = add("Round", [add("Clip", [level, *bounds], PREFIX + "clipped")], PREFIX + "rounded")
    level = add("Cast", [level], PREFIX + "bytes", to=TensorProto.UINT8)
    add("Transpose", [level], OUTPUT, perm=[0, *range(2, len(shape) + 1), 1])
    batch = artifact.contract.fixed_batch or "batch"
    graph.node.extend(nodes)
    graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(one), name) for name, one in constants.items())
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.UINT8, [batch, *shape[1:], shape[0]]))


def _check_versions(model: onnx.ModelProto, decoder: onnx.ModelProto) -> None:
    """Two models in one file share its operators' versions, and the names of its functions."""
    versions = {one.domain: one.version for one in model.opset_import}
    for one in decoder.opset_import:
        if versions.setdefault(one.domain, one.version) != one.version:
            raise EngineFileError(
                f"decoder.onnx has opset {one.version}, network.onnx {versions[one.domain]}, and one file has one; "
                "export the decoder with that opset, or leave pixels= (--pixels) out"
            )
    known = {one.domain for one in model.opset_import}
    model.opset_import.extend(one for one in decoder.opset_import if one.domain not in known)
    names = {(one.domain, one.name) for one in model.functions}
    if clash := [one.name for one in decoder.functions if (one.domain, one.name) in names]:
        raise EngineFileError(f"decoder.onnx and network.onnx both have a function {clash[0]}; leave --pixels out")
    model.functions.extend(decoder.functions)
    model.ir_version = max(model.ir_version, decoder.ir_version)
