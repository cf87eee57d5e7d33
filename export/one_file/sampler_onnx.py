"""The whole sampler of an engine as one ONNX model: noise and conditions in, samples (of a latent model: latents) out,
and if asked for pixels, see sampler_pixels.py.

    noise [batch, *shape] float32, conditions [batch, ...]  ->  samples [batch, *shape] float32

A Loop runs once an evaluation; its body is the network and one update, and the program is four small tables that the
body reads at the iteration's number (states S float32 [B, batch, *shape], all in ONNX's own operators, opset 13 up):

    out  = network(cast(c_in_n S[0]), time_n, conditions)
    z    = cast(out)                     or  clip(p_n S[0] + q_n cast(out), -clip, clip)
    S    = [W_n | w_n] @ [S ; z]         + V_n xi_n of a stochastic program, xi from the input steps_noise
                                         + U_n cast(out) of one that keeps the network's eps

steps_noise is float32 [K, batch, *shape], the K draws of the program in their order. A sampler from seeds has the input
seeds, uint64 [batch], in the place of noise and steps_noise, see sampler_noise.py.

So the weights stand once in the file and once in memory, whatever the NFE. They are the body's own initializers, not
the outer graph's: ONNX Runtime 1.32 re-lays convolution weights only where they belong to the graph it optimises
(`fashion`, 8 evaluations, one core: 51 ms of CPU time, 69 ms with weights in the outer graph).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...engine.api import Engine
from ...engine.artifact import Artifact, check_in_place, read_artifact
from ...engine.atomic import folder_beside
from ...engine.compiler.program import Program
from ...engine.contract.contract import Contract
from ...engine.errors import BackendError, EngineFileError, InputError, first_line
from ...engine.files.outside import check_outside
from .sampler_noise import LOWEST_OPSET as OPSET_OF_NOISE
from .sampler_noise import PREFIX as NOISE_PREFIX
from .sampler_noise import Nodes, SeededNoise
from .sampler_pixels import add_pixels, shape_of_pixels
from .sampler_weights import place, take_external_data

if TYPE_CHECKING:
    import onnx

LOWEST_OPSET = 13
LOWEST_IR = 8
ERRORS_ONLY = 3
NETWORK_PREFIX = "network/"
SAMPLER_PREFIX = "sampler/"
TOLERANCE = 1e-5  # of the largest value, for float32 networks; the same arithmetic in another order
HALF_TOLERANCE = 1e-2  # float16 networks: one rounding of the input may differ and goes through the whole network
EIGHT_BITS_TOLERANCE = 5e-2  # int8 or fp8 inside: a value on the edge of a step may fall to the other side
LARGEST_MESSAGE_BYTES = (1 << 31) - 1
LEVELS = 1  # of 255: pixels whose rounding falls the other way


def export_sampler(
    engine: str | os.PathLike[str],
    out: str | os.PathLike[str],
    nfe: int | None = None,
    *,
    pixels: bool = False,
    from_seeds: bool = False,
    check: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Write the sampler of the engine directory `engine` for `nfe` to the file `out` and return its path.

    pixels: give it a second output `pixels`, uint8 [batch, H, W, C], through the decoder of a latent model.
    from_seeds: seeds uint64 [batch] are its input, and it makes the noise itself; for networks of opset 18 up.
    Weights beside network.onnx come to lie beside `out`, as `out`.HEX.data with the beginning of their SHA-256; those
    of a former sampler at `out` are removed. check: before anything is at `out`, run it in ONNX Runtime and compare
    one batch with the engine's. The former file stands until then.
    Raises InputError, EngineFileError (no engine, an opset too old), BackendError (the two differ).
    """
    import onnx

    say: Callable[[str], None] = progress or (lambda line: None)
    artifact = read_artifact(engine)
    program = artifact.program(nfe)
    _check_fit(artifact.contract)
    if pixels:
        shape_of_pixels(artifact)
    target = _target(out)
    say(f"reading {artifact.network_path}")
    network = onnx.load(str(artifact.network_path), load_external_data=False)
    model = make_sampler(network, artifact.contract, program, from_seeds=from_seeds)
    if pixels:
        add_pixels(model, artifact, rename)
    notes = {"solver": program.solver, "nfe": str(program.nfe), "schedule": program.schedule, "program": program.digest}
    onnx.helper.set_model_props(model, {f"pfdiff.{key}": value for key, value in notes.items()})

    try:
        with folder_beside(target) as folder:
            part = folder / target.name
            data = take_external_data(model, artifact, part)
            check_in_place(artifact)  # what was read since is of the engine that was verified
            if model.ByteSize() > LARGEST_MESSAGE_BYTES:
                raise InputError(
                    f"the network is {model.ByteSize()} bytes in one file, ONNX holds 2 GiB; export it external"
                )
            part.write_bytes(model.SerializeToString(deterministic=True))
            del model, network
            if check:
                say("comparing with the engine")
                _compare(artifact, program.nfe, part, pixels=pixels, from_seeds=from_seeds)
            place(part, data, target)
    except OSError as error:
        raise InputError(
            f"cannot write '{target}': {error.strerror or error}; nothing was changed, free some space or choose "
            "another place"
        ) from error
    latents = "; its samples are latents, the engine's decoder.onnx decodes them" if artifact.decoder else ""
    latents = "; pixels are its second output" if pixels else latents
    say(f"{target}: {program.nfe} evaluations, {program.solver}{latents}")
    return target


