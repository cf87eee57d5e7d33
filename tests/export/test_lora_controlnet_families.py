"""LoRA files of SDXL, SD 3, FLUX and Z-Image, and a ControlNet beside SDXL: without an export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import pfdiff
from pfdiff.engine.errors import InputError

from ..small.diffusers import FAMILIES, WARNINGS, controlnet_of, diffusers
from ..small.pipelines import WHOLE, whole
from ..small.sampled import sampled
from ..small.texts import whole_pipeline

pytestmark = WARNINGS

STRENGTH, ALPHA, RANK = 0.7, 2.0, 4
LAYERS = ("to_q", "to_out.0", "q_proj", "out_proj")
PARTS = {
    "sdxl": ("unet", "text_encoder", "text_encoder_2"),
    "sd3": ("transformer", "text_encoder", "text_encoder_2"),
    "flux": ("transformer", "text_encoder"),
    "z-image": ("transformer",),
}
# kohya's names of the parts; of SD 3 diffusers reads its own files alone.
KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}


def made(name: str) -> tuple[Any, dict[str, Any]]:
    """The family's pipeline and the words of its Network."""
    if name in WHOLE:
        return whole(name), WHOLE[name].words
    return whole_pipeline(name, FAMILIES[name]), {k: v for k, v in FAMILIES[name].words.items() if k != "guidance"}


def updates_of(pipeline: Any, parts: tuple[str, ...]) -> dict[tuple[str, str], tuple[Tensor, Tensor]]:
    """(A [RANK, in], B [out, RANK]) by (part, layer)."""
    drawn = torch.Generator().manual_seed(4)
    found = {}
    for part in parts:
        for name, layer in getattr(pipeline, part).named_modules():
            if name.endswith(LAYERS) and isinstance(layer, nn.Linear):
                sizes = (RANK, layer.in_features), (layer.out_features, RANK)
                found[part, name] = tuple(torch.randn(*one, generator=drawn) for one in sizes)
    assert {part for part, _ in found} == set(parts)
    return found


def stored(part: str, name: str) -> str:
    clip = part.startswith("text_encoder") and not name.startswith("text_model.")
    return f"text_model.{name}" if clip else name


def as_peft(updates: Any) -> dict[str, Tensor]:
    files = {}
    for (part, name), (a, b) in updates.items():
        prefix = f"{part}.{stored(part, name)}"
        files |= {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}
    return files


def as_kohya(updates: Any) -> dict[str, Tensor]:
    files = {}
    for (part, name), (a, b) in updates.items():
        label = KOHYA[part] + stored(part, name).replace(".", "_")
        files |= {f"{label}.lora_down.weight": a, f"{label}.lora_up.weight": b, f"{label}.alpha": torch.tensor(ALPHA)}
    return files


def fused(network: pfdiff.Network, pipeline: Any, part: str) -> nn.Module:
    """The part as the network holds it."""
    if part.startswith("text_encoder"):
        held: Any = network.encoders
        return held.text._given.sources[part][0].read()
    kind = type(getattr(pipeline, part))
    source: Any = network._source
    return next(one for one in source.module.modules() if isinstance(one, kind))


