"""An ONNX file from anybody: which input is x, which the time, which output the prediction.

What the file leaves open is asked for: an InputError names the candidates and the argument that decides. A role is
given by name alone only where exactly one candidate bears a customary name.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...engine.contract.condition import Condition
from ...engine.errors import InputError, shown
from ...engine.files.array_files import open_regular
from ...engine.files.external_weights import LARGEST_BYTES, tensors_of
from ...engine.files.loops import endless_loop
from ...engine.files.open_folder import read_at_most
from ...engine.json_fields import LONGEST_NAME
from ..described import Described

if TYPE_CHECKING:
    import onnx

LOWEST_OPSET = 13
CHUNK_BYTES = 1 << 24
RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")
X_NAMES = ("x", "x_t", "xt", "sample", "noisy", "noisy_sample", "latent", "latents", "image", "hidden_states", "input")
TIME_NAMES = (
    "t",
    "time",
    "times",
    "timestep",
    "timesteps",
    "sigma",
    "sigmas",
    "noise_level",
    "c_noise",
    "step",
    "steps",
)
LABEL_NAMES = ("label", "labels", "class_label", "class_labels", "y")
OUTPUT_NAMES = (
    "out",
    "output",
    "eps",
    "epsilon",
    "noise",
    "noise_pred",
    "out_sample",
    "denoised",
    "velocity",
    "v",
    "x0",
)
DTYPES = {1: "float32", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64", 16: "bfloat16"}
PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Port:
    """One input or output as the file declares it; a dimension is a number, or None when it is open."""

    name: str
    dtype: str
    dims: tuple[int | None, ...] | None  # None: the file does not say

    def __str__(self) -> str:
        dims = "?" if self.dims is None else ", ".join("?" if size is None else str(size) for size in self.dims)
        return f"{self.name} {self.dtype} [{dims}]"


@dataclass(frozen=True)
class Roles:
    """The roles found in a file. `conditions` pairs each condition with the file's own input."""

    x: Port
    time: Port
    output: Port
    conditions: tuple[tuple[Condition, Port], ...]
    shape: tuple[int, ...]
    precision: str
    fixed_batch: int | None

    @property
    def time_rank(self) -> int:
        """0 for a scalar, or for a single value [1] beside an x of any other batch size; else 1."""
        dims = self.time.dims or ()
        return 0 if not dims or (dims[0] == 1 and self.fixed_batch != 1) else 1


# Reading.
def read_model(path: Path) -> onnx.ModelProto:
    """The file's graph, without its external weights. Raises InputError when it is no usable ONNX file."""
    import onnx
    from google.protobuf.message import DecodeError

    if not path.exists():
        raise InputError(f"network '{path}': there is no such file; expected an .onnx file")
    if path.is_dir():
        raise InputError(f"network '{path}': this is a folder, expected an .onnx file")
    with open_regular(path) as file:
        content = read_at_most(file, LARGEST_BYTES)
    if content is None:
        raise InputError(f"network '{path}': larger than 2 GiB, which no ONNX file is; export it with external weights")
    if not content:
        raise InputError(f"network '{path}': the file is empty; export or copy it again")
    try:
        model = onnx.load_model_from_string(content, format="protobuf")
    except (DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"network '{path}': not an ONNX file, or truncated; export or copy it again") from error
    if not model.graph.node or not model.graph.input:
        raise InputError(f"network '{path}': not an ONNX network (a graph without nodes or inputs); export it again")
    if (endless := endless_loop(model)) is not None:
        raise InputError(f"network '{path}': {endless}; export it with a fixed number of turns")
    for node in _nodes(model):
        if node.op_type in RANDOM:
            raise InputError(
                f"network '{path}': its operator {node.op_type} '{node.name}' draws random numbers, so that two runs "
                "differ; export it in evaluation mode, or without that operator"
            )
    opset = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)
    if opset < LOWEST_OPSET:
        raise InputError(f"network '{path}': opset {opset}, expected {LOWEST_OPSET} or newer; export it again")
    for location, least_bytes in external_files(model).items():
        what = f"network '{path}': its weights file {shown(location)}"
        try:
            beside = (path.parent / location).resolve()
            inside, held = beside.is_relative_to(path.parent.resolve()), beside.is_file()
        except (OSError, ValueError):  # a name that no file can have
            raise InputError(f"{what} cannot be read; export it again") from None
        if not inside:
            raise InputError(f"{what} lies outside its folder; put it beside the .onnx file")
        if not held:
            raise InputError(f"{what} is missing; put it beside the .onnx file")
        if beside.stat().st_size < least_bytes:
            raise InputError(f"{what} is truncated; copy it again")
    return model


