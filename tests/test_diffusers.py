"""diffusers' folders, models and pipelines: loaded, built and sampled, equal to diffusers' own pipelines and loops.

Every class is tiny and has random weights; it goes through `save_pretrained` and the code that users call. The noise is
the same; embeddings are given in place of text encoders.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pfdiff
from pfdiff.cli import main
from pfdiff.engine import plans
from pfdiff.engine.artifact import read_artifact
from pfdiff.engine.errors import InputError

diffusers = pytest.importorskip("diffusers")
pytestmark = [
    # diffusers turns tensors into NumPy 2 arrays in a way that PyTorch does not know yet.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    # transformers, which the pipelines import, notes that torchvision is missing.
    pytest.mark.filterwarnings("ignore:.*torchvision.*"),
]

SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
SOLVER, EVALUATIONS = "pfdiff:k=2,l=1", 5
DDIM_STEPS = 4


# Tiny models; the U-Nets' middle has attention too.
def unet(**changes: Any) -> Any:
    blocks = {"down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D")}
    sizes = {"sample_size": 8, "block_out_channels": (8, 16), "attention_head_dim": 4}
    return diffusers.UNet2DModel(**{"layers_per_block": 1, "norm_num_groups": 4, **sizes, **blocks, **changes})


def text_unet(**changes: Any) -> Any:
    sizes = {"sample_size": 8, "block_out_channels": (8, 16), "cross_attention_dim": 8, "attention_head_dim": 4}
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
    }
    return diffusers.UNet2DConditionModel(
        **{
            "in_channels": 4,
            "out_channels": 4,
            "layers_per_block": 1,
            "norm_num_groups": 4,
            **sizes,
            **blocks,
            **changes,
        }
    )


def sdxl_unet() -> Any:
    return text_unet(
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=12 + 6 * 8,
    )


HEADS = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1}
SQUARE = {"sample_size": 8, "patch_size": 2, "in_channels": 4}


def dit() -> Any:
    return diffusers.DiTTransformer2DModel(**HEADS, **SQUARE, out_channels=8, num_embeds_ada_norm=10)


def pixart() -> Any:
    words = {"out_channels": 8, "cross_attention_dim": 16, "caption_channels": 12}
    return diffusers.PixArtTransformer2DModel(**HEADS, **SQUARE, **words)


def sd3() -> Any:
    text = {"joint_attention_dim": 12, "caption_projection_dim": 16, "pooled_projection_dim": 10}
    return diffusers.SD3Transformer2DModel(**HEADS, **SQUARE, **text, out_channels=4, pos_embed_max_size=8)


def flux() -> Any:
    text = {"joint_attention_dim": 12, "pooled_projection_dim": 10}
    heads = {"num_attention_heads": 2, "attention_head_dim": 16, "axes_dims_rope": (4, 6, 6)}
    return diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, guidance_embeds=True, **heads, **text
    )


def vae() -> Any:
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    return diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4, **blocks).eval()


def random_like(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


# What each family is and how diffusers itself runs it.
@dataclass(frozen=True)
class Family:
    """The denoiser and its pipeline; inputs: what both the pipeline and the engine take.

    pipeline: without one the scheduler's loop is the reference, since the pipeline draws its noise itself.
    """

    model: Callable[[], Any]
    scheduler: Any
    pipeline: str = ""
    part: str = "unet"
    decoder: Callable[[], Any] | None = None
    inputs: dict[str, Tensor] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)  # of the pipeline alone
    words: dict[str, Any] = field(default_factory=dict)  # of Network
    sample: dict[str, Any] = field(default_factory=dict)  # of engine.sample alone


DDIM, FLOW = "DDIMScheduler", "FlowMatchEulerDiscreteScheduler"
FAMILIES = {
    "unet": Family(unet, (DDIM, {})),
    "sd1": Family(
        text_unet,
        (DDIM, {**SCALED, "steps_offset": 1, "set_alpha_to_one": False}),
        "StableDiffusionPipeline",
        decoder=vae,
        inputs={"prompt_embeds": random_like(1, 77, 8)},
        run={"guidance_scale": 1.0},
    ),
    "sdxl": Family(
        sdxl_unet,
        (
            DDIM,
            {**SCALED, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
            | {"rescale_betas_zero_snr": True},
        ),
        "StableDiffusionXLPipeline",
        inputs={
            "prompt_embeds": random_like(1, 77, 8),
            "pooled_prompt_embeds": random_like(1, 12),
            "negative_prompt_embeds": random_like(1, 77, 8) + 1,
            "negative_pooled_prompt_embeds": random_like(1, 12) - 1,
        },
        run={"guidance_scale": 3.0},
        words={"guidance": "prompt_embeds=input,pooled_prompt_embeds=input"},
        sample={"guidance": 3.0},
    ),
    "dit": Family(dit, (DDIM, {"clip_sample": False}), part="transformer", sample={"class_labels": 7}),
    "pixart": Family(
        pixart,
        (DDIM, {"clip_sample": False}),
        "PixArtAlphaPipeline",
        "transformer",
        inputs={"prompt_embeds": random_like(1, 120, 12), "prompt_attention_mask": (torch.arange(120) < 9)[None]},
        run={"guidance_scale": 1.0, "use_resolution_binning": False, "negative_prompt": None},
    ),
    "sd3": Family(
        sd3,
        (FLOW, {"shift": 3.0}),
        "StableDiffusion3Pipeline",
        "transformer",
        inputs={"prompt_embeds": random_like(1, 333, 12), "pooled_prompt_embeds": random_like(1, 10)},
        run={"guidance_scale": 1.0},
    ),
    "flux": Family(
        flux,
        (FLOW, {"shift": 3.0, "use_dynamic_shifting": True}),
        "FluxPipeline",
        "transformer",
        inputs={"prompt_embeds": random_like(1, 512, 12), "pooled_prompt_embeds": random_like(1, 10)},
        run={"guidance_scale": 2.5},
        words={"shape": (4, 8, 8)},
        sample={"guidance_scale": 2.5},
    ),
}


def scheduler_of(family: Family) -> Any:
    name, options = family.scheduler
    return getattr(diffusers, name)(**options)


def pipeline_of(family: Family) -> Any:
    """The family's pipeline without encoders."""
    torch.manual_seed(3)
    kind = getattr(diffusers, family.pipeline or "DDIMPipeline")
    model, scheduler = family.model().eval(), scheduler_of(family)
    if not family.pipeline:
        return kind(model, scheduler)
    parts = {family.part: model, "scheduler": scheduler, "vae": family.decoder and family.decoder()}
    needed = [one.name for one in inspect.signature(kind).parameters.values() if one.default is one.empty]
    unsafe = {"requires_safety_checker": False} if "safety_checker" in needed else {}
    return kind(**{name: parts.get(name) for name in needed}, **unsafe)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path]]:
    """(pipeline, engine's path) of a family, built when first asked for: from a folder, sdxl from the object."""
    held: dict[str, tuple[Any, Path]] = {}
    top = tmp_path_factory.mktemp("diffusers")

    def get(name: str) -> tuple[Any, Path]:
        if name not in held:
            family, folder, path = FAMILIES[name], top / name, top / f"{name}.engine"
            pipeline = pipeline_of(family)
            source: Any = pipeline if name == "sdxl" else folder
            pipeline.save_pretrained(folder)
            if name == "dit":
                (folder / "unet").rename(folder / "transformer")
            if name == "unet":
                assert main(["build", str(folder), "--nfe", str(DDIM_STEPS), "--solver", "ddim", "-o", str(path)]) == 0
            words = {"solver": "ddim", "batch": 2, "backend": "onnxruntime", "out": path}
            network = pfdiff.Network(source, **family.words)
            pfdiff.build(network, DDIM_STEPS, **words).close()
            pfdiff.build(network, EVALUATIONS, **{**words, "solver": SOLVER}).close()
            held[name] = pipeline, path
        return held[name]

    return get