def _target(out: str | os.PathLike[str]) -> Path:
    target = Path(out)
    if target.suffix != ".onnx" or not target.parent.is_dir():
        raise InputError(f"out '{target}', expected a file ending in .onnx in a folder that exists")
    check_outside(target)
    return target


def make_sampler(
    network: onnx.ModelProto, contract: Contract, program: Program, *, from_seeds: bool = False
) -> onnx.ModelProto:
    """The sampler's model from network.onnx and a program, cast to float32 once; external weights keep their place.

    `network` is taken apart, do not use it afterwards. Raises EngineFileError for an opset below 13, or 18 from seeds.
    """
    from onnx import TensorProto, helper

    version = max((one.version for one in network.opset_import if one.domain in ("", "ai.onnx")), default=0)
    if version < LOWEST_OPSET:
        raise EngineFileError(f"network.onnx has opset {version}, a sampler needs {LOWEST_OPSET} or newer")
    if from_seeds and version < OPSET_OF_NOISE:
        raise EngineFileError(
            f"network.onnx has opset {version}, noise from seeds needs {OPSET_OF_NOISE} or newer; leave from_seeds= "
            "(--from-seeds) out"
        )
    elements = {one.name: one.type.tensor_type.elem_type for one in network.graph.input}
    shape: list[Any] = [contract.fixed_batch or "batch", *contract.shape]
    inputs = [helper.make_tensor_value_info("noise", TensorProto.FLOAT, shape)]
    if from_seeds:
        inputs = [helper.make_tensor_value_info("seeds", TensorProto.UINT64, shape[:1])]
    inputs += [
        helper.make_tensor_value_info(one.name, elements[one.name], [shape[0], *one.shape])
        for one in contract.conditions
    ]
    if program.noises and not from_seeds:
        inputs.append(helper.make_tensor_value_info("steps_noise", TensorProto.FLOAT, [program.noises, *shape]))
    around = Nodes(NOISE_PREFIX)
    noise = SeededNoise(around, "seeds", contract.shape) if from_seeds else None
    start = noise.start(around) if noise else "noise"
    body = _body(network.graph, contract, program, elements[contract.input], noise)

    # S = init * noise, the loop, S[0].
    p = SAMPLER_PREFIX
    column = np.float32(program.init).reshape(-1, *(1 for _ in shape))
    constants = {"init": column, "evaluations": np.int64(program.nfe), "go": np.bool_(True), "first": np.int64(0)}
    nodes = [
        *around.nodes,
        helper.make_node("Mul", [start, f"{p}init"], [f"{p}start"]),
        helper.make_node("Shape", [f"{p}start"], [f"{p}shape"]),
        helper.make_node("Loop", [f"{p}evaluations", f"{p}go", f"{p}start"], [f"{p}end"], body=body),
        helper.make_node("Gather", [f"{p}end", f"{p}first"], ["samples"], axis=0),
    ]
    graph = helper.make_graph(
        nodes,
        f"sampler of {contract.name}",
        inputs,
        [helper.make_tensor_value_info("samples", TensorProto.FLOAT, shape)],
        [*_initializers(constants), *_initializers(around.constants, "")],
    )
    return helper.make_model(
        graph,
        opset_imports=network.opset_import,
        functions=network.functions,
        ir_version=max(network.ir_version, LOWEST_IR),
        producer_name="pfdiff",
    )


