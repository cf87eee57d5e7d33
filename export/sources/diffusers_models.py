"""diffusers' denoisers as networks of ours: forward(x [B, *shape], t [B], conditions...) -> prediction.

| class                    | x                  | conditions                                               | t     |
|--------------------------|--------------------|----------------------------------------------------------|-------|
| UNet2DModel              | sample             | class_labels                                             | 0..T  |
| UNet2DConditionModel     | sample             | encoder_hidden_states, text_embeds and time_ids (SDXL),  | 0..T  |
|                          |                    | class_labels, timestep_cond                              |       |
| DiTTransformer2DModel    | hidden_states      | class_labels                                             | 0..T  |
| PixArtTransformer2DModel | hidden_states      | encoder_hidden_states and its mask, resolution and ratio | 0..T  |
| SD3Transformer2DModel    | hidden_states      | encoder_hidden_states, pooled_projections                | 0..T  |
| FluxTransformer2DModel   | hidden_states, 2x2 | encoder_hidden_states, pooled_projections, guidance      | sigma |

Conditions bear forward's names; what goes into `added_cond_kwargs` is flat here. ALIASES are the names under which
pipelines hand the same things around. Sizes come from the config, and what a config does not say from the pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from ...engine.contract import Condition
from ...engine.errors import InputError

Config = Mapping[str, Any]

# forward's name -> what pipelines call it. Negative prompts put "negative_" before it.
ALIASES = {
    "encoder_hidden_states": "prompt_embeds",
    "encoder_attention_mask": "prompt_attention_mask",
    "pooled_projections": "pooled_prompt_embeds",
    "text_embeds": "pooled_prompt_embeds",
    "time_ids": "add_time_ids",
    "guidance": "guidance_scale",
}
NESTED = ("text_embeds", "time_ids", "resolution", "aspect_ratio")  # inside added_cond_kwargs
LEGACY = {"ada_norm_zero": "DiTTransformer2DModel", "ada_norm_single": "PixArtTransformer2DModel"}


@final
@dataclass(frozen=True)
class Beside:
    """What the other parts of a pipeline say: tokens of a prompt, size of a pooled prompt, pixels of a latent."""

    tokens: int | None = None
    pooled: int | None = None
    pixels: int = 8


@final
@dataclass(frozen=True)
class Denoiser:
    """How a class is called.

    x           forward's name of x
    conditions  of a config, for samples of a shape
    tokens      of a prompt, where the pipeline does not say it
    packed      x is fed as [B, H/2 W/2, 4 C], with the places of its patches
    time_unit   what the model is fed for a schedule's time of 1 in T-step units
    """

    x: str
    conditions: Callable[[Config, tuple[int, ...], Beside], tuple[Condition, ...]]
    tokens: int | None = None
    packed: bool = False
    time_unit: float = 1.0

    def shape(self, config: Config) -> tuple[int, ...] | None:
        """Of one sample, as the config says it; None where it does not."""
        channels, size = int(config["in_channels"]), config.get("sample_size")
        if self.packed:
            return channels // 4, 128, 128  # the pipeline's 1024 pixels
        if size is None:
            return None
        height, width = (size, size) if isinstance(size, int) else (int(one) for one in size)
        return channels, height, width

    def patches(self, config: Config, shape: tuple[int, ...]) -> int:
        """Of one sample: what shifts a flow's times."""
        side = 2 if self.packed else int(config.get("patch_size") or 1)
        return (shape[1] // side) * (shape[2] // side)


# Conditions.
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


def _unet(config: Config, shape: tuple[int, ...], beside: Beside) -> tuple[Condition, ...]:
    return _class_labels(config)


def _text_unet(config: Config, shape: tuple[int, ...], beside: Beside) -> tuple[Condition, ...]:
    _known(config, "encoder_hid_dim_type", (None, "text_proj"))
    width = config.get("encoder_hid_dim") or config["cross_attention_dim"]
    found = [_text(width[0] if isinstance(width, (list, tuple)) else width, beside)]
    if _known(config, "addition_embed_type", (None, "text", "text_time")) == "text_time":
        total, unit = config["projection_class_embeddings_input_dim"], config["addition_time_embed_dim"]
        ids = 6 if beside.pooled is None else (total - beside.pooled) // unit
        pixels = [size * beside.pixels for size in shape[1:]]
        whole = (*pixels, 0, 0, *pixels) if ids == 6 else None  # original size, crop, target size
        found.append(Condition("text_embeds", "float32", (total - ids * unit,)))
        found.append(Condition("time_ids", "float32", (ids,), whole))
    if config.get("time_cond_proj_dim"):
        found.append(Condition("timestep_cond", "float32", (config["time_cond_proj_dim"],)))
    return (*found, *_class_labels(config))


def _dit(config: Config, shape: tuple[int, ...], beside: Beside) -> tuple[Condition, ...]:
    return (Condition("class_labels", "int64", low=0, high=int(config["num_embeds_ada_norm"])),)  # the last: no class


def _pixart(config: Config, shape: tuple[int, ...], beside: Beside) -> tuple[Condition, ...]:
    text = _text(config["caption_channels"], beside)
    found = [text, Condition("encoder_attention_mask", "float32", text.shape[:1], 1.0)]
    sized = config.get("use_additional_conditions")
    if config["sample_size"] == 128 if sized is None else sized:
        height, width = (size * beside.pixels for size in shape[1:])
        found.append(Condition("resolution", "float32", (2,), (height, width)))
        found.append(Condition("aspect_ratio", "float32", (1,), height / width))
    return tuple(found)


def _sd3(config: Config, shape: tuple[int, ...], beside: Beside) -> tuple[Condition, ...]:
    pooled = Condition("pooled_projections", "float32", (config["pooled_projection_dim"],))
    return (_text(config["joint_attention_dim"], beside), pooled)


def _flux(config: Config, shape: tuple[int, ...], beside: Beside) -> tuple[Condition, ...]:
    scale = (Condition("guidance", "float32", default=3.5),) if config["guidance_embeds"] else ()
    return (*_sd3(config, shape, beside), *scale)


def _text(width: int, beside: Beside) -> Condition:
    return Condition("encoder_hidden_states", "float32", (beside.tokens or 77, int(width)))


def _known(config: Config, key: str, values: tuple[Any, ...]) -> Any:
    if config.get(key) not in values:
        words = ", ".join(str(value) for value in values)
        raise InputError(f"{key} '{config[key]}' is not known here; known: {words}")
    return config.get(key)


DENOISERS = {
    "UNet2DModel": Denoiser("sample", _unet),
    "UNet2DConditionModel": Denoiser("sample", _text_unet, tokens=77),
    "DiTTransformer2DModel": Denoiser("hidden_states", _dit),
    "PixArtTransformer2DModel": Denoiser("hidden_states", _pixart, tokens=120),
    "SD3Transformer2DModel": Denoiser("hidden_states", _sd3, tokens=333),
    "FluxTransformer2DModel": Denoiser("hidden_states", _flux, tokens=512, packed=True, time_unit=1e-3),
}


@final
class Adapted(nn.Module):
    """forward(x [B, *shape], t [B], **conditions) -> out [B, *shape] (or [B, 2 C, ...]) of a diffusers model."""

    rotary: tuple[Tensor, Tensor]

    def __init__(self, model: nn.Module, kind: Denoiser, shape: tuple[int, ...], tokens: int) -> None:
        super().__init__()
        self.model = model
        self.kind = kind
        if kind.packed:
            # Rows and columns of the patches; a prompt's tokens all stand at 0.
            rows, columns = (torch.arange(size // 2, dtype=torch.float32) for size in shape[1:])
            places = torch.cartesian_prod(rows, columns)
            self.register_buffer("img_ids", nn.functional.pad(places, (1, 0)), persistent=False)
            self.register_buffer("txt_ids", torch.zeros(tokens, 3), persistent=False)

    def forward(self, x: Tensor, t: Tensor, /, **conditions: Tensor) -> Tensor:
        # As pipelines do: everything but the time in the dtype of x.
        given: dict[str, Any] = {
            name: one.to(x.dtype) if one.is_floating_point() else one for name, one in conditions.items()
        }
        nested = {name: given.pop(name) for name in NESTED if name in given}
        if nested:
            given["added_cond_kwargs"] = nested
        if not self.kind.packed:
            return self.model(**{self.kind.x: x}, timestep=t, **given, return_dict=False)[0]
        batch, channels, height, width = x.shape
        x = x.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        places = {"img_ids": self.img_ids, "txt_ids": self.txt_ids}
        out = self.model(**{self.kind.x: x}, timestep=t, **given, **places, return_dict=False)[0]
        out = out.reshape(batch, height // 2, width // 2, channels, 2, 2)
        return out.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, height, width)
