"""A training that goes on where it was: a network, its moving average and AdamW, replaced whole in one file.

Random draws depend on (seed, step) alone, so a run that was stopped ends as if it had not been.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ...engine.atomic import replacing

EVERY = 250  # steps from one line and one checkpoint to the next
Losses = tuple[Tensor, Sequence[Tensor]]  # what is made small; what is reported of it


@final
@dataclass(frozen=True)
class Pace:
    """Options of AdamW and of the moving average.

    The rate rises from 0 over `warmup_steps`, is flat, then falls linearly to 0 over the last `decay` of all steps.
    """

    learning_rate: float
    warmup_steps: int
    decay: float
    ema_rate: float
    weight_decay: float = 0.01

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of one of so many steps."""
        fall = (steps - step) / (self.decay * steps)
        return self.learning_rate * min(1.0, (step + 1) / self.warmup_steps, fall)


@final
class Training:
    """What stands in the checkpoint of the folder `given.out`: `state` has step, seconds of a processor, curve, commit.

    given: also steps, batch and seed.
    """

    def __init__(self, model: nn.Module, given: argparse.Namespace, pace: Pace) -> None:
        self.model = model
        self.given = given
        self.pace = pace
        moving = torch.optim.swa_utils.get_ema_multi_avg_fn(pace.ema_rate)
        self.average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=moving)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), pace.learning_rate, betas=(0.9, 0.99), weight_decay=pace.weight_decay
        )
        self.state: dict[str, Any] = {"step": 0, "seconds": 0.0, "curve": [], "commit": _commit()}
        self._file: Path = given.out / "checkpoint.pt"
        self._parts = {"model": self.model, "average": self.average, "optimizer": self.optimizer}
        if self._file.exists():
            saved = torch.load(self._file, weights_only=True)
            for name, one in self._parts.items():
                one.load_state_dict(saved[name])
            self.state = saved["state"]

    def run(self, losses: Callable[[torch.Generator], Losses]) -> None:
        """All steps that are left; losses: of a batch that is drawn by the generator."""
        given, state = self.given, self.state
        running, since = [], time.process_time()
        for step in range(state["step"], given.steps):
            generator = torch.Generator().manual_seed(given.seed * 1_000_003 + step)
            running.append(self._descend(step, *losses(generator)))
            if (step + 1) % EVERY == 0 or step + 1 == given.steps:
                now, means = time.process_time(), np.mean(running, axis=0).round(6).tolist()
                curve = [*state["curve"], [step + 1, *means]]
                state |= {"step": step + 1, "seconds": state["seconds"] + now - since, "curve": curve}
                running, since = [], now
                print(json.dumps({"step": step + 1, "losses": means, "seconds": round(state["seconds"])}), flush=True)
                self._save()

    def _descend(self, step: int, loss: Tensor, reported: Sequence[Tensor]) -> list[float]:
        """One step of AdamW and of the moving average."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.pace.rate(step, self.given.steps)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.average.update_parameters(self.model)
        return [one.item() for one in reported]

    def _save(self) -> None:
        with replacing(self._file) as part:
            torch.save({**{name: one.state_dict() for name, one in self._parts.items()}, "state": self.state}, part)

    def finish(self, name: str, facts: Mapping[str, Any]) -> None:
        """Write NAME.safetensors, the moving average in float16, and NAME.json: `facts`, settings, time, losses."""
        given, state = self.given, self.state
        weights = self.average.module.state_dict()
        save_file({key: one.half().contiguous() for key, one in weights.items()}, given.out / f"{name}.safetensors")
        record = {
            "network": type(self.model).__name__,
            "parameters": sum(one.numel() for one in self.model.parameters()),
            **facts,
            "commit": state["commit"],
            "date": datetime.date.today().isoformat(),
            "steps": state["step"],
            "batch": given.batch,
            "seed": given.seed,
            "learning_rate": self.pace.learning_rate,
            "ema_rate": self.pace.ema_rate,
            "processor_seconds": round(state["seconds"]),
            "hardware": f"{torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}",
            "loss_curve": state["curve"],
        }
        (given.out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


def _commit() -> str:
    answer = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    return answer.stdout.strip() or "unknown"
