"""Exact probability-flow solutions, so that solvers are tested against mathematics and not against each other.

For data N(mean, std^2) the score is linear and x_t = alpha_t mean + sqrt(alpha_t^2 std^2 + sigma_t^2) z with z
constant along the flow (Karras et al., arXiv 2206.00364, appendix B). For a mixture of Gaussians the score is closed
and the flow is not: its reference is 10,000 fourth-order Runge-Kutta steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pfdiff.engine.compiler.basis import edm_preconditioning
from pfdiff.engine.compiler.schedule import Schedule, parse_schedule


@dataclass(frozen=True)
class Mixture:
    """Data x_0 ~ sum_i weight_i N(mean_i, std_i^2), the same in every coordinate; one component is the Gaussian."""

    schedule: Schedule
    means: tuple[float, ...] = (0.4,)
    stds: tuple[float, ...] = (0.7,)
    weights: tuple[float, ...] = (1.0,)

    @staticmethod
    def of(schedule: str, components: int = 1) -> Mixture:
        if components == 1:
            return Mixture(parse_schedule(schedule))
        return Mixture(parse_schedule(schedule), (-0.8, 0.5, 0.9), (0.3, 0.25, 0.4), (0.3, 0.5, 0.2))

    def eps_at(self, x, alpha, sigma):
        """E[eps | x_t = x] = -sigma times the score."""
        mean, std, weight = (np.array(v).reshape(-1, *[1] * np.ndim(x)) for v in (self.means, self.stds, self.weights))
        variance = alpha**2 * std**2 + sigma**2
        offset = x - alpha * mean
        log = np.log(weight) - offset**2 / (2 * variance) - 0.5 * np.log(variance)
        share = np.exp(log - log.max(0))
        return sigma * ((share / share.sum(0)) * offset / variance).sum(0)

    def network(self, prediction: str = "eps", sigma_data: float = 0.5):
        """A perfect network: (x_t, t) -> prediction; for edm (c_in x_t, ln(sigma)/4) -> F."""

        def predict(x, t):
            if prediction == "edm":
                t = np.exp(4 * t)
                x = x / edm_preconditioning(t, sigma_data)[0]
            alpha, sigma = float(self.schedule.alpha(t)), float(self.schedule.sigma(t))
            eps = self.eps_at(x, alpha, sigma)
            x_0 = (x - sigma * eps) / alpha if alpha else x * 0 + self.mean
            match prediction:
                case "eps":
                    return eps
                case "x0":
                    return x_0
                case "v":
                    return alpha * eps - sigma * x_0
                case "flow":
                    return eps - x_0
            _, c_skip, c_out, _ = edm_preconditioning(t, sigma_data)
            return (x_0 - c_skip * x) / c_out

        return predict

    @property
    def mean(self) -> float:
        return float(np.dot(self.means, self.weights))

    def flow(self, x, s: float, t: float, steps: int = 10_000):
        """x_t on the flow through (x, s): closed for one component, else Runge-Kutta 4 in log(sigma/alpha)."""
        alpha_s, sigma_s, alpha_t, sigma_t = (
            float(f(u)) for u in (s, t) for f in (self.schedule.alpha, self.schedule.sigma)
        )
        if len(self.means) == 1:
            mean, std = self.means[0], self.stds[0]
            scale = np.sqrt((alpha_t**2 * std**2 + sigma_t**2) / (alpha_s**2 * std**2 + sigma_s**2))
            return alpha_t * mean + scale * (x - alpha_s * mean)

        def slope(y, u):  # d(x/alpha) / d log(sigma/alpha)
            ratio = np.exp(u)
            return ratio * self.eps_at(y, 1.0, ratio)

        y, u, end = x / alpha_s, np.log(sigma_s / alpha_s), np.log(sigma_t / alpha_t)
        h = (end - u) / steps
        for _ in range(steps):
            k_1 = slope(y, u)
            k_2 = slope(y + h / 2 * k_1, u + h / 2)
            k_3 = slope(y + h / 2 * k_2, u + h / 2)
            k_4 = slope(y + h * k_3, u + h)
            y, u = y + h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + k_4), u + h
        return alpha_t * y
