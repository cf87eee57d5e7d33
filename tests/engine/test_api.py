"""`load` and `Engine`: the same samples from every backend, conditions by name, bad input in one clear line."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pfdiff.engine.api import Engine, load
from pfdiff.engine.artifact import read_artifact
from pfdiff.engine.backends import registry as backends
from pfdiff.engine.backends.registry import check_precision, choose_backend
from pfdiff.engine.errors import BackendError, InputError, PfdiffError
from pfdiff.engine.runtime.noise import noise
from pfdiff.engine.runtime.timing.latency import in_turns

from ..small.engine import CONTRACT, SHAPE, Small, program, small, write_engine

SHIFT = np.linspace(-1, 1, 3, dtype=np.float32).reshape(3, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_engine(tmp_path_factory.mktemp("engines") / "small.engine").path


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with load(folder, threads=1) as loaded:
        yield loaded


def exact(nfe: int, z: torch.Tensor, label: Any = 0, shift: Any = 0.0) -> torch.Tensor:
    return program(nfe).evaluate(lambda x, t: small(x, t, label, shift), z.double())


def close(x: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((x - expected).abs().max() <= 1e-4 * expected.abs().max())


# Samples.
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torch"])
def test_every_backend_samples_the_program(folder: Path, backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    module = Small().train() if backend == "torch" else None
    with load(folder, backend=backend, threads=1, module=module) as loaded:
        assert loaded.backend == backend
        assert loaded.backend_reason == "asked for"
        x = loaded.sample(seeds=range(3), nfe=6, label=[1, 2, 3], shift=SHIFT)
        assert x.dtype == torch.float32
        assert close(x, exact(6, noise(range(3), SHAPE), [1, 2, 3], SHIFT))
        again = loaded.sample(seeds=[2], nfe=6, label=3, shift=SHIFT)
        assert (again[0] - x[2]).abs().max() <= 1e-5
    assert module is None or module.training


def test_one_of_two_engines_of_a_module_closed_leaves_the_other_in_evaluation_mode(folder: Path) -> None:
    module = Small().train()
    first, second = (load(folder, backend="torch", module=module) for _ in range(2))
    first.close()
    assert not any(one.training for one in module.modules())
    second.close()
    assert all(one.training for one in module.modules())


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("taken", [{"time_dtype": "int64"}, {"time_rank": 0}, {"fixed_batch": 4}])
def test_foreign_inputs_run(tmp_path: Path, backend: str, taken: dict[str, Any]) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    write_engine(tmp_path / "e", contract=replace(CONTRACT, **taken), batch=(taken.get("fixed_batch", 2),))
    with load(tmp_path / "e", backend=backend, threads=1) as loaded:
        x = loaded.sample(seeds=range(5), nfe=4, label=2)
    assert close(x, exact(4, noise(range(5), SHAPE), 2))


def test_auto_says_why(engine: Engine) -> None:
    assert (engine.backend, engine.device) == ("onnxruntime", "cpu")
    assert engine.backend_reason.startswith("the default for fp32 on a CPU; ")  # too short an evaluation
    assert "onnxruntime" in repr(engine)


def test_own_noise_of_any_float_type_and_layout(engine: Engine) -> None:
    z = noise(range(9), SHAPE)
    expected = engine.sample(seeds=range(9), nfe=4)
    for given in (z, z.double(), z.numpy(), z.to(memory_format=torch.channels_last), z.double().numpy().tolist()):
        assert torch.equal(engine.sample(noise=given, nfe=4), expected)


def test_results_are_new_tensors(engine: Engine) -> None:
    first = engine.sample(seeds=[1], nfe=4)
    kept = first.clone()
    engine.sample(seeds=[2], nfe=4)
    assert torch.equal(first, kept)


def test_no_seeds_give_an_empty_result(engine: Engine) -> None:
    assert engine.sample(seeds=[], nfe=4).shape == (0, *SHAPE)
    assert engine.sample(noise=np.empty((0, *SHAPE), np.float32), nfe=4, label=3).shape == (0, *SHAPE)
    assert engine.images(seeds=range(0), nfe=4).shape == (0, 3, 5, 2)


@pytest.mark.parametrize("name", ["noise", "shift", "image"])
def test_tensors_without_values_of_their_own_are_refused(engine: Engine, name: str) -> None:
    zeros = torch.zeros(1, *SHAPE)
    for tensor, what in (
        (zeros.to("meta"), "a tensor on device meta, which has no values"),
        (zeros.to_sparse(), "a sparse_coo tensor, expected a dense one"),
    ):
        given: dict[str, Any] = {name: tensor} if name == "noise" else {"seeds": [1], name: tensor}
        with pytest.raises(InputError, match=f"^{name}: got {what}"):
            engine.sample(nfe=4, **given)


def test_conditions_by_value_label_and_default(engine: Engine) -> None:
    by_label = engine.sample(seeds=[1, 2], nfe=4, label=["two", "one"])
    assert torch.equal(by_label, engine.sample(seeds=[1, 2], nfe=4, label=torch.tensor([2, 1])))
    assert torch.equal(engine.sample(seeds=[1], nfe=4), engine.sample(seeds=[1], nfe=4, label="zero"))
    each = np.stack([SHIFT, 2 * SHIFT])
    assert close(engine.sample(seeds=[1, 2], nfe=4, shift=each), exact(4, noise([1, 2], SHAPE), 0, each))


def test_images_are_clamped_to_the_range_of_the_data(tmp_path: Path) -> None:
    write_engine(tmp_path / "e", contract=replace(CONTRACT, data_range=(0.0, 2.0)))
    with load(tmp_path / "e", threads=1) as loaded:
        x = loaded.sample(seeds=range(20), nfe=4, label=9)
        pixels = loaded.images(seeds=range(20), nfe=4, label=9)
    assert pixels.dtype == torch.uint8
    expected = (x.double().clamp(0, 2) * 127.5).permute(0, 2, 3, 1)
    assert pixels.shape == (20, 3, 5, 2)
    assert (pixels.double() - expected).abs().max() <= 0.501
    assert pixels.min() == 0
    assert pixels.max() == 255


def test_one_program_needs_no_nfe(tmp_path: Path) -> None:
    write_engine(tmp_path / "e", nfe=(4,))
    with load(tmp_path / "e", threads=1) as loaded:
        assert torch.equal(loaded.sample(seeds=[1]), loaded.sample(seeds=[1], nfe=4))


# Bad input.
BAD: dict[str, tuple[Callable[[Engine], object], str]] = {
    "absent NFE": (lambda e: e.sample(seeds=[1], nfe=5), "nfe=5, this engine has 4, 6"),
    "NFE 0": (lambda e: e.sample(seeds=[1], nfe=0), "nfe=0"),
    "NFE true": (lambda e: e.sample(seeds=[1], nfe=True), "nfe=True"),
    "NFE text": (lambda e: e.sample(seeds=[1], nfe="4"), "nfe='4'"),  # type: ignore[arg-type]
    "NFE a list": (lambda e: e.sample(seeds=[1], nfe=[4]), r"nfe=\[4\]"),  # type: ignore[arg-type]
    "no NFE": (lambda e: e.sample(seeds=[1]), "nfe is missing"),
    "neither seeds nor noise": (lambda e: e.sample(nfe=4), "got neither"),
    "seeds and noise": (lambda e: e.sample(seeds=[1], noise=noise([1], SHAPE), nfe=4), "got both"),
    "one seed without a list": (lambda e: e.sample(seeds=8, nfe=4), r"seeds=8.*range\(8\)"),  # type: ignore[arg-type]
    "a seed too large": (lambda e: e.sample(seeds=[2**64], nfe=4), "seed 18446744073709551616"),
    "noise of another shape": (lambda e: e.sample(noise=noise([1], (2, 3, 4)), nfe=4), r"noise \[1, 2, 3, 4\]"),
    "noise without batch": (lambda e: e.sample(noise=noise([1], SHAPE)[0], nfe=4), r"noise \[2, 3, 5\]"),
    "noise of integers": (lambda e: e.sample(noise=np.ones((1, *SHAPE), int), nfe=4), "int64, expected floats"),
    "noise of words": (lambda e: e.sample(noise="loud", nfe=4), "noise of type str"),
    "noise with NaN": (lambda e: e.sample(noise=np.full((1, *SHAPE), np.nan), nfe=4), "NaN or infinite"),
    "an unknown condition": (
        lambda e: e.sample(seeds=[1], nfe=4, colour=1),
        "unknown condition 'colour'; .*label, shift",
    ),
    "an unknown label": (lambda e: e.sample(seeds=[1], nfe=4, label="ten"), "unknown label 'ten'; .*zero, one, two"),
    "a label out of range": (lambda e: e.sample(seeds=[1], nfe=4, label=10), r"got 10, expected values in 0\.\.9"),
    "a fraction as label": (lambda e: e.sample(seeds=[1], nfe=4, label=1.5), "fractions"),
    "labels of another number": (lambda e: e.sample(seeds=[1], nfe=4, label=[1, 2]), "2 values for 1 sample; give 1"),
    "a condition of another shape": (lambda e: e.sample(seeds=[1], nfe=4, shift=1.0), "'shift': got shape"),
    "a condition with NaN": (lambda e: e.sample(seeds=[1], nfe=4, shift=SHIFT * np.nan), "NaN"),
    "bench: a batch that is no bucket": (lambda e: e.bench(4, 3), "batch 3, expected one of this engine's: 1, 8"),
    "bench: no rounds": (lambda e: e.bench(4, 1, 0), "rounds=0"),
    "bench: absent NFE": (lambda e: e.bench(5, 1), "nfe=5"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(engine: Engine, case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(InputError, match=message) as caught:
        call(engine)
    assert "\n" not in str(caught.value)
    assert engine.sample(seeds=[1], nfe=4).isfinite().all()


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"backend": "onnx"}, InputError, "backend 'onnx', expected one of auto, tensorrt"),
        ({"device": "gpu"}, InputError, "device 'gpu'"),
        ({"device": "cuda"}, BackendError, r"device 'cuda': torch .*give device='cpu' or 'auto'"),
        ({"device": "cuda:0x"}, InputError, "device 'cuda:0x', expected auto, cpu, cuda or cuda:N"),
        ({"threads": 0}, InputError, "threads=0"),
        ({"threads": True}, InputError, "threads=True"),
        ({"backend": "torch"}, BackendError, "holds ONNX only; give module="),
    ],
)
def test_bad_options_of_load(folder: Path, options: dict[str, Any], kind: type[PfdiffError], message: str) -> None:
    with pytest.raises(kind, match=message):
        load(folder, **options)


def test_images_need_channels_height_and_width(tmp_path: Path) -> None:
    artifact = write_engine(tmp_path / "e")
    flat = replace(artifact, contract=replace(CONTRACT, shape=(30,)))
    with pytest.raises(InputError, match="are no images"):
        Engine.open(flat, backend="torch", module=Small()).images(seeds=[1], nfe=4)


def test_a_network_that_is_not_the_contract_s_is_refused(folder: Path) -> None:
    artifact = read_artifact(folder)
    with pytest.raises(BackendError, match="takes x, t, label, shift and gives out; the contract says x, t and out"):
        Engine.open(replace(artifact, contract=replace(CONTRACT, conditions=())))


@pytest.mark.parametrize("content", [b"", b"junk", b"\x08\x0a"])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_network_that_is_no_onnx_is_refused(folder: Path, tmp_path: Path, backend: str, content: bytes) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    (tmp_path / "network.onnx").write_bytes(content)
    with pytest.raises(BackendError, match=f"{backend} refuses '.*network.onnx': ") as caught:
        Engine.open(replace(read_artifact(folder), path=tmp_path), backend=backend)
    assert "\n" not in str(caught.value)


def test_a_network_that_gives_nan_says_where(folder: Path) -> None:
    message = "not finite at evaluation 1 of 4, time 999;"
    with (
        load(folder, backend="torch", module=Small(float("nan"))) as loaded,
        pytest.raises(BackendError, match=message),
    ):
        loaded.sample(seeds=[1], nfe=4)


# Precision and choice of the backend.
def test_a_missing_library_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"openvino, which is not installed; pip install 'pfdiff\[openvino\]'"):
        backends.check_backend("openvino")
    for precision in ("fp32", "fp16", "bf16"):
        with pytest.raises(BackendError, match=precision):
            choose_backend(precision)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_precision_is_never_changed_silently(folder: Path, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    openvino_cpu = pytest.importorskip("pfdiff.engine.backends.openvino_cpu")
    monkeypatch.setattr(openvino_cpu, "cpu_precisions", lambda: ("fp32",))
    half = replace(read_artifact(folder), precision=precision, contract=replace(CONTRACT, precision=precision))
    with pytest.raises(BackendError, match=f"openvino: this CPU has no {precision}"):
        Engine.open(half, backend="openvino")
    with pytest.raises(BackendError, match=f"'openvino' has no {precision} on this CPU, only fp32"):
        check_precision("openvino", precision)
    with pytest.raises(BackendError, match=precision):
        Engine.open(half, backend="torch", module=Small())
    monkeypatch.setattr(openvino_cpu, "cpu_precisions", lambda: ("fp32", precision))
    assert choose_backend(precision) == ("openvino", f"this CPU computes in {precision} and openvino uses it")


def test_onnxruntime_refuses_bf16_and_explains_fp16(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = read_artifact(folder)
    with pytest.raises(BackendError, match="onnxruntime has no bf16 on a CPU"):
        Engine.open(replace(artifact, contract=replace(CONTRACT, precision="bf16")), backend="onnxruntime")
    monkeypatch.setattr(backends, "is_installed", lambda name: name == "onnxruntime")
    name, reason = choose_backend("fp16")
    assert name == "onnxruntime"
    assert "openvino is not installed" in reason


# Life and threads.
def test_after_close_an_engine_says_so(folder: Path) -> None:
    with load(folder, threads=1) as loaded:
        assert loaded.sample(seeds=[1], nfe=4).shape == (1, *SHAPE)
    loaded.close()
    with pytest.raises(BackendError, match="is closed; load it again"):
        loaded.sample(seeds=[1], nfe=4)


def test_two_engines_run_in_two_threads(folder: Path) -> None:
    results: dict[int, list[torch.Tensor]] = {0: [], 1: []}

    def work(which: int) -> None:
        with load(folder, threads=1) as loaded:
            for seed in range(30):
                results[which].append(loaded.sample(seeds=[seed], nfe=6, label=which))

    threads = [threading.Thread(target=work, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for which in (0, 1):
        assert close(torch.cat(results[which]), exact(6, noise(range(30), SHAPE), which))


# Figures.
def test_bench_measures_calls_and_floor_in_one_run(engine: Engine) -> None:
    figures = engine.bench(6, 8, rounds=5)
    assert (figures.nfe, figures.batch, figures.rounds, figures.backend) == (6, 8, 5, "onnxruntime")
    assert 0 < figures.p50_ms <= figures.p90_ms <= figures.p99_ms <= figures.max_ms
    assert figures.network_ms == figures.floor_ms / 6
    assert figures.per_sample_ms == figures.p50_ms / 8
    assert min(figures.first_ms, figures.load_ms, figures.updates_ms, figures.overhead) > 0
    assert all(isinstance(value, (str, int, float)) or value is None for value in asdict(figures).values())


def test_the_parts_of_a_call_can_be_repeated_and_do_not_disturb_it(engine: Engine) -> None:
    expected = engine.sample(seeds=range(8), nfe=6)
    parts, called = engine.parts(6, 8), []
    other = parts.wrap(lambda: called.append(1))
    for _ in range(3):
        other()
        parts.updates()
        parts.network()
        assert torch.equal(parts.whole(), expected)  # type: ignore[arg-type]
    assert called == [1, 1, 1]
    assert parts.timer() < parts.timer()


def test_turns_are_fair_and_times_stay_with_their_function() -> None:
    clock, order = [0.0], []

    def spend(name: str, seconds: float) -> None:
        order.append(name)
        clock[0] += seconds

    spenders = [lambda: spend("a", 1.0), lambda: spend("b", 2.0), lambda: spend("c", 4.0)]
    times = in_turns(spenders, 6, lambda: clock[0])
    assert np.array_equal(times, np.tile([1e3, 2e3, 4e3], (6, 1)))
    firsts = order[6::3]  # after two rounds unmeasured
    assert sorted(firsts) == sorted(2 * "abc")


def test_an_engine_without_text_encoders_takes_no_prompt(tmp_path: Path) -> None:
    write_engine(tmp_path / "plain")
    with Engine.open(tmp_path / "plain", "cpu") as engine:
        assert not engine.takes_prompt
