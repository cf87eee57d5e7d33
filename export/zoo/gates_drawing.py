"""The gates task as pictures: one panel for each policy, its discs with their traces, frame after frame (Pillow)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...engine.atomic import replacing
from .gates import GOAL_RADIUS, HALF_GAP, HALF_THICKNESS, RADIUS, WALLS
from .gates_rollout import Outcome

SIDE, MARGIN, CAPTION = 220, 8, 34  # pixels
EVERY, HELD, FRAME_MS = 2, 20, 60  # ticks a frame; frames of the end; duration
INK, WALL, PAPER, GOAL, TRACE = (40, 44, 52), (90, 98, 110), (250, 250, 248), (214, 176, 60), (196, 204, 216)
MOVING, REACHED, HIT = (52, 106, 190), (44, 150, 84), (204, 62, 52)


def write_animation(path: Path, panels: Sequence[tuple[str, Outcome]]) -> None:
    """A GIF of the panels side by side, (caption, outcome) each. Raises OSError."""
    last = max(int(one.ticks.max()) for _, one in panels)
    frames = [_frame(panels, tick) for tick in range(0, last + EVERY, EVERY)]
    frames += frames[-1:] * HELD
    with replacing(path) as part, open(part, "wb") as file:
        frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=FRAME_MS, loop=0, optimize=True)


def _frame(panels: Sequence[tuple[str, Outcome]], tick: int) -> Any:
    from PIL import Image, ImageDraw

    width = MARGIN + len(panels) * (SIDE + MARGIN)
    image = Image.new("RGB", (width, SIDE + 2 * MARGIN + CAPTION), PAPER)
    draw = ImageDraw.Draw(image)
    for n, (caption, outcome) in enumerate(panels):
        left = MARGIN + n * (SIDE + MARGIN)
        _panel(draw, left, MARGIN, outcome, tick)
        draw.multiline_text((left, MARGIN + SIDE + 5), caption, INK, spacing=2)
    return image.quantize(64)


def _panel(draw: Any, left: int, top: int, outcome: Outcome, tick: int) -> None:
    """Walls and goal of the first task, discs of all episodes; what has ended keeps its colour."""
    task = outcome.task

    def at(x: float, y: float) -> tuple[float, float]:
        return left + SIDE * x, top + SIDE * (1 - y)

    def disc(x: float, y: float, radius: float, **colours: Any) -> None:
        (x, y), r = at(x, y), SIDE * radius
        draw.ellipse((x - r, y - r, x + r, y + r), **colours)

    draw.rectangle((left, top, left + SIDE, top + SIDE), outline=WALL)
    disc(task.goal[0, 0], task.goal[0, 1], GOAL_RADIUS, outline=GOAL, width=3)
    for wall, height in enumerate(WALLS):
        edges = [0.0, *(edge for gap in task.gaps[0, wall] for edge in (gap - HALF_GAP, gap + HALF_GAP)), 1.0]
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            draw.rectangle((*at(start, height + HALF_THICKNESS), *at(end, height - HALF_THICKNESS)), fill=WALL)
    shown = np.minimum(tick, outcome.ticks)
    for robot, until in enumerate(shown):
        trace = outcome.positions[: until + 1, robot]
        if len(trace) > 1:
            draw.line([at(x, y) for x, y in trace], fill=TRACE)
    for robot, until in enumerate(shown):
        ended = tick >= outcome.ticks[robot]
        colour = (REACHED if outcome.success[robot] else HIT) if ended else MOVING
        x, y = outcome.positions[until, robot]
        disc(x, y, RADIUS, fill=colour)
