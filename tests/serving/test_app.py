"""The application over a real engine on a real socket, in this process and on Ray: the same tests for both."""

from __future__ import annotations

import base64
import io
import re
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pfdiff
from pfdiff.engine.contract.contract import Condition, Contract

pytest.importorskip("fastapi", reason="pip install 'pfdiff[serve]'")

from ..small.engine import write_engine
from ..small.serving import NPZ, Client, serving, write_pictures
from .ray_serve import on_ray

CONDITIONS = (
    Condition("label", "int64", default=0, low=0, high=9, labels=("zero", "one", "two")),
    Condition("shift", "float32", (3, 1), default=0.0),
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples [2, 3, 5], which are no pictures."""
    return write_engine(tmp_path_factory.mktemp("engines") / "small.engine", batch=(1, 4)).path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of one channel, 8 x 6, with three classes."""
    return write_pictures(tmp_path_factory.mktemp("engines") / "shade.engine")


@pytest.fixture(scope="module", params=["here", "ray"])
def served(request: pytest.FixtureRequest, engine: Path, pictures: Path) -> Iterator[Client]:
    if request.param == "here":
        with serving(small=engine, shade=pictures) as client:
            yield client
    else:
        with on_ray(engine, pictures) as client:
            yield client


def drawn(path: Path, **given: Any) -> np.ndarray:
    with pfdiff.load(path, "cpu", "onnxruntime", threads=1) as loaded:
        return loaded.sample(**given).numpy()


def arrays(raw: bytes) -> dict[str, np.ndarray]:
    return dict(np.load(io.BytesIO(raw), allow_pickle=False))


def test_npz_is_the_engines_own_sample_bit_for_bit(served: Client, engine: Path) -> None:
    shift = np.linspace(-1, 1, 3, dtype=np.float32).reshape(3, 1)
    body = {"engine": "small", "seeds": [3, 2**64 - 1], "nfe": 4, "format": "npz"}
    answer = served.samples(**body, conditions={"label": ["two", "one"], "shift": shift.tolist()})
    assert answer.status == 200, answer.body
    found = arrays(answer.body)
    expected = drawn(engine, seeds=[3, 2**64 - 1], nfe=4, label=[2, 1], shift=shift)
    assert np.array_equal(found["samples"], expected)
    assert found["seeds"].tolist() == [3, 2**64 - 1]
    assert found["label"].tolist() == [2, 1]


def test_an_npz_body_means_the_same(served: Client) -> None:
    shift = np.arange(6, dtype=np.float32).reshape(2, 3, 1)
    file = io.BytesIO()
    np.savez(file, seeds=np.array([5, 6]), nfe=6, shift=shift)
    by_npz = served("/v1/samples?engine=small", file.getvalue(), NPZ)
    body = {"engine": "small", "seeds": [5, 6], "nfe": 6, "conditions": {"shift": shift.tolist()}, "format": "npz"}
    assert by_npz.status == 200, by_npz.body
    assert np.array_equal(arrays(by_npz.body)["samples"], arrays(served.samples(**body).body)["samples"])


def test_json_holds_numbers_or_pngs(served: Client, engine: Path, pictures: Path) -> None:
    numbers = served.samples(engine="small", seeds=[1], nfe=4).json["samples"]
    assert np.array_equal(np.float32(numbers[0]["sample"]), drawn(engine, seeds=[1], nfe=4)[0])
    answer = served.samples(engine="shade", seeds=[1, 2], nfe=8, conditions={"label": "bag"})
    with pfdiff.load(pictures, "cpu", "onnxruntime", threads=1) as loaded:
        expected = loaded.images(seeds=[1, 2], nfe=8, label="bag").numpy()
    for one, image in zip(answer.json["samples"], expected, strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(one["png"]))))
        assert np.array_equal(pixels, image[..., 0])
    timing = answer.json["timing"]
    assert timing["sample_ms"] > 0
    assert "sample;dur=" in answer.headers["server-timing"]


def test_png_is_one_picture_or_a_sheet(served: Client) -> None:
    one = served.samples(engine="shade", seeds=[4], nfe=5, format="png")
    assert one.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(one.body)).size == (6, 8)
    assert Image.open(io.BytesIO(served.samples(engine="shade", seeds=[4, 5], nfe=5, format="png").body)).width > 10
    assert "no pictures" in served.samples(engine="small", seeds=[4], nfe=4, format="png").error


