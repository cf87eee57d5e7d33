"""export/policies/lerobot.py against LeRobot: tests/data/lerobot was saved by it, with the actions that it took."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import pfdiff
from pfdiff.export.policies.camera import Camera, CameraOptions

SAVED = Path(__file__).parents[2] / "data" / "lerobot"
BOUND = 1e-5  # of the largest action


def actions_of(engine: pfdiff.Engine, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """(found, LeRobot's) [ticks, actions]: a chunk from each chunk's two last observations and its noise."""
    expected = np.load(folder / "expected.npz")
    policy = engine.policy
    assert policy is not None
    names = [one.name for one in policy.observations]
    found = []
    for chunk, noise in enumerate(expected["noise"]):
        tick = chunk * policy.count
        last = [max(0, tick - policy.steps + 1 + step) for step in range(policy.steps)]
        drawn = {"steps_noise": expected["steps_noise"][chunk][:, None]} if "steps_noise" in expected else {}
        observation = {name: expected[name][last] for name in names}
        (made,) = engine.sample(observation=observation, noise=noise[None], **drawn).numpy()
        found.append(made[policy.first : policy.first + policy.count])
    return np.concatenate(found)[: len(expected["actions"])], expected["actions"]


def check(folder: Path, out: Path, solver: str) -> None:
    with pfdiff.build(str(folder), 12, solver, grid="diffusers", out=out, backend="onnxruntime", threads=1) as engine:
        found, theirs = actions_of(engine, folder)
    np.testing.assert_allclose(found, theirs, rtol=0, atol=BOUND * np.abs(theirs).max())


def test_a_saved_policy_takes_lerobots_actions(tmp_path: Path) -> None:
    check(SAVED, tmp_path / "policy.engine", "ddpm")


@pytest.mark.parametrize("options", [["pictures"], ["ddim"], ["pictures", "ddim"]])
def test_others_that_lerobot_saves_now(tmp_path: Path, options: list[str]) -> None:
    interpreter = os.environ.get("PFDIFF_LEROBOT")
    if not interpreter:
        pytest.skip("needs PFDIFF_LEROBOT, the Python of an environment with LeRobot, which pins older libraries")
    script = Path(__file__).with_name("lerobot_reference.py")
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([interpreter, script, tmp_path / "saved", *options], check=True, env=own, capture_output=True)
    check(tmp_path / "saved", tmp_path / "policy.engine", "ddim" if "ddim" in options else "ddpm")


def test_ddim_with_clip_sample_is_diffusers_own_loop(tmp_path: Path) -> None:
    """LeRobot's loop is that of the scheduler's steps; its random network is clipped in most of them."""
    diffusers = pytest.importorskip("diffusers")
    shutil.copytree(SAVED, tmp_path / "policy")
    edited(lambda c: c.update(noise_scheduler_type="DDIM"))(tmp_path / "policy")
    network = pfdiff.Network(tmp_path / "policy")
    assert network.policy is not None
    config = json.loads((tmp_path / "policy" / "config.json").read_text())
    assert config["clip_sample"]
    names = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "prediction_type", "clip_sample")
    scheduler = diffusers.DDIMScheduler(**{name: config[name] for name in names})
    scheduler.set_timesteps(6)
    generator = torch.Generator().manual_seed(0)
    start, observation = torch.randn(2, 8, 2, generator=generator), torch.rand(2, 2, 7, generator=generator)
    x = start
    for t in scheduler.timesteps:
        x = scheduler.step(network.evaluate(x, float(t), {"observation": observation}), t, x).prev_sample
    expected = x.numpy() * network.policy.contract.scale + network.policy.contract.offset
    words: dict[str, Any] = {"grid": "diffusers", "out": tmp_path / "p.engine", "backend": "onnxruntime", "threads": 1}
    with pfdiff.build(network, 6, "ddim", **words) as engine:
        parts = {"observation.state": observation[:, :, :3], "observation.environment_state": observation[:, :, 3:]}
        found = engine.sample(noise=start, observation=parts).numpy()
        assert engine.programs[6].solver == "ddim:eps=own"
    np.testing.assert_allclose(found, expected, rtol=0, atol=BOUND * np.abs(expected).max())


def test_statistics_among_the_weights_are_those_of_processors(tmp_path: Path) -> None:
    """LeRobot before 0.4 kept them there; its eps is added to every span, which float32 does not see here."""
    shutil.copytree(SAVED, tmp_path / "old")
    weights = load_file(SAVED / "model.safetensors")
    stats = load_file(next(SAVED.glob("policy_pre*.safetensors")))
    for key, value in stats.items():
        feature, _, stat = key.rpartition(".")
        place = "unnormalize_outputs" if feature == "action" else "normalize_inputs"
        weights[f"{place}.buffer_{feature.replace('.', '_')}.{stat}"] = value
    save_file(weights, tmp_path / "old" / "model.safetensors")
    for one in (tmp_path / "old").glob("policy_p*"):
        one.unlink()
    new, old = pfdiff.Network(SAVED), pfdiff.Network(tmp_path / "old")
    assert new.policy is not None
    assert old.policy is not None
    np.testing.assert_allclose(new.policy.contract.scale, old.policy.contract.scale, rtol=1e-6)
    np.testing.assert_allclose(new.policy.contract.offset, old.policy.contract.offset, rtol=1e-6)
    x, observation = torch.randn(2, 8, 2), torch.rand(2, 2, 7)
    given = {"observation": observation}
    torch.testing.assert_close(new.evaluate(x, 5, given), old.evaluate(x, 5, given), rtol=1e-4, atol=1e-4)


def edited(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return edit


def processed(which: str, change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / f"policy_{which}processor.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return edit


def weighed(file: str, begins: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    """The tensors of a file whose names begin so."""

    def edit(folder: Path) -> None:
        (path,) = folder.glob(f"{file}.safetensors")
        held = load_file(path)
        save_file({name: change(one) if name.startswith(begins) else one for name, one in held.items()}, path)

    return edit


def truncated(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((SAVED / "model.safetensors").read_bytes()[:5000])


def without_processors(folder: Path) -> None:
    (folder / "policy_preprocessor.json").unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (edited(lambda c: c.update(type="act")), "LeRobot's type 'act', expected diffusion"),
        (edited(lambda c: c.pop("horizon")), "config.json or a processor has no 'horizon'"),
        (edited(lambda c: c.update(down_dims=[8, 24])), "do not fit"),
        (edited(lambda c: c["input_features"].pop("observation.state")), "it observes observation.environment_state"),
        (edited(lambda c: c["output_features"].update(gripper=c["output_features"]["action"])), "expected one action"),
        (edited(lambda c: c.update(beta_schedule="sine")), "beta_schedule 'sine'"),
        (edited(lambda c: c.update(horizon=None)), "horizon None, expected an integer"),
        (edited(lambda c: c.update(n_action_steps=1.5)), "n_action_steps 1.5, expected an integer"),
        (edited(lambda c: c.update(down_dims=5)), "a value that does not fit"),
        (edited(lambda c: c.update(input_features=[])), "a value that does not fit"),
        (edited(lambda c: c.update(noise_scheduler_type="PNDM")), "noise_scheduler_type 'PNDM', expected one of DDPM"),
        (truncated, "cannot be read"),
        (without_processors, "no policy_preprocessor.json"),
        (processed("pre", lambda c: c["steps"].append({"registry_name": "flip"})), "a step 'flip', which an engine"),
        (processed("post", lambda c: c["steps"].append({"registry_name": "delta"})), "a step 'delta', which an engine"),
        (processed("post", lambda c: c["steps"][0]["config"]["norm_map"].update(ACTION="IDENTITY")), "same in both"),
        (processed("pre", lambda c: c["steps"][3].update(state_file="../a.safetensors")), "name of a file in the"),
        (processed("pre", lambda c: c["steps"][3].pop("config")), "a processor has no 'config'"),
        (processed("pre", lambda c: c["steps"][3]["config"].update(eps=float("nan"))), "normalise actions by"),
        (weighed("model", "diffusion.unet", lambda one: one * float("nan")), "diffusion.unet.* has NaN"),
        (weighed("policy_pre*", "observation.state", lambda one: one[:1].clone()), r"is \[1\], expected \[3\]"),
        (weighed("policy_post*", "action", lambda one: one[:1].clone()), r"is \[1\], expected \[2\]"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path: Path, damage: Callable[[Path], None], said: str) -> None:
    shutil.copytree(SAVED, tmp_path / "policy")
    damage(tmp_path / "policy")
    with pytest.raises(pfdiff.PfdiffError, match=said) as refused:
        pfdiff.Network(tmp_path / "policy")
    assert "\n" not in str(refused.value)


def test_a_picture_is_resized_as_interpolate_does_and_cropped_in_the_middle() -> None:
    given = CameraOptions((3, 40, 30), "resnet18", (36, 24), (32, 21), group_norm=True, keypoints=4)
    camera = Camera(given)
    seen: list[torch.Tensor] = []
    camera.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    picture = torch.rand(2, 3, 40, 30)
    with torch.no_grad():
        camera(picture)
    resized = torch.nn.functional.interpolate(picture, (36, 24), mode="bilinear", antialias=True)
    # torchvision rounds (24 - 21) / 2 = 1.5 to 2, to the even one.
    torch.testing.assert_close(seen[0], resized[:, :, 2:34, 2:23], rtol=1e-5, atol=1e-5)
    with pytest.raises(pfdiff.InputError, match="vision_backbone 'resnet50'"):
        Camera(CameraOptions((3, 40, 30), "resnet50", None, None, group_norm=True, keypoints=4))
