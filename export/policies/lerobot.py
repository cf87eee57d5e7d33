"""LeRobot's DiffusionPolicy: a folder that its save_pretrained wrote, or an object. LeRobot is not imported.

    policy/  config.json                        "type": "diffusion"; features, U-Net, noise scheduler, chunk
             model.safetensors                  diffusion.unet.*, diffusion.rgb_encoder.*
             policy_preprocessor.json           since LeRobot 0.4: normalisation, with its statistics in .safetensors
             policy_postprocessor.json
    before 0.4 the statistics are weights: normalize_inputs.buffer_observation_state.min, ...

An object takes and gives normalised numbers, as LeRobot's own does: its processors, which normalise, are not in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from torch import nn

from ...engine.contract.condition import Condition
from ...engine.contract.policy import OBSERVATION
from ...engine.errors import InputError, PfdiffError, first_line, shown
from ...engine.json_fields import is_integer
from ..described import Described
from ..sources.diffusers_config import read_config
from .camera import Camera, CameraOptions
from .lerobot_files import ACTION, WEIGHTS, Saved, Weights, read_folder, read_object
from .networks import ObservationEncoder, ObservedUnet
from .options import Policy
from .scaling import Scaled, Scaling
from .unet1d import ConditionalUnet1d, UnetOptions

STATE, ENVIRONMENT = "observation.state", "observation.environment_state"
DAMAGE = (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RuntimeError)  # of values of odd kinds
SCHEDULERS = ("DDPM", "DDIM")
SCHEDULER = (
    *("num_train_timesteps", "beta_schedule", "beta_start", "beta_end"),
    *("prediction_type", "clip_sample", "clip_sample_range"),
)


@final
@dataclass(frozen=True)
class Features:
    """What a config says of its observations, by name, in the order in which LeRobot joins them: shape and kind."""

    steps: int
    shapes: Mapping[str, tuple[int, ...]]
    kinds: Mapping[str, str]
    keypoints: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Features:
        """Raises InputError for an observation that LeRobot's policy does not take."""
        given = config["input_features"]
        pictures = [name for name, one in given.items() if one["type"] == "VISUAL"]
        order = [STATE, *pictures, *([ENVIRONMENT] if ENVIRONMENT in given else [])]
        if set(order) != set(given):
            raise InputError(f"it observes {', '.join(given)}, expected {STATE}, pictures, {ENVIRONMENT}")
        return cls(
            _count(config, "n_obs_steps"),
            {name: tuple(given[name]["shape"]) for name in order},
            {name: str(given[name]["type"]) for name in order},
            _count(config, "spatial_softmax_num_keypoints"),
        )

    @property
    def pictures(self) -> list[str]:
        return [name for name, kind in self.kinds.items() if kind == "VISUAL"]

    @property
    def widths(self) -> list[int]:
        """Numbers of each observation in a step's features."""
        return [2 * self.keypoints if self.kinds[one] == "VISUAL" else shape[0] for one, shape in self.shapes.items()]


def read(source: Any) -> Described | None:
    """The policy in `source`, None where that is nothing of LeRobot's. Raises InputError, EngineFileError."""
    name = str(source) if isinstance(source, (str, Path)) else type(source).__name__
    try:
        saved = read_folder(Path(source)) if isinstance(source, (str, Path)) else read_object(source)
        return None if saved is None else _described(saved)
    except InputError as error:
        raise InputError(f"policy '{name}': {error}") from error
    except PfdiffError:
        raise
    except KeyError as error:
        raise InputError(
            f"policy '{name}': config.json or a processor has no {error}; save it with LeRobot again"
        ) from None
    except DAMAGE as error:
        raise InputError(
            f"policy '{name}': config.json or a processor has a value that does not fit ({first_line(error)}); save it "
            "with LeRobot again"
        ) from error


