"""diffusers' folders, models and pipelines without an export: what they say, and what is wrong with them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import pfdiff
from pfdiff.cli import main
from pfdiff.engine.errors import InputError

from ...small.diffusers import FAMILIES, WARNINGS, diffusers, scheduler_of, sdxl_unet, text_unet, unet

pytestmark = WARNINGS


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline's folder with a text U-Net, as Stable Diffusion 1 has its scheduler."""
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    text_unet(num_class_embeds=4).save_pretrained(folder / "unet")
    scheduler_of(FAMILIES["sd1"]).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


def test_the_configs_say_everything(saved: Path) -> None:
    network = pfdiff.Network(saved)
    contract = network.contract
    assert (contract.name, contract.shape, contract.schedule) == ("tiny", (4, 8, 8), "scaled_linear:1000")
    assert (contract.prediction, contract.time_scale, contract.learned_sigma) == ("eps", 1.0, False)
    assert contract.conditions == (
        pfdiff.Condition("encoder_hidden_states", "float32", (77, 8), alias="prompt_embeds"),
        pfdiff.Condition("class_labels", "int64", low=0, high=3),
    )
    assert network.convention is not None
    assert (network.convention.end, network.convention.clip) == ("first", None)


def test_the_caller_goes_before_the_configs(saved: Path) -> None:
    text = pfdiff.Condition("encoder_hidden_states", "float32", (16, 8), default=0.0)
    words: dict[str, Any] = {
        "schedule": "cosine:300",
        "shape": (4, 16, 8),
        "name": "other",
        "conditions": {text.name: text},
    }
    network = pfdiff.Network(saved, **words, prediction="v")
    contract = network.contract
    assert (contract.name, contract.shape, contract.schedule) == ("other", (4, 16, 8), "cosine:300")
    assert contract.prediction == "v"
    assert network.convention is None
    assert contract.conditions[0].shape == (16, 8)
    assert contract.conditions[0].default == 0
    assert pfdiff.Network(saved, prediction="v").contract.prediction == "v"


def test_sdxl_sizes_and_time_ids() -> None:
    words: dict[str, Any] = {"schedule": "scaled_linear:1000", "prediction": "eps"}
    contract = pfdiff.Network(sdxl_unet(), **words).contract
    _, pooled, ids = contract.conditions
    assert (pooled.name, pooled.shape, pooled.alias) == ("text_embeds", (12,), "pooled_prompt_embeds")
    assert (ids.name, ids.default, ids.alias) == ("time_ids", (64, 64, 0, 0, 64, 64), "add_time_ids")
    refiner = {"text_embeds": pfdiff.Condition("text_embeds", "float32", (20,))}  # five ids, one of them a score
    _, pooled, ids = pfdiff.Network(sdxl_unet(), **words, conditions=refiner).contract.conditions
    assert (pooled.shape, ids.shape, ids.default) == ((20,), (5,), None)


def test_a_half_precision_variant_is_read(copied: Path) -> None:
    weights = copied / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert pfdiff.Network(copied).contract.precision == "fp32"


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_are_read_without_bars(copied: Path, variant: str | None, capfd: pytest.CaptureFixture[str]) -> None:
    model = diffusers.UNet2DConditionModel.from_pretrained(copied / "unet")
    digest = pfdiff.Network(copied).digest
    shutil.rmtree(copied / "unet")
    model.save_pretrained(copied / "unet", max_shard_size="20KB", variant=variant)
    assert len(list((copied / "unet").glob("*.safetensors"))) > 2
    capfd.readouterr()
    assert pfdiff.Network(copied).digest == digest
    assert capfd.readouterr() == ("", "")
    min((copied / "unet").glob("*.safetensors")).unlink()
    with pytest.raises(InputError, match=r"cannot be loaded .*-00001-of-.*save it again"):
        pfdiff.Network(copied)


