"""Prompts become conditions: the text encoders of an engine, loaded when the first prompt comes.

They run on the engine's device and stream, outside the captured schedule, once for each prompt: what was encoded is
kept for the next calls. The `tokenizers` library makes the tokens; transformers is not needed.
"""

from __future__ import annotations

import contextlib
import math
import threading
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from ..artifact import Artifact, check_in_place
from ..backends.abstract import Backend, Buffers, Evaluate
from ..backends.choose import Beside
from ..contract.text_encoders import NEGATIVE, TextEncoder
from ..errors import BackendError, EngineFileError, InputError, first_line

KEPT_BYTES = 256 << 20  # of encoded prompts
LONGEST_LEFT = 160  # characters of what is cut off that are shown
Prompt = str | Sequence[str]
Text = tuple[str, bool]  # a prompt, and whether it is a negative one that is framed in another way


@final
@dataclass(frozen=True)
class Cut:
    """What an encoder leaves out of a text behind its first `most` tokens."""

    encoder: str
    most: int
    left: str


@final
@dataclass(frozen=True, eq=False)
class LoadedEncoder:
    """A tokenizer, and a network bound to buffers of one bucket.

    rows: how many tokens of a prompt count that stands without what is before the others.
    """

    encoder: TextEncoder
    tokenizer: Any
    rows: int
    backend: Backend
    buffers: Buffers
    evaluate: Evaluate


