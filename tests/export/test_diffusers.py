"""diffusers' folders and pipelines: built and sampled, equal to diffusers' own pipelines and loops.

Every class is tiny and has random weights; it goes through `save_pretrained` and the code that users call. The noise is
the same; embeddings are given in place of text encoders.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pfdiff
from pfdiff.cli import main
from pfdiff.engine.artifact import read_artifact
from pfdiff.engine.plans.build import build_plan
from pfdiff.engine.plans.key import plan_key

from ..small.diffusers import FAMILIES, WARNINGS, Family, packed, pipeline_of, scheduler_of, unpacked

pytestmark = WARNINGS

SOLVER, EVALUATIONS = "pfdiff:k=2,l=1", 5
DDIM_STEPS = 4


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path]]:
    """(pipeline, engine's path) of a family, built when first asked for: from a folder, sdxl from the object."""
    held: dict[str, tuple[Any, Path]] = {}
    top = tmp_path_factory.mktemp("diffusers")

    def get(name: str) -> tuple[Any, Path]:
        if name not in held:
            family, folder, path = FAMILIES[name], top / name, top / f"{name}.engine"
            pipeline = pipeline_of(family)
            source: Any = pipeline if name == "sdxl" else folder
            pipeline.save_pretrained(folder)
            if name == "dit":
                (folder / "unet").rename(folder / "transformer")
            if name == "unet":
                given = ["--nfe", str(DDIM_STEPS), "--solver", "ddim", "--grid", "diffusers", "-o", str(path)]
                assert main(["build", str(folder), *given]) == 0
            words = {"solver": "ddim", "grid": "diffusers", "batch": 2, "backend": "onnxruntime", "out": path}
            network = pfdiff.Network(source, **family.words)
            pfdiff.build(network, DDIM_STEPS, **words).close()
            pfdiff.build(network, EVALUATIONS, **{**words, "solver": SOLVER}).close()
            held[name] = pipeline, path
        return held[name]

    return get


@torch.no_grad()
def theirs(family: Family, pipeline: Any, noise: Tensor, steps: int) -> Tensor:
    """The latents of diffusers' own pipeline, or of the loop that its scheduler documents."""
    if not family.pipeline:
        model, scheduler, x = pipeline.unet, pipeline.scheduler, noise * pipeline.scheduler.init_noise_sigma
        given = {"class_labels": torch.full((len(x),), 7)} if family.sample else {}
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            out = model(x, timestep=t.expand(len(x)), **given).sample[:, : x.shape[1]]
            x = scheduler.step(out, t, x).prev_sample
        return x
    pipeline.set_progress_bar_config(disable=True)
    flat, size = family.pipeline == "FluxPipeline", 8 * pipeline.vae_scale_factor
    words = {"num_inference_steps": steps, "output_type": "latent", "height": size, "width": size, **family.run}
    inputs = {name: one.repeat(len(noise), *[1] * (one.ndim - 1)) for name, one in family.inputs.items()}
    latents = pipeline(**inputs, **words, latents=packed(noise) if flat else noise).images
    return unpacked(latents) if flat else latents


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["ddim", SOLVER])
@pytest.mark.parametrize("name", FAMILIES)
def test_engine_equals_diffusers(engines: Any, name: str, solver: str) -> None:
    family = FAMILIES[name]
    pipeline, path = engines(name)
    pipeline.scheduler = own = scheduler_of(family)
    steps = DDIM_STEPS
    if solver != "ddim":
        pipeline.scheduler = pfdiff.PFDiffScheduler.from_config(own.config, solver=solver)
        steps = EVALUATIONS
    with pfdiff.load(path, backend="onnxruntime") as engine:
        noise = torch.randn(2, *engine.contract.shape, generator=torch.Generator().manual_seed(5))
        got = engine.sample(noise=noise, nfe=steps, **family.inputs, **family.sample)
        times = engine.contract.feed_times(engine.programs[steps].network_times)
        pixels = engine.images(noise=noise, nfe=steps, **family.inputs, **family.sample) if family.decoder else None
    wanted = theirs(family, pipeline, noise, steps)
    fed = pipeline.scheduler.timesteps.double().numpy() * (1e-3 if name == "flux" else 1)
    np.testing.assert_allclose(times, fed, rtol=1e-6)
    assert wanted.std() > 0.1
    torch.testing.assert_close(got, wanted, atol=1e-4 * float(wanted.abs().max()), rtol=1e-4)
    if pixels is not None:
        decoder = pipeline.vae
        with torch.no_grad():
            images = decoder.decode(wanted / decoder.config.scaling_factor).sample
        expected = ((images + 1) * 127.5).clamp(0, 255).permute(0, 2, 3, 1)
        assert (pixels - expected).abs().max() < 0.51


# TensorRT plans, which TensorRT-RTX builds without a GPU; it refuses none of these.
@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_rtx_builds_a_plan(engines: Any, name: str) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")
    artifact = read_artifact(engines(name)[1])
    assert build_plan(artifact, plan_key(artifact, "tensorrt_rtx", "sm89"))
