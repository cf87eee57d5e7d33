"""TensorRT plans: really built by TensorRT-RTX without a GPU, and refused when they are not exactly what is needed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import pfdiff
from pfdiff.engine.artifact import Artifact, FileRecord, records_of
from pfdiff.engine.contract import DecoderContract
from pfdiff.engine.plans import build as plans

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


@pytest.fixture(autouse=True)
def own_state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


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


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Artifact:
    """An artifact whose plan need not be built: the stored bytes are ours."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "network.onnx").write_bytes(b"network")
    contract = pfdiff.Contract(name="small", shape=(3, 8, 8), schedule="vp", prediction="eps")
    program = pfdiff.compile("ddim", "vp", 2)
    return Artifact(folder, contract, (1,), "fp32", {2: program}, {}, records_of(folder))


@pytest.mark.slow
def test_rtx_builds_without_a_gpu_and_twice_the_same(artifact):
    key = plans.plan_key(artifact, "tensorrt_rtx", "sm89")
    phases: list[tuple[str, int, int]] = []
    first = plans.build_plan(artifact, key, lambda *step: phases.append(step))
    second = plans.build_plan(artifact, key)
    assert len(first) > artifact.network_path.stat().st_size // 2
    assert hashlib.sha256(first).digest() == hashlib.sha256(second).digest()
    assert phases


@pytest.mark.slow
def test_precision_never_changes_silently(artifact):
    other = {"fp32": "fp16", "fp16": "fp32"}[artifact.precision]
    wrong = dataclasses.replace(artifact, contract=dataclasses.replace(artifact.contract, precision=other))
    with pytest.raises(pfdiff.BackendError, match=f"{other} means"):
        plans.build_plan(wrong, plans.plan_key(wrong, "tensorrt_rtx", "sm89"))


def test_network_and_decoder_have_plans_of_their_own(small, tmp_path):
    before = plans.plan_key(small, "tensorrt_rtx", "sm89")
    decoder = DecoderContract("up", (3, 8, 8), (3, 16, 16), precision="fp16")
    keys = []
    for content in (b"decoder", b"another"):
        record = FileRecord(hashlib.sha256(content).hexdigest(), len(content))
        latent = dataclasses.replace(small, decoder=decoder, files={**small.files, "decoder.onnx": record})
        assert plans.plan_key(latent, "tensorrt_rtx", "sm89") == before  # its decoder is not the network's business
        keys.append(plans.plan_key(latent, "tensorrt_rtx", "sm89", file="decoder.onnx"))
        assert (keys[-1].precision, before.precision) == ("fp16", "fp32")
    assert len({before.name, *(key.name for key in keys)}) == 3
    plans.store_plan(dataclasses.replace(small, path=tmp_path), keys[0], b"plan")
    with pytest.raises(pfdiff.EngineFileError, match=r"no plan for sm89 is stored in '.*plans'$"):
        plans.read_plan(dataclasses.replace(small, path=tmp_path), before)  # the decoder's is none of its own


def test_unsupported_compute_capability(small):
    key = plans.plan_key(small, "tensorrt_rtx", "sm90")
    with pytest.raises(pfdiff.BackendError, match="refuses the network"):
        plans.build_plan(small, key)
    builder = rtx.Builder(rtx.Logger(rtx.Logger.ERROR))
    with pytest.raises(pfdiff.BackendError, match="has no sm90; it builds for sm75, sm80, sm86, sm89, sm120, sm121"):
        plans._set_target(rtx, builder.create_builder_config(), key)


def test_a_refused_network_is_named(small):
    with pytest.raises(pfdiff.BackendError, match=r"tensorrt_rtx .* refuses the network") as caught:
        plans.build_plan(small, plans.plan_key(small, "tensorrt_rtx", "sm89"))
    assert "\n" not in str(caught.value)


def test_stored_plan_is_read_again(small):
    key = plans.plan_key(small, "tensorrt_rtx", "sm89")
    path = plans.store_plan(small, key, b"plan")
    assert plans.read_plan(small, key) == b"plan"
    assert plans.stored_plans(small)[path] == key


