"""The families of pipelines, each against diffusers' own pipeline: prompts, guidance, times, denoiser and decoder.

Every pipeline is tiny and has random weights. It is saved and read back by the code that users call. Modules run as
they are exported, in PyTorch, along a compiled program; what the exporter makes of them is compared once, at the end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pfdiff

from ...small.diffusers import WARNINGS, diffusers
from ...small.pipelines import WHOLE, packed, patched, unpacked, whole
from ...small.sampled import sampled

pytestmark = [*WARNINGS, pytest.mark.filterwarnings("ignore:.FluxPosEmbed. is deprecated:FutureWarning")]

PROMPTS = ["The lighthouse in fog, 3 boats!", "a fog"]
NEGATIVE = "text, signs"
STEPS = 3
SCALE = 3.0


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The network of a family's saved folder, read when first asked for."""
    held: dict[str, pfdiff.Network] = {}
    top = tmp_path_factory.mktemp("families")

    def get(name: str) -> pfdiff.Network:
        if name not in held:
            whole(name).save_pretrained(top / name)
            held[name] = pfdiff.Network(top / name, **WHOLE[name].words)
        return held[name]

    return get


@torch.no_grad()
def theirs(name: str, noise: Tensor) -> tuple[Tensor, Tensor]:
    """(latents, pixels 0..255 before rounding [n, H, W, C]) of diffusers' own pipeline."""
    family, pipeline = WHOLE[name], whole(name)
    side = noise.shape[-1] * family.pixels
    size = {"height": side, "width": side, "num_inference_steps": STEPS, family.scale: SCALE}

    def run(kind: str) -> Any:
        # Some pipelines write into the lists that they are given.
        words: dict[str, Any] = {"prompt": list(PROMPTS), "output_type": kind, "latents": noise}
        words |= {"latents": packed(noise)} if family.packed else {}
        words |= {"negative_prompt": NEGATIVE if name == "sana" else 2 * [NEGATIVE]} if family.negative else {}
        return pipeline(**words, **size, **family.run)[0]

    latents = torch.as_tensor(run("latent"))
    latents = unpacked(latents, noise.shape[-1]) if family.packed else latents
    latents = patched(latents, pipeline.vae) if name == "flux2-klein" else latents
    return latents, torch.as_tensor(run("np")) * 255


@pytest.mark.parametrize("name", WHOLE)
def test_a_family_makes_what_its_pipeline_makes(networks: Any, name: str) -> None:
    network = networks(name)
    noise = pfdiff.noise([5, 6], network.contract.shape)
    latents, wanted = theirs(name, noise)
    got = sampled(network, noise, STEPS, PROMPTS, NEGATIVE if WHOLE[name].negative else "", SCALE)
    assert latents.std() > 0.05
    torch.testing.assert_close(got, latents, atol=1e-4 * float(latents.abs().max()), rtol=1e-4)
    assert network.decoder is not None
    image = network.decoder.whole()(got).detach()
    pixels = ((image + 1) * 127.5).clamp(0, 255).movedim(1, -1)
    assert pixels.shape == wanted.shape
    assert (pixels - wanted).abs().max() < 0.05


def test_the_exported_files_make_the_same(networks: Any, tmp_path: Path) -> None:
    """Z-Image, all the way: prompts of several lengths in one batch, of which each moves the places of the picture."""
    network = networks("z-image")
    given: dict[str, Any] = {"solver": "ddim", "grid": "diffusers", "batch": 2, "backend": "onnxruntime"}
    with pfdiff.build(network, STEPS, **given, device="cpu", out=tmp_path / "z.engine") as engine:
        words = {"prompt": PROMPTS, "negative_prompt": NEGATIVE, "guidance": SCALE}
        got, pixels = engine.sample(seeds=[5, 6], **words), engine.images(seeds=[5, 6], **words)
    latents, wanted = theirs("z-image", pfdiff.noise([5, 6], network.contract.shape))
    torch.testing.assert_close(got, latents, atol=1e-4 * float(latents.abs().max()), rtol=1e-4)
    assert ((pixels - wanted).abs() > 0.51).float().mean() < 1e-3


# What is not known, by name.
def test_what_is_not_known_is_one_line(tmp_path: Path) -> None:
    for name, changes, message in (
        ("wan", {"image_dim": 8}, "image_dim is set, a model that starts from a picture"),
        ("sana", {"guidance_embeds": True}, "a Sana-Sprint, whose scheduler SCM is not known"),
        ("qwen-image", {"zero_cond_t": True}, "zero_cond_t is set, an editing or layered model"),
        ("lumina2", {"patch_size": 1}, "patch_size '1' is not known here; known: 2"),
    ):
        model = WHOLE[name].model()
        model.register_to_config(**changes)
        with pytest.raises(pfdiff.InputError, match=message) as error:
            pfdiff.Network(model, schedule="flow", prediction="flow", **WHOLE[name].words)
        assert "\n" not in str(error.value)


@torch.no_grad()
def test_sound_has_one_axis(tmp_path: Path) -> None:
    """A 1-D U-Net without prompts; Dance Diffusion's own scheduler is refused by name."""
    blocks = {
        "down_block_types": ("DownBlock1DNoSkip", "DownBlock1D"),
        "up_block_types": ("UpBlock1D", "UpBlock1DNoSkip"),
    }
    sizes = {"block_out_channels": (64, 64), "sample_size": 64, "sample_rate": 64}
    sizes |= {"in_channels": 2, "out_channels": 2}
    torch.manual_seed(1)
    model = diffusers.UNet1DModel(**sizes, **blocks, extra_in_channels=128, layers_per_block=1).eval()
    pipeline = diffusers.DanceDiffusionPipeline(model, diffusers.DDIMScheduler(clip_sample=False))
    pipeline.save_pretrained(tmp_path / "dance")
    network = pfdiff.Network(tmp_path / "dance")
    assert network.contract.shape == (2, 64)
    # Its pipeline gives its scheduler fractions for times, which DDIM does not take: the plain loop is the reference.
    noise = pfdiff.noise([2], (2, 64))
    wanted = noise
    pipeline.scheduler.set_timesteps(4)
    for t in pipeline.scheduler.timesteps:
        wanted = pipeline.scheduler.step(model(wanted, t).sample, t, wanted).prev_sample
    got = sampled(network, noise, 4)
    assert wanted.std() > 0.05
    torch.testing.assert_close(got, wanted, atol=1e-4 * float(wanted.abs().max()), rtol=1e-4)
    pipeline.scheduler = diffusers.IPNDMScheduler()
    with pytest.raises(pfdiff.InputError, match="IPNDMScheduler is not read: its times are angles"):
        pfdiff.Network(pipeline)
