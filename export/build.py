"""`build`: a network and a solver become an engine directory, and the loaded engine.

What is costly is done last and only if needed: first every argument is checked and every program compiled, then the
digest of the network is compared with that of the engine which is there already. The same network is not exported
again; programs are added to it. The former engine stands until the new one is complete.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..engine.api import Engine
from ..engine.artifact import (
    DECODER,
    ENCODERS,
    MANIFEST,
    NETWORK,
    PART,
    PLANS,
    Artifact,
    read_artifact,
    records_of,
    write_manifest,
)
from ..engine.atomic import locked_for_build, replacing_folder, writing
from ..engine.backends.choose import check_runnable
from ..engine.compiler.defaults import AUTO
from ..engine.compiler.program import Program
from ..engine.contract import PRECISIONS
from ..engine.device import parse_device
from ..engine.errors import BackendError, EngineFileError, InputError
from ..engine.plans.key import check_target, parse_targets, plan_key
from ..engine.plans.store import obtain_plan
from ..engine.progress import Lines
from ..engine.version import __version__
from .measured_choice import is_remembered, measured
from .network import Network
from .sampler_choice import chosen_program, described_choice, is_open
from .sources.from_module import ModuleSource

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from torch import nn

    from ..engine.compiler.grid import Grid
    from ..engine.progress import BuildProgress

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
    out: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    progress: Lines | None = None,
    plan_progress: BuildProgress | None = None,
) -> Engine:
    """Build the engine directory `out` and load it.

    network: a Network, or what Network takes alone. nfe: evaluations a sample, one or several; one program each.
    solver, grid, basis, clip, t_start, end: as in `pfdiff.compile`; solver "auto", and grid and t_start where they are
    None, are chosen by rule: see export/sampler_choice.py. Of a network with a diffusers scheduler basis, clip and end
    are by default the scheduler's, and grid "diffusers" takes its times exactly. With all of solver, grid, basis and
    t_start open the rule's sampler is measured against a few others: export/measured_choice.py.
    batch: bucket sizes, by default those of the engine at `out`, else 1. precision: fp32, fp16 or bf16. backend,
    device, threads: as in `pfdiff.load`. target: compute capabilities, "sm86,sm89" or a list, to build TensorRT-RTX
    plans for; no GPU is needed. out: by default NAME.engine in the current folder. progress: called with one line at
    each stage; plan_progress: with a TensorRT plan's phase, steps done and steps in all.

    An engine of the same network and precision keeps its programs of other NFE and is not exported again; when nothing
    changes, nothing is written. Any other engine at `out` is replaced, at the very end and at once; without `out` it
    is not, and an InputError. After an error, an interruption or a full disk it is as it was. Raises InputError,
    BackendError, EngineFileError.
    """
    say: Lines = progress or (lambda line: None)
    source = network if isinstance(network, Network) else Network(network)
    for note in source.notes:
        say(note)
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r}, expected one of {', '.join(PRECISIONS)}")
    sizes = _check_batch(batch, source)
    targets = _check_targets(target)
    module = _module_of(source, required=backend == "torch")
    check_runnable(backend, precision, module, parse_device(device))
    settings = {"grid": grid, "basis": basis, "clip": clip, "t_start": t_start, "end": end}
    counts = _integers("nfe", nfe)
    place = check_place(Path(f"{source.contract.name}.engine" if out is None else out))
    programs, records = _programs(source, solver, counts, settings, place, say, plan_progress)

    given = {"precision": precision, "batch": sizes, "replaces": out is not None}
    artifact = write_programs(place, source, programs, **given, search=records, say=say)
    _build_plans(artifact, targets, say, plan_progress)
    decoder = source.decoder.module if source.decoder else None
    given = {"device": device, "backend": backend, "threads": threads, "progress": plan_progress}
    return Engine.open(artifact, **given, module=module, decoder_module=decoder)


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
        former = _former(place, lambda line: None)
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


# The engine directory.
def write_programs(
    place: Path,
    source: Network,
    programs: Mapping[int, Program],
    *,
    precision: str | None = None,
    batch: tuple[int, ...] = (),
    replaces: bool = False,
    search: Mapping[int, Any] | None = None,
    say: Lines,
) -> Artifact:
    """The engine of `source` at `place` with `programs`: left as it is, extended, or exported; one writer at a time.

    precision, batch: None and () for those of the engine there, else the network's own. replaces: also an engine of
    another network or precision; without it that is an InputError. search: by NFE, the record to keep of a program.
    """
    say(f"comparing {source.contract.name} with what is built")
    with locked_for_build(place, say):
        former = _former(place, say)
        if former and not replaces:
            refuse_another(former, source, precision)
        if former and _difference(former, source, precision) is None:
            return _with_programs(former, Held(programs, batch or former.batch, search or {}), say)
        fixed = _fixed_batch(source)
        held = Held(programs, batch or (1 if fixed is None else fixed,), search or {})
        return _exported(place, source, precision or source.contract.precision, held, say)


def refuse_another(former: Artifact, source: Network, precision: str | None = None) -> None:
    """Raises InputError when the engine is of another network, decoder or precision; None is any precision."""
    if what := _difference(former, source, precision):
        raise InputError(f"'{former.path}' holds {what}; give the engine another name (out, -o)")


def _difference(former: Artifact, source: Network, precision: str | None) -> str | None:
    held = former.provenance
    if held.get("network_digest") != source.digest:
        return "another network"
    if held.get("decoder_digest") != (source.decoder.digest if source.decoder else None):
        return "the network with another decoder"
    if held.get("encoders_digest") != (source.encoders.digest if source.encoders else None):
        return "the network with other encoders, or without"
    return f"precision {former.precision}" if precision not in (None, former.precision) else None


def extended(former: Artifact, programs: Mapping[int, Program], search: Mapping[int, Any]) -> Artifact:
    """With these programs too, and the records of the search that found them under provenance "search".

    The record of a program that another takes the place of goes with it.
    """
    gone = {str(nfe) for nfe in _changed(former, programs)}
    kept = {nfe: record for nfe, record in former.provenance.get("search", {}).items() if nfe not in gone}
    provenance = {key: value for key, value in former.provenance.items() if key != "search"}
    return replace(
        former,
        programs={**former.programs, **programs},
        provenance={**provenance, **_searched(search, kept)},
    )


def _searched(search: Mapping[int, Any], held: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of the provenance; none where there is no record."""
    records = {**held, **{str(nfe): record for nfe, record in search.items()}}
    return {"search": records} if records else {}


