"""A Drawn becomes the bytes of an answer: PNG, .npz or JSON. Called in a thread, away from the event loop."""

from __future__ import annotations

import base64
import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...engine.contract.controls import CONTROL_IMAGE, CONTROL_LATENTS
from ...quality.pictures import write as pictures
from ..about import About
from ..limits import MOST_NUMBERS
from ..orders import Drawn, NotDrawnError, Order
from .npz import npz_bytes


def png_of(image: NDArray[np.uint8]) -> bytes:
    """One picture uint8 [H, W, C], its very pixels."""
    return _png(Image.fromarray(np.ascontiguousarray(image[..., 0] if image.shape[-1] == 1 else image)))


def sheet_of(images: NDArray[np.uint8]) -> bytes:
    """One picture as it is; several as the sheet that `pfdiff sample -o sheet.png` writes."""
    return png_of(images[0]) if len(images) == 1 else _png(pictures.grid(images))


def npz_of(drawn: Drawn, order: Order) -> bytes:
    """`samples` float32 [n, *shape], `seeds` uint64 [n] and the conditions, without a ControlNet's picture."""
    said = {name: one for name, one in order.conditions.items() if name not in (CONTROL_IMAGE, CONTROL_LATENTS)}
    return npz_bytes({**said, "samples": drawn.rows, "seeds": order.seeds})


def samples_of(drawn: Drawn, order: Order) -> list[dict[str, Any]]:
    """For JSON: each seed with its PNG in base64, or with its numbers."""
    if order.kind.pixels:
        pngs = [base64.b64encode(png_of(image)).decode() for image in drawn.rows]
        return [{"seed": int(seed), "png": png} for seed, png in zip(order.seeds, pngs, strict=True)]
    rows = zip(order.seeds, drawn.rows, strict=True)
    return [{"seed": int(seed), "sample": row.tolist()} for seed, row in rows]


def check_json(about: About, samples: int) -> None:
    """Raises NotDrawnError 400 when so many samples are too many numbers for JSON; pictures are PNGs there."""
    count = samples * math.prod(about.contract.shape)
    if about.image is None and count > MOST_NUMBERS:
        raise NotDrawnError(400, f"{count} numbers in JSON, expected at most {MOST_NUMBERS}; ask for format npz")


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, format="PNG", compress_level=4)
    return file.getvalue()
