"""A request becomes an Order: engine, NFE, sampler, seeds and conditions, each checked against what the engine is.

An .npz body holds arrays by name: `seeds` [n], optionally `nfe`, and conditions. It is read without pickle, and its
arrays are counted before they are unpacked.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from pydantic import ValidationError

from ...engine.contract.condition import INPAINTING
from ...engine.contract.controls import CONTROL_IMAGE, CONTROL_LATENTS, is_control_picture
from ...engine.errors import InputError
from ...engine.runtime.noise import parse_seeds
from ..about import About
from ..hosts import Host
from ..orders import Kind, NotDrawnError, Order, Picture, Words
from .schema import SamplesBody, first_of

MOST_ENTRIES = 64


def host_of(hosts: Mapping[str, Host], name: str | None, field: str = "engine") -> Host:
    """The engine called `name`, or the only one; `field` of the request names it. Raises NotDrawnError."""
    if name is None and len(hosts) == 1:
        return next(iter(hosts.values()))
    if name is None or name not in hosts:
        got = "the engine is not named" if name is None else f"no engine {name!r:.100}"
        raise NotDrawnError(404 if name else 400, f"{got}; give {field} as one of {', '.join(hosts)}")
    return hosts[name]


def order_of(body: SamplesBody, about: About) -> Order:
    """The order of a request. Raises NotDrawnError 400: what was got, what was expected."""
    kind = Kind(body.sampler, nfe_of(about, body.sampler, body.nfe), pixels=wants_pixels(body, about))
    if not body.seeds:
        raise NotDrawnError(400, "seeds: none given, expected at least one, such as [0]")
    try:
        seeds = parse_seeds(body.seeds)
    except InputError as error:
        raise NotDrawnError(400, str(error)) from None
    return order_for(about, kind, seeds, body.conditions, body.prompt, body.negative_prompt)


def order_for(
    about: About,
    kind: Kind,
    seeds: NDArray[np.uint64],
    given: Mapping[str, Any],
    prompt: str | None,
    negative: str | None,
    picture: Picture | None = None,
) -> Order:
    """The order of these seeds, with all conditions and texts checked. Raises NotDrawnError."""
    conditions = conditions_of(about, given, len(seeds), from_picture=picture is not None)
    words = words_of(about, prompt, negative, conditions)
    own = sorted(about.encoded & set(conditions))
    if words and words.negative is not None:
        own.append("negative_prompt")
    if about.shown and about.shown.latents and is_control_picture(about.shown.condition, conditions[CONTROL_LATENTS]):
        own.append(CONTROL_IMAGE)  # in batches of their own, since latents have another shape
    return Order(replace(kind, given=tuple(own)) if own else kind, seeds, conditions, words, picture)


def nfe_of(about: About, sampler: str, nfe: int | None) -> int:
    """The number of evaluations, which may be left out where there is one. Raises NotDrawnError."""
    held = about.samplers.get(sampler, {})
    if nfe is None and len(held) == 1:
        return next(iter(held))
    if nfe is None or nfe not in held:
        got = "nfe is missing" if nfe is None else f"nfe={nfe}"
        listed = ", ".join(map(str, held)) or f"none of '{sampler}'"
        raise NotDrawnError(400, f"{got}; this engine has {listed} for sampler '{sampler}'")
    return nfe


def wants_pixels(body: SamplesBody, about: About) -> bool:
    """Whether the answer shows pictures. Raises NotDrawnError for PNGs of what is none."""
    if body.format == "png" and about.image is None:
        shape = list(about.contract.shape)
        raise NotDrawnError(400, f"samples of shape {shape} are no pictures; ask for format json or npz")
    return body.format == "png" or (body.format == "json" and about.image is not None)


def words_of(about: About, prompt: str | None, negative: str | None, given: Collection[str] = ()) -> Words | None:
    """The texts of an order. given: the conditions that came as numbers. Raises NotDrawnError.

    Refused: texts that the engine cannot read, a prompt that is missing, a text and the numbers that it stands for.
    """
    texts = {"prompt": prompt, "negative_prompt": negative}
    said = [word for word, text in texts.items() if text is not None]
    name = f"engine '{about.name}'"
    if not about.takes_prompt:
        if said:
            takes = ", ".join(one.name for one in about.contract.conditions) or "no conditions"
            raise NotDrawnError(400, f"{name} takes no prompt; it takes {takes}, by POST /v1/samples")
        return None
    if "negative_prompt" in said and not about.takes_negative_prompt:
        raise NotDrawnError(400, f"{name} is not guided by a negative prompt; leave negative_prompt out")
    numbers = {word: about.stands_for(word) & set(given) for word in texts}
    for word in said:
        if numbers[word]:
            raise NotDrawnError(400, f"got both {word} and {min(numbers[word])}, expected one of them")
    if "prompt" not in said and not numbers["prompt"]:
        raise NotDrawnError(400, f"{name} draws from a prompt, and there is none")
    if negative is None and not numbers["negative_prompt"]:
        negative = about.usual_negative  # said, so that it shares batches with others
    return Words(prompt, negative)


def conditions_of(about: About, given: Mapping[str, Any], count: int, *, from_picture: bool) -> dict[str, NDArray[Any]]:
    """Arrays [count, ..] of every condition but those that prompts stand for. Raises NotDrawnError.

    from_picture: those of networks that inpaint are made of picture and mask. The contract itself says what is wrong.
    """
    try:
        named = about.contract.by_name(given)
        made = {*about.encoded, *(INPAINTING if from_picture else ())}
        taken = [one for one in about.contract.conditions if one.name in named or one.name not in made]
        shown = control_rows(about, named, count)
        return shown | {one.name: one.values(named.get(one.name), count) for one in taken if one.name not in shown}
    except InputError as error:
        raise NotDrawnError(400, " ".join(str(error).split())[:500]) from None
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise NotDrawnError(400, "conditions: lists of different lengths, or something else than numbers") from None


def control_rows(about: About, named: Mapping[str, Any], count: int) -> dict[str, NDArray[Any]]:
    """The picture of a ControlNet as float32 [count, C, H, W] in 0..1; {} where it has a default, or for latents.

    Raises InputError.
    """
    shown = about.shown
    if shown is None or shown.condition.name not in named:
        if shown and shown.latents:
            raise InputError(f"control_image is missing; give {shown.expected}")
        return {}
    picture = named[shown.condition.name]
    picture = picture if isinstance(picture, np.ndarray) else np.asarray(picture, np.float32)  # numbers in JSON
    if shown.latents and not is_control_picture(shown.condition, picture):
        return {}
    rows = shown.rows(picture).numpy()
    if len(rows) not in (1, count):
        raise InputError(f"control_image: got {len(rows)} pictures for {count} seeds; give one, or one for each")
    return {shown.condition.name: np.broadcast_to(rows, (count, *rows.shape[1:]))}


# An .npz body.
def body_from_npz(raw: bytes, query: Mapping[str, str], most_bytes: int) -> SamplesBody:
    """The body that an .npz and the query (engine, nfe, sampler, format) mean. Raises NotDrawnError."""
    unknown = set(query) - {"engine", "nfe", "sampler", "format"}
    if unknown:
        raise NotDrawnError(400, f"query: unknown {min(unknown)!r:.60}; expected engine, nfe, sampler or format")
    arrays = read_npz(raw, most_bytes)
    values: dict[str, Any] = {"format": "npz", **query}
    nfe = arrays.pop("nfe", None)
    if "nfe" in values and str(values["nfe"]).isdecimal():
        values["nfe"] = int(values["nfe"][:10])
    elif nfe is not None and nfe.size == 1 and nfe.dtype.kind in "iu":
        values["nfe"] = int(nfe.reshape(()))
    elif nfe is not None or "nfe" in values:
        raise NotDrawnError(400, "nfe: expected one integer")
    seeds = arrays.pop("seeds", None)
    if seeds is None or seeds.ndim != 1 or seeds.dtype.kind not in "iu":
        got = "no array 'seeds'" if seeds is None else f"seeds of {seeds.dtype} {list(seeds.shape)}"
        raise NotDrawnError(400, f"the .npz has {got}, expected integers [n]")
    try:
        return SamplesBody(**values, seeds=seeds.tolist(), conditions=arrays)
    except ValidationError as error:
        raise NotDrawnError(400, first_of(error, SamplesBody)) from None


def read_npz(raw: bytes, most_bytes: int) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz, at most `most_bytes` unpacked, never a pickle. Raises NotDrawnError."""
    found: dict[str, NDArray[Any]] = {}
    left = most_bytes
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            entries = archive.infolist()
            if len(entries) > MOST_ENTRIES:
                raise NotDrawnError(400, f"the .npz has {len(entries)} arrays, expected at most {MOST_ENTRIES}")
            for entry in entries:
                if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise NotDrawnError(
                        400, "the .npz is packed in another way than numpy's; write it with numpy.savez"
                    )
                with archive.open(entry) as file:
                    unpacked = file.read(left + 1)
                left -= len(unpacked)
                if left < 0:
                    raise NotDrawnError(413, f"the .npz is more than {most_bytes} bytes unpacked; send fewer samples")
                name = entry.filename.removesuffix(".npy")
                found[name] = read_npy(unpacked, name)
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, NotImplementedError, RuntimeError, zlib.error):
        raise NotDrawnError(400, "the body is no .npz of plain arrays, as numpy.savez writes it") from None
    return found


