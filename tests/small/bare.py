"""A fresh process that has neither diffusers nor transformers, peft or huggingface_hub."""

from __future__ import annotations

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
    subprocess.run([sys.executable, "-c", START + code + END], check=True, cwd=folder)
