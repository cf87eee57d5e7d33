"""`pfdiff serve` as a process of its own: what it prints, refuses, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

import pfdiff
from pfdiff.cli import main

from ..small.engine import write_engine
from ..small.serving import Answer, Client

ROOT = Path(next(iter(pfdiff.__path__)))


@contextmanager
def process(*options: str, **variables: str) -> Iterator[tuple[subprocess.Popen[str], Client]]:
    """The command on a free port, when it says that it answers."""
    command = [sys.executable, "-m", "pfdiff", "serve", "--port", "0", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent), **variables}
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT.parent
    )
    assert running.stdout is not None
    assert running.stderr is not None
    with running, running.stdout, running.stderr:
        try:
            found = re.search(r":(\d+)$", running.stdout.readline().strip())
            assert found, running.stderr.read()
            with closing(Client(int(found[1]))) as client:
                yield running, client
        finally:
            running.kill()


def test_sigterm_lets_everybody_finish(tmp_path: Path) -> None:
    """16 requests stand in the queue for two seconds when the signal comes; each gets its own answer."""
    engine = write_engine(tmp_path / "small.engine", batch=(1, 64)).path
    options = ("--backend", "onnxruntime", "--device", "cpu", "--threads", "1", "--max-wait-ms", "2000")
    with process(str(engine), *options) as (running, client):
        found: dict[int, Answer] = {}

        def ask(seed: int) -> None:
            found[seed] = client.samples(seeds=[seed], nfe=4)

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(16)]
        for thread in threads:
            thread.start()
        while 'queue_samples{engine="small"} 16.0' not in client("/metrics").body.decode():
            pass
        running.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert running.wait(30) in (0, -signal.SIGTERM)
        assert running.stderr is not None
        assert "Traceback" not in running.stderr.read()
    with pfdiff.load(engine, "cpu", "onnxruntime", threads=1) as loaded:
        expected = loaded.sample(seeds=range(16), nfe=4)
    for seed, answer in found.items():
        assert answer.status == 200
        assert abs(answer.json["samples"][0]["sample"][0][0][0] - float(expected[seed, 0, 0, 0])) < 1e-5


def test_an_open_door_is_announced_and_a_key_shuts_it(tmp_path: Path) -> None:
    engine = write_engine(tmp_path / "small.engine").path
    options = (str(engine), "--backend", "onnxruntime", "--host", "0.0.0.0")
    with process(*options) as (running, client):
        assert client("/v1/engines").status == 200
        running.terminate()
        assert running.stderr is not None
        assert "0.0.0.0 can be reached by others and there is no --api-key" in running.stderr.read()
    with process(*options, PFDIFF_API_KEY="s3cret") as (running, client):
        assert client("/v1/engines").status == 401
        running.terminate()
        assert running.stderr is not None
        assert running.stderr.read() == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["missing.engine", "--port", "0"], "engine 'missing.engine' does not exist"),
        (["a.engine", "b/a.engine"], "two engines are called 'a'"),
        (["a.engine", "--queue", "0"], "got '0', expected a positive integer"),
        (["a.engine", "--max-wait-ms", "-1"], "a wait of -1 ms, expected 0 to 10000"),
        (["a.engine", "--host", "256.1.1.1"], "cannot listen on 256.1.1.1 port 8000"),
        (["a.engine", "--port", "70000"], "cannot listen on 127.0.0.1 port 70000"),
        (["a.engine", "--api-key", ""], "the API key is empty"),
        (["a.engine", "--replicas", "2"], "--replicas 2 without --ray"),
        (["a.engine", "--ray", "nowhere"], "Ray"),
        ([], "ENGINE"),
    ],
)
def test_bad_input_is_one_line(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_engine(tmp_path / "a.engine")
    assert main(["serve", *options]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
