"""`PFDiffScheduler` inside diffusers' own pipelines, against programs, an engine and diffusers' schedulers.

The networks are tiny and have random weights; embeddings are given in place of text encoders.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import pfdiff
from pfdiff.engine.errors import InputError

diffusers = pytest.importorskip("diffusers")
pytestmark = [
    # diffusers turns tensors into NumPy 2 arrays in a way that PyTorch does not know yet.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    # transformers, which the pipelines import, notes that torchvision is missing.
    pytest.mark.filterwarnings("ignore:.*torchvision.*"),
]

LATENT = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
GUIDANCE, STEPS = 3.0, 6


def make(config: Any, **options: Any) -> Any:
    return pfdiff.PFDiffScheduler.from_config(config, **options)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert (actual - expected).abs().max() <= tolerance * max(1.0, float(expected.abs().max()))


@pytest.fixture(scope="module")
def embeddings() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "prompt_embeds": torch.randn(1, 5, 8),
        "negative_prompt_embeds": torch.randn(1, 5, 8),
        "latents": torch.randn(1, 4, 8, 8),
    }


def run(pipeline: Any, **inputs: Any) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    with torch.no_grad():
        return pipeline(
            num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="latent", height=8, width=8, **inputs
        ).images


class Guided(torch.nn.Module):
    """The network with both embeddings and the guidance inside: what the pipeline computes at one step."""

    def __init__(self, inner: torch.nn.Module, embeddings: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.inner = inner
        self.without = torch.nn.Buffer(embeddings["negative_prompt_embeds"])
        self.prompt = torch.nn.Buffer(embeddings["prompt_embeds"])

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        states = torch.cat([one.expand(x.shape[0], -1, -1) for one in (self.without, self.prompt)])
        plain, conditional = self.inner(
            torch.cat([x, x]), torch.cat([t, t]), encoder_hidden_states=states, return_dict=False
        )[0].chunk(2)
        return plain + GUIDANCE * (conditional - plain)


@pytest.fixture(scope="module")
def unet() -> Any:
    torch.manual_seed(1)
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
    ).eval()


def vae() -> Any:
    torch.manual_seed(2)
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    return diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4, **blocks).eval()


@pytest.fixture(scope="module")
def stable_diffusion(unet: Any) -> Any:
    names = ("text_encoder", "tokenizer", "safety_checker", "feature_extractor")
    theirs = diffusers.PNDMScheduler(steps_offset=1, skip_prk_steps=True, **LATENT)
    parts: dict[str, Any] = {**dict.fromkeys(names), "vae": vae(), "unet": unet, "scheduler": theirs}
    return diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("solver", ["pfdiff:k=2,l=1", "dpm++:2m"])
def test_stable_diffusion_pipeline(
    stable_diffusion: Any, embeddings: dict[str, torch.Tensor], solver: str, prediction: str
) -> None:
    config = stable_diffusion.scheduler.config
    stable_diffusion.scheduler = make(config, solver=solver, prediction_type=prediction)
    latents = run(stable_diffusion, **embeddings)
    guided = Guided(stable_diffusion.unet, embeddings)
    with torch.no_grad():
        expected = stable_diffusion.scheduler.program.evaluate(
            lambda x, t: guided(x, torch.tensor([t])), embeddings["latents"]
        )
    assert latents.std() > 0.1
    assert_close(latents, expected, 1e-4)


@pytest.mark.slow
def test_engine_of_the_pipelines_network(
    stable_diffusion: Any, embeddings: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """The same latents from an engine that never saw diffusers' loop."""
    stable_diffusion.scheduler = make(stable_diffusion.scheduler.config, prediction_type="epsilon")
    latents = run(stable_diffusion, **embeddings)
    guided = Guided(stable_diffusion.unet, embeddings)
    samples = engine_samples(guided, "eps", stable_diffusion.scheduler.program, embeddings["latents"], tmp_path)
    assert_close(samples, latents, 1e-4)


def engine_samples(
    network: torch.nn.Module, prediction: str, program: pfdiff.Program, latents: torch.Tensor, folder: Path
) -> torch.Tensor:
    """What an engine of `network` makes of `latents` on the program's solver, schedule and times."""
    path = folder / "guided.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(
            network.eval(),
            (latents, torch.ones(1)),
            str(path),
            dynamo=True,
            opset_version=21,
            input_names=["x", "t"],
            output_names=["out"],
            verbose=False,
        )
    source = pfdiff.Network(path, schedule=program.schedule, prediction=prediction)
    settings = {"grid": program.grid, "basis": program.basis, "backend": "onnxruntime"}
    with pfdiff.build(source, program.nfe, program.solver, out=folder / "guided.engine", **settings) as engine:
        return engine.sample(noise=latents)


def test_image_to_image_pipeline(stable_diffusion: Any, embeddings: dict[str, torch.Tensor]) -> None:
    parts = {**stable_diffusion.components, "scheduler": make(stable_diffusion.scheduler.config)}
    pipeline = diffusers.StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    prompts = {name: one for name, one in embeddings.items() if name != "latents"}
    generator = torch.Generator().manual_seed(3)
    result = pipeline(
        image=embeddings["latents"], strength=0.5, num_inference_steps=STEPS, output_type="latent",
        generator=generator, **prompts,
    ).images  # fmt: skip
    assert torch.isfinite(result).all()
    assert pipeline.scheduler.step_index == STEPS


