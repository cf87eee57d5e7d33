"""The best sampler of a search becomes part of an engine: checked before the search, written after it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..engine.artifact import MANIFEST, Artifact, read_artifact, write_manifest
from ..engine.atomic import locked_for_build
from ..engine.errors import InputError
from ..export.build import check_place
from ..export.engine_directory import extended, refuse_another, write_programs
from .ranking import Ranking
from .sampling.subject import Subject


def check_destination(subject: Subject, out: str | os.PathLike[str] | None) -> None:
    """Whether what is found for the subject may be written to `out`, which is read only.

    Raises InputError when an engine of another network is there, or none where the subject is an engine, and
    EngineFileError when it is damaged.
    """
    if out is None:
        return
    if subject.engine is not None:
        if not Path(out).exists():
            raise InputError(
                f"out '{out}' does not exist, and tuning an engine builds no other; write into "
                f"'{subject.engine}' itself, or into another engine of its network that 'pfdiff build' wrote"
            )
        if _identity(read_artifact(out)) != _identity(read_artifact(subject.engine, verify=False)):
            raise InputError(
                f"out '{out}' holds another network or schedule than '{subject.engine}'; write into that engine, or "
                "tune this one"
            )
    elif subject.network is not None and (check_place(Path(out)) / MANIFEST).exists():
        refuse_another(read_artifact(out), subject.network)


def _identity(artifact: Artifact) -> tuple[Any, ...]:
    """Equal for engines that a program serves alike: of one network, in any precision."""
    held = artifact.provenance
    if "network_digest" in held:
        return held["network_digest"], held.get("decoder_digest"), artifact.contract.schedule
    return artifact.contract, artifact.files


def write_winner(
    subject: Subject, ranking: Ranking, out: str | os.PathLike[str] | None, say: Callable[[str], None]
) -> None:
    """Build or extend the engine at `out` with the best program, its record under provenance "search".

    Of a program that is there already and stays, the record stays too.
    Raises InputError, EngineFileError.
    """
    if out is None:
        return
    if ranking.keeps and str(ranking.nfe) in read_artifact(out, verify=False).provenance.get("search", {}):
        return
    programs, search = {ranking.nfe: ranking[0].program}, {ranking.nfe: ranking.to_dict()}
    if subject.network is not None:
        write_programs(check_place(Path(out)), subject.network, programs, search=search, say=say)
    else:
        with locked_for_build(Path(out), say):
            check_destination(subject, out)
            write_manifest(extended(read_artifact(out), programs, search))
