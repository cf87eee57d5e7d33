"""`PFDiffScheduler` in diffusers' own loops and pipelines, against programs, engines and diffusers' schedulers."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pfdiff
from pfdiff.engine.errors import BackendError, InputError

diffusers = pytest.importorskip("diffusers")
pytestmark = [
    # diffusers turns tensors into NumPy 2 arrays in a way that PyTorch does not know yet.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    # transformers, which the pipelines import, notes that torchvision is missing.
    pytest.mark.filterwarnings("ignore:.*torchvision.*"),
]

Network = Callable[[Any, Any], Any]
LATENT = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def make(config: Any, **options: Any) -> Any:
    return pfdiff.PFDiffScheduler.from_config(config, **options)


def start(seed: int = 0, shape: tuple[int, ...] = (2, 3, 5, 7)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def network(x: Any, t: Any) -> Any:
    return 0.9 * (1.3 * x + float(t) / 1000).tanh()


def sample(scheduler: Any, steps: int, x: torch.Tensor, net: Network = network, **options: Any) -> torch.Tensor:
    """A pipeline's loop."""
    scheduler.set_timesteps(steps)
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        out = net(scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x, t)
        x = scheduler.step(out, t, x, **options).prev_sample
    return x


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert (actual - expected).abs().max() <= tolerance * max(1.0, float(expected.abs().max()))


# Against diffusers' schedulers, in float64 but for their float32 tables.
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("one", [True, False])
@pytest.mark.parametrize("steps", [4, 10])
def test_ddim_is_diffusers_ddim(spacing: str, prediction: str, one: bool, steps: int) -> None:
    theirs = diffusers.DDIMScheduler(
        timestep_spacing=spacing,
        prediction_type=prediction,
        set_alpha_to_one=one,
        steps_offset=1,
        clip_sample=False,
        **LATENT,
    )
    ours = make(theirs.config, solver="ddim")
    expected = sample(theirs, steps, start())
    assert_close(sample(ours, steps, start()), expected)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()


def test_clipped_ddim_is_diffusers_ddim() -> None:
    theirs = diffusers.DDIMScheduler(clip_sample_range=0.8, steps_offset=1)
    expected = sample(theirs, 10, start(), use_clipped_model_output=True)
    assert_close(sample(make(theirs.config, solver="ddim"), 10, start()), expected, 1e-4)


def test_zero_terminal_snr_is_diffusers_ddim() -> None:
    theirs = diffusers.DDIMScheduler(
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        prediction_type="v_prediction",
        clip_sample=False,
        **LATENT,
    )
    expected = sample(theirs, 5, start())
    ours = make(theirs.config, solver="ddim")
    assert_close(sample(ours, 5, start()), expected)
    assert ours.timesteps[0] == 999
    assert torch.isfinite(sample(make(theirs.config), 5, start())).all()  # PFDiff starts there too


def test_multistep_is_diffusers_multistep() -> None:
    theirs = diffusers.DPMSolverMultistepScheduler(solver_order=2, timestep_spacing="trailing", **LATENT)
    expected = sample(theirs, 10, start())
    assert_close(sample(make(theirs.config, solver="dpm++:2m"), 10, start()), expected, 1e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_on_flow_is_diffusers_flow_match_euler(shift: float) -> None:
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    expected = sample(theirs, 8, start())
    ours = make(theirs.config, solver="ddim")
    assert_close(sample(ours, 8, start()), expected)
    assert_close(ours.timesteps, theirs.timesteps)


def test_euler_on_edm_is_diffusers_edm_euler() -> None:
    theirs = diffusers.EDMEulerScheduler()
    ours = make(theirs.config, solver="ddim")
    theirs.set_timesteps(8)
    ours.set_timesteps(8)
    expected = actual = 80.0 * start()
    for t in theirs.timesteps:
        expected = theirs.step((theirs.scale_model_input(expected, t) + t).tanh(), t, expected).prev_sample
    for t in ours.timesteps:
        actual = ours.step((ours.scale_model_input(actual, t) + t).tanh(), t, actual).prev_sample
    assert_close(actual, expected)


# Against our own programs.
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "flow"])
@pytest.mark.parametrize(
    "solver", ["pfdiff:k=2,l=1", "pfdiff:k=1,l=1,base=dpm-solver-2", "dpm++:2m", "dpm-solver:order=2"]
)
def test_a_loop_is_the_program(solver: str, prediction: str) -> None:
    if prediction == "flow":
        theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    else:
        theirs = diffusers.DDIMScheduler(prediction_type=prediction, clip_sample=False, **LATENT)
    options = {"grid": "uniform", "t_start": 0.95} if prediction == "flow" and "dpm" in solver else {}
    ours = make(theirs.config, solver=solver, **options)
    scale = 1000 if prediction == "flow" else 1
    x = start().double()
    actual = sample(ours, 6, x)
    assert ours.program.nfe == 6
    assert ours.timesteps.dtype == (torch.float32 if prediction == "flow" else torch.int64)
    exact = ours.program.evaluate(lambda y, t: network(y, np.float32(scale * t)), x)
    torch.testing.assert_close(actual, exact, rtol=1e-9, atol=1e-9)
    single = sample(ours, 6, x.float())
    assert_close(single.double(), exact, 1e-4)


