"""One engine, one thread: loads it, warms it up, samples batch after batch, and survives what goes wrong in them.

A batch that fails is drawn again order by order, so that nobody pays for another client's conditions. An order that
fails alone is answered with an error. If then a trial sample fails as well, it is the engine that is broken: it is
loaded again, once, and if the trial fails even then, the engine is down.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from ..engine.api import Engine, load
from ..engine.errors import BackendError, InputError
from .about import About, Drawing, about, faces
from .batching import Batcher
from .jobs import Batch, Job, Told, joined, tell
from .limits import STUCK_SECONDS, Limits
from .orders import Kind, NotDrawnError, Order, Words
from .samplers import OWN

Say = Callable[[str], None]
log = logging.getLogger("pfdiff.serving")

CLOSING = NotDrawnError(503, "the server is shutting down; ask another one, or later", 5)
DOWN = NotDrawnError(503, "the engine has failed twice and is down; the server's log says why")


@final
@dataclass(frozen=True)
class Opening:
    """How engines are opened: as `pfdiff.load` takes them. threads: of each engine, None for the backend's choice."""

    device: str = "auto"
    backend: str = "auto"
    threads: int | None = None

    def of(self, path: Path) -> Engine:
        """Raises what `load` raises."""
        return load(path, self.device, self.backend, threads=self.threads)


@final
class Worker:
    """`start` returns when the engine is loaded and warm; `batcher` takes orders from then on."""

    def __init__(self, name: str, open_engine: Callable[[], Drawing], limits: Limits) -> None:
        self.name = name
        self.about: About
        self.batcher: Batcher
        self.reloads = 0
        self._open = open_engine
        self._limits = limits
        self._down = ""
        self._busy_since: float | None = None
        self._thread: threading.Thread

    @property
    def trouble(self) -> str:
        """Why this engine does not answer, empty when it does."""
        since = self._busy_since
        if not self._down and since is not None and time.perf_counter() - since > STUCK_SECONDS:
            return f"a batch has been running for more than {STUCK_SECONDS:g} s"
        return self._down

    def start(self, say: Say) -> None:
        """Raises what loading raises."""
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(ready, say), name=f"engine {self.name}", daemon=True)
        self._thread.start()
        ready.result()

    def stop(self) -> None:
        """Answer what waits, then free the engine."""
        self.batcher.close(CLOSING)
        self._thread.join()

    # In the thread.
    def _run(self, ready: Future[None], say: Say) -> None:
        try:
            say(f"loading {self.name}")
            self._load()
            batch = self._engine.batch
            self.batcher = Batcher(batch, max_wait_s=self._limits.max_wait_ms / 1e3, room=self._limits.queue)
            for nfe, size in self._warm_calls():
                say(f"warming up {self.name}: {nfe} evaluations, batch {size}")
                trial = [self._trial(Kind(OWN, nfe, self.about.image is not None), size)]
                self._draw(trial)
                begun = time.perf_counter()
                self._draw(trial)  # the first one made buffers
                self.batcher.sampled(size, size, nfe, time.perf_counter() - begun)
            ready.set_result(None)
        except BaseException as error:
            ready.set_exception(error)
            return
        while batch := self.batcher.take():
            self._busy_since = time.perf_counter()
            try:
                self._serve(batch)
            except Exception:  # a fault of this file must not end the thread
                log.exception("engine %s: a batch was lost", self.name)
                for piece in batch.pieces:
                    self._refuse(piece.job, NotDrawnError(500, "sampling failed"))
            self._busy_since = None
        self._engine.close()

    def _load(self) -> None:
        self._engine = self._open()
        self._faces = faces(self._engine)
        self.about = about(self.name, self._engine, self._faces)

    def _warm_calls(self) -> list[tuple[int, int]]:
        """(NFE, bucket). A GPU captures a graph for each pair; a CPU's buffers depend on the bucket alone."""
        held = sorted(self._engine.programs)
        if not self._engine.device.startswith("cuda"):
            held = held[:1]
        return [(nfe, size) for size in self._engine.batch for nfe in held]

    def _trial(self, kind: Kind, size: int) -> Order:
        contract = self._engine.contract
        given = contract.stand_ins
        taken = [one for one in contract.conditions if one.name not in self.about.encoded]
        conditions = {one.name: one.values(given.get(one.name), size) for one in taken}
        words = Words("") if self.about.takes_prompt else None
        return Order(kind, np.arange(size, dtype=np.uint64), conditions, words)

    def _draw(self, orders: Sequence[Order]) -> NDArray[Any]:
        """Rows of all orders, which are of one kind, in one call."""
        order = joined(orders)
        face = self._faces[order.kind.sampler]
        call = face.images if order.kind.pixels else face.sample
        said = {**order.conditions, **_words(orders), **_pictures(orders)}
        return call(seeds=order.seeds, nfe=order.kind.nfe, **said).cpu().numpy()

    def _serve(self, batch: Batch) -> None:
        begun, count = time.perf_counter(), batch.count
        bucket = next((size for size in self._engine.batch if size >= count), count)
        try:
            rows = self._draw(batch.orders)
        except Exception as error:
            self._isolate(batch, error)
            return
        seconds = time.perf_counter() - begun
        self.batcher.sampled(count, bucket, batch.kind.nfe, seconds)
        told: list[Told] = []
        first = 0
        for piece in batch.pieces:
            counted = [(count, bucket)] if piece is batch.pieces[0] else []
            told += _given(piece.job, rows[first : first + piece.count], seconds, counted, count)
            first += piece.count
        tell(told)

    def _isolate(self, batch: Batch, error: Exception) -> None:
        """Each order of a failed batch by itself."""
        broken = False
        for piece, order in zip(batch.pieces, batch.orders, strict=True):
            begun = time.perf_counter()
            try:
                if len(batch.pieces) == 1:
                    raise error
                rows = self._draw([order])
            except Exception as failed:
                why, suspect = _reason(failed)
                if suspect:  # and no mistake of the client's
                    log.warning("engine %s: an order failed: %s: %s", self.name, type(failed).__name__, failed)
                broken = broken or suspect
                self._refuse(piece.job, why)
            else:
                counted = [(order.count, order.count)]
                tell(_given(piece.job, rows, time.perf_counter() - begun, counted, order.count))
        if broken and not self._passes_trial():
            self._reload()

    def _refuse(self, job: Job, why: NotDrawnError) -> None:
        """Tell the client why, and sample no more of the job."""
        self.batcher.drop(job)
        tell([(job, why)])

    def _passes_trial(self) -> bool:
        nfe = min(self._engine.programs)
        try:
            self._draw([self._trial(Kind(OWN, nfe, self.about.image is not None), self._engine.batch[0])])
        except Exception:
            log.exception("engine %s: a trial sample fails", self.name)
            return False
        return True

    def _reload(self) -> None:
        log.error("engine %s: loading it again", self.name)
        self.reloads += 1
        try:
            self._engine.close()
        except Exception:
            log.exception("engine %s: closing it failed", self.name)
        try:
            self._load()
            alive = self._passes_trial()
        except Exception:
            log.exception("engine %s: loading it again failed", self.name)
            alive = False
        if not alive:
            self._down = "the engine failed, and again after it was loaded anew"
            self.batcher.close(DOWN, refuse_waiting=True)


