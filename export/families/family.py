"""What a family of diffusers denoisers is: the names that every file beside this one defines.

A new family is a new file here, and a line of the table in __init__.py.

Sizes come from the model's config, and what a config does not say from the pipeline. What most families have in common
stands below; a file takes it over by importing it under its own name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, final

from torch import Tensor, nn

from ...engine.contract.condition import Condition
from ...engine.errors import InputError
from ..convention import Convention

Config = Mapping[str, Any]
TIME_UNIT: float = 1.0
AXES: tuple[str, ...] = ("height", "width")


@final
@dataclass(frozen=True)
class Beside:
    """What the other parts of a pipeline say.

    tokens: of a prompt, as the caller gives it. pooled: size of a pooled prompt. pixels: of a latent's side.
    shift: of its autoencoder, in scaled latents. pipeline: the class's name, "" for a model alone. options: its own,
    such as is_distilled.
    """

    tokens: int | None = None
    pooled: int | None = None
    pixels: int = 8
    shift: float = 0.0
    pipeline: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class Part:
    """What one text encoder of a pipeline gives to one condition.

    encoder: the pipeline's name of it, such as text_encoder_2. output: one of OUTPUTS of encoders/text.py. block: parts
    of one block stand side by side in the condition's columns, its blocks one below the other.
    """

    encoder: str
    condition: str
    output: str
    block: int = 0


@final
@dataclass(frozen=True)
class Prompting:
    """How a pipeline turns a prompt into conditions.

    scale: of its classifier-free guidance by default, None where it has none. offset, keep: of ClassifierFree.
    plain: prompts are put into lower case. tidy: runs of white space become one space, HTML's entities characters.
    masked: encoders attend to the prompt's own tokens alone; None for what an encoder's config says.
    before, after: texts around a prompt. negative_before: before a negative one, None for the same.
    thinking: the tokenizer's chat template stands around prompts, with this enable_thinking; None for no template.
    dropped: the rows of so many first tokens are left out. instruction: of prompts that start with `before`, those of
    its tokens but the first. right: prompts are padded on the right, whatever the tokenizer says.
    """

    parts: tuple[Part, ...]
    scale: float | None = None
    offset: float = 0.0
    keep: str = ""
    plain: bool = False
    tidy: bool = False
    masked: bool | None = False
    before: str = ""
    after: str = ""
    negative_before: str | None = None
    thinking: bool | None = None
    dropped: int = 0
    instruction: bool = False
    right: bool = False


# Pipelines' names of a prompt's features and of their mask.
MASKED_ALIASES: Mapping[str, str] = {
    "encoder_hidden_states": "prompt_embeds",
    "encoder_attention_mask": "prompt_attention_mask",
}


class Family(Protocol):
    """A file of this folder.

    ALIASES     forward's name of a condition -> what pipelines call it; negative prompts put "negative_" before it
    TIME_UNIT   the model is fed the schedule's time, in steps of T, times this
    AXES        of one sample after its channels
    """

    ALIASES: Mapping[str, str]
    TIME_UNIT: float
    AXES: tuple[str, ...]

    @staticmethod
    def shape(config: Config) -> tuple[int, ...] | None:
        """Of one sample, as the config says it; None where it does not."""
        ...

    @staticmethod
    def channels(config: Config) -> int:
        """Of one sample."""
        ...

    @staticmethod
    def patches(config: Config, shape: tuple[int, ...]) -> int:
        """Of one sample: their number shifts the times of a flow."""
        ...

    @staticmethod
    def conditions(config: Config, shape: tuple[int, ...], beside: Beside) -> tuple[Condition, ...]:
        """What forward takes beside x and the time. Raises InputError for a kind that is not known."""
        ...

    @staticmethod
    def learned_sigma(config: Config) -> bool:
        """Whether it predicts a variance beside the prediction. Raises InputError for other numbers of channels."""
        ...

    @staticmethod
    def prompting(config: Config, beside: Beside) -> Prompting | None:
        """How the family's pipelines encode prompts; None where they take none."""
        ...

    @staticmethod
    def adapted(model: nn.Module, shape: tuple[int, ...], conditions: tuple[Condition, ...]) -> nn.Module:
        """forward(x [B, *shape], t [B], **conditions) -> out [B, *shape], or [B, 2 C, ...] with a variance."""
        ...

    @staticmethod
    def scheduled(convention: Convention, patches: int) -> Convention:
        """The scheduler's times as this family's pipeline asks for them, for samples of so many patches."""
        ...


