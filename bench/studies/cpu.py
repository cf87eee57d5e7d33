"""How fast a CPU could evaluate the suite's networks and how fast it does, beside diffusers' loop in eager PyTorch.

    python -m pfdiff.bench.studies.cpu BUILT OUT.json        BUILT: where the suite's engines are, or are built

floor of an evaluation = max(FLOPs / rate, bytes of the weights / copy) + call
rate    FLOP/s of one large matrix product in the backend's own library and precision
copy    bytes/s read by a copy of 64 MiB
call    one run of a graph that does nothing

Each of the three is the best of several tries that are spread over the whole run, for another program may disturb any
moment. Backends and precisions are those that this CPU has. Samples are compared with diffusers' before anything is
timed: in fp32 the error is below 1e-4 of the largest element, or nothing is measured; what bf16 costs is recorded.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import onnx
import torch
from torch.utils.flop_counter import FlopCounterMode

from ...engine.api import Engine
from ...engine.artifact import read_artifact
from ...engine.backends.abstract import Buffers, NetworkFiles
from ...engine.backends.registry import check_precision, open_backend
from ...engine.contract.contract import Contract
from ...engine.errors import PfdiffError
from ..measuring.cases import NFE, Engines, feed, network_bytes
from ..measuring.gpu_engines import module_of
from ..measuring.machine import describe
from ..measuring.peers import diffusers_loop, diffusers_program, same_sample

CONFIGURATIONS = (("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"))
NETWORKS = {"fashion": ("fp32",), "cifar": ("fp32", "bf16")}
TOLERANCE = {"fp32": 1e-4, "bf16": math.inf}  # of the largest element
PRODUCT = 1024  # rows, columns and terms of the matrix product
COPIED = 64 << 20
QUIET_S = 0.05  # before another library's turn: ONNX Runtime's threads spin for 30 ms after their work
PAUSE_S = 0.003  # before a call that is timed


def best_ms(function: Callable[[], object], seconds: float = 1.0) -> float:
    """The fastest of as many calls as fit: a rate is what the machine can do when nothing disturbs it."""
    function()
    found, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        function()
        found = min(found, 1e3 * (time.perf_counter() - start))
    return found


def configurations() -> list[tuple[str, str]]:
    """The backends and precisions that are installed and that this CPU computes in."""
    found = []
    for backend, precision in CONFIGURATIONS:
        with suppress(PfdiffError):
            check_precision(backend, precision)
            found.append((backend, precision))
    return found


@final
class Rates:
    """What the machine can do: a matrix product and an empty call of each configuration, and a copy."""

    def __init__(self, folder: Path) -> None:
        source, target = np.ones(COPIED, np.uint8), np.empty(COPIED, np.uint8)
        self._tried: dict[tuple[str, str, str], tuple[Callable[[], object], float]] = {
            ("copy", "", ""): (lambda: np.copyto(target, source), 0.5)
        }
        for backend, precision in configurations():
            for kind, size, seconds in (("product", PRODUCT, 0.5), ("call", 0, 0.2)):
                self._tried[kind, backend, precision] = _evaluation(folder, backend, precision, size), seconds
        self._best_ms = dict.fromkeys(self._tried, math.inf)

    def again(self) -> None:
        """Another try of everything."""
        for key, (function, seconds) in self._tried.items():
            self._best_ms[key] = min(self._best_ms[key], best_ms(function, seconds))

    @property
    def copy(self) -> float:
        """Bytes read per second."""
        return 1e3 * COPIED / self._best_ms["copy", "", ""]

    def rows(self) -> list[dict[str, Any]]:
        """GFLOP/s of a product and the cost of an empty call, for each configuration."""
        return [
            {
                "backend": backend,
                "precision": precision,
                "gflops": 1e-6 * 2 * PRODUCT**3 / ms,
                "call_ms": self._best_ms["call", backend, precision],
            }
            for (kind, backend, precision), ms in self._best_ms.items()
            if kind == "product"
        ]


def _evaluation(folder: Path, backend: str, precision: str, size: int) -> Callable[[], object]:
    """One run of out = x @ W [size, size], or of out = x [1, 1] for size 0, by a backend of ours."""
    shape = (max(size, 1),)
    name = {"fp32": "FLOAT", "bf16": "BFLOAT16"}[precision]
    dtype = getattr(onnx.TensorProto, name)
    value, node = onnx.helper.make_tensor_value_info, onnx.helper.make_node
    ends = [value("x", dtype, ["batch", *shape]), value("t", onnx.TensorProto.FLOAT, ["batch"])]
    weights = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    initializers = [onnx.numpy_helper.from_array(weights, "W32")] if size else []
    nodes = [node("Cast", ["W32"], ["W"], to=dtype), node("MatMul", ["x", "W"], ["out"])] if size else []
    graph = onnx.helper.make_graph(
        nodes or [node("Identity", ["x"], ["out"])],
        "product",
        ends,
        [value("out", dtype, ["batch", *shape])],
        initializers,
    )
    path = folder / f"{backend}_{precision}_{size}.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)]), path)
    contract = Contract("product", shape, "linear:1000", "eps", precision=precision)
    opened = open_backend(backend, NetworkFiles(path, contract), None)
    x, out = (torch.ones(shape[0], *shape, dtype=opened.dtype) for _ in range(2))
    buffers = Buffers(x, torch.zeros(len(x)), (), out)
    (evaluate,) = opened.bind([buffers])
    return lambda: evaluate() is buffers.out  # which keeps the buffers


def flops_of(module: torch.nn.Module, inputs: list[torch.Tensor]) -> int:
    """Multiplications and additions of one evaluation, as PyTorch counts its products and convolutions."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        module(*inputs)
    return counter.get_total_flops()


