"""What the study of defaults samples: trained networks, shipped and third-party files, and mixtures of known score.

Each is a function network(x [n, *shape], t) -> prediction with its schedule, as `Program.evaluate` takes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from ....engine.compiler.schedule import parse_schedule
from .small_networks import RECIPES, load

MIXTURE_SEED = 7
MNIST = "mnist28_ddpm_cosine60_eps.onnx"
# Gaussian mixtures: name -> (elements, components, deviation of a component, schedule, prediction).
MIXTURES: dict[str, tuple[int, int, float, str, str]] = {
    "mixture-eps": (64, 10, 0.25, "linear:1000", "eps"),
    "mixture-vp": (16, 5, 0.1, "vp", "eps"),
    "mixture-cosine-v": (64, 10, 0.25, "cosine:1000", "v"),
    "mixture-flow3": (64, 10, 0.25, "flow:shift=3", "flow"),
    "mixture-edm": (64, 10, 0.25, "edm", "x0"),
    "mixture-latent": (64, 20, 0.4, "scaled_linear:1000", "eps"),
}
SHAPES = {"digits": (1, 8, 8), "latent": (4, 7, 7), "line": (1,)}  # of the others [2]
SEEDS = {
    "moons": 256,
    "roll": 256,
    "checker": 256,
    "line": 256,
    "digits": 16,
    "latent": 12,
    "mixture": 256,
    "fashion": 16,
    "mnist": 64,
}


@final
@dataclass(frozen=True, eq=False)
class Subject:
    """A network on `seeds` seeds; conditions are inside it."""

    name: str
    network: Callable[[Any, float], Any]
    schedule: str
    prediction: str
    shape: tuple[int, ...]
    seeds: int


def subjects(weights: Path, data: Path | None, say: Callable[[str], None]) -> list[Subject]:
    """All that can be had here; `say` gets one line for each that is missing."""
    found: list[Subject] = []
    for name, recipe in RECIPES.items():
        shape = SHAPES.get(recipe.data, (2,))
        try:
            module = load(name, weights)
        except FileNotFoundError:
            say(f"{name} is left out: {weights} has no {name}.pt; train it with small_networks")
            continue
        found.append(Subject(name, called(module), recipe.schedule, recipe.prediction, shape, SEEDS[recipe.data]))
    found += [mixture(name) for name in MIXTURES]
    found.append(_fashion())
    if data is not None and (data / MNIST).exists():
        found.append(_mnist(data / MNIST))
    else:
        say(f"mnist is left out: no {MNIST} (--data)")
    return found


def called(module: nn.Module) -> Callable[[Any, Any], Tensor]:
    """network(x, t) of a module that takes t [B]."""
    module = module.eval()

    def network(x: Tensor, t: float | Tensor) -> Tensor:
        with torch.no_grad():
            times = torch.as_tensor(t, dtype=torch.float32).expand(len(x))
            return module(x.float(), times)

    return network


def mixture(name: str) -> Subject:
    """The exact prediction for a mixture of Gaussians of equal weight: x_0 = sum_k w_k (m_k + c_k (x / alpha - m_k)).

    p(x_t | k) is normal with mean alpha m_k and variance alpha^2 d^2 + sigma^2; w_k are the posterior weights and
    c_k = alpha^2 d^2 / (alpha^2 d^2 + sigma^2).
    """
    elements, components, deviation, schedule, prediction = MIXTURES[name]
    generator = torch.Generator().manual_seed(MIXTURE_SEED)
    means = torch.randn(components, elements, generator=generator, dtype=torch.float64)
    process = parse_schedule(schedule)

    def network(x: Tensor, t: float | Tensor) -> Tensor:
        times = np.broadcast_to(np.asarray(t, np.float64), len(x))
        alpha, sigma = (torch.from_numpy(f(times))[:, None] for f in (process.alpha, process.sigma))
        x = x.double()
        variance = alpha**2 * deviation**2 + sigma**2
        away = x[:, None, :] - alpha[:, None] * means
        weights = torch.softmax(-(away**2).sum(2) / (2 * variance), 1)
        x_0 = (weights[:, :, None] * (means + (alpha * deviation**2 / variance)[:, None] * away)).sum(1)
        if prediction == "x0":
            return x_0
        # sigma eps = x - alpha x_0; at sigma > 0 always.
        eps = (x - alpha * x_0) / sigma
        return {"eps": eps, "v": alpha * eps - sigma * x_0, "flow": eps - x_0}[prediction]

    return Subject(name, network, schedule, prediction, (elements,), SEEDS["mixture"])


def _fashion() -> Subject:
    from ....export.network import Network

    shipped = Network("fashion")

    def network(x: Tensor, t: float | Tensor) -> Tensor:
        return shipped.evaluate(x.float(), t, {"label": np.arange(len(x)) % 10})

    return Subject("fashion", network, "linear:1000", "v", (1, 28, 28), SEEDS["fashion"])


def _mnist(path: Path) -> Subject:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def network(x: Tensor, t: float | Tensor) -> Tensor:
        given = {"x": x.float().numpy(), "t": np.broadcast_to(np.asarray(t), len(x)).astype(np.int64)}
        return torch.from_numpy(session.run(None, given)[0])

    return Subject("mnist", network, "cosine:60?beta_max=0.999", "eps", (1, 28, 28), SEEDS["mnist"])
