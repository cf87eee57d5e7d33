"""A pipeline's text encoders: read one after the other, exported with their tokenizers, compared, and freed."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, final

import numpy as np
import torch

from ...engine.artifact import ENCODERS
from ...engine.backends.casting import cast_copy
from ...engine.contract.contract import Contract, TextEncoderContract
from ...engine.contract.text_encoders import TextEncoder, TextEncoders
from ...engine.errors import InputError, shown
from ...engine.progress import Lines
from ...engine.tensors import PRECISION_DTYPES
from ..check import TrialInputs, check_export
from ..families.family import Prompting
from ..pipelines.reread import Reading
from ..pipelines.weights import free_weights, load_pretrained, return_memory, unseen, variant_of
from ..sources.module_digest import content_digest
from ..to_onnx import export_module, prepared, quiet
from .text import Encode, Place, Rows, places, size_of
from .tokenizer import OUT, Around, around, longest, tokenizer_json, tokenizer_of, transformers_for, why_not_read

if TYPE_CHECKING:
    from torch import nn

FORMAT = "pfdiff text encoders 1"  # part of the digest: another exporter, another engine
CLIP = ("CLIPTextModel", "CLIPTextModelWithProjection")
LANGUAGE = ("Qwen3Model", "Qwen3ForCausalLM", "Qwen2_5_VLForConditionalGeneration", "Gemma2Model", "Gemma2ForCausalLM")
WIDE = ("T5EncoderModel", "UMT5EncoderModel", *LANGUAGE)  # their activations leave fp16's range
CLASSES = (*CLIP, "BertModel", *WIDE)
TRIALS = ("", "a lighthouse in fog, oil on canvas")


@final
class FusedEncoder:
    """A text encoder with LoRA in its weights: read for its digest, freed, and read again when it is exported.

    given: what it is without, a folder or an object.
    """

    def __init__(self, given: nn.Module | Path, reading: Reading) -> None:
        self.given, self._reading, self._stamp = given, reading, reading.stamp
        module = reading.read()
        self.content = content_digest(module, b"")
        return_memory(free_weights(module))

    def read(self) -> nn.Module:
        """Raises InputError for files that have changed since."""
        self._reading.check(self._stamp)
        return self._reading.read()


EncoderSource: TypeAlias = "nn.Module | Path | FusedEncoder"


@final
@dataclass(frozen=True)
class PromptSources:
    """What a pipeline has for prompts. sources: (encoder, tokenizer) by the encoder's name, from folders or objects.

    zeros: without a negative prompt its conditions are zero.
    """

    prompting: Prompting
    sources: Mapping[str, tuple[EncoderSource, Any]]
    zeros: bool = False


@final
class PipelineEncoders:
    """Text encoders fitted to a network's conditions; nothing is loaded before `write`."""

    def __init__(self, given: PromptSources, network: Contract) -> None:
        shapes = {one.name: one.shape for one in network.conditions}
        self._given = given
        self._precision = network.precision
        self._parts = tuple(one for one in given.prompting.parts if one.encoder in given.sources)
        named = dict.fromkeys(one.condition for one in given.prompting.parts)
        self._shapes = {name: shapes[name] for name in named}
        self._configs = {name: _config(name, source) for name, (source, _) in given.sources.items()}
        self._tokenizers = {name: tokenizer_of(one, name) for name, (_, one) in given.sources.items()}
        for name, one in self._tokenizers.items():
            words = getattr(self._configs[name], "vocab_size", None)
            if words is not None and len(one) > words:
                raise InputError(
                    f"the tokenizer of {name} has {len(one)} words, the encoder {words}; give the tokenizer of this "
                    "model"
                )
        self._around = around(given.prompting, self._tokenizers)
        sizes = {name: self._size(name) for name in given.sources}
        self._lengths = {name: size + self._dropped(name) for name, size in sizes.items()}
        self._places = places(self._parts, self._shapes, sizes, self._configs)

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of those that a prompt stands for."""
        return tuple(self._shapes)

    def _dropped(self, name: str) -> int:
        """Tokens of a prompt that are no rows of a condition: of what stands before it."""
        if self._given.prompting.instruction:
            return len(self._tokenizers[name].encode(self._around.before)) - 2
        return self._given.prompting.dropped

    def _rows(self, name: str) -> Rows:
        """Which of its tokens are rows."""
        dropped, length = self._dropped(name), self._lengths[name]
        if self._given.prompting.instruction:  # the first token, then the prompt's own and one before
            words = self._tokenizers[name].encode(self._around.before)[:-2]  # the last may join the prompt's first
            return Rows((0, *range(dropped + 1, length)), tuple(words))
        return Rows(tuple(range(dropped, length))) if dropped else Rows()

    def _size(self, name: str) -> int:
        """Rows of a prompt by the encoder `name`: what other blocks leave of its condition's."""
        part = next((one for one in self._parts if one.encoder == name and len(self._shapes[one.condition]) == 2), None)
        said = longest(self._tokenizers[name])
        if part is None:
            if said is None:
                raise InputError(f"the tokenizer of {name} says no model_max_length; save it with one")
            return said
        rows = self._shapes[part.condition][0]
        others = {one.block: one.encoder for one in self._given.prompting.parts if one.condition == part.condition}
        if len(others) == 1:
            return rows
        if part.block == 0:
            return min(rows, said or rows)
        first = others[0]
        taken = longest(self._tokenizers[first]) if first in self._tokenizers else 77
        if taken is None or rows <= taken:
            raise InputError(
                f"'{part.condition}' has {rows} tokens, of which {first} takes {taken}; give it more (conditions=)"
            )
        return rows - taken

    @cached_property
    def digest(self) -> str:
        """sha256 hex of the encoders' weights, their tokenizers and how they are used; nothing is exported."""
        found = hashlib.sha256(FORMAT.encode())
        words: list[Any] = [repr(self._given.prompting), self._given.zeros, list(self._shapes.items()), self._lengths]
        words.append([self._around.before, self._around.after])
        found.update(json.dumps(words, sort_keys=True).encode())
        for name, (source, _) in self._given.sources.items():
            found.update(name.encode())
            found.update(_digest(source))
            found.update(self._tokenizer_json(name).encode())
        return found.hexdigest()

    def write(self, folder: Path, precision: str, progress: Lines, only: Collection[str] | None = None) -> TextEncoders:
        """Write encoders/ for a network of `precision`; only: some by name. Raises InputError, BackendError."""
        (folder / ENCODERS).mkdir(exist_ok=True)
        encoders = []
        for name in self._given.sources if only is None else only:
            encoders.append(self._write_one(name, folder, precision, progress))
            written = sum(one.stat().st_size for one in (folder / ENCODERS).iterdir())
            return_memory(written)  # each is freed before the next is read
        return TextEncoders(tuple(self._shapes), tuple(encoders), self._given.zeros)

    def _write_one(self, name: str, folder: Path, precision: str, progress: Lines) -> TextEncoder:
        file, tokenizer = f"{ENCODERS}/{name}.onnx", f"{ENCODERS}/{name}.tokenizer.json"
        source = self._given.sources[name][0]
        used = "fp32" if precision == "fp16" and _class_name(source) in WIDE else precision
        length = self._lengths[name]
        contract = TextEncoderContract(name, length, size_of(self._shapes), precision=used)
        progress(f"exporting {name} to ONNX ({used})")
        text = self._tokenizer_json(name)
        (folder / tokenizer).write_text(text, encoding="utf-8")
        encoder = _read(source)
        module = self._module(name, encoder, self._places[name])
        trials = _trials(text, self._around)
        with prepared(module, torch.float32) as encode:  # first, since the float32 weights may go
            exact = {id(case): _run(encode, case) for case in trials}
        dtype = PRECISION_DTYPES[used]
        owned = isinstance(source, (Path, FusedEncoder))
        module = module.eval() if owned else module
        if owned and dtype != torch.float32:
            module = cast_copy(module, dtype, consumes=True).eval()
            return_memory(free_weights(encoder))
        with contextlib.nullcontext(module) if owned else prepared(module, dtype) as encode:
            plain = {} if used == "fp32" else {id(case): _run(encode, case) for case in trials}
            export_module(encode, contract, folder / file)
        if owned:
            return_memory(free_weights(module))
        short = (lambda case: plain[id(case)]) if plain else None
        check_export(folder / file, contract, lambda case: exact[id(case)], short, trials)
        prompting, frame = self._given.prompting, self._around
        return TextEncoder(
            file,
            tokenizer,
            contract,
            prompting.plain,
            tidy=prompting.tidy,
            before=frame.before,
            after=frame.after,
            negative_before=frame.negative_before,
        )

    def _module(self, name: str, encoder: nn.Module, placed: list[Place]) -> Encode:
        masked = self._given.prompting.masked
        if masked is None:
            masked = bool(getattr(self._configs[name], "use_attention_mask", False))
        return Encode(encoder, placed, self._shapes, self._rows(name), masked=masked)

    def _tokenizer_json(self, name: str) -> str:
        right = self._given.prompting.right
        return tokenizer_json(self._tokenizers[name], name, self._lengths[name], right=right)


