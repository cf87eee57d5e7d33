"""What all tests share: Triton's interpreter where there is no GPU, and the rule for tests that need one."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from .hidden_cpu import hide, hide_precisions, is_hidden

GPU = Path("/dev/nvidiactl").exists() or os.environ.get("PFDIFF_GPU") == "1"  # which `make gpu` says

if is_hidden():
    hide()

if not GPU:  # Triton reads this when a kernel is decorated, so before the first import of pfdiff.kernels
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests keep in the cache folder they find themselves, and nobody else's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _small_processor() -> None:
    """What `hide` cannot hide by the environment."""
    if is_hidden():
        hide_precisions()


SKIPPED: pytest.StashKey[Counter[str]] = pytest.StashKey()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Count the skipped tests by their reason."""
    reports = terminalreporter.stats.get("skipped", [])
    reasons = (one.longrepr[2] if isinstance(one.longrepr, tuple) else str(one.longrepr) for one in reports)
    config.stash[SKIPPED] = Counter(reason.removeprefix("Skipped: ") for reason in reasons)


def pytest_unconfigure(config: pytest.Config) -> None:
    """The last line: how many tests were skipped for what reason."""
    counts = config.stash.get(SKIPPED, Counter())
    if counts:
        print("skipped:", ", ".join(f"{count} because {reason}" for reason, count in counts.most_common()))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked gpu where there is none."""
    if not GPU:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU"))