@final
class Prompts:
    """The text encoders of an engine, beside its network."""

    def __init__(self, artifact: Artifact, beside: Beside) -> None:
        self._artifact = artifact
        self._beside = beside
        self._loaded: list[LoadedEncoder] = []
        self._lock = threading.Lock()  # encoders share their buffers between calls
        self._closed = False
        self._kept: OrderedDict[Text, NDArray[np.float32]] = OrderedDict()
        contract = artifact.contract
        self._shapes = {one.name: one.shape for one in contract.conditions}
        self._labels = {one.name: one.alias or one.name for one in contract.conditions}
        self._needed = {one.name for one in contract.conditions if one.default is None}

    @property
    def description(self) -> str:
        """Who encodes, as of the network; empty until a prompt has come."""
        return "; ".join(dict.fromkeys(one.backend.description for one in self._loaded))

    def conditions(
        self, prompt: Prompt | None, negative_prompt: Prompt | None, given: Mapping[str, Any], count: int
    ) -> dict[str, Any]:
        """`given`, by the conditions' own names, with those of the prompts, one for all samples or [count, *shape].

        A negative condition that is not given is that of `negative_prompt`, else zero or that of the empty prompt, as
        the pipeline has it. Raises InputError: no encoders, a missing prompt, both a prompt and its condition.
        """
        encoders = self._artifact.text_encoders
        if encoders is None:
            if prompt is not None or negative_prompt is not None:
                raise InputError(
                    "this engine holds no text encoders; build it from a pipeline that has them, or give what they make"
                    f"{self._instead(list(self._shapes))}"
                )
            return dict(given)
        found = self._artifact.contract.by_name(given)
        if prompt is not None:
            self._add(found, "prompt", list(encoders.conditions), self._encoded("prompt", prompt, count))
        elif missing := [name for name in encoders.conditions if name in self._needed and name not in found]:
            raise InputError(f"the prompt is missing; give prompt='...'{self._instead(missing)}")
        names = [name + NEGATIVE for name in encoders.conditions if name + NEGATIVE in self._shapes]
        if negative_prompt is not None and not names:
            raise InputError("negative_prompt: this engine is not guided by one; leave it out")
        if negative_prompt is not None:
            self._add(found, "negative_prompt", names, self._encoded("negative_prompt", negative_prompt, count))
        elif missing := [name for name in names if name not in found]:
            values = self._zero() if encoders.zeros else self._encoded("negative_prompt", "", count)
            found |= {name: values[name.removesuffix(NEGATIVE)] for name in missing}
        return found

    def _instead(self, names: Sequence[str]) -> str:
        labels = [f"{self._labels[name]}=" for name in names]
        return f", or {', '.join(labels)}" if labels else ""

    def _add(
        self, found: dict[str, Any], word: str, names: Sequence[str], values: Mapping[str, NDArray[np.float32]]
    ) -> None:
        for name in names:
            if name in found:
                raise InputError(f"got both {word} and {self._labels[name]}, expected one of them")
            found[name] = values[name.removesuffix(NEGATIVE)]

    def _zero(self) -> dict[str, NDArray[np.float32]]:
        assert self._artifact.text_encoders is not None
        return {name: np.zeros(self._shapes[name], np.float32) for name in self._artifact.text_encoders.conditions}

    def _encoded(self, word: str, prompt: Any, count: int) -> dict[str, NDArray[np.float32]]:
        """By condition, float32 [*shape] of one prompt for all, or [count, *shape]."""
        texts = [prompt] if isinstance(prompt, str) else prompt
        if not isinstance(texts, (list, tuple)) or not all(isinstance(one, str) for one in texts):
            raise InputError(f"{word}: got {type(prompt).__name__}, expected a text, or a list of one for each sample")
        if len(texts) not in (1, count):
            raise InputError(
                f"{word}: got {len(texts)} texts for {count} samples, expected one for all or one for each"
            )
        assert self._artifact.text_encoders is not None
        other = any(one.negative_before is not None for one in self._artifact.text_encoders.encoders)
        wanted = [(one, other and word == "negative_prompt") for one in texts]
        rows = self._rows(wanted, word)
        stacked = np.stack([rows[one] for one in wanted])
        whole = stacked if len(texts) > 1 else stacked[0]
        found, start = {}, 0
        for name in self._artifact.text_encoders.conditions:
            size = math.prod(self._shapes[name])
            found[name] = whole[..., start : start + size].reshape(*whole.shape[:-1], *self._shapes[name])
            start += size
        return found

    def _rows(self, texts: Sequence[Text], word: str) -> dict[Text, NDArray[np.float32]]:
        """What each text is encoded as, float32 [size]; each is encoded once. word: what the texts were given as."""
        with self._lock:
            return self._locked_rows(texts, word)

    def _locked_rows(self, texts: Sequence[Text], word: str) -> dict[Text, NDArray[np.float32]]:
        if self._closed:
            raise BackendError("this engine is closed; load it again with pfdiff.load")
        found = {text: self._kept[text] for text in texts if text in self._kept}
        new = [text for text in dict.fromkeys(texts) if text not in found]
        if new:
            if not self._loaded:
                self._load()
            cuts: list[Cut] = []
            rows = sum(self._run(one, new, cuts) for one in self._loaded)
            say_cuts(cuts, word.replace("_", " "))
            found |= dict(zip(new, np.asarray(rows, np.float32), strict=True))
        for text in dict.fromkeys(texts):
            self._kept[text] = found[text]
            self._kept.move_to_end(text)
        while len(self._kept) > 2 and sum(one.nbytes for one in self._kept.values()) > KEPT_BYTES:
            self._kept.popitem(last=False)
        return found

    def _load(self) -> None:
        encoders = self._artifact.text_encoders
        assert encoders is not None
        loaded: list[LoadedEncoder] = []
        try:
            for one in encoders.encoders:
                loaded.append(self._opened(one))
            check_in_place(self._artifact)
        except BaseException:
            for one in loaded:
                one.backend.close()
            raise
        self._loaded = loaded

    def _opened(self, encoder: TextEncoder) -> LoadedEncoder:
        artifact = self._artifact
        tokenizer = _tokenizer(artifact, encoder)
        what, file = f"the text encoder {encoder.contract.name}", artifact.path / encoder.file
        bound = self._beside.open(what, file, encoder.contract, artifact.batch[0])
        return LoadedEncoder(encoder, tokenizer, self._rows_of(encoder), *bound)

    def _rows_of(self, encoder: TextEncoder) -> int:
        """Rows of the conditions, where negative prompts stand alone, else all that the encoder takes."""
        held, length = self._artifact.text_encoders, encoder.contract.length
        if held is None or encoder.negative_before is None:
            return length
        rows = [self._shapes[name][0] for name in held.conditions if len(self._shapes[name]) == 2]
        return min([length, *rows])

    def _run(self, loaded: LoadedEncoder, texts: Sequence[Text], cuts: list[Cut]) -> NDArray[np.float32]:
        """Encoded [n, size] of n texts, in parts of the bucket that the network is bound to; cuts: is added to."""
        tokens = torch.from_numpy(_tokens(loaded, texts, cuts))
        size = len(loaded.buffers.x)
        rows = []
        for start in range(0, len(tokens), size):
            part = tokens[start : start + size]
            stream = loaded.backend.stream
            with torch.cuda.stream(stream) if stream is not None else contextlib.nullcontext():
                loaded.buffers.x[: len(part)].copy_(part)
                loaded.buffers.x[len(part) :].copy_(part[-1:].expand(size - len(part), -1, -1))
                try:
                    out = loaded.evaluate()
                except BackendError:
                    raise
                except Exception as error:  # whatever the library raises
                    name = loaded.encoder.contract.name
                    raise BackendError(f"the text encoder {name} fails: {first_line(error)}") from error
                rows.append(out[: len(part)].float().cpu().numpy().copy())
        found = np.concatenate(rows)
        if not np.isfinite(found).all():
            contract = loaded.encoder.contract
            raise BackendError(f"the text encoder {contract.name} is not finite in {contract.precision}; build in fp32")
        return found

    def close(self) -> None:
        """Free the encoders and what was encoded."""
        with self._lock:
            self._closed = True
            for one in self._loaded:
                one.backend.close()
            self._loaded = []
            self._kept.clear()