def packed(x: Tensor) -> Tensor:
    """FLUX's latents, patches of 2 x 2: as its pipeline documents them."""
    return torch.nn.functional.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)


def unpacked(x: Tensor) -> Tensor:
    return torch.nn.functional.pixel_shuffle(x.transpose(1, 2).unflatten(2, (4, 4)), 2)


@torch.no_grad()
def theirs(family: Family, pipeline: Any, noise: Tensor, steps: int) -> Tensor:
    """The latents of diffusers' own pipeline, or of the loop that its scheduler documents."""
    if not family.pipeline:
        model, scheduler, x = pipeline.unet, pipeline.scheduler, noise * pipeline.scheduler.init_noise_sigma
        given = {"class_labels": torch.full((len(x),), 7)} if family.sample else {}
        options = {"use_clipped_model_output": True} if isinstance(scheduler, diffusers.DDIMScheduler) else {}
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            out = model(x, timestep=t.expand(len(x)), **given).sample[:, : x.shape[1]]
            x = scheduler.step(out, t, x, **options).prev_sample
        return x
    pipeline.set_progress_bar_config(disable=True)
    flat, size = family.pipeline == "FluxPipeline", 8 * pipeline.vae_scale_factor
    words = {"num_inference_steps": steps, "output_type": "latent", "height": size, "width": size, **family.run}
    inputs = {name: one.repeat(len(noise), *[1] * (one.ndim - 1)) for name, one in family.inputs.items()}
    latents = pipeline(**inputs, **words, latents=packed(noise) if flat else noise).images
    return unpacked(latents) if flat else latents


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["ddim", SOLVER])
@pytest.mark.parametrize("name", FAMILIES)
def test_engine_equals_diffusers(engines: Any, name: str, solver: str) -> None:
    family = FAMILIES[name]
    pipeline, path = engines(name)
    pipeline.scheduler = own = scheduler_of(family)
    steps = DDIM_STEPS
    if solver != "ddim":
        pipeline.scheduler = pfdiff.PFDiffScheduler.from_config(own.config, solver=solver)
        steps = EVALUATIONS
    with pfdiff.load(path, backend="onnxruntime") as engine:
        noise = torch.randn(2, *engine.contract.shape, generator=torch.Generator().manual_seed(5))
        got = engine.sample(noise=noise, nfe=steps, **family.inputs, **family.sample)
        times = engine.contract.feed_times(engine.programs[steps].network_times)
        pixels = engine.images(noise=noise, nfe=steps, **family.inputs, **family.sample) if family.decoder else None
    wanted = theirs(family, pipeline, noise, steps)
    fed = pipeline.scheduler.timesteps.double().numpy() * (1e-3 if name == "flux" else 1)
    np.testing.assert_allclose(times, fed, rtol=1e-6)
    assert wanted.std() > 0.1
    torch.testing.assert_close(got, wanted, atol=1e-4 * float(wanted.abs().max()), rtol=1e-4)
    if pixels is not None:
        decoder = pipeline.vae
        with torch.no_grad():
            images = decoder.decode(wanted / decoder.config.scaling_factor).sample
        expected = ((images + 1) * 127.5).clamp(0, 255).permute(0, 2, 3, 1)
        assert (pixels - expected).abs().max() < 0.51


