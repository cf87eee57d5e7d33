"""The engine directory of a network: left as it is, extended by programs, or exported anew; one writer at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..engine.artifact import MANIFEST, Artifact, check_room, read_artifact, records_of, write_manifest
from ..engine.atomic import locked_for_build, replacing_folder, writing
from ..engine.compiler.program import Program
from ..engine.contract.contract import QUANTISED
from ..engine.errors import EngineFileError, InputError
from ..engine.progress import Lines
from ..engine.version import __version__
from .network import Network
from .precision.calibration.exact_parts import ExactParts
from .precision.records import RECORD, is_measured, records_of_precision
from .precision.write import Asked, precision_between


def write_programs(
    place: Path,
    source: Network,
    programs: Mapping[int, Program],
    *,
    precision: str | None = None,
    batch: tuple[int, ...] = (),
    replaces: bool = False,
    search: Mapping[int, Any] | None = None,
    asked: Asked | None = None,
    say: Lines,
) -> Artifact:
    """The engine of `source` at `place` with `programs`: left as it is, extended, or exported; one writer at a time.

    precision, batch: None and () for those of the engine there, else the network's own. replaces: also an engine of
    another network or precision; without it that is an InputError. search: by NFE, the record to keep of a program.
    asked: how a precision is measured, where it is.
    """
    check_room(programs)
    asked = asked or Asked(programs, clips=source.decoder is None)
    say(f"comparing {source.contract.name} with what is built")
    with locked_for_build(place, say):
        former = former_at(place, say)
        if former and not replaces:
            refuse_another(former, source, precision)
        if former and difference(former, source, precision) is None:
            if precision not in QUANTISED or is_measured(former.provenance.get(RECORD), asked):
                return _with_programs(former, Held(programs, batch or former.batch, search or {}), say)
            say(f"{former.path}: its layers were chosen for other programs or another bound, so it is quantised anew")
            batch, programs = batch or former.batch, {**former.programs, **programs}
            asked = replace(asked, programs=programs)
        fixed = fixed_batch(source)
        held = Held(programs, batch or (1 if fixed is None else fixed,), search or {})
        return _exported(place, source, precision or source.contract.precision, held, asked, say)


def refuse_another(former: Artifact, source: Network, precision: str | None = None) -> None:
    """Raises InputError when the engine is of another network, decoder or precision; None is any precision."""
    if what := difference(former, source, precision):
        raise InputError(f"'{former.path}' holds {what}; give the engine another name (out, -o)")


def difference(former: Artifact, source: Network, precision: str | None) -> str | None:
    held = former.provenance
    if held.get("network_digest") != source.digest:
        return "another network"
    if held.get("decoder_digest") != (source.decoder.digest if source.decoder else None):
        return "the network with another decoder"
    if held.get("encoders_digest") != (source.encoders.digest if source.encoders else None):
        return "the network with other encoders, or without"
    if held.get("policy_digest") != (source.policy.digest if source.policy else None):
        return "the network with other observations or actions"
    return f"precision {former.precision}" if precision not in (None, former.precision) else None


def extended(former: Artifact, programs: Mapping[int, Program], search: Mapping[int, Any]) -> Artifact:
    """With these programs too, and the records of the search that found them under provenance "search".

    The record of a program that another takes the place of goes with it.
    """
    gone = {str(nfe) for nfe in changed_programs(former, programs)}
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


def changed_programs(former: Artifact, programs: Mapping[int, Program]) -> list[int]:
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
    changed = sorted({*changed_programs(former, held.programs), *held.search})
    if not changed and held.batch == former.batch:
        say(f"{former.path} is up to date: nothing to do")
        return former
    artifact = replace(extended(former, held.programs, held.search), batch=held.batch)
    write_manifest(artifact)
    what = f"NFE {', '.join(map(str, changed))}" if changed else f"batch {', '.join(map(str, held.batch))}"
    say(f"{former.path}: the network is unchanged and not exported again; written: {what}")
    return artifact


def _exported(target: Path, source: Network, precision: str, held: Held, asked: Asked, say: Lines) -> Artifact:
    provenance = {"pfdiff": __version__, "network": source.contract.name, "network_digest": source.digest}
    if source.decoder:
        provenance["decoder_digest"] = source.decoder.digest
    if source.encoders:
        provenance["encoders_digest"] = source.encoders.digest
    if source.policy:
        provenance["policy_digest"] = source.policy.digest
    provenance |= source.origin
    provenance |= _searched(held.search, {})
    with writing(target), replacing_folder(target) as folder:
        eight = precision in QUANTISED
        if source.need is not None and (line := source.need.line(precision, frees=source.frees)):
            say(line)
        exact = ExactParts(folder, source, precision_between(precision, for_gpu=asked.for_gpu), say)
        texts = policy = None
        if eight:  # first, since what they make calibrates the network
            source.free("network")  # which is read again
            texts, asked = exact.texts(asked)
            policy, asked = exact.policy(asked)
        made = source.written(folder, precision, asked, say)
        source.free("network")  # before the next is read
        contract = made.contract
        decoder = source.decoder.write(folder, contract.precision, say) if source.decoder else None
        images = source.encoders.write_image(folder, contract.precision, say) if source.encoders else None
        decoders = exact.decoders(decoder) if eight else folder
        source.free("decoder")
        if not eight:
            texts = source.encoders.write_text(folder, contract.precision, say) if source.encoders else None
            policy = source.policy.write(folder, say) if source.policy else None
        provenance |= records_of_precision(folder, decoders, made, decoder, images, precision, asked, say)
        exact.remove()
        say("hashing and syncing")
        files = records_of(folder)
        artifact = Artifact(
            *(target, contract, held.batch, precision, dict(held.programs), provenance),
            *(files, decoder, texts, images, policy),
        )
        write_manifest(artifact, folder)
    say(f"{target} is written: NFE {', '.join(map(str, held.programs))}")
    return artifact


def former_at(target: Path, say: Lines) -> Artifact | None:
    if not (target / MANIFEST).exists():
        return None
    try:
        return read_artifact(target)
    except EngineFileError as error:
        say(f"building anew: {error}")
        return None


def fixed_batch(source: Network) -> int | None:
    fixed = source.contract.fixed_batch
    return source.decoder.contract.fixed_batch if fixed is None and source.decoder else fixed
