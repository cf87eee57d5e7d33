"""Weights beside a one-file sampler, whose engine keeps them beside network.onnx: copied, and put in place."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...engine.artifact import Artifact
from ...engine.atomic import sync
from ...engine.errors import EngineFileError, shown
from ...engine.files.external_weights import tensors_of
from ...engine.files.open_folder import OpenFolder

if TYPE_CHECKING:
    import onnx

DIGITS = 12  # of the SHA-256 of weights, in the name of their file


def take_external_data(model: onnx.ModelProto, artifact: Artifact, part: Path) -> list[Path]:
    """Copy the engine's weight files beside `part` and point the model's tensors at the copies.

    A copy is named by its content, `NAME.onnx.HEX.data`: until the sampler is renamed into place the former one finds
    the weights that it was made with.
    """
    from onnx import TensorProto

    moved: dict[str, str] = {}
    for tensor in tensors_of(model):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        for entry in tensor.external_data:
            if entry.key == "location":
                if entry.value not in artifact.files:
                    raise EngineFileError(
                        f"network.onnx keeps weights in {shown(entry.value)}, which is not among the engine's files; "
                        "build it again"
                    )
                digest = artifact.files[entry.value].sha256
                entry.value = moved.setdefault(entry.value, f"{part.name}.{digest[:DIGITS]}.data")
    with OpenFolder(artifact.path) as engine:
        for source, name in moved.items():
            with engine.open(source) as file, open(part.with_name(name), "wb") as copy:
                shutil.copyfileobj(file, copy)
    return [part.with_name(name) for name in moved.values()]


def place(part: Path, data: Sequence[Path], target: Path) -> None:
    """Put sampler and weights at their place, the weights first, and remove those of a former sampler there."""
    for path in (*data, part):
        sync(path)
    for path in data:
        os.replace(path, target.with_name(path.name))
    os.replace(part, target)
    sync(target.parent)
    own = re.compile(re.escape(target.name) + rf"\.[0-9a-f]{{{DIGITS}}}\.data")
    for name in os.listdir(target.parent):
        if own.fullmatch(name) and name not in {path.name for path in data}:
            target.with_name(name).unlink(missing_ok=True)
