"""TensorRT plans, really built by TensorRT-RTX without a GPU; what it cannot build is refused by name."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest
import torch
from torch import nn

import pfdiff
from pfdiff.engine.artifact import Artifact, records_of
from pfdiff.engine.plans import build
from pfdiff.engine.plans.key import plan_key

rtx = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")


class Attentive(nn.Module):
    """A diffusers-style U-Net in small: GroupNorm, SiLU, attention with heads of 16, down and up, time by sine."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.time = nn.Sequential(nn.Linear(32, 64), nn.SiLU(), nn.Linear(64, 32))
        self.norm = nn.GroupNorm(8, 32)
        self.down = nn.Conv2d(32, 32, 3, stride=2, padding=1)
        self.qkv = nn.Linear(32, 96)
        self.out = nn.Linear(32, 32)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.head = nn.Conv2d(32, 3, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        angles = t.to(torch.float32)[:, None] * torch.exp(-0.5 * torch.arange(16, device=t.device))
        emb = self.time(torch.cat((angles.sin(), angles.cos()), 1).to(x.dtype))
        h = self.stem(x) + emb[:, :, None, None]
        y = self.down(nn.functional.silu(self.norm(h)))
        tokens = y.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        y = y + self.out(mixed).transpose(1, 2).unflatten(-1, y.shape[2:])
        return self.head(h + self.up(y))


@pytest.fixture(scope="module", params=["fashion-fp32", "fashion-fp16", "attention-fp32", "attention-fp16"])
def artifact(request, tmp_path_factory) -> Artifact:
    name, precision = request.param.split("-")
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    network = (
        pfdiff.Network("fashion")
        if name == "fashion"
        else pfdiff.Network(Attentive(), shape=(3, 16, 16), schedule="cosine:300", prediction="eps")
    )
    contract = network.write(folder, precision)
    program = pfdiff.compile("ddim", contract.schedule, 2, prediction=contract.prediction)
    return Artifact(folder, contract, (1, 4), precision, {2: program}, {}, records_of(folder))


@pytest.mark.slow
def test_rtx_builds_without_a_gpu_and_twice_the_same(artifact):
    key = plan_key(artifact, "tensorrt_rtx", "sm89")
    phases: list[tuple[str, int, int]] = []
    first = build.build_plan(artifact, key, lambda *step: phases.append(step))
    second = build.build_plan(artifact, key)
    assert len(first) > artifact.network_path.stat().st_size // 2
    assert hashlib.sha256(first).digest() == hashlib.sha256(second).digest()
    assert phases


@pytest.mark.slow
def test_precision_never_changes_silently(artifact):
    other = {"fp32": "fp16", "fp16": "fp32"}[artifact.precision]
    wrong = dataclasses.replace(artifact, contract=dataclasses.replace(artifact.contract, precision=other))
    with pytest.raises(pfdiff.BackendError, match=f"{other} means"):
        build.build_plan(wrong, plan_key(wrong, "tensorrt_rtx", "sm89"))


def test_unsupported_compute_capability(small):
    key = plan_key(small, "tensorrt_rtx", "sm90")
    with pytest.raises(pfdiff.BackendError, match="refuses the network"):
        build.build_plan(small, key)
    builder = rtx.Builder(rtx.Logger(rtx.Logger.ERROR))
    with pytest.raises(pfdiff.BackendError, match="has no sm90; it builds for sm75, sm80, sm86, sm89, sm120, sm121"):
        build._set_target(rtx, builder.create_builder_config(), key)


def test_a_refused_network_is_named(small):
    with pytest.raises(pfdiff.BackendError, match=r"tensorrt_rtx .* refuses the network") as caught:
        build.build_plan(small, plan_key(small, "tensorrt_rtx", "sm89"))
    assert "\n" not in str(caught.value)
