"""U-Nets: UNet2DModel, and UNet2DConditionModel of Stable Diffusion 1, 2 and XL.

x is `sample`, times are 0..T-1. Conditions: class_labels; with text also encoder_hidden_states, SDXL's text_embeds and
time_ids, timestep_cond; of networks that inpaint, mask and masked picture.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ...engine.contract.condition import INPAINT_MASK, Condition
from ...engine.errors import InputError
from . import family
from .family import AXES as AXES
from .family import TIME_UNIT as TIME_UNIT
from .family import Adapted, Beside, Config, Part, Prompting, known, text
from .family import scheduled as scheduled
from .parts.inpainting import Inpainting, inpaints
from .parts.inpainting import conditions as inpainting_conditions

TOKENS = 77  # of CLIP's prompts
ALIASES: Mapping[str, str] = {
    "encoder_hidden_states": "prompt_embeds",
    "text_embeds": "pooled_prompt_embeds",
    "time_ids": "add_time_ids",
}
NESTED = ("text_embeds", "time_ids")  # inside added_cond_kwargs


def channels(config: Config) -> int:
    return int(config["out_channels"] if inpaints(config) else config["in_channels"])


def shape(config: Config) -> tuple[int, ...] | None:
    found = family.shape(config)
    return None if found is None else (channels(config), *found[1:])


def learned_sigma(config: Config) -> bool:
    return not inpaints(config) and family.learned_sigma(config)


def patches(config: Config, shape: tuple[int, ...]) -> int:
    return shape[1] * shape[2]


def conditions(config: Config, shape: tuple[int, ...], beside: Beside) -> tuple[Condition, ...]:
    if "cross_attention_dim" not in config:
        return _class_labels(config)
    known(config, "encoder_hid_dim_type", (None, "text_proj"))
    width = config.get("encoder_hid_dim") or config["cross_attention_dim"]
    width = width[0] if isinstance(width, (list, tuple)) else width
    found = [text(width, beside.tokens or TOKENS)]
    if known(config, "addition_embed_type", (None, "text", "text_time")) == "text_time":
        total, unit = config["projection_class_embeddings_input_dim"], config["addition_time_embed_dim"]
        ids = 6 if beside.pooled is None else (total - beside.pooled) // unit
        pixels = [size * beside.pixels for size in shape[1:]]
        whole = (*pixels, 0, 0, *pixels) if ids == 6 else None  # original size, crop, target size
        found.append(Condition("text_embeds", "float32", (total - ids * unit,)))
        found.append(Condition("time_ids", "float32", (ids,), whole))
    if config.get("time_cond_proj_dim"):
        found.append(Condition("timestep_cond", "float32", (config["time_cond_proj_dim"],)))
    return (*found, *_class_labels(config), *inpainting_conditions(config, shape))


def _class_labels(config: Config) -> tuple[Condition, ...]:
    kind, classes = config.get("class_embed_type"), config.get("num_class_embeds")
    match kind:
        case None:
            return (Condition("class_labels", "int64", low=0, high=int(classes) - 1),) if classes else ()
        case "timestep":
            return (Condition("class_labels", "float32"),)
        case "projection" | "simple_projection":
            return (Condition("class_labels", "float32", (int(config["projection_class_embeddings_input_dim"]),)),)
        case _:
            raise InputError(f"class_embed_type '{kind}' is not known here; known: timestep, projection, classes")


def prompting(config: Config, beside: Beside) -> Prompting | None:
    if "cross_attention_dim" not in config:
        return None
    guided = not config.get("time_cond_proj_dim")  # distilled ones have their scale in the time's embedding
    if config.get("addition_embed_type") != "text_time":
        part = Part("text_encoder", "encoder_hidden_states", "last")
        return Prompting((part,), scale=7.5 if guided else None, masked=None)
    return Prompting(
        (
            Part("text_encoder", "encoder_hidden_states", "penultimate"),
            Part("text_encoder_2", "encoder_hidden_states", "penultimate"),
            Part("text_encoder_2", "text_embeds", "projected"),
        ),
        scale=5.0 if guided else None,
    )


def adapted(model: nn.Module, shape: tuple[int, ...], conditions: tuple[Condition, ...]) -> nn.Module:
    made = Adapted(model, "sample", NESTED)
    return Inpainting(made) if any(one.name == INPAINT_MASK for one in conditions) else made
