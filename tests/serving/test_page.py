"""The page in a browser: what it shows are the engine's own pixels."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pfdiff

from ..small.browser import browser
from ..small.serving import Client, serving, write_pictures

SHOWN = "return document.body.dataset.shown === location.href && !document.querySelector('.drawing')"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("engines") / "shade.engine", solver="dpm++:2m")


def shown(page: Any, sampler: str) -> list[np.ndarray]:
    """The pixels of a row's pictures, decoded here."""
    sources = page.execute_script(
        "return [...document.querySelectorAll(`[data-sampler=${arguments[0]}] img`)].map((one) => one.src)", sampler
    )
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one.partition(",")[2])))) for one in sources]


def test_slider_class_and_link(tmp_path: Path, engine: Path) -> None:
    with serving(shade=engine) as client, browser(tmp_path / "profile") as page:
        check(page, client, engine)


def test_a_prompt_is_typed_and_its_picture_shown(tmp_path: Path, text_engine: Path) -> None:
    """Of a real text engine; what the prompts stand for has no field."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    with serving(sd1=text_engine) as client, browser(tmp_path / "profile") as page:
        page.get(f"http://127.0.0.1:{client.port}/?nfe=5&seed=3&n=1")
        for field, text in (("prompt", "The lighthouse, in fog!"), ("negative", "text, signs")):
            page.find_element(By.ID, field).send_keys(text)
        WebDriverWait(page, 30, 0.05).until(lambda _: page.execute_script(SHOWN))
        fields = page.execute_script(
            "return [...document.querySelectorAll('#conditions [name]')].map((one) => one.name)"
        )
        assert fields == ["guidance"]
        with pfdiff.load(text_engine, "cpu", "onnxruntime", threads=1) as engine:
            said = {"prompt": "The lighthouse, in fog!", "negative_prompt": "text, signs"}
            expected = engine.images(seeds=[3], nfe=5, **said).numpy()
        assert np.array_equal(shown(page, "engine") or shown(page, "ddim"), expected)
        assert page.get_log("browser") == []


def check(page: Any, client: Client, engine: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select, WebDriverWait

    def settled() -> None:
        WebDriverWait(page, 20, 0.05).until(lambda _: page.execute_script(SHOWN))

    page.get(f"http://127.0.0.1:{client.port}/")
    settled()
    with pfdiff.load(engine, "cpu", "onnxruntime", threads=1) as loaded:
        expected = {nfe: loaded.images(seeds=range(3, 7), nfe=nfe, label="bag").numpy()[..., 0] for nfe in (5, 8)}

    # The slider, by its keys; a class by its name; a seed.
    slider = page.find_element(By.ID, "nfe")
    Select(page.find_element(By.NAME, "label")).select_by_visible_text("bag")
    Select(page.find_element(By.ID, "count")).select_by_visible_text("4")
    seed = page.find_element(By.ID, "seed")
    seed.clear()
    seed.send_keys("3")
    slider.send_keys(Keys.HOME, Keys.ARROW_RIGHT)
    assert page.find_element(By.ID, "nfe-shown").text == "5"
    settled()
    assert np.array_equal(shown(page, "engine"), expected[5])

    # DDIM and PFDiff beside it are other samplers on the same seeds.
    for sampler in ("ddim", "pfdiff"):
        answer = client.samples(seeds=[3, 4, 5, 6], nfe=5, sampler=sampler, conditions={"label": "bag"})
        pngs = [base64.b64decode(one["png"]) for one in answer.json["samples"]]
        assert np.array_equal(shown(page, sampler), [np.asarray(Image.open(io.BytesIO(png))) for png in pngs])
        assert not np.array_equal(shown(page, sampler), expected[5])

    # Arrow keys outside of a field; what was built is said where the slider leaves it.
    page.find_element(By.TAG_NAME, "body").click()
    page.find_element(By.TAG_NAME, "body").send_keys(Keys.ARROW_RIGHT)
    settled()
    assert "Built for 5, 8 evaluations, not for 6" in page.find_element(By.CSS_SELECTOR, "[data-sampler=engine]").text
    page.find_element(By.TAG_NAME, "body").send_keys(Keys.ARROW_RIGHT)
    settled()

    # The link alone reproduces the picture.
    link = page.current_url
    page.get("about:blank")
    page.get(link)
    settled()
    assert page.find_element(By.ID, "nfe-shown").text == "8"
    assert np.array_equal(shown(page, "engine"), expected[8])
    assert "ms" in page.find_element(By.CSS_SELECTOR, "[data-sampler=engine] .time").text

    # The page of the API, and nothing refused by the content security policy meanwhile.
    page.get(f"http://127.0.0.1:{client.port}/api")
    WebDriverWait(page, 20, 0.05).until(lambda _: "POST /v1/samples" in page.find_element(By.ID, "routes").text)
    assert page.get_log("browser") == []
