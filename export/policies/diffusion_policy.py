"""Objects of the repository diffusion_policy (Chi et al., arXiv 2303.04137): its U-Net, and its low-dimensional policy.

    Network(workspace.ema_model)              DiffusionUnetLowdimPolicy: schedule, normalisation and chunk are in it
    Network(policy.model, shape=(16, 2), schedule="cosine:100?beta_min=0&beta_max=0.999", prediction="eps")

Its checkpoints are pickles, which are executable: load them with the repository's own workspace and give the object.
Classes are told by name; the weights are read by their names, and the network is built anew of them (unet1d.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from ...engine.contract.condition import Condition
from ...engine.contract.policy import OBSERVATION
from ...engine.errors import InputError
from ..described import Described
from ..sources.diffusers_config import read_config
from .networks import ObservedUnet
from .options import Policy
from .scaling import Scaled, Scaling
from .unet1d import ConditionalUnet1d, UnetOptions

PACKAGE = "diffusion_policy."
POLICY, UNET = "DiffusionUnetLowdimPolicy", "ConditionalUnet1D"
# Their names -> ours.
RENAMED = (
    (".blocks.0.", ".conv1."),
    (".blocks.1.", ".conv2."),
    (".2.conv.", ".2."),  # halving and doubling stand in a module of their own
)
Weights = Mapping[str, torch.Tensor]


def read(source: Any) -> Described | None:
    """The network or policy `source`, None where it is nothing of theirs. Raises InputError."""
    names = {one.__name__ for one in type(source).__mro__ if one.__module__.startswith(PACKAGE)}
    if POLICY in names:
        return _policy(source)
    if UNET in names:
        unet = unet_of(source.state_dict(), groups=_groups(source))
        size = unet.given.condition
        conditions = {"global_cond": Condition("global_cond", "float32", (size,))}
        return Described(unet, UNET, None, "", "", conditions)
    return None


def unet_of(weights: Weights, *, groups: int = 8) -> ConditionalUnet1d:
    """The U-Net with these weights, of a `ConditionalUnet1D`. Raises InputError when they are of another network."""
    try:
        given = _options(weights, groups)
        made = ConditionalUnet1d(given)
        made.load_state_dict({_renamed(name): value.float() for name, value in weights.items()})
    except (KeyError, IndexError) as error:
        raise InputError(f"{UNET}: its weights have no {error}; expected those of a U-Net with global_cond") from None
    except RuntimeError as error:
        line = str(error).splitlines()[-1].strip()
        raise InputError(f"{UNET}: its weights are not those of its layers ({line[:160]})") from error
    return made.eval()


def _renamed(name: str) -> str:
    for theirs, ours in RENAMED:
        name = name.replace(theirs, ours)
    return name


def _options(weights: Weights, groups: int) -> UnetOptions:
    if any(name.startswith("local_cond_encoder.") for name in weights):
        raise InputError(f"{UNET}: it takes local_cond, expected the observation as global_cond")
    levels = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("down_modules."))
    first = [weights[f"down_modules.{level}.0.blocks.0.block.0.weight"] for level in range(levels)]
    embedding = weights["diffusion_step_encoder.1.weight"].shape[1]
    film = weights["down_modules.0.0.cond_encoder.1.weight"]
    return UnetOptions(
        actions=first[0].shape[1],
        condition=film.shape[1] - embedding,
        widths=tuple(one.shape[0] for one in first),
        kernel=first[0].shape[2],
        groups=groups,
        embedding=embedding,
        film_scale=film.shape[0] == 2 * first[0].shape[0],
    )


def _groups(unet: nn.Module) -> int:
    norms = [one for one in unet.down_modules.modules() if isinstance(one, nn.GroupNorm)]  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]  # a user's module
    return norms[0].num_groups if norms else 8


def _policy(source: Any) -> Described:
    if not source.obs_as_global_cond:
        raise InputError(f"{POLICY}: obs_as_global_cond is False, expected the observation as global_cond")
    weights = source.state_dict()
    scaled = _scaling(weights, "obs")
    actions = _scaling(weights, "action")
    steps, numbers, size = source.n_obs_steps, source.obs_dim, source.action_dim
    only = source.pred_action_steps_only
    first = 0 if only else steps - 1 if source.oa_step_convention else steps
    policy = Policy(
        {"obs": (steps, numbers)},
        scale=np.broadcast_to(1 / actions.gain, (size,)).tolist(),
        offset=np.broadcast_to(-actions.bias / actions.gain, (size,)).tolist(),
        first=first,
        count=source.n_action_steps,
    )
    unet = unet_of(_beneath(weights, "model."), groups=_groups(source.model))
    scheduler = source.noise_scheduler
    convention = read_config({**scheduler.config, "_class_name": type(scheduler).__name__})
    return Described(
        ObservedUnet(unet, Scaled(scaled)).eval(),
        POLICY,
        (source.n_action_steps if only else source.horizon, size),
        convention.schedule,
        convention.prediction,
        {OBSERVATION: Condition(OBSERVATION, "float32", (steps, numbers))},
        convention=convention,
        policy=policy,
    )


def _scaling(weights: Weights, field: str) -> Scaling:
    """y = scale x + offset of their normalizer; constant numbers have a scale of 1."""
    own = _beneath(weights, f"normalizer.params_dict.{field}.")
    if "scale" not in own or "offset" not in own:
        raise InputError(f"{POLICY}: its normalizer has no {field}; load the checkpoint with its normalizer")
    gain, bias = (own[name].double().numpy() for name in ("scale", "offset"))
    return Scaling(np.zeros_like(gain), gain, bias)


def _beneath(weights: Weights, where: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(where): one for name, one in weights.items() if name.startswith(where)}
