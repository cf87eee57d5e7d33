"""`build(precision="auto")`: an engine for each precision that runs here; the fastest within the bound is kept."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...engine.api import Engine
from ...engine.artifact import Artifact, write_manifest
from ...engine.atomic import locked_for_build, replacing_folder, writing
from ...engine.backends.choose import check_runnable
from ...engine.compiler.program import Program
from ...engine.device import parse_device
from ...engine.errors import BackendError, InputError, first_line
from ...engine.progress import Lines
from ..engine_directory import changed_programs, difference, former_at, refuse_another, write_programs
from ..network import Network
from ..precision.auto import fastest, why_slow
from ..precision.records import CHOICE


def by_measurement(
    place: Path,
    source: Network,
    programs: Mapping[int, Program],
    given: Mapping[str, Any],
    loading: Mapping[str, Any],
    ready: Callable[[], None] | None = None,
) -> Artifact:
    """The engine in the precision that is the fastest here: the one that stands there, or measured now.

    ready: called before an engine is opened, for modules of `loading` whose weights an export freed.
    """
    say: Lines = given["say"]
    former = former_at(place, lambda line: None)
    if former and CHOICE in former.provenance and difference(former, source, None) is None:
        if not changed_programs(former, programs):
            say(f"precision {former.precision}, by measurement when this engine was built")
            return write_programs(place, source, programs, precision=former.precision, **given)
        programs = {**former.programs, **programs}
    if former and not given["replaces"]:
        refuse_another(former, source)
    batch = given["batch"] or (former.batch if former else ())

    def make(precision: str, path: Path) -> Artifact:
        alone = {**given, "batch": batch, "replaces": True}
        return write_programs(path, source, programs, precision=precision, **alone)

    def opened(artifact: Artifact) -> Engine:
        if ready is not None:
            ready()
        return Engine.open(artifact, **loading)

    def why_not_here(precision: str) -> str:
        try:
            check_runnable(loading["backend"], precision, loading["module"], parse_device(loading["device"]))
        except (InputError, BackendError) as error:
            return first_line(error)
        return why_slow(precision, on_gpu=given["asked"].for_gpu)

    with tempfile.TemporaryDirectory(prefix="pfdiff-precisions-") as folder:
        asked = (given["asked"].bound, given["asked"].given)
        found = fastest(make, opened, why_not_here, Path(folder), *asked, say)
        with locked_for_build(place, say):
            return _moved(found.artifact, place, {CHOICE: found.record}, say)


def _moved(built: Artifact, target: Path, provenance: Mapping[str, Any], say: Lines) -> Artifact:
    """The engine `built` elsewhere, at `target` in place of what stands there."""
    artifact = replace(built, path=target, provenance={**built.provenance, **provenance})
    with writing(target), replacing_folder(target) as folder:
        for name in built.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(built.path / name, folder / name)
        write_manifest(artifact, folder)
    say(f"{target} is written: {artifact.precision}, NFE {', '.join(map(str, artifact.programs))}")
    return artifact
