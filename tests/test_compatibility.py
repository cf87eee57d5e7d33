"""What stays as it was at commit e9258ea: commands with their options, and an engine that was built there.

tests/data/e9258ea holds that commit's command line (commands.json), an engine of source.onnx and its samples. A new
option adds a line to ADDED with the commit that brings it. Nothing in the folder ever changes.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import typer.main

import pfdiff
from pfdiff.cli import app

THEN = Path(__file__).parent / "data" / "e9258ea"
# Option by command, beyond those of e9258ea.
ADDED: dict[str, set[str]] = {
    "bench": {"--seconds", "--loop", "--load"},
    "build": {
        "--data-range",
        "--time-map",
        "--lora",
        "--controlnet",
        "--no-encoders",
        "--quantise-error",
        "--calibrate-prompts",
        "--calibrate-conditions",
    },
    "compare": {"--data-range", "--time-map", "--prompt", "--negative-prompt"},
    "demo": {"what"},
    "export": {"--triton", "--pixels", "--from-seeds"},
    "evaluate": {"--prompt", "--negative-prompt"},
    "generate": {"--prompt", "--negative-prompt"},
    "sample": {"--prompt", "--negative-prompt", "--image", "--mask", "--strength", "--strength-counts"},
    "tune": {"--data-range", "--time-map", "--criterion", "--buffers", "--prompt", "--negative-prompt"},
}
# Defaults that are others now, by command and option: the sampler is chosen by rule, two architectures came.
CHANGED = {
    ("build", "--solver"): "'auto'",
    ("kernels", "--cc"): "'75,80,86,89,90,100,103,120,121'",
}
# Commands beyond those of e9258ea.
ADDED_COMMANDS: set[str] = {"serve", "table"}


def command_line() -> dict[str, dict[str, Any]]:
    """Of every command, each option's longest name and default."""
    group: Any = typer.main.get_command(app)
    return {
        name: {max(option.opts, key=len): option for option in command.params}
        for name, command in group.commands.items()
    }


def test_no_command_is_lost_and_none_comes_unnoticed() -> None:
    then = json.loads((THEN / "commands.json").read_text())["commands"]
    assert set(command_line()) == set(then) | ADDED_COMMANDS


def test_every_option_keeps_its_names_and_default() -> None:
    then = json.loads((THEN / "commands.json").read_text())
    now = command_line()
    for command, options in then["commands"].items():
        found = {name: repr(option.default) for name, option in now[command].items()}
        added = ADDED.get(command, set())
        expected = {name: CHANGED.get((command, name), default) for name, default in options.items()}
        assert {name: default for name, default in found.items() if name not in added} == expected, command
        assert added <= set(found), command
        for option, short in then["short"].get(command, {}).items():
            opts = now[command][option].opts + now[command][option].secondary_opts
            assert ({short} if isinstance(short, str) else set(short)) <= set(opts), (command, option)


def test_an_engine_of_then_samples_as_then(tmp_path: Path) -> None:
    """Same bits on the same processor; between instruction sets ONNX Runtime's tanh differs in its last bits."""
    folder = shutil.copytree(THEN / "engine", tmp_path / "engine")
    samples = np.load(THEN / "samples.npy")
    with pfdiff.load(folder, device="cpu", backend="onnxruntime") as engine:
        for nfe, then in zip((5, 8), samples, strict=True):
            now = engine.sample(seeds=range(4), nfe=nfe).numpy()
            assert np.abs(now - then).max() <= 2e-5 * np.abs(then).max()


def test_an_engine_of_then_is_up_to_date(tmp_path: Path) -> None:
    folder = shutil.copytree(THEN / "engine", tmp_path / "engine")
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}
    network = pfdiff.Network(THEN / "source.onnx", shape=(2, 5, 7), schedule="linear:1000", prediction="eps")
    pfdiff.build(network, nfe=[5, 8], solver="pfdiff:k=2,l=1", grid="logsnr", batch=[1, 4], out=folder)
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()} == before
