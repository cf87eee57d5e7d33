"""LeRobot's DiffusionPolicy: a folder that its save_pretrained wrote, or an object. LeRobot is not imported.

    policy/  config.json                        "type": "diffusion"; features, U-Net, noise scheduler, chunk
             model.safetensors                  diffusion.unet.*, diffusion.rgb_encoder.*
             policy_preprocessor.json           since LeRobot 0.4: normalisation, with its statistics in .safetensors
             policy_postprocessor.json
    before 0.4 the statistics are weights: normalize_inputs.buffer_observation_state.min, ...

An object takes and gives normalised numbers, as LeRobot's own does: its processors, which normalise, are not in it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import nn

from ...engine.condition import Condition
from ...engine.errors import EngineFileError, InputError
from ...engine.policy import OBSERVATION
from ..described import Described
from ..pipelines.saved_models import read_json
from ..sources.diffusers_config import read_config
from .camera import Camera, CameraOptions
from .networks import ObservationEncoder, ObservedUnet
from .options import Policy
from .scaling import Scaled, Scaling
from .unet1d import ConditionalUnet1d, UnetOptions

STATE, ENVIRONMENT, ACTION = "observation.state", "observation.environment_state", "action"
WEIGHTS = "model.safetensors"
SCHEDULER = (
    *("num_train_timesteps", "beta_schedule", "beta_start", "beta_end"),
    *("prediction_type", "clip_sample", "clip_sample_range"),
)
Weights = Mapping[str, torch.Tensor]


@final
@dataclass(frozen=True)
class Saved:
    """What was read: the config, the weights, and (statistics by feature and name, eps, added to every span)."""

    name: str
    config: Mapping[str, Any]
    weights: Weights
    stats: Mapping[str, Mapping[str, np.ndarray]] | None
    eps: float = 1e-8
    added: bool = False


def read(source: Any) -> Described | None:
    """The policy in `source`, None where that is nothing of LeRobot's. Raises InputError, EngineFileError."""
    saved = _folder(Path(source)) if isinstance(source, (str, Path)) else _object(source)
    if saved is None:
        return None
    try:
        return _described(saved)
    except InputError as error:
        raise InputError(f"policy '{saved.name}': {error}") from error
    except KeyError as error:
        raise InputError(f"policy '{saved.name}': config.json has no {error}; save it with LeRobot again") from None


# Where it comes from.
def _folder(path: Path) -> Saved | None:
    if not (path / "config.json").is_file():
        return None
    config = read_json(path / "config.json")
    kind = config.get("type")
    if "_class_name" in config or not isinstance(kind, str):
        return None
    if kind != "diffusion":
        raise InputError(
            f"policy '{path}': LeRobot's type '{kind}', expected diffusion; give another as an nn.Module with policy="
        )
    weights = _safetensors(path / WEIGHTS)
    name = path.resolve().name
    before, after = (path / f"policy_{one}processor.json" for one in ("pre", "post"))
    if before.is_file() and after.is_file():
        step = _normalizer(read_json(before), "normalizer_processor", path)
        other = _normalizer(read_json(after), "unnormalizer_processor", path)
        stats = _by_feature(_safetensors(path / step["state_file"]))
        stats[ACTION] = _by_feature(_safetensors(path / other["state_file"])).get(ACTION, {})
        config = {**config, "normalization_mapping": step["config"]["norm_map"]}
        return Saved(name, config, weights, stats, float(step["config"].get("eps", 1e-8)))
    held = {
        name: one for name, one in weights.items() if name.startswith(("normalize_inputs.", "unnormalize_outputs."))
    }
    if not held:
        raise InputError(
            f"policy '{path}': no policy_preprocessor.json and no statistics among its weights; save it with its "
            "processors, or give the object, which takes and gives normalised numbers"
        )
    return Saved(name, config, weights, _of_buffers(config, held), added=True)


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    import safetensors
    from safetensors.torch import load

    try:
        return load(path.read_bytes())
    except (OSError, safetensors.SafetensorError) as error:
        raise EngineFileError(f"'{path}' cannot be read ({error}); copy the policy's folder again") from None


def _normalizer(pipeline: Mapping[str, Any], kind: str, path: Path) -> Mapping[str, Any]:
    steps = [one for one in pipeline.get("steps", ()) if one.get("registry_name") == kind]
    renames = [one for one in pipeline.get("steps", ()) if one.get("config", {}).get("rename_map")]
    if len(steps) != 1 or "state_file" not in steps[0]:
        raise InputError(
            f"policy '{path}': its processors have {len(steps)} steps {kind} with statistics, expected one"
        )
    if renames:
        raise InputError(
            f"policy '{path}': its preprocessor renames observations, which an engine does not; save without"
        )
    return steps[0]


def _by_feature(flat: Weights) -> dict[str, dict[str, np.ndarray]]:
    """{"observation.state": {"min": ...}} of {"observation.state.min": ...}."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for key, value in flat.items():
        feature, _, stat = key.rpartition(".")
        found.setdefault(feature, {})[stat] = value.double().numpy()
    return found


def _of_buffers(config: Mapping[str, Any], held: Weights) -> dict[str, dict[str, np.ndarray]]:
    names = {one.replace(".", "_"): one for one in (*config["input_features"], *config["output_features"])}
    found: dict[str, dict[str, np.ndarray]] = {}
    for key, value in held.items():
        buffer, _, stat = key.rpartition(".")
        name = names.get(buffer.rpartition("buffer_")[2])
        if name is not None:
            found.setdefault(name, {})[stat] = value.double().numpy()
    return found


def _object(source: Any) -> Saved | None:
    kinds = [one for one in type(source).__mro__ if one.__module__.startswith("lerobot.")]
    if not any(one.__name__ == "DiffusionPolicy" for one in kinds):
        return None
    config = asdict(source.config) if is_dataclass(source.config) else dict(vars(source.config))
    weights = {name.replace("unet._orig_mod.", "unet."): one for name, one in source.state_dict().items()}
    warnings.warn(
        "a DiffusionPolicy object holds no statistics: the engine takes and gives normalised numbers; give the saved "
        "folder to have them in it",
        stacklevel=2,
    )
    return Saved("DiffusionPolicy", _plain(config), weights, None)


def _plain(value: Any) -> Any:
    """Enums as their values, in dictionaries and lists too."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value.value if isinstance(value, Enum) else value