def _reason(error: Exception) -> tuple[NotDrawnError, bool]:
    """What the client is told, and whether the engine may be broken. Words of a library stay in the log."""
    if isinstance(error, InputError):
        return NotDrawnError(400, str(error)), False
    if isinstance(error, BackendError) and "not finite" in str(error):
        return NotDrawnError(422, "these conditions lead to samples that are not finite; give smaller numbers"), False
    return NotDrawnError(500, "sampling failed; the server's log says why"), True


def _words(orders: Sequence[Order]) -> dict[str, Any]:
    """prompt and negative_prompt where the orders have them: one text where all agree, else one for each sample."""
    if not orders[0].words:  # as all of one kind
        return {}
    words = [one.words for one in orders if one.words for _ in range(one.count)]
    found: dict[str, Any] = {}
    prompts, negatives = [one.prompt for one in words], [one.negative for one in words]
    for name, texts in (("prompt", prompts), ("negative_prompt", negatives)):
        if texts[0] is not None:
            found[name] = texts[0] if len(set(texts)) == 1 else texts
    return found


def _pictures(orders: Sequence[Order]) -> dict[str, Any]:
    """image, mask and strength where the orders start from pictures: one where all agree, else one for each sample."""
    start = orders[0].kind.start  # as all of one kind
    if start is None:
        return {}
    shown = [one.picture for one in orders if one.picture for _ in range(one.count)]
    shown = shown[:1] if all(one is shown[0] for one in shown) else shown
    found: dict[str, Any] = {"image": np.stack([one.image for one in shown])}
    if start.masked:
        found["mask"] = np.stack([one.mask for one in shown if one.mask is not None])
    return {**found, "strength": start.strength, "strength_counts": start.counts}


def _given(
    job: Job, rows: NDArray[Any], seconds: float, batches: Sequence[tuple[int, int]], shared: int
) -> Sequence[Told]:
    """Rows of one batch go to their job; its answer if they were the last ones."""
    job.rows.append(rows)
    job.sample_s += seconds
    job.batches += batches
    job.shared = max(job.shared, shared)
    drawn = job.drawn()
    return [(job, drawn)] if drawn else []
