"""int8 of a whole tiny pipeline: prompts calibrate it, and what stands beside the network is quantised too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import pfdiff
from pfdiff.cli import main
from pfdiff.engine.artifact import read_artifact
from pfdiff.engine.contract.contract import DecoderContract, TextEncoderContract
from pfdiff.engine.contract.text_encoders import TextEncoder, TextEncoders
from pfdiff.engine.errors import InputError
from pfdiff.export.check import OnnxRun
from pfdiff.export.precision import tasks
from pfdiff.export.precision.encoders import quantise_encoders, quantise_image_encoder
from pfdiff.export.precision.large import outside
from pfdiff.export.precision.prompts import USUAL, Texts, prompts_from
from pfdiff.export.precision.ranges import FP8, INT8_CPU, INT8_GPU, Kind
from pfdiff.export.precision.tasks import rows_of

from ...small.diffusers import FAMILIES, WARNINGS
from ...small.texts import whole_pipeline

pytestmark = WARNINGS
STEPS = 3
PROMPTS = ["the fog", "a lighthouse, 3 boats", "in the fog, a cat"]
GIVEN: dict[str, Any] = {"solver": "ddim", "grid": "diffusers", "backend": "onnxruntime", "device": "cpu", "batch": 2}


# The list of prompts.
def test_prompts_are_the_lines_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("  a cat \n\nein Hügel\n", encoding="utf-8")
    assert prompts_from(tmp_path / "p.txt") == prompts_from(str(tmp_path / "p.txt")) == ("a cat", "ein Hügel")
    assert prompts_from(["a cat"]) == ("a cat",)
    assert prompts_from(None) == USUAL
    rows = {"text": np.arange(15)[:, None], "empty": np.zeros((1, 2))}
    calibrating, checking = (rows_of(rows, check=check) for check in (False, True))
    assert not set(calibrating["text"].ravel()) & set(checking["text"].ravel())
    assert len(calibrating["empty"]) == len(checking["empty"]) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "No such file"), (b"\xff\xfe\xff", "it is not UTF-8"), (b" \n\n", "0 prompts, expected 1")],
)
def test_a_bad_file_of_prompts_is_named(tmp_path: Path, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(InputError, match=said):
        prompts_from(tmp_path / "p.txt")
    with pytest.raises(InputError, match=r"got .*, expected texts"):
        prompts_from([3])  # type: ignore[list-item]


# A pipeline from prompt to pixels.
@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Stable Diffusion's parts, tiny, in int8; and what was said."""
    family, path, lines = FAMILIES["sd1"], tmp_path_factory.mktemp("int8") / "sd1.engine", []
    described = {key: one for key, one in family.words.items() if key != "guidance"}
    network = pfdiff.Network(whole_pipeline("sd1", family), **described)
    with pytest.raises(InputError, match="calibrate_prompts with precision fp16, which is not calibrated"):
        pfdiff.build(network, STEPS, **GIVEN, precision="fp16", calibrate_prompts=PROMPTS, out=path)
    words = {**GIVEN, "precision": "int8", "calibrate_prompts": PROMPTS, "quantise_error": 0.2, "out": path}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tasks, "seeds_for", lambda *given: 4)
        pfdiff.build(network, STEPS, **words, progress=lines.append).close()
    before = (path / "engine.json").stat().st_mtime_ns
    pfdiff.build(network, STEPS, **words).close()
    assert (path / "engine.json").stat().st_mtime_ns == before  # nothing to do
    return path, lines


