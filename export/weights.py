"""Which safetensors of a folder are to be read: the plain ones, else the only variant; pickled weights are refused."""

from __future__ import annotations

from pathlib import Path

from ..engine.errors import InputError

PICKLED = (".bin", ".pt", ".pth", ".ckpt")


def variant_of(folder: Path, stem: str) -> str | None:
    """None for the plain safetensors named `stem`, else a variant there, such as fp16. Raises InputError."""
    found = [one.name for one in folder.glob(f"{stem}*.safetensors*")]
    if any(one.removeprefix(stem).startswith((".safetensors", "-0")) for one in found):
        return None
    variants = sorted({one.removeprefix(f"{stem}.").split(".")[0].split("-")[0] for one in found})
    if variants:
        return variants[0]
    pickled = sorted(one.name for one in folder.iterdir() if one.suffix in PICKLED)
    if pickled:
        raise InputError(
            f"'{folder}' has pickled weights only ({pickled[0]}), which can run any code when they are read; "
            "save it again with save_pretrained(..., safe_serialization=True)"
        )
    raise InputError(f"'{folder}' has no {stem}.safetensors; copy it there, or save the model again")
