"""The same samples as others draw them: a loop over network evaluations in Python.

plain_ddim, plain_pfdiff   a scheduler written down once, in PyTorch
diffusers_loop             diffusers' own scheduler in its pipelines' loop, where diffusers is installed
numpy_ddim                 ONNX Runtime asked once a step, updates in NumPy: what a user of the ONNX file writes
plain_program              any of our programs operation by operation

The networks of the first two and of the last may have gone through torch.compile. All take (network, program, dtype,
conditions), where program says times, schedule and prediction, and return sample(noise) -> samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...engine.compiler.compile import compile as compile_program
from ...engine.compiler.grid import make_grid
from ...engine.compiler.program import Program
from ...engine.compiler.schedule import parse_schedule
from ...engine.compiler.solvers import parse_solver
from ...engine.compiler.solvers.pfdiff import PFDiff
from ...engine.errors import PfdiffError

Network = Callable[..., torch.Tensor]
Sample = Callable[[torch.Tensor], torch.Tensor]

# solver: (diffusers' class, what makes it that solver)
DIFFUSERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "dpm++:2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "unipc:order=2": ("UniPCMultistepScheduler", {"solver_order": 2, "solver_type": "bh2"}),
}
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction"}
BETAS = {"linear:1000": ("linear", 1e-4, 0.02), "scaled_linear:1000": ("scaled_linear", 0.00085, 0.012)}


def fed(network: Network, dtype: torch.dtype, conditions: Sequence[torch.Tensor]) -> Callable[[Any, float], Any]:
    """network(x float32, t) -> float32: the casts and the time tensor that every loop makes."""

    def evaluate(x: torch.Tensor, t: float) -> torch.Tensor:
        times = torch.full((len(x),), float(t), dtype=torch.float32, device=x.device)
        return network(x.to(dtype), times, *conditions).float()

    return evaluate


def why_not_compiled() -> str:
    """Why torch.compile cannot be used here, in one line; empty when it can."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        return f"torch.compile: {str(error).splitlines()[0]}"
    return ""


def difference(drawn: Any, expected: torch.Tensor) -> float:
    """The largest difference of two samples relative to the largest element."""
    return float((torch.as_tensor(drawn, device=expected.device) - expected).abs().max() / expected.abs().max())


def same_sample(who: str, drawn: Any, expected: torch.Tensor, tolerance: float) -> float:
    """The `difference` of two samples. Raises PfdiffError above the tolerance."""
    error = difference(drawn, expected)
    if not error <= tolerance:  # NaN is neither
        raise PfdiffError(f"{who}: another sample, by {error:.1e} of the largest element; allowed are {tolerance:g}")
    return error


# Written by hand.
def plain_ddim(network: Network, program: Program, dtype: torch.dtype, conditions: Sequence[torch.Tensor]) -> Sample:
    """DDIM (Song et al., arXiv 2010.02502, equation 12) at the program's times, coefficients from a device table."""
    times, alphas, sigmas = _process(program, [*program.times])
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


def plain_pfdiff(network: Network, program: Program, dtype: torch.dtype, conditions: Sequence[torch.Tensor]) -> Sample:
    """PFDiff of any k, l over DDIM in eps (arXiv 2408.08822, algorithm 1) on the program's grid."""
    solver = parse_solver(program.solver)
    assert isinstance(solver, PFDiff)
    assert program.basis == "eps"
    process, (k, l) = parse_schedule(program.schedule), (solver.k, int(solver.l))
    grid = make_grid(program.grid, process, solver.intervals(program.nfe), program.t_start, program.end)
    times, alphas, sigmas = _process(program, [*grid[:-1]])
    evaluate = fed(network, dtype, conditions)
    from_v = program.prediction == "v"

    @torch.inference_mode()
    def sample(noise: torch.Tensor) -> torch.Tensor:
        alpha, sigma = (torch.tensor(one, dtype=torch.float32, device=noise.device) for one in (alphas, sigmas))

        def score(x: torch.Tensor, i: int) -> torch.Tensor:
            out = evaluate(x, times[i])
            return alpha[i] * out + sigma[i] * x if from_v else out

        def phi(eps: torch.Tensor, x: torch.Tensor, i: int, j: int) -> torch.Tensor:
            return alpha[j] * (x - sigma[i] * eps) / alpha[i] + sigma[j] * eps

        eps = score(noise, 0)
        x = phi(eps, noise, 0, 1)
        for i in range(1, len(times), k + 1):
            springboard = phi(eps, x, i, i + l)
            eps = score(springboard, i + l)
            x = phi(eps, x, i, i + k + 1)
        return x

    return sample


