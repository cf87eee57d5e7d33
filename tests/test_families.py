"""Every family of networks end to end: exported, sampled by an engine on onnxruntime, equal to a plain PyTorch loop.

The loops are written from the papers, in float64 outside the network, and know nothing of programs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pfdiff
from pfdiff.engine.artifact import read_artifact
from pfdiff.engine.compiler.schedule import parse_schedule
from pfdiff.engine.errors import InputError
from pfdiff.engine.plans.build import build_plan
from pfdiff.engine.plans.key import plan_key
from pfdiff.export.guidance.options import ClassifierFree, ClassifierGuidance

SHAPE = (2, 8, 8)
SIGMA_DATA = 0.5
Denoiser = Callable[[Tensor, float], Tensor]


class Block(nn.Module):
    """Convolutions around a normalisation and a time embedding, with an optional label; randomly initialised."""

    rates: Tensor

    def __init__(self, outputs: int = 2, labels: int = 0, rate: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.register_buffer("rates", rate * torch.logspace(-1.0, 0.5, 4))
        self.embed = nn.Linear(8, 16)
        self.label = nn.Embedding(labels, 16) if labels else None
        self.into = nn.Conv2d(2, 16, 3, padding=1)
        self.norm = nn.GroupNorm(4, 16)
        self.out = nn.Conv2d(16, outputs, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.features(x, t, None)

    def features(self, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        angles = t[:, None] * self.rates
        embedding = self.embed(torch.cat((angles.sin(), angles.cos()), 1).to(x.dtype))
        if self.label is not None and label is not None:
            embedding = embedding + self.label(label)
        return self.out(nn.functional.silu(self.norm(self.into(x)) + embedding[:, :, None, None]))


class Labelled(Block):
    """A Block with a label."""

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:  # type: ignore[override]
        return self.features(x, t, label)


class Judge(nn.Module):
    """A time-conditioned classifier with stride, pooling and attention: what a gradient has to go through."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(11)
        self.into = nn.Conv2d(2, 8, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.mix = nn.Conv2d(8, 24, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        y = nn.functional.silu(self.norm(self.into(x)) + (0.01 * t).cos()[:, None, None, None])
        query, key, value = self.mix(y).flatten(2).transpose(1, 2).unflatten(2, (3, 1, 8)).permute(2, 0, 3, 1, 4)
        y = y.flatten(2).transpose(1, 2) + nn.functional.scaled_dot_product_attention(query, key, value).squeeze(1)
        return 4 * self.head(y.mean(1))


@pytest.fixture(autouse=True, scope="module")
def _quiet_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


FAMILIES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "edm": (lambda: Block(), {"schedule": "edm", "prediction": "edm", "sigma_data": SIGMA_DATA}),
    "flow": (lambda: Block(rate=0.01), {"schedule": "flow:shift=3", "prediction": "flow", "time_scale": 1000.0}),
    "learned sigma": (
        lambda: Block(4, rate=0.01),
        {"schedule": "cosine:300", "prediction": "eps", "learned_sigma": True},
    ),
    "classifier-free": (
        lambda: Labelled(labels=6, rate=0.01),
        {
            "schedule": "linear:1000",
            "prediction": "v",
            "guidance": ClassifierFree({"label": 5}, interval=(200, 900), rescale=0.5),
        },
    ),
    "classifier": (
        lambda: Block(rate=0.01),
        {"schedule": "linear:1000", "prediction": "eps", "guidance": ClassifierGuidance(Judge(), clip=1.0)},
    ),
}


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[pfdiff.Network, Path]]:
    """Each family exported once, when first asked for."""
    held: dict[str, tuple[pfdiff.Network, Path]] = {}
    folder = tmp_path_factory.mktemp("families")

    def get(family: str) -> tuple[pfdiff.Network, Path]:
        if family not in held:
            make, words = FAMILIES[family]
            network = pfdiff.Network(make(), shape=SHAPE, name=family.replace(" ", "_"), **words)
            path = folder / f"{network.contract.name}.engine"
            pfdiff.build(network, 5, "ddim", grid="uniform", batch=2, backend="onnxruntime", out=path).close()
            held[family] = network, path
        return held[family]

    return get


