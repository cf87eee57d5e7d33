"""export/policies/diffusion_policy.py: weights under that repository's names, run here by functions alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import pfdiff
from pfdiff.export.policies.diffusion_policy import unet_of

ACTIONS, OBSERVED, STEPS, EMBEDDING, WIDTHS, KERNEL, GROUPS = 3, 4, 2, 8, (8, 16), 3, 4


def weights(*, scaled: bool) -> dict[str, torch.Tensor]:
    """Random ones of a ConditionalUnet1D (commit 5ba07ac of github.com/real-stanford/diffusion_policy)."""
    torch.manual_seed(0)
    found: dict[str, torch.Tensor] = {}
    condition = EMBEDDING + STEPS * OBSERVED

    def layer(name: str, *shape: int, outputs: int | None = None) -> None:
        found[f"{name}.weight"] = torch.randn(shape) / math.sqrt(math.prod(shape[1:]))
        found[f"{name}.bias"] = 0.1 * torch.randn(outputs or shape[0])

    def residual(name: str, inputs: int, outputs: int) -> None:
        for block, width in enumerate((inputs, outputs)):
            layer(f"{name}.blocks.{block}.block.0", outputs, width, KERNEL)
            found[f"{name}.blocks.{block}.block.1.weight"] = 1 + 0.1 * torch.randn(outputs)
            found[f"{name}.blocks.{block}.block.1.bias"] = 0.1 * torch.randn(outputs)
        layer(f"{name}.cond_encoder.1", (2 if scaled else 1) * outputs, condition)
        if inputs != outputs:
            layer(f"{name}.residual_conv", outputs, inputs, 1)

    layer("diffusion_step_encoder.1", 4 * EMBEDDING, EMBEDDING)
    layer("diffusion_step_encoder.3", EMBEDDING, 4 * EMBEDDING)
    narrow, wide = WIDTHS
    for level, (inputs, outputs) in enumerate(((ACTIONS, narrow), (narrow, wide))):
        residual(f"down_modules.{level}.0", inputs, outputs)
        residual(f"down_modules.{level}.1", outputs, outputs)
    layer("down_modules.0.2.conv", narrow, narrow, 3)
    residual("mid_modules.0", wide, wide)
    residual("mid_modules.1", wide, wide)
    residual("up_modules.0.0", 2 * wide, narrow)
    residual("up_modules.0.1", narrow, narrow)
    layer("up_modules.0.2.conv", narrow, narrow, 4)
    layer("final_conv.0.block.0", narrow, narrow, KERNEL)
    found |= {"final_conv.0.block.1.weight": torch.ones(narrow), "final_conv.0.block.1.bias": torch.zeros(narrow)}
    layer("final_conv.1", ACTIONS, narrow, 1)
    return found


def run(held: dict[str, torch.Tensor], x: torch.Tensor, t: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """What that repository's forward does, in float64."""
    w = {name: one.double() for name, one in held.items()}

    def convolution(name: str, x: torch.Tensor, groups: int = GROUPS) -> torch.Tensor:
        y = functional.conv1d(x, w[f"{name}.0.weight"], w[f"{name}.0.bias"], padding=KERNEL // 2)
        return functional.mish(functional.group_norm(y, groups, w[f"{name}.1.weight"], w[f"{name}.1.bias"]))

    def residual(name: str, x: torch.Tensor) -> torch.Tensor:
        y = convolution(f"{name}.blocks.0.block", x)
        film = functional.linear(
            functional.mish(c), w[f"{name}.cond_encoder.1.weight"], w[f"{name}.cond_encoder.1.bias"]
        )
        if film.shape[1] == 2 * y.shape[1]:
            film = film.reshape(len(film), 2, -1, 1)
            y = film[:, 0] * y + film[:, 1]
        else:
            y = y + film[:, :, None]
        y = convolution(f"{name}.blocks.1.block", y)
        skip = w.get(f"{name}.residual_conv.weight")
        return y + (x if skip is None else functional.conv1d(x, skip, w[f"{name}.residual_conv.bias"]))

    half = EMBEDDING // 2
    angles = t.double()[:, None] * torch.exp(torch.arange(half).double() * -math.log(10_000) / (half - 1))
    c = torch.cat((angles.sin(), angles.cos()), dim=1)
    for n, name in enumerate(("diffusion_step_encoder.1", "diffusion_step_encoder.3")):
        c = functional.linear(functional.mish(c) if n else c, w[f"{name}.weight"], w[f"{name}.bias"])
    c = torch.cat((c, given.double()), dim=1)
    x = x.double().transpose(1, 2)
    first = residual("down_modules.0.1", residual("down_modules.0.0", x))
    x = functional.conv1d(first, w["down_modules.0.2.conv.weight"], w["down_modules.0.2.conv.bias"], 2, 1)
    last = residual("down_modules.1.1", residual("down_modules.1.0", x))
    x = residual("mid_modules.1", residual("mid_modules.0", last))
    x = residual("up_modules.0.1", residual("up_modules.0.0", torch.cat((x, last), dim=1)))
    x = functional.conv_transpose1d(x, w["up_modules.0.2.conv.weight"], w["up_modules.0.2.conv.bias"], 2, 1)
    x = convolution("final_conv.0.block", x, groups=8)
    return functional.conv1d(x, w["final_conv.1.weight"], w["final_conv.1.bias"]).transpose(1, 2)


@pytest.mark.parametrize("scaled", [False, True])
def test_the_network_computes_what_theirs_does(scaled: bool) -> None:
    held = weights(scaled=scaled)
    x, t, given = torch.randn(3, 8, ACTIONS), torch.tensor([0, 40, 99]), torch.randn(3, STEPS * OBSERVED)
    with torch.no_grad():
        found = unet_of(held, groups=GROUPS)(x, t, given)
    expected = run(held, x, t, given)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def their_class(name: str, **fields: Any) -> Any:
    """An object whose class seems to stand in the repository's package."""
    made = type(name, (nn.Module,), {"__module__": "diffusion_policy.policy", **fields})
    return made()


class Inner(nn.Module):
    """Holds the groups of a U-Net's norms, and nothing else of it."""

    def __init__(self) -> None:
        super().__init__()
        self.down_modules = nn.ModuleList([nn.GroupNorm(GROUPS, 8)])


CONFIG = {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2", "clip_sample": True}
Scheduler = type("DDPMScheduler", (), {"config": CONFIG})


def theirs(**changed: Any) -> Any:
    held = {f"model.{name}": one for name, one in weights(scaled=True).items()}
    for field, size in (("obs", OBSERVED), ("action", ACTIONS)):
        held[f"normalizer.params_dict.{field}.scale"] = torch.linspace(0.5, 2, size)
        held[f"normalizer.params_dict.{field}.offset"] = torch.linspace(-1, 1, size)
    sizes = {"horizon": 8, "obs_dim": OBSERVED, "action_dim": ACTIONS, "n_action_steps": 4, "n_obs_steps": STEPS}
    fields = {
        **sizes,
        "obs_as_global_cond": True,
        "pred_action_steps_only": False,
        "oa_step_convention": True,
        "noise_scheduler": Scheduler(),
        "state_dict": lambda self: held,
        **changed,
    }
    policy = their_class("DiffusionUnetLowdimPolicy", **fields)
    policy.model = Inner()
    return policy


def test_a_policy_is_normalised_and_scaled_as_theirs() -> None:
    network = pfdiff.Network(theirs())
    x, t, observation = torch.randn(2, 8, ACTIONS), torch.tensor([7.0, 90.0]), torch.rand(2, STEPS, OBSERVED)
    normalised = observation.double() * torch.linspace(0.5, 2, OBSERVED) + torch.linspace(-1, 1, OBSERVED)
    expected = run(weights(scaled=True), x, t, normalised.flatten(1))
    found = network.evaluate(x, t.numpy(), {"observation": observation})
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    assert network.policy is not None
    contract = network.policy.contract
    assert (contract.first, contract.count, network.contract.schedule) == (
        1,
        4,
        "cosine:100?beta_min=0.0&beta_max=0.999",
    )
    # Theirs: (x - offset) / scale.
    np.testing.assert_allclose(contract.scale, 1 / np.linspace(0.5, 2, ACTIONS), rtol=1e-6)
    np.testing.assert_allclose(contract.offset, -np.linspace(-1, 1, ACTIONS) / np.linspace(0.5, 2, ACTIONS), rtol=1e-6)


def test_what_stands_otherwise_is_refused() -> None:
    with pytest.raises(pfdiff.InputError, match="obs_as_global_cond is False"):
        pfdiff.Network(theirs(obs_as_global_cond=False))
    held = weights(scaled=True)
    with pytest.raises(pfdiff.InputError, match="takes local_cond"):
        unet_of({**held, "local_cond_encoder.0.x": torch.zeros(1)})
    with pytest.raises(pfdiff.InputError, match="not those of its layers"):
        unet_of({**held, "mid_modules.7.x": torch.zeros(1)})
    del held["down_modules.0.0.cond_encoder.1.weight"]
    with pytest.raises(pfdiff.InputError, match="its weights have no"):
        unet_of(held)
