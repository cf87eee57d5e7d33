"""Where an engine runs: the words that `device=` takes, whether a GPU can be used, and what fits into its memory.

Nothing here touches a GPU before it was asked for: without CUDA every question is answered by torch alone.
"""

from __future__ import annotations

import re
import threading

import torch

from .errors import BackendError, InputError

MIB = 1 << 20
COMMON_POOL = (0, 0)  # torch's name for the memory that everybody is given
EXCLUSIVE = threading.RLock()  # held for a capture, for synchronising a whole device, and for settings of torch


def parse_device(text: object) -> torch.device | None:
    """The device that auto, cpu, cuda or cuda:N means; None for auto. Raises InputError, BackendError.

    BackendError when this machine has no such GPU, or torch has no kernels for it.
    """
    if text == "auto":
        return None
    if text == "cpu":
        return torch.device("cpu")
    found = re.fullmatch(r"cuda(?::(\d{1,3}))?", text) if isinstance(text, str) else None
    if found is None:
        raise InputError(f"device {text!r}, expected auto, cpu, cuda or cuda:N")
    index = int(found[1] or 0)
    problem = why_not_cuda(index)
    if problem:
        raise BackendError(f"device '{text}': {problem}; give device='cpu' or 'auto'")
    return torch.device("cuda", index)


def why_not_cuda(index: int = 0) -> str:
    """Why `cuda:index` cannot be used, in one clause; empty when it can."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no NVIDIA GPU or no driver that serves CUDA {torch.version.cuda}"
    count = torch.cuda.device_count()
    if index >= count:
        held = "one GPU, cuda:0" if count == 1 else f"{count} GPUs, cuda:0 to cuda:{count - 1}"
        return f"this machine has {held}"
    major, minor = torch.cuda.get_device_capability(index)
    kernels = torch.cuda.get_arch_list()
    if not any(_serves(name, major, minor) for name in kernels):
        name = torch.cuda.get_device_name(index)
        held = ", ".join(one.removeprefix("sm_") for one in kernels if one.startswith("sm_"))
        return f"torch {torch.__version__} has no kernels for {name}, compute capability {major}.{minor}, only {held}"
    return ""


def _serves(kernels: str, major: int, minor: int) -> bool:
    """Whether kernels of one architecture run: sm_86 on 8.6 and 8.9, compute_90 (PTX) on all from 9.0 on."""
    found = re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", kernels)
    if found is None:
        return False
    built = int(found[2]), int(found[3])
    if kernels[-1].isalpha() and kernels[-1] != "f":  # sm_90a runs on 9.0 alone
        return built == (major, minor)
    return built <= (major, minor) and (found[1] == "compute" or built[0] == major)


def capability(device: torch.device) -> str:
    """sm90, as plans are named."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm{major}{minor}"


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated: free on the device, or reserved by torch and unused.

    What the memory pool of a CUDA graph has unused is for that graph alone, and does not count.
    """
    free, _ = torch.cuda.mem_get_info(device)
    segments = [one for one in torch.cuda.memory_snapshot() if one["device"] == (device.index or 0)]
    common = [one for one in segments if tuple(one["segment_pool_id"]) == COMMON_POOL]
    return free + sum(one["total_size"] - one["allocated_size"] for one in common)


def check_fits(what: str, needed: int, device: torch.device) -> None:
    """Raises BackendError, before anything is allocated, when `needed` bytes are not free on a CUDA device."""
    free = free_bytes(device)
    if needed > free:
        raise BackendError(
            f"{what} needs {mib(needed)} on {device}, {mib(free)} are free; free some, or use a smaller precision"
        )


def check_batch_fits(batch: int, per_sample: int, device: torch.device) -> None:
    """Raises BackendError when a batch of `per_sample` bytes each does not fit; names the largest that does."""
    free, needed = free_bytes(device), batch * per_sample
    if needed > free:
        fits = free // per_sample
        remedy = f"the largest batch that fits is {fits}, build with --batch {fits}" if fits else "not even one fits"
        raise BackendError(f"batch {batch} needs {mib(needed)} on {device}, {mib(free)} are free; {remedy}")


def mib(size: int) -> str:
    """Bytes in MiB, rounded up."""
    return f"{-(-size // MIB)} MiB"
