"""LoRA files and a ControlNet: engines equal diffusers' pipelines, and weights that are added up by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import pfdiff
from pfdiff.engine.artifact import read_artifact

from ..small.bare import run_bare
from ..small.diffusers import FAMILIES, WARNINGS, controlnet_of, diffusers
from ..small.texts import whole_pipeline

pytestmark = [*WARNINGS, pytest.mark.slow]

STEPS, SCALE, STRENGTH = 3, 3.0, 0.7
PROMPT, NEGATIVE = "the fog in the boats", "text"
SAID: dict[str, Any] = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "guidance": SCALE}
GIVEN: dict[str, Any] = {"solver": "ddim", "grid": "diffusers", "backend": "onnxruntime", "device": "cpu"}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A tiny Stable Diffusion and its folder."""
    folder = tmp_path_factory.mktemp("sd1") / "sd1"
    made = whole_pipeline("sd1", FAMILIES["sd1"])
    made.save_pretrained(folder)
    return made, folder


def theirs(pipeline: Any, noise: Tensor, **given: Any) -> Tensor:
    size = {"height": 8, "width": 8, "num_inference_steps": STEPS, "guidance_scale": SCALE}
    words = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "latents": noise, **size, **given}
    return pipeline(**words, output_type="latent").images


def assert_same(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, atol=1e-4 * float(wanted.abs().max()), rtol=1e-4)


def in_a_fresh_process(engine: Path, noise: Tensor, **given: Any) -> Tensor:
    """What the engine samples where there is neither diffusers nor transformers nor peft."""
    folder = engine.parent
    arrays: dict[str, Any] = {name: np.asarray(one) for name, one in given.items()}
    np.savez(folder / "given.npz", noise=noise.numpy(), **arrays)
    code = f"""
given = {{name: one if one.ndim else one.item() for name, one in numpy.load("given.npz").items()}}
with pfdiff.load({str(engine)!r}, device="cpu", backend="onnxruntime") as engine:
    numpy.save("fresh.npy", engine.sample(**given).numpy())
"""
    run_bare(code, folder)
    return torch.from_numpy(np.load(folder / "fresh.npy"))


# LoRA.
def random_updates(pipeline: Any) -> dict[tuple[str, str], tuple[Tensor, Tensor]]:
    """(A [4, in], B [out, 4]) by (part, layer): of queries and outputs of attention in U-Net and text encoder."""
    drawn = torch.Generator().manual_seed(4)
    found = {}
    for part in ("unet", "text_encoder"):
        for name, layer in getattr(pipeline, part).named_modules():
            if name.endswith(("to_q", "to_out.0", "q_proj", "out_proj")):
                out, taken = layer.weight.shape
                found[part, name] = tuple(torch.randn(*one, generator=drawn) for one in ((4, taken), (out, 4)))
    assert len({part for part, _ in found}) == 2
    return found


def stored_name(part: str, name: str) -> str:
    """A layer's name in files, where CLIP's stand in text_model whatever transformers calls them now."""
    return f"text_model.{name}" if part == "text_encoder" and not name.startswith("text_model.") else name


def as_peft(updates: Any) -> dict[str, Tensor]:
    """As diffusers' training scripts write them."""
    files = {}
    for (part, name), (a, b) in updates.items():
        name = stored_name(part, name)
        files |= {f"{part}.{name}.lora_A.weight": a, f"{part}.{name}.lora_B.weight": b}
    return files


def as_kohya(updates: Any) -> dict[str, Tensor]:
    """As kohya's scripts write them, with alpha 2."""
    files = {}
    for (part, name), (a, b) in updates.items():
        prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[part]
        label = prefix + stored_name(part, name).replace(".", "_")
        files |= {f"{label}.lora_down.weight": a, f"{label}.lora_up.weight": b, f"{label}.alpha": torch.tensor(2.0)}
    return files


@torch.no_grad()
def added_by_hand(pipeline: Any, updates: Any, factor: float) -> Any:
    changed = copy.deepcopy(pipeline)
    for (part, name), (a, b) in updates.items():
        getattr(changed, part).get_submodule(name).weight += factor * (b @ a)
    return changed