def numpy_ddim(session: Any, program: Program, names: Sequence[str], conditions: Sequence[NDArray[Any]]) -> Any:
    """DDIM over an onnxruntime session; names: of x, t and the conditions. Arrays in, arrays out."""
    times, alphas, sigmas = _process(program, [*program.times])
    from_v = program.prediction == "v"
    fixed = dict(zip(names[2:], conditions, strict=True))

    def sample(noise: NDArray[np.float32]) -> NDArray[np.float32]:
        x = noise
        for n, t in enumerate(times):
            [out] = session.run(None, {names[0]: x, names[1]: np.full(len(x), t, np.float32), **fixed})
            eps = alphas[n] * out + sigmas[n] * x if from_v else out
            x_0 = alphas[n] * x - sigmas[n] * out if from_v else (x - sigmas[n] * eps) / alphas[n]
            x = alphas[n + 1] * x_0 + sigmas[n + 1] * eps
        return x

    return sample


def _process(program: Program, times: Sequence[Any]) -> tuple[list[float], list[float], list[float]]:
    """The times as numbers; alpha and sigma at each of them and, last, at the clean point."""
    process, given = parse_schedule(program.schedule), [float(t) for t in times]
    alphas, sigmas = ([float(of(np.float64(t))) for t in given] for of in (process.alpha, process.sigma))
    return given, [*alphas, 1.0], [*sigmas, 0.0]


def plain_program(network: Network, program: Program, dtype: torch.dtype, conditions: Sequence[torch.Tensor]) -> Sample:
    """`Program.evaluate` on device tensors."""
    evaluate = fed(network, dtype, conditions)

    @torch.inference_mode()
    def sample(noise: torch.Tensor) -> torch.Tensor:
        return program.evaluate(evaluate, noise)

    return sample


# diffusers.
def has_diffusers() -> bool:
    return find_spec("diffusers") is not None


def diffusers_loop(
    network: Network, program: Program, dtype: torch.dtype, conditions: Sequence[torch.Tensor]
) -> Sample:
    """The loop of diffusers' pipelines around its scheduler of the program's solver, with trailing spacing."""
    scheduler = _scheduler(program.solver, program.schedule, program.prediction)
    evaluate = fed(network, dtype, conditions)

    @torch.inference_mode()
    def sample(noise: torch.Tensor) -> torch.Tensor:
        scheduler.set_timesteps(program.nfe, device=noise.device)
        x = noise
        for t in scheduler.timesteps:
            x = scheduler.step(evaluate(x, t.item()), t, x).prev_sample
        return x

    return sample


def diffusers_program(solver: str, schedule: str, nfe: int, prediction: str) -> Program:
    """Our program of the same solver at the very times of diffusers' scheduler."""
    from ...export.sources.diffusers_config import read_config

    scheduler = _scheduler(solver, schedule, prediction)
    points = read_config({**scheduler.config, "_class_name": type(scheduler).__name__}).points(nfe)
    assert points is not None
    return compile_program(solver, schedule, nfe, grid=list(points), prediction=prediction)


def _scheduler(solver: str, schedule: str, prediction: str) -> Any:
    import diffusers  # type: ignore[import-untyped]  # optional

    name, options = DIFFUSERS[solver]
    kind, start, end = BETAS[schedule]
    return getattr(diffusers, name)(
        num_train_timesteps=1000,
        beta_start=start,
        beta_end=end,
        beta_schedule=kind,
        prediction_type=PREDICTIONS[prediction],
        timestep_spacing="trailing",
        **options,
    )
