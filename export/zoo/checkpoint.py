"""A training that goes on where it was: its parts and its state in one file, replaced whole."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch

from ...engine.atomic import replacing


@final
class Checkpoint:
    """`parts` have state_dict and load_state_dict, and are put back from `file` where there is one; so is `state`."""

    def __init__(self, file: Path, parts: Mapping[str, Any], state: dict[str, Any]) -> None:
        self._file = file
        self._parts = parts
        self.state = state
        if file.exists():
            saved = torch.load(file, weights_only=True)
            for name, one in parts.items():
                one.load_state_dict(saved[name])
            self.state = saved["state"]

    def facts(self, given: argparse.Namespace) -> dict[str, Any]:
        """For the record beside the weights: how often, on what and when; `given`: what the training was asked for."""
        state = self.state
        return {
            "commit": state["commit"],
            "date": datetime.date.today().isoformat(),
            "steps": state["step"],
            "batch": given.batch,
            "seed": given.seed,
        }

    def save(self) -> None:
        """Write the file, whole or not at all."""
        with replacing(self._file) as part:
            torch.save({**{name: one.state_dict() for name, one in self._parts.items()}, "state": self.state}, part)
