"""OpenAI's own client draws from text engines: from a real one, whose encoders read, and from arithmetic."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pfdiff
from pfdiff.serving.guard import Access

from ..small.serving import TextEngine, serving

openai = pytest.importorskip("openai", reason="pip install openai")


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with (
        serving(access=Access("key"), text=TextEngine) as served,
        openai.OpenAI(base_url=f"http://127.0.0.1:{served.port}/v1", api_key="key", max_retries=0) as opened,
    ):
        yield opened


def pixels(image: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image.b64_json))))


def test_a_real_engine_reads_prompt_and_negative_prompt(text_engine: Path) -> None:
    """The same pixels as in this process, in batches with other words, and with numbers in the place of words."""
    with (
        serving(sd1=text_engine) as served,
        openai.OpenAI(base_url=f"http://127.0.0.1:{served.port}/v1", api_key="none", max_retries=0) as opened,
        pfdiff.load(text_engine, "cpu", "onnxruntime", threads=1) as engine,
    ):
        said = {"prompt": "The lighthouse, in fog!", "negative_prompt": "text, signs", "guidance": 3.0}
        expected = engine.images(seeds=[7, 8, 9], nfe=5, **said).numpy()
        extra = {"seed": 7, "nfe": 5, "guidance": 3.0, "negative_prompt": said["negative_prompt"]}
        answer = opened.images.generate(prompt=said["prompt"], n=3, size="8x8", extra_body=extra)
        assert np.array_equal(np.stack([pixels(one) for one in answer.data]), expected)
        assert expected.std() > 1
        (plain,) = opened.images.generate(prompt="a fog", extra_body={"seed": 1, "nfe": 4}).data
        assert np.array_equal(pixels(plain), engine.images(seeds=[1], nfe=4, prompt="a fog").numpy()[0])
        assert not np.array_equal(pixels(plain), engine.images(seeds=[1], nfe=4, prompt="boats").numpy()[0])

        # Numbers in place of words, which no prompt may stand beside.
        numbers = {"prompt_embeds": np.full((1, 77, 8), 0.1, np.float32), "negative_prompt": "text"}
        body = {"seeds": [3], "nfe": 5, "conditions": {"prompt_embeds": numbers["prompt_embeds"][0].tolist()}}
        answer = served.samples(**body, negative_prompt="text")
        png = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer.json["samples"][0]["png"]))))
        assert np.array_equal(png, engine.images(seeds=[3], nfe=5, **numbers).numpy()[0])
        answer = served.samples(**body, prompt="boats")
        assert (answer.status, "got both prompt and encoder_hidden_states" in answer.error) == (400, True)
        assert served.samples(seeds=[3], nfe=5).error == "engine 'sd1' draws from a prompt, and there is none"


def test_a_picture_from_a_prompt(client: Any) -> None:
    answer = client.images.generate(
        model="text",
        prompt="a lighthouse",
        n=3,
        size="8x8",
        response_format="b64_json",
        extra_body={"seed": 2**64 - 1, "nfe": 4, "guidance": 6.0, "negative_prompt": "fog"},
    )
    for image, seed in zip(answer.data, (2**64 - 1, 0, 1), strict=True):
        assert image.seed == seed
        assert np.array_equal(pixels(image), TextEngine.drawn("a lighthouse", "fog", seed, 6.0, nfe=4))


def test_the_least_that_is_sent(client: Any) -> None:
    """One picture in the most evaluations, of a seed that is told and repeats it."""
    (image,) = client.images.generate(prompt="a lighthouse").data
    assert np.array_equal(pixels(image), TextEngine.drawn("a lighthouse", "", image.seed, nfe=8))
    (again,) = client.images.generate(prompt="a lighthouse", extra_body={"seed": image.seed}).data
    assert again.b64_json == image.b64_json


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": "1024x1024"}, "size '1024x1024', this engine draws 8x8"),
        ({"n": 11}, "n: Input should be less than or equal to 10"),
        ({"response_format": "url"}, "response_format"),
        ({"quality": "hd"}, "quality"),
        ({"extra_body": {"nfe": 5}}, "nfe=5; this engine has 4, 8"),
        ({"extra_body": {"file": "/etc/passwd"}}, "unknown field 'file'; expected model"),
    ],
)
def test_what_it_cannot_have_is_a_bad_request(client: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(**{"prompt": "a lighthouse", **given})
    assert message in refused.value.body["message"]
    assert refused.value.type == "invalid_request_error"


def test_models_keys_and_unknown_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["text"]
    with pytest.raises(openai.NotFoundError):
        client.images.generate(prompt="a lighthouse", model="dall-e-3")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").images.generate(prompt="a lighthouse")
