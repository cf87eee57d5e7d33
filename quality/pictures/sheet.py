"""Pages of pictures: a grid of equal tiles, and a sheet of captioned rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .pixels import Pixels, checked

PAPER, INK, QUIET = (255, 255, 255), (24, 24, 27), (113, 113, 122)
SMALLEST_TILE = 64  # smaller images are magnified by a whole factor
GRID_GAP, SHEET_GAP, MARGIN = 2, 4, 16
WIDEST = 2.5  # columns of a grid for each row


@final
@dataclass(frozen=True)
class Row:
    """One row of a sheet: its caption (lines split at newlines) and images uint8 [n, height, width, channels]."""

    caption: str
    images: Pixels


def grid(images: Pixels, columns: int | None = None) -> Image.Image:
    """Images uint8 [n, height, width, channels] in rows of `columns`, by default `columns_for(n)`."""
    count, height, width, _ = checked(images).shape
    columns = columns or columns_for(count)
    scale, gap = _magnification(height), GRID_GAP
    rows = math.ceil(count / columns)
    page = Image.new(
        "RGBA" if images.shape[-1] == 4 else "RGB",
        (columns * (scale * width + gap) + gap, rows * (scale * height + gap) + gap),
        PAPER,
    )
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        page.paste(picture_of(image, scale), (gap + column * (scale * width + gap), gap + row * (scale * height + gap)))
    return page


def tiles(page: Pixels, height: int, width: int, channels: int) -> Pixels | None:
    """The images uint8 [n, height, width, channels] that `grid` made of them `page`, [H, W, 3 or 4]; None of others.

    Tiles of paper alone at the end are none.
    """
    scale, gap = _magnification(height), GRID_GAP
    down, across = scale * height + gap, scale * width + gap
    rows, columns = (page.shape[0] - gap) // down, (page.shape[1] - gap) // across
    if min(rows, columns) < 1 or page.shape[:2] != (rows * down + gap, columns * across + gap):
        return None
    if channels > page.shape[2] or (channels == 1 and (page[..., :1] != page).any()):
        return None
    page = page[..., :channels]
    inner = page[gap:, gap:].reshape(rows, down, columns, across, -1).swapaxes(1, 2)
    paper = np.ones(inner.shape[2:4], bool)
    paper[:-gap, :-gap] = False
    edges = page[:gap], page[:, :gap], inner[:, :, paper]
    if not all((one == PAPER[0]).all() for one in edges):
        return None
    found = inner[:, :, : scale * height : scale, : scale * width : scale]
    whole = np.repeat(np.repeat(found, scale, 2), scale, 3)
    if (whole != inner[:, :, :-gap, :-gap]).any():
        return None
    found = found.reshape(-1, *found.shape[2:])
    last = max((n for n, one in enumerate(found) if (one != PAPER[0]).any()), default=0)
    return np.ascontiguousarray(found[: last + 1])


def columns_for(count: int) -> int:
    """Columns of a grid: 32 pictures make 8 x 4, without holes; where no full rectangle is near a square, a square."""
    square = math.ceil(math.sqrt(count))
    full = next(columns for columns in range(square, count + 1) if count % columns == 0)
    return full if full <= WIDEST * (count // full) else square


def sheet(rows: Sequence[Row], headings: Sequence[str] = (), title: str = "", note: str = "") -> Image.Image:
    """Rows of images of one size, captions at the left, headings above the columns, a title above and a note below."""
    _, height, width, _ = checked(rows[0].images).shape
    scale, gap, margin = _magnification(height), SHEET_GAP, MARGIN
    font, small, large = (ImageFont.load_default(size) for size in (14, 12, 20))
    captions = [row.caption.split("\n") for row in rows]
    left = margin + max(math.ceil(font.getlength(line)) for lines in captions for line in lines) + 16
    top = margin + (34 if title else 0) + (20 if headings else 0)
    tile_width, tile_height = scale * width + gap, scale * height + gap
    right = left + tile_width * max(len(row.images) for row in rows) - gap
    right = max(right, *(margin + math.ceil(face.getlength(text)) for face, text in ((large, title), (small, note))))
    bottom = top + tile_height * len(rows)
    page = Image.new("RGB", (right + margin, bottom + (22 if note else 0) + margin - gap), PAPER)
    ink = ImageDraw.Draw(page)

    # Words.
    ink.text((margin, margin - 4), title, fill=INK, font=large)
    for column, heading in enumerate(headings):
        middle = left + column * tile_width + scale * width // 2
        ink.text((middle, top - 4), heading, fill=QUIET, font=small, anchor="ms")
    ink.text((margin, bottom + 6), note, fill=QUIET, font=small)

    # Rows. A caption is centred on its row; its first line is the name, the others are quiet.
    for index, (row, lines) in enumerate(zip(rows, captions, strict=True)):
        y = top + index * tile_height
        for line, text in enumerate(lines):
            offset = scale * height / 2 + 18 * (line - (len(lines) - 1) / 2)
            ink.text((margin, y + offset), text, fill=QUIET if line else INK, font=font, anchor="lm")
        for column, image in enumerate(checked(row.images)):
            page.paste(picture_of(image, scale), (left + column * tile_width, y))
    return page


def picture_of(image: Pixels, scale: int = 1) -> Image.Image:
    """One image uint8 [height, width, channels] as Pillow's, each pixel `scale` x `scale`."""
    height, width, channels = checked(image[None])[0].shape
    picture = Image.fromarray(np.ascontiguousarray(image[..., 0] if channels == 1 else image))
    return picture.resize((scale * width, scale * height), Image.Resampling.NEAREST) if scale > 1 else picture


def _magnification(height: int) -> int:
    return max(1, -(-SMALLEST_TILE // height))
