"""POST /v1/images/edits: pictures to start from and masks, as OpenAI's client and as plain forms send them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import pfdiff
from pfdiff.engine.api import Engine
from pfdiff.serving.limits import FORM_BYTES, MOST_FORM_BYTES, form_bytes
from pfdiff.serving.orders import NotDrawnError
from pfdiff.serving.routes.uploads import picture_of

from ..small.serving import Answer, Client, TextEngine, serving, write_pictures

pytest.importorskip("python_multipart", reason="pip install 'pfdiff[serve]'")
BOUNDARY = "----of-this-test"
RNG = np.random.default_rng(4)
SHIRT = RNG.integers(0, 256, (8, 6), np.uint8)
MASK = (np.arange(48).reshape(8, 6) % 3 == 0).astype(np.uint8) * 255


def png(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def form(files: dict[str, bytes], **fields: Any) -> bytes:
    """A multipart body, names of files like those that want to be paths."""
    parts = [f'name="{name}"\r\n\r\n{value}'.encode() for name, value in fields.items()]
    parts += [f'name="{name}"; filename="../../{name}"\r\n\r\n'.encode() + raw for name, raw in files.items()]
    head = f"--{BOUNDARY}\r\nContent-Disposition: form-data; ".encode()
    return b"".join(head + part + b"\r\n" for part in parts) + f"--{BOUNDARY}--\r\n".encode()


def post(client: Client, body: bytes, **headers: str) -> Answer:
    return client("/v1/images/edits", body, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}", **headers})


def drawn(answer: Answer) -> np.ndarray:
    """uint8 [n, H, W, C]."""
    assert answer.status == 200, answer.body
    pngs = [base64.b64decode(one["b64_json"]) for one in answer.json["data"]]
    return np.stack([np.atleast_3d(np.asarray(Image.open(io.BytesIO(one)))) for one in pngs])


@pytest.fixture(scope="module")
def shade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("edits") / "shade.engine")


@pytest.fixture(scope="module")
def client(shade: Path) -> Iterator[Client]:
    with serving(shade=shade, text=TextEngine) as served:
        yield served


@pytest.fixture(scope="module")
def engine(shade: Path) -> Iterator[Engine]:
    with pfdiff.load(shade, "cpu", "onnxruntime", threads=1) as loaded:
        yield loaded


def test_the_same_pixels_as_the_engine(client: Client, engine: Engine) -> None:
    given = {"model": "shade", "n": 3, "seed": 5, "nfe": 8}
    expected = engine.images(seeds=[5, 6, 7], nfe=8, image=SHIRT[..., None], strength=0.6).numpy()
    assert np.array_equal(drawn(post(client, form({"image": png(SHIRT)}, strength=0.6, **given))), expected)
    part = engine.images(seeds=[5, 6, 7], nfe=8, image=SHIRT[..., None], strength=0.6, strength_counts="whole").numpy()
    body = form({"image": png(SHIRT)}, strength=0.6, strength_counts="whole", **given)
    assert np.array_equal(drawn(post(client, body)), part)
    masked = engine.images(seeds=[5, 6, 7], nfe=8, image=SHIRT[..., None], mask=MASK).numpy()
    assert np.array_equal(drawn(post(client, form({"image": png(SHIRT), "mask": png(MASK)}, **given))), masked)
    assert np.array_equal(masked[:, MASK == 0, 0], np.broadcast_to(SHIRT[MASK == 0], (3, (MASK == 0).sum())))
    assert len({one.tobytes() for one in (expected, part, masked)}) == 3


def test_a_picture_on_its_side_is_turned() -> None:
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[0] = 255
    exif, raw = Image.Exif(), io.BytesIO()
    exif[0x112] = 6
    Image.fromarray(pixels).save(raw, "PNG", exif=exif)
    np.testing.assert_array_equal(np.asarray(picture_of(raw.getvalue(), "image", (3, 2, 3))), np.rot90(pixels, -1))
    with pytest.raises(NotDrawnError, match="got 2x3 pixels, this engine draws 3x2"):
        picture_of(raw.getvalue(), "image", (2, 3, 3))


def test_what_is_transparent_is_drawn_anew(client: Client, engine: Engine) -> None:
    expected = engine.images(seeds=[1], nfe=5, image=SHIRT[..., None], mask=MASK).numpy()
    white, alpha = np.full((8, 6), 255, np.uint8), 255 - MASK
    see_through = np.stack([white, alpha], 2)
    given = {"model": "shade", "seed": 1, "nfe": 5}
    body = form({"image": png(SHIRT), "mask": png(see_through)}, **given)
    assert np.array_equal(drawn(post(client, body)), expected)
    own = np.stack([SHIRT, alpha], 2)  # the picture's own transparency, without a mask
    assert np.array_equal(drawn(post(client, form({"image": png(own)}, **given))), expected)
    opaque = np.stack([SHIRT, white], 2)
    plain = engine.images(seeds=[1], nfe=5, image=SHIRT[..., None]).numpy()
    assert np.array_equal(drawn(post(client, form({"image": png(opaque)}, **given))), plain)


def test_samplers_and_conditions_as_in_samples(client: Client, engine: Engine) -> None:
    """Each sampler with its own program, although all of them start from pictures on one network."""
    given = {"model": "shade", "seed": 2, "n": 2, "nfe": 8, "strength": 0.5, "conditions": '{"label": ["bag", "boot"]}'}
    expected = engine.images(seeds=[2, 3], nfe=8, image=SHIRT[..., None], strength=0.5, label=[1, 2]).numpy()
    assert np.array_equal(drawn(post(client, form({"image": png(SHIRT)}, **given))), expected)
    own = engine.programs[8]
    ddim = pfdiff.compile("ddim", own.schedule, 8, own.grid, own.basis)
    beside = engine.with_programs({8: ddim}).images(
        seeds=[2, 3], nfe=8, image=SHIRT[..., None], strength=0.5, label=[1, 2]
    )
    assert np.array_equal(drawn(post(client, form({"image": png(SHIRT)}, sampler="ddim", **given))), beside.numpy())
    assert not np.array_equal(beside.numpy(), expected)


def test_pictures_of_several_clients_share_a_batch(client: Client, engine: Engine) -> None:
    """Each gets its own."""
    shirts = [RNG.integers(0, 256, (8, 6), np.uint8) for _ in range(4)]
    bodies = [form({"image": png(one)}, model="shade", seed=n, nfe=5, strength=0.5) for n, one in enumerate(shirts)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda body: post(client, body), bodies))
    for n, (one, answer) in enumerate(zip(shirts, answers, strict=True)):
        alone = engine.images(seeds=[n], nfe=5, image=one[..., None], strength=0.5).numpy()
        assert np.abs(drawn(answer).astype(int) - alone).max() <= 1  # another batch size, to rounding


GOOD = {"image": png(SHIRT)}


@pytest.mark.parametrize(
    ("files", "fields", "says"),
    [
        ({}, {}, "got no file 'image', expected the files image and"),
        ({}, {"image": "day.png"}, "image: got a text, expected a file; with curl: -F 'image=@day.png'"),
        (GOOD, {"mask": "sky.png"}, "mask: got a text, expected a file"),
        ({**GOOD, "other": b"x"}, {}, "got a file 'other'"),
        ({"image": png(SHIRT.T.copy())}, {}, "image: got 8x6 pixels, this engine draws 6x8; resize it first"),
        ({**GOOD, "mask": png(MASK.T.copy())}, {}, "mask: got 8x6 pixels, this engine draws 6x8"),
        ({"image": b"GIF89a"}, {}, "image: this is no PNG, JPEG or WEBP"),
        ({"image": png(SHIRT)[:60]}, {}, "image: this is no PNG, JPEG or WEBP"),
        ({"image": png(SHIRT, "BMP")}, {}, "image: this is no PNG, JPEG or WEBP"),
        (
            {"image": png(SHIRT.astype(np.uint16) * 200)},
            {},
            "image: got pixels of kind I;16, expected 8 bits a channel",
        ),
        (GOOD, {"strength": 0}, "strength: Input should be greater than 0"),
        (GOOD, {"strength": "nan"}, "strength: Input should be"),
        (GOOD, {"strength_counts": "all"}, "strength_counts: Input should be 'part' or 'whole'"),
        (GOOD, {"seed": "many"}, "seed: Input should be a valid integer"),
        (GOOD, {"path": "/etc/passwd"}, "unknown field 'path'; expected model"),
        (GOOD, {"image": "/etc/passwd"}, "image: got several, expected one"),
        (GOOD, {"size": "512x512"}, "size '512x512', this engine draws 6x8"),
        (GOOD, {"prompt": "a boat"}, "engine 'shade' takes no prompt"),
        (GOOD, {"nfe": 5, "strength": 0.1, "strength_counts": "whole"}, "strength 0.1 of 5 evaluations is none"),
        (GOOD, {"conditions": '{"label": 7}'}, "expected values in 0..2"),
        (GOOD, {"conditions": "label"}, "conditions: Invalid JSON"),
        (GOOD, {"conditions": "[1]"}, "conditions: Input should be a valid dictionary"),
        (GOOD, {"sampler": "heun"}, "sampler: Input should be 'engine', 'ddim' or 'pfdiff'"),
        (GOOD, {"model": "text"}, "engine 'text' starts from no picture: it holds no image encoder"),
    ],
)
def test_what_does_not_fit_is_a_bad_request(client: Client, files: Any, fields: Any, says: str) -> None:
    answer = post(client, form(files, **{"model": "shade", **fields}))
    assert answer.status == 400
    assert says in answer.error
    assert "\n" not in answer.error


def test_a_picture_is_not_unpacked_before_its_size_is_known(client: Client) -> None:
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    assert len(bomb.getvalue()) < form_bytes([(8, 6, 1)])
    answer = post(client, form({"image": bomb.getvalue()}, model="shade"))
    assert (answer.status, "20000x20000" in answer.error or "is no PNG" in answer.error) == (400, True)


def test_bodies_are_bounded_and_of_one_kind(client: Client) -> None:
    assert form_bytes([(512, 512, 3), None]) < FORM_BYTES + 2 * 4.1 * 512 * 512
    assert form_bytes([]) == FORM_BYTES
    assert form_bytes([(10_000, 10_000, 3)]) == MOST_FORM_BYTES
    answer = post(client, form({"image": bytes(form_bytes([(8, 8, 3)]))}, model="shade"))
    assert (answer.status, "send a picture of the engine's size" in answer.error) == (413, True)
    answer = client("/v1/images/edits", {"image": "x"})
    assert (answer.status, "expected multipart/form-data" in answer.error) == (415, True)
    answer = post(client, form(GOOD, **{f"f{n}": n for n in range(40)}))
    assert (answer.status, "more than 32 fields" in answer.error) == (400, True)
    answer = client("/v1/images/edits", b"--x", {"Content-Type": "multipart/form-data"})
    assert (answer.status, "names no boundary" in answer.error) == (400, True)
    for cut in (1, 6, 70, 200):
        answer = post(client, form(GOOD, model="shade")[:-cut])
        assert answer.status == (200 if cut == 1 else 400)
    assert "ends early" in answer.error
    for wrong in (b"", b"x" * 100, form(GOOD).replace(b"\r\n\r\n", b"\r\n", 1)):
        assert post(client, wrong).status == 400
    answer = post(client, form(GOOD, model="shade", prompt="x" * 200_000))
    assert answer.status == 413 or "prompt: got 200000 bytes" in answer.error


@settings(max_examples=60, deadline=None, derandomize=True)
@given(where=st.lists(st.integers(0, 10**6), max_size=3), byte=st.integers(0, 255), cut=st.integers(0, 400))
def test_damaged_forms_are_answered(client: Client, where: list[int], byte: int, cut: int) -> None:
    whole = form({**GOOD, "mask": png(MASK)}, model="shade", nfe=5, strength=0.5)
    body = bytearray(whole[: len(whole) - cut])
    for one in where:
        body[one % len(body)] = byte
    answer = post(client, bytes(body))
    assert answer.status in (200, 400, 404), answer.body  # 404: another engine's name
    assert answer.status == 200 or "\n" not in answer.error


def test_a_form_of_a_foreign_page_is_refused(client: Client) -> None:
    body = form(GOOD, model="shade", nfe=5)
    assert post(client, body, Origin="https://example.org").status == 403
    assert post(client, body, Origin="null").status == 403
    assert post(client, body, Origin=f"http://127.0.0.1:{client.port}").status == 200


def test_the_description_names_files_and_fields(client: Client) -> None:
    described = client("/openapi.json").json["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"]
    properties = described["multipart/form-data"]["schema"]["properties"]
    assert {"image", "mask", "prompt", "strength", "n"} <= set(properties)
    listed = {one["name"]: one["takes_image"] for one in client("/v1/engines").json["engines"]}
    assert listed == {"shade": True, "text": False}
    assert json.dumps(described)


def assert_near(found: np.ndarray, expected: np.ndarray) -> None:
    """The server may draw in another batch size, which is the same to rounding: a level here and there."""
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert np.mean(found != expected) < 0.02


def test_openais_client_edits(text_engine: Path) -> None:
    """Prompt, picture and mask of a latent model, the same pixels as in this process."""
    openai = pytest.importorskip("openai", reason="pip install openai")
    shown = RNG.integers(0, 256, (8, 8, 3), np.uint8)
    mask = np.zeros((8, 8, 4), np.uint8)
    mask[:4] = 255  # the upper half is kept
    with (
        serving(sd1=text_engine) as served,
        openai.OpenAI(base_url=f"http://127.0.0.1:{served.port}/v1", api_key="none", max_retries=0) as opened,
        pfdiff.load(text_engine, "cpu", "onnxruntime", threads=1) as loaded,
    ):
        given = {"prompt": "a boat", "image": ("day.png", png(shown)), "n": 2}
        answer = opened.images.edit(**given, extra_body={"seed": 3, "nfe": 5, "strength": 0.7, "guidance": 2.5})
        expected = loaded.images(prompt="a boat", image=shown, seeds=[3, 4], nfe=5, strength=0.7, guidance=2.5)
        found = [np.asarray(Image.open(io.BytesIO(base64.b64decode(one.b64_json)))) for one in answer.data]
        assert_near(np.stack(found), expected.numpy())
        answer = opened.images.edit(**given, mask=("sky.png", png(mask)), extra_body={"seed": 3, "nfe": 4})
        anew = np.zeros((8, 8), bool)
        anew[4:] = True
        expected = loaded.images(prompt="a boat", image=shown, mask=anew, seeds=[3, 4], nfe=4)
        found = [np.asarray(Image.open(io.BytesIO(base64.b64decode(one.b64_json)))) for one in answer.data]
        assert_near(np.stack(found), expected.numpy())