def shape(config: Config) -> tuple[int, ...] | None:
    """[in_channels, sample_size, sample_size]; None without a sample_size."""
    size = config.get("sample_size")
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else (int(one) for one in size)
    return int(config["in_channels"]), height, width


def channels(config: Config) -> int:
    return int(config["in_channels"])


def patches(config: Config, shape: tuple[int, ...]) -> int:
    """Squares of patch_size x patch_size latents."""
    side = int(config.get("patch_size") or 1)
    return (shape[1] // side) * (shape[2] // side)


def scheduled(convention: Convention, patches: int) -> Convention:
    """As the scheduler has them."""
    return convention


def learned_sigma(config: Config) -> bool:
    """By in_channels and out_channels."""
    taken = int(config["in_channels"])
    made = int(config.get("out_channels") or taken)
    if made not in (taken, 2 * taken):
        raise InputError(
            f"it takes {taken} channels and predicts {made}, an editing model; "
            "give it as an nn.Module, forward(x, t, ...), with the further channels as a condition"
        )
    return made == 2 * taken


def text(width: int, tokens: int) -> Condition:
    """A prompt's features, [tokens, width]."""
    return Condition("encoder_hidden_states", "float32", (tokens, int(width)))


def masked_text(width: int, tokens: int, mask: str = "encoder_attention_mask") -> tuple[Condition, Condition]:
    """A prompt's features and, named `mask`, 1 for each of its own tokens, [tokens]."""
    return text(width, tokens), Condition(mask, "float32", (tokens,), 1.0)


def masked_parts(output: str, mask: str = "encoder_attention_mask", own: str = "mask") -> tuple[Part, Part]:
    """The same two as one encoder gives them; own: which tokens count, an output too."""
    return Part("text_encoder", "encoder_hidden_states", output), Part("text_encoder", mask, own)


def text_and_pooled(config: Config, beside: Beside, tokens: int) -> tuple[Condition, Condition]:
    """A prompt's features and its pooled vector, of transformers that join text and image."""
    return (
        text(config["joint_attention_dim"], beside.tokens or tokens),
        Condition("pooled_projections", "float32", (config["pooled_projection_dim"],)),
    )


def known(config: Config, key: str, values: tuple[Any, ...]) -> Any:
    """The config's value, if it is one of `values`. Raises InputError."""
    if config.get(key) not in values:
        raise InputError(f"{key} '{config[key]}' is not known here; known: {', '.join(map(str, values))}")
    return config.get(key)


def in_dtype_of(x: Tensor, conditions: Mapping[str, Tensor]) -> dict[str, Any]:
    """Conditions in the dtype of x, as pipelines hand them over; integers stay."""
    return {name: one.to(x.dtype) if one.is_floating_point() else one for name, one in conditions.items()}


@final
class Adapted(nn.Module):
    """forward(x [B, C, H, W], t [B], **conditions) -> out [B, C or 2 C, H, W].

    state: what the model calls x. nested: conditions that it takes inside added_cond_kwargs.
    """

    def __init__(self, model: nn.Module, state: str = "hidden_states", nested: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.model = model
        self.state = state
        self.nested = nested

    def forward(self, x: Tensor, t: Tensor, /, **conditions: Tensor) -> Tensor:
        given = in_dtype_of(x, conditions)
        inner = {name: given.pop(name) for name in self.nested if name in given}
        if inner:
            given["added_cond_kwargs"] = inner
        return self.model(**{self.state: x}, timestep=t, **given, return_dict=False)[0]


def adapted(model: nn.Module, shape: tuple[int, ...], conditions: tuple[Condition, ...]) -> nn.Module:
    return Adapted(model)