def external_files(model: onnx.ModelProto) -> dict[str, int]:
    """The external weight files the model names, with the least size in bytes that each must have.

    Raises InputError for an offset or a length that is no number.
    """
    sizes: dict[str, int] = {}
    for tensor in tensors_of(model):
        if tensor.external_data:
            entry = {one.key: one.value for one in tensor.external_data}
            numbers = [entry.get(name) or "0" for name in ("offset", "length")]
            if not all(re.fullmatch(r"[0-9]{1,18}", one) for one in numbers):
                raise InputError(
                    f"external weights of '{shown(tensor.name)[1:-1]}' have offset {shown(numbers[0])} and length "
                    f"{shown(numbers[1])}, expected numbers of bytes; export the network again"
                )
            location = entry.get("location", "")
            sizes[location] = max(sizes.get(location, 0), sum(map(int, numbers)))
    return sizes


def files_digest(paths: Iterable[Path]) -> bytes:
    """sha256 of the content of several files."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(CHUNK_BYTES):
                digest.update(block)
        digest.update(b"|")
    return digest.digest()


def _nodes(holder: onnx.ModelProto | onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.NodeProto]:
    """Of a graph or a function and of the graphs inside its nodes; of a model's graph and functions."""
    import onnx

    if isinstance(holder, onnx.ModelProto):
        for one in (holder.graph, *holder.functions):
            yield from _nodes(one)
        return
    for node in holder.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def ports(model: onnx.ModelProto, path: Path) -> tuple[list[Port], list[Port]]:
    """Inputs and outputs. Raises InputError when one is no tensor of a known dtype."""
    stored = {tensor.name for tensor in model.graph.initializer}  # old files list weights among the inputs
    groups: tuple[list[Port], list[Port]] = ([], [])
    for group, values in zip(groups, (model.graph.input, model.graph.output), strict=True):
        for value in values:
            if value.name in stored:
                continue
            if len(value.name) > LONGEST_NAME:
                raise InputError(f"network '{path}': the name {shown(value.name)} is too long; rename it")
            tensor = value.type.tensor_type
            if tensor.elem_type not in DTYPES:
                raise InputError(
                    f"network '{path}': '{value.name}' is no tensor of a known dtype; "
                    f"expected {', '.join(DTYPES.values())}"
                )
            dims = None
            if tensor.HasField("shape"):
                dims = tuple(one.dim_value if one.dim_value > 0 else None for one in tensor.shape.dim)
            group.append(Port(value.name, DTYPES[tensor.elem_type], dims))
    return groups


# Deciding.
def find_roles(model: onnx.ModelProto, path: Path, described: Described) -> Roles:
    """The roles in the model. Raises InputError that names the candidates and the argument when they are not clear."""
    shape, learned_sigma = described.shape, described.learned_sigma
    conditions = {name: one for name, one in described.conditions.items() if isinstance(one, Condition)}
    output = None if described.output is None else str(described.output)
    inputs, outputs = ports(model, path)
    states = [one for one in inputs if _can_be_x(one, shape)]
    if shape is not None and described.input is None and not states:
        raise InputError(
            f"network '{path}': no input takes shape {_join(shape)}: {listed(inputs)}; correct shape= (--shape)"
        )
    if len(states) > 1:  # x has the form of what is predicted
        states = [one for one in states if any(_alike(one, other, learned_sigma) for other in outputs)] or states
    x = _choose(path, "input", described.input, inputs, states, X_NAMES)
    rest = [one for one in inputs if one is not x]
    times = [one for one in rest if _can_be_time(one) and one.name not in conditions]
    if len(times) == 1 and times[0].name.lower() in LABEL_NAMES and described.time is None:
        times = []
    t = _choose(path, "time", described.time, rest, times, TIME_NAMES)
    sample = _sample_shape(path, x, shape)
    if x.dtype not in PRECISIONS:
        raise InputError(f"network '{path}': input '{x}', expected float32, float16 or bfloat16; export it again")
    if not _can_be_time(t) or t.dtype == "bool":
        raise InputError(f"network '{path}': time '{t}', expected a number: a scalar, [batch] or [batch, 1]")
    wanted = (2 * sample[0], *sample[1:]) if learned_sigma else sample
    fitting = [one for one in outputs if fits(one, wanted)] or (outputs if len(outputs) == 1 else [])
    out = _choose(path, "output", output, outputs, fitting, OUTPUT_NAMES)
    if not fits(out, wanted):
        doubled = not learned_sigma and fits(out, (2 * sample[0], *sample[1:]))
        hint = "correct shape= or output=, or give the score network"
        hint = "it also predicts a variance: give learned_sigma=True (--learned-sigma)" if doubled else hint
        raise InputError(f"network '{path}': output '{out}', expected [batch, {_join(wanted)}] like x; {hint}")
    batch = x.dims[0] if x.dims else None
    found = tuple(_condition(path, one, conditions, batch) for one in rest if one is not t)
    names = {name for condition, port in found for name in (condition.name, port.name)}
    for name in conditions:
        if name not in names:
            raise InputError(f"network '{path}': no input '{name}' for this condition; inputs: {listed(inputs)}")
    if t.dims and t.dims[0] not in (None, 1, batch):
        raise InputError(f"network '{path}': time '{t}' has another batch than '{x}'; export it with one batch size")
    return Roles(x, t, out, found, sample, PRECISIONS[x.dtype], batch)


