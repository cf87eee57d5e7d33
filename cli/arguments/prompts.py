"""Prompts, a picture to start from and its mask, as `pfdiff sample` is given them."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...engine.errors import InputError

if TYPE_CHECKING:
    import typer

    from ...engine.artifact import Artifact
    from ...engine.contract.contract import Contract

ASKED = ("prompt", "negative_prompt", "image", "mask", "strength", "strength_counts")


def asked_from(
    typed: Mapping[str, str | Sequence[str]], contract: Contract, shape: Sequence[int]
) -> tuple[list[str], dict[str, Any]]:
    """(arguments that are conditions of the network, the rest as keywords of `Engine.sample`). Raises InputError.

    shape: [C, H, W] of the engine's pictures. Several texts stay a list: see `by_seed`.
    """
    names = {name for one in contract.conditions for name in (one.name, one.alias)}
    last = {name: text if isinstance(text, str) else text[-1] for name, text in typed.items()}
    extra = [word for name, text in last.items() if name in names for word in (f"--{name}", text)]
    asked: dict[str, Any] = {name: last[name] for name in typed if name not in names}
    asked |= {name: list(typed[name]) for name in asked if not isinstance(typed[name], str) and len(typed[name]) > 1}
    if "strength" in asked:
        try:
            asked["strength"] = float(asked["strength"])
        except ValueError:
            raise InputError(f"--strength '{asked['strength']}': expected a number, such as 0.6") from None
    if "image" in asked:
        given = _out_of_sheet(asked["image"], picture_from("--image", asked["image"]), shape)
        grey = len(shape) == 3 and shape[0] == 3 and given.ndim == 3 and given.shape[-1] == 1
        asked["image"] = given.repeat(3, axis=-1) if grey else given
    if "mask" in asked:
        asked["mask"] = mask_from("--mask", asked["mask"])
    return extra, asked


def by_seed(asked: Mapping[str, Any], seeds: Sequence[int], rank: int) -> dict[str, Any]:
    """Of what was asked for, what has a row for each seed: texts, pictures, masks. Raises InputError.

    Of m texts seed s has number s mod m. rank: of a picture, 3 for [C, H, W].
    """
    found: dict[str, Any] = {}
    texts = {name: asked[name] for name in ("prompt", "negative_prompt") if isinstance(asked.get(name), list)}
    counts = {len(one) for one in texts.values()}
    if len(counts) > 1 or (texts and "prompt" not in texts):
        counted = [len(asked[name]) if name in texts else 1 for name in ("prompt", "negative_prompt")]
        raise InputError(f"--negative-prompt: {counted[1]} for {counted[0]} of --prompt; give one, or as many")
    for name, several in texts.items():
        found[name] = [several[seed % len(several)] for seed in seeds]
    for name, whole in (("image", rank + 1), ("mask", rank if rank == 3 else rank + 1)):
        given = asked.get(name)
        if given is None or given.ndim != whole or len(given) == 1:
            continue
        if len(given) != len(seeds):
            raise InputError(f"--{name}: {len(given)} for {len(seeds)} seeds; give 1, or one for each seed")
        found[name] = given
    return found


def check_texts(asked: Mapping[str, Any], artifact: Artifact) -> None:
    """Raises InputError for prompts that the engine has no use for."""
    from ...engine.contract.text_encoders import NEGATIVE

    encoders, names = artifact.text_encoders, [one.name for one in artifact.contract.conditions]
    if encoders is None and (word := next((one for one in ("prompt", "negative_prompt") if one in asked), None)):
        option = "--" + word.replace("_", "-")
        taken = ", ".join(f"--{one.alias or one.name}" for one in artifact.contract.conditions) or "none"
        raise InputError(
            f"{option}: this engine holds no text encoders; build it from a pipeline that has them, or give what they "
            f"make; its conditions: {taken}"
        )
    if "negative_prompt" in asked and not any(name.endswith(NEGATIVE) for name in names):
        raise InputError("--negative-prompt: this engine is not guided by one; leave it out")


def check_asked(asked: Mapping[str, Any], conditions: Mapping[str, Any], artifact: Artifact, count: int) -> None:
    """What `Engine.sample` refuses of these, as far as engine.json decides it: before the network is loaded.

    conditions: those that were typed. count: of samples. Raises InputError.
    """
    encoders = artifact.text_encoders
    if encoders is not None and "prompt" not in asked:
        check_prompted(conditions, artifact.contract, encoders.conditions)
    for name, what in (("strength", "start from"), ("strength_counts", "start from"), ("mask", "keep a part of")):
        if name in asked and "image" not in asked:
            option = "--" + name.replace("_", "-")
            raise InputError(f"{option} without a picture to {what}; give --image too")
    strength, counts = asked.get("strength", 1.0), asked.get("strength_counts", "part")
    if not 0 < strength <= 1:
        raise InputError(f"--strength {strength:g}, expected a number above 0 and at most 1, such as 0.6")
    if counts not in ("part", "whole"):
        raise InputError(f"--strength-counts '{counts}', expected part or whole")
    _check_pictures(asked, conditions, artifact, count)


def _check_pictures(asked: Mapping[str, Any], conditions: Mapping[str, Any], artifact: Artifact, count: int) -> None:
    from ...engine.contract.condition import INPAINTING
    from ...engine.contract.pictures import check_mask, check_picture, inpaints

    if "image" in asked:
        check_picture(asked["image"], artifact.pictures, count, called="--image")
    if "mask" in asked:
        check_mask(asked["mask"], artifact.pictures.shape, artifact.contract, count, called="--mask")
    if inpaints(artifact.contract) and "mask" not in asked and not {*INPAINTING} <= {*conditions}:
        raise InputError("this network inpaints; give --image and --mask, white where the picture is drawn anew")


def check_prompted(given: Mapping[str, Any], contract: Contract, encoded: Collection[str]) -> None:
    """Raises InputError where nothing stands for a condition that the text encoders make."""
    own = contract.by_name(given)
    needed = [one.name for one in contract.conditions if one.default is None and one.name not in own]
    if missing := [name for name in encoded if name in needed]:
        raise InputError(f"the prompt is missing; give --prompt '...', or what it stands for: {', '.join(missing)}")


def prompted_conditions(
    context: typer.Context, contract: Contract, engine: Path | None, extra: Sequence[str] | None = None
) -> dict[str, Any]:
    """The conditions that were typed, and those that --prompt and --negative-prompt stand for, by name.

    Several texts are taken in turn by the seeds. A network's own condition of that name goes first. engine: None for a
    network. extra: in place of the context's own arguments. Raises InputError, EngineFileError, BackendError.
    """
    from ...engine.contract.controls import control_condition, is_control_picture
    from .conditions import check_in_turn, given_conditions

    params = context.params
    words = {name: params[name] for name in ("prompt", "negative_prompt") if params[name]}
    names = {name for one in contract.conditions for name in (one.name, one.alias)}
    own = [word for name, texts in words.items() if name in names for word in (f"--{name}", texts[-1])]
    given = given_conditions([*(context.args if extra is None else extra), *own], contract)
    texts = {name: one[0] if len(one) == 1 else one for name, one in words.items() if name not in names}
    control = control_condition(contract)
    shown = control is not None and is_control_picture(control, contract.by_name(given).get(control.name))
    if not texts and not shown:
        encoded = () if engine is None else _encoded(engine)
        check_prompted(given, contract, encoded)
        check_in_turn(given, contract, encoded)
        return given
    if engine is None and shown:
        raise InputError("--control_image needs an engine, which holds the image encoder; build it, and name it here")
    if engine is None:
        raise InputError("--prompt needs an engine, which holds the text encoders; build it, and name it here")
    from ...engine.bulk.prompt_conditions import prompt_conditions

    where = {name: params[name] for name in ("device", "backend", "threads") if params.get(name) is not None}
    return prompt_conditions(engine, texts.get("prompt"), texts.get("negative_prompt"), given, **where)


def _encoded(engine: Path) -> Collection[str]:
    """The conditions that its text encoders make."""
    from ...engine.artifact import read_artifact

    encoders = read_artifact(engine, verify=False).text_encoders
    return () if encoders is None else encoders.conditions


def _out_of_sheet(text: str, given: Any, shape: Sequence[int]) -> Any:
    """The picture in a page with margins, as `pfdiff sample` writes it; of several the first, which is said."""
    from ...quality.pictures.sheet import tiles

    if Path(text).suffix != ".png" or len(shape) != 3 or given.shape[:2] == tuple(shape[1:]):
        return given
    found = tiles(given, shape[1], shape[2], shape[0])
    if found is None:
        return given
    if len(found) > 1:
        said = f"--image '{text}' is a page of {len(found)} pictures, of which the first is taken"
        warnings.warn(said, RuntimeWarning, stacklevel=3)
    return found[0]


def mask_from(option: str, text: str) -> Any:
    """uint8 [H, W] of a picture in grey, or the array of an .npy. Raises InputError."""
    read = picture_from(option, text, grey=True)
    return read[:, :, 0] if Path(text).suffix != ".npy" else read


def picture_from(option: str, text: str, *, grey: bool = False) -> Any:
    """uint8 [H, W, 3] or, in grey, [H, W, 1] of a picture, or the array of an .npy. Raises InputError.

    What is transparent becomes white, which a line says; in a mask it is refused.
    """
    import numpy as np

    path = Path(text)
    if not path.is_file():
        why = "is no plain file" if path.exists() else "does not exist"
        raise InputError(f"{option} '{text}' {why}; give a picture, or an array .npy")
    if path.suffix == ".npy":
        from ...engine.files.array_files import read_array

        try:
            return read_array(path)
        except InputError as error:
            raise InputError(f"{option} {error}") from None
    from PIL import Image, ImageOps

    from ...quality.pictures.read import FORMATS, MOST_PIXELS

    try:
        with Image.open(path, formats=FORMATS) as opened:  # others start programs of their own
            width, height = opened.size
            if width * height > MOST_PIXELS:
                raise InputError(f"{option} '{text}': {width} x {height} pixels, expected at most {MOST_PIXELS} in all")
            picture = ImageOps.exif_transpose(opened)  # as the camera was held
            if picture.mode[0] in "IF":
                raise InputError(f"{option} '{text}': pixels of kind {picture.mode}, expected 8 bits a channel")
            plain = "L" if grey or picture.mode in ("1", "L", "LA") else "RGB"
            clear = picture.has_transparency_data
            if not clear or picture.convert("RGBA").getchannel("A").getextrema()[0] == 255:
                return np.atleast_3d(np.asarray(picture.convert(plain)))
            if grey:
                raise InputError(
                    f"{option} '{text}' is transparent in parts; give a mask without transparency, white where it is "
                    "drawn anew"
                )
            warnings.warn(
                f"{option} '{text}' is transparent in parts, which become white; give a picture without transparency "
                "for another ground",
                RuntimeWarning,
                stacklevel=3,
            )
            ground = Image.new("RGBA", picture.size, "white")
            return np.atleast_3d(np.asarray(Image.alpha_composite(ground, picture.convert("RGBA")).convert(plain)))
    except InputError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        why = " ".join(str(error).split())[:120]
        raise InputError(f"{option} '{text}' is no picture of {', '.join(FORMATS)} ({why})") from error