@pytest.mark.bare
@pytest.mark.parametrize(("written", "factor"), [(as_peft, 1.0), (as_kohya, 2 / 4)])
def test_a_lora_is_in_the_weights(
    pipeline: tuple[Any, Path], tmp_path: Path, written: Callable[[Any], dict[str, Tensor]], factor: float
) -> None:
    pytest.importorskip("peft")
    own, folder = pipeline
    updates = random_updates(own)
    save_file(written(updates), tmp_path / "style.safetensors")
    source = folder if written is as_peft else own
    network = pfdiff.Network(source, lora=f"{tmp_path / 'style.safetensors'}:{STRENGTH}")
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    with pfdiff.build(network, STEPS, **GIVEN, out=tmp_path / "e.engine") as engine:
        got = engine.sample(noise=noise, **SAID)
    if written is as_peft:
        torch.testing.assert_close(in_a_fresh_process(tmp_path / "e.engine", noise, **SAID), got, atol=1e-5, rtol=1e-5)
    wanted = theirs(added_by_hand(own, updates, STRENGTH * factor), noise)
    assert_same(got, wanted)
    assert (theirs(own, noise) - wanted).abs().max() > 0.01  # also: the pipeline that was given is as it was
    (record,) = read_artifact(tmp_path / "e.engine").provenance["lora"]
    assert record["file"] == "style.safetensors"
    assert record["strength"] == STRENGTH
    assert network.digest != pfdiff.Network(folder).digest


def wrong_size(updates: Any) -> dict[str, Tensor]:
    return {key: torch.cat((one, one), 1) if "lora_A" in key else one for key, one in as_peft(updates).items()}


def another_model(updates: Any) -> dict[str, Tensor]:
    return {key.replace("to_q", "to_elsewhere"): one for key, one in as_peft(updates).items()}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (wrong_size, "does not fit this model .*trained on it"),
        (another_model, "does not fit this model|of its .* layers are in this model"),
        (lambda updates: {"a": torch.zeros(1)}, "holds no LoRA"),
    ],
)
def test_a_lora_of_another_model_is_refused(
    pipeline: tuple[Any, Path], tmp_path: Path, content: Any, message: str
) -> None:
    pytest.importorskip("peft")
    save_file(content(random_updates(pipeline[0])), tmp_path / "style.safetensors")
    with pytest.raises(pfdiff.InputError, match=message) as error:
        pfdiff.Network(pipeline[1], lora=tmp_path / "style.safetensors")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lora": "none.safetensors"}, "the file none.safetensors does not exist"),
        ({"lora": "style.safetensors:much"}, "'much' is no strength"),
        ({"controlnet": "nowhere"}, "holds no config.json, expected a ControlNetModel"),
    ],
)
def test_what_is_not_there_is_said(pipeline: tuple[Any, Path], given: dict[str, Any], message: str) -> None:
    with pytest.raises(pfdiff.InputError, match=message):
        pfdiff.Network(pipeline[1], **given)


# ControlNet.
@pytest.mark.bare
def test_a_controlnet_is_part_of_the_network(pipeline: tuple[Any, Path], tmp_path: Path) -> None:
    own, folder = pipeline
    controlnet = controlnet_of(own.unet)
    controlnet.save_pretrained(tmp_path / "edges")
    network = pfdiff.Network(folder, controlnet=tmp_path / "edges", name="edges")
    picture = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    kind = diffusers.StableDiffusionControlNetPipeline
    other = kind(**own.components, controlnet=controlnet, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    given: dict[str, Any] = {"noise": noise, **SAID}
    with pfdiff.build(network, STEPS, **GIVEN, out=tmp_path / "e.engine") as engine:
        full = engine.sample(**given, control_image=picture)
        half = engine.sample(**given, control_image=picture, control_strength=0.5)
        assert engine.execution
    fresh = in_a_fresh_process(tmp_path / "e.engine", noise, **SAID, control_image=picture, control_strength=0.5)
    torch.testing.assert_close(fresh, half, atol=1e-5, rtol=1e-5)
    assert_same(full, theirs(other, noise, image=picture))
    assert_same(half, theirs(other, noise, image=picture, controlnet_conditioning_scale=0.5))
    assert (full - half).abs().max() > 1e-3
    other.save_pretrained(tmp_path / "whole")
    assert pfdiff.Network(tmp_path / "whole", name="edges").digest == network.digest
    with pytest.raises(pfdiff.InputError, match="the ControlNet has cross_attention_dim 8, the model 16"):
        pfdiff.Network(whole_pipeline("sdxl", FAMILIES["sdxl"]), controlnet=tmp_path / "edges")
    controlnet.register_to_config(global_pool_conditions=True)  # it counts for the prompt's half alone
    controlnet.save_pretrained(tmp_path / "shuffle")
    with pytest.raises(pfdiff.InputError, match=r"the ControlNet pools what it adds \(global_pool_conditions\), and"):
        pfdiff.Network(folder, controlnet=tmp_path / "shuffle")
