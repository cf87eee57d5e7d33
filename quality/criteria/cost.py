"""What `tune --criterion module.py:function` makes small: whatever a user's function says of the samples.

    def failures(engine, nfe, seeds):
        return ...        # a number of at least 0, the mean over these seeds: the smaller, the better

The engine it is given samples with the candidate's table: `engine.sample(seeds=.., nfe=nfe)`, a `pfdiff.Controller`.
Such as the share of a robot's episodes that fail. The same arguments must give the same number.
"""

from __future__ import annotations

import builtins
import hashlib
import sys
import tempfile
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from ...engine.api import Engine
from ...engine.cache import Journal, cache_folder, content_key
from ...engine.compiler.compile import compile
from ...engine.compiler.program import Program
from ...engine.errors import InputError, PfdiffError, first_line
from ...export.engine_directory import write_programs
from ...export.sources.module_imports import importing_beside
from ..sampling.budget import Budget
from ..sampling.pool import Rows
from ..sampling.subject import Subject

BATCH = (1, 8, 64)  # of the engine that stands in for a network
Function = Callable[[Engine, int, Sequence[int]], Any]  # a number


@final
@dataclass(frozen=True, eq=False)
class Cost:
    """A user's function; `digest`, of its file and those beside it, is None for a function that came as an object."""

    function: Function
    name: str
    digest: str | None

    @classmethod
    def of(cls, given: Function | str) -> Cost:
        """A function, or "module.py:function". Raises InputError."""
        if not isinstance(given, str):
            if not callable(given):
                raise InputError(f"criterion: got {type(given).__name__}, expected a function or module.py:function")
            return cls(given, getattr(given, "__name__", type(given).__name__), None)
        file, _, name = given.rpartition(":")
        path = Path(file)
        if not name.isidentifier() or not path.is_file():
            raise InputError(f"criterion '{given}': expected module.py:function, a file that is there")
        source = path.read_bytes()
        module = types.ModuleType(f"pfdiff_criterion_{hashlib.sha256(source).hexdigest()[:12]}")
        module.__file__ = str(path)
        sys.modules[module.__name__] = module
        with importing_beside(path) as neighbours:
            try:
                exec(builtins.compile(source, str(path), "exec"), vars(module))  # Python's cache misses quick edits
            except (Exception, SystemExit) as error:  # whatever a user's file raises
                raise InputError(f"criterion '{given}': {file} cannot be imported ({first_line(error)})") from error
            function: Any = getattr(module, name, None)
        if not callable(function):
            raise InputError(f"criterion '{given}': {file} has no function '{name}'")
        whole = b"".join((source, *(neighbours[one] for one in sorted(neighbours))))
        return cls(function, f"{name} of {path.name}", hashlib.sha256(whole).hexdigest())

    def __str__(self) -> str:
        return self.name


@final
@dataclass(frozen=True, eq=False)
class CostCriterion:
    """A `Criterion` of the search. A tally is the cost times the number of seeds.

    An evaluation of the budget is one of the network for one seed's sample, though an episode may take several samples.
    """

    cost: Cost
    engine: Engine
    seeds: Sequence[int]
    budget: Budget
    journal: Journal | None

    def expect(self, asked: Sequence[tuple[Program, Rows]]) -> None:
        """One after the other."""

    def tally(self, program: Program, rows: Rows) -> float:
        """The function's cost of these seeds, kept in the journal. Raises InputError for what is no cost."""
        seeds = [self.seeds[row] for row in rows]
        key = content_key(self.cost.digest, self.cost.name, program.digest, seeds)
        held = self.journal.number(key) if self.journal else None
        self.budget.charge(program.nfe * len(rows), cached=held is not None)
        if held is None:
            held = self._asked(program, seeds)
            if self.journal:
                self.journal.put(key, held)
        return held * len(rows)

    def error(self, tally: float, seeds: int) -> float:
        """The mean cost."""
        return tally / seeds

    def _asked(self, program: Program, seeds: Sequence[int]) -> float:
        face = self.engine.with_programs({program.nfe: program})
        try:
            said: Any = self.cost.function(face, program.nfe, seeds)
        except PfdiffError:
            raise
        except (Exception, SystemExit) as error:  # whatever a user's function raises
            raise InputError(
                f"criterion {self.cost}: it raised {type(error).__name__} ({first_line(error)}) with nfe {program.nfe} "
                f"and {len(seeds)} seeds; expected a number of at least 0"
            ) from error
        try:
            value = float(said)
        except (TypeError, ValueError):
            value = np.nan
        if not value >= 0:
            raise InputError(f"criterion {self.cost}: it returned {said!r}, expected a number of at least 0")
        return value


@contextmanager
def cost_criterion(
    cost: Cost, subject: Subject, seeds: Sequence[int], budget: Budget, backend: str, threads: int | None
) -> Iterator[CostCriterion]:
    """The criterion on `seeds`, with an engine of the subject, closed at the end. Raises InputError, BackendError."""
    journal = None
    if cost.digest is not None:
        journal = Journal(cache_folder() / "search" / f"{content_key(subject.digest, cost.digest)}.jsonl")
    with tempfile.TemporaryDirectory(prefix="pfdiff-") as folder:
        where: Any = subject.engine
        if subject.network is not None:
            contract = subject.contract
            plain = compile("ddim", contract.schedule, 1, prediction=contract.prediction)
            sizes = BATCH if contract.fixed_batch is None else (contract.fixed_batch,)
            where = write_programs(
                Path(folder) / "subject.engine", subject.network, {1: plain}, batch=sizes, say=lambda line: None
            )
        with Engine.open(where, backend=backend, threads=threads) as engine:
            yield CostCriterion(cost, engine, seeds, budget, journal)
