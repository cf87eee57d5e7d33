"""Models that diffusers' save_pretrained wrote: their configs, and their weights from safetensors alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...engine.errors import BackendError, InputError, first_line, shown
from ...engine.files.array_files import open_regular
from ...engine.files.open_folder import read_at_most
from ...engine.json_fields import is_integer, parse_json
from .weights import load_pretrained, unseen, variant_of

if TYPE_CHECKING:
    from torch import nn

WEIGHTS = "diffusion_pytorch_model"
LARGEST_CONFIG_BYTES = 16 << 20
MOST_LAYERS = 1000  # of a block
DECODERS = (
    "AutoencoderKL",
    "AutoencoderTiny",
    "VQModel",
    "AutoencoderDC",
    "AutoencoderKLFlux2",
    "AutoencoderKLQwenImage",
    "AutoencoderKLWan",
)


def read_json(path: Path) -> dict[str, Any]:
    """A config file. Raises InputError."""
    try:
        with open_regular(path) as file:
            data = read_at_most(file, LARGEST_CONFIG_BYTES)
        if data is None:
            raise InputError(f"more than {LARGEST_CONFIG_BYTES >> 20} MiB")
        content = parse_json(data, finite=False)  # -Infinity is the default of lambda_min_clipped
    except InputError as error:
        raise InputError(f"{path} cannot be read ({first_line(error)[:120]}); copy it again") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, expected an object; copy it again")
    return content


def load_model(folder: Path, class_name: str) -> nn.Module:
    """The model in `folder` in float32, from safetensors alone. Raises InputError, BackendError."""
    variant = variant_of(folder, WEIGHTS)
    try:
        import diffusers
        import torch
    except ImportError as error:
        raise BackendError(
            f"'{folder}' needs diffusers ({error}); install it with: pip install pfdiff[diffusers]"
        ) from None
    with unseen(diffusers):
        return load_pretrained(getattr(diffusers, class_name), folder, variant, torch_dtype=torch.float32)


def load_autoencoder(folder: Path) -> nn.Module:
    """One of diffusers' autoencoders, in float32. Raises InputError, BackendError."""
    path = folder / "config.json"
    config: dict[str, Any] = read_json(path) if path.is_file() else {"_class_name": "folder without config.json"}
    found = config.get("_class_name")
    if found not in DECODERS:
        raise InputError(no_decoder(found if isinstance(found, str) and len(found) < 60 else shown(found)))
    for key, value in config.items():  # a model is made before its weights are compared with it
        if "layers" in key and is_integer(value) and value > MOST_LAYERS:
            raise InputError(f"{path} says {key} {shown(value)}, expected at most {MOST_LAYERS}; copy it again")
    return load_model(folder, str(found))


def no_decoder(found: str) -> str:
    return f"the decoder is a {found}, expected {', '.join(DECODERS)}; give another decoder= (--decoder)"
