"""Weights of a folder that save_pretrained wrote, from safetensors alone: the plain ones, else the only variant.

Pickled weights are refused.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...engine.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import nn

PICKLED = (".bin", ".pt", ".pth", ".ckpt")
COLLECTED_ABOVE_BYTES = 32 << 20  # of weights; looking for garbage takes half a second beside torch and diffusers


def variant_of(folder: Path, stem: str) -> str | None:
    """None for the plain safetensors named `stem`, else a variant there, such as fp16. Raises InputError."""
    found = [one.name.removeprefix(stem) for one in folder.glob(f"{stem}*.safetensors")]
    if any(one.startswith((".safetensors", "-0")) for one in found):
        return None
    variants = sorted({one[1:].split(".")[0].split("-")[0] for one in found if one.startswith(".")})
    if variants:
        return variants[0]
    pickled = sorted(one.name for one in folder.iterdir() if one.suffix in PICKLED)
    if pickled:
        raise InputError(
            f"'{folder}' has pickled weights only ({pickled[0]}), which can run any code when they are read; "
            "save it again with save_pretrained(..., safe_serialization=True)"
        )
    raise InputError(f"'{folder}' has no {stem}.safetensors; copy it there, or save the model again")


def load_pretrained(kind: Any, folder: Path, variant: str | None, **dtype: torch.dtype) -> nn.Module:
    """kind.from_pretrained(folder), for evaluation; dtype: by the name that the library gives it. Raises InputError."""
    from ..to_onnx import quiet

    given = {"use_safetensors": True, "local_files_only": True, "variant": variant, "output_loading_info": True}
    try:
        with quiet():
            model, report = kind.from_pretrained(folder, **given, **dtype)
    except Exception as error:  # of diffusers, transformers, safetensors and torch, without a common base
        said = " ".join(f"{type(error).__name__}: {error}".replace(f"{folder}/", "").split())[:240]
        raise InputError(f"'{folder}' cannot be loaded ({said}); save it again") from error
    for key in ("missing_keys", "mismatched_keys"):
        if report[key]:
            what = f"{len(report[key])} {key.replace('_keys', '')} weights, such as {min(map(str, report[key]))}"
            raise InputError(f"'{folder}' has {what}; config.json and the weights do not fit: save them again")
    return model.eval()


@contextlib.contextmanager
def unseen(library: Any) -> Iterator[None]:
    """No bars and log lines of transformers or diffusers: our own progress says what is read."""
    bars = library.utils.logging
    asked = getattr(bars, "is_progress_bar_enabled", lambda: True)  # not in older diffusers
    shown, level = asked(), bars.get_verbosity()
    bars.disable_progress_bar()
    bars.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        bars.set_verbosity(level)
        if shown:
            bars.enable_progress_bar()


def free_weights(module: nn.Module) -> int:
    """Every weight of `module` gives its memory back and has no elements any more; it cannot be evaluated again.

    That is so whoever still holds the weights: rules of onnxscript's (0.7) hold the last graph that they looked at.
    Returns how many bytes they were.
    """
    size = 0
    for tensor in (*module.parameters(), *module.buffers()):
        size += tensor.data.nbytes
        tensor.data = tensor.data.new_empty(0)
    return size


def return_memory(size: int | None = None) -> None:
    """What is no longer used goes back to the system: garbage is collected, and glibc gives back what it holds free.

    size: how many bytes of weights that is about, if known. For few of them nothing is done.
    """
    if size is not None and size <= COLLECTED_ABOVE_BYTES:
        return
    gc.collect()
    with contextlib.suppress(OSError, TypeError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
