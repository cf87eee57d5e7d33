"""float32 means float32 on a GPU, however the caller has set torch; torch's settings stand again afterwards."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from pfdiff.engine.backends.torch_cuda import _arithmetic

read, write = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter
KEYS = [("generic", "all"), ("cuda", "all"), ("cuda", "conv"), ("cuda", "rnn"), ("cuda", "matmul")]


def settings() -> tuple[object, ...]:
    cudnn = torch._C._get_cudnn_enabled(), torch._C._get_cudnn_benchmark(), torch._C._get_cudnn_deterministic()
    return (*[read(*key) for key in KEYS], *cudnn)


@pytest.fixture
def fresh() -> Iterator[None]:
    """torch as a new process has it, before and after."""

    def reset() -> None:
        torch.set_float32_matmul_precision("highest")
        torch._C._set_cudnn_allow_tf32(True)
        for key, precision in zip(KEYS, ("none", "none", "tf32", "tf32", "none"), strict=True):
            write(*key, precision)

    reset()
    yield
    reset()


CHOICES = {
    "nothing": lambda: None,
    "older": lambda: torch.set_float32_matmul_precision("high"),
    "everything": lambda: write("generic", "all", "tf32"),
    "products": lambda: write("cuda", "matmul", "tf32"),
    "convolutions": lambda: write("cuda", "conv", "ieee"),
}


@pytest.mark.filterwarnings("ignore:Please use the new API settings")  # of torch, when the older interface is used
@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("chosen", CHOICES)
def test_tf32_only_where_asked_for(chosen: str, tf32: bool, fresh: None) -> None:
    CHOICES[chosen]()
    before = settings()
    for search in (False, True):
        with _arithmetic(tf32, search):
            assert {read("cuda", one) for one in ("conv", "rnn", "matmul")} == {"tf32" if tf32 else "ieee"}
            assert torch._C._get_cudnn_benchmark() == search
            assert torch._C._get_cudnn_deterministic()
        assert settings() == before
    with pytest.raises(ValueError, match="inside"), _arithmetic(tf32, search=True):
        raise ValueError("inside")
    assert settings() == before


def test_two_threads_take_turns(fresh: None) -> None:
    found: list[str] = []

    def other() -> None:
        with _arithmetic(True, search=False):
            found.append(read("cuda", "conv"))

    thread = threading.Thread(target=other)
    before = settings()
    with _arithmetic(False, search=False):
        thread.start()
        thread.join(timeout=0.2)
        assert read("cuda", "conv") == "ieee"
        assert not found
    thread.join()
    assert found == ["tf32"]
    assert settings() == before


def test_compiled_code_may_read_the_older_interface(fresh: None) -> None:
    for tf32, products in ((False, "highest"), (True, "high")):
        with _arithmetic(tf32, search=False):
            assert torch.get_float32_matmul_precision() == products
            assert torch.backends.cudnn.allow_tf32 == tf32
            assert torch.backends.cuda.matmul.allow_tf32 == tf32
