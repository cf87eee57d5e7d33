"""Words in, pictures out: engines with text encoders equal diffusers' own pipelines, and need nothing of them.

Every pipeline is tiny and has random weights; it goes through `save_pretrained` and the code that users call.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pfdiff
from pfdiff.cli import main
from pfdiff.engine.artifact import read_artifact
from pfdiff.engine.plans.build import build_plan
from pfdiff.engine.plans.key import plan_key

from ..small.bare import run_bare
from ..small.diffusers import FAMILIES, WARNINGS, Family, diffusers, packed, unpacked
from ..small.texts import transformers, whole_pipeline

pytestmark = [*WARNINGS, pytest.mark.slow]

NAMES = ("sd1", "sdxl", "pixart", "sd3", "flux")
PROMPTS = ["The lighthouse in fog, 3 boats!", "a fog"]
NEGATIVE = "text, signs"
STEPS = 5
SCALE = 3.0
# What `encode_prompt` takes beside the prompts, and its results as conditions.
EMBEDS = ("prompt_embeds", "negative_prompt_embeds")
POOLED = (*EMBEDS, "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
ENCODED: dict[str, tuple[str, ...]] = {
    "sd1": EMBEDS,
    "sdxl": POOLED,
    "pixart": ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask"),
    "sd3": POOLED,
    "flux": ("prompt_embeds", "pooled_prompt_embeds", ""),
}


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path, Path]]:
    """(pipeline, its folder, engine) of a family, built when first asked for: from a folder, sdxl from the object."""
    held: dict[str, tuple[Any, Path, Path]] = {}
    top = tmp_path_factory.mktemp("prompts")

    def get(name: str) -> tuple[Any, Path, Path]:
        if name not in held:
            family, folder, path = FAMILIES[name], top / name, top / f"{name}.engine"
            pipeline = whole_pipeline(name, family)
            pipeline.save_pretrained(folder)
            described = {key: one for key, one in family.words.items() if key != "guidance"}
            network = pfdiff.Network(pipeline if name == "sdxl" else folder, **described)
            given: dict[str, Any] = {"solver": "ddim", "grid": "diffusers", "batch": 2, "out": path}
            given |= {"backend": "onnxruntime", "device": "cpu"}
            pfdiff.build(network, STEPS, **given).close()
            held[name] = pipeline, folder, path
        return held[name]

    return get


@torch.no_grad()
def theirs(name: str, pipeline: Any, noise: Tensor, **given: Any) -> tuple[Tensor, Tensor]:
    """(latents, pixels 0..255 before rounding [n, H, W, C]) of diffusers' own pipeline."""
    family: Family = FAMILIES[name]
    run = {key: one for key, one in family.run.items() if key not in ("guidance_scale", "negative_prompt")}
    run |= {"clean_caption": False} if name == "pixart" else {}
    if name != "flux":
        run |= {"negative_prompt": len(noise) * [NEGATIVE]}
    size = {"height": 8, "width": 8, "num_inference_steps": STEPS, "guidance_scale": SCALE}
    latents = packed(noise) if name == "flux" else noise
    words = {"prompt": PROMPTS[: len(noise)], **size, **run, "latents": latents, **given}
    found = pipeline(**words, output_type="latent").images
    pixels = pipeline(**words, output_type="np").images
    return unpacked(found) if name == "flux" else found, torch.from_numpy(pixels) * 255


