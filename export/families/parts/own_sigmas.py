"""Flow pipelines that give their scheduler sigmas of their own, 1 ... 1 / N."""

from __future__ import annotations

from dataclasses import replace

from ...convention import Convention


def scheduled(convention: Convention, patches: int) -> Convention:
    return replace(convention, span=(1.0, None), is_open=False) if convention.spacing == "flow" else convention
