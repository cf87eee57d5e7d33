"""How fast a CPU could evaluate the suite's networks and how fast it does, beside diffusers' loop in eager PyTorch.

    python -m pfdiff.bench.cpu BUILT OUT.json        BUILT: where the suite's engines are, or are built

floor of an evaluation = max(FLOPs / rate, bytes of the weights / copy) + call
rate    FLOP/s of one large matrix product in the backend's own library and precision
copy    bytes/s read by a copy of 64 MiB
call    one run of a graph that does nothing
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch.utils.flop_counter import FlopCounterMode

from ..engine.api import Engine
from ..engine.artifact import read_artifact
from ..engine.backends import open_backend
from ..engine.backends.abstract import Buffers, Source
from ..engine.contract import Contract
from .cases import NFE, Engines, feed, network_bytes
from .gpu_engines import module_of
from .machine import describe
from .peers import diffusers_loop, diffusers_program

CONFIGURATIONS = (("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"))
NETWORKS = {"fashion": CONFIGURATIONS[:2], "cifar": CONFIGURATIONS}
PRODUCT = 1024  # rows, columns and terms of the matrix product
COPIED = 64 << 20
PAUSE_S = 0.003  # lets the threads of another library, which spin for a while after their work, go to sleep


def best_ms(function: Callable[[], object], seconds: float = 1.0) -> float:
    """The fastest of as many calls as fit: a rate is what the machine can do when nothing disturbs it."""
    function()
    found, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        function()
        found = min(found, 1e3 * (time.perf_counter() - start))
    return found


def rates(folder: Path) -> Iterator[dict[str, Any]]:
    """FLOP/s of a matrix product and the cost of an empty call, for each backend and precision."""
    for backend, precision in CONFIGURATIONS:
        product, empty = (_evaluation(folder, backend, precision, size) for size in (PRODUCT, 0))
        flops = 2 * PRODUCT**3
        yield {
            "backend": backend,
            "precision": precision,
            "gflops": 1e-6 * flops / best_ms(product),
            "call_ms": best_ms(empty, 0.3),
        }


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
    opened = open_backend(backend, Source(path, contract), None)
    x, out = (torch.ones(shape[0], *shape, dtype=opened.dtype) for _ in range(2))
    buffers = Buffers(x, torch.zeros(len(x)), (), out)
    (evaluate,) = opened.bind([buffers])
    return lambda: evaluate() is buffers.out  # which keeps the buffers


def copy_rate() -> float:
    """Bytes read per second by a copy."""
    source, target = np.ones(COPIED, np.uint8), np.empty(COPIED, np.uint8)
    return 1e3 * COPIED / best_ms(lambda: np.copyto(target, source))


def flops_of(module: torch.nn.Module, inputs: list[torch.Tensor]) -> int:
    """Multiplications and additions of one evaluation, as PyTorch counts its products and convolutions."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        module(*inputs)
    return counter.get_total_flops()


def network_figures(engines: Engines, name: str, seconds: float, found: list[dict[str, Any]], copy: float) -> Any:
    """Whole samples at batch 1 on each backend and by diffusers, in turns; errors are those to diffusers' sample."""
    nfe, contract = NFE[name][-1], engines.contract(name)
    program = diffusers_program("ddim", contract.schedule, nfe, contract.prediction)
    module = module_of(name, "cpu").requires_grad_(False)
    with ExitStack() as stack:
        opened: dict[str, Engine] = {}
        for backend, precision in NETWORKS[name]:
            artifact = replace(
                read_artifact(engines.path(name, precision)), programs={program.nfe: program}, batch=(1,)
            )
            opened[f"{backend} {precision}"] = stack.enter_context(Engine(artifact, device="cpu", backend=backend))
        first = next(iter(opened.values()))
        inputs = [torch.as_tensor(one) for one in feed(first, nfe, 1).values()]
        noise = inputs[0]
        draw = diffusers_loop(module, program, torch.float32, inputs[2:])
        expected, flops = draw(noise), flops_of(module, inputs)
        calls = {"diffusers": lambda: draw(noise)}
        calls |= {key: lambda engine=engine: engine.sample(seeds=[0], nfe=nfe) for key, engine in opened.items()}
        times = _in_turns(calls, seconds)
        rows = []
        for key, engine in opened.items():
            rate = next(one for one in found if key == f"{one['backend']} {one['precision']}")
            parts_ms = {
                "flops": 1e-6 * flops / rate["gflops"],
                "bytes": 1e3 * network_bytes(engine, 1) / copy,
                "call": rate["call_ms"],
            }
            sample = engine.sample(seeds=[0], nfe=nfe)
            rows.append(
                {
                    "error": float((sample - expected).abs().max() / expected.abs().max()),
                    "p50_ms": float(np.median(times[key])),
                    "faster": float(np.median(times["diffusers"] / times[key])),
                    "floor_network_ms": max(parts_ms["flops"], parts_ms["bytes"]) + parts_ms["call"],
                    "floor_parts_ms": parts_ms,
                    "bench": asdict(engine.bench(nfe, 1, max(10, int(1e3 * seconds / np.median(times[key]) / 3)))),
                }
            )
    return {
        "network": name,
        "nfe": nfe,
        "flops": flops,
        "diffusers_ms": float(np.median(times["diffusers"])),
        "engines": rows,
    }


def _in_turns(calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, np.ndarray]:
    """Milliseconds of each call by name, each after a pause, for `seconds` in all; the first round does not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["diffusers"]) < 6:
        for name, call in calls.items():
            time.sleep(PAUSE_S)
            start = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: np.array(found[1:]) for name, found in times.items()}


def main(built: str, out: str, seconds: float = 15.0) -> None:
    """Measure everything, write `out`, print what it says."""
    with tempfile.TemporaryDirectory() as folder:
        found, copy = list(rates(Path(folder))), copy_rate()
    with Engines(Path(built)) as engines:
        networks = [network_figures(engines, name, seconds, found, copy) for name in NETWORKS]
    figures = {"machine": describe(), "copy_gbytes": 1e-9 * copy, "rates": found, "networks": networks}
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_text(json.dumps(figures, indent=1) + "\n")
    for one in found:
        print(f"{one['backend']} {one['precision']}: {one['gflops']:.0f} GFLOP/s, {1e3 * one['call_ms']:.0f} us a call")
    for network in networks:
        print(f"{network['network']}, {network['nfe']} NFE, batch 1: diffusers {network['diffusers_ms']:.1f} ms")
        for row in network["engines"]:
            held = row["bench"]
            print(
                f"  {held['backend']} {held['precision']}: {row['p50_ms']:.1f} ms, {row['faster']:.2f} x faster, error "
                f"{row['error']:.1e}, network {held['network_ms']:.2f} ms (floor {row['floor_network_ms']:.2f}), "
                f"overhead {held['overhead']:.3f}"
            )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
