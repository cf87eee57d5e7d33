"""int8 and fp8 of a small network: within the bound on seeds of their own, refused where it makes no sense."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from pfdiff.cli import main
from pfdiff.engine.api import load
from pfdiff.engine.artifact import read_artifact
from pfdiff.engine.compiler.compile import compile as compile_program
from pfdiff.engine.errors import BackendError, InputError
from pfdiff.engine.runtime.noise import noise
from pfdiff.export.build import build
from pfdiff.export.check import TrialInputs
from pfdiff.export.engine_directory import write_programs
from pfdiff.export.network import Network
from pfdiff.export.precision import tasks
from pfdiff.export.precision.added import Added
from pfdiff.export.precision.quantise import quantise
from pfdiff.export.precision.ranges import INT8_CPU
from pfdiff.export.precision.write import Asked

from ...small.precision import SAMPLER, SHAPE, WORDS, Small, small_file

SEEDS = range(700, 732)  # others than those of calibration and check


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_file(tmp_path_factory.mktemp("quantise"))


@pytest.fixture(scope="module")
def engine(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In int8, of 4 evaluations."""
    out = tmp_path_factory.mktemp("int8") / "e"
    lines: list[str] = []
    build(Network(file, **WORDS), 4, **SAMPLER, precision="int8", backend="onnxruntime", out=out, progress=lines.append)
    assert any("RMS added to samples: NFE 4" in line for line in lines)
    return out


def exact_samples(program: Any, module: torch.nn.Module) -> np.ndarray:
    """In float64, by the program's reference execution."""
    module = module.double()
    with torch.no_grad():
        start = torch.from_numpy(noise(SEEDS, SHAPE).numpy()).double()
        return program.evaluate(lambda x, t: module(x, torch.full((len(x),), float(t))), start).numpy()


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(values, np.float64)))))


def test_samples_of_other_seeds_stay_within_half_of_the_samplers_own_error(engine: Path) -> None:
    artifact = read_artifact(engine)
    program = artifact.program()
    exact = np.clip(exact_samples(program, Small()), -1, 1)
    many = compile_program("heun", "linear:1000", 200, "trailing", prediction="v")
    own = rms(exact - np.clip(exact_samples(many, Small()), -1, 1))
    with load(engine, backend="onnxruntime") as opened:
        added = rms(np.clip(opened.sample(seeds=SEEDS).numpy(), -1, 1) - exact)
    assert 0 < added < 0.75 * own  # half, on 32 seeds that nothing was chosen by
    record = artifact.provenance["precision_record"]
    held = record["samples"]["NFE 4"]
    assert held["bound"] == pytest.approx(held["own"] / 2)
    assert held["own"] == pytest.approx(own, rel=0.35)
    assert held["added"] <= held["bound"]
    assert record["evaluation_error"] < 0.1
    assert 0 < record["libraries"]["onnxruntime"] < 0.1


def test_the_engine_says_what_it_is(engine: Path) -> None:
    artifact = read_artifact(engine)
    assert (artifact.precision, artifact.contract.precision) == ("int8", "fp32")
    assert artifact.provenance["int8 inside"].startswith("4 of 4 convolutions")
    with load(engine, backend="onnxruntime") as opened:
        assert opened.precision == "int8"
        assert opened.description.endswith("int8")