def _changed(former: Artifact, programs: Mapping[int, Program]) -> list[int]:
    """The NFE whose program is not in the engine yet."""
    held = {nfe: program.digest for nfe, program in former.programs.items()}
    return [nfe for nfe, program in programs.items() if held.get(nfe) != program.digest]


@dataclass(frozen=True)
class Held:
    """What an engine holds beside its network. search: by NFE, the record of the search that found a program."""

    programs: Mapping[int, Program]
    batch: tuple[int, ...]
    search: Mapping[int, Any]


def _with_programs(former: Artifact, held: Held, say: Lines) -> Artifact:
    changed = sorted({*_changed(former, held.programs), *held.search})
    if not changed and held.batch == former.batch:
        say(f"{former.path} is up to date: nothing to do")
        return former
    artifact = replace(extended(former, held.programs, held.search), batch=held.batch)
    write_manifest(artifact)
    what = f"NFE {', '.join(map(str, changed))}" if changed else f"batch {', '.join(map(str, held.batch))}"
    say(f"{former.path}: the network is unchanged and not exported again; written: {what}")
    return artifact


def _exported(target: Path, source: Network, precision: str, held: Held, say: Lines) -> Artifact:
    provenance = {"pfdiff": __version__, "network": source.contract.name, "network_digest": source.digest}
    if source.decoder:
        provenance["decoder_digest"] = source.decoder.digest
    if source.encoders:
        provenance["encoders_digest"] = source.encoders.digest
    provenance |= source.origin
    provenance |= _searched(held.search, {})
    with writing(target), replacing_folder(target) as folder:
        if source.need is not None and (line := source.need.line(precision)):
            say(line)
        contract = source.write(folder, precision, say)
        decoder = source.decoder.write(folder, precision, say) if source.decoder else None
        texts, images = source.encoders.write(folder, precision, say) if source.encoders else (None, None)
        say("hashing and syncing")
        files = records_of(folder)
        artifact = Artifact(
            target, contract, held.batch, precision, dict(held.programs), provenance, files, decoder, texts, images
        )
        write_manifest(artifact, folder)
    say(f"{target} is written: NFE {', '.join(map(str, held.programs))}")
    return artifact


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


def _check_batch(batch: Any, source: Network) -> tuple[int, ...]:
    """The bucket sizes, or () for none said."""
    fixed = _fixed_batch(source)
    sizes = _integers("batch", batch) if batch is not None else () if fixed is None else (fixed,)
    if fixed is not None and sizes != (fixed,):
        raise InputError(
            f"batch {', '.join(map(str, sizes))}: this network takes batches of {fixed} only; give batch={fixed}"
        )
    if sizes and sizes[-1] > LARGEST_BATCH:
        raise InputError(f"batch {sizes[-1]}, expected at most {LARGEST_BATCH}; larger requests are cut into batches")
    return sizes


def _fixed_batch(source: Network) -> int | None:
    fixed = source.contract.fixed_batch
    return source.decoder.contract.fixed_batch if fixed is None and source.decoder else fixed


def check_place(out: Path) -> Path:
    """Where the engine goes, links resolved; only an engine or an empty directory may stand there.

    Raises InputError.
    """
    target = Path(os.path.realpath(out))
    if not target.parent.is_dir():
        raise InputError(f"out '{out}': the folder {target.parent} does not exist; create it first")
    if not target.exists():
        return target
    if not target.is_dir():
        raise InputError(f"out '{out}' is a file, expected a directory to write or an engine to replace")
    ours = (MANIFEST, NETWORK, DECODER, ENCODERS, PLANS)
    for path in sorted(target.iterdir()):
        if path.name not in ours and not path.name.startswith((PART, f"{NETWORK}.", f"{DECODER}.")):
            raise InputError(f"out '{out}' holds '{path.name}', which is no part of an engine; move it away")
    return target


def _former(target: Path, say: Lines) -> Artifact | None:
    if not (target / MANIFEST).exists():
        return None
    try:
        return read_artifact(target)
    except EngineFileError as error:
        say(f"building anew: {error}")
        return None


def _module_of(source: Network, *, required: bool) -> Any:
    """module(x, t, *conditions) of a network that came as a module, else None or, when required, BackendError."""
    opened = source._source
    if not isinstance(opened, ModuleSource):
        if not required:
            return None
        raise BackendError("backend 'torch' needs an nn.Module, this network is an ONNX file; use backend onnxruntime")
    from .sources.module_call import Normalised

    return Normalised(opened.module, opened.call)