@pytest.mark.parametrize(
    ("name", "written", "factor"),
    [(name, as_peft, 1.0) for name in PARTS] + [("sdxl", as_kohya, ALPHA / RANK)],
)
@torch.no_grad()
def test_a_lora_is_in_the_weights(tmp_path: Path, name: str, written: Any, factor: float) -> None:
    pytest.importorskip("peft")
    pipeline, words = made(name)
    updates = updates_of(pipeline, PARTS[name])
    save_file(written(updates), tmp_path / "style.safetensors")
    network = pfdiff.Network(pipeline, **words, lora=f"{tmp_path / 'style.safetensors'}:{STRENGTH}")
    for part in PARTS[name]:
        own, found = getattr(pipeline, part), fused(network, pipeline, part)
        changed = {layer for its, layer in updates if its == part}
        for layer, module in own.named_modules():
            if isinstance(module, nn.Linear):
                got, wanted = found.get_submodule(layer).weight, module.weight
                if layer in changed:
                    a, b = updates[part, layer]
                    wanted = module.weight.double() + STRENGTH * factor * (b.double() @ a.double())
                torch.testing.assert_close(got, wanted.float(), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_without_encoders_the_denoisers_layers_count(tmp_path: Path) -> None:
    """Layers of text encoders that are left out have no place, and a file that has no others is refused."""
    pytest.importorskip("peft")
    pipeline, words = made("sdxl")
    updates = updates_of(pipeline, PARTS["sdxl"])
    save_file(as_peft(updates), tmp_path / "style.safetensors")
    network = pfdiff.Network(pipeline, **words, encoders=False, lora=tmp_path / "style.safetensors")
    (part, layer), (a, b) = next(iter(updates.items()))
    got, own = fused(network, pipeline, part), pipeline.unet.get_submodule(layer).weight
    torch.testing.assert_close(got.get_submodule(layer).weight, own + b @ a, atol=1e-5, rtol=1e-5)
    save_file(
        {k: one for k, one in as_peft(updates).items() if k.startswith("text_encoder")}, tmp_path / "t.safetensors"
    )
    with pytest.raises(InputError, match="has layers of text_encoder, text_encoder_2 alone, which are not here"):
        pfdiff.Network(pipeline, **words, encoders=False, lora=tmp_path / "t.safetensors")


def test_kohyas_files_of_flux_have_other_names(tmp_path: Path) -> None:
    """Queries, keys and values in one update, by the names of the first implementation."""
    pytest.importorskip("peft")
    pipeline, words = made("flux")
    width = pipeline.transformer.transformer_blocks[0].attn.to_q.weight.shape[1]
    drawn = torch.Generator().manual_seed(4)
    a, b = torch.randn(RANK, width, generator=drawn), torch.randn(3 * width, RANK, generator=drawn)
    label = "lora_unet_double_blocks_0_img_attn_qkv"
    files = {f"{label}.lora_down.weight": a, f"{label}.lora_up.weight": b, f"{label}.alpha": torch.tensor(ALPHA)}
    save_file(files, tmp_path / "style.safetensors")
    network = pfdiff.Network(pipeline, **words, lora=tmp_path / "style.safetensors")
    attention: Any = fused(network, pipeline, "transformer").get_submodule("transformer_blocks.0.attn")
    own = pipeline.transformer.transformer_blocks[0].attn
    for part, layer in zip((b @ a).chunk(3), ("to_q", "to_k", "to_v"), strict=True):
        wanted = getattr(own, layer).weight + ALPHA / RANK * part
        torch.testing.assert_close(getattr(attention, layer).weight, wanted, atol=1e-5, rtol=1e-5)


def test_what_diffusers_reads_not_is_one_line(tmp_path: Path) -> None:
    """kohya's file of SD 3: diffusers has no reader for it."""
    pytest.importorskip("peft")
    pipeline, words = made("sd3")
    label = "lora_unet_joint_blocks_0_x_block_attn_qkv"
    files = {f"{label}.lora_down.weight": torch.ones(4, 16), f"{label}.lora_up.weight": torch.ones(48, 4)}
    save_file(files, tmp_path / "style.safetensors")
    with pytest.raises(InputError, match=r"safetensors. does not fit|safetensors.: 0 of its 1 layers") as error:
        pfdiff.Network(pipeline, **words, lora=tmp_path / "style.safetensors")
    assert "\n" not in str(error.value)


# ControlNet.
def test_a_controlnet_beside_sdxl() -> None:
    pipeline, words = made("sdxl")
    controlnet = controlnet_of(pipeline.unet)
    kind = diffusers.StableDiffusionXLControlNetPipeline
    other = kind(**{**pipeline.components, "controlnet": controlnet})
    other.set_progress_bar_config(disable=True)
    noise, prompt, negative = pfdiff.noise([5], (4, 8, 8)), "a fog", "text"
    picture = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    network = pfdiff.Network(other, **words)
    assert {"control_image", "time_ids", "text_embeds"} < {one.name for one in network.contract.conditions}
    for strength in (1.0, 0.5):
        given = {"height": 8, "width": 8, "num_inference_steps": 5, "guidance_scale": 3.0, "latents": noise}
        with torch.no_grad():
            wanted = other(
                prompt,
                image=picture,
                negative_prompt=negative,
                controlnet_conditioning_scale=strength,
                output_type="latent",
                **given,
            ).images
        control = {"control_image": picture, "control_strength": torch.tensor(strength)}
        got = sampled(network, noise, 5, [prompt], negative, 3.0, **control)
        torch.testing.assert_close(got, wanted, atol=1e-4 * float(wanted.abs().max()), rtol=1e-4)