def assert_same(got: Tensor, wanted: Tensor) -> None:
    assert wanted.std() > 0.05
    torch.testing.assert_close(got, wanted, atol=1e-4 * float(wanted.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_an_engine_makes_what_the_pipeline_makes(engines: Any, name: str) -> None:
    pipeline, _, path = engines(name)
    negative = {} if name == "flux" else {"negative_prompt": NEGATIVE}
    scale = {"guidance": SCALE}
    with pfdiff.load(path, device="cpu", backend="onnxruntime") as engine:
        given = {"seeds": [5, 6], "nfe": STEPS, "prompt": PROMPTS, **negative, **scale}
        got, pixels = engine.sample(**given), engine.images(**given)
    latents, wanted = theirs(name, pipeline, pfdiff.noise([5, 6], got.shape[1:]))
    assert_same(got, latents)
    difference = (pixels - wanted).abs()
    assert difference.max() < 1.51
    assert (difference > 0.51).float().mean() < 1e-3


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_encoders_alone(engines: Any, name: str) -> None:
    pipeline, _, path = engines(name)
    with pfdiff.load(path, device="cpu", backend="onnxruntime") as engine:
        negative = None if name == "flux" else NEGATIVE
        found = engine._prompts.conditions(PROMPTS, negative, {}, 2)
    aliases = {one.alias or one.name: one.name for one in engine.contract.conditions}
    words: dict[str, Any] = {"device": "cpu", "num_images_per_prompt": 1}
    if name != "flux":
        words |= {"negative_prompt": 2 * [NEGATIVE], "do_classifier_free_guidance": True}
    words |= {"prompt_2": None} if name in ("sdxl", "sd3", "flux") else {}
    words |= (
        {"prompt_3": None}
        if name == "sd3"
        else {"clean_caption": False, "max_sequence_length": 120}
        if (name == "pixart")
        else {}
    )
    encoded = pipeline.encode_prompt(PROMPTS, **words)
    compared = 0
    for label, wanted in zip(ENCODED[name], encoded, strict=True):
        if label:
            got = torch.as_tensor(np.asarray(found[aliases[label]])).broadcast_to(wanted.shape)
            torch.testing.assert_close(got, wanted.float(), atol=1e-4, rtol=1e-4)
            compared += 1
    assert compared >= 2


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
@torch.no_grad()
def test_without_a_negative_prompt(engines: Any, name: str) -> None:
    """Stable Diffusion encodes the empty one, SDXL has zeros for it."""
    pipeline, _, path = engines(name)
    noise = pfdiff.noise([3], (4, 8, 8))
    with pfdiff.load(path, device="cpu", backend="onnxruntime") as engine:
        got = engine.sample(noise=noise, prompt=PROMPTS[0], guidance=SCALE)
        other = engine.sample(noise=noise, prompt=PROMPTS[0], guidance=SCALE, negative_prompt="")
    wanted, _ = theirs(name, pipeline, noise, negative_prompt=None)
    assert_same(got, wanted)
    assert ((got - other).abs().max() > 1e-3) == (name == "sdxl")


@pytest.mark.parametrize("strength", [0.6, 0.3])
@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3", "flux"])
def test_a_picture_to_start_from(engines: Any, name: str, strength: float) -> None:
    """As diffusers counts: of 5 steps 3, and of 1.5 the U-Nets' pipelines do 1, those of flows 2."""
    pipeline, _, path = engines(name)
    kind = type(pipeline).__name__.replace("Pipeline", "Img2ImgPipeline")
    other = getattr(diffusers, kind)(
        **pipeline.components, **({"requires_safety_checker": False} if name == "sd1" else {})
    )
    other.set_progress_bar_config(disable=True)
    picture = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    drawn = torch.Generator().manual_seed(2)
    torch.randn(1, 4, 8, 8, generator=drawn)  # the autoencoder's own, which is nothing here
    noise = torch.randn(1, 4, 8, 8, generator=drawn)
    words: dict[str, Any] = {} if name == "flux" else {"negative_prompt": NEGATIVE}
    size = {} if name in ("sd1", "sdxl") else {"height": 8, "width": 8}
    wanted = other(
        prompt=PROMPTS[0],
        image=picture,
        strength=strength,
        num_inference_steps=STEPS,
        guidance_scale=SCALE,
        generator=torch.Generator().manual_seed(2),
        output_type="latent",
        **words,
        **size,
    ).images
    wanted = unpacked(wanted) if name == "flux" else wanted
    with pfdiff.load(path, device="cpu", backend="onnxruntime") as engine:
        given = {"noise": noise, "prompt": PROMPTS[0], "guidance": SCALE, **words}
        got = engine.sample(**given, image=2 * picture - 1, strength=strength, strength_counts="whole")
        latents = engine._pictures.encoded(2 * picture - 1)
        again = engine.sample(**given, image=latents, strength=strength, strength_counts="whole")
        full = engine.sample(**given, image=latents[0], strength=strength)
    assert_same(got, wanted)
    assert torch.equal(got, again)
    assert not torch.equal(full, got)


@pytest.mark.parametrize("name", ["sd1", "sd3"])
def test_tensorrt_takes_the_encoders(engines: Any, name: str) -> None:
    """TensorRT-RTX builds plans without a GPU; their tokens are int64."""
    pytest.importorskip("tensorrt_rtx", reason="plans are built by TensorRT-RTX")
    artifact = read_artifact(engines(name)[2])
    files = [file for file in artifact.contracts if file.startswith("encoders/")]
    assert len(files) == {"sd1": 2, "sd3": 4}[name]
    keys = [plan_key(artifact, "tensorrt_rtx", "sm89", file=file) for file in files]
    assert len({key.name for key in keys}) == len(files)
    for key in keys:
        assert build_plan(artifact, key)


# What one engine shows.
def test_texts_are_encoded_once_and_conditions_still_work(engines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, _, path = engines("sd1")
    with pfdiff.load(path, device="cpu", backend="onnxruntime") as engine:
        first = engine.sample(seeds=[1], prompt=PROMPTS[0], guidance=2.0)
        monkeypatch.setattr(engine._prompts, "_run", lambda *_: pytest.fail("encoded again"))
        assert torch.equal(engine.sample(seeds=[1], prompt=PROMPTS[0], guidance=2.0), first)
        positive, negative = pipeline.encode_prompt(PROMPTS[0], "cpu", 1, True)
        embeds = {"prompt_embeds": positive.detach(), "guidance": 2.0}
        own = engine.sample(seeds=[1], negative_prompt_embeds=negative.detach(), **embeds)
        torch.testing.assert_close(own, first, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(engine.sample(seeds=[1], **embeds), first, atol=1e-4, rtol=1e-4)


def test_a_long_prompt_is_cut_with_a_line(engines: Any) -> None:
    _, _, path = engines("sd1")
    text = "the " * 75 + "quick fox"  # 75 tokens fit between the first and the last
    with pfdiff.load(path, device="cpu", backend="onnxruntime") as engine:
        with pytest.warns(RuntimeWarning, match=r"cut at 77 tokens of text_encoder; left out is 'quick fox'$"):
            got = engine.sample(seeds=[1], prompt=text, guidance=2.0)
        assert torch.equal(got, engine.sample(seeds=[1], prompt="the " * 75, guidance=2.0))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"the prompt is missing; give prompt='...', or prompt_embeds="),
        ({"prompt": 3}, "prompt: got int, expected a text"),
        ({"prompt": ["a", "b"]}, "got 2 texts for 1 samples, expected one for all or one for each"),
        ({"prompt": "a", "prompt_embeds": np.zeros((77, 8))}, "got both prompt and prompt_embeds"),
        ({"prompt": "a", "strength": 0.5}, "strength without a picture"),
        (
            {"prompt": "a", "image": np.zeros((9, 8, 3), np.uint8)},
            r"image: got uint8 \[9, 8, 3\], expected uint8 \[1, 8",
        ),
        ({"prompt": "a", "image": np.zeros((8, 8, 3), np.uint8), "strength": 1.5}, "strength=1.5, expected a number"),
        (
            {"prompt": "a", "image": np.zeros((8, 8, 3), np.uint8), "strength_counts": "x"},
            "expected one of part, whole",
        ),
    ],
)
def test_what_does_not_fit_is_said(engines: Any, given: dict[str, Any], message: str) -> None:
    with (
        pfdiff.load(engines("sd1")[2], device="cpu", backend="onnxruntime") as engine,
        pytest.raises(pfdiff.InputError, match=message) as error,
    ):
        engine.sample(seeds=[1], **given)
    assert "\n" not in str(error.value)


def test_the_command_line_makes_pictures(engines: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _, _, path = engines("sd1")
    first, second = tmp_path / "first", tmp_path / "night.png"
    prompt = ["--prompt", PROMPTS[0], "--negative-prompt", NEGATIVE, "--guidance", "3", "--device", "cpu"]
    assert main(["sample", str(path), *prompt, "--seeds", "5", "-o", str(first)]) == 0
    (picture,) = first.glob("*.png")
    again = ["--image", str(picture), "--strength", "0.6", "--seeds", "5", "-o", str(second)]
    assert main(["sample", str(path), *prompt, *again]) == 0
    capfd.readouterr()
    assert main(["sample", str(path), "--seeds", "5", "-o", str(second)]) == 2
    assert "the prompt is missing" in capfd.readouterr().err
    many = ["--count", "4", "--out", str(tmp_path / "many")]
    for command, *words in (["generate", *many], ["compare", "--nfe", "4"], ["tune", "--nfe", "4"]):
        assert main([command, str(path), *words]) == 2
        assert "the prompt is missing; give --prompt '...', or what it stands for: " in capfd.readouterr().err
    assert main(["sample", str(path), *prompt, "--image", "none.png", "-o", str(second)]) == 2
    assert "--image 'none.png' does not exist" in capfd.readouterr().err
    with pfdiff.load(path, device="cpu") as engine:
        given = {"prompt": PROMPTS[0], "negative_prompt": NEGATIVE, "guidance": 3.0}
        pixels = engine.images(seeds=[5], **given)
    from PIL import Image

    assert np.abs(np.asarray(Image.open(picture)).astype(int) - pixels[0].numpy()).max() <= 1


def test_the_command_line_gives_each_seed_its_own(engines: Any, tmp_path: Path, capfd: Any) -> None:
    """Two prompts, in turn by the seeds; a picture and a mask for each; three seeds in batches of at most two."""
    _, _, path = engines("sd1")
    images, masks = np.random.default_rng(1).random((3, 3, 8, 8), np.float32), np.zeros((3, 8, 8), bool)
    masks[0, 4:] = masks[1, :, 3:] = masks[2, :2] = True
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "masks.npy", masks)
    texts = ["--prompt", PROMPTS[0], "--prompt", PROMPTS[1], "--negative-prompt", NEGATIVE, "--guidance", "3"]
    given = ["--image", str(tmp_path / "images.npy"), "--mask", str(tmp_path / "masks.npy"), "--strength", "0.7"]
    run = ["--seeds", "5-7", "--backend", "onnxruntime", "--device", "cpu", "-o", str(tmp_path / "o.npy")]
    assert main(["sample", str(path), *texts, *given, *run]) == 0
    with pfdiff.load(path, device="cpu", backend="onnxruntime") as engine:
        words = {"prompt": [PROMPTS[seed % 2] for seed in (5, 6, 7)], "negative_prompt": NEGATIVE, "guidance": 3.0}
        wanted = engine.sample(seeds=[5, 6, 7], **words, image=images, mask=masks, strength=0.7)
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "o.npy")), wanted, atol=1e-5, rtol=1e-5)
    capfd.readouterr()
    _, _, other = engines("flux")
    assert main(["sample", str(other), "--prompt", "a", "--negative-prompt", "b", *run]) == 2
    assert "--negative-prompt: this engine is not guided by one; leave it out" in capfd.readouterr().err