def _tokenizer(artifact: Artifact, encoder: TextEncoder) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise BackendError(f"prompts need the tokenizers library ({error}); pip install 'pfdiff[text]'") from None
    path = artifact.path / encoder.tokenizer
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises bare Exceptions, and what is none when it panics
        raise EngineFileError(f"'{path}' cannot be read ({first_line(error)[:120]}); rebuild the engine") from None
    length, padding, cut = encoder.contract.length, tokenizer.padding or {}, tokenizer.truncation or {}
    found = (padding.get("length"), padding.get("pad_to_multiple_of"), cut.get("max_length"))
    if found != (length, None, length):  # before it makes room for as many tokens as it says
        raise EngineFileError(f"'{path}' pads and cuts to {found[0]} and {found[2]} tokens, expected {length}; rebuild")
    return tokenizer


def _tokens(loaded: LoadedEncoder, texts: Sequence[Text], cuts: list[Cut]) -> NDArray[np.int64]:
    """Ids and masks [n, 2, length]; cuts: what is cut off is added. Raises EngineFileError."""
    encoder = loaded.encoder
    length, damaged = encoder.contract.length, f"the tokenizer of {encoder.contract.name}"
    framed = [encoder.framed(text, negative=negative) for text, negative in texts]
    try:
        encoded = loaded.tokenizer.encode_batch(framed)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # as in _tokenizer
        raise EngineFileError(f"{damaged} fails ({first_line(error)[:120]}); rebuild the engine") from None
    for text, one, (_, negative) in zip(framed, encoded, texts, strict=True):
        if len(one.ids) != length:
            raise EngineFileError(f"{damaged} makes {len(one.ids)} tokens, expected {length}; rebuild the engine")
        most = loaded.rows if negative else length
        kept = max(end for _, end in one.offsets[:most])
        left = text[kept : len(text) - len(encoder.after)]
        if (one.overflowing or sum(one.attention_mask) > most) and left.strip():
            cuts.append(Cut(encoder.contract.name, most, " ".join(left.split())))
    return np.array([[one.ids, one.attention_mask] for one in encoded], np.int64)


def say_cuts(cuts: Sequence[Cut], word: str) -> None:
    """One line for each text that was cut; encoders that leave out the same share it. word: what the texts are."""
    names: dict[tuple[int, str], list[str]] = {}
    for one in cuts:
        names.setdefault((one.most, one.left), []).append(one.encoder)
    for (most, left), encoders in names.items():
        long = len(left) > LONGEST_LEFT
        said = f"'{left[:LONGEST_LEFT]} ...', {len(left.split())} words" if long else f"'{left}'"
        warnings.warn(
            f"the {word} is cut at {most} tokens of {' and '.join(encoders)}; left out is {said}",
            RuntimeWarning,
            stacklevel=7,
        )