# What it is.
def _described(saved: Saved) -> Described:
    config = saved.config
    features = Features.of(config)
    horizon, actions = _count(config, "horizon"), _actions(config)
    numbers = sum(features.widths)
    options = _unet(config, actions, features.steps * numbers)
    unet = _loaded(ConditionalUnet1d(options), saved.weights, "diffusion.unet.")
    scaled = {name: _scaling(saved, name, kind, features.shapes[name]) for name, kind in features.kinds.items()}
    encoder: ObservationEncoder | None = None
    module, condition = unet, Condition("global_cond", "float32", (features.steps * numbers,))
    if features.pictures:
        cameras = _cameras(config, features, saved.weights)
        encoder = ObservationEncoder([Scaled(one) for one in scaled.values()], [cameras.get(one) for one in scaled])
    else:
        module = ObservedUnet(unet, Scaled(Scaling.joined(list(scaled.values()), features.widths)))
        condition = Condition(OBSERVATION, "float32", (features.steps, numbers))
    scale, offset = _units(saved, actions)
    policy = Policy(
        {name: (features.steps, *shape) for name, shape in features.shapes.items()},
        encoder,
        (condition.name,),
        scale.tolist(),
        offset.tolist(),
        features.steps - 1,
        _count(config, "n_action_steps"),
    )
    if config["noise_scheduler_type"] not in SCHEDULERS:
        raise InputError(
            f"noise_scheduler_type {shown(config['noise_scheduler_type'])}, expected one of {', '.join(SCHEDULERS)}"
        )
    scheduler = {"_class_name": f"{config['noise_scheduler_type']}Scheduler", **{key: config[key] for key in SCHEDULER}}
    convention = read_config(scheduler)
    return Described(
        module.eval(),
        saved.name,
        (horizon, actions),
        convention.schedule,
        convention.prediction,
        {condition.name: condition},
        convention=convention,
        policy=policy,
    )


def _actions(config: Mapping[str, Any]) -> int:
    """Numbers of an action."""
    features = config["output_features"]
    if list(features) != [ACTION] or len(features[ACTION]["shape"]) != 1:
        raise InputError(f"it makes {', '.join(features)}, expected one {ACTION} of rank 1")
    return int(features[ACTION]["shape"][0])


def _count(config: Mapping[str, Any], key: str) -> int:
    value = config[key]
    if not (is_integer(value) and value >= 1):
        raise InputError(f"config.json: {key} {shown(value)}, expected an integer of at least 1")
    return value


def _scaling(saved: Saved, name: str, kind: str, shape: tuple[int, ...]) -> Scaling:
    if saved.stats is None:
        return Scaling.none()
    mode = str(saved.config["normalization_mapping"].get(kind, "IDENTITY"))
    if name not in saved.stats and not saved.added:
        mode = "IDENTITY"  # LeRobot leaves what it has no statistics of as it is
    return Scaling.of(mode, saved.stats.get(name, {}), name, shape, eps=saved.eps, added=saved.added)


def _units(saved: Saved, actions: int) -> tuple[np.ndarray, np.ndarray]:
    if saved.stats is None:
        return np.ones(actions), np.zeros(actions)
    mode = str(saved.config["normalization_mapping"].get("ACTION", "IDENTITY"))
    scale, offset = Scaling.actions(mode, saved.stats.get(ACTION, {}), actions, eps=saved.eps)
    return np.broadcast_to(scale, (actions,)), np.broadcast_to(offset, (actions,))


def _unet(config: Mapping[str, Any], actions: int, condition: int) -> UnetOptions:
    return UnetOptions(
        actions,
        condition,
        tuple(config["down_dims"]),
        _count(config, "kernel_size"),
        _count(config, "n_groups"),
        _count(config, "diffusion_step_embed_dim"),
        bool(config["use_film_scale_modulation"]),
    )


def _cameras(config: Mapping[str, Any], features: Features, weights: Weights) -> dict[str, nn.Module]:
    """The encoder of each camera; one for all of them where the policy has one."""
    pictures = features.pictures
    sizes = {features.shapes[one] for one in pictures}
    if len(sizes) > 1:
        raise InputError(f"pictures of {len(sizes)} sizes, expected one")
    (size,) = sizes
    crop, resize = config.get("crop_shape"), config.get("resize_shape")
    given = CameraOptions(
        (size[0], size[1], size[2]),
        str(config["vision_backbone"]),
        tuple(resize) if resize else None,
        tuple(crop) if crop else None,
        bool(config["use_group_norm"]),
        features.keypoints,
    )
    where = "diffusion.rgb_encoder."
    if not config["use_separate_rgb_encoder_per_camera"]:
        one = _loaded(Camera(given), weights, where)
        return dict.fromkeys(pictures, one)
    return {name: _loaded(Camera(given), weights, f"{where}{n}.") for n, name in enumerate(pictures)}


def _loaded(module: nn.Module, weights: Weights, where: str) -> nn.Module:
    """The module with the weights that begin with `where`. Raises InputError when they are not its own."""
    own = {name.removeprefix(where): one.float() for name, one in weights.items() if name.startswith(where)}
    if odd := [name for name, one in own.items() if not one.isfinite().all()]:
        raise InputError(f"{WEIGHTS}: {where}{odd[0]} has NaN or infinite values; copy the policy's folder again")
    try:
        module.load_state_dict(own)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise InputError(f"{WEIGHTS} and config.json do not fit ({lines[min(1, len(lines) - 1)][:160]})") from error
    return module.eval()
