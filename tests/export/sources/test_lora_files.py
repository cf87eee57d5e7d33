"""LoRA files in all their spellings, fused into a tiny U-Net and compared with sums by hand; other adapters by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import pfdiff
from pfdiff.export.sources.lora import Lora, fuse
from pfdiff.export.sources.lora_files import layers_of

from ...small.diffusers import WARNINGS, text_unet

pytestmark = WARNINGS
pytest.importorskip("peft")

STRENGTH = 0.7
Factors = dict[str, tuple[Tensor, Tensor, float]]


def factors(unet: Any) -> Factors:
    """(A, B, alpha) by layer; most of rank 4 and alpha 3, queries with alpha 1, outputs of rank 2."""
    drawn = torch.Generator().manual_seed(4)
    found: Factors = {}
    for name, layer in unet.named_modules():
        if name.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            out, taken = layer.weight.shape
            rank = 2 if name.endswith("to_out.0") else 4
            a, b = (torch.randn(*one, generator=drawn) for one in ((rank, taken), (out, rank)))
            found[name] = a, b, 1.0 if name.endswith("to_q") else 3.0
    return found


def as_kohya(layers: Factors) -> dict[str, Tensor]:
    file = {}
    for name, (a, b, alpha) in layers.items():
        label = f"lora_unet_{name.replace('.', '_')}"
        file |= {f"{label}.lora_down.weight": a, f"{label}.lora_up.weight": b, f"{label}.alpha": torch.tensor(alpha)}
    return file


def as_old_diffusers(layers: Factors) -> dict[str, Tensor]:
    """As its scripts wrote them before peft."""
    file = {}
    for name, (a, b, _) in layers.items():
        block, _, layer = name.removesuffix(".0").rpartition(".")
        label = f"unet.{block}.processor.{layer}_lora"
        file |= {f"{label}.down.weight": a, f"{label}.up.weight": b}
    return file


def as_peft(layers: Factors) -> dict[str, Tensor]:
    file = {}
    for name, (a, b, _) in layers.items():
        file |= {f"unet.{name}.lora_A.weight": a, f"unet.{name}.lora_B.weight": b}
    return file


def as_dora(layers: Factors) -> dict[str, Tensor]:
    lengths = {f"unet.{name}.lora_magnitude_vector": 1 + torch.rand(len(b)) for name, (_, b, _) in layers.items()}
    return {**as_peft(layers), **lengths}


@pytest.mark.parametrize("written", [as_kohya, as_old_diffusers, as_peft, as_dora])
@torch.no_grad()
def test_every_layer_gets_its_own_update(written: Callable[[Factors], dict[str, Tensor]], tmp_path: Path) -> None:
    """diffusers alone gives the queries of kohya's file the alpha that most layers have."""
    torch.manual_seed(3)
    unet = text_unet()
    layers, path = factors(unet), tmp_path / "style.safetensors"
    file = written(layers)
    save_file(file, path)
    assert layers_of(path)["denoiser"] == len(layers) == 16
    fused = copy.deepcopy(unet)
    fuse("StableDiffusionPipeline", fused, "unet", [Lora(path, STRENGTH)], {})
    found = dict(fused.named_parameters())
    for name, weight in unet.named_parameters():
        layer, wanted = name.removesuffix(".weight"), weight.double()
        if layer in layers:
            a, b, alpha = layers[layer]
            factor = STRENGTH * (alpha / len(a) if written is as_kohya else 1)
            wanted = wanted + factor * (b.double() @ a.double())
            if written is as_dora:
                wanted *= (file[f"unet.{layer}.lora_magnitude_vector"] / wanted.norm(dim=1))[:, None]
        torch.testing.assert_close(found[name].double(), wanted, atol=1e-6, rtol=1e-6)


def also(key: str) -> Callable[[Factors], dict[str, Tensor]]:
    return lambda layers: {**as_kohya(layers), f"lora_unet_mid_block_attentions_0_proj_in.{key}": torch.ones(1)}


def half(layers: Factors) -> dict[str, Tensor]:
    return {key: one for key, one in as_peft(layers).items() if "lora_A" in key}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (also("hada_w1_a"), "holds LoHa, which is not supported; give a plain LoRA"),
        (also("lokr_w1"), "holds LoKr, which"),
        (also("oft_blocks"), "holds OFT, which"),
        (also("on_input"), r"holds \(IA\)\^3, which"),
        (also("diff_b"), "holds whole differences of weights, which"),
        (also("w_norm"), "holds whole differences of weights, which"),
        (also("lora_mid.weight"), r"holds LoRA of convolutions in three factors \(lora_mid\), which"),
        (also("dora_scale"), r"holds DoRA as LyCORIS writes it \(dora_scale\), which"),
        (lambda layers: {**as_peft(layers), "bundle_emb.tok.a": torch.ones(1)}, "holds textual inversion, which"),
        (half, "has 16 first factors and 0 second ones; copy it again"),
        (lambda _: {"a": torch.ones(1)}, r"holds no LoRA \(a\); give one, such as"),
    ],
)
def test_what_is_no_lora_is_named(written: Any, message: str, tmp_path: Path) -> None:
    save_file(written(factors(text_unet())), tmp_path / "style.safetensors")
    with pytest.raises(pfdiff.InputError, match=message) as error:
        layers_of(tmp_path / "style.safetensors")
    assert "\n" not in str(error.value)


def test_a_size_that_does_not_fit_is_said(tmp_path: Path) -> None:
    file = as_peft(factors(text_unet()))
    file = {key: torch.cat((one, one), 1) if "lora_A" in key else one for key, one in file.items()}
    save_file(file, tmp_path / "style.safetensors")
    with pytest.raises(
        pfdiff.InputError, match=r"does not fit this model \(Error.*: size mismatch for .*trained on it"
    ):
        fuse("StableDiffusionPipeline", text_unet(), "unet", [Lora(tmp_path / "style.safetensors", 1.0)], {})
