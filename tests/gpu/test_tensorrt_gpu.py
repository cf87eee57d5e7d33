"""TensorRT and TensorRT-RTX on a real GPU, where installed: a plan is built, run, captured, or clearly refused."""

from __future__ import annotations

import json
import os
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from pfdiff import BackendError
from pfdiff.engine.api import Engine
from pfdiff.engine.backends import tensorrt_cuda as tensorrt_plan
from pfdiff.engine.runtime.noise import noise

from ..comparator import assert_as_good_as_plain
from ..small.engine import SHAPE, program, small, write_engine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs an NVIDIA GPU with a driver and a CUDA build of torch"
    ),
]


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt_rtx"])
def test_a_plan_samples_or_says_why_not(flavour: str, tmp_path: Path) -> None:
    """What it answers on this compute capability is kept beside the benchmarks' figures."""
    answer = {"flavour": flavour, "gpu": torch.cuda.get_device_name(), "capability": torch.cuda.get_device_capability()}
    try:
        if find_spec(flavour) is None:
            answer["says"] = "not installed"
            pytest.skip(f"{flavour} is not installed")
        answer["says"] = tensorrt_plan.why_not(flavour, torch.device("cuda", 0)) or "supported"
        artifact = write_engine(tmp_path / "small.engine")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                engine = Engine.open(artifact, device="cuda", backend=flavour)
        except BackendError as error:
            answer["says"] = str(error)
            return
        with engine:
            z, reference = noise(range(8), SHAPE), program(6)
            x = engine.sample(noise=z, nfe=6, label=2).cpu()
            answer["execution"] = engine.execution
            plain = reference.evaluate(lambda x, t: small(x, t, label=2), z)
            exact = reference.evaluate(lambda x, t: small(x, t, label=2), z.double())
            assert_as_good_as_plain(actual=x, plain=plain, exact=exact)
            assert torch.equal(engine.sample(seeds=[3], nfe=4), engine.sample(seeds=[3], nfe=4))
    finally:
        folder = os.environ.get("PFDIFF_GPU_RESULTS")
        if folder:
            with open(Path(folder, "tensorrt.jsonl"), "a", encoding="utf-8") as file:
                file.write(json.dumps(answer) + "\n")
