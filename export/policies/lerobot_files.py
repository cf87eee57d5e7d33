"""What LeRobot saved, read without it: config, weights and statistics of a folder or an object (see lerobot.py)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from ...engine.errors import EngineFileError, InputError, shown
from ..pipelines.saved_models import read_json

ACTION = "action"
WEIGHTS = "model.safetensors"
PLAIN_STEPS = ("rename_observations_processor", "to_batch_processor", "device_processor")  # change no number
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


def read_folder(path: Path) -> Saved | None:
    if not (path / "config.json").is_file():
        return None
    config = read_json(path / "config.json")
    kind = config.get("type")
    if "_class_name" in config or not isinstance(kind, str):
        return None
    if kind != "diffusion":
        raise InputError(f"LeRobot's type '{kind}', expected diffusion; give another as an nn.Module with policy=")
    weights = _safetensors(path / WEIGHTS)
    name = path.resolve().name
    before, after = (path / f"policy_{one}processor.json" for one in ("pre", "post"))
    if before.is_file() and after.is_file():
        step = _normalizer(read_json(before), "normalizer_processor")
        other = _normalizer(read_json(after), "unnormalizer_processor")
        stats = _by_feature(_safetensors(_beside(path, step)))
        stats[ACTION] = _by_feature(_safetensors(_beside(path, other))).get(ACTION, {})
        _check_alike(step["config"], other["config"])
        config = {**config, "normalization_mapping": step["config"]["norm_map"]}
        return Saved(name, config, weights, stats, float(step["config"].get("eps", 1e-8)))
    held = {
        name: one for name, one in weights.items() if name.startswith(("normalize_inputs.", "unnormalize_outputs."))
    }
    if not held:
        raise InputError(
            "no policy_preprocessor.json and no statistics among its weights; save it with its "
            "processors, or give the object, which takes and gives normalised numbers"
        )
    return Saved(name, config, weights, _of_buffers(config, held), added=True)


def _beside(path: Path, step: Mapping[str, Any]) -> Path:
    """The file of a step's statistics. Raises InputError for a name that leads out of the folder."""
    file = step["state_file"]
    if not isinstance(file, str) or Path(file).name != file:
        raise InputError(f"state_file {shown(file)}, expected the name of a file in the folder")
    return path / file


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    import safetensors
    from safetensors.torch import load

    try:
        return load(path.read_bytes())
    except (OSError, safetensors.SafetensorError) as error:
        raise EngineFileError(f"'{path}' cannot be read ({error}); copy the policy's folder again") from None


def _check_alike(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Raises InputError for a postprocessor that turns actions back in another way than the preprocessor says."""
    ways = [(one["norm_map"].get("ACTION", "IDENTITY"), float(one.get("eps", 1e-8))) for one in (before, after)]
    if ways[0] != ways[1]:
        said = " and ".join(f"{mode} with eps {eps:g}" for mode, eps in ways)
        raise InputError(f"its processors normalise actions by {said}, expected the same in both; save it again")


def _normalizer(pipeline: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    others = [one for one in pipeline.get("steps", ()) if one.get("registry_name") not in (*PLAIN_STEPS, kind)]
    if others:
        name = others[0].get("registry_name") or others[0].get("class")
        raise InputError(
            f"its processors have a step {shown(name)}, which an engine does not do; expected "
            f"{', '.join((*PLAIN_STEPS, kind))}; save without"
        )
    steps = [one for one in pipeline.get("steps", ()) if one.get("registry_name") == kind]
    renames = [one for one in pipeline.get("steps", ()) if one.get("config", {}).get("rename_map")]
    if len(steps) != 1 or "state_file" not in steps[0]:
        raise InputError(f"its processors have {len(steps)} steps {kind} with statistics, expected one")
    if renames:
        raise InputError("its preprocessor renames observations, which an engine does not; save without")
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


def read_object(source: Any) -> Saved | None:
    kinds = [one for one in type(source).__mro__ if one.__module__.startswith("lerobot.")]
    if not any(one.__name__ == "DiffusionPolicy" for one in kinds):
        return None
    config: Any = source.config
    config = asdict(config) if is_dataclass(config) and not isinstance(config, type) else dict(vars(config))
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
