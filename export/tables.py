"""Tables that travel: a program as a JSON file, with the network that it was made for and what it was measured at.

    {"format": "pfdiff-table 1", "network": {"name", "digest"}, "program": {...}, "search": {...} or null}

Written by hand, a learned table of a published method has `table` in place of `program`:

    {"format": "pfdiff-table 1", "table": {"name", "schedule", "prediction", "basis", "times", "rows"}}

A table is fitted to one network's weights where it was refined. So one with a network is only put into an engine of the
same network, unless that is asked for by name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from ..engine.artifact import Artifact, read_artifact, write_manifest
from ..engine.atomic import locked_for_build, replacing
from ..engine.compiler.from_table import program_from_table
from ..engine.compiler.program import Program
from ..engine.errors import InputError, shown
from ..engine.files.open_folder import read_at_most
from ..engine.files.outside import check_outside
from ..engine.json_fields import is_number, parse_json
from .engine_directory import extended

FORMAT = "pfdiff-table 1"
MOST_BYTES = 16 << 20
TYPED = {"name": str, "schedule": str, "prediction": str, "basis": str}


@final
@dataclass(frozen=True, eq=False)
class Table:
    """A program, the name and digest of the network it was made for, None where it was typed in, and its search."""

    program: Program
    network: dict[str, str] | None
    search: dict[str, Any] | None


def export_table(engine: str | os.PathLike[str], nfe: int | None, out: str | os.PathLike[str]) -> Table:
    """Write the engine's program for `nfe` (None: its only one) to `out`. Raises InputError, EngineFileError."""
    artifact = read_artifact(engine)
    check_outside(out)
    program = artifact.program(nfe)
    search = artifact.provenance.get("search", {}).get(str(program.nfe))
    table = Table(program, _network_of(artifact), search)
    content = {"format": FORMAT, "network": table.network, "program": program.to_dict(), "search": search}
    write_json(out, content)
    return table


def write_json(out: str | os.PathLike[str], content: dict[str, Any]) -> None:
    """A file of finite numbers, whole or not at all. Raises InputError."""
    try:
        with replacing(Path(out)) as part:
            part.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise InputError(
            f"cannot write {out}: {error.strerror or error}; check the path, its rights and the disk"
        ) from error


def _network_of(artifact: Artifact) -> dict[str, str]:
    held = artifact.provenance
    return {"name": artifact.contract.name, "digest": str(held.get("network_digest", ""))}


def read_table(path: str | os.PathLike[str]) -> Table:
    """A file of `export_table`, or one typed in. Raises InputError."""
    try:
        with Path(path).open("rb") as file:
            data = read_at_most(file, MOST_BYTES)
    except OSError as error:
        raise InputError(
            f"table '{path}': {error.strerror or error}; expected a file that pfdiff table export wrote"
        ) from error
    if data is None:
        raise InputError(f"table '{path}': larger than {MOST_BYTES >> 20} MiB, which no table is")
    try:
        return _parsed(parse_json(data))
    except InputError as error:
        raise InputError(f"table '{path}': {error}") from None


def _parsed(content: Any) -> Table:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        got = content.get("format") if isinstance(content, dict) else content
        raise InputError(f"format {shown(got)}, expected '{FORMAT}', as pfdiff table export writes it")
    network, search = content.get("network"), content.get("search")
    if network is not None and not (
        isinstance(network, dict) and all(isinstance(one, str) for one in network.values())
    ):
        raise InputError(f"network {shown(network)}, expected name and digest")
    if search is not None and not isinstance(search, dict):
        raise InputError(f"search {shown(search)}, expected the record of a search")
    if "program" in content:
        return Table(Program.from_dict(content["program"]), network, search)
    if "table" not in content:
        raise InputError("neither 'program' nor 'table' in it")
    return Table(_typed(content["table"]), network, search)


def _typed(plain: Any) -> Program:
    if not isinstance(plain, dict):
        raise InputError(f"table {shown(plain)}, expected {', '.join(TYPED)}, times, rows")
    for name in TYPED:
        if not isinstance(plain.get(name), str):
            raise InputError(f"table: {name} {shown(plain.get(name))}, expected a text")
    unknown = set(plain) - {*TYPED, "times", "rows", "clip", "sigma_data"}
    if unknown:
        raise InputError(
            f"table: unknown field {shown(sorted(unknown)[0])}; known: {', '.join(TYPED)}, times, rows, "
            "clip, sigma_data"
        )
    times, rows = plain.get("times"), plain.get("rows")
    if not (isinstance(times, list) and all(map(is_number, times))):
        raise InputError(f"table: times {shown(times)}, expected a list of numbers")
    if not (isinstance(rows, list) and all(isinstance(row, list) and all(map(is_number, row)) for row in rows)):
        raise InputError(f"table: rows {shown(rows)}, expected lists of numbers")
    options = {name: plain[name] for name in ("clip", "sigma_data") if plain.get(name) is not None}
    wrong = next((name for name, value in options.items() if not is_number(value)), None)
    if wrong:
        raise InputError(f"table: {wrong} {shown(options[wrong])}, expected a number")
    return program_from_table(
        plain["name"], plain["schedule"], times, rows, plain["basis"], plain["prediction"], **options
    )


def import_table(
    path: str | os.PathLike[str],
    engine: str | os.PathLike[str],
    *,
    another_network: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Program:
    """Put a table's program into an engine, in place of the one for its NFE; what is written appears whole.

    Raises InputError when the table does not fit the engine's contract, or was made for another network and
    `another_network` is not said; EngineFileError.
    """
    table = read_table(path)
    program = table.program
    with locked_for_build(Path(engine), say):
        artifact = read_artifact(engine)
        _check_contract(table, artifact, str(path))
        if doubt := doubt_of_network(table, artifact):
            if not another_network:
                raise InputError(
                    f"table '{path}': {doubt}; tune this engine, or say --another-network (another_network)"
                )
            say(f"{doubt}: its errors do not hold here")
        search = {program.nfe: table.search} if table.search and table.network == _network_of(artifact) else {}
        write_manifest(extended(artifact, {program.nfe: program}, search))
    return program


def _check_contract(table: Table, artifact: Artifact, path: str) -> None:
    """Raises InputError when the program asks for another schedule, prediction or sigma_data than the network has."""
    program, contract = table.program, artifact.contract
    pairs = {
        "schedule": (program.schedule, contract.schedule),
        "prediction": (program.prediction, contract.prediction),
        "sigma_data": (program.sigma_data, contract.sigma_data),
    }
    for name, (got, expected) in pairs.items():
        if got != expected:
            raise InputError(f"table '{path}' has {name} {got}, the engine's network {expected}; tables do not convert")
    contract.feed_times(program.network_times)


def doubt_of_network(table: Table, artifact: Artifact) -> str | None:
    """Why the table's errors may not hold for the engine, None where it was made for this network or for none."""
    ours = _network_of(artifact)
    if table.network is None or table.network.get("digest") == ours["digest"] != "":
        return None
    theirs = {"name": "?", "digest": "", **table.network}
    made, here = (f"'{one['name']}' {one['digest'][:12]}" for one in (theirs, ours))
    return f"it was made for {made}, the engine holds {here}"