def test_ddim_and_pfdiff_stand_beside_the_engines_own(served: Client, engine: Path) -> None:
    contract = Contract(name="small", shape=(2, 3, 5), schedule="linear:1000", prediction="eps", conditions=CONDITIONS)
    listed = served("/v1/engines").json["engines"][0]
    assert listed["contract"] == contract.to_dict()
    assert listed["nfe"] == [4, 6]
    assert listed["batch"] == [1, 4]
    ddim = listed["samplers"]["ddim"]["20"]
    assert (ddim["solver"], ddim["grid"], ddim["basis"], ddim["tuned"]) == ("ddim", "logsnr", "eps", False)
    assert listed["samplers"]["pfdiff"]["6"]["digest"] == listed["samplers"]["engine"]["6"]["digest"] != ddim["digest"]
    found = arrays(served.samples(engine="small", seeds=[9], nfe=20, sampler="ddim", format="npz").body)["samples"]
    program = pfdiff.compile("ddim", "linear:1000", 20, "logsnr", "eps")
    noise = pfdiff.noise([9], (2, 3, 5)).numpy().astype(np.float64)
    exact = program.evaluate(lambda x, t: np.tanh(0.7 * x) + 0.001 * t, noise)
    assert np.abs(found - exact).max() < 1e-4 * np.abs(exact).max()