def test_prompts_of_bulk_runs_and_comparisons(engines: Any, tmp_path: Path, capsys: Any) -> None:
    """Two prompts, in turn by the seeds; the commands equal Python's functions with the encoded conditions."""
    _, folder, path = engines("sd1")
    asked = ["--prompt", PROMPTS[0], "--prompt", PROMPTS[1], "--negative-prompt", NEGATIVE, "--guidance", "2"]
    run = ["--backend", "onnxruntime", "--device", "cpu"]
    words = ["--format", "npz", "--count", "3", "--first", "5", "-o", str(tmp_path / "many")]
    negative = [*asked, "--negative-prompt", NEGATIVE]
    assert main(["generate", str(path), *words, *negative, *run]) == 0
    (shard,) = (tmp_path / "many").glob("*.npz")
    with pfdiff.load(path, device="cpu", backend="onnxruntime") as engine:
        texts = {"prompt": [PROMPTS[seed % 2] for seed in (5, 6, 7)], "negative_prompt": NEGATIVE}
        wanted = engine.sample(seeds=[5, 6, 7], **texts, guidance=2.0)
        conditions = {**engine.encode(PROMPTS[0]), "guidance": 2.0}
    torch.testing.assert_close(torch.from_numpy(np.load(shard)["sample"]), wanted, atol=1e-5, rtol=1e-5)
    few: dict[str, Any] = {"seeds": 2, "calibration": 2, "reference": 4, "backend": "onnxruntime"}
    table = pfdiff.compare(path, [2], ["ddim"], conditions=conditions, **few).table()
    numbers = [word for name, value in few.items() for word in (f"--{name}", str(value))]
    compared = ["--nfe", "2", "--solver", "ddim", *numbers, "--csv", str(tmp_path / "c.csv")]
    assert main(["compare", str(path), *compared, "--prompt", PROMPTS[0], "--guidance", "2"]) == 0
    assert table[0][-1] in capsys.readouterr().out
    assert main(["tune", str(folder), "--nfe", "2", "--prompt", "a"]) == 2
    assert "--prompt needs an engine, which holds the text encoders" in capsys.readouterr().err
    assert main(["compare", str(path), *compared, "--guidance", "2"]) == 2
    assert "is missing" in capsys.readouterr().err


