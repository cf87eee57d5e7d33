"""`build`: a network and a solver become an engine directory, and the loaded engine.

What is costly is done last and only if needed: first every argument is checked and every program compiled, then the
digest of the network is compared with that of the engine which is there already. The same network is not exported
again; programs are added to it. The former engine stands until the new one is complete.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from ..engine.api import Engine
from ..engine.artifact import (
    DECODER,
    ENCODERS,
    MANIFEST,
    NETWORK,
    PART,
    PLANS,
    Artifact,
)
from ..engine.backends.choose import check_runnable
from ..engine.backends.registry import is_installed
from ..engine.compiler.defaults import AUTO
from ..engine.compiler.program import Program
from ..engine.contract.contract import QUANTISED
from ..engine.device import parse_device, why_not_cuda
from ..engine.errors import BackendError, InputError
from ..engine.plans.key import check_target, parse_targets, plan_key
from ..engine.plans.store import obtain_plan
from ..engine.progress import Lines
from .check import LARGE_BYTES
from .choice.measured_choice import is_remembered, measured
from .choice.measured_precision import by_measurement
from .choice.sampler_choice import chosen_program, described_choice, is_open
from .engine_directory import fixed_batch, former_at, write_programs
from .network import Network
from .precision.auto import AUTO as AUTO_PRECISION
from .precision.calibration.given import Given, given_values
from .precision.large.outside import check_module
from .precision.prompts import prompts_from
from .precision.records import check_quantise_error, is_for_gpu
from .precision.write import ALL, Asked, check_for_target
from .sources.from_module import ModuleSource

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from torch import nn

    from ..engine.compiler.grid import Grid
    from ..engine.progress import BuildProgress

ENDINGS = (".engine", ".onnx", ".png", ".npy", ".npz", ".mp4", ".json", ".safetensors")
LARGEST_BATCH = 1 << 16  # the exporter's bound on the dynamic batch dimension


def build(
    network: Network | nn.Module | str | Path | DiffusionPipeline,
    nfe: int | Iterable[int],
    solver: str = AUTO,
    *,
    grid: Grid | None = None,
    basis: str | None = None,
    clip: float | None = None,
    t_start: float | None = None,
    end: str | float | None = None,
    batch: int | Iterable[int] | None = None,
    precision: str = "fp32",
    backend: str = "auto",
    device: str = "auto",
    target: str | Iterable[str] = (),
    quantise_error: float | None = None,
    calibrate_prompts: str | os.PathLike[str] | Sequence[str] | None = None,
    calibrate_conditions: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    out: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    progress: Lines | None = None,
    plan_progress: BuildProgress | None = None,
) -> Engine:
    """Build the engine directory `out` and load it.

    network: a Network, or what Network takes alone. nfe: evaluations a sample, one or several; one program each.
    solver, grid, basis, clip, t_start, end: as in `pfdiff.compile`; solver "auto", and grid and t_start where they are
    None, are chosen by rule: see export/choice/sampler_choice.py. Of a network with a diffusers scheduler basis, clip
    and end are by default the scheduler's, and grid "diffusers" takes its times exactly. With all of solver, grid,
    basis and t_start open the rule's sampler is measured against a few others: export/choice/measured_choice.py.
    batch: bucket sizes, by default those of the engine at `out`, else 1. precision: fp32, fp16, bf16, int8, fp8, or
    auto for the fastest here within the bound. quantise_error: RMS that int8, fp8 and auto may add to samples, by
    default half of the sampler's own error; see export/precision. calibrate_prompts: texts, or a file with one on each
    line, that a pipeline is sampled with for these three, by default a list of 15. calibrate_conditions: likewise
    values [m, *shape] by name of conditions, or of a policy's observations, or a .npz or .safetensors file of them.
    backend, device, threads: as in `pfdiff.load`.
    target: compute capabilities, "sm86,sm89" or a list, to build TensorRT-RTX plans for; no GPU is needed. out: by
    default NAME.engine in the current folder. progress: called with one line at each stage; plan_progress: with a
    TensorRT plan's phase, or what is measured, steps done and steps in all.

    An engine of the same network and precision keeps its programs of other NFE and is not exported again; when nothing
    changes, nothing is written. Any other engine at `out` is replaced, at the very end and at once; without `out` it
    is not, and an InputError. After an error, an interruption or a full disk it is as it was. Raises InputError,
    BackendError, EngineFileError.
    """
    return built(
        network,
        nfe,
        solver,
        grid=grid,
        basis=basis,
        clip=clip,
        t_start=t_start,
        end=end,
        batch=batch,
        precision=precision,
        backend=backend,
        device=device,
        target=target,
        quantise_error=quantise_error,
        calibrate_prompts=calibrate_prompts,
        calibrate_conditions=calibrate_conditions,
        out=out,
        threads=threads,
        progress=progress,
        plan_progress=plan_progress,
    ).open()


@final
@dataclass(frozen=True)
class Built:
    """What was built, and how it is loaded. source: where its modules may have been freed, None elsewhere."""

    artifact: Artifact
    loading: Mapping[str, Any]
    source: Network | None

    @property
    def is_large_on_cpu(self) -> bool:
        """Whether it runs on the CPU, and its network has so many weights that nothing is timed when it is loaded."""
        size = sum(one.bytes for name, one in self.artifact.files.items() if name.startswith(NETWORK))
        return size > LARGE_BYTES and _is_cpu(self.loading["device"])

    def open(self) -> Engine:
        """The engine. Raises BackendError, EngineFileError; InputError where files of the network have changed."""
        if self.source:
            self.source.restore()
            self.source.kept()  # the engine may hold it
        return Engine.open(self.artifact, **self.loading)


def built(
    network: Network | nn.Module | str | Path | DiffusionPipeline,
    nfe: int | Iterable[int],
    solver: str = AUTO,
    *,
    grid: Grid | None = None,
    basis: str | None = None,
    clip: float | None = None,
    t_start: float | None = None,
    end: str | float | None = None,
    batch: int | Iterable[int] | None = None,
    precision: str = "fp32",
    backend: str = "auto",
    device: str = "auto",
    target: str | Iterable[str] = (),
    quantise_error: float | None = None,
    calibrate_prompts: str | os.PathLike[str] | Sequence[str] | None = None,
    calibrate_conditions: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    out: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    progress: Lines | None = None,
    plan_progress: BuildProgress | None = None,
) -> Built:
    """The same without loading it, which takes more memory than the build where the network is large."""
    say: Lines = progress or (lambda line: None)
    source = network if isinstance(network, Network) else Network(network).disposable()
    for note in source.notes:
        say(note)
    if precision not in (*ALL, AUTO_PRECISION):
        raise InputError(f"precision {precision!r}, expected one of {', '.join((*ALL, AUTO_PRECISION))}")
    check_quantise_error(quantise_error, precision)
    calibrated = _check_calibration(calibrate_prompts, calibrate_conditions, precision, source)
    sizes = _check_batch(batch, source)
    targets = _check_targets(target)
    check_for_target(precision, targets)
    if precision in QUANTISED and isinstance(source._source, ModuleSource):
        check_module(source._source.module)
    runs = backend == "torch" or (backend == "auto" and not _is_cpu(device))  # PyTorch may
    module = _module_of(source, required=backend == "torch") if runs else None
    check_runnable(backend, "fp32" if precision == AUTO_PRECISION else precision, module, parse_device(device))
    settings = {"grid": grid, "basis": basis, "clip": clip, "t_start": t_start, "end": end}
    counts = _integers("nfe", nfe)
    place = check_place(Path(f"{source.contract.name}.engine" if out is None else out))
    programs, records = _programs(source, solver, counts, settings, place, say, plan_progress)

    asked = Asked(
        programs,
        quantise_error,
        for_gpu=is_for_gpu(backend, targets, parse_device(device)),
        clips=source.decoder is None,
        outputs=backend == "onnxruntime" or not is_installed("openvino"),
        progress=plan_progress,
        given=calibrated,
    )
    decoder = source.decoder.module if source.decoder and runs else None
    loading = {"device": device, "backend": backend, "threads": threads, "progress": plan_progress}
    loading |= {"module": module, "decoder_module": decoder}
    given = {"batch": sizes, "replaces": out is not None, "search": records, "asked": asked, "say": say}
    if precision == AUTO_PRECISION:
        artifact = by_measurement(place, source, programs, given, loading, ready=source.restore if runs else None)
    else:
        artifact = write_programs(place, source, programs, precision=precision, **given)
    _build_plans(artifact, targets, say, plan_progress)
    return Built(artifact, loading, source if runs else None)


def _programs(
    source: Network,
    solver: str,
    counts: tuple[int, ...],
    settings: Mapping[str, Any],
    place: Path,
    say: Lines,
    progress: BuildProgress | None,
) -> tuple[Mapping[int, Program], dict[int, Any]]:
    """A program for each NFE, and the records of what was measured for them now. Says the choice."""
    programs: Mapping[int, Program] = {one: chosen_program(source, solver, one, settings) for one in counts}
    records: dict[int, Any] = {}
    if is_open(source, solver, settings):
        former = former_at(place, lambda line: None)
        programs, records = _best_of(source, programs, former, progress)
    say(described_choice(programs.values(), source, solver, settings, records))
    return programs, {count: record for count, record in records.items() if not record.get("remembered")}


def _best_of(
    source: Network, by_rule: Mapping[int, Program], former: Artifact | None, progress: BuildProgress | None
) -> tuple[dict[int, Program], dict[int, Any]]:
    """(programs, records) by measurement; what the engine there has measured is marked `remembered`, not repeated."""
    programs, records = dict(by_rule), {}
    if former and former.provenance.get("network_digest") == source.digest:
        known = former.provenance.get("search", {})
        for nfe, program in by_rule.items():
            if is_remembered(record := known.get(str(nfe)), program, former.programs.get(nfe)):
                programs[nfe], records[nfe] = former.programs[nfe], {**record, "remembered": True}
    left = {nfe: program for nfe, program in by_rule.items() if nfe not in records}
    for nfe, one in (measured(source, left, progress) if left else {}).items():
        programs[nfe], records[nfe] = one.program, one.record
    return programs, records


def _build_plans(artifact: Artifact, targets: tuple[str, ...], say: Lines, progress: BuildProgress | None) -> None:
    """The TensorRT-RTX plans for some compute capabilities."""
    for one in targets:
        say(f"building the TensorRT-RTX plan for {one}")
        for file in artifact.contracts:
            obtain_plan(artifact, plan_key(artifact, "tensorrt_rtx", one, file=file), progress=progress)
    if targets:
        say(f"{artifact.path} is ready, with plans for {', '.join(targets)}")


# What is checked before any work.
def _check_targets(target: str | Iterable[str]) -> tuple[str, ...]:
    targets = tuple(parse_targets(target))
    for one in targets:
        check_target("tensorrt_rtx", one)
    return targets


def _integers(what: str, given: Any) -> tuple[int, ...]:
    """Distinct integers of at least 1, ascending."""
    try:
        values = [operator.index(given)] if hasattr(given, "__index__") else [operator.index(one) for one in given]
    except TypeError:
        values = []
    if isinstance(given, (bool, str)) or not values or any(value < 1 for value in values):
        raise InputError(f"{what} {given!r}, expected an integer of at least 1 or several, such as [5, 8]")
    return tuple(sorted(set(values)))


def _check_calibration(prompts: Any, values: Any, precision: str, source: Network) -> Given:
    """What to calibrate with. Raises InputError."""
    texts = source.encoders.text if source.encoders else None
    for word, given in (("calibrate_prompts", prompts), ("calibrate_conditions", values)):
        if given is not None and precision not in (*QUANTISED, AUTO_PRECISION):
            raise InputError(f"{word} with precision {precision}, which is not calibrated; give int8 or fp8")
    if prompts is not None and texts is None:
        raise InputError(f"calibrate_prompts: network '{source.contract.name}' has no text encoders; leave it out")
    policy = source.policy.contract if source.policy else None
    return given_values(values, source.contract, policy, texts.conditions if texts else (), prompts_from(prompts))


def _check_batch(batch: Any, source: Network) -> tuple[int, ...]:
    """The bucket sizes, or () for none said."""
    fixed = fixed_batch(source)
    sizes = _integers("batch", batch) if batch is not None else () if fixed is None else (fixed,)
    if fixed is not None and sizes != (fixed,):
        raise InputError(
            f"batch {', '.join(map(str, sizes))}: this network takes batches of {fixed} only; give batch={fixed}"
        )
    if sizes and sizes[-1] > LARGEST_BATCH:
        raise InputError(f"batch {sizes[-1]}, expected at most {LARGEST_BATCH}; larger requests are cut into batches")
    return sizes


def _is_cpu(device: str) -> bool:
    """Whether an engine loaded on `device` runs on the CPU."""
    parsed = parse_device(device)
    return bool(why_not_cuda()) if parsed is None else parsed.type == "cpu"


def check_place(out: Path) -> Path:
    """Where the engine goes, links resolved; only an engine or an empty directory may stand there.

    Raises InputError.
    """
    if out.name.lower() in ENDINGS:
        raise InputError(f"out '{out}' is an ending without a name; expected, for instance, unet.engine")
    target = Path(os.path.realpath(out))
    if not target.parent.is_dir():
        raise InputError(f"out '{out}': the folder {target.parent} does not exist; create it first")
    if (target.parent / MANIFEST).exists():
        raise InputError(f"out '{out}' is inside the engine {target.parent}; give a folder beside it")
    if not target.exists():
        return target
    if not target.is_dir():
        raise InputError(f"out '{out}' is a file, expected a directory to write or an engine to replace")
    ours = (MANIFEST, NETWORK, DECODER, ENCODERS, PLANS)
    for path in sorted(target.iterdir()):
        if path.name not in ours and not path.name.startswith((PART, f"{NETWORK}.", f"{DECODER}.")):
            raise InputError(f"out '{out}' holds '{path.name}', which is no part of an engine; move it away")
    return target


def _module_of(source: Network, *, required: bool) -> Any:
    """module(x, t, *conditions) of a network that came as a module, else None or, when required, BackendError."""
    opened = source._source
    if not isinstance(opened, ModuleSource):
        if not required:
            return None
        raise BackendError("backend 'torch' needs an nn.Module, this network is an ONNX file; use backend onnxruntime")
    from .guidance.in_module import ClassifierFreeModule, GuidedCall
    from .sources.module_call import Normalised

    if isinstance(opened.module, ClassifierFreeModule):
        return GuidedCall(opened.module, opened.call)
    return Normalised(opened.module, opened.call)
