"""The table of docs/guides/precision.md is that of the study's file."""

from __future__ import annotations

import json
from pathlib import Path

from pfdiff.bench.studies.precision import bias_rows, refined_rows, rows

ROOT = Path(__file__).parents[2]


def test_the_table_of_the_guide_is_that_of_the_file() -> None:
    page = (ROOT / "docs" / "guides" / "precision.md").read_text(encoding="utf-8").splitlines()
    held = json.loads((ROOT / "bench" / "results" / "precision.json").read_text(encoding="utf-8"))
    shown = [line for line in page if line.startswith(("| fashion |", "| mnist |", "| dit |", "| unet |"))]
    assert shown == refined_rows(held) + rows(held) + bias_rows(held)
    assert len(shown) >= 9
