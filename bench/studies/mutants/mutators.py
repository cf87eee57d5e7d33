"""Random damage, the same for the same generator: to bytes, to a text, to JSON data."""

from __future__ import annotations

import copy
import random
import struct
from typing import Any

HUGE = 10**400
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        3,
        7,
        255,
        1 << 20,
        1 << 31,
        1 << 40,
        (1 << 63) - 1,
        1 << 64,
        -(1 << 63),
        HUGE,
        -HUGE,
    ),
    *(0.0, -0.0, 0.5, -1.5, 1e-320, 1e-30, 1e30, 3e38, 1e39, 1e300, float("inf"), float("-inf"), float("nan")),
    *("", " ", "x", "0", "-1", "NaN", "inf", "fp16", "ddim", "linear:1000", "edm", "flow:shift=3", "alphas:/dev/zero"),
    *(
        "alphas:",
        "../../etc/passwd",
        "/etc/passwd",
        "a" * 256,
        "a" * 5000,
        "\x1b[2J\x1b]0;t\x07",
        "\u202etxt.exe\u2066",
    ),
    *("[/red]", "line\nline", "\x00", "\ud800", "é" * 60, "{", "%s%n", "'; --"),
    *([], {}, [[]], [0], [1, 2, 3], [None], ["a"], {"a": 1}, [HUGE], [float("nan")], [1] * 100, [[1]] * 30),
)
TOKENS = (
    *("-", ",", "..", ":", "=", "@", "x", " ", "\t", "\n", "0", "9" * 30, "9" * 5000, "1e400", "nan", "-1", "1-2-3"),
    *("99999999999-0", "0-99999999999", "18446744073709551616", "٣", "\x1b[31m", "\u202e", "\x00", "@/dev/zero", "@."),
)


def of_bytes(draw: random.Random, data: bytes) -> bytes:
    """One to four times: bits flipped, a piece cut, doubled, zeroed or made random, a number made huge."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
        at = draw.randrange(len(changed) + 1)
        length = min(draw.choice((1, 4, 8, 64, 1024)), len(changed) - at)
        match draw.randrange(8):
            case 0 | 1 if length:
                for _ in range(draw.choice((1, 1, 8))):
                    changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
            case 2:
                del changed[at:]
            case 3:
                del changed[at : at + length]
            case 4:
                changed[at:at] = changed[at : at + length]
            case 5:
                changed[at : at + length] = bytes(length)
            case 6:
                changed[at : at + length] = draw.randbytes(length)
            case _:
                number = draw.choice((0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF, 1 << 40, 0x7FFFFFFF, 0xFFFFFFFF))
                changed[at : at + 8] = struct.pack("<Q", number)
    return bytes(changed)


def of_text(draw: random.Random, text: str) -> str:
    """One to three times: a piece cut or doubled, a letter changed, something strange put in."""
    for _ in range(draw.choice((1, 1, 2, 3))):
        at = draw.randrange(len(text) + 1)
        length = draw.choice((1, 1, 3, 20))
        match draw.randrange(5):
            case 0:
                text = text[:at] + text[at + length :]
            case 1:
                text = text[:at] + text[at : at + length] * draw.choice((2, 2, 300)) + text[at + length :]
            case 2:
                text = text[:at] + chr(draw.randrange(32, 127)) + text[at + 1 :]
            case _:
                text = text[:at] + draw.choice(TOKENS) + text[at:]
    return text


def of_json(draw: random.Random, content: Any) -> Any:
    """A copy, changed one to three times at random places: a value replaced, removed, doubled, renamed or nested."""
    whole = [copy.deepcopy(content)]
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        holder, key = _place(draw, whole)
        match draw.randrange(10):
            case 0 if isinstance(holder, dict):
                del holder[key]
            case 0 if isinstance(holder, list) and holder is not whole:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[draw.choice(("", "x", "a" * 300, "\x1b[2J", "default", "nfe", str(key)))] = holder.pop(key)
            case 1 if isinstance(holder, list) and holder is not whole:
                holder.insert(key, copy.deepcopy(holder[key]))
            case 2:
                for _ in range(draw.choice((1, 5, 50, 900))):
                    holder[key] = [holder[key]]
            case 3:
                other, name = _place(draw, whole)
                holder[key] = copy.deepcopy(other[name])
            case 4 if isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
                holder[key] = draw.choice(
                    (-holder[key], holder[key] + 1, holder[key] * 2, holder[key] // 3, str(holder[key])[:99])
                )
            case 4 if isinstance(holder[key], str):
                holder[key] = of_text(draw, holder[key])
            case _:
                holder[key] = copy.deepcopy(draw.choice(VALUES))
    return whole[0]


def _place(draw: random.Random, whole: list[Any]) -> tuple[Any, Any]:
    """(list or dictionary, key) of a random value; high ones more often than numbers in long lists."""
    holder, key = whole, 0
    while isinstance(holder[key], (dict, list)) and holder[key] and draw.random() < 0.85:
        holder = holder[key]
        key = draw.choice(list(holder)) if isinstance(holder, dict) else draw.randrange(len(holder))
    return holder, key