# TensorRT plans, which TensorRT-RTX builds without a GPU; it refuses none of these.
@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_rtx_builds_a_plan(engines: Any, name: str) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")
    artifact = read_artifact(engines(name)[1])
    assert plans.build_plan(artifact, plans.plan_key(artifact, "tensorrt_rtx", "sm89"))


# Folders without an export: what they say, and what is wrong with them.
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
    "damaged weights": (lambda folder: cut(folder / WEIGHTS), {}, "cannot be loaded .*save it again"),
    "other weights": (
        lambda folder: edited(folder / "unet" / "config.json", time_cond_proj_dim=8),
        {},
        "has 1 missing weights, such as time_embedding.cond_proj.weight; .*do not fit",
    ),
    "other sizes": (
        lambda folder: edited(folder / "unet" / "config.json", cross_attention_dim=9),
        {},
        r"cannot be loaded \(RuntimeError: .*size mismatch for .*save it again",
    ),
    "no index": (lambda folder: (folder / "model_index.json").unlink(), {}, "neither model_index.json .* nor config"),
    "no model": (lambda folder: shutil.rmtree(folder / "unet"), {}, "no folder unet or transformer"),
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
    line = "pfdiff: network 'unet': there is no scheduler, so say schedule= (--schedule), or give the folder of the"
    assert captured.err.startswith(line)
    assert captured.err.count("\n") == 1


def test_an_inpainting_model_is_one_line() -> None:
    with pytest.raises(InputError, match="takes 9 channels and predicts 4, an inpainting or editing model; give it as"):
        pfdiff.Network(text_unet(in_channels=9), schedule="scaled_linear:1000", prediction="eps")


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