def sampled(held: tuple[pfdiff.Network, Path], nfe: int, solver: str, noise: Tensor, **given: Any) -> Tensor:
    """The engine's samples with a further program; the network is not exported again."""
    network, path = held
    settings = {key: given.pop(key) for key in ("grid", "basis", "clip") if key in given}
    before = (path / "network.onnx").stat().st_mtime_ns
    with pfdiff.build(network, nfe, solver, **settings, batch=2, backend="onnxruntime", out=path) as engine:
        assert (path / "network.onnx").stat().st_mtime_ns == before
        return engine.sample(noise=noise, nfe=nfe, **given)


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got.double(), wanted.double(), atol=1e-4 * float(wanted.abs().max()), rtol=1e-4)


def call(module: nn.Module, x: Tensor, t: float, *conditions: Tensor) -> Tensor:
    with torch.no_grad():
        return module(x.float(), torch.full((len(x),), t), *conditions).double()


# EDM networks (arXiv 2206.00364): table 1 and algorithm 1 with S_churn = 0.
def edm_denoiser(network: nn.Module) -> Denoiser:
    def denoise(x: Tensor, sigma: float) -> Tensor:
        total = sigma**2 + SIGMA_DATA**2
        c_skip, c_out, c_in = SIGMA_DATA**2 / total, sigma * SIGMA_DATA / total**0.5, total**-0.5
        return c_skip * x + c_out * call(network, c_in * x, np.log(sigma) / 4)

    return denoise


def rho_grid(steps: int) -> list[float]:
    """sigma_i of equation 5 with rho 7, and the clean point."""
    high, low = 80.0 ** (1 / 7), 0.002 ** (1 / 7)
    return [*((high + i / (steps - 1) * (low - high)) ** 7 for i in range(steps)), 0.0]


def algorithm_1(denoise: Denoiser, noise: Tensor, steps: int, *, heun: bool) -> Tensor:
    sigmas = rho_grid(steps)
    x = sigmas[0] * noise.double()
    for t, t_next in pairwise(sigmas):
        d = (x - denoise(x, t)) / t
        y = x + (t_next - t) * d
        if heun and t_next > 0:
            y = x + (t_next - t) * (d + (y - denoise(y, t_next)) / t_next) / 2
        x = y
    return x


@pytest.mark.parametrize(("solver", "nfe"), [("edm", 7), ("ddim", 6)])
def test_edm_equals_algorithm_1(engines: Any, solver: str, nfe: int) -> None:
    noise = torch.randn(3, *SHAPE)
    got = sampled(engines("edm"), nfe, solver, noise, grid="karras", basis="eps")
    steps = (nfe + 1) // 2 if solver == "edm" else nfe
    close(got, algorithm_1(edm_denoiser(Block()), noise, steps, heun=solver == "edm"))


def test_edm_pfdiff_equals_algorithm_1_of_the_paper(engines: Any) -> None:
    """PFDiff 1_1 over Euler in sigma, arXiv 2408.08822 algorithm 1."""
    noise, nfe = torch.randn(2, *SHAPE), 5
    got = sampled(engines("edm"), nfe, "pfdiff:k=1,l=1", noise, grid="karras", basis="eps")
    denoise, sigmas = edm_denoiser(Block()), rho_grid(2 * nfe - 1)
    x = sigmas[0] * noise.double()
    d = (x - denoise(x, sigmas[0])) / sigmas[0]
    x = x + (sigmas[1] - sigmas[0]) * d
    for i in range(1, 2 * nfe - 1, 2):
        springboard = x + (sigmas[i + 1] - sigmas[i]) * d
        d = (springboard - denoise(springboard, sigmas[i + 1])) / sigmas[i + 1]
        x = x + (sigmas[i + 2] - sigmas[i]) * d
    close(got, x)


# Flow matching (arXiv 2210.02747, shift of arXiv 2403.03206).
def shifted(count: int, shift: float = 3.0) -> list[float]:
    """Times from 1 to 0, evenly spaced before the shift."""
    even = np.linspace(1.0, 0.0, count)
    return [float(time) for time in shift * even / (1 + (shift - 1) * even)]


def velocity(x: Tensor, t: float) -> Tensor:
    return call(Block(rate=0.01), x, 1000 * t)


def test_flow_equals_plain_euler(engines: Any) -> None:
    noise, times = torch.randn(3, *SHAPE), shifted(7)
    got = sampled(engines("flow"), 6, "euler", noise, grid=tuple(times))
    x = noise.double()
    for t, t_next in pairwise(times):
        x = x + (t_next - t) * velocity(x, t)
    close(got, x)


