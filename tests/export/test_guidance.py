"""Guidance inside the graph: equal to plain loops, one engine for all scales, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import pfdiff
from pfdiff.engine.compiler.schedule import parse_schedule
from pfdiff.engine.errors import InputError
from pfdiff.export.check import OnnxRun
from pfdiff.export.guidance.options import ClassifierFree, ClassifierGuidance, parse_guidance

from ..small.engine import CONDITIONS, SHAPE, Small, write_onnx

NONE = 9  # the label that means "no condition" here
WORDS: dict[str, Any] = {
    "shape": SHAPE,
    "schedule": "linear:1000",
    "prediction": "eps",
    "conditions": {one.name: one for one in CONDITIONS},
}
LABELS = torch.tensor([1, 4, 7, 2])
SHIFT = torch.linspace(-0.3, 0.3, 4).reshape(4, 1, 1).expand(4, 3, 1)


def ddim_loop(eps: Callable[[Tensor, float], Tensor], noise: Tensor, nfe: int, schedule: str = "linear:1000") -> Tensor:
    """DDIM in eps, from arXiv 2010.02502 equation 12 without variance, on `trailing` times of a discrete schedule."""
    process = parse_schedule(schedule)
    times = [*pfdiff.compile("ddim", schedule, nfe, grid="trailing").times, -1.0]
    x = noise
    for s, t in pairwise(times):
        e = eps(x, s)
        x0 = (x - float(process.sigma(s)) * e) / float(process.alpha(s))
        x = float(process.alpha(t)) * x0 + float(process.sigma(t)) * e
    return x


def guided_eps(scale: Tensor, *, labels: Tensor = LABELS, shift: Tensor = SHIFT) -> Callable[[Tensor, float], Tensor]:
    module = Small()

    def eps(x: Tensor, t: float) -> Tensor:
        times = torch.full((len(x),), t)
        with torch.no_grad():
            c, u = module(x, times, labels, shift), module(x, times, torch.full_like(labels, NONE), shift)
        return u + scale.reshape(-1, 1, 1, 1) * (c - u)

    return eps


@pytest.fixture(scope="module", params=["module", "onnx"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[pfdiff.Engine]:
    folder = tmp_path_factory.mktemp(request.param)
    source: Any = Small()
    if request.param == "onnx":
        source = folder / "small.onnx"
        write_onnx(source)
    network = pfdiff.Network(source, **WORDS, guidance=f"label={NONE},scale=2")
    with pfdiff.build(
        network, 5, "ddim", grid="trailing", batch=4, backend="onnxruntime", out=folder / "a.engine"
    ) as engine:
        yield engine


# Classifier-free guidance.
def test_scale_is_an_input_of_each_sample_with_a_default(engine: pfdiff.Engine) -> None:
    assert [one.name for one in engine.contract.conditions] == ["label", "shift", "guidance"]
    assert engine.contract.conditions[-1].default == 2.0
    noise = pfdiff.noise(range(4), SHAPE)
    scales = torch.tensor([0.0, 1.0, 2.5, -1.0])
    got = engine.sample(noise=noise, label=LABELS, shift=SHIFT, guidance=scales)
    torch.testing.assert_close(got, ddim_loop(guided_eps(scales), noise, 5), atol=1e-4, rtol=1e-4)
    default = engine.sample(noise=noise, label=LABELS, shift=SHIFT)
    torch.testing.assert_close(default, ddim_loop(guided_eps(torch.full((4,), 2.0)), noise, 5), atol=1e-4, rtol=1e-4)


def test_one_is_unguided_and_zero_is_unconditional(engine: pfdiff.Engine) -> None:
    module = Small()
    run = OnnxRun(engine.path / "network.onnx", ("x", "t", "label", "shift", "guidance"), "out")
    x, t, none = torch.randn(4, *SHAPE), torch.tensor([0.0, 300.0, 700.0, 999.0]), torch.full((4,), NONE)
    for scale, label in ((1.0, LABELS), (0.0, none)):
        scales = np.full(4, scale, np.float32)
        got = run((x.numpy(), t.numpy(), LABELS.numpy(), SHIFT.numpy(), scales))
        wanted = module(x, t, label, SHIFT).detach().numpy()
        np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())


def test_a_guided_evaluation_counts_one(engine: pfdiff.Engine) -> None:
    assert list(engine.programs) == [5]
    assert engine.programs[5].nfe == 5


def test_samples_do_not_depend_on_the_batch(engine: pfdiff.Engine) -> None:
    together = engine.sample(seeds=range(3), label=LABELS[:3], guidance=[0.5, 1.5, 3.0])
    alone = engine.sample(seeds=[1], label=LABELS[1], guidance=1.5)
    torch.testing.assert_close(alone[0], together[1], atol=1e-5, rtol=1e-5)


def manual(x: Tensor, t: Tensor, scale: Tensor, inside: Tensor, rescale: float) -> Tensor:
    module = Small()
    shift = torch.zeros(len(x), 3, 1)
    with torch.no_grad():
        c, u = (module(x, t, label, shift) for label in (LABELS, torch.full_like(LABELS, NONE)))
    guided = u + torch.where(inside, scale, 1.0).reshape(-1, 1, 1, 1) * (c - u)
    width = [one.flatten(1).std(1).reshape(-1, 1, 1, 1) for one in (c, guided)]
    return rescale * guided * width[0] / width[1] + (1 - rescale) * guided


@pytest.mark.parametrize("rescale", [0.0, 0.7])
@pytest.mark.parametrize("kind", ["module", "onnx", "onnx int64"])
def test_interval_and_rescale(kind: str, rescale: float, tmp_path: Path) -> None:
    source: Any = Small()
    if kind != "module":
        source = tmp_path / "small.onnx"
        write_onnx(source, time="int64" if "int64" in kind else "float32")
    guidance = ClassifierFree({"label": NONE}, interval=(700, 300), rescale=rescale)
    network = pfdiff.Network(source, **WORDS, guidance=guidance)
    x, t, scale = torch.randn(4, *SHAPE), torch.tensor([299.0, 300.0, 700.0, 701.0]), torch.tensor([3.0, 0.5, 3.0, 0.0])
    wanted = manual(x, t, scale, torch.tensor([False, True, True, False]), rescale)
    got = network.evaluate(x, t, {"label": LABELS, "guidance": scale})
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    if kind != "module":  # the graph of a module is compared with the module by every export
        network.write(tmp_path)
        run = OnnxRun(tmp_path / "network.onnx", ("x", "t", "label", "shift", "guidance"), "out")
        shift = np.zeros((4, 3, 1), np.float32)
        graph = run((x.numpy(), t.numpy(), LABELS.numpy(), shift, scale.numpy()))
        np.testing.assert_allclose(graph, wanted.numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", ["module", "onnx"])
def test_unconditional_arrays_and_run_time_inputs(kind: str, tmp_path: Path) -> None:
    source: Any = Small()
    if kind == "onnx":
        source = tmp_path / "small.onnx"
        write_onnx(source, external=True)
    empty = torch.linspace(0, 1, 3).reshape(3, 1)
    noise, scale = torch.randn(4, *SHAPE), torch.full((4,), 2.0)
    t = torch.full((4,), 500.0)
    fixed = pfdiff.Network(source, **WORDS, guidance=ClassifierFree({"shift": empty}))
    given = pfdiff.Network(source, **WORDS, guidance="shift=input")
    assert [one.name for one in given.contract.conditions] == ["label", "shift", "shift_unconditional", "guidance"]
    values = {"label": LABELS, "shift": SHIFT, "guidance": scale}
    one = fixed.evaluate(noise, t, values)
    other = given.evaluate(noise, t, {**values, "shift_unconditional": empty})
    with torch.no_grad():
        c, u = (Small()(noise, t, LABELS, shift) for shift in (SHIFT, empty.expand(4, 3, 1)))
    torch.testing.assert_close(one, u + 2 * (c - u), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(other, one, atol=1e-6, rtol=1e-6)
    assert fixed.digest != given.digest
    if kind == "onnx":
        given.write(tmp_path)  # and compares


@pytest.mark.parametrize("opset", [13, 17])
def test_foreign_graphs_of_other_opsets_scalar_time_and_fixed_even_batch(opset: int, tmp_path: Path) -> None:
    write_onnx(tmp_path / "small.onnx", batch=6 if opset == 17 else "batch", time="scalar")
    model = onnx.load(tmp_path / "small.onnx")
    model.opset_import[0].version = opset
    onnx.save(model, tmp_path / "small.onnx")
    guidance = f"label={NONE},rescale=0.5,interval=200..600"
    network = pfdiff.Network(tmp_path / "small.onnx", **WORDS, guidance=guidance)
    assert network.contract.fixed_batch == (3 if opset == 17 else None)
    network.write(tmp_path)


def test_digest_knows_the_guidance(tmp_path: Path) -> None:
    write_onnx(tmp_path / "small.onnx")
    texts = [
        f"label={NONE}",
        "label=8",
        f"label={NONE},scale=2",
        f"label={NONE},rescale=0.5",
        f"label={NONE},interval=0..9",
    ]
    for source in (Small(), tmp_path / "small.onnx"):
        digests = {pfdiff.Network(source, **WORDS, guidance=text).digest for text in texts}
        assert len(digests) == len(texts)


# Bad input.
@pytest.mark.parametrize(
    ("guidance", "said"),
    [
        ("label", None),
        ("", "expected label=10"),
        ("label=", "got 'label='"),
        ("label=9,label=8", "got 'label=8'"),
        ("label=10", "expected values in 0..9"),
        ("label=boot", "unknown label 'boot'"),
        ("label=0.5", "got fractions"),
        ("colour=1", "unknown condition 'colour'; this network takes label, shift"),
        ("label=9,scale=much", "'much' is no number"),
        ("label=9,scale=inf", "scale inf, expected a finite number"),
        ("label=9,rescale=2", "rescale 2.0, expected 0 to 1"),
        ("label=9,interval=5", "'' is no number"),
        ("label=9,interval=5..2000", "time 2000 is outside this schedule"),
        ("scale=2", "unconditional {}"),
        (ClassifierFree({"shift": np.zeros((2, 2))}), "got shape"),
        (7, "guidance: got int"),
        ("classifier=fashion,rescale=1", "rescale belongs to classifier-free guidance"),
        ("classifier=fashion,label=1", "unexpected 'label'"),
        ("classifier=missing.py:f", "there is no file missing.py"),
        ("classifier=nothing", "expected file.py:factory"),
    ],
)
def test_bad_guidance_is_one_line(guidance: Any, said: str | None) -> None:
    if said is None:
        assert pfdiff.Network(Small(), **WORDS, guidance=guidance).contract.conditions[-1].default == 1.0
        return
    with pytest.raises(InputError) as error:
        pfdiff.Network(Small(), **WORDS, guidance=guidance)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_guidance_needs_a_value_for_none_and_an_even_batch(tmp_path: Path) -> None:
    conditions = {**WORDS["conditions"], "label": pfdiff.Condition("label", "int64")}
    with pytest.raises(InputError, match="'label' has no default; say which value means none"):
        pfdiff.Network(Small(), **{**WORDS, "conditions": conditions}, guidance="label")
    write_onnx(tmp_path / "one.onnx", batch=1)
    with pytest.raises(InputError, match="takes batches of 1 only"):
        pfdiff.Network(tmp_path / "one.onnx", **WORDS, guidance="label=9")
    with pytest.raises(InputError, match="is an ONNX file, and classifier guidance"):
        pfdiff.Network(tmp_path / "one.onnx", **WORDS, guidance=ClassifierGuidance(nn.Identity()))


def test_a_network_with_a_guidance_input_of_its_own_is_refused() -> None:
    class Distilled(nn.Module):
        def forward(self, x: Tensor, t: Tensor, guidance: Tensor, label: Tensor) -> Tensor:
            return x * guidance.reshape(-1, 1, 1, 1)

    conditions = {"guidance": pfdiff.Condition("guidance", "float32")}
    with pytest.raises(InputError, match="has an input 'guidance' of its own"):
        pfdiff.Network(Distilled(), **{**WORDS, "conditions": conditions}, guidance="label=1")


def test_texts_mean_what_they_say() -> None:
    free = ClassifierFree({"label": 10, "text": "input"}, 2.0, (100.0, 800.0), 0.7)
    assert parse_guidance("label=10, text=input, scale=2, interval=100..800, rescale=0.7") == free
    by_class = ClassifierGuidance("nets.py:judge", "label", 1.5, 1.0)
    assert parse_guidance("classifier=nets.py:judge,target=label,scale=1.5,clip=1") == by_class