@pytest.fixture(scope="module")
def flow_pipeline() -> Any:
    torch.manual_seed(4)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=8,
        caption_projection_dim=8,
        pooled_projection_dim=8,
        out_channels=4,
        pos_embed_max_size=8,
    ).eval()
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return diffusers.StableDiffusion3Pipeline(transformer=transformer, scheduler=theirs, vae=vae(), **NO_TEXT)


NO_TEXT = dict.fromkeys(f"{kind}{number}" for kind in ("text_encoder", "tokenizer") for number in ("", "_2", "_3"))


def pooled() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    names = ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    return {name: torch.randn(1, 8, generator=generator) for name in names}


class GuidedFlow(torch.nn.Module):
    """The transformer with both embeddings and the guidance inside, asked at t in [0, 1]."""

    def __init__(self, inner: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.inner = inner
        names = ("prompt_embeds", "pooled_prompt_embeds")
        self.states, self.pools = (torch.nn.Buffer(torch.cat([inputs[f"negative_{n}"], inputs[n]])) for n in names)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        plain, conditional = self.inner(
            hidden_states=torch.cat([x, x]),
            timestep=1000 * torch.cat([t, t]),
            encoder_hidden_states=self.states,
            pooled_projections=self.pools,
            return_dict=False,
        )[0].chunk(2)
        return plain + GUIDANCE * (conditional - plain)


def test_flow_matching_pipeline(flow_pipeline: Any, embeddings: dict[str, torch.Tensor]) -> None:
    inputs = {**embeddings, **pooled()}
    flow_pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    euler = run(flow_pipeline, **inputs)
    config = flow_pipeline.scheduler.config
    flow_pipeline.scheduler = make(config, solver="ddim")
    assert_close(run(flow_pipeline, **inputs), euler)

    flow_pipeline.scheduler = make(config)
    latents = run(flow_pipeline, **inputs)
    guided = GuidedFlow(flow_pipeline.transformer, inputs)
    with torch.no_grad():
        expected = flow_pipeline.scheduler.program.evaluate(
            lambda x, t: guided(x, torch.tensor([t])), embeddings["latents"]
        )
    assert_close(latents, expected, 1e-4)


@pytest.mark.slow
def test_engine_of_the_flow_pipelines_network(
    flow_pipeline: Any, embeddings: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    inputs = {**embeddings, **pooled()}
    flow_pipeline.scheduler = make(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config)
    latents = run(flow_pipeline, **inputs)
    guided = GuidedFlow(flow_pipeline.transformer, inputs)
    samples = engine_samples(guided, "flow", flow_pipeline.scheduler.program, embeddings["latents"], tmp_path)
    assert_close(samples, latents, 1e-4)


def test_dynamic_shifting_in_a_pipeline(flow_pipeline: Any, embeddings: dict[str, torch.Tensor]) -> None:
    inputs = {**embeddings, **pooled()}
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    flow_pipeline.scheduler = theirs
    euler = run(flow_pipeline, **inputs)
    flow_pipeline.scheduler = make(theirs.config, solver="ddim")
    assert_close(run(flow_pipeline, **inputs), euler)
    with pytest.raises(InputError, match="give mu"):
        flow_pipeline.scheduler.set_timesteps(4)


def test_a_saved_pipeline_loads_with_its_scheduler(flow_pipeline: Any, tmp_path: Path) -> None:
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    flow_pipeline.scheduler = make(theirs.config, solver="pfdiff:k=1,l=1")
    flow_pipeline.save_pretrained(tmp_path)
    absent: dict[str, Any] = {**NO_TEXT, "image_encoder": None, "feature_extractor": None}
    again = diffusers.StableDiffusion3Pipeline.from_pretrained(tmp_path, **absent)
    assert type(again.scheduler) is pfdiff.PFDiffScheduler
    assert again.scheduler.config["solver"] == "pfdiff:k=1,l=1"


def test_pipelines_read_sigmas_alphas_and_betas() -> None:
    theirs = diffusers.DDIMScheduler(**LATENT)
    ours = make(theirs.config, solver="ddim")
    x = torch.ones(2, 4, 8, 8)
    assert torch.equal(ours.scale_model_input(x, 5), x)  # before set_timesteps
    assert_close(ours.alphas_cumprod, theirs.alphas_cumprod)
    assert_close(ours.betas, theirs.betas, 1e-4)
    euler = diffusers.EulerDiscreteScheduler(timestep_spacing="trailing", **LATENT)
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    for theirs in (euler, flow):
        ours = make(theirs.config, solver="ddim")
        for one in (theirs, ours):
            one.set_timesteps(4)
        assert_close(ours.sigmas, theirs.sigmas, 1e-4)
    with pytest.raises(AttributeError):
        _ = ours.alphas_cumprod