def test_the_whole_sampler_becomes_one_file(engine: Path, tmp_path: Path) -> None:
    import onnxruntime

    from pfdiff.export.one_file.sampler_onnx import export_sampler

    export_sampler(engine, tmp_path / "sampler.onnx", nfe=4)
    session = onnxruntime.InferenceSession(tmp_path / "sampler.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {"noise": noise(SEEDS, SHAPE).numpy()})[0]
    exact = exact_samples(read_artifact(engine).program(), Small())
    assert 1e-4 < rms(found - exact) / rms(exact) < 0.05


def test_the_same_build_does_nothing_and_another_bound_quantises_anew(file: Path, engine: Path) -> None:
    given: dict[str, Any] = {**SAMPLER, "precision": "int8", "backend": "onnxruntime", "out": engine}
    before = (engine / "engine.json").read_bytes()
    build(Network(file, **WORDS), 4, **given).close()
    assert (engine / "engine.json").read_bytes() == before
    lines: list[str] = []
    build(Network(file, **WORDS), 4, **given, quantise_error=0.5, progress=lines.append).close()
    assert any("quantised anew" in line for line in lines)
    assert read_artifact(engine).provenance["precision_record"]["samples"]["NFE 4"]["bound"] == 0.5


class ByHand:
    """A task whose bound is on the output of single evaluations, and whose cases are given."""

    inputs, output, time = ("x",), "out", ""

    def __init__(self, cases: list[Any], bound: float) -> None:
        self._cases, self._bound = cases, bound
        self._exact: list[np.ndarray] = []

    def cases(self, evaluate: Any) -> list[Any]:
        self._exact = [evaluate(case) for case in self._cases]
        return self._cases

    def others(self, evaluate: Any) -> list[Any]:
        return self._cases

    def errors(self, evaluate: Any, *, check: bool) -> dict[str, Added]:
        found = [evaluate(case) for case in self._cases]
        return {"out": Added(rms(np.stack(found) - np.stack(self._exact)), self._bound, None)}


TWO_LAYERS = """<ir_version: 10, opset_import: ["" : 21]> net (float[b,8] x) => (float[b,8] out) {
good = MatMul(x, a)  wide = Mul(x, row)  bad = MatMul(wide, c)  out = Add(good, bad) }"""


def test_a_layer_whose_inputs_spoil_eight_bits_is_given_back() -> None:
    """One input of the second layer is 500 times the others, so their steps are lost."""

    generator = np.random.default_rng(0)
    constants = {name: generator.standard_normal((8, 8)).astype(np.float32) for name in ("a", "c")}
    constants["c"][0] = 0  # the outlier itself changes nothing
    constants["row"] = np.array([500, 1, 1, 1, 1, 1, 1, 1], np.float32)
    model = onnx.parser.parse_model(TWO_LAYERS)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    cases = [TrialInputs(generator.standard_normal((64, 8)).astype(np.float32), np.empty(0), ())]
    made = quantise(model, ByHand(cases, 0.1), INT8_CPU, say=lambda line: None)
    assert made.record["layers"] == {"linear layer": [1, 2]}
    assert len(made.record["given_back"]) == 1
    assert made.record["samples"]["out"]["added"] <= 0.1
    held = [one.name for one in made.model.graph.initializer if one.data_type == onnx.TensorProto.INT8]
    assert all("a_" in name for name in held), held


@pytest.mark.parametrize(
    ("precision", "stored"), [("int8", onnx.TensorProto.INT8), ("fp8", onnx.TensorProto.FLOAT8E4M3FN)]
)
def test_plans_for_two_gpus_are_built_without_one(file: Path, tmp_path: Path, precision: str, stored: int) -> None:
    pytest.importorskip("tensorrt_rtx")
    given: dict[str, Any] = {**SAMPLER, "backend": "onnxruntime", "target": "sm89,sm120", "quantise_error": 0.2}
    with build(Network(file, **WORDS), 2, **given, precision=precision, out=tmp_path / "e") as engine:
        assert (engine.precision, engine.contract.precision) == (precision, "fp16")
        assert np.isfinite(engine.sample(seeds=[0]).numpy()).all()
    assert len(list((tmp_path / "e" / "plans").glob("*.plan"))) == 2
    model = onnx.load(tmp_path / "e" / "network.onnx")
    assert {one.data_type for one in model.graph.initializer if len(one.dims) == 4} == {stored}
    constants = {one.name: one for one in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            assert constants[node.input[1]].data_type == onnx.TensorProto.FLOAT16
            assert not np.frombuffer(constants[node.input[2]].raw_data, np.uint8).any()  # TensorRT has no zero points


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"precision": "fp8", "target": "sm86"}, "fp8 needs compute capability sm89 or newer, sm86 has none"),
        ({"precision": "int8", "quantise_error": -1.0}, "quantise_error -1.0, expected an RMS above 0"),
        ({"precision": "fp32", "quantise_error": 0.1}, "is of int8, fp8 and auto, not of precision fp32"),
        ({"precision": "int4"}, "precision 'int4', expected one of fp32, fp16, bf16, int8, fp8, auto"),
        ({"precision": "int8", "quantise_error": 1e-9}, "no layer's error is within the bound"),
    ],
)
def test_bad_input_is_refused_in_one_line(file: Path, tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        build(Network(file, **WORDS), 2, **SAMPLER, backend="onnxruntime", out=tmp_path / "e", **given)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "e").exists()