@pytest.mark.bare
@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3", "flux"])
def test_it_samples_where_neither_diffusers_nor_transformers_is(engines: Any, tmp_path: Path, name: str) -> None:
    _, _, path = engines(name)
    negative: dict[str, Any] = {} if name == "flux" else {"negative_prompt": "text"}
    code = f"""
with pfdiff.load({str(path)!r}, device="cpu", backend="onnxruntime") as engine:
    picture = engine.images(seeds=[5], prompt={PROMPTS[0]!r}, guidance=3.0, **{negative})
    masked = engine.images(seeds=[5], prompt="a", image=picture, strength=0.5, mask=numpy.eye(picture.shape[1]))
    numpy.savez("a.npz", picture=picture.numpy(), masked=masked.numpy())
"""
    run_bare(code, tmp_path)
    found = np.load(tmp_path / "a.npz")
    with pfdiff.load(path, device="cpu", backend="onnxruntime") as engine:
        wanted = engine.images(seeds=[5], prompt=PROMPTS[0], guidance=3.0, **negative).numpy()
    assert np.abs(found["picture"].astype(int) - wanted).max() <= 1
    assert found["masked"].shape == wanted.shape


@pytest.mark.filterwarnings("default:--image:RuntimeWarning")
def test_the_lines_of_the_readme(
    engines: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a new user types them, with a tiny folder in place of the hub's."""
    readme = Path(next(iter(pfdiff.__path__)), "README.md").read_text(encoding="utf-8")
    lines = [shlex.split(line) for line in readme.splitlines() if line.startswith("pfdiff") and "sd.engine" in line]
    assert [line[:2] for line in lines] == [["pfdiff", "build"], ["pfdiff", "sample"]]
    lines[0][2] = str(engines("sd1")[1])
    monkeypatch.chdir(tmp_path)
    for line in lines:
        assert main(line[1:]) == 0
    assert (tmp_path / "lighthouse.png").stat().st_size > 100
    # What it wrote is a picture to start from, although pages have margins.
    again = ["sample", "sd.engine", "--nfe", "4", "--prompt", "a", "--strength", "0.6", "--image"]
    assert main([*again, "lighthouse.png", "--seeds", "1", "-o", "night.png"]) == 0
    assert "'lighthouse.png' is a page of 4 pictures, of which the first is taken" in capsys.readouterr().err
    assert main([*again, "night.png", "--seeds", "1", "-o", "late.png"]) == 0
    assert capsys.readouterr().err == ""
    names = [one.name for one in read_artifact(tmp_path / "sd.engine").contract.conditions]
    assert names == ["encoder_hidden_states"]  # without guidance


# Folders that lack something.
def only_pickled(folder: Path) -> None:
    (folder / "text_encoder" / "model.safetensors").rename(folder / "text_encoder" / "pytorch_model.bin")


def another_class(folder: Path) -> None:
    config = folder / "text_encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "architectures": ["LlamaModel"]}))


def no_class(folder: Path) -> None:
    config = folder / "text_encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "architectures": "CLIPTextModel"}))


def tokenizer_of_its_own(folder: Path) -> None:
    config = folder / "tokenizer" / "tokenizer_config.json"
    own = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    config.write_text(json.dumps({**json.loads(config.read_text()), **own}))


def no_tokenizer_files(folder: Path) -> None:
    for path in (folder / "tokenizer").iterdir():
        if path.name != "tokenizer_config.json":
            path.unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: shutil.rmtree(folder / "text_encoder"), r"text_encoder/ is missing.*leave the encoders out"),
        (lambda folder: shutil.rmtree(folder / "tokenizer"), r"tokenizer' is missing; copy .*--no-encoders"),
        (another_class, "text_encoder is a LlamaModel, expected CLIPTextModel or .*--no-encoders"),
        (no_class, "config.json' names no class .architectures: 'CLIPTextModel'.; copy it again"),
        (tokenizer_of_its_own, "tokenizer.* cannot be read .its class is code in the folder, which is never run"),
        (no_tokenizer_files, "tokenizer.* cannot be read: it needs tokenizer.json, or vocab.json and merges.txt"),
    ],
)
def test_a_missing_part_is_named(engines: Any, tmp_path: Path, change: Any, message: str) -> None:
    folder = Path(shutil.copytree(engines("sd1")[1], tmp_path / "tiny"))
    change(folder)
    with pytest.raises(pfdiff.InputError, match=message) as error:
        pfdiff.Network(folder)
    assert "\n" not in str(error.value)
    assert pfdiff.Network(folder, encoders=False).contract.conditions[0].name == "encoder_hidden_states"


