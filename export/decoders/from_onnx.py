"""A decoder given as an ONNX file: renamed, scaling and shift put before it, its weights and operators as they are."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np

from ...engine.artifact import DECODER
from ...engine.contract.contract import Contract, DecoderContract
from ...engine.errors import InputError
from ...engine.progress import Lines
from ..check import Array, OnnxRun, TrialInputs, check_export
from ..sources.from_onnx import free_names
from ..sources.onnx_roles import PRECISIONS, Port, external_files, files_digest, fits, listed, ports, read_model
from ..to_onnx import save_model
from .options import FORMAT, Decoder, constants, image_shape

if TYPE_CHECKING:
    import onnx_ir


@final
class OnnxDecoder:
    """The file at `path` and the `contract` of the decoder.onnx made from it, in the file's own precision."""

    module = None  # there is none to run in place of the file

    def __init__(self, path: Path, options: Decoder, samples: Contract) -> None:
        self.path = path
        model = read_model(path)
        self._files = (path, *(path.parent / name for name in sorted(external_files(model))))
        latents, image = _roles(path, *ports(model, path), samples)
        self._names = latents.name, image.name
        batch = latents.dims[0] if latents.dims else None
        if None not in (batch, samples.fixed_batch) and batch != samples.fixed_batch:
            raise InputError(
                f"decoder '{path}': it takes batches of {batch}, the network batches of {samples.fixed_batch}; "
                "export it with an open batch"
            )
        precision = PRECISIONS[latents.dtype]
        if options.precision not in (None, precision):
            raise InputError(
                f"decoder '{path}' holds {precision} weights and is not converted to {options.precision}; "
                f"leave precision= out, or give the nn.Module"
            )
        scaling, shift = constants(options, None)
        contract = DecoderContract(path.stem, samples.shape, (1, 1, 1), scaling=scaling, shift=shift)
        zeros = np.zeros((batch or 1, *contract.shape), np.float32)
        shape = image_shape(contract.name, self._run((zeros,)).shape, len(zeros))
        self.contract = replace(contract, image=shape, fixed_batch=batch, precision=precision)

    @cached_property
    def _run(self) -> OnnxRun:
        return OnnxRun(self.path, self._names[:1], self._names[1])

    @cached_property
    def digest(self) -> str:
        """sha256 hex of the file, its external weights and the contract."""
        words = json.dumps(self.contract.to_dict(), sort_keys=True)
        return hashlib.sha256(b"|".join((FORMAT.encode(), words.encode(), files_digest(self._files)))).hexdigest()

    def write(self, folder: Path, precision: str, progress: Lines) -> DecoderContract:
        """Write decoder.onnx, compare it with the file; `precision`, the network's, changes nothing here."""
        progress(f"writing the decoder {self.contract.name} ({self.contract.precision})")
        path = folder / DECODER
        save_model(self._rewritten(), path)
        if self.contract.precision != "bf16":  # there are no CPU kernels to run those with
            check_export(path, replace(self.contract, precision="fp32"), self._evaluate)
        return self.contract

    def _evaluate(self, case: TrialInputs) -> Array:
        scaling, shift = _column(self.contract, "scaling"), _column(self.contract, "shift")
        return self._run((case.x / scaling + shift,))

    def _rewritten(self) -> onnx_ir.Model:
        import onnx_ir

        model = onnx_ir.load(self.path)
        graph, contract = model.graph, self.contract
        latents = next(value for value in graph.inputs if value.name == self._names[0])
        image = next(value for value in graph.outputs if value.name == self._names[1])
        graph.outputs[:] = [image]
        free_names(graph, [(latents, contract.input), (image, contract.output)])
        batch = contract.fixed_batch or "batch"
        latents.shape = onnx_ir.Shape([batch, *contract.shape])
        image.shape = onnx_ir.Shape([batch, *contract.image])
        if (contract.scaling, contract.shift) != (1, 0):
            _scale(graph, latents, contract)
        return model


def _roles(path: Path, inputs: list[Port], outputs: list[Port], samples: Contract) -> tuple[Port, Port]:
    """The one input, which takes the network's samples, and the one output of an image's rank."""
    if len(inputs) != 1 or inputs[0].dtype not in PRECISIONS or not fits(inputs[0], samples.shape):
        raise InputError(
            f"decoder '{path}': it takes {listed(inputs)}, expected one input of floats [batch, "
            f"{', '.join(map(str, samples.shape))}], the samples of network '{samples.name}'"
        )
    images = [one for one in outputs if one.dims is None or len(one.dims) == 4]
    if len(images) != 1:
        raise InputError(f"decoder '{path}': it returns {listed(outputs)}, expected one image [batch, C, H, W]")
    return inputs[0], images[0]


def _scale(graph: onnx_ir.Graph, latents: onnx_ir.Value, contract: DecoderContract) -> None:
    """latents / scaling + shift in float32, before the first node."""
    import onnx_ir

    assert latents.dtype is not None
    single, given = onnx_ir.DataType.FLOAT, latents.dtype
    fresh = onnx_ir.Value(name=contract.input, shape=latents.shape, type=onnx_ir.TensorType(given))
    latents.name = f"{contract.input}_scaled"
    graph.inputs[graph.inputs.index(latents)] = fresh
    nodes, last = [], fresh

    def add(operator: str, *others: onnx_ir.Value, **attributes: int) -> None:
        nonlocal last
        nodes.append(onnx_ir.node(operator, [last, *others], attributes, name=f"pfdiff_{operator.lower()}"))
        last = nodes[-1].outputs[0]
        last.name = f"pfdiff_{operator.lower()}_{len(nodes)}"

    if given != single:
        add("Cast", to=single)
    for operator, field in (("Div", "scaling"), ("Add", "shift")):
        column = _column(contract, field)
        value = onnx_ir.Value(
            name=f"pfdiff_{field}",
            shape=onnx_ir.Shape(column.shape),
            type=onnx_ir.TensorType(single),
            const_value=onnx_ir.tensor(column, name=f"pfdiff_{field}"),
        )
        graph.register_initializer(value)
        add(operator, value)
    if given != single:
        add("Cast", to=given)
    onnx_ir.convenience.replace_all_uses_with(latents, last)
    graph.insert_before(graph[0], nodes)


def _column(contract: DecoderContract, field: str) -> Array:
    """Scaling or shift as float32 [1 or c, 1, ...]."""
    return np.asarray(getattr(contract, field), np.float32).reshape(-1, *[1] * (len(contract.shape) - 1))