def test_states_stay_float32_in_half_precision_pipelines() -> None:
    ours = make(diffusers.DDIMScheduler(clip_sample=False, **LATENT).config)
    exact = sample(ours, 8, start().double(), lambda x, t: network(x, t).half())
    half = sample(ours, 8, start().half(), lambda x, t: network(x, t).half())
    assert half.dtype == torch.float16
    assert_close(half.double(), exact, 5e-3)


def test_edits_of_the_latents_are_kept() -> None:
    """Inpainting writes into the latents between steps; DDIM has no other state."""
    theirs = diffusers.DDIMScheduler(clip_sample=False, steps_offset=1, **LATENT)
    ours = make(theirs.config, solver="ddim")
    results = []
    for one in (theirs, ours):
        one.set_timesteps(5)
        x = start()
        for t in one.timesteps:
            x = one.step(network(x, t), t, x, return_dict=False)[0]
            x[:, :, :2] = 0.25 * float(t) / 1000
        results.append(x)
    assert_close(results[1], results[0])


@pytest.mark.parametrize("solver", ["ddim", "pfdiff:k=2,l=1", "pfdiff:k=3,l=2", "dpm++:2m", "dpm-solver:order=2"])
def test_image_to_image_starts_inside_at_the_same_times(solver: str) -> None:
    ours = make(diffusers.DDIMScheduler(clip_sample=False, **LATENT).config, solver=solver)
    ours.set_timesteps(6)
    times = ours.timesteps.clone()
    ours.set_begin_index(2)
    x, asked = start(), []
    for t in ours.timesteps[2:]:
        asked.append(int(t))
        x = ours.step(network(x, t), t, x, return_dict=False)[0]
    assert asked == times[2:].tolist()
    assert torch.isfinite(x).all()
    # A network that is exact for one clean sample is sampled to it from any start.
    clean = torch.full_like(x, 0.3)
    ours.set_timesteps(6)
    alphas = diffusers.DDIMScheduler(**LATENT).alphas_cumprod
    x = ours.add_noise(clean, start(), ours.timesteps[2:3])
    for t in ours.timesteps[2:]:
        alpha = alphas[t].sqrt()
        x = ours.step((x - alpha * clean) / (1 - alpha**2).sqrt(), t, x, return_dict=False)[0]
    assert_close(x, clean, 1e-3)


def test_single_step_solvers_do_not_start_inside_a_block() -> None:
    ours = make(diffusers.DDIMScheduler(**LATENT).config, solver="dpm-solver:order=2")
    ours.set_timesteps(6)
    ours.set_begin_index(1)
    with pytest.raises(InputError):
        ours.step(start(), ours.timesteps[1], start())


def test_add_noise_is_diffusers() -> None:
    theirs = diffusers.DDIMScheduler(**LATENT)
    times = torch.tensor([3, 900])
    clean, noise = start(1), start(2)
    expected = theirs.add_noise(clean, noise, times)
    assert_close(make(theirs.config).add_noise(clean, noise, times), expected)
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    ours = make(flow.config, solver="ddim")
    for one in (flow, ours):
        one.set_timesteps(4)
    expected = flow.scale_noise(clean, flow.timesteps[1:3], noise)
    assert_close(ours.scale_noise(clean, ours.timesteps[1:3], noise), expected)


def test_learned_variance_is_dropped() -> None:
    ours = make(diffusers.DDIMScheduler(**LATENT).config)
    plain = sample(ours, 4, start())
    assert torch.equal(sample(ours, 4, start(), lambda x, t: torch.cat([network(x, t), x], 1)), plain)