def edited(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def only_pickled(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


WEIGHTS = Path("unet", "diffusion_pytorch_model.safetensors")
BROKEN: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "pickled weights": (only_pickled, {}, r"has pickled weights only \(diffusion_pytorch_model.bin\).*safe_serializ"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), {}, "has no diffusion_pytorch_model.safetensors"),
    "damaged weights": (lambda folder: cut(folder / WEIGHTS), {}, "is damaged .*copy it again"),
    "other weights": (
        lambda folder: edited(folder / "unet" / "config.json", time_cond_proj_dim=8),
        {},
        "has 1 missing weights, such as time_embedding.cond_proj.weight; .*do not fit",
    ),
    "other sizes": (
        lambda folder: edited(folder / "unet" / "config.json", cross_attention_dim=9),
        {},
        r"cannot be loaded \(.*(size mismatch for|expected shape) .*save it again",
    ),
    "no index": (lambda folder: (folder / "model_index.json").unlink(), {}, "neither model_index.json .* nor config"),
    "no model": (lambda folder: shutil.rmtree(folder / "unet"), {}, "no folder unet or transformer"),
    "no autoencoder": (
        lambda folder: edited(folder / "model_index.json", vae=["diffusers", "AutoencoderKL"]),
        {},
        r"the folder vae/ .*is missing, which model_index.json names; copy it there, or give another decoder= .*null",
    ),
    "IP-Adapter": (
        lambda folder: edited(folder / "unet" / "config.json", encoder_hid_dim_type="ip_image_proj"),
        {},
        "an IP-Adapter is loaded, which is not supported",
    ),
    "no config": (lambda folder: (folder / "unet" / "config.json").unlink(), {}, "config.json is missing"),
    "no JSON": (lambda folder: cut(folder / "unet" / "config.json"), {}, "cannot be read .*copy it again"),
    "unknown class": (
        lambda folder: edited(folder / "unet" / "config.json", _class_name="UNet3DConditionModel"),
        {},
        "the class 'UNet3DConditionModel'; known are UNet2DModel, .*nn.Module",
    ),
    "unknown addition": (
        lambda folder: edited(folder / "unet" / "config.json", class_embed_type="identity"),
        {},
        "class_embed_type 'identity' is not known here; known: timestep, projection, classes",
    ),
    "no scheduler": (
        lambda folder: shutil.rmtree(folder / "scheduler"),
        {},
        r"there is no scheduler, so say schedule= \(--schedule\) and prediction= \(--prediction\), or give the folder",
    ),
    "no size": (
        lambda folder: edited(folder / "unet" / "config.json", sample_size=None),
        {},
        r"no sample_size; give shape= \(--shape 4x64x64\)",
    ),
    "another schedule alone": (
        lambda folder: None,
        {"schedule": "cosine:300"},
        r"its scheduler is not read, so say prediction= \(--prediction\) too",
    ),
    "wrong channels": (lambda folder: None, {"shape": (3, 8, 8)}, r"shape \[3, 8, 8\], expected \[4, height, width\]"),
    "wrong width": (
        lambda folder: None,
        {"conditions": {"encoder_hidden_states": pfdiff.Condition("encoder_hidden_states", "float32", (77, 9))}},
        r"condition 'encoder_hidden_states' of shape \[77, 9\], expected \[77, 8\] as its config says",
    ),
    "unknown condition": (
        lambda folder: None,
        {"conditions": {"text": pfdiff.Condition("text", "float32", (77, 8))}},
        "no condition 'text'; its conditions are encoder_hidden_states, class_labels",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_what_is_wrong_is_one_line(copied: Path, how: str) -> None:
    damage, words, said = BROKEN[how]
    damage(copied)
    with pytest.raises(InputError, match=said) as error:
        pfdiff.Network(copied, **words)
    assert "\n" not in str(error.value)


def test_a_bare_model_needs_schedule_and_prediction(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(saved / "unet"), "--nfe", "4", "--prediction", "eps"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    line = "pfdiff: network 'unet': there is no scheduler, so say --schedule, or give the folder of the"
    assert captured.err.startswith(line)
    assert captured.err.count("\n") == 1


def test_an_editing_model_is_one_line() -> None:
    with pytest.raises(InputError, match="takes 8 channels and predicts 4, an editing model; give it as"):
        pfdiff.Network(text_unet(in_channels=8), schedule="scaled_linear:1000", prediction="eps")


def test_a_pipeline_of_other_parts_is_one_line() -> None:
    pipeline = diffusers.DDPMPipeline(unet(), scheduler_of(FAMILIES["unet"]))
    pipeline.unet = torch.nn.Linear(2, 2)
    with pytest.raises(InputError, match="the pipeline DDPMPipeline has a Linear; known are UNet2DModel"):
        pfdiff.Network(pipeline)


def test_a_pipeline_that_has_our_scheduler_already() -> None:
    pipeline = diffusers.DDPMPipeline(unet(), scheduler_of(FAMILIES["sd1"]))
    plain = pfdiff.Network(pipeline)
    pipeline.scheduler = pfdiff.PFDiffScheduler.from_config(pipeline.scheduler.config, prediction="v", clip=2.0)
    network = pfdiff.Network(pipeline)
    assert plain.convention is not None
    assert network.convention == dataclasses.replace(plain.convention, prediction="v", clip=2.0)
    assert (plain.contract.prediction, network.contract.prediction) == ("eps", "v")