def test_an_encoder_that_alone_makes_a_condition_is_needed(engines: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(engines("flux")[1], tmp_path / "tiny"))
    index = json.loads((folder / "model_index.json").read_text())
    nothing = {"text_encoder_2": [None, None], "tokenizer_2": [None, None]}
    (folder / "model_index.json").write_text(json.dumps({**index, **nothing}))
    for name in nothing:
        shutil.rmtree(folder / name)
    words = {key: one for key, one in FAMILIES["flux"].words.items() if key != "guidance"}
    with pytest.raises(
        pfdiff.InputError, match="has no text_encoder_2, which makes 'encoder_hidden_states' of prompts"
    ):
        pfdiff.Network(folder, **words)
    assert pfdiff.Network(folder, encoders=False, **words).encoders is None


def test_pieces_alone_ask_for_their_library(
    engines: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(engines("sd1")[1], tmp_path / "tiny"))
    no_tokenizer_files(folder)
    (folder / "tokenizer" / "spiece.model").write_bytes(b"damaged")
    monkeypatch.setattr("pfdiff.export.encoders.tokenizer.find_spec", lambda _: None)
    capfd.readouterr()
    with pytest.raises(pfdiff.BackendError, match=r"has spiece.model and no tokenizer.json.*pip install sentencepiece"):
        pfdiff.Network(folder)
    monkeypatch.undo()
    with pytest.raises((pfdiff.InputError, pfdiff.BackendError), match=r"tokenizer.*(cannot be read|sentencepiece)"):
        pfdiff.Network(folder)
    assert capfd.readouterr() == ("", "")


def test_pickled_encoders_are_refused(engines: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(engines("sd1")[1], tmp_path / "tiny"))
    only_pickled(folder)
    with pytest.raises(pfdiff.InputError, match=r"text_encoder.* has pickled weights only .pytorch_model.bin"):
        pfdiff.build(folder, STEPS, out=tmp_path / "e.engine")
    assert not (tmp_path / "e.engine").exists()


def test_the_same_folder_is_not_exported_again(engines: Any) -> None:
    _, folder, path = engines("sd1")
    before = read_artifact(path)
    said: list[str] = []
    given: dict[str, Any] = {"solver": "ddim", "grid": "diffusers", "batch": 2, "out": path}
    given |= {"backend": "onnxruntime", "device": "cpu"}
    pfdiff.build(folder, STEPS, **given, progress=said.append).close()
    assert said[-1].endswith("is up to date: nothing to do")
    assert read_artifact(path).files == before.files
    assert transformers.__version__  # it was there, and asked only for the tokenizer
