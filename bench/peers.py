"""The same samples as others draw them: a Python loop over network evaluations, with and without torch.compile.

`plain_ddim` is what a scheduler library does in every step, written down once; `diffusers_ddim` is diffusers itself,
where it is installed. `plain_program` runs any of our programs operation by operation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from ..engine.program import Program
from ..engine.schedule import parse_schedule

Network = Callable[..., torch.Tensor]
Sample = Callable[[torch.Tensor], torch.Tensor]


def fed(network: Network, dtype: torch.dtype, conditions: Sequence[torch.Tensor]) -> Callable[[Any, float], Any]:
    """network(x float32, t) -> float32: the casts and the time tensor that every loop makes."""

    def evaluate(x: torch.Tensor, t: float) -> torch.Tensor:
        times = torch.full((len(x),), float(t), dtype=torch.float32, device=x.device)
        return network(x.to(dtype), times, *conditions).float()

    return evaluate


def plain_ddim(network: Network, program: Program, dtype: torch.dtype, conditions: Sequence[torch.Tensor]) -> Sample:
    """DDIM (Song et al., arXiv 2010.02502, equation 12) at the program's times, coefficients from a device table."""
    process = parse_schedule(program.schedule)
    times = [float(t) for t in program.times]
    alphas = [float(process.alpha(np.float64(t))) for t in times] + [1.0]
    sigmas = [float(process.sigma(np.float64(t))) for t in times] + [0.0]
    evaluate = fed(network, dtype, conditions)
    from_v = program.prediction == "v"

    @torch.inference_mode()
    def sample(noise: torch.Tensor) -> torch.Tensor:
        alpha, sigma = (torch.tensor(one, dtype=torch.float32, device=noise.device) for one in (alphas, sigmas))
        x = noise
        for n, t in enumerate(times):
            out = evaluate(x, t)
            eps = alpha[n] * out + sigma[n] * x if from_v else out
            x_0 = alpha[n] * x - sigma[n] * out if from_v else (x - sigma[n] * eps) / alpha[n]
            x = alpha[n + 1] * x_0 + sigma[n + 1] * eps
        return x

    return sample


def plain_program(network: Network, program: Program, dtype: torch.dtype, conditions: Sequence[torch.Tensor]) -> Sample:
    """`Program.evaluate` on device tensors."""
    evaluate = fed(network, dtype, conditions)

    @torch.inference_mode()
    def sample(noise: torch.Tensor) -> torch.Tensor:
        return program.evaluate(evaluate, noise)

    return sample


def has_diffusers() -> bool:
    return find_spec("diffusers") is not None


def diffusers_ddim(
    network: Network, program: Program, dtype: torch.dtype, conditions: Sequence[torch.Tensor]
) -> Sample:
    """diffusers' DDIMScheduler over as many steps, with trailing spacing."""
    from diffusers import DDIMScheduler  # type: ignore[import-untyped]  # optional

    predictions: dict[str, Any] = {"eps": "epsilon", "v": "v_prediction"}
    betas = {"linear:1000": ("linear", 1e-4, 0.02), "scaled_linear:1000": ("scaled_linear", 0.00085, 0.012)}
    kind, start, end = betas[program.schedule]
    scheduler: Any = DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=start,
        beta_end=end,
        beta_schedule=kind,
        clip_sample=False,
        prediction_type=predictions[program.prediction],
        timestep_spacing="trailing",
    )
    evaluate = fed(network, dtype, conditions)

    @torch.inference_mode()
    def sample(noise: torch.Tensor) -> torch.Tensor:
        scheduler.set_timesteps(program.nfe, device=noise.device)
        x = noise
        for t in scheduler.timesteps:
            x = scheduler.step(evaluate(x, t.item()), t, x).prev_sample
        return x

    return sample
