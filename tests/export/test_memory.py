"""What a build needs, and that each network is freed before the next is read."""

from __future__ import annotations

import os
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import pfdiff
from pfdiff.cli import main
from pfdiff.engine.errors import InputError
from pfdiff.export.encoders import from_pipeline
from pfdiff.export.pipelines import memory, saved_models, weights
from pfdiff.export.pipelines.memory import GIB, Need

from ..small.diffusers import FAMILIES, WARNINGS, pipeline_of
from ..small.texts import whole_pipeline

pytestmark = [*WARNINGS, pytest.mark.slow]
GIVEN: dict[str, Any] = {"solver": "ddim", "backend": "onnxruntime", "device": "cpu"}
WORDS = {key: one for key, one in FAMILIES["sd1"].words.items() if key != "guidance"}
NETWORK, DECODER, TEXT = "exporting sd1 ", "exporting the decoder", "exporting text_encoder"
IMAGE = "exporting the image encoder"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory") / "sd1"
    whole_pipeline("sd1", FAMILIES["sd1"]).save_pretrained(folder)
    return folder


class Alive:
    """Which models are in memory whenever another one is read, and at each stage of a build."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._read: list[tuple[str, weakref.ref[Any]]] = []
        self.reads: list[tuple[str, list[str]]] = []
        self.stages: dict[str, list[str]] = {}
        load = weights.load_pretrained

        def read(kind: Any, folder: Path, *given: Any, **words: Any) -> Any:
            self.reads.append((folder.name, self.now()))
            model = load(kind, folder, *given, **words)
            self._read += [(folder.name, weakref.ref(one)) for one in model.parameters()]
            return model

        for module in (saved_models, from_pipeline):
            monkeypatch.setattr(module, "load_pretrained", read)

    def now(self) -> list[str]:
        found = {name: ref() for name, ref in self._read}
        held = [(name, ref()) for name, ref in self._read]
        return [name for name in found if any(own == name and one is not None and one.numel() for own, one in held)]

    def say(self, line: str) -> None:
        self.stages[line] = self.now()

    def at(self, start: str) -> list[str]:
        return next(one for line, one in self.stages.items() if line.startswith(start))


def style(pipeline: Path, tmp_path: Path) -> Path:
    """A LoRA of one layer of the denoiser and one of the text encoder."""
    files: dict[str, torch.Tensor] = {}
    for path, layer in (("unet/diffusion_pytorch_model", "to_q"), ("text_encoder/model", "q_proj")):
        held = load_file(pipeline / f"{path}.safetensors")
        key = next(one for one in held if one.endswith(f"{layer}.weight"))
        label = f"{path.partition('/')[0]}.{key.removesuffix('.weight')}"
        out, taken = held[key].shape
        files |= {f"{label}.lora_A.weight": torch.ones(2, taken), f"{label}.lora_B.weight": torch.ones(out, 2) / 50}
    save_file(files, tmp_path / "style.safetensors")
    return tmp_path / "style.safetensors"


@pytest.mark.parametrize("fused", [False, True])
def test_each_network_is_freed_before_the_next_is_read(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fused: bool
) -> None:
    """Also with LoRA, whose text encoders and denoiser are changed by themselves; the denoiser is read again."""
    if fused:
        pytest.importorskip("peft")
    alive = Alive(monkeypatch)
    lora = style(pipeline, tmp_path) if fused else ()
    network = pfdiff.Network(pipeline, lora=lora).disposable()
    assert alive.now() == ["unet"]
    x, t = torch.ones(1, *network.contract.shape), 5.0
    conditions = {one.name: np.ones((1, *one.shape), np.float32) for one in network.contract.conditions}
    before = network.evaluate(x, t, conditions)
    pfdiff.build(network, 4, **GIVEN, progress=alive.say, out=tmp_path / "freed.engine").close()
    first = ["text_encoder"] if fused else []
    assert [name for name, _ in alive.reads] == [*first, "vae", "unet", "vae", "text_encoder"]
    assert [held for _, held in alive.reads] == [[]] * len(alive.reads)
    assert alive.at(NETWORK) == ["unet"]
    assert alive.at(DECODER) == []
    assert alive.at(IMAGE) == ["vae"]
    assert alive.at(TEXT) == alive.now() == []
    assert torch.equal(network.evaluate(x, t, conditions), before)
    assert alive.reads[-1] == ("unet", [])


@pytest.mark.parametrize("given", [{"backend": "torch"}, {"precision": "auto"}])
def test_a_module_that_is_needed_again_is_read_again(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]
) -> None:
    monkeypatch.setattr("pfdiff.export.precision.auto.CANDIDATES", ("fp32",))
    alive = Alive(monkeypatch)
    words: dict[str, Any] = {**GIVEN, **given, "calibrate_prompts": ["a"] if "precision" in given else None}
    with pfdiff.build(pipeline, 4, **words, progress=alive.say, out=tmp_path / "e.engine") as engine:
        found = engine.images(prompt="a", seeds=[3])
    assert alive.at(DECODER) == alive.at(TEXT) == []
    assert alive.now() == (["vae", "unet"] if engine.backend == "torch" else [])
    with pfdiff.load(tmp_path / "e.engine", backend="onnxruntime", device="cpu") as engine:
        assert (engine.images(prompt="a", seeds=[3]).int() - found.int()).abs().max() <= 1


def test_eight_bits_encode_prompts_without_the_denoiser(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = Alive(monkeypatch)

    def say(line: str) -> None:
        alive.say(line)
        if line.startswith(NETWORK):
            raise BegunError

    with pytest.raises(BegunError):
        pfdiff.build(pipeline, 4, **GIVEN, precision="int8", progress=say, out=tmp_path / "e.engine")
    assert alive.at(TEXT) == alive.at(NETWORK) == []


class BegunError(Exception):
    """An export has begun."""


def test_files_that_change_during_a_build_are_refused(pipeline: Path, tmp_path: Path) -> None:
    shutil.copytree(pipeline, tmp_path / "sd1")
    network = pfdiff.Network(tmp_path / "sd1", **WORDS).disposable()
    network.free("network")
    path = tmp_path / "sd1" / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: one + 1 for name, one in load_file(path).items()}, path)
    os.utime(path, ns=(1, 1))
    with pytest.raises(InputError, match=r"unet' has changed since it was read; build again"):
        network.digest  # noqa: B018


def test_what_somebody_else_holds_stays(pipeline: Path) -> None:
    owned = whole_pipeline("sd1", FAMILIES["sd1"])
    network = pfdiff.Network(owned, **WORDS).disposable()
    assert not network.frees
    read = pfdiff.Network(pipeline, decoder=owned.vae, **WORDS)
    assert not read.frees
    for one in (network, read, read.disposable()):
        for part in ("network", "decoder"):
            one.free(part)
    assert all(one.numel() for part in (owned.unet, owned.vae) for one in part.parameters())
    source: Any = read._source
    assert not any(one.numel() for one in source.module.parameters())


def test_the_command_line_gives_its_network_away(pipeline: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def build(network: pfdiff.Network, *_: Any, **__: Any) -> Any:
        raise InputError(f"frees: {network.frees}")

    monkeypatch.setattr("pfdiff.export.build.built", build)
    assert main(["build", str(pipeline), "--nfe", "4"]) == 2
    assert "frees: True" in capsys.readouterr().err


def test_the_need_is_said_before_anything_is_read(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need = Need(denoiser=10**9, decoder=10**8, encoders={"one": 5 * 10**8, "two": 10**8})
    freed, kept = need.bytes("fp32"), need.bytes("fp32", frees=False)
    assert freed == memory.BASE_BYTES + int(4 * 2.2e9)
    assert kept == memory.BASE_BYTES + int(4 * (1.1e9 + 4 * 5e8))
    assert need.bytes("fp16") < freed < need.bytes("int8") < need.bytes("bf16")
    small = Need(denoiser=10**8, encoders={"one": 10**8})
    assert small.bytes("fp32") == memory.BASE_BYTES + int(4 * 5.0e8)
    large = Need(denoiser=10**9, encoders={"t5": 5 * 10**9})
    assert large.bytes("fp32", frees=False) - large.bytes("fp32") == 4 * 10**9
    monkeypatch.setattr(memory, "free_bytes", lambda: 8 * GIB)
    monkeypatch.setattr(memory, "held_bytes", lambda: 3 * GIB)
    said = f"this build needs about {freed / GIB:.1f} GiB of memory; 11.0 GiB are free or held by it already"
    assert need.line("fp32") == said
    assert "8.0 GiB are free, and it may be killed" in need.warning

    monkeypatch.setattr(memory, "free_bytes", lambda: 1 << 20)
    monkeypatch.setattr(saved_models, "load_pretrained", lambda *_, **__: pytest.fail("it was read"))
    with (
        pytest.warns(RuntimeWarning, match="a build of it needs about 0.7 GiB of memory") as warned,
        pytest.raises(BaseException, match="it was read"),
    ):
        pfdiff.Network(pipeline, **WORDS)
    assert len(warned) == 1


def test_a_half_precision_takes_the_place_of_float32(tmp_path: Path) -> None:
    """The same file as with the weights kept, and their memory is free before the export."""
    pipeline_of(FAMILIES["unet"]).unet.save_pretrained(tmp_path / "unet")
    words: dict[str, Any] = {"schedule": "linear:1000", "prediction": "eps"}
    files = []
    for kept in (True, False):
        network = pfdiff.Network(tmp_path / "unet", **words)
        source: Any = network._source
        held = [*source.module.parameters()]
        (tmp_path / str(kept)).mkdir()
        (network.kept() if kept else network.disposable()).write(tmp_path / str(kept), "fp16")
        files.append((tmp_path / str(kept) / "network.onnx").read_bytes())
        assert {one.numel() > 0 for one in held} == {kept}
    assert files[0] == files[1]
    assert network.evaluate(torch.zeros(1, *network.contract.shape), 5.0).isfinite().all()  # read again


def test_a_damaged_file_is_found_before_anything_is_read(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saved_models, "load_pretrained", lambda *_, **__: pytest.fail("it was read"))
    for part in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        shutil.copytree(pipeline, tmp_path / "sd1", dirs_exist_ok=True)
        path = tmp_path / "sd1" / f"{part}.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(InputError, match=rf"network 'sd1': '.*{part}.safetensors' is damaged \(.*; copy") as error:
            pfdiff.Network(tmp_path / "sd1")
        assert "\n" not in str(error.value)


def test_a_text_encoder_in_half_precision_is_the_same_file(pipeline: Path, tmp_path: Path) -> None:
    """Read from a folder, its float32 weights go before the export; of an object they stay."""
    owned = whole_pipeline("sd1", FAMILIES["sd1"])
    owned.text_encoder.load_state_dict(load_file(pipeline / "text_encoder" / "model.safetensors"))
    files = []
    for name, source in (("folder", pipeline), ("object", owned)):
        encoders = pfdiff.Network(source, **WORDS).encoders
        assert encoders is not None
        (tmp_path / name).mkdir()
        encoders.write_text(tmp_path / name, "fp16", lambda line: None)
        files.append((tmp_path / name / "encoders" / "text_encoder.onnx").read_bytes())
    assert files[0] == files[1]
    assert all(one.numel() for one in owned.text_encoder.parameters())


def test_what_the_build_holds_counts_as_its_own() -> None:
    before = memory.held_bytes()
    block = np.ones(64 << 17)  # 64 MiB
    assert 0 < before < memory.held_bytes() - block.nbytes // 2
