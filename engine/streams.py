"""A CUDA stream for each engine, which no other engine of the process has.

torch hands out 32 streams in turn, of each priority. The 33rd engine would share one: what it launches in another
thread would be recorded while the first one captures.
"""

from __future__ import annotations

import threading
import weakref

import torch

STREAMS = 32  # of one priority
PRIORITIES = (0, -1)

_taken: set[tuple[int, int]] = set()  # device and handle
_lock = threading.Lock()


def own_stream(device: torch.device) -> torch.cuda.Stream:
    """A stream of nobody else's until it is dropped; a shared one when all 64 are taken."""
    with _lock:
        for priority in PRIORITIES:
            for _ in range(STREAMS):
                stream = torch.cuda.Stream(device, priority=priority)
                name = (device.index or 0, stream.cuda_stream)
                if name not in _taken:
                    _taken.add(name)
                    weakref.finalize(stream, _taken.discard, name)
                    return stream
        return torch.cuda.Stream(device)
