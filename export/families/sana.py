"""Sana: SanaTransformer2DModel, a flow over the small latents of an AutoencoderDC.

x is `hidden_states`, the model is fed T times the flow's time, times its timestep_scale. Conditions:
encoder_hidden_states and its mask. Prompts stand behind an instruction, negative ones stand alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from torch import Tensor, nn

from ...engine.contract.condition import Condition
from ...engine.errors import InputError
from ..mirrored import mirrored
from .family import AXES as AXES
from .family import MASKED_ALIASES, Adapted, Beside, Config, Prompting, masked_parts, masked_text
from .family import TIME_UNIT as TIME_UNIT
from .family import channels as channels
from .family import learned_sigma as learned_sigma
from .family import patches as patches
from .family import scheduled as scheduled
from .family import shape as shape

TOKENS = 300
ALIASES: Mapping[str, str] = MASKED_ALIASES


def conditions(config: Config, shape: tuple[int, ...], beside: Beside) -> tuple[Condition, ...]:
    if config.get("guidance_embeds"):
        raise InputError("guidance_embeds is set, a Sana-Sprint, whose scheduler SCM is not known here; give a Sana")
    if float(config.get("timestep_scale") or 1) != 1:
        raise InputError(f"timestep_scale {config['timestep_scale']} is not known here, expected 1")
    return masked_text(config["caption_channels"], beside.tokens or TOKENS)


def prompting(config: Config, beside: Beside) -> Prompting | None:
    return Prompting(
        masked_parts("last"),
        scale=4.5,
        plain=True,
        masked=True,
        before=instruction(),
        negative_before="",
        instruction=True,
        right=True,
    )


def adapted(model: nn.Module, shape: tuple[int, ...], conditions: tuple[Condition, ...]) -> nn.Module:
    made = mirrored(model)
    attention: Any
    for attention in made.modules():
        if type(getattr(attention, "processor", None)).__name__ == "SanaLinearAttnProcessor2_0":
            attention.processor = LinearAttention()
    return Adapted(made)


@final
class LinearAttention:
    """The model's own, with a largest divisor in place of a sum: the exporter takes + 1e-15 for + 0 and leaves it out.

    Both give 0 where no key is positive, and the same float32 elsewhere.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        x = hidden_states
        query, key, value = attn.to_q(x), attn.to_k(x), attn.to_v(x)
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        query, key, value = (
            one.transpose(1, 2).unflatten(1, (attn.heads, -1)).float() for one in (query.relu(), key.relu(), value)
        )
        scores = nn.functional.pad(value, (0, 0, 0, 1), value=1.0) @ key.transpose(2, 3)
        found = scores @ query
        out = (found[:, :, :-1] / found[:, :, -1:].clamp(min=1e-15)).flatten(1, 2).transpose(1, 2).to(x.dtype)
        for layer in attn.to_out:
            out = layer(out)
        return out


def instruction() -> str:
    """The text that the installed pipeline puts before prompts: complex_human_instruction of its call."""
    import inspect

    from diffusers.pipelines.sana.pipeline_sana import SanaPipeline

    lines = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    return "\n".join(lines)
