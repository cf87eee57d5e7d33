"""On Ray: workers and driver killed in the middle, and the files of this process; what a cluster refuses."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import pfdiff
from pfdiff.engine.artifact import read_artifact
from pfdiff.engine.bulk.cluster import check_listening, connected, size_pool
from pfdiff.engine.bulk.manifest import open_manifest
from pfdiff.engine.bulk.on_ray import Actor
from pfdiff.engine.bulk.recipe import make_recipe
from pfdiff.engine.bulk.shards import tries
from pfdiff.engine.bulk.worker import MOST_TRIES, Worker, Workplace
from pfdiff.engine.machine import cores

from ...small.bulk import tree
from ...small.engine import write_engine

COUNT = 600  # shards of one sample, some milliseconds each on a worker


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_killed_workers_and_a_killed_driver_leave_no_trace(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    from pfdiff.bench.studies.generate_tables import finished, ray_workers, wait_for

    engine, out = write_engine(tmp_path / "small.engine").path, tmp_path / "out"
    root = Path(next(iter(pfdiff.__path__))).parent
    command = f"-m pfdiff generate {engine} --count {COUNT} --nfe 4 --format npz --shard 1 --out {out}".split()
    said = tmp_path / "stderr"
    with said.open("wb") as file:
        driver = subprocess.Popen(
            [sys.executable, *command, "--ray", "local", "--workers", str(min(2, cores()))],
            env={**os.environ, "PYTHONPATH": str(root)},
            stderr=file,
        )

    try:
        for samples in (5, 30):
            wait_for(out, samples, driver)
            os.kill(ray_workers(driver.pid)[0], signal.SIGKILL)
        wait_for(out, 60, driver)
    finally:
        driver.kill()
        driver.wait()
    assert ".cc:" not in said.read_text()  # lines of the core itself; that workers were killed may be said
    assert 60 <= finished(out) < COUNT
    done = pfdiff.generate(engine, COUNT, out, nfe=4, format="npz", shard=1)
    assert 0 < done.made <= COUNT - 60
    pfdiff.generate(engine, COUNT, tmp_path / "undisturbed", nfe=4, format="npz", shard=1)
    assert tree(out) == tree(tmp_path / "undisturbed")


# An engine that ends its process while it is loaded.
def test_a_load_is_a_try_of_its_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, out = write_engine(tmp_path / "small.engine").path, tmp_path / "out"
    recipe = make_recipe(read_artifact(engine), 4, 4, size=1, format="npz")
    with open_manifest(out, recipe):
        pass
    target, loaded = out / "shard-000002.npz", []

    def opened(*given: Any) -> Worker:
        loaded.append(tries(target))
        return Worker(*given)

    monkeypatch.setattr("pfdiff.engine.bulk.on_ray.Worker", opened)
    actor = Actor(recipe, Workplace(engine, out))
    assert actor({"index": [2]})["error"] == [""]
    assert (loaded, tries(target)) == ([1], 0)
    for death in range(MOST_TRIES):
        (out / f".{target.name}-{death}.part").touch()
    (error,) = Actor(recipe, Workplace(engine, out))({"index": [2]})["error"]
    assert f"shard '{target.name}' has cost {MOST_TRIES} workers" in error
    assert loaded == [1]  # and was not loaded again


# Room: (GPUs of a worker, workers).
def test_workers_fill_the_cluster() -> None:
    cpus, gpus = {"CPU": 16.0}, {"CPU": 16.0, "GPU": 4.0}
    assert size_pool(cpus, 100, 1, None, None, "auto") == (0, 16)
    assert size_pool(cpus, 100, 4, None, None, "auto") == (0, 4)
    assert size_pool(cpus, 3, 1, None, None, "auto") == (0, 3)
    assert size_pool(gpus, 100, 1, None, None, "auto") == (1, 4)
    assert size_pool(gpus, 100, 1, None, 0.5, "cuda") == (0.5, 8)
    assert size_pool(gpus, 100, 1, None, 0.1, "cuda") == (0.1, 16)
    assert size_pool({"CPU": 16.0, "GPU": 1.0}, 100, 1, 10, 0.1, "cuda") == (0.1, 10)
    assert size_pool(gpus, 100, 1, None, 0.4, "cuda") == (0.4, 8)  # two on each
    assert size_pool(gpus, 100, 1, None, 2, "cuda") == (2, 2)
    assert size_pool(gpus, 100, 1, None, None, "cpu") == (0, 16)
    assert size_pool(gpus, 100, 1, 2, None, "auto") == (1, 2)


def test_more_than_the_cluster_has_is_refused() -> None:
    with pytest.raises(pfdiff.InputError, match=r"9 workers of 2 CPUs each, but the cluster has 16 CPUs and 0 GPUs"):
        size_pool({"CPU": 16.0}, 100, 2, 9, None, "auto")
    with pytest.raises(pfdiff.InputError, match=r"1 workers of 1 CPU and 1 GPUs each"):
        size_pool({"CPU": 16.0}, 100, 1, None, 1, "auto")
    for workers, gpus in ((0, None), (-2, None), (None, -1.0)):
        with pytest.raises(pfdiff.InputError, match="expected at least 1 and at least 0"):
            size_pool({"CPU": 16.0}, 100, 1, workers, gpus, "auto")


# No such cluster.
def test_a_cluster_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And Ray, which would wait for it for minutes, is not asked."""
    ray = pytest.importorskip("ray", reason="ray is not installed")
    monkeypatch.delattr(ray, "init")
    engine = write_engine(tmp_path / "small.engine").path
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for where, said in {address: "Connection refused", "here": "expected local, auto, HOST:PORT"}.items():
        with pytest.raises(pfdiff.InputError, match=said) as caught:
            pfdiff.generate(engine, 8, tmp_path / "out", nfe=4, format="npz", ray=where)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "timed out"),
        (b"", "something else than Ray answers there"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "something else than Ray answers there"),
        (bytes((0, 0, 6, 4)), None),  # a frame of settings, as Ray's gRPC server sends
    ],
)
def test_what_listens_and_is_not_ray_is_one_line(
    answer: bytes | None, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pfdiff.engine.bulk.cluster.CONNECT_SECONDS", 0.2 if answer is None else 5)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            line, _ = server.accept()
            with line:
                line.recv(100)
                line.sendall(answer or b"")

        thread = threading.Thread(target=serve)
        if answer is not None:
            thread.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        if said is None:
            check_listening(address)
        else:
            with pytest.raises(pfdiff.InputError, match=f"no Ray cluster at '{address}': {said}; start one with"):
                check_listening(address)
        if answer is not None:
            thread.join()


# What Ray is asked for.
def test_auto_without_a_cluster_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="ray is not installed")

    def none_found(**settings: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.\nPlease specify the one to connect to.")

    monkeypatch.setattr(ray, "init", none_found)
    with pytest.raises(pfdiff.InputError) as caught, connected("auto"):
        pass
    assert str(caught.value) == "no Ray cluster runs here; start one with 'ray start --head', or give local"


@pytest.mark.parametrize(("allowed", "given"), [(64, None), (3, 3)])
def test_ray_counts_the_processors_unless_this_process_has_fewer(
    allowed: int, given: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it also knows a container's limit."""
    ray = pytest.importorskip("ray", reason="ray is not installed")
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(allowed)), raising=False)
    asked: dict[str, object] = {}
    monkeypatch.setattr(ray, "init", lambda **settings: asked.update(settings))
    with connected("local"):
        pass
    assert asked.get("num_cpus") == given


@pytest.mark.parametrize(
    ("version", "safe"), [("2.58.9", False), ("2.9.0", False), ("2.59.0", True), ("3.0.0.dev0", True)]
)
def test_a_local_cluster_asks_for_a_token(monkeypatch: pytest.MonkeyPatch, version: str, safe: bool) -> None:
    """It listens on all addresses, and whoever may use it may run code as this user."""
    ray = pytest.importorskip("ray", reason="ray is not installed")
    started: list[object] = []
    monkeypatch.setattr(ray, "init", lambda **settings: started.append(settings))
    monkeypatch.setattr(ray, "__version__", version)
    if safe:
        with connected("local"):
            pass
    else:
        with pytest.raises(pfdiff.InputError, match=f"Ray {version} .* anybody on the network"), connected("local"):
            pass
    assert len(started) == safe