@torch.no_grad()
def _run(encode: nn.Module, case: TrialInputs) -> Any:
    return encode(torch.from_numpy(case.x)).float().numpy()


def _trials(tokenizer: str, frame: Around) -> list[TrialInputs]:
    """Prompts to compare an export on: one alone, and two."""
    from tokenizers import Tokenizer

    encoded = Tokenizer.from_str(tokenizer).encode_batch([frame.before + one + frame.after for one in TRIALS])
    tokens = np.array([[one.ids, one.attention_mask] for one in encoded], np.int64)
    return [TrialInputs(tokens[1:], np.empty(0), ()), TrialInputs(tokens, np.empty(0), ())]


# Reading them.
def _read(source: EncoderSource) -> nn.Module:
    if isinstance(source, FusedEncoder):
        return source.read()
    return load_encoder(source) if isinstance(source, Path) else source


def _digest(source: EncoderSource) -> bytes:
    if isinstance(source, FusedEncoder):
        return source.content
    return _files_digest(source) if isinstance(source, Path) else content_digest(source, b"")


def _class_name(source: Any) -> str:
    source = source.given if isinstance(source, FusedEncoder) else source
    if not isinstance(source, Path):
        return type(source).__name__
    try:
        names = json.loads((source / "config.json").read_text(encoding="utf-8")).get("architectures")
    except (OSError, ValueError, AttributeError):
        raise InputError(f"'{source}' has no readable config.json; copy it again, or leave it out {OUT}") from None
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise InputError(
            f"'{source}/config.json' names no class (architectures: {shown(names)}); copy it again, or leave it out "
            f"{OUT}"
        )
    return names[0]


def _config(name: str, source: Any) -> Any:
    found = _class_name(source)
    source = source.given if isinstance(source, FusedEncoder) else source
    if found not in CLASSES:
        raise InputError(
            f"{name} is a {found}, expected {' or '.join(CLASSES)}; leave the encoders out {OUT} and give prompt_embeds"
        )
    if not isinstance(source, Path):
        return source.config
    library = transformers_for(source)
    try:
        with quiet():
            return library.AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of transformers, without a common base
        raise InputError(
            f"'{source}/config.json' cannot be read ({why_not_read(error)}); copy it again, or leave it out {OUT}"
        ) from error


def load_encoder(folder: Path) -> nn.Module:
    """The encoder in `folder` in float32, from safetensors alone. Raises InputError, BackendError."""
    variant = variant_of(folder, "model")
    transformers = transformers_for(folder)
    kind = getattr(transformers, _class_name(folder))
    with unseen(transformers):
        return load_pretrained(kind, folder, variant, dtype=torch.float32)


def _files_digest(folder: Path) -> bytes:
    found = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        if path.suffix in (".safetensors", ".json"):
            found.update(path.name.encode())
            with open(path, "rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
    return found.digest()
