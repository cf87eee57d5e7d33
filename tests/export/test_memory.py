"""What a build needs, and that each network is freed before the next is read."""

from __future__ import annotations

import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import pfdiff
from pfdiff.cli import main
from pfdiff.engine.errors import InputError
from pfdiff.export.pipelines import memory
from pfdiff.export.pipelines.memory import GIB, Need

from ..small.diffusers import FAMILIES, WARNINGS, pipeline_of
from ..small.texts import whole_pipeline

pytestmark = [*WARNINGS, pytest.mark.slow]
GIVEN: dict[str, Any] = {"solver": "ddim", "backend": "onnxruntime", "device": "cpu"}
WORDS = {key: one for key, one in FAMILIES["sd1"].words.items() if key != "guidance"}
NETWORK, DECODER, TEXT = "exporting sd1 ", "exporting the decoder", "exporting text_encoder"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory") / "sd1"
    whole_pipeline("sd1", FAMILIES["sd1"]).save_pretrained(folder)
    return folder


class Alive:
    """How many weights of denoiser and decoder are in memory at the beginning of each stage of a build."""

    def __init__(self, network: pfdiff.Network) -> None:
        assert network.decoder is not None
        modules = {"network": network._source.module, "decoder": network.decoder.module}  # type: ignore[union-attr]
        self._held = {name: [weakref.ref(one) for one in module.parameters()] for name, module in modules.items()}
        self.stages: dict[str, dict[str, int]] = {}

    def say(self, line: str) -> None:
        self.stages[line] = self.now()

    def now(self) -> dict[str, int]:
        found = {name: [one() for one in refs] for name, refs in self._held.items()}
        return {name: sum(one is not None and one.numel() > 0 for one in each) for name, each in found.items()}

    def at(self, start: str) -> dict[str, int]:
        return next(one for line, one in self.stages.items() if line.startswith(start))


def test_each_network_is_freed_before_the_next_is_read(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path gives its network away; a module that is to run stays, and gives the same files."""
    made: list[tuple[pfdiff.Network, Alive, dict[str, int]]] = []

    def disposable(self: pfdiff.Network) -> pfdiff.Network:
        alive = Alive(self)
        made.append((self, alive, alive.now()))
        return give_away(self)

    give_away = pfdiff.Network.disposable
    monkeypatch.setattr(pfdiff.Network, "disposable", disposable)
    say = lambda line: made[-1][1].say(line)  # noqa: E731
    pfdiff.build(pipeline, 4, **GIVEN, progress=say, out=tmp_path / "freed.engine").close()
    (network, alive, before) = made[0]
    assert min(before.values()) > 10
    assert alive.at(NETWORK) == before
    assert alive.at(DECODER) == {"network": 0, "decoder": before["decoder"]}
    assert alive.at(TEXT) == {"network": 0, "decoder": 0}
    conditions = {one.name: np.zeros((1, *one.shape), np.float32) for one in network.contract.conditions}
    with pytest.raises(InputError, match="network 'sd1': its weights were freed by a build; make it again"):
        network.evaluate(torch.zeros(1, *network.contract.shape), 5.0, conditions)

    # A module that is to run stays. Enough is seen when its export begins.
    def begun(line: str) -> None:
        if line.startswith(NETWORK):
            raise BegunError

    with pytest.raises(BegunError):
        pfdiff.build(pipeline, 4, **{**GIVEN, "backend": "torch"}, progress=begun, out=tmp_path / "kept.engine")
    network, alive, before = made[1]
    assert not network.frees
    network.free("network")
    assert alive.now() == before


class BegunError(Exception):
    """An export has begun."""


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
    with pytest.raises(InputError, match="its weights were freed"):
        read.evaluate(
            torch.zeros(1, 4, 8, 8), 5.0, {one.name: np.zeros((1, *one.shape)) for one in read.contract.conditions}
        )


def test_the_command_line_gives_its_network_away(pipeline: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def build(network: pfdiff.Network, *_: Any, **__: Any) -> Any:
        raise InputError(f"frees: {network.frees}")

    monkeypatch.setattr(pfdiff, "build", build)
    assert main(["build", str(pipeline), "--nfe", "4"]) == 2
    assert "frees: True" in capsys.readouterr().err


def test_the_need_is_said_before_anything_is_read(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need = Need(denoiser=10**9, decoder=10**8, encoders={"one": 5 * 10**8, "two": 10**8})
    freed, kept = need.bytes("fp32"), need.bytes("fp32", frees=False)
    assert freed == memory.BASE_BYTES + int(4 * (3.1e9 + 1e8))
    assert kept == memory.BASE_BYTES + int(4 * max(3.1e9 + 1e8, 1.1e9 + 4 * 5e8))
    small = Need(denoiser=10**8, encoders={"one": 10**8})
    assert small.bytes("fp32") == memory.BASE_BYTES + int(4 * 5.0e8)
    large = Need(denoiser=10**9, encoders={"t5": 5 * 10**9})
    assert large.bytes("fp32", frees=False) - large.bytes("fp32") == 4 * 10**9
    monkeypatch.setattr(memory, "free_bytes", lambda: 8 * GIB)
    assert need.line("fp32") == f"this build needs about {freed / GIB:.1f} GiB of memory; 8.0 GiB are free"
    assert "8.0 GiB are free, and it may be killed" in need.warning

    monkeypatch.setattr(memory, "free_bytes", lambda: 1 << 20)
    monkeypatch.setattr("pfdiff.export.sources.from_diffusers.load_model", lambda *_: pytest.fail("it was read"))
    with (
        pytest.warns(RuntimeWarning, match="a build of it needs about 0.7 GiB of memory") as said,
        pytest.raises(BaseException, match="it was read"),
    ):
        pfdiff.Network(pipeline, **WORDS)
    assert len(said) == 1


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
    with pytest.raises(InputError, match="its weights were freed by a build"):
        network.evaluate(torch.zeros(1, *network.contract.shape), 5.0)


def test_a_damaged_file_is_found_before_anything_is_read(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pfdiff.export.sources.from_diffusers.load_model", lambda *_: pytest.fail("it was read"))
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
