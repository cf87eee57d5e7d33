"""TensorRT-RTX plans of all files of engines: `python -m pfdiff.bench.studies.pipeline_plans ENGINE... [--cc 89]`.

Says for each file whether a plan is built, without a GPU, and what the refusal is. Nothing is kept in the engines.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from ...engine.artifact import read_artifact
from ...engine.errors import PfdiffError, first_line
from ...engine.plans.build import build_plan
from ...engine.plans.key import plan_key
from ..measuring.machine import RESULTS, describe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", type=Path, nargs="+")
    parser.add_argument("--cc", default="89")
    parser.add_argument("--files", nargs="+", help="only these of each engine, such as network.onnx")
    parser.add_argument("--out", type=Path, default=RESULTS / "pipeline_plans.json")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for path in given.engines:
        artifact = read_artifact(path)
        for file, contract in artifact.contracts.items():
            if given.files and file not in given.files:
                continue
            row = {"engine": path.stem, "file": file, "precision": contract.precision}
            start = time.monotonic()
            try:
                size = len(build_plan(artifact, plan_key(artifact, "tensorrt_rtx", f"sm{given.cc}", file=file)))
                row |= {"plan_bytes": size, "seconds": round(time.monotonic() - start, 1)}
            except PfdiffError as error:
                row["refused"] = first_line(error)
            rows.append(row)
            print(row, flush=True)
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(json.dumps({"machine": describe(), "cc": given.cc, "plans": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
