"""Ray Serve beyond what test_app shows of it: a replica that is killed under load costs nobody an answer."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

import pfdiff
from pfdiff.engine.errors import InputError
from pfdiff.serving.limits import Limits
from pfdiff.serving.worker import Opening

from ..small.engine import write_engine
from ..small.serving import Answer
from .ray_serve import check_installed, cluster, on_ray


def replicas(name: str) -> list[int]:
    """Processes of a deployment's replicas, by the title that Ray gives them. Linux only."""
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue  # it has ended
        if title.startswith(f"ray::ServeReplica:pfdiff:{name}"):
            found.append(int(folder.name))
    return sorted(found)


def test_a_killed_replica_costs_nobody_an_answer(tmp_path: Path) -> None:
    engine = write_engine(tmp_path / "lone.engine", batch=(1, 4)).path
    with on_ray(engine, replicas=2) as client:
        (victim, *others) = replicas("lone")
        assert len(others) == 1
        found: dict[int, Answer] = {}

        def ask(first: int) -> None:
            for seed in range(first, 400, 4):
                found[seed] = client.samples(seeds=[seed], nfe=6, sampler="engine")

        threads = [threading.Thread(target=ask, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        while len(found) < 100:
            time.sleep(0.005)
        os.kill(victim, signal.SIGKILL)
        for thread in threads:
            thread.join()
        assert victim not in replicas("lone")
    assert {answer.status for answer in found.values()} == {200}
    with pfdiff.load(engine, "cpu", "onnxruntime", threads=1) as loaded:
        expected = loaded.sample(seeds=range(400), nfe=6).numpy()
    for seed, answer in found.items():
        assert abs(expected[seed] - answer.json["samples"][0]["sample"]).max() <= 1e-6 * abs(expected).max()


def test_more_replicas_than_there_is_room_for(tmp_path: Path) -> None:
    check_installed()
    from pfdiff.serving.on_ray import Where, deployed

    engine = write_engine(tmp_path / "lone.engine").path
    where = Where("local", 1000, "127.0.0.1", 0)
    with (
        cluster(),
        pytest.raises(InputError, match="1000 replicas, the cluster has room for"),
        deployed({"lone": engine}, Opening("cpu"), Limits(), where, lambda line: None),
    ):
        pass
