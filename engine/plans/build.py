"""ONNX -> TensorRT plan, for `tensorrt` 10 and 11 and `tensorrt_rtx`, by one code path.

A plan is TensorRT's serialized network for one GPU and one TensorRT version. It is executable code, so it is kept like
a compiler's cache and never like data:

key    everything that decides what is built: the network's SHA-256, flavour and version, compute capability (and the
       GPU's name for `tensorrt`), precision, batch buckets, flags. Another key is another file: no silent reuse.
seal   HMAC-SHA256 of key and plan under a secret that this user's first build makes. A plan without our seal was not
       built by this user: it is rebuilt, with a message, unless the caller asks for it by name (`trust=True`).

Networks are strongly typed: precision is the ONNX file's own dtypes, and TF32 is off unless asked for. Each batch
bucket is an optimisation profile with one fixed shape, which is what a captured graph runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, final

from ..artifact import DECODER, NETWORK, PLANS, Artifact
from ..atomic import writing
from ..backends.abstract import BuildProgress
from ..contract import Contract, DecoderContract
from ..errors import BackendError, EngineFileError, InputError

FLAVOURS = {"tensorrt": "pip install tensorrt", "tensorrt_rtx": "pip install 'pfdiff[rtx]'"}
PLAN_DTYPES = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}
WORKSPACE_BYTES = 4 << 30


@final
@dataclass(frozen=True)
class PlanKey:
    """What a plan was built for. `capability`: sm89; `gpu`: its name where plans are tied to the model, else "".

    `file` is the network's, or the decoder's of a latent model; `network` a digest of its content.
    """

    flavour: str
    version: str
    capability: str
    gpu: str
    network: str
    precision: str
    batch: tuple[int, ...]
    tf32: bool = False
    file: str = NETWORK

    @property
    def name(self) -> str:
        """File name without suffix: readable first, then what tells keys apart."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        words = [self.flavour, self.version, self.capability, self.precision, *["decoder"] * (self.file == DECODER)]
        return "-".join([*words, digest[:16]])


def load_flavour(flavour: str) -> Any:
    """The TensorRT module. Raises InputError for an unknown name, BackendError when it is not installed."""
    if flavour not in FLAVOURS:
        raise InputError(f"unknown TensorRT flavour {flavour!r}; known: {', '.join(FLAVOURS)}")
    try:
        return import_module(flavour)
    except ImportError as error:
        raise BackendError(f"backend '{flavour}' is not installed ({error}); {FLAVOURS[flavour]}") from None


def network_digest(artifact: Artifact, file: str = NETWORK) -> str:
    """SHA-256 over a network's files, external data included, as the manifest has them."""
    decoders = file == DECODER
    own = ((name, one.sha256) for name, one in artifact.files.items() if name.startswith(DECODER) == decoders)
    return hashlib.sha256(json.dumps(sorted(own)).encode()).hexdigest()


def plan_key(
    artifact: Artifact, flavour: str, capability: str, gpu: str = "", *, tf32: bool = False, file: str = NETWORK
) -> PlanKey:
    """The key of the plan that this artifact's `file` needs on a GPU of `capability` (sm89) and name `gpu`."""
    return PlanKey(
        flavour=flavour,
        version=str(load_flavour(flavour).__version__),
        capability=capability,
        gpu=gpu if flavour == "tensorrt" else "",
        network=network_digest(artifact, file),
        precision=artifact.contracts[file].precision,
        batch=artifact.batch,
        tf32=tf32,
        file=file,
    )


