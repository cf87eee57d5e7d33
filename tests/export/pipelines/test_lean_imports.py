"""What a build on the command line imports, and how its process ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

IMPORTS = """import sys
from pfdiff.export.pipelines.lean_imports import UNUSED, import_pipeline
import_pipeline()
print([name for name in UNUSED if name in sys.modules], "torch.onnx" in sys.modules)
import diffusers
diffusers.UNet2DConditionModel, diffusers.AutoencoderKL, diffusers.StableDiffusionPipeline
import scipy.stats
print(scipy.stats.norm.cdf(0.0))
"""
ENDS = """import atexit, sys
from pfdiff.cli import command
atexit.register(print, "before")
sys.argv = ["pfdiff", *sys.argv[1:]]
try:
    command()
finally:
    atexit.register(print, "after")
"""


def run(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code, *words], capture_output=True, text=True)


def test_a_pipeline_is_imported_without_what_it_does_not_use() -> None:
    pytest.importorskip("diffusers")
    pytest.importorskip("scipy")
    done = run(IMPORTS)
    assert done.stdout.splitlines() == ["[] True", "0.5"]


def test_what_is_imported_already_is_not_hidden() -> None:
    """`main` in somebody else's process hides nothing, and gives back all objects to the search for garbage."""
    code = """import gc, sys
from pfdiff.cli import main
print(main(sys.argv[1:]), gc.get_freeze_count(), None in sys.modules.values())"""
    done = run(code, "build", "nowhere", "--nfe", "4")
    assert done.stdout == "2 0 False\n"


@pytest.mark.parametrize(("words", "status"), [(["--version"], 0), (["info", "gone.engine"], 2)])
def test_a_process_ends_with_its_status_after_its_exit_handlers(words: list[str], status: int, tmp_path: Path) -> None:
    done = run(ENDS, *words)
    assert done.returncode == status
    assert done.stdout.splitlines()[-1:] == ["after"]  # of handlers the later ones; those before are the process's own
    assert done.stderr.count("\n") == (status != 0)