def read_npy(raw: bytes, name: str) -> NDArray[Any]:
    """One array; its header is compared with the bytes before anything is made of it.

    Raises NotDrawnError for what is no number, ValueError for what is no .npy.
    """
    file = io.BytesIO(raw)
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError("a version of .npy that numpy.savez does not write for plain arrays")
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read_header(file)
    held = raw[file.tell() :]
    if dtype.hasobject or dtype.kind not in "biuf":
        raise NotDrawnError(400, f"array {name!r:.60}: got {dtype!s:.60}, expected real numbers")
    if math.prod(shape) * dtype.itemsize != len(held):
        raise ValueError("not as many numbers as its header says")
    return np.frombuffer(held, dtype).reshape(shape, order="F" if fortran else "C")


def seeds_from(first: int, count: int) -> Sequence[int]:
    """first, first + 1, ..., which begin again at 0 after 2^64 - 1."""
    return [(first + index) % (1 << 64) for index in range(count)]


def guidance_of(about: About, guidance: float | None, beside: Collection[str] = ()) -> dict[str, Any]:
    """The condition that OpenAI's route calls guidance. Raises NotDrawnError: there is none, or it is `beside` too."""
    if guidance is None:
        return {}
    if "guidance" in beside:
        raise NotDrawnError(400, "guidance: got it twice, also in conditions; give it once")
    if not any("guidance" in (one.name, one.alias) for one in about.contract.conditions):
        raise NotDrawnError(400, f"engine '{about.name}' was built without guidance; leave guidance out")
    return {"guidance": guidance}
