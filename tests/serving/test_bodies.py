"""Bodies that nobody would write: every answer is 200 or says in one line what does not fit, and the server lives.

PFDIFF_BODIES says how many, PFDIFF_BODIES_RECORD a file for what was answered. bench/results/serve_bodies.json is the
record of 5,000.
"""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfdiff.bench.measuring.machine import describe

from ..small.engine import write_engine
from ..small.serving import NPZ, Answer, Client, TextEngine, serving

BODIES = int(os.environ.get("PFDIFF_BODIES", "400"))
QUICK = settings(
    max_examples=BODIES // 2,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
RECORD = os.environ.get("PFDIFF_BODIES_RECORD")
ANSWERS: Counter[tuple[str, int]] = Counter()  # by kind of body and status
FINE = {"engine": "small", "seeds": [1], "nfe": 4, "format": "npz"}

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
numbers = st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from([0, 1, 9, 10, "one", True])
fields = {
    "engine": st.sampled_from(["small", "text", "../small", ""]) | anything,
    "seeds": st.lists(st.integers(-1, 2**64), max_size=5) | anything,
    "nfe": st.sampled_from([4, 6, 8]) | anything,
    "sampler": st.sampled_from(["engine", "ddim", "pfdiff", "heun"]) | anything,
    "format": st.sampled_from(["json", "png", "npz"]) | anything,
    "prompt": st.text(max_size=40) | anything,
    "conditions": st.fixed_dictionaries(
        {},
        optional={"label": numbers | anything, "shift": st.lists(numbers, max_size=3) | anything, "guidance": numbers},
    )
    | anything,
}
near = st.fixed_dictionaries({}, optional=fields).map(lambda given: {**FINE, **given})
bodies = st.one_of(
    near.map(lambda body: json.dumps(body).encode()),
    anything.map(lambda body: json.dumps(body).encode()),
    st.binary(max_size=200),
)
dtypes = st.sampled_from(["i8", "u8", "f4", "f8", "f2", "c8", "U3", "?", "M8[s]", "i1"])


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    engine = write_engine(tmp_path_factory.mktemp("engines") / "small.engine", batch=(1, 4)).path
    with serving(small=engine, text=TextEngine) as served:
        yield served


@pytest.fixture(scope="module")
def expected(client: Client) -> bytes:
    return client("/v1/samples", FINE).body


def check(kind: str, answer: Answer) -> None:
    ANSWERS[kind, answer.status] += 1
    assert answer.status in (200, 400, 404, 413, 415, 422), answer.body[:500]
    assert b"Traceback" not in answer.body
    assert b'File "' not in answer.body
    if answer.status != 200:
        message = answer.error
        assert message
        assert "\n" not in message
        assert len(message) < 1000


@QUICK
@given(raw=bodies, path=st.sampled_from(["/v1/samples", "/v1/images/generations"]))
def test_json(client: Client, raw: bytes, path: str) -> None:
    check(f"json {path}", client(path, raw))


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    """An .npz of arrays of any dtype and shape, in part damaged."""
    file = io.BytesIO()
    shapes = st.lists(st.integers(0, 4), max_size=3)
    arrays = {
        name: np.zeros(draw(shapes), draw(dtypes))
        for name in draw(st.lists(st.sampled_from(["seeds", "nfe", "label", "shift", "x/../y"]), unique=True))
    }
    np.savez(file, **{"seeds": np.arange(draw(st.integers(0, 3))), **arrays})
    raw = bytearray(file.getvalue())
    for _ in range(draw(st.integers(0, 2))):
        raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
    return bytes(raw)


@QUICK
@given(
    raw=archives(), query=st.sampled_from(["engine=small&nfe=4", "engine=small", "nfe=x", "path=/etc", "format=png"])
)
def test_npz(client: Client, raw: bytes, query: str) -> None:
    check("npz /v1/samples", client(f"/v1/samples?{query}", raw, NPZ))


def test_the_server_has_lived_through_all_of_it(client: Client, expected: bytes) -> None:
    assert client("/healthz").json == {"status": "ok"}
    assert client("/v1/samples", FINE).body == expected
    if RECORD:
        record(Path(RECORD))


def record(path: Path) -> None:
    """How many bodies of each kind got which status."""
    kinds = sorted({kind for kind, _ in ANSWERS})
    statuses = {kind: {str(status): n for (of, status), n in sorted(ANSWERS.items()) if of == kind} for kind in kinds}
    held = {"bodies": sum(ANSWERS.values()), "statuses": statuses, "machine": describe()}
    path.write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")


def test_every_documented_operation_exists(client: Client) -> Any:
    schema = client("/openapi.json").json
    for path, methods in schema["paths"].items():
        for method in methods:
            status = client(path, {} if method == "post" else None, method=method.upper()).status
            assert status in (200, 400, 415), path  # 415: what takes forms alone
