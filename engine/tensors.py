"""Tensors for every room of the engine: dtypes by their names, memory that lasts, rows that are filled.

TORCH_DTYPES       the dtypes of conditions and times, by the names that `engine.json` gives them
PRECISION_DTYPES   what a network computes in, by its precision
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

TORCH_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "bool": torch.bool,
}
PRECISION_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """For tensors that outlive the caller's `torch.inference_mode`, outside of which those made inside are read-only.

    They stand on the CPU unless another device is named, whatever the caller's default is.
    """
    with torch.inference_mode(False), torch.device("cpu"):
        yield


def fill(buffer: torch.Tensor, values: torch.Tensor) -> None:
    """The first rows of `buffer` from `values`, the rest repeats its last row, so that padding is valid data.

    Values on the host reach a CUDA buffer through pinned memory of our own, so the host does not wait for the device.
    `Tensor.pin_memory` would hand back what the caller has pinned already, and may change before it has been read.
    """
    count = len(values)
    if buffer.is_cuda and not values.is_cuda:
        values = torch.empty(values.shape, dtype=buffer.dtype, device="cpu", pin_memory=True).copy_(values)
    buffer[:count].copy_(values, non_blocking=True)
    if count < len(buffer):
        buffer[count:] = buffer[count - 1]


def from_numpy(values: NDArray[np.generic]) -> torch.Tensor:
    """A tensor on the memory of an array, which is copied when it is read-only (torch would warn)."""
    return torch.from_numpy(values if values.flags.writeable else values.copy())


def fill_rows(buffer: torch.Tensor, array: NDArray[np.generic] | None, values: NDArray[np.generic]) -> None:
    """`fill` on the host from an array; `array` is NumPy's view of the buffer, None where NumPy has no such dtype."""
    if array is None:
        fill(buffer, from_numpy(values))
        return
    count = len(values)
    array[:count] = values
    if count < len(array):
        array[count:] = values[-1]


def array_of(buffer: torch.Tensor) -> NDArray[np.generic] | None:
    """NumPy's view of a buffer on the host; None for bfloat16, which NumPy does not have."""
    return None if buffer.dtype == torch.bfloat16 else buffer.numpy()