@pytest.mark.slow
def test_every_part_is_quantised_within_its_bound(
    engine: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = engine
    record = read_artifact(path).provenance["precision_record"]
    parts = {"decoder": record["decoder"], "image_encoder": record["image_encoder"], **record["text_encoders"]}
    assert set(parts) == {"decoder", "image_encoder", "text_encoder"}
    for name, part in parts.items():
        assert sum(some for some, _ in part["layers"].values()) > 0, name
        assert all(one["added"] <= one["bound"] for one in part["samples"].values()), name
    assert f"NFE {STEPS}" in parts["text_encoder"]["samples"]
    for file in ("encoders/text_encoder.onnx", "encoders/image.onnx", "decoder.onnx"):
        assert "QuantizeLinear" in {one.op_type for one in onnx.load(path / file).graph.node}, file
    assert main(["info", str(path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "text_encoder holds int8, 18 of 18 linear layers" in shown
    assert "image encoder holds int8, 9 of 9 convolutions" in shown


@pytest.mark.slow
def test_pictures_are_those_of_the_pipeline_to_the_bound(engine: tuple[Path, list[str]]) -> None:
    """Against diffusers' own, in float32, with a prompt and seeds of their own."""
    import torch

    path, _ = engine
    pipeline = whole_pipeline("sd1", FAMILIES["sd1"])
    noise = pfdiff.noise([1, 2], read_artifact(path).contract.shape)
    words: dict[str, Any] = {"height": 8, "width": 8, "num_inference_steps": STEPS, "guidance_scale": 3.0}
    with torch.no_grad():
        latents = pipeline(prompt=["a boat in the fog"] * 2, latents=noise, **words, output_type="latent").images
    with pfdiff.load(path, device="cpu", backend="onnxruntime") as opened:
        found = opened.sample(noise=noise, prompt="a boat in the fog", guidance=3.0)
        tables = Texts(path, read_artifact(path).text_encoders, tuple(PROMPTS)).tables(opened.contract)  # type: ignore[arg-type]
        encoded = opened._prompts.conditions(PROMPTS, None, {}, len(PROMPTS))
    assert 0 < float((found - latents).square().mean().sqrt()) < 0.4  # the bound of 0.2 is of other prompts
    for name, table in tables.items():
        np.testing.assert_allclose(table[: len(encoded[name])], np.broadcast_to(encoded[name], table.shape), atol=0.1)


# An encoder alone.
class ByHand:
    """A task whose samples are the condition times `gain`."""

    def __init__(self, gain: float, exact: dict[str, np.ndarray]) -> None:
        self.bounds = {4: 0.1}
        self._gain, self._exact = gain, exact

    def changed(self, tables: Any, evaluate: Any) -> dict[int, float]:
        difference = self._gain * (tables["text"] - self._exact["text"])
        return {4: float(np.sqrt(np.mean(np.square(difference))))}


ENCODER = """<ir_version: 10, opset_import: ["" : 21]> encoder (int64[b,2,6] tokens) => (float[b,16] encoded) {
picked = Gather<axis = 1>(tokens, first)  rows = Gather<axis = 0>(table, picked)  hidden = MatMul(rows, inner)
active = Tanh(hidden)  outer = MatMul(active, last)  encoded = ReduceMean<keepdims = 0>(outer, axis) }"""


@pytest.fixture
def texts(tmp_path: Path) -> Texts:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: n for n, word in enumerate(["[PAD]", *"abcdefghijklmnopqrstuvwxyz"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_padding(length=6)
    tokenizer.enable_truncation(6)
    tokenizer.save(str(tmp_path / "t.json"))
    generator = np.random.default_rng(0)
    constants: dict[str, Any] = {"first": np.array(0), "axis": np.array([1]), "table": generator.normal(size=(27, 32))}
    constants |= {"inner": generator.normal(size=(32, 32)) / 6, "last": generator.normal(size=(32, 16)) / 6}
    model = onnx.parser.parse_model(ENCODER)
    for name, value in constants.items():
        kind = np.int64 if value.dtype.kind == "i" else np.float32
        model.graph.initializer.append(onnx.numpy_helper.from_array(value.astype(kind), name))
    onnx.save(model, tmp_path / "encoder.onnx")
    encoder = TextEncoder("encoder.onnx", "t.json", TextEncoderContract("encoder", 6, 16))
    prompts = tuple(" ".join("abcdefghijklmnopqrstuvwxyz"[n : n + 5]) for n in range(20))
    return Texts(tmp_path, TextEncoders(("text",), (encoder,)), prompts)


def conditioned() -> Any:
    from pfdiff.engine.contract.condition import Condition
    from pfdiff.engine.contract.contract import Contract

    return Contract("net", (4,), "linear:1000", "eps", conditions=(Condition("text", "float32", (16,)),))


@pytest.mark.parametrize(("gain", "taken"), [(1.0, True), (1e6, False)])
def test_samples_say_whether_an_encoder_may_have_eight_bits(texts: Texts, gain: float, taken: bool) -> None:
    contract, lines = conditioned(), []
    exact, before = texts.tables(contract), (texts.folder / "encoder.onnx").read_bytes()
    task: Any = ByHand(gain, exact)
    record = quantise_encoders(texts, contract, task, lambda case: case.x, INT8_CPU, lines.append, None)["encoder"]
    found = texts.tables(contract)["text"] - exact["text"]
    if taken:
        assert record["layers"] == {"linear layer": [2, 2]}
        assert 0 < np.sqrt(np.mean(found**2)) <= record["samples"]["encodings"]["bound"]
        assert record["samples"]["NFE 4"]["added"] == pytest.approx(float(np.sqrt(np.mean(found**2))))
    else:
        assert "no layer's error is within the bound" in record["float32"]
        assert lines[-1].startswith("encoder stays float32: ")
        assert (texts.folder / "encoder.onnx").read_bytes() == before
    assert not list(texts.folder.glob(".eight-bits-*"))


@pytest.mark.parametrize(("kind", "stored"), [(INT8_GPU, onnx.TensorProto.INT8), (FP8, onnx.TensorProto.FLOAT8E4M3FN)])
def test_an_encoder_for_a_gpu_is_made_of_its_float32_graph(texts: Texts, kind: Kind, stored: int) -> None:
    """The engine's own file is in float16, and is replaced by eight bits between float16."""
    exact = texts.folder / "exact"
    exact.mkdir()
    (texts.folder / "encoder.onnx").rename(exact / "encoder.onnx")
    (texts.folder / "encoder.onnx").write_text("the float16 graph")
    (encoder,) = texts.encoders.encoders
    short = replace(encoder, contract=replace(encoder.contract, precision="fp16"))
    texts = replace(texts, encoders=replace(texts.encoders, encoders=(short,)))
    calibrated = texts.of_files({"encoder": exact / "encoder.onnx"})
    contract = conditioned()
    tables = calibrated.tables(contract)
    task: Any = ByHand(1.0, tables)
    words = task, lambda case: case.x, kind, lambda line: None, None
    record = quantise_encoders(calibrated, contract, *words)["encoder"]
    assert record["precision"] == kind.name
    assert record["layers"] == {"linear layer": [2, 2]}
    found = texts.tables(contract)["text"] - tables["text"]
    assert 0 < np.sqrt(np.mean(found**2)) <= 1.1 * record["samples"]["encodings"]["bound"]
    model = onnx.load(texts.folder / "encoder.onnx")
    constants = {one.name: one.data_type for one in model.graph.initializer}
    assert stored in constants.values()
    scales = {one.input[1] for one in model.graph.node if one.op_type == "QuantizeLinear"}
    assert {constants[one] for one in scales} == {onnx.TensorProto.FLOAT16}
    assert model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16


LARGER, SMALLER = (
    f"""<ir_version: 10, opset_import: ["" : 21]> net (float[b,2,{8 // n},{8 // n}] {x}) =>
(float[b,2,{8 * n // 2},{8 * n // 2}] {out}) {{ bent = Conv<pads = [1, 1, 1, 1]>({x}, w)  {layer} }}"""
    for x, out, n, layer in (
        ("latents", "image", 2, 'image = Resize<mode = "nearest">(bent, none, scales)'),
        ("image", "latents", 1, "latents = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(bent)"),
    )
)


@pytest.mark.parametrize("kind", [INT8_CPU, INT8_GPU, FP8])
def test_an_image_encoder_is_judged_by_latents(tmp_path: Path, kind: Kind) -> None:
    generator = np.random.default_rng(3)
    weights = np.zeros((2, 2, 3, 3), np.float32)
    weights[[0, 1], [0, 1], 1, 1] = 1
    weights += 0.05 * generator.standard_normal(weights.shape).astype(np.float32)
    exact, folder = tmp_path / "exact", tmp_path / "engine"
    for place in (exact, folder):
        (place / "encoders").mkdir(parents=True)
    for text, file in ((LARGER, "decoder.onnx"), (SMALLER, "encoders/image.onnx")):
        model = onnx.parser.parse_model(text)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
        if file == "decoder.onnx":
            scales = np.array([1, 1, 2, 2], np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(scales, "scales"))
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(0, np.float32), "none"))
        onnx.save(model, exact / file)
    precision = "fp16" if kind.halves else "fp32"
    decoder = DecoderContract("d", (2, 4, 4), (2, 8, 8), precision=precision)
    encoder = DecoderContract("d", (2, 8, 8), (2, 4, 4), input="image", output="latents", precision=precision)
    first, second, third = generator.standard_normal((3, 6, 2, 4, 4)).astype(np.float32)
    given = folder, exact, encoder, decoder, (first, second, third), None, kind
    record = quantise_image_encoder(*given, lambda line: None, None)
    assert record is not None
    held = record["samples"]["latents"]
    assert 0 < held["added"] <= held["bound"]
    run = OnnxRun(folder / "encoders" / "image.onnx", ("image",), "latents")
    pictures = OnnxRun(exact / "decoder.onnx", ("latents",), "image")((second,))
    error = run((pictures,)) - OnnxRun(exact / "encoders" / "image.onnx", ("image",), "latents")((pictures,))
    assert 0 < np.sqrt(np.mean(error**2)) <= 1.1 * held["bound"]
    wanted = onnx.TensorProto.FLOAT16 if kind.halves else onnx.TensorProto.FLOAT
    assert onnx.load(folder / "encoders" / "image.onnx").graph.input[0].type.tensor_type.elem_type == wanted


@pytest.mark.parametrize("outside_above", [1 << 30, 1000])
def test_weights_beside_the_file_are_read_at_once_or_stay_there(
    texts: Texts, monkeypatch: pytest.MonkeyPatch, outside_above: int
) -> None:
    monkeypatch.setattr(outside, "EXTERNAL_ABOVE_BYTES", outside_above)
    place, contract = texts.folder / "encoder.onnx", conditioned()
    model = onnx.load(place)
    place.unlink()
    onnx.save(model, place, save_as_external_data=True, location="encoder.onnx.data", size_threshold=64)
    task: Any = ByHand(1.0, texts.tables(contract))
    words = contract, task, lambda case: case.x, INT8_CPU, lambda line: None, None
    assert quantise_encoders(texts, *words)["encoder"]["layers"] == {"linear layer": [2, 2]}
    assert not place.with_name("encoder.onnx.data").exists()
    texts.tables(contract)  # it runs without them


def test_an_encoder_that_samples_refuse_in_the_end_is_put_back(texts: Texts) -> None:
    """Noise changes nothing, the encoder's own error everything: what was estimated is measured."""
    contract, before = conditioned(), (texts.folder / "encoder.onnx").read_bytes()
    answers = iter([{4: 1e-9}, {4: 0.2}])
    task: Any = ByHand(1.0, texts.tables(contract))
    task.changed = lambda tables, evaluate: next(answers)
    record = quantise_encoders(texts, contract, task, lambda case: case.x, INT8_CPU, lambda line: None, None)["encoder"]
    assert record == {"float32": "in int8 its conditions change samples by more than the bound"}
    assert (texts.folder / "encoder.onnx").read_bytes() == before
    assert not list(texts.folder.glob(".eight-bits-*"))