def test_many_clients_get_their_own_samples(served: Client, engine: Path) -> None:
    """Each seed as it is alone in a bucket of either size; the buckets differ by rounding."""
    expected = drawn(engine, seeds=range(40), nfe=4, label=[seed % 3 for seed in range(40)])
    found: dict[int, np.ndarray] = {}

    def one_client(seeds: range) -> None:
        for seed in seeds:
            conditions = {"label": seed % 3}
            answer = served.samples(engine="small", seeds=[seed], nfe=4, conditions=conditions, format="npz")
            found[seed] = arrays(answer.body)["samples"][0]

    threads = [threading.Thread(target=one_client, args=(range(first, 40, 8),)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(40):
        assert np.abs(found[seed] - expected[seed]).max() <= 1e-6 * np.abs(expected).max(), seed


def test_more_than_the_largest_bucket_is_cut(served: Client, engine: Path) -> None:
    found = arrays(served.samples(engine="small", seeds=list(range(11)), nfe=4, format="npz").body)["samples"]
    expected = drawn(engine, seeds=range(11), nfe=4)
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"seeds": [0], "nfe": 4}, 400, "the engine is not named; give engine as one of small, shade"),
        ({"engine": "/etc/passwd", "seeds": [0], "nfe": 4}, 404, "no engine '/etc/passwd'"),
        ({"engine": "small", "seeds": [0]}, 400, "nfe is missing; this engine has 4, 6"),
        ({"engine": "small", "seeds": [0], "nfe": 5}, 400, "nfe=5; this engine has 4, 6"),
        ({"engine": "small", "seeds": [], "nfe": 4}, 400, "seeds: none given"),
        ({"engine": "small", "seeds": [-1], "nfe": 4}, 400, "seed -1, expected an integer in 0"),
        ({"engine": "small", "seeds": [2**64], "nfe": 4}, 400, "expected an integer in 0 .. 2"),
        ({"engine": "small", "seeds": [1.5], "nfe": 4}, 400, "seeds.0"),
        ({"engine": "small", "seeds": list(range(65)), "nfe": 4}, 400, "at most 64 at once"),
        ({"engine": "small", "seeds": [0], "nfe": 4, "sampler": "heun"}, 400, "sampler"),
        (
            {"engine": "small", "seeds": [0], "nfe": 4, "out": "a.png"},
            400,
            "unknown field 'out'; expected engine, seeds",
        ),
        ({"engine": "small", "seeds": [0], "nfe": 4, "prompt": "a cat"}, 400, "takes no prompt; it takes label, shift"),
        ({"engine": "small", "sedes": [0], "seeds": [0]}, 400, "did you mean seeds?"),
        ({"engine": "small", "seeds": [0], "nfe": 4, "conditions": {"size": 3}}, 400, "unknown condition 'size'"),
        ({"engine": "small", "seeds": [0], "nfe": 4, "conditions": {"label": True}}, 400, "got true or false"),
        ({"engine": "small", "seeds": [0], "nfe": 4, "conditions": {"label": 10}}, 400, "expected values in 0..9"),
        ({"engine": "small", "seeds": [0], "nfe": 4, "conditions": {"label": "cat"}}, 400, "unknown label 'cat'"),
        ({"engine": "small", "seeds": [0], "nfe": 4, "conditions": {"label": {"a": 1}}}, 400, "condition 'label'"),
        (
            {"engine": "small", "seeds": [0], "nfe": 4, "conditions": {"shift": [[1], [2, 3]]}},
            400,
            "lists of unequal lengths",
        ),
        ({"engine": "small", "seeds": [0], "nfe": 4, "conditions": {"shift": [1, 2]}}, 400, "got shape [2]"),
        ({"engine": "small", "seeds": [0], "nfe": 4, "conditions": {"label": 1.5}}, 400, "got fractions"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(served: Client, body: Any, status: int, message: str) -> None:
    answer = served("/v1/samples", body)
    assert (answer.status, message in answer.error) == (status, True), answer.body


@pytest.mark.parametrize(
    ("raw", "headers", "status"),
    [
        (b"{", None, 400),
        (b"[" * 60_000, None, 400),
        (b'{"engine":"small","nfe":4,"nfe":6,"seeds":[0]}', None, 400),
        (b'{"engine":"small","nfe":4,"seeds":[0],"conditions":{"label":1,"label":2}}', None, 400),
        (b'{"engine":"small","nfe":4,"seeds":[0],"conditions":{"label":' + b"9" * 5000 + b"}}", None, 400),
        (b'{"engine":"small","nfe":4,"seeds":[' + b"9" * 5000 + b"]}", None, 400),
        (b'{"engine":"small","nfe":4,"seeds":[0],"conditions":{"shift":NaN}}', None, 400),
        (b" " * (10 << 20), None, 413),
        (b"{}", {"Content-Type": "text/plain"}, 415),
        (b"PK\x03\x04 no zip", NPZ, 400),
    ],
)
def test_bodies_that_are_none(served: Client, raw: bytes, headers: Any, status: int) -> None:
    answer = served("/v1/samples", raw, headers or {"Content-Type": "application/json"})
    assert answer.status == status, answer.body[:300]
    assert b"Traceback" not in answer.body


def test_nothing_is_unpickled_and_no_bomb_is_unpacked(served: Client) -> None:
    pickled = io.BytesIO()
    np.savez(pickled, seeds=np.array([0]), label=np.array([{"a": 1}], dtype=object))
    refused = served("/v1/samples?engine=small&nfe=4", pickled.getvalue(), NPZ)
    assert (refused.status, "array 'label': got object, expected real numbers" in refused.error) == (400, True)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("seeds.npy", bytes(64 << 20))
    assert len(bomb.getvalue()) < 70_000
    assert served("/v1/samples?engine=small&nfe=4", bomb.getvalue()[:65_000], NPZ).status == 400
    fractions = io.BytesIO()
    np.savez(fractions, seeds=np.arange(2.0))
    refused = served("/v1/samples?engine=small&nfe=4", fractions.getvalue(), NPZ)
    assert (refused.status, "seeds of float64 [2], expected integers [n]" in refused.error) == (400, True)
    lying = io.BytesIO()
    np.savez(lying, seeds=np.array([0]))
    claims = lying.getvalue().replace(b"(1,)", b"(9,)")
    assert served("/v1/samples?engine=small&nfe=4", claims, NPZ).status == 400


def test_no_text_no_prompt(served: Client) -> None:
    answer = served("/v1/images/generations", {"prompt": "a lighthouse", "model": "shade"})
    assert (answer.status, "takes no prompt" in answer.error) == (400, True)
    assert [one["id"] for one in served("/v1/models").json["data"]] == ["small", "shade"]


def test_what_watchers_see(served: Client) -> None:
    assert served("/healthz").json == {"status": "ok"}
    served.samples(engine="small", seeds=[0, 1], nfe=4)
    text = served("/metrics").body.decode()
    for name in ("pfdiff_requests_total", "pfdiff_queue_samples", "pfdiff_batch_fill_count", "pfdiff_wait_seconds_sum"):
        assert name in text
    assert 'pfdiff_engine_up{engine="small"} 1.0' in text
    assert 'pfdiff_requests_total{route="/v1/samples",status="200"}' in text
    assert re.search(r"^pfdiff_requests_running [1-9]", text, re.M)  # at least this one
    assert served("/v1/samples").status == 405
    assert served("/v1/models/none").status == 404
    text = served("/metrics").body.decode()
    assert 'route="/v1/samples",status="405"' in text
    assert 'route="other",status="404"' in text
    assert "models/none" not in text


def test_the_page_needs_no_foreign_host(served: Client) -> None:
    for path in ("/", "/page.css", "/page.js", "/controls.js", "/picture.js", "/api", "/api.js"):
        answer = served(path)
        assert answer.status == 200, path
        text = answer.body.decode()
        assert "http://" not in text, path
        assert "https://" not in text, path
        assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "/v1/samples" in served("/openapi.json").json["paths"]
    assert served("/page.css/../../engine/api.py").status == 404
    assert served("/nowhere").error.startswith("GET /nowhere")


def test_a_name_that_is_not_loopbacks_is_refused(served: Client) -> None:
    connection = served.held.connection
    connection.putrequest("GET", "/v1/engines", skip_host=True)
    connection.putheader("Host", "evil.example:8000")
    connection.endheaders()
    answer = connection.getresponse()
    assert (answer.status, b"loopback" in answer.read()) == (421, True)