# Building.
def build_plan(artifact: Artifact, key: PlanKey, progress: BuildProgress | None = None) -> bytes:
    """The serialized network of the artifact's `key.file` for `key`; RTX builds for any GPU without having one.

    Raises BackendError: not installed, an operator refused (named), an unsupported compute capability, other dtypes in
    the network than its contract says.
    """
    trt = load_flavour(key.flavour)
    logger = _Log(trt)
    builder = trt.Builder(logger.trt)
    if builder is None:
        raise BackendError(f"{key.flavour} {key.version} cannot build here: {logger.last or 'no CUDA driver'}")
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger.trt)
    if not parser.parse_from_file(str(artifact.path / key.file)):
        what = "decoder" if key.file == DECODER else "network"
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
    cache = artifact.path / PLANS / f"{key.flavour}-{key.version}-{key.capability}.timing"
    timing = None
    if key.flavour == "tensorrt":  # RTX has none: it compiles for the GPU when the plan is loaded
        timing = config.create_timing_cache(cache.read_bytes() if cache.exists() else b"")
        config.set_timing_cache(timing, False)
    if progress is not None:
        config.progress_monitor = _monitor(trt, progress)

    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BackendError(f"{key.flavour} {key.version} cannot build for {key.capability}: {logger.last}")
    if timing is not None and cache.parent.is_dir():
        _write(cache, bytes(timing.serialize()))
    return bytes(plan)


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


def _check_dtypes(network: Any, contract: Contract | DecoderContract) -> None:
    """What goes in and comes out has the precision that was asked for; nothing changes silently."""
    expected = PLAN_DTYPES[contract.precision]
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    for tensor in [*inputs, *outputs]:
        if tensor.name in (contract.input, contract.output) and tensor.dtype.name != expected:
            raise BackendError(
                f"the network's '{tensor.name}' is {tensor.dtype.name}, {contract.precision} means {expected}; "
                "export it again in that precision"
            )


def _parser_error(parser: Any) -> str:
    """The first error, with the operator it names."""
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
    """A logger that prints nothing and keeps the last error for our own sentence."""

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


# Keeping.
def plan_path(artifact: Artifact, key: PlanKey) -> Path:
    return artifact.path / PLANS / f"{key.name}.plan"


def store_plan(artifact: Artifact, key: PlanKey, plan: bytes) -> Path:
    """Write plan and seal into `plans/`, each by a rename. Raises EngineFileError when the disk is full."""
    path = plan_path(artifact, key)
    with writing(path):
        path.parent.mkdir(exist_ok=True)
        record = {"key": asdict(key), "sha256": hashlib.sha256(plan).hexdigest(), "seal": _seal(key, plan)}
        _write(path, plan)
        _write(path.with_suffix(".json"), (json.dumps(record, indent=1) + "\n").encode())
    return path


