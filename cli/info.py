"""`pfdiff info`: what an engine holds, in tables that fit 80 columns or as JSON."""

from __future__ import annotations

import json as json_format
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..engine.errors import InputError
from .arguments import options
from .output.figures import printable

if TYPE_CHECKING:
    from rich.table import Table

    from ..engine.api import Engine
    from ..engine.artifact import Artifact
    from ..engine.compiler.program import Program
    from ..engine.contract.condition import Condition
    from ..engine.contract.contract import DecoderContract
    from ..engine.contract.text_encoders import TextEncoder

WIDEST_TABLE = 10  # columns of coefficients that fit a line of 80 characters


def info(
    engine: options.EngineArgument,
    nfe: Annotated[int | None, options.parsed(options.integer, "--nfe", "This program, with its table.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    device: Annotated[
        str | None, typer.Option("--device", help="Run one sample on auto, cpu, cuda or cuda:N and say how.")
    ] = None,
) -> None:
    """Say what an engine holds: network, programs, times, files, plans; with --device also how it runs there."""
    from .output.progress import opened

    running = None
    if device is not None:
        with opened(engine, device) as loaded:
            running = how_it_runs(loaded)
    print_info(engine, nfe=nfe, as_json=json, running=running)


def how_it_runs(engine: Engine) -> dict[str, str]:
    """Backend, why this one, and how schedules are run, found out by one sample of the smallest batch."""
    engine.sample(seeds=[0], nfe=min(engine.programs), **engine.contract.stand_ins)
    return {
        "device": engine.device,
        "backend": engine.description,
        "chosen": engine.backend_reason,
        "schedule runs": engine.execution,
        **({"decodes": engine.decoding} if engine.decoding else {}),
    }


def print_info(path: Path, *, nfe: int | None, as_json: bool, running: Mapping[str, str] | None = None) -> None:
    """Everything an engine directory says about itself, or with `nfe` one program's coefficients.

    `running` is what `how_it_runs` found, to be printed too.

    Raises EngineFileError when the directory is no engine, InputError when it has no such program.
    """
    from rich.console import Console

    from ..engine.artifact import read_artifact

    artifact = read_artifact(path)
    if nfe is not None and nfe not in artifact.programs:
        held = ", ".join(map(str, sorted(artifact.programs)))
        raise InputError(f"--nfe {nfe}: this engine has no such program; it has {held}")
    chosen = {n: artifact.programs[n] for n in sorted(artifact.programs) if nfe in (None, n)}
    if as_json:
        data = _as_data(artifact, chosen)
        print(json_format.dumps(data if running is None else {**data, "running": dict(running)}, indent=1))
        return
    console = Console(highlight=False, markup=False, soft_wrap=False)  # names may hold [ and ]
    if nfe is None:
        console.print(_facts(artifact, running or {}))
        console.print(_programs(chosen))
    else:
        console.print(_programs(chosen))
        console.print(_coefficients(chosen[nfe]))


def _as_data(artifact: Artifact, programs: Mapping[int, Program]) -> dict[str, Any]:
    from ..engine.plans.store import stored_plans
    from ..engine.runtime.compiled import beside_the_network

    return {
        "path": str(artifact.path),
        "contract": artifact.contract.to_dict(),
        "decoder": artifact.decoder.to_dict() if artifact.decoder else None,
        "text_encoders": artifact.text_encoders.to_dict() if artifact.text_encoders else None,
        "image_encoder": artifact.image_encoder.to_dict() if artifact.image_encoder else None,
        "batch": list(artifact.batch),
        "precision": artifact.precision,
        "programs": {str(n): {**json_format.loads(p.to_json()), "digest": p.digest} for n, p in programs.items()},
        "files": {name: asdict(record) for name, record in artifact.files.items()},
        "plans": {path.name: asdict(key) if key else None for path, key in stored_plans(artifact).items()},
        "provenance": dict(artifact.provenance),
        "beside_the_network": beside_the_network(),
    }


def _plans(artifact: Artifact) -> list[str]:
    """A line for each TensorRT plan in the engine's cache."""
    from ..engine.artifact import NETWORK
    from ..engine.plans.store import stored_plans

    lines = []
    for path, key in stored_plans(artifact).items():
        gpu = f" {key.gpu}" if key and key.gpu else ""
        what = f", {Path(key.file).stem}" if key and key.file != NETWORK else ""
        said = f"{key.flavour} {key.version} for {key.capability}{gpu}{what}" if key else f"{path.name}: unreadable"
        lines.append(said)
    return lines


def _facts(artifact: Artifact, running: Mapping[str, str]) -> Table:
    from rich.filesize import decimal
    from rich.table import Table

    from ..engine.runtime.compiled import beside_the_network

    contract = artifact.contract
    low, high = contract.data_range
    searched = artifact.provenance.get("search", {})
    texts = artifact.text_encoders
    encoded = texts.encoded if texts else frozenset[str]()
    rows = [
        ("network", f"{contract.name}: {contract.input} {list(contract.shape)} -> {contract.prediction}"),
        *((("decoder", _decoder(artifact.decoder)),) if artifact.decoder else ()),
        ("schedule", f"{contract.schedule}, {'images' if artifact.decoder else 'data'} in [{low:g}, {high:g}]"),
        *(("text encoder", _text_encoder(one)) for one in (texts.encoders if texts else ())),
        *((("image encoder", _image_encoder(artifact.image_encoder)),) if artifact.image_encoder else ()),
        *(("condition", _condition(one, encoded)) for one in contract.conditions),
        ("precision", artifact.precision),
        ("batch", ", ".join(map(str, artifact.batch))),
        *(
            ("file", f"{name}, {decimal(record.bytes)}, sha256 {record.sha256[:12]}")
            for name, record in artifact.files.items()
        ),
        *(("plan", line) for line in _plans(artifact)),
        *(
            (key.replace("_", " "), line)
            for key, value in artifact.provenance.items()
            for line in _came_from(key, value)
            if key not in ("network", "search", "precision_record", "precision_choice")
        ),
        *_precision(artifact.provenance),
        *(
            ("choice" if "calls" in searched[nfe] else "search", _search(searched[nfe]))
            for nfe in sorted(searched, key=int)
        ),
        ("beside the network", beside_the_network()),
        *running.items(),
    ]
    title = printable(str(artifact.path))
    table = Table(box=None, show_header=False, pad_edge=False, title=title, title_justify="left")
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(printable(name), printable(value))
    return table


def _decoder(decoder: DecoderContract) -> str:
    """`AutoencoderKL: latents / 0.18215 + 0 -> image [3, 512, 512], fp32`."""
    words = ("one a channel" if isinstance(one, tuple) else f"{one:g}" for one in (decoder.scaling, decoder.shift))
    scaling, shift = words
    return f"{decoder.name}: latents / {scaling} + {shift} -> image {list(decoder.image)}, {decoder.precision}"


def _text_encoder(encoder: TextEncoder) -> str:
    """`text_encoder: 77 tokens of a --prompt, fp32`."""
    return f"{encoder.contract.name}: {encoder.contract.length} tokens of a --prompt, {encoder.contract.precision}"


def _image_encoder(encoder: DecoderContract) -> str:
    """`AutoencoderKL: --image [3, 512, 512] -> [4, 64, 64], fp32`."""
    return f"{encoder.name}: --image {list(encoder.shape)} -> {list(encoder.image)}, {encoder.precision}"


def _condition(condition: Condition, encoded: Collection[str] = ()) -> str:
    words = [f"--{condition.name}", *([f"or --{condition.alias}"] if condition.alias else []), condition.dtype]
    if condition.shape:
        words.append(str(list(condition.shape)))
    if condition.low is not None and condition.high is not None:
        words.append(f"{condition.low}..{condition.high}")
    given = "made of a prompt" if condition.name in encoded else "must be given"
    words.append(given if condition.default is None else f"default {condition.default}")
    labels = f": {', '.join(condition.labels)}" if condition.labels else ""
    return " ".join(words) + labels


def _came_from(key: str, value: Any) -> list[str]:
    """A line for each LoRA, one for a repository of the hub, and whatever else is there as it is."""
    if key == "lora" and isinstance(value, list) and all(isinstance(one, dict) for one in value):
        return [f"{one.get('file')}:{one.get('strength')}, sha256 {str(one.get('sha256'))[:12]}" for one in value]
    if key == "hub" and isinstance(value, dict):
        return [f"{value.get('repository')} at {value.get('commit')}"]
    return [str(value)]


def _precision(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the precision costs and how it was chosen; --json has the whole record."""
    from ..export.precision.added import said

    rows: list[tuple[str, str]] = []
    if isinstance(record := provenance.get("precision_record"), dict) and isinstance(record.get("samples"), dict):
        added = (f"{name} {said(one)}" for name, one in record["samples"].items())
        rows.append(("added to samples", f"RMS {', '.join(added)}"))
        parts = {"decoder": record.get("decoder"), "image encoder": record.get("image_encoder")}
        parts["observation encoder"] = record.get("observation_encoder")
        parts |= record.get("text_encoders") or {}
        rows += [(f"{name} holds", _inside(part)) for name, part in parts.items() if isinstance(part, dict)]
    if isinstance(choice := provenance.get("precision_choice"), dict):
        added = choice.get("added", {}).get(choice.get("chosen"), {})
        if not rows and any(added.values()):  # of a module in fp16 or bf16 there is no other record
            errors = (f"NFE {nfe} {error:.2g}" for nfe, error in added.items())
            rows.append(("added to samples", f"RMS {', '.join(errors)}"))
        times = (f"{name} {ms:.3g} ms" for name, ms in choice.get("milliseconds", {}).items())
        rows.append(("precision chosen", f"of {', '.join(times)} a sample"))
    return rows


def _inside(part: Mapping[str, Any]) -> str:
    """`int8, 24 of 24 linear layers` of what stands beside the network, or why it is in floating point."""
    from ..export.precision.inside import layers_line

    layers = part.get("layers")
    if isinstance(layers, dict):
        return f"{part.get('precision', 'int8')}, {layers_line(layers)}"
    return ", ".join(f"{dtype}: {why}" for dtype, why in part.items())


def _search(record: Mapping[str, Any]) -> str:
    """`NFE 8: ddim, error 0.0123, held out 0.0131, 16 and 32 seeds`, of the best that was found; --json has it all."""
    best = record["ranking"][0]
    errors = (("error", best["error"], "calibration_seeds"), ("held out", best["held_out_error"], "held_out_seeds"))
    said = [one for one in errors if one[1] is not None]
    words = [f"{name} {value:.3g}" for name, value, _ in said]
    words += [f"{' and '.join(str(record[seeds]) for _, _, seeds in said)} seeds"] if said else []
    words += [] if words else ["by rule, not measured"]
    refinement = record.get("refinement") or {}
    if refinement.get("kept"):
        from .tune import trained_on

        words.append(f"refined {trained_on(refinement)}")
    rivals = len(record["ranking"]) - 1
    words += [f"best of {rivals + 1}"] if rivals else []
    placed = "from" if refinement.get("kept") else "on"  # the programs below have the times that refining moved to
    return ", ".join((f"NFE {record['nfe']}: {best['solver']} {placed} {best['grid']}", *words))


def _programs(programs: Mapping[int, Program]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("NFE", justify="right")
    for name in ("solver", "grid", "basis", "buffers"):
        table.add_column(name, justify="right" if name == "buffers" else "left", overflow="fold")
    table.add_column("times", overflow="fold")
    for nfe, program in programs.items():
        grid = program.grid if isinstance(program.grid, str) else f"{len(program.grid)} given times"
        solver = program.solver + (f" clip {program.clip:g}" if program.clip is not None else "")
        times = " ".join(f"{t:.6g}" for t in program.times)
        cells = (str(nfe), solver, grid, program.basis, str(program.buffers), times)
        table.add_row(*map(printable, cells))
    return table


def _coefficients(program: Program) -> Table:
    """Rows: the network's inputs y_0 ... y_N-1 and the sample; columns: noise, draws, the N predictions."""
    from rich import box
    from rich.table import Table

    columns = program.columns
    shown = min(len(columns), WIDEST_TABLE)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    table.add_column("", no_wrap=True, min_width=6)
    for name in columns[:shown]:
        table.add_column(name, justify="right", no_wrap=True)
    for row in range(program.nfe + 1):
        values = [f"{value:.3g}" if value else "" for value in program.table[row, :shown]]
        table.add_row("result" if row == program.nfe else f"y_{row}", *values)
    table.caption = f"{shown} of {len(columns)} columns, rounded to three digits; --json has all of them in full"
    table.caption_justify = "left"
    return table
