"""What goes wrong in a batch stays with who caused it: poisoned orders, broken engines, clients that leave."""

from __future__ import annotations

import base64
import http.client
import io
import json
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pfdiff.engine.errors import BackendError, InputError
from pfdiff.serving.guard import Access
from pfdiff.serving.limits import Limits

from ..small.serving import Answer, Client, TextEngine, serving

Fail = Callable[[Any], None]


class Engines:
    """Opens text engines, and remembers them; `fail` decides for each call, `at_open` for each opening."""

    def __init__(self, fail: Fail = lambda given: None, at_open: Callable[[int], None] = lambda number: None) -> None:
        self.made: list[TextEngine] = []
        self._fail = fail
        self._at_open = at_open

    def __call__(self) -> TextEngine:
        self._at_open(len(self.made))
        self.made.append(TextEngine(fail=self._fail))
        return self.made[-1]

    @property
    def calls(self) -> list[tuple[int, ...]]:
        """Seeds of every call after the warm-up, which is two of each bucket."""
        return [call for engine in self.made for call in engine.calls][4:]


def ask(client: Client, seed: int, prompt: str = "a cat", **more: Any) -> Answer:
    return client.samples(seeds=[seed], nfe=8, prompt=prompt, **more)


def pixels(answer: Answer) -> np.ndarray:
    assert answer.status == 200, answer.body
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer.json["samples"][0]["png"]))))


