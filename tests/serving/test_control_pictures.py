"""The picture of a ControlNet in POST /v1/samples: encoded by the engine's own encoder, as the engine does it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, save_model

import pfdiff
from pfdiff.engine.artifact import IMAGE_ENCODER, Artifact, records_of, write_manifest
from pfdiff.engine.contract.contract import Condition, Contract, DecoderContract

from ..small.engine import program
from ..small.serving import NPZ, Answer, Client, serving

LATENTS, PICTURE = (3, 2, 2), (3, 4, 6)
RNG = np.random.default_rng(7)
PIXELS = RNG.integers(0, 256, (4, 6, 3), np.uint8)


def write_engine(folder: Path, *, encoder: bool) -> Path:
    """out = x + t + latents, whose latents are means of the picture's 2 x 3 pixels; without its encoder, if asked."""
    (folder / "encoders").mkdir(parents=True)

    def save(name: str, nodes: list[Any], inputs: dict[str, tuple[int, ...]], output: str) -> None:
        ports = [helper.make_tensor_value_info(one, TensorProto.FLOAT, ["b", *shape]) for one, shape in inputs.items()]
        made = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["b", *LATENTS])
        graph = helper.make_graph(nodes, "graph", ports, [made])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        save_model(model, folder / name)

    control = Condition("control_latents", "float32", LATENTS, alias="control_image")
    contract = Contract("edges", LATENTS, "linear:1000", "eps", conditions=(control,))
    nodes = [helper.make_node("Sum", ["x", "control_latents"], ["out"])]
    save("network.onnx", nodes, {"x": LATENTS, "t": (), "control_latents": LATENTS}, "out")
    pooled = [helper.make_node("AveragePool", ["image"], ["latents"], kernel_shape=[2, 3], strides=[2, 3])]
    save(IMAGE_ENCODER, pooled, {"image": PICTURE}, "latents")
    image = DecoderContract("still", PICTURE, LATENTS, input="image", output="latents") if encoder else None
    if not encoder:
        (folder / IMAGE_ENCODER).unlink()
    programs = {4: program(4, contract)}
    files = records_of(folder)
    write_manifest(Artifact(folder, contract, (1, 2), "fp32", programs, {}, files, image_encoder=image))
    return folder


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_engine(tmp_path_factory.mktemp("control") / "edges.engine", encoder=True)


@pytest.fixture(scope="module")
def client(engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    bare = write_engine(tmp_path_factory.mktemp("bare") / "bare.engine", encoder=False)
    with serving(edges=engine, bare=bare) as client:
        yield client


def post(client: Client, name: str = "edges", **arrays: Any) -> Answer:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, seeds=np.array([5, 6, 7]), **arrays)
    return client(f"/v1/samples?engine={name}", file.getvalue(), NPZ)


def arrays(answer: Answer) -> dict[str, np.ndarray]:
    assert answer.status == 200, answer.body
    with np.load(io.BytesIO(answer.body), allow_pickle=False) as held:
        return dict(held)


def test_the_same_samples_as_the_engine(client: Client, engine: Path) -> None:
    """Pixels, floats in JSON, a picture for each seed, and latents."""
    floats = PIXELS.transpose(2, 0, 1).astype(np.float32) / 255
    latents = (2 * floats - 1).reshape(3, 2, 2, 2, 3).mean((2, 4))
    several = np.stack([PIXELS, PIXELS[::-1], PIXELS])
    with pfdiff.load(engine, "cpu", "onnxruntime", threads=1) as own:
        expected = own.sample(seeds=[5, 6, 7], control_image=PIXELS).numpy()
        each = own.sample(seeds=[5, 6, 7], control_image=several).numpy()
    found = arrays(post(client, control_image=PIXELS))
    assert set(found) == {"samples", "seeds"}
    assert np.array_equal(found["samples"], expected)
    assert np.array_equal(arrays(post(client, control_image=several))["samples"], each)
    assert np.abs(each - expected).max() > 0.01
    body = {"engine": "edges", "seeds": [5, 6, 7], "conditions": {"control_image": floats.tolist()}, "format": "npz"}
    assert np.array_equal(arrays(client.samples(**body))["samples"], expected)
    by_latents = arrays(post(client, control_latents=np.broadcast_to(latents, (3, *LATENTS))))["samples"]
    np.testing.assert_allclose(by_latents, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "name", "message"),
    [
        ({"control_image": PIXELS[:2]}, "edges", "control_image: got uint8 [2, 6, 3], expected pixels uint8 [4, 6, 3]"),
        ({"control_image": PIXELS[None].repeat(2, 0) // [[[[1]]], [[[2]]]]}, "edges", "got int64 [2, 4, 6, 3]"),
        ({"control_image": np.stack([PIXELS, PIXELS[::-1]])}, "edges", "got 2 pictures for 3 seeds; give one, or one"),
        ({"control_image": 255.0 * PIXELS.transpose(2, 0, 1)}, "edges", "expected 0..1; scale them"),
        ({"control_image": PIXELS}, "bare", "this engine holds no image encoder; build it with encoders, or give con"),
        ({}, "edges", "control_image is missing; give pixels uint8 [4, 6, 3] or floats [3, 4, 6] in 0..1, or control"),
    ],
)
def test_what_is_no_picture_of_this_engine_is_refused(client: Client, given: Any, name: str, message: str) -> None:
    answer = post(client, name, **given)
    assert (answer.status, message in answer.error) == (400, True), answer.error


def test_a_server_says_what_its_controlnet_takes(client: Client) -> None:
    shown = {one["name"]: one["control_picture"] for one in client("/v1/engines").json["engines"]}
    assert shown["edges"] == {"condition": "control_latents", "image": [4, 6, 3]}
    assert shown["bare"] is None