def test_flow_pfdiff_stores_the_velocity(engines: Any) -> None:
    """As for FLUX: the score that PFDiff keeps is the velocity, and a step is Euler's."""
    noise, nfe = torch.randn(2, *SHAPE), 4
    times = shifted(3 * nfe - 1)  # k = 2: (k + 1) N - k intervals
    got = sampled(engines("flow"), nfe, "pfdiff:k=2,l=1", noise, grid=tuple(times), basis="v")
    x = noise.double()
    v = velocity(x, times[0])
    x = x + (times[1] - times[0]) * v
    for i in range(1, len(times) - 1, 3):
        springboard = x + (times[i + 1] - times[i]) * v
        v = velocity(springboard, times[i + 1])
        x = x + (times[i + 3] - times[i]) * v
    close(got, x)


# Discrete processes.
def ddim(eps: Denoiser, noise: Tensor, schedule: str, nfe: int, clip: float | None = None) -> Tensor:
    """arXiv 2010.02502 equation 12 without variance, on the times of the grid `trailing`."""
    process = parse_schedule(schedule)
    times = [*pfdiff.compile("ddim", schedule, nfe, grid="trailing").times, process.clean]
    x = noise.double()
    for s, t in pairwise(times):
        alpha_s, sigma_s, alpha_t, sigma_t = (float(f(at)) for at in (s, t) for f in (process.alpha, process.sigma))
        e = eps(x, s)
        x0 = (x - sigma_s * e) / alpha_s
        if clip is not None:
            x0 = x0.clamp(-clip, clip)
            e = (x - alpha_s * x0) / sigma_s
        x = alpha_t * x0 + sigma_t * e
    return x


def test_learned_sigma_keeps_the_mean(engines: Any) -> None:
    noise = torch.randn(2, *SHAPE)
    got = sampled(engines("learned sigma"), 6, "ddim", noise, grid="trailing", clip=1.0)
    close(got, ddim(lambda x, t: call(Block(4, rate=0.01), x, t)[:, :2], noise, "cosine:300", 6, clip=1.0))


def test_classifier_free_with_interval_and_rescale(engines: Any) -> None:
    noise, scale = torch.randn(3, *SHAPE), torch.tensor([1.0, 3.0, 0.0], dtype=torch.float64)
    labels, none = torch.tensor([0, 3, 4]), torch.full((3,), 5)
    module, process = Labelled(labels=6, rate=0.01), parse_schedule("linear:1000")
    got = sampled(engines("classifier-free"), 7, "ddim", noise, grid="trailing", label=labels, guidance=scale.float())

    def eps(x: Tensor, t: float) -> Tensor:
        c, u = (call(module, x, t, label) for label in (labels, none))
        s = scale if 200 <= t <= 900 else torch.ones_like(scale)
        v = u + s.reshape(-1, 1, 1, 1) * (c - u)
        ratio = c.flatten(1).std(1) / v.flatten(1).std(1)
        v = v * (0.5 + 0.5 * ratio.reshape(-1, 1, 1, 1))
        return float(process.sigma(t)) * x + float(process.alpha(t)) * v

    close(got, ddim(eps, noise, "linear:1000", 7))


# Classifier guidance (arXiv 2105.05233, algorithm 2), x0 clipped before it.
def test_classifier_guidance_equals_autograd(engines: Any) -> None:
    noise, scale = torch.randn(3, *SHAPE), torch.tensor([0.0, 1.0, 2.0])
    target, judge = torch.tensor([0, 2, 4]), Judge().eval()
    process = parse_schedule("linear:1000")
    held = engines("classifier")
    assert held[0].contract.conditions[0] == pfdiff.Condition("target", "int64", low=0, high=4)
    got = sampled(held, 8, "ddim", noise, grid="trailing", target=target, guidance=scale)

    def eps(x: Tensor, t: float) -> Tensor:
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        x0 = ((x - sigma * call(Block(rate=0.01), x, t)) / alpha).clamp(-1, 1)
        e = (x - alpha * x0) / sigma
        at = x.float().requires_grad_()
        log_p = torch.log_softmax(judge(at, torch.full((len(x),), t)), 1)[torch.arange(3), target].sum()
        (gradient,) = torch.autograd.grad(log_p, at)
        return e - scale.double().reshape(-1, 1, 1, 1) * sigma * gradient.double()

    close(got, ddim(eps, noise, "linear:1000", 8))