def read_plan(artifact: Artifact, key: PlanKey, *, trust: bool = False) -> bytes:
    """The stored plan of `key`, if it is whole and this user built it.

    Raises EngineFileError with one sentence: none stored, built for something else (what differs), damaged, or built by
    somebody else and `trust` is not given.
    """
    path = plan_path(artifact, key)
    try:
        plan, record = path.read_bytes(), json.loads(path.with_suffix(".json").read_bytes())
        stored, digest, seal = dict(record["key"]), str(record["sha256"]), str(record["seal"])
    except FileNotFoundError:
        raise EngineFileError(
            f"no plan for {key.capability} is stored in '{path.parent}'{_nearest(path, key)}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineFileError(f"plan '{path.name}' has no readable record ({error}); it is built again") from None
    wanted = json.loads(json.dumps(asdict(key)))
    if stored != wanted:
        raise EngineFileError(f"plan '{path.name}' was built for {_difference(stored, wanted)}; it is built again")
    if hashlib.sha256(plan).hexdigest() != digest:
        raise EngineFileError(f"plan '{path.name}' was changed after it was built; it is not loaded and built again")
    if not hmac.compare_digest(seal, _seal(key, plan)) and not trust:
        raise EngineFileError(
            f"plan '{path.name}' was not built by this user and a plan is executable code; it is built again "
            "(or load it by name with trust, if you know who built it)"
        )
    return plan


def obtain_plan(
    artifact: Artifact,
    key: PlanKey,
    *,
    trust: bool = False,
    say: Callable[[str], None] = lambda line: None,
    progress: BuildProgress | None = None,
) -> bytes:
    """The stored plan if it fits, else one built now and stored; `say` gets one line why. Raises BackendError."""
    try:
        return read_plan(artifact, key, trust=trust)
    except EngineFileError as error:
        say(str(error))
    plan = build_plan(artifact, key, progress)
    store_plan(artifact, key, plan)
    return plan


def stored_plans(artifact: Artifact) -> Mapping[Path, PlanKey | None]:
    """Every plan in `plans/` with its key; None where the record is unreadable."""
    return {path: _stored_key(path) for path in sorted((artifact.path / PLANS).glob("*.plan"))}


def parse_targets(text: str | Iterable[str]) -> tuple[str, ...]:
    """Compute capabilities, "sm86,sm89" or a list, lower case. Raises InputError."""
    parts = [part.strip().lower() for part in (text.split(",") if isinstance(text, str) else text)]
    for part in parts:
        if not (part.startswith("sm") and part[2:].isdigit() and len(part) in (4, 5)):
            raise InputError(f"target {part!r} is no compute capability; expected for example sm86,sm89,sm120")
    return tuple(dict.fromkeys(parts))


def check_target(flavour: str, capability: str) -> None:
    """Raises BackendError when TensorRT-RTX is not installed or does not build for `capability` (sm89)."""
    trt = load_flavour(flavour)
    known = sorted((name.lower() for name in trt.ComputeCapability.__members__ if name.startswith("SM")), key=_number)
    if capability not in known:
        raise BackendError(
            f"{flavour} {trt.__version__} has no {capability}; it builds for {', '.join(known)}; "
            "use backend tensorrt or torch"
        )


def _number(capability: str) -> int:
    return int(capability.removeprefix("sm"))


def _nearest(path: Path, key: PlanKey) -> str:
    """What stored plans of the same flavour were built for instead."""
    wanted = json.loads(json.dumps(asdict(key)))
    for other in sorted(path.parent.glob(f"{key.flavour}-*.plan")):
        held = _stored_key(other)
        if held is not None and held.file == key.file:
            return f"; the one there was built for {_difference(json.loads(json.dumps(asdict(held))), wanted)}"
    return ""


def _stored_key(path: Path) -> PlanKey | None:
    try:
        fields = dict(json.loads(path.with_suffix(".json").read_bytes())["key"])
        return PlanKey(**{**fields, "batch": tuple(fields["batch"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _difference(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The first field that differs: `version 1.6.0, this is 1.7.1`."""
    for name, value in wanted.items():
        if stored.get(name) != value:
            short = [str(v)[:12] if name == "network" else str(v) for v in (stored.get(name), value)]
            return f"{name} {short[0]}, this is {short[1]}"
    return "the same"


def _seal(key: PlanKey, plan: bytes) -> str:
    message = json.dumps(asdict(key), sort_keys=True).encode() + hashlib.sha256(plan).digest()
    return hmac.new(_secret(), message, hashlib.sha256).hexdigest()


def _secret() -> bytes:
    """32 random bytes that this user's first build makes, readable by nobody else; lost, plans are only rebuilt."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    path = Path(state) / "pfdiff" / "plan-secret"
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.stat().st_size != SECRET_BYTES:  # a former pfdiff could leave an empty one
            path.unlink(missing_ok=True)
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(_PROCESS_SECRET)
            with contextlib.suppress(FileExistsError):  # another process was first
                os.link(part, path)  # whole or not at all
        found = path.read_bytes()
    except OSError:
        return _PROCESS_SECRET  # no place to keep one: plans of this process are trusted by this process
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    return found if len(found) == SECRET_BYTES else _PROCESS_SECRET


SECRET_BYTES = 32
_PROCESS_SECRET = secrets.token_bytes(SECRET_BYTES)


def _write(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