def _choose(
    path: Path, role: str, asked: str | None, ports: list[Port], candidates: list[Port], customary: tuple[str, ...]
) -> Port:
    if asked is not None:
        for one in ports:
            if one.name == asked:
                return one
        raise InputError(f"network '{path}': there is no '{asked}' for {role}=; choose among {listed(ports)}")
    if len(candidates) == 1:
        return candidates[0]
    named = [one for one in candidates if one.name.lower() in customary]
    if len(named) == 1:
        return named[0]
    if not ports:
        raise InputError(f"network '{path}': there is no input for the {role}; expected a network of x and time")
    what = "several could be" if candidates else "none looks like"
    shown = listed(candidates or ports)
    raise InputError(f"network '{path}': {what} the {role}: {shown}; choose with {role}=NAME (--{role} NAME)")


def _can_be_x(port: Port, shape: tuple[int, ...] | None) -> bool:
    if not port.dtype.startswith(("float", "bfloat")):
        return False
    if shape is not None:
        return fits(port, shape)
    return port.dims is None or len(port.dims) >= 3 or (len(port.dims) == 2 and port.dims[1] != 1)


def _alike(x: Port, out: Port, learned_sigma: bool) -> bool:
    if x.dims is None or out.dims is None or len(x.dims) != len(out.dims):
        return False
    first = 2 if learned_sigma else 1
    return all(None in pair or pair[0] == pair[1] for pair in zip(x.dims[first:], out.dims[first:], strict=True))


def _can_be_time(port: Port) -> bool:
    return port.dims is not None and len(port.dims) <= 4 and all(size == 1 for size in port.dims[1:])


def fits(port: Port, sample: tuple[int, ...]) -> bool:
    """Whether a port can be [batch, *sample]."""
    if port.dims is None:
        return True
    if len(port.dims) != len(sample) + 1:
        return False
    return all(size is None or size == want for size, want in zip(port.dims[1:], sample, strict=True))


def _sample_shape(path: Path, x: Port, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    if shape is not None:
        if not fits(x, shape):
            raise InputError(
                f"network '{path}': input '{x}' does not take shape {_join(shape)}; correct shape= (--shape)"
            )
        return shape
    sizes = [size for size in (x.dims or ())[1:] if size is not None]
    if x.dims is None or len(sizes) != len(x.dims) - 1 or not sizes:
        raise InputError(f"network '{path}': input '{x}' leaves its size open; give shape= (--shape 3x64x64)")
    return tuple(sizes)


def _condition(path: Path, port: Port, given: Mapping[str, Condition], batch: int | None) -> tuple[Condition, Port]:
    name = re.sub(r"\W", "_", port.name)
    name = name if name.isidentifier() else f"_{name}"
    said = given.get(port.name) or given.get(name)
    if not port.dims or port.dims[0] not in (None, batch):
        raise InputError(
            f"network '{path}': input '{port}' has no batch dimension like x, so it cannot be a condition; "
            "export it with one value for each sample"
        )
    if port.dtype == "float64":
        raise InputError(f"network '{path}': input '{port}', expected float32 or an integer; export it again")
    if said is None:
        sizes = tuple(size for size in port.dims[1:] if size is not None)
        if len(sizes) != len(port.dims) - 1:
            raise InputError(
                f"network '{path}': input '{port}' leaves its size open; give conditions={{'{name}': "
                f"Condition('{name}', '{port.dtype}', shape)}} (--condition {name}:{port.dtype}:77x768)"
            )
        return Condition(name, port.dtype, sizes), port
    if said.dtype != port.dtype or not fits(port, said.shape):
        raise InputError(
            f"network '{path}': condition '{name}' was given as {said.dtype} {list(said.shape)}, "
            f"but the file says '{port}'"
        )
    return said, port


def _join(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def listed(ports: list[Port]) -> str:
    """Ports in a message."""
    return "; ".join(map(str, ports)) or "none"