def network_figures(engines: Engines, name: str, seconds: float) -> dict[str, Any]:
    """Whole samples at batch 1 on each backend and by diffusers, in turns; errors are those to diffusers' sample.

    Raises PfdiffError, before anything is timed, when an error is larger than it may be.
    """
    nfe, contract = NFE[name][-1], engines.contract(name)
    program = diffusers_program("ddim", contract.schedule, nfe, contract.prediction)
    module = module_of(name, "cpu").requires_grad_(False)
    held = {precision for _, precision in configurations()}.intersection(NETWORKS[name])
    alone = {
        precision: replace(read_artifact(engines.path(name, precision)), programs={nfe: program}, batch=(1,))
        for precision in held
    }
    with ExitStack() as stack:
        opened = [
            stack.enter_context(Engine.open(alone[precision], device="cpu", backend=backend))
            for backend, precision in configurations()
            if precision in alone
        ]
        inputs = [torch.as_tensor(one) for one in feed(opened[0], nfe, 1).values()]
        noise = inputs[0]
        draw = diffusers_loop(module, program, torch.float32, inputs[2:])
        expected = draw(noise)
        errors = [
            same_sample(f"{name}, {one.description}", one.sample(seeds=[0]), expected, TOLERANCE[one.precision])
            for one in opened
        ]
        calls: list[Callable[[], object]] = [lambda: draw(noise)]
        calls += [lambda engine=engine: engine.sample(seeds=[0]) for engine in opened]
        theirs, *ours = _in_turns(calls, seconds)
        rows = [
            {
                "error": error,
                "p50_ms": float(np.median(times)),
                "faster": float(np.median(theirs / times)),
                "bytes": network_bytes(engine, 1),
                "bench": asdict(engine.bench(rounds=max(10, int(1e3 * seconds / np.median(times) / 3)))),
            }
            for engine, error, times in zip(opened, errors, ours, strict=True)
        ]
        return {
            "network": name,
            "nfe": nfe,
            "flops": flops_of(module, inputs),
            "diffusers_ms": float(np.median(theirs)),
            "engines": rows,
        }


def add_floors(network: dict[str, Any], rates: Rates) -> None:
    """The floor of an evaluation and its parts in each row of `network_figures`."""
    found = {(one["backend"], one["precision"]): one for one in rates.rows()}
    for row in network["engines"]:
        rate = found[row["bench"]["backend"], row["bench"]["precision"]]
        flops_ms, bytes_ms = 1e-6 * network["flops"] / rate["gflops"], 1e3 * row.pop("bytes") / rates.copy
        row["floor_network_ms"] = max(flops_ms, bytes_ms) + rate["call_ms"]
        row["floor_parts_ms"] = {"flops": flops_ms, "bytes": bytes_ms, "call": rate["call_ms"]}


def _in_turns(calls: Sequence[Callable[[], object]], seconds: float) -> list[np.ndarray]:
    """Milliseconds of each call for `seconds` in all, each as if its library were alone: after a call of its own.

    The first round does not count.
    """
    rounds: list[list[float]] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(rounds) < 6:
        rounds.append([])
        for call in calls:
            time.sleep(QUIET_S)
            call()
            time.sleep(PAUSE_S)
            start = time.perf_counter()
            call()
            rounds[-1].append(1e3 * (time.perf_counter() - start))
    return list(np.array(rounds[1:]).T)


def main(words: list[str] | None = None) -> None:
    """Measure everything, write, print."""
    about = str(__doc__).splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m pfdiff.bench.studies.cpu", description=about)
    parser.add_argument("built", type=Path, help="folder where the suite's engines are, or are built")
    parser.add_argument("out", type=Path, help="the JSON file to write")
    parser.add_argument(
        "--seconds", type=float, default=15.0, help="whole samples of each network; default %(default)g"
    )
    given = parser.parse_args(words)
    networks = []
    with tempfile.TemporaryDirectory() as folder, Engines(given.built) as engines:
        rates = Rates(Path(folder))
        rates.again()
        for name in NETWORKS:
            try:
                networks.append(network_figures(engines, name, given.seconds))
            except PfdiffError as error:
                sys.exit(f"{parser.prog}: {error}; nothing is written")
            rates.again()
    for network in networks:
        add_floors(network, rates)
    figures = {
        "machine": describe(),
        "copy_gbytes": 1e-9 * rates.copy,
        "rates": rates.rows(),
        "networks": networks,
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(figures, indent=1) + "\n")
    show(figures)


def show(figures: Mapping[str, Any]) -> None:
    """What the file says, in a few lines."""
    for one in figures["rates"]:
        print(f"{one['backend']} {one['precision']}: {one['gflops']:.0f} GFLOP/s, {1e3 * one['call_ms']:.0f} us a call")
    for network in figures["networks"]:
        print(f"{network['network']}, {network['nfe']} NFE, batch 1: diffusers {network['diffusers_ms']:.1f} ms")
        for row in network["engines"]:
            held = row["bench"]
            print(
                f"  {held['backend']} {held['precision']}: {row['p50_ms']:.1f} ms, {row['faster']:.2f} x faster, error "
                f"{row['error']:.1e}, network {held['network_ms']:.2f} ms (floor {row['floor_network_ms']:.2f}), "
                f"overhead {held['overhead']:.3f}"
            )


if __name__ == "__main__":
    main()