# What it is.
def _described(saved: Saved) -> Described:
    config = saved.config
    shapes = {name: tuple(one["shape"]) for name, one in config["input_features"].items()}
    kinds = {name: str(one["type"]) for name, one in config["input_features"].items()}
    pictures = [name for name, kind in kinds.items() if kind == "VISUAL"]
    # LeRobot joins state, pictures and environment in this order.
    order = [STATE, *pictures, *([ENVIRONMENT] if ENVIRONMENT in shapes else [])]
    if STATE not in shapes or set(order) != set(shapes):
        raise InputError(f"it observes {', '.join(shapes)}, expected {STATE}, pictures, {ENVIRONMENT}")
    steps, horizon, actions = int(config["n_obs_steps"]), int(config["horizon"]), int(_action(config)["shape"][0])
    scaled = {name: _scaling(saved, name, kinds[name]) for name in order}
    cameras = _cameras(config, shapes, pictures, saved.weights)
    features = sum(
        2 * int(config["spatial_softmax_num_keypoints"]) if one in pictures else shapes[one][0] for one in order
    )
    unet = _loaded(ConditionalUnet1d(_unet(config, actions, steps * features)), saved.weights, "diffusion.unet.")
    observations = {name: (steps, *shapes[name]) for name in order}
    if pictures:
        encoder = ObservationEncoder([Scaled(scaled[one]) for one in order], [cameras.get(one) for one in order])
        module, condition = unet, Condition("global_cond", "float32", (steps * features,))
    else:
        joined = Scaling(
            *(
                _joined([getattr(scaled[one], part) for one in order], [shapes[one][0] for one in order])
                for part in ("low", "gain", "bias")
            )
        )
        encoder = None
        module, condition = ObservedUnet(unet, Scaled(joined)), Condition(OBSERVATION, "float32", (steps, features))
    scale, offset = _units(saved, actions)
    policy = Policy(
        observations,
        encoder,
        (condition.name,),
        scale.tolist(),
        offset.tolist(),
        steps - 1,
        int(config["n_action_steps"]),
    )
    convention = read_config(
        {"_class_name": f"{config['noise_scheduler_type']}Scheduler", **{key: config[key] for key in SCHEDULER}}
    )
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


def _action(config: Mapping[str, Any]) -> Mapping[str, Any]:
    features = config["output_features"]
    if list(features) != [ACTION] or len(features[ACTION]["shape"]) != 1:
        raise InputError(f"it makes {', '.join(features)}, expected one {ACTION} of rank 1")
    return features[ACTION]


def _scaling(saved: Saved, name: str, kind: str) -> Scaling:
    if saved.stats is None:
        return Scaling.none()
    mode = str(saved.config["normalization_mapping"].get(kind, "IDENTITY"))
    if name not in saved.stats and not saved.added:
        mode = "IDENTITY"  # LeRobot leaves what it has no statistics of as it is
    return Scaling.of(mode, saved.stats.get(name, {}), name, eps=saved.eps, added=saved.added)


def _units(saved: Saved, actions: int) -> tuple[np.ndarray, np.ndarray]:
    if saved.stats is None:
        return np.ones(actions), np.zeros(actions)
    mode = str(saved.config["normalization_mapping"].get("ACTION", "IDENTITY"))
    scale, offset = Scaling.actions(mode, saved.stats.get(ACTION, {}), eps=saved.eps)
    return np.broadcast_to(scale, (actions,)), np.broadcast_to(offset, (actions,))


def _joined(parts: list[np.ndarray], sizes: list[int]) -> np.ndarray:
    return np.concatenate([np.broadcast_to(one, (size,)) for one, size in zip(parts, sizes, strict=True)])


def _unet(config: Mapping[str, Any], actions: int, condition: int) -> UnetOptions:
    return UnetOptions(
        actions,
        condition,
        tuple(config["down_dims"]),
        int(config["kernel_size"]),
        int(config["n_groups"]),
        int(config["diffusion_step_embed_dim"]),
        bool(config["use_film_scale_modulation"]),
    )


def _cameras(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], pictures: list[str], weights: Weights
) -> dict[str, nn.Module]:
    """The encoder of each camera; one for all of them where the policy has one."""
    if not pictures:
        return {}
    sizes = {shapes[one] for one in pictures}
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
        int(config["spatial_softmax_num_keypoints"]),
    )
    where = "diffusion.rgb_encoder."
    if not config["use_separate_rgb_encoder_per_camera"]:
        one = _loaded(Camera(given), weights, where)
        return dict.fromkeys(pictures, one)
    return {name: _loaded(Camera(given), weights, f"{where}{n}.") for n, name in enumerate(pictures)}


def _loaded(module: nn.Module, weights: Weights, where: str) -> nn.Module:
    """The module with the weights that begin with `where`. Raises InputError when they are not its own."""
    own = {name.removeprefix(where): one.float() for name, one in weights.items() if name.startswith(where)}
    try:
        module.load_state_dict(own)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise InputError(f"{WEIGHTS} and config.json do not fit ({lines[min(1, len(lines) - 1)][:160]})") from error
    return module.eval()
