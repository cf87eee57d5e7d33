"""Run by an environment that has LeRobot: a random DiffusionPolicy, saved, and the actions of its own select_action.

    python lerobot_reference.py FOLDER [pictures] [ddim]

Writes what LeRobot's save_pretrained writes, of policy and processors, and expected.npz: each observation
[ticks, ...], noise [chunks, horizon, actions], of DDPM also steps_noise [chunks, evaluations - 1, horizon, actions],
and actions [ticks, actions]. tests/data/lerobot was written so by LeRobot 0.4.4 with diffusers 0.35.2.
"""

# pyright: reportMissingImports=false, reportPrivateImportUsage=false, reportArgumentType=false
# LeRobot is not installed where types are checked.
from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

try:  # torchvision's wheel of another torch: its Python code is all that is needed
    import torchvision  # noqa: F401
except RuntimeError:
    operators = torch.library.Library("torchvision", "DEF")
    for one in ("nms", "qnms"):
        operators.define(f"{one}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import diffusers.schedulers.scheduling_ddpm as ddpm
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from lerobot.policies.diffusion.processor_diffusion import make_diffusion_pre_post_processors

TICKS, EVALUATIONS, HORIZON, DONE = 10, 12, 8, 4


def features(*, pictures: bool) -> dict[str, Any]:
    found = {"observation.state": PolicyFeature(FeatureType.STATE, (3,))}
    if pictures:
        for name in ("top", "wrist"):
            found[f"observation.images.{name}"] = PolicyFeature(FeatureType.VISUAL, (3, 36, 32))
    else:
        found["observation.environment_state"] = PolicyFeature(FeatureType.ENV, (4,))
    return found


def statistics(given: dict[str, Any], draw: np.random.Generator) -> dict[str, dict[str, torch.Tensor]]:
    found = {}
    for name, feature in given.items():
        shape = (3, 1, 1) if feature.type is FeatureType.VISUAL else feature.shape
        low = draw.normal(size=shape)
        drawn = {
            "min": low,
            "max": low + draw.uniform(0.5, 3, shape),
            "mean": draw.uniform(0.3, 0.6, shape),
            "std": draw.uniform(0.5, 2, shape),
        }
        found[name] = {key: torch.from_numpy(value.astype(np.float32)) for key, value in drawn.items()}
    return found


def main(folder: Path, *, pictures: bool, ddim: bool) -> None:
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    inputs, outputs = features(pictures=pictures), {"action": PolicyFeature(FeatureType.ACTION, (2,))}
    config = DiffusionConfig(
        horizon=HORIZON,
        n_action_steps=DONE,
        input_features=inputs,
        output_features=outputs,
        down_dims=(8, 16),
        diffusion_step_embed_dim=8,
        device="cpu",
        noise_scheduler_type="DDIM" if ddim else "DDPM",
        num_train_timesteps=EVALUATIONS,
        crop_shape=(32, 28) if pictures else None,
        pretrained_backbone_weights=None,
        spatial_softmax_num_keypoints=4,
    )
    stats = statistics({**inputs, **outputs}, draw)
    policy = DiffusionPolicy(config).eval()
    before, after = make_diffusion_pre_post_processors(config, stats)
    folder.mkdir(parents=True, exist_ok=True)
    for one in (policy, before, after):
        one.save_pretrained(folder)

    # Every chunk's noise is known: that of the start is an argument, that of the steps is drawn by diffusers.
    chunks = -(-TICKS // DONE)
    noise = draw.normal(size=(chunks, HORIZON, 2)).astype(np.float32)
    steps = draw.normal(size=(chunks, EVALUATIONS - 1, HORIZON, 2)).astype(np.float32)
    drawn = iter(steps.reshape(-1, 1, HORIZON, 2))
    ddpm.randn_tensor = lambda shape, **options: torch.from_numpy(next(drawn))
    seen = {name: draw.uniform(0, 1, (TICKS, *one.shape)).astype(np.float32) for name, one in inputs.items()}
    actions = []
    for tick in range(TICKS):
        batch = before({name: torch.from_numpy(value[tick]) for name, value in seen.items()})
        given = {name: batch[name] for name in inputs}
        actions.append(after(policy.select_action(given, noise=torch.from_numpy(noise[tick // DONE])[None])).numpy()[0])
    drawn_on_the_way = {} if ddim else {"steps_noise": steps}
    np.savez(folder / "expected.npz", noise=noise, actions=np.array(actions), **drawn_on_the_way, **seen)


if __name__ == "__main__":
    main(Path(sys.argv[1]), pictures="pictures" in sys.argv, ddim="ddim" in sys.argv)
