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


def settle(page: Any) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(page, 30, 0.05).until(lambda _: page.execute_script(SHOWN))


DROP = """
const [zone, name, base64] = arguments;
const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
const dataTransfer = new DataTransfer();
dataTransfer.items.add(new File([bytes], name, { type: "image/png" }));
document.body.dataset.shown = "";
document.getElementById(zone).dispatchEvent(new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer }));
"""


def test_a_picture_to_start_from(tmp_path: Path, engine: Path) -> None:
    rng = np.random.default_rng(8)
    shirt, mask = rng.integers(0, 256, (8, 6), np.uint8), np.zeros((8, 6), np.uint8)
    mask[3:] = 255
    files = {name: tmp_path / f"{name}.png" for name in ("shirt", "mask", "large")}
    for name, pixels in (("shirt", shirt), ("mask", mask), ("large", rng.integers(0, 256, (90, 60, 3), np.uint8))):
        Image.fromarray(pixels).save(files[name])
    with (
        serving(shade=engine) as client,
        browser(tmp_path / "profile") as page,
        pfdiff.load(engine, "cpu", "onnxruntime", threads=1) as loaded,
    ):
        check_pictures(page, client.port, loaded, shirt, mask, files)


def check_pictures(
    page: Any, port: int, engine: pfdiff.Engine, shirt: np.ndarray, mask: np.ndarray, files: dict[str, Path]
) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    def drawn(**given: Any) -> np.ndarray:
        return engine.images(seeds=range(3, 7), nfe=8, label="bag", **given).numpy()[..., 0]

    def find(name: str) -> Any:
        return page.find_element(By.ID, name)

    def choose(field: str, name: str) -> None:
        page.execute_script("document.body.dataset.shown = ''")
        find(field).send_keys(str(files[name]))
        settle(page)

    page.get(f"http://127.0.0.1:{port}/?nfe=8&seed=3&n=4&c.label=bag")
    settle(page)
    page.find_element(By.NAME, "label").send_keys(Keys.TAB)
    assert page.switch_to.active_element.get_attribute("id") == "image-file"  # by the keyboard
    assert not find("strength").is_displayed()

    # The file as it is, at the usual strength, by each sampler; then the slider.
    choose("image-file", "shirt")
    image = shirt[..., None]
    assert np.array_equal(shown(page, "engine"), drawn(image=image))
    own = engine.programs[8]
    ddim = engine.with_programs({8: pfdiff.compile("ddim", own.schedule, 8, own.grid, own.basis)})
    beside = ddim.images(seeds=range(3, 7), nfe=8, label="bag", image=image).numpy()[..., 0]
    assert np.array_equal(shown(page, "ddim"), beside)
    assert "ms" in page.find_element(By.CSS_SELECTOR, "[data-sampler=engine] .time").text
    find("strength").send_keys(*[Keys.ARROW_LEFT] * 20)
    settle(page)
    assert find("strength-shown").text == "0.60"
    assert np.array_equal(shown(page, "engine"), drawn(image=image, strength=0.6))

    # A mask, dropped.
    page.execute_script(DROP, "mask-zone", "mask.png", base64.b64encode(files["mask"].read_bytes()).decode())
    settle(page)
    masked = drawn(image=image, mask=mask, strength=0.6)
    assert np.array_equal(shown(page, "engine"), masked)

    # The link asks for the files, and draws nothing before; another file than its own is told of.
    link = page.current_url
    page.get("about:blank")
    page.get(link)
    assert_says(page, "This link starts from the image shirt.png and the mask mask.png. Choose the same files.")
    assert shown(page, "engine") == shown(page, "ddim") == []
    find("image-file").send_keys(str(files["shirt"]))
    assert_says(page, "This link starts from the mask mask.png.")
    choose("mask-file", "mask")
    assert page.current_url == link
    assert np.array_equal(shown(page, "engine"), masked)
    choose("image-file", "large")
    assert "Not the image of the link, which was shirt.png." in find("status").text
    size = page.execute_script(
        "const one = document.querySelector('#image-zone img'); return [one.naturalWidth, one.naturalHeight]"
    )
    assert size == [6, 8]  # cut to the engine's

    # Without the picture there is no mask either.
    page.execute_script("document.body.dataset.shown = ''")
    page.find_element(By.CSS_SELECTOR, "#image-zone button").click()
    settle(page)
    assert np.array_equal(shown(page, "engine"), drawn())
    choose("image-file", "mask")
    choose("mask-file", "shirt")
    assert find("strength-shown").text == "0.60"
    broken = files["shirt"].with_name("broken.png")
    broken.write_bytes(b"no picture")
    find("image-file").send_keys(str(broken))
    assert_says(page, "broken.png is no picture that this browser reads.", "picture-status")
    assert page.get_log("browser") == []


def assert_says(page: Any, message: str, field: str = "status") -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(page, 20, 0.05).until(lambda _: message in page.find_element(By.ID, field).text)


def check(page: Any, client: Client, engine: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select, WebDriverWait

    def settled() -> None:
        settle(page)

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