def damaged_by(change):
    def damage(path: Path) -> None:
        record = json.loads(path.with_suffix(".json").read_text())
        change(record)
        path.with_suffix(".json").write_text(json.dumps(record))

    return damage


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.write_bytes(b"plbn"), "was changed after it was built"),
        (lambda path: path.unlink(), "no plan for sm89 is stored"),
        (lambda path: path.with_suffix(".json").write_text("{"), "has no readable record"),
        (damaged_by(lambda record: record["key"].update(version="1.6.0")), "was built for version 1.6.0, this is "),
        (damaged_by(lambda record: record["key"].update(capability="sm86")), "built for capability sm86, this is sm89"),
        (damaged_by(lambda record: record["key"].update(precision="fp16")), "built for precision fp16, this is fp32"),
        (damaged_by(lambda record: record.update(seal="0" * 64)), "was not built by this user"),
    ],
)
def test_refused_with_the_right_sentence(small, damage, says):
    key = plans.plan_key(small, "tensorrt_rtx", "sm89")
    damage(plans.store_plan(small, key, b"plan"))
    with pytest.raises(pfdiff.EngineFileError, match=says) as caught:
        plans.read_plan(small, key)
    assert "\n" not in str(caught.value)


def test_a_plan_of_another_gpu_is_named(small, tmp_path):
    here = dataclasses.replace(small, path=tmp_path)
    plans.store_plan(here, plans.plan_key(here, "tensorrt_rtx", "sm86"), b"plan")
    with pytest.raises(pfdiff.EngineFileError, match=r"no plan for sm89 .* built for capability sm86, this is sm89"):
        plans.read_plan(here, plans.plan_key(here, "tensorrt_rtx", "sm89"))


def test_somebody_elses_plan_needs_trust(small, monkeypatch, tmp_path):
    key = plans.plan_key(small, "tensorrt_rtx", "sm80")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "theirs"))
    monkeypatch.setattr(plans, "_PROCESS_SECRET", b"theirs".ljust(32))
    plans.store_plan(small, key, b"plan")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "ours"))
    monkeypatch.setattr(plans, "_PROCESS_SECRET", b"ours".ljust(32))
    with pytest.raises(pfdiff.EngineFileError, match="was not built by this user and a plan is executable code"):
        plans.read_plan(small, key)
    assert plans.read_plan(small, key, trust=True) == b"plan"


def test_an_empty_secret_is_replaced(monkeypatch, tmp_path):
    """What a kill while it was written left: a key that everybody knows."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    path = tmp_path / "pfdiff" / "plan-secret"
    path.parent.mkdir()
    path.touch()
    made = plans._secret()
    assert made == path.read_bytes() == plans._secret()
    assert len(made) == plans.SECRET_BYTES
    assert path.stat().st_mode & 0o077 == 0
    assert [one.name for one in path.parent.iterdir()] == ["plan-secret"]


def test_a_refused_plan_is_built_again(small, monkeypatch):
    key = plans.plan_key(small, "tensorrt_rtx", "sm75")
    plans.store_plan(small, key, b"old").write_bytes(b"new")
    monkeypatch.setattr(plans, "build_plan", lambda *_: b"fresh")
    said: list[str] = []
    assert plans.obtain_plan(small, key, say=said.append) == b"fresh"
    assert "was changed after it was built" in said[0]
    assert plans.obtain_plan(small, key, say=said.append) == b"fresh"
    assert len(said) == 1


def test_every_part_of_the_key_matters(small):
    key = plans.plan_key(small, "tensorrt_rtx", "sm89")
    changes = {"version": "9", "capability": "sm86", "gpu": "x", "network": "0", "precision": "fp16", "batch": (1, 2)}
    names = {dataclasses.replace(key, **{field: value}).name for field, value in (*changes.items(), ("tf32", True))}
    assert len(names | {key.name}) == len(changes) + 2


def test_targets():
    assert plans.parse_targets("SM86, sm89,sm86") == ("sm86", "sm89")
    for bad in ("86", "sm8", "sm", "ada"):
        with pytest.raises(pfdiff.InputError, match="is no compute capability"):
            plans.parse_targets(bad)


def test_flavours():
    with pytest.raises(pfdiff.InputError, match="unknown TensorRT flavour 'trt'; known: tensorrt, tensorrt_rtx"):
        plans.load_flavour("trt")