# Configs.
def test_saved_and_loaded(tmp_path: Path) -> None:
    theirs = diffusers.PNDMScheduler(steps_offset=1, skip_prk_steps=True, **LATENT)
    ours = make(theirs.config, solver="pfdiff:k=1,l=1", grid="logsnr", clip=2.0)
    expected = sample(ours, 5, start())
    ours.save_pretrained(tmp_path)
    again: Any = pfdiff.PFDiffScheduler.from_pretrained(tmp_path)
    assert type(again) is pfdiff.PFDiffScheduler
    assert torch.equal(sample(again, 5, start()), expected)
    assert again.program is not None
    assert ours.program.digest == again.program.digest
    theirs.save_pretrained(tmp_path / "theirs")
    read: Any = pfdiff.PFDiffScheduler.from_pretrained(tmp_path / "theirs", solver="ddim")
    assert read.config["steps_offset"] == 1
    assert read.config["set_alpha_to_one"] is False
    back = diffusers.PNDMScheduler.from_config(ours.config)
    assert back.config["skip_prk_steps"] is True
    assert make(ours.config, solver="ddim").config["solver"] == "ddim"


def test_copies_are_independent() -> None:
    ours = make(diffusers.DDIMScheduler(**LATENT).config)
    expected = sample(ours, 4, start())
    ours.set_timesteps(4)
    x = ours.step(network(start(), 0), ours.timesteps[0], start()).prev_sample
    twin = copy.deepcopy(ours)
    assert torch.equal(sample(twin, 4, start()), expected)
    assert ours.step_index == 1
    ours.step(network(x, 0), ours.timesteps[1], x)


def test_wrong_use_is_said() -> None:
    config = diffusers.DDIMScheduler(**LATENT).config
    x = start()
    with pytest.raises(InputError, match="call set_timesteps first"):
        make(config).step(x, 0, x)
    ours = make(config)
    ours.set_timesteps(2)
    for t in ours.timesteps:
        x = ours.step(x, t, x).prev_sample
    with pytest.raises(InputError, match="all 2 steps are done"):
        ours.step(x, ours.timesteps[-1], x)
    ours.set_timesteps(2)
    with pytest.raises(InputError, match="is none of"):
        ours.step(x, 500, x)
    with pytest.raises(InputError, match="eta 1"):
        ours.step(x, ours.timesteps[0], x, eta=1.0)
    with pytest.raises(InputError, match="expected the sample's"):
        ours.step(x[:1], ours.timesteps[0], x)
    with pytest.raises(InputError, match="give one of them"):
        ours.set_timesteps(timesteps=[3, 2], sigmas=[1.0, 0.5])
    with pytest.raises(InputError, match="unknown solver"):
        make(config, solver="magic")
    with pytest.raises(InputError, match="no betas"):
        make(diffusers.KarrasVeScheduler().config)


def test_without_diffusers_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pfdiff.export.scheduler", raising=False)
    monkeypatch.setitem(sys.modules, "diffusers.configuration_utils", None)
    with pytest.raises(BackendError, match="pip install diffusers"):
        _ = pfdiff.PFDiffScheduler


# Pipelines: tiny, random weights, embeddings in place of text encoders.
GUIDANCE, STEPS = 3.0, 6


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
    program = stable_diffusion.scheduler.program
    guided = Guided(stable_diffusion.unet, embeddings).eval()
    path = tmp_path / "guided.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(
            guided,
            (embeddings["latents"], torch.ones(1)),
            str(path),
            dynamo=True,
            opset_version=21,
            input_names=["x", "t"],
            output_names=["out"],
            verbose=False,
        )
    source = pfdiff.Network(path, schedule=program.schedule, prediction="eps")
    with pfdiff.build(
        source, STEPS, program.solver, grid=program.grid, backend="onnxruntime", out=tmp_path / "guided.engine"
    ) as engine:
        assert_close(engine.sample(noise=embeddings["latents"]), latents, 1e-4)


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


def test_flow_matching_pipeline(flow_pipeline: Any, embeddings: dict[str, torch.Tensor]) -> None:
    inputs = {**embeddings, **pooled()}
    flow_pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    euler = run(flow_pipeline, **inputs)
    config = flow_pipeline.scheduler.config
    flow_pipeline.scheduler = make(config, solver="ddim")
    assert_close(run(flow_pipeline, **inputs), euler)

    flow_pipeline.scheduler = make(config)
    latents = run(flow_pipeline, **inputs)
    states = torch.cat([inputs["negative_prompt_embeds"], inputs["prompt_embeds"]])
    pools = torch.cat([inputs["negative_pooled_prompt_embeds"], inputs["pooled_prompt_embeds"]])

    def guided(x: Any, t: float) -> Any:
        plain, conditional = flow_pipeline.transformer(
            hidden_states=torch.cat([x, x]),
            timestep=torch.full((2,), 1000 * t),
            encoder_hidden_states=states,
            pooled_projections=pools,
            return_dict=False,
        )[0].chunk(2)
        return plain + GUIDANCE * (conditional - plain)

    with torch.no_grad():
        expected = flow_pipeline.scheduler.program.evaluate(guided, embeddings["latents"])
    assert_close(latents, expected, 1e-4)


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