@pytest.mark.parametrize(
    ("schedule", "prediction", "times"),
    [
        ("linear:1000", "v", (3.0, 999.0)),
        ("vp", "x0", (0.01, 0.9)),
        ("flow", "flow", (0.05, 0.9)),
        ("edm", "edm", (0.1, 30.0)),
        ("cosine:300", "eps", (0.0, 250.0)),
    ],
)
@pytest.mark.parametrize("clip", [None, 1.0])
def test_classifier_guidance_is_the_same_in_every_prediction(
    schedule: str, prediction: str, times: tuple[float, ...], clip: float | None
) -> None:
    """x0 <- clamp(x0) + s sigma^2 / alpha grad log p, whatever the network predicts; s = 0 is the network."""
    process, judge, module = parse_schedule(schedule), Judge().eval(), Block(rate=0.01)
    words: dict[str, Any] = {"shape": SHAPE, "schedule": schedule, "prediction": prediction}
    network = pfdiff.Network(module, **words, guidance=ClassifierGuidance(judge, clip=clip))
    target, x = torch.tensor([1, 3]), torch.randn(2, *SHAPE)
    for time in times:
        program = pfdiff.compile("ddim", schedule, 1, grid=(time, process.clean), prediction=prediction, clip=9.0)
        fed, c_in, p, q = (float(one[0]) for one in (program.network_times, program.c_in, program.p, program.q))
        x_t = x * float(np.hypot(process.alpha(time), process.sigma(time)))
        given = {"target": target}
        plain = call(module, c_in * x_t, fed)
        guided = network.evaluate(c_in * x_t, fed, {**given, "guidance": 2.0}).double()
        at = x_t.clone().requires_grad_()
        log_p = torch.log_softmax(judge(at, torch.full((2,), fed)), 1)[torch.arange(2), target].sum()
        (gradient,) = torch.autograd.grad(log_p, at)
        x0 = p * x_t.double() + q * plain
        wanted = x0 if clip is None else x0.clamp(-clip, clip)
        wanted = wanted + 2 * float(process.sigma(time)) ** 2 / float(process.alpha(time)) * gradient.double()
        got = p * x_t.double() + q * guided
        torch.testing.assert_close(got, wanted, atol=2e-5 * float(x0.abs().max() + wanted.abs().max()), rtol=1e-4)
        if clip is None:
            still = network.evaluate(c_in * x_t, fed, {**given, "guidance": 0.0}).double()
            torch.testing.assert_close(still, plain, atol=1e-6, rtol=1e-6)


def test_a_shared_label_that_is_no_class_is_not_guided() -> None:
    guidance = ClassifierGuidance(Judge(), target="label", scale=3.0)
    words: dict[str, Any] = {"shape": SHAPE, "schedule": "linear:1000", "prediction": "v"}
    network = pfdiff.Network(Labelled(labels=6, rate=0.01), **words, guidance=guidance)
    assert [one.name for one in network.contract.conditions] == ["label", "guidance"]
    x, label = torch.randn(2, *SHAPE), torch.tensor([5, 4])
    got = network.evaluate(x, 500.0, {"label": label})
    plain = call(Labelled(labels=6, rate=0.01), x, 500.0, label).float()
    torch.testing.assert_close(got[0], plain[0])
    assert float((got[1] - plain[1]).abs().max()) > 1e-3


class BadJudge(nn.Module):
    """One thing wrong with a classifier, chosen by name."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.head = nn.Linear(128, 5)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if self.how == "size":
            return self.head(x.flatten(1)[:, 1:])
        if self.how == "form":
            return x
        return self.head(x.flatten(1)) * float(x.sum())


@pytest.mark.parametrize(
    ("how", "said"), [("size", "fails with x"), ("form", "expected logits"), ("number", "cannot be traced")]
)
def test_bad_classifiers_are_one_line(how: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        pfdiff.Network(
            Block(), shape=SHAPE, schedule="linear:1000", prediction="v", guidance=ClassifierGuidance(BadJudge(how))
        )
    assert said in str(error.value)
    assert "\n" not in str(error.value)


# TensorRT plans, which TensorRT-RTX builds without a GPU; it refuses none of these families.
@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_rtx_builds_a_plan(engines: Any, family: str) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")
    artifact = read_artifact(engines(family)[1])
    key = plan_key(artifact, "tensorrt_rtx", "sm89")
    assert build_plan(artifact, key)
