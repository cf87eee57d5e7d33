"""The pages that the tests of the documentation read: README, docs/ and the others of the root."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OTHERS = [ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "bench/NOTES.md")]
BLOCK = re.compile(r"(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
SPAN = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `reason`: why it is not run, or None."""

    page: Path
    kind: str
    text: str
    reason: str | None
    line: int

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command of a `sh` block."""
        words = [shlex.split(part, comments=True) for line in self.text.splitlines() for part in line.split(" && ")]
        return [one for one in words if one]


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, one["kind"], one["text"], one["reason"], text.count("\n", 0, one.start()) + 1)
        for one in BLOCK.finditer(text)
    ]


def prose(page: Path) -> str:
    """The page without its blocks."""
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()