def _body(
    network: onnx.GraphProto, contract: Contract, program: Program, element: int, noise: SeededNoise | None
) -> onnx.GraphProto:
    """One evaluation: (n, go, S) -> (go, S)."""
    from onnx import TensorProto, helper

    # Conditions are inputs of the sampler under their own names; a body sees the names around it.
    conditions = {one.name: one.name for one in contract.conditions}
    ends = {contract.input: "x", contract.time: "t", contract.output: "out"}
    rename(network, {**{name: SAMPLER_PREFIX + new for name, new in ends.items()}, **conditions})
    nodes: list[onnx.NodeProto] = []
    rank = 1 + len(contract.shape)
    drawing = Nodes(f"{NOISE_PREFIX}draw/")

    def add(operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        names = [SAMPLER_PREFIX + one for one in inputs]
        nodes.append(helper.make_node(operator, names, [SAMPLER_PREFIX + output], **attributes))
        return output

    # The network's input and time.
    update = np.concatenate([program.W, program.w[:, :, None]], axis=2).astype(np.float32)
    constants: dict[str, Any] = {"zero": np.int64(0), "update": update}
    state = add("Gather", ["S", "zero"], "state", axis=0)
    constants |= _feed(add, contract, program, element, state)
    nodes.extend(network.node)

    # The update.
    z = raw = add("Cast", ["out"], "z", to=TensorProto.FLOAT)
    if program.clip is not None:
        bound = np.float32(program.clip)
        constants |= {"p": np.float32(program.p), "q": np.float32(program.q), "low": -bound, "high": bound}
        from_state = add("Mul", [state, add("Gather", ["p", "n"], "p_n")], "from_state")
        from_out = add("Mul", [z, add("Gather", ["q", "n"], "q_n")], "from_out")
        z = add("Clip", [add("Add", [from_state, from_out], "x0"), "low", "high"], "x0_clipped")
    constants |= {"axis": np.array([0]), "flat": np.array([program.buffers + 1, -1])}
    rows = add("Concat", ["S", add("Unsqueeze", [z, "axis"], "z_row")], "rows", axis=0)
    matrix = add("Reshape", [rows, "flat"], "matrix")
    product = add("MatMul", [add("Gather", ["update", "n"], "update_n"), matrix], "product")
    plain = not program.noises and not program.keeps_eps
    add("Reshape", [product, "shape"], "S_next" if plain else "S_product")
    if program.keeps_eps:  # such a program draws no noise
        constants["U"] = np.float32(program.U).reshape(*program.U.shape, *(1 for _ in range(rank)))
        add("Add", ["S_product", add("Mul", [add("Gather", ["U", "n"], "U_n"), raw], "kept")], "S_next")
    if program.noises:
        nodes += _noise_added(drawing, program, noise, rank)
    add("Identity", ["go"], "go_next")

    states = [program.buffers, contract.fixed_batch or "batch", *contract.shape]
    body = _graph(nodes, states, [*_initializers(constants), *_initializers(drawing.constants, "")])
    body.initializer.extend(network.initializer)
    body.sparse_initializer.extend(network.sparse_initializer)
    return body


def _noise_added(drawing: Nodes, program: Program, noise: SeededNoise | None, rank: int) -> list[onnx.NodeProto]:
    """S_next = S_product + V_n xi_n, xi of the seeds or from steps_noise."""
    from onnx import helper

    factors = np.float32(program.V).reshape(*program.V.shape, *(1 for _ in range(rank)))
    V_n = drawing.add("Gather", factors, f"{SAMPLER_PREFIX}n", axis=0)
    if noise:
        xi = noise.draw(drawing, drawing.add("Add", f"{SAMPLER_PREFIX}n", np.int64(1)))
    else:
        place = np.zeros(program.nfe, np.int64)  # in steps_noise; where nothing is drawn, V is 0
        place[list(program.draws)] = np.arange(program.noises)
        xi = drawing.add("Gather", "steps_noise", drawing.add("Gather", place, f"{SAMPLER_PREFIX}n"), axis=0)
    added = drawing.add("Mul", V_n, xi)
    return [*drawing.nodes, helper.make_node("Add", [f"{SAMPLER_PREFIX}S_product", added], [f"{SAMPLER_PREFIX}S_next"])]


def _feed(add: Callable[..., str], contract: Contract, program: Program, element: int, state: str) -> dict[str, Any]:
    """Adds the network's x and t of evaluation n; the constants that they read."""
    constants: dict[str, Any] = {"times": contract.feed_times(program.network_times)}
    state_in = state
    if np.any(program.c_in != 1):
        constants["c_in"] = np.float32(program.c_in)
        state_in = add("Mul", [state, add("Gather", ["c_in", "n"], "c_n")], "scaled")
    add("Cast", [state_in], "x", to=element)
    if contract.time_rank:
        constants["one"] = np.array([1])  # the states' axis 1 is the batch
        add("Expand", [add("Gather", ["times", "n"], "t_n"), add("Gather", ["shape", "one"], "batch")], "t")
    else:
        add("Gather", ["times", "n"], "t")
    return constants


def _graph(
    nodes: Sequence[onnx.NodeProto], states: Sequence[Any], constants: Sequence[onnx.TensorProto]
) -> onnx.GraphProto:
    """The nodes of one evaluation with the inputs and outputs that a Loop asks of its body."""
    from onnx import TensorProto, helper

    return helper.make_graph(
        nodes,
        "evaluation",
        [
            helper.make_tensor_value_info(f"{SAMPLER_PREFIX}n", TensorProto.INT64, []),
            helper.make_tensor_value_info(f"{SAMPLER_PREFIX}go", TensorProto.BOOL, []),
            helper.make_tensor_value_info(f"{SAMPLER_PREFIX}S", TensorProto.FLOAT, states),
        ],
        [
            helper.make_tensor_value_info(f"{SAMPLER_PREFIX}go_next", TensorProto.BOOL, []),
            helper.make_tensor_value_info(f"{SAMPLER_PREFIX}S_next", TensorProto.FLOAT, states),
        ],
        constants,
    )


def _initializers(constants: Mapping[str, Any], prefix: str = SAMPLER_PREFIX) -> list[onnx.TensorProto]:
    from onnx import numpy_helper

    return [numpy_helper.from_array(np.asarray(value), prefix + name) for name, value in constants.items()]


def rename(graph: onnx.GraphProto, names: Mapping[str, str], prefix: str = NETWORK_PREFIX) -> None:
    """Give every value of `graph` and of the graphs inside it its name in `names`, or one of its own.

    A body may not reuse a name of the graph around it, and a foreign network may use any.
    """

    def new(name: str) -> str:
        return names.get(name, prefix + name) if name else name  # "" is an input left out

    for node in graph.node:
        node.input[:] = map(new, node.input)
        node.output[:] = map(new, node.output)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                rename(inner, names, prefix)
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = new(value.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = new(sparse.values.name)
        sparse.indices.name = new(sparse.indices.name)
    del graph.value_info[:]


# Weights beside the file.
# Checks.
def _compare(artifact: Artifact, nfe: int, part: Path, *, pixels: bool, from_seeds: bool) -> None:
    """Raise BackendError unless the sampler gives what the engine gives, for one batch of noise or of seeds."""
    import onnxruntime

    contract = artifact.contract
    batch = contract.fixed_batch or artifact.batch[0]
    drawn: dict[str, Any] = {"seeds": np.arange(batch, dtype=np.uint64)}
    if not from_seeds:
        noise = np.random.default_rng(0).standard_normal((batch, *contract.shape), np.float32)
        noises = artifact.programs[nfe].noises
        xi = np.random.default_rng(1).standard_normal((noises, *noise.shape), np.float32)
        drawn = {"noise": noise, **({"steps_noise": xi} if noises else {})}
    given = contract.stand_ins
    with Engine.open(artifact, backend="onnxruntime") as engine:
        wanted = engine.sample(nfe=nfe, **drawn, **given).numpy()
        shown = engine.images(nfe=nfe, **drawn, **given).numpy() if pixels else None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    try:
        session = onnxruntime.InferenceSession(str(part), options, providers=["CPUExecutionProvider"])
        feeds = {one.name: one.values(given.get(one.name), batch) for one in contract.conditions}
        for one in contract.conditions:
            feeds[one.name] = feeds[one.name].astype(one.dtype)
        outputs = [np.asarray(one) for one in session.run(None, {**drawn, **feeds})]
        found = outputs[0]
    except Exception as error:  # its exceptions have no common base of their own
        raise BackendError(f"onnxruntime refuses the sampler: {first_line(error)}") from error
    tolerance = TOLERANCE if contract.precision == "fp32" else HALF_TOLERANCE
    if any(key.endswith(" inside") for key in artifact.provenance):
        tolerance = EIGHT_BITS_TOLERANCE
    difference = float(np.abs(found - wanted).max() / max(1.0, float(np.abs(wanted).max())))
    if not difference <= tolerance:
        raise BackendError(f"the sampler differs from the engine by {difference:.1e}, expected at most {tolerance:g}")
    if shown is not None:
        apart = np.abs(outputs[1].astype(np.int16) - shown).max()
        if apart > LEVELS:
            raise BackendError(f"the sampler's pixels differ from the engine's by {apart} levels, expected {LEVELS}")


def _check_fit(contract: Contract) -> None:
    if contract.precision == "bf16":
        raise InputError("this engine is bf16, which onnxruntime has not on a CPU; build with precision fp32 or fp16")
    for one in contract.conditions:
        if one.name in ("samples", "steps_noise", "pixels"):
            what = "input" if one.name == "steps_noise" else "output"
            raise InputError(f"the network has a condition '{one.name}', which is the sampler's {what}; rename it")
