"""ONNX -> TensorRT plan, for `tensorrt` 10 and 11 and `tensorrt_rtx`, by one code path.

A plan is TensorRT's serialized network for one GPU and one TensorRT version. Networks are strongly typed: precision is
the ONNX file's own dtypes, and TF32 is off unless asked for. Each batch bucket is an optimisation profile with one
fixed shape, which is what a captured graph runs.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, final

from ..artifact import DECODER, NETWORK, PLANS, Artifact
from ..atomic import replacing
from ..contract.contract import AnyContract
from ..errors import BackendError
from ..progress import BuildProgress
from .key import PLAN_DTYPES, PlanKey, check_target, load_flavour

WORKSPACE_BYTES = 4 << 30


def build_plan(artifact: Artifact, key: PlanKey, progress: BuildProgress | None = None) -> bytes:
    """The serialized network of the artifact's `key.file` for `key`; RTX builds for any GPU without having one.

    Raises BackendError: not installed, an operator refused (named), an unsupported compute capability, other dtypes in
    the network than its contract says.
    """
    trt = load_flavour(key.flavour)
    logger = _Log(trt)
    try:
        builder = trt.Builder(logger.trt)
    except TypeError:  # pybind11 makes one of the null pointer that TensorRT returns
        reason = logger.last or "no CUDA driver, or one too old"
        raise BackendError(f"{key.flavour} {key.version} cannot build here: {reason}") from None
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger.trt)
    if not parser.parse_from_file(str(artifact.path / key.file)):
        what = {NETWORK: "network", DECODER: "decoder"}.get(key.file, key.file)
        raise BackendError(f"{key.flavour} {key.version} refuses the {what}: {_parser_error(parser)}")
    _check_dtypes(network, artifact.contracts[key.file])

    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    (config.set_flag if key.tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
    if key.flavour == "tensorrt_rtx":
        _set_target(trt, config, key)
    for size in key.batch:
        config.add_optimization_profile(_profile(builder, network, size))
    cache, timing = timing_path(artifact, key), None
    if key.flavour == "tensorrt":  # RTX has none: it compiles for the GPU when the plan is loaded
        timing = config.create_timing_cache(cache.read_bytes() if cache.exists() else b"")
        config.set_timing_cache(timing, False)
    if progress is not None:
        config.progress_monitor = _monitor(trt, progress)

    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BackendError(f"{key.flavour} {key.version} cannot build for {key.capability}: {logger.last}")
    if timing is not None:
        with contextlib.suppress(OSError):  # a folder that is read-only: the next build takes its time again
            cache.parent.mkdir(exist_ok=True)
            with replacing(cache) as part:
                part.write_bytes(bytes(timing.serialize()))
    return bytes(plan)


def timing_path(artifact: Artifact, key: PlanKey) -> Path:
    """Where TensorRT's timings of kernels on this GPU are kept, with which the next build here is faster."""
    return artifact.path / PLANS / f"{key.flavour}-{key.version}-{key.capability}.timing"


def _set_target(trt: Any, config: Any, key: PlanKey) -> None:
    check_target(key.flavour, key.capability)
    target = getattr(trt.ComputeCapability, key.capability.upper())
    config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)  # nothing is allocated at run time: graphs can be captured
    config.num_compute_capabilities = 1
    config.set_compute_capability(target, 0)


def _profile(builder: Any, network: Any, size: int) -> Any:
    """One fixed shape: minimum, best and maximum are the bucket."""
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(size if extent == -1 else extent for extent in tuple(tensor.shape))
        profile.set_shape(tensor.name, shape, shape, shape)
    return profile


def _check_dtypes(network: Any, contract: AnyContract) -> None:
    """Raises BackendError unless input and output have the contract's precision: nothing changes silently."""
    expected = {contract.input: PLAN_DTYPES[contract.input_dtype], contract.output: PLAN_DTYPES[contract.precision]}
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    for tensor in [*inputs, *outputs]:
        wanted = expected.get(tensor.name, tensor.dtype.name)
        if tensor.dtype.name != wanted:
            raise BackendError(
                f"the network's '{tensor.name}' is {tensor.dtype.name}, {contract.precision} means {wanted}; "
                "export it again in that precision"
            )


def _parser_error(parser: Any) -> str:
    """The first error, with its operator."""
    if not parser.num_errors:
        return "no reason given"
    error = parser.get_error(0)
    node = f" at {error.node_operator()} '{error.node_name()}'" if error.node_operator() else ""
    return f"{' '.join(error.desc().split())}{node}"


def _monitor(trt: Any, progress: BuildProgress) -> Any:
    """TensorRT's progress monitor as calls of `progress`; Ctrl-C in it cancels the build."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            progress(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress(phase_name, step + 1, self.steps.get(phase_name, step + 1))
            return True

        def phase_finish(self, phase_name: str) -> None:
            steps = self.steps.pop(phase_name, 1)
            progress(phase_name, steps, steps)

    return Monitor()


@final
class _Log:
    """A logger that prints nothing and keeps the last error for our messages."""

    def __init__(self, trt: Any) -> None:
        log = self
        self.last = ""

        class Logger(trt.ILogger):
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, msg: str) -> None:
                if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                    log.last = " ".join(msg.split())[:300]

        self.trt = Logger()
