"""Where a measurement was made: what stands beside the figures in every results file.

`python -m pfdiff.bench.measuring.machine` prints this machine's folder in bench/results/.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from typing import Any

from ...engine.machine import cores, processor, version_of
from ..gpu import ROOT, slug

RESULTS = ROOT / "bench" / "results"  # what was measured, a folder for each device

PACKAGES = (
    "pfdiff",
    "numpy",
    "torch",
    "triton",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
    "diffusers",
    "ray",
    "pyarrow",
)


def describe() -> dict[str, Any]:
    """Processor, GPU (None if torch can use none), cores, system, versions, commit (None outside a checkout), UTC."""
    return {
        "processor": processor(),
        "gpu": _gpu(),
        "cores": cores(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := version_of(name))},
        "commit": commit(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def folder_name() -> str:
    """The GPU's name as `make gpu` writes it, or the processor's and its cores; letters, digits and dashes."""
    machine = describe()
    if machine["gpu"]:
        return slug(machine["gpu"])
    words = re.sub(r"\((R|TM)\)|CPU|Processor|@.*", " ", machine["processor"], flags=re.IGNORECASE)
    return f"{slug(words)}-{machine['cores']}-cores"


def _gpu() -> str | None:
    import torch  # here: what only asks for the commit does without

    from ...engine.device import why_not_cuda

    return None if why_not_cuda() else torch.cuda.get_device_name()


def commit() -> str | None:
    """The commit of the checkout this file is in, with a plus when tracked files differ from it."""
    if not (ROOT / ".git").exists():
        return None
    try:
        head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "-C", ROOT, "diff", "--quiet", "HEAD"], capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changed.returncode else "")


if __name__ == "__main__":
    print(folder_name())
