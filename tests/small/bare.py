"""A fresh process that has neither diffusers nor transformers, peft or huggingface_hub.

PFDIFF_BARE names the Python of an environment without them, which `make test-bare` makes; else this one, whose
imports of them are refused.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REFUSED = ("diffusers", "transformers", "peft", "huggingface_hub")
START = f"""
import importlib.abc, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, *_):
        if name.partition(".")[0] in {REFUSED}:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import numpy, pfdiff
"""
END = f"""
assert not {{*{REFUSED}}} & {{*sys.modules}}
"""


def run_bare(code: str, folder: Path) -> None:
    """Run `code`, which has numpy and pfdiff, in `folder`. Raises CalledProcessError."""
    other = os.environ.get("PFDIFF_BARE")
    start = "import sys, numpy, pfdiff\n" if other else START
    subprocess.run([other or sys.executable, "-c", start + code + END], check=True, cwd=folder)