def together(calls: dict[int, Callable[[], Answer]]) -> dict[int, Answer]:
    """All calls at once, each in a thread."""
    found: dict[int, Answer] = {}
    threads = [threading.Thread(target=lambda k=key, c=call: found.__setitem__(k, c())) for key, call in calls.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


class Gate:
    """Holds the engine inside a call until it is opened."""

    def __init__(self) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()

    def __call__(self, given: Any) -> None:
        if given["prompt"] == "hold":
            self.entered.set()
            assert self.opened.wait(30)


def test_a_poisoned_order_spoils_nobodys_batch() -> None:
    def not_finite(given: Any) -> None:
        if "poison" in given["prompt"]:
            raise BackendError("the network's output is not finite at evaluation 1 of 8, time 999; check the network")

    engines = Engines(not_finite)
    with serving(Limits(max_wait_ms=5000), text=engines) as client:
        prompts = {0: "a cat", 1: "poison", 2: "a dog", 3: "a fox"}
        found = together({seed: lambda s=seed, p=prompt: ask(client, s, p) for seed, prompt in prompts.items()})
    assert found[1].status == 422
    assert "not finite" in found[1].error
    for seed in (0, 2, 3):
        assert np.array_equal(pixels(found[seed]), TextEngine.drawn(prompts[seed], "", seed, nfe=8))
    assert len(engines.calls[0]) == 4  # they did stand in one batch
    assert len(engines.made) == 1


def test_words_of_a_batch_stay_with_their_seeds() -> None:
    engines = Engines()
    with serving(Limits(max_wait_ms=5000), text=engines) as client:
        found = together(
            {
                0: lambda: ask(client, 0, "a cat", negative_prompt="fog"),
                1: lambda: ask(client, 1, "a dog", conditions={"guidance": 7.5}),
                2: lambda: client.samples(seeds=[2, 3], nfe=8, prompt="a fox"),
            }
        )
    assert [len(call) for call in engines.calls] == [4]
    assert np.array_equal(pixels(found[0]), TextEngine.drawn("a cat", "fog", 0, nfe=8))
    assert np.array_equal(pixels(found[1]), TextEngine.drawn("a dog", "", 1, 7.5, nfe=8))
    assert np.array_equal(pixels(found[2]), TextEngine.drawn("a fox", "", 2, nfe=8))


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (RuntimeError("CUDA error: /build/secret.cpp:12"), 500, "sampling failed; the server's log says why"),
        (InputError("prompt has 9 words, expected 3"), 400, "prompt has 9 words"),
    ],
)
def test_an_error_names_no_insides(
    error: Exception, status: int, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(given: Any) -> None:
        if given["prompt"] == "bad":
            raise error

    engines = Engines(fail)
    with serving(text=engines) as client:
        answer = ask(client, 0, "bad")
        assert (answer.status, message in answer.error) == (status, True)
        for word in (b"Traceback", b"secret", b".py"):
            assert word not in answer.body
        assert ask(client, 1).status == 200
    assert len(engines.made) == 1  # a trial sample passed: the engine is not what is broken
    logged = [record.getMessage() for record in caplog.records if record.name == "pfdiff.serving"]
    assert (
        any("CUDA error" in line for line in logged) if status == 500 else not logged
    )  # a client's mistake is no news


def test_a_broken_engine_is_loaded_again_once() -> None:
    broken: set[int] = set()
    engines: Engines

    def fail(given: Any) -> None:
        if given["prompt"] == "crash":
            broken.add(len(engines.made))
        if len(engines.made) in broken:
            raise RuntimeError("the library is gone")

    engines = Engines(fail)
    with serving(text=engines) as client:
        assert ask(client, 0, "crash").status == 500
        assert np.array_equal(pixels(ask(client, 1)), TextEngine.drawn("a cat", "", 1, nfe=8))
        assert [one.closed for one in engines.made] == [True, False]
        assert client("/healthz").status == 200
        assert 'pfdiff_engine_reloads_total{engine="text"} 1.0' in client("/metrics").body.decode()


def test_an_engine_that_cannot_be_loaded_again_is_down_and_says_so() -> None:
    alive = threading.Event()
    alive.set()

    def fail(given: Any) -> None:
        if given["prompt"] == "crash":
            alive.clear()
        if not alive.is_set():
            raise RuntimeError("the library is gone")

    with serving(text=Engines(fail), other=Engines()) as client:
        assert ask(client, 0, "crash", engine="text").status == 500
        wait_until(lambda: client("/healthz").status == 503)
        assert "loaded anew" in client("/healthz").json["text"]
        answer = ask(client, 1, engine="text")
        assert (answer.status, "is down" in answer.error) == (503, True)
        assert ask(client, 1, engine="other").status == 200


def test_a_client_that_left_is_not_sampled_for() -> None:
    gate = Gate()
    engines = Engines(gate)
    with serving(text=engines) as client:
        holding = threading.Thread(target=lambda: ask(client, 0, "hold"))
        holding.start()
        assert gate.entered.wait(30)
        leaving = http.client.HTTPConnection("127.0.0.1", client.port, timeout=30)
        body = json.dumps({"seeds": [77], "nfe": 8, "prompt": "a cat"})
        leaving.request("POST", "/v1/samples", body, {"Content-Type": "application/json"})
        wait_until(lambda: 'pfdiff_queue_samples{engine="text"} 1.0' in client("/metrics").body.decode())
        leaving.close()
        wait_until(lambda: 'pfdiff_queue_samples{engine="text"} 0.0' in client("/metrics").body.decode())
        gate.opened.set()
        holding.join()
        assert ask(client, 5).status == 200
        assert 'status="499"' in client("/metrics").body.decode()
    assert engines.calls == [(0,), (5,)]


def test_a_full_queue_answers_429_with_retry_after_and_forgets_nobody() -> None:
    gate = Gate()
    with serving(Limits(queue=3, max_wait_ms=1), text=Engines(gate)) as client:
        found: dict[int, Answer] = {}
        holding = threading.Thread(target=lambda: found.__setitem__(0, ask(client, 0, "hold")))
        holding.start()
        assert gate.entered.wait(30)
        calls = {seed: lambda s=seed: found.__setitem__(s, ask(client, s)) for seed in (1, 2, 3)}
        waiting = [threading.Thread(target=call) for call in calls.values()]
        for thread in waiting:
            thread.start()
        wait_until(lambda: 'pfdiff_queue_samples{engine="text"} 3.0' in client("/metrics").body.decode())
        refused = ask(client, 4)
        assert refused.status == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json["error"]["type"] == "rate_limit_error"
        assert ask(client, 4, conditions={"size": 3}).status == 429  # before conditions are looked at
        gate.opened.set()
        for thread in (holding, *waiting):
            thread.join()
    for seed, answer in found.items():
        assert np.array_equal(pixels(answer), TextEngine.drawn("a cat" if seed else "hold", "", seed, nfe=8))


def test_without_its_key_nobody_samples() -> None:
    with serving(access=Access("s3cret"), text=Engines()) as client:
        refused = ask(client, 0)
        assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
        for path in ("/", "/healthz", "/page.js"):
            assert client(path).status == 200
        for path in ("/metrics", "/v1/engines"):
            assert client(path).status == 401
        for wrong in ("Bearer wrong", "s3cret", "Basic s3cret", "Bearer "):
            with closing(Client(client.port, {"Authorization": wrong})) as stranger:
                assert stranger("/v1/engines").status == 401
        with closing(Client(client.port, {"Authorization": "Bearer s3cret"})) as keyed:
            assert ask(keyed, 0).status == 200


def wait_until(true: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