def test_auto_for_another_machine_is_refused(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pfdiff.export.precision.write.why_not_cuda", lambda: "there is none")
    given: dict[str, Any] = {**SAMPLER, "precision": "auto", "target": "sm89", "out": tmp_path / "e"}
    with pytest.raises(InputError, match="which has no GPU, and target sm89 is another; name a precision"):
        build(Network(file, **WORDS), 2, **given)


def test_a_file_in_eight_bits_is_not_quantised_again(engine: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"in eight bits already .*; build with precision fp32, which keeps them so"):
        build(Network(engine / "network.onnx", **WORDS), 2, **SAMPLER, precision="int8", out=tmp_path / "e")


def test_a_backend_without_eight_bits_says_so(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="'torch' has no int8 on this CPU"):
        build(Network(Small(), shape=SHAPE, **WORDS), 2, precision="int8", backend="torch", out=tmp_path / "e")


def test_conditions_without_values_are_named(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
    net (float[b,4] x, float[b] t, float[b,4] y) => (float[b,4] out) { out = Add(x, y) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "net.onnx")
    network = Network(tmp_path / "net.onnx", schedule="linear:1000", prediction="eps")
    with pytest.raises(InputError, match="condition 'y' has no default or labels to sample with"):
        build(network, 2, **SAMPLER, precision="int8", backend="onnxruntime", out=tmp_path / "e")


def test_a_network_without_layers_is_refused(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]> net (float[b,4] x, float[b] t) => (float[b,4] out)
    <float[1] half = {0.5}> { out = Mul(x, half) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "net.onnx")
    network = Network(tmp_path / "net.onnx", schedule="linear:1000", prediction="eps")
    with pytest.raises(InputError, match="no convolution and no linear layer with constant weights"):
        build(network, 2, **SAMPLER, precision="int8", backend="onnxruntime", out=tmp_path / "e", quantise_error=1.0)


class Decoder(torch.nn.Module):
    """Two images' rows and columns for each latent, as pixel shuffling makes them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.wide, self.narrow = torch.nn.Conv2d(2, 24, 3, padding=1), torch.nn.Conv2d(24, 12, 3, padding=1)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.tanh(torch.nn.functional.pixel_shuffle(self.narrow(torch.relu(self.wide(latents))), 2))


def test_the_decoder_of_a_latent_model_is_quantised_by_its_pictures(file: Path, tmp_path: Path) -> None:
    network = Network(file, **WORDS, decoder=Decoder())
    lines: list[str] = []
    given: dict[str, Any] = {**SAMPLER, "backend": "onnxruntime", "out": tmp_path / "e", "progress": lines.append}
    with build(network, 3, **given, precision="int8") as engine:
        found = engine.images(seeds=SEEDS).float().numpy()
        program = engine.programs[3]
    record = read_artifact(tmp_path / "e").provenance["precision_record"]
    assert record["decoder"]["layers"] == {"convolution": [2, 2]}
    held = record["decoder"]["samples"]["pictures"]
    assert held["added"] <= held["bound"]
    assert any(line.startswith("decoder: int8: 2 of 2 convolutions") for line in lines)
    with torch.no_grad():
        decoded = Decoder().double()(torch.from_numpy(exact_samples(program, Small()))).numpy()
    exact = (np.clip(decoded, -1, 1).transpose(0, 2, 3, 1) + 1) * 127.5
    assert 0.1 < rms(found - exact) < 12  # of 255


class Unshuffled(torch.nn.Module):
    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.tanh(latents.repeat(1, 2, 1, 1)[:, :3])


@pytest.mark.parametrize(
    ("precision", "stored"), [("int8", onnx.TensorProto.INT8), ("fp8", onnx.TensorProto.FLOAT8E4M3FN)]
)
def test_a_decoder_for_a_gpu_is_quantised_between_float16(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, stored: int
) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(tasks, "seeds_for", lambda *given: 4)
    out = tmp_path / "e"
    given: dict[str, Any] = {**SAMPLER, "backend": "onnxruntime", "out": out, "target": "sm89", "quantise_error": 0.2}
    with build(Network(file, **WORDS, decoder=Decoder()), 2, **given, precision=precision) as engine:
        latents = engine.sample(seeds=SEEDS).float()
        found = engine.images(seeds=SEEDS).numpy().astype(np.float64)
    artifact = read_artifact(out)
    record = artifact.provenance["precision_record"]["decoder"]
    assert record["layers"] == {"convolution": [2, 2]}
    assert record["samples"]["pictures"]["added"] <= record["samples"]["pictures"]["bound"] == 0.2
    assert artifact.contracts["decoder.onnx"].precision == "fp16"
    constants = {one.name: one for one in onnx.load(out / "decoder.onnx").graph.initializer}
    assert {one.data_type for one in constants.values() if len(one.dims) == 4} == {stored}
    scales = {one.input[1] for one in onnx.load(out / "decoder.onnx").graph.node if one.op_type == "QuantizeLinear"}
    assert {constants[one].data_type for one in scales} == {onnx.TensorProto.FLOAT16}
    with torch.no_grad():
        exact = Decoder().double()(latents.double()).clamp(-1, 1).permute(0, 2, 3, 1).numpy()
    added = rms(found - (exact + 1) * 127.5) / 127.5  # rounding to 255 steps alone is 0.0023
    assert 0.001 < added < 2 * record["samples"]["pictures"]["added"] + 0.0023
    assert len(list((out / "plans").glob("*.plan"))) == 2
    assert not list(out.glob(".*"))  # the float32 graphs are gone


def test_a_decoder_without_layers_stays_as_the_gpu_takes_it(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "seeds_for", lambda *given: 4)
    lines: list[str] = []
    network, asked = Network(file, **WORDS, decoder=Unshuffled()), Asked({}, 0.2, for_gpu=True, clips=False)
    program = compile_program("ddim", "linear:1000", 2, "trailing", prediction="v")
    artifact = write_programs(
        *(tmp_path / "e", network, {2: program}),
        precision="int8",
        batch=(1,),
        asked=replace(asked, programs={2: program}),
        say=lines.append,
    )
    assert any(line.startswith("the decoder stays float16: the network has no convolution") for line in lines)
    assert list(artifact.provenance["precision_record"]["decoder"]) == ["float16"]
    assert artifact.contracts["decoder.onnx"].precision == "fp16"
    assert onnx.load(tmp_path / "e" / "decoder.onnx").graph.input[0].type.tensor_type.elem_type == 10  # float16


def test_tune_refines_the_sampler_on_the_quantised_network(file: Path, tmp_path: Path) -> None:
    from pfdiff.quality.tune import tune

    out = tmp_path / "e"
    given: dict[str, Any] = {"backend": "onnxruntime", "out": out, "precision": "int8", "quantise_error": 0.5}
    build(Network(file, **WORDS), 3, **SAMPLER, **given).close()
    before = read_artifact(out)
    words: dict[str, Any] = {"solvers": ["ddim"], "grids": ["trailing"], "local": False, "reference": 20}
    ranking = tune(out, 3, refine=True, calibration=2, held_out=8, out=out, **words)
    after = read_artifact(out)
    assert after.precision == "int8"
    assert after.files == before.files  # the network is the quantised one, untouched
    assert after.programs[3].digest == ranking[0].program.digest != before.programs[3].digest
    assert ranking.refinement is not None
    assert ranking.refinement["validation"][-1] <= ranking.refinement["validation"][0]


@pytest.mark.parametrize(
    ("elements", "seconds", "seeds"),
    [(8, 1e-4, 1024), (64, 1e-3, 256), (8, 0.1, 50), (8, 1.0, 24), (3072, 1e-3, 24), (3072, 6.0, 10), (3072, 90.0, 2)],
)
def test_small_samples_are_measured_on_more_seeds_where_that_is_cheap(
    elements: int, seconds: float, seeds: int
) -> None:
    """In a minute up to 24; 16,384 elements or 1,024 seeds where these take up to five seconds."""
    assert tasks.seeds_in(elements, seconds) == seeds


def test_layers_of_a_slow_network_are_measured_on_fewer_evaluations(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is chosen is still within the bound, as samples show, and no line is said where no layer is given back."""
    monkeypatch.setattr(tasks, "seeds_for", lambda *given: 8)
    monkeypatch.setattr("pfdiff.export.precision.quantise.SECONDS_ALONE", 0.0)
    for bound, expected in ((0.002, 1), (0.5, 0)):
        lines: list[str] = []
        words: dict[str, Any] = {**SAMPLER, "precision": "int8", "backend": "onnxruntime", "quantise_error": bound}
        out = tmp_path / f"e{bound}"
        build(Network(file, **WORDS), 4, **words, out=out, progress=lines.append).close()
        record = read_artifact(out).provenance["precision_record"]
        assert sum("measured on 1 of 4 evaluations" in line for line in lines) == expected
        assert bool(record["given_back"]) == bool(expected)
        assert record["samples"]["NFE 4"]["added"] <= bound


@pytest.mark.parametrize(
    ("seconds", "counts", "minutes"), [(0.01, [5], None), (1.0, [5], None), (2.0, [5], "6"), (2.0, [5, 8], "14")]
)
def test_how_long_it_takes_is_said_before_where_it_is_long(
    seconds: float, counts: list[int], minutes: str | None
) -> None:
    """Counted by hand: 48 evaluations of the reference and 24 passes for each program, five minutes for layers."""
    line = tasks.length_line(seconds, counts)
    assert (line is None) == (minutes is None)
    assert line is None or line.startswith(f"eight bits take about {minutes} minutes here, and 5 more or longer")


def test_the_command_says_at_once_how_long_it_takes(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tasks, "LONG", 0.0)
    words = ["build", str(file), "--nfe", "2", "--schedule", "linear:1000", "--prediction", "v", "--solver", "ddim"]
    assert main([*words, "--precision", "int8", "--quantise-error", "0.5", "-o", str(tmp_path / "e")]) == 0
    assert "pfdiff: eight bits take about 0 minutes here" in capsys.readouterr().err
