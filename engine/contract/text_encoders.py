"""What an engine's text encoders are: a tokenizer and an ONNX file each, and the conditions that a prompt stands for.

    conditions of a prompt = split(sum over encoders of encoder(tokens of the prompt))

Which hidden state, pooling, concatenation and padding a pipeline asks for is part of the exported graphs.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from ..errors import InputError, shown
from ..json_fields import check_text, is_strings, read_fields
from .contract import Contract, TextEncoderContract

NEGATIVE = "_unconditional"  # ends the name of a condition's twin, for the negative prompt


@final
@dataclass(frozen=True)
class TextEncoder:
    """`file`: the ONNX file; `tokenizer`: a tokenizers JSON that cuts and pads too; both by their names in the engine.

    `plain`: the prompt is stripped and put into lower case before it is tokenized. `tidy`: runs of white space become
    one space and HTML's entities the characters that they mean. `before`, `after`: texts around the prompt;
    `negative_before`: before a negative one, None for the same.
    """

    file: str
    tokenizer: str
    contract: TextEncoderContract
    plain: bool = False

    def __post_init__(self) -> None:
        check_text("text encoder: file", self.file)
        check_text("text encoder: tokenizer", self.tokenizer)
        if not isinstance(self.plain, bool):
            raise InputError(f"text encoder: plain {shown(self.plain)}, expected true or false")

    tidy: bool = False
    before: str = ""
    after: str = ""
    negative_before: str | None = None

    def framed(self, prompt: str, *, negative: bool) -> str:
        """The text that is tokenized."""
        prompt = " ".join(html.unescape(html.unescape(prompt)).split()) if self.tidy else prompt
        prompt = prompt.lower().strip() if self.plain else prompt
        before = self.negative_before if negative and self.negative_before is not None else self.before
        return before + prompt + self.after

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; what has its default is left out but for `plain`."""
        found: dict[str, Any] = {"file": self.file, "tokenizer": self.tokenizer, "contract": self.contract.to_dict()}
        found["plain"] = self.plain
        own = {"tidy": self.tidy, "before": self.before, "after": self.after, "negative_before": self.negative_before}
        defaults = {"tidy": False, "before": "", "after": "", "negative_before": None}
        return found | {key: one for key, one in own.items() if one != defaults[key]}


@final
@dataclass(frozen=True)
class TextEncoders:
    """The encoders in order, and the names of the `conditions` that their sum holds, flattened one after the other.

    `zeros`: without a negative prompt its conditions are zero; else the empty prompt is encoded.
    """

    conditions: tuple[str, ...]
    encoders: tuple[TextEncoder, ...]
    zeros: bool = False

    @property
    def encoded(self) -> frozenset[str]:
        """Names of all conditions that prompts stand for, those of negative prompts included."""
        return frozenset(name + end for name in self.conditions for end in ("", NEGATIVE))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; `from_dict` reads it back."""
        encoders = [one.to_dict() for one in self.encoders]
        return {"conditions": list(self.conditions), "encoders": encoders, "zeros": self.zeros}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any], network: Contract) -> TextEncoders:
        """Read `to_dict` data and compare it with the network's conditions. Raises InputError."""
        values = read_fields("text encoders", cls, plain)
        if not (is_strings(values["conditions"]) and isinstance(values["encoders"], tuple) and values["encoders"]):
            raise InputError("text encoders: expected names of conditions, and at least one encoder")
        found = []
        for one in values["encoders"]:
            fields = read_fields("text encoder", TextEncoder, one)
            found.append(TextEncoder(**{**fields, "contract": TextEncoderContract.from_dict(fields["contract"])}))
        encoders = cls(values["conditions"], tuple(found), bool(values.get("zeros", False)))
        shapes = {one.name: one.shape for one in network.conditions}
        unknown = [name for name in encoders.conditions if name not in shapes]
        size = sum(math.prod(shapes[name]) for name in encoders.conditions if name in shapes)
        if unknown or any(one.contract.size != size for one in found):
            sizes = ", ".join(str(one.contract.size) for one in found)
            raise InputError(
                f"text encoders: of {', '.join(encoders.conditions)} in {sizes} numbers, which are not the network's"
            )
        return encoders
