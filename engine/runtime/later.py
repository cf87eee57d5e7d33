"""A further network of an engine, opened when it is first needed: an encoder of pictures or of observations.

It runs on the engine's device and stream, outside the captured schedule, and has one set of buffers.
"""

from __future__ import annotations

import threading
from typing import final

import torch

from ..artifact import Artifact, check_in_place
from ..backends.abstract import Backend, Buffers, Evaluate
from ..backends.choose import Beside
from ..contract.contract import AnyContract
from ..errors import BackendError, EngineFileError


@final
class LaterNetwork:
    """`what`: in messages; `file`: in the engine. contract: None where the engine has no such network."""

    def __init__(self, artifact: Artifact, beside: Beside, what: str, file: str, contract: AnyContract | None) -> None:
        self._artifact = artifact
        self._beside = beside
        self._what = what
        self._path = artifact.path / file
        self._contract = contract
        self._opened: tuple[Backend, Buffers, Evaluate] | None = None
        self._closed = False
        self._lock = threading.Lock()

    def __call__(self, given: torch.Tensor) -> torch.Tensor:
        """Its output float32 [n, ...] on the device, of `given` [n, ...], in parts of the engine's smallest bucket.

        Raises EngineFileError when another engine has taken this one's place, BackendError.
        """
        with self._lock:
            if self._closed:
                raise BackendError("this engine is closed; load it again with pfdiff.load")
            self._opened = self._opened or self._open()
            backend, buffers, evaluate = self._opened
            rows = []
            for part in given.split(len(buffers.x)):
                buffers.x[: len(part)].copy_(part)
                if backend.stream is not None:
                    backend.stream.wait_stream(torch.cuda.current_stream(backend.device))
                    with torch.cuda.stream(backend.stream):
                        made = evaluate()
                    torch.cuda.current_stream(backend.device).wait_stream(backend.stream)
                else:
                    made = evaluate()
                rows.append(made[: len(part)].float().clone())
            return torch.cat(rows)

    def _open(self) -> tuple[Backend, Buffers, Evaluate]:
        assert self._contract is not None
        opened = self._beside.open(self._what, self._path, self._contract, self._artifact.batch[0])
        try:
            check_in_place(self._artifact)
        except EngineFileError:
            opened[0].close()
            raise
        return opened

    def close(self) -> None:
        """Free it; calls after that raise BackendError."""
        with self._lock:
            self._closed = True
            if self._opened is not None:
                self._opened[0].close()
            self._opened = None
