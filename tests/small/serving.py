"""Servers on loopback for tests, a client of the standard library alone, and an engine that draws from words."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvicorn
from onnx import TensorProto, helper, numpy_helper, save_model

from pfdiff.engine.api import load
from pfdiff.engine.artifact import Artifact, records_of, write_manifest
from pfdiff.engine.compiler.program import Program
from pfdiff.engine.contract.contract import Condition, Contract, DecoderContract
from pfdiff.serving.about import Drawing
from pfdiff.serving.app import make_app
from pfdiff.serving.guard import Access
from pfdiff.serving.hosts import Host, LocalHost
from pfdiff.serving.limits import Limits
from pfdiff.serving.run import config, listen
from pfdiff.serving.worker import Worker

from .engine import program

PICTURES = Contract(
    name="shade",
    shape=(1, 8, 6),
    schedule="linear:1000",
    prediction="eps",
    conditions=(Condition("label", "int64", default=0, low=0, high=2, labels=("shirt", "bag", "boot")),),
)
JSON = {"Content-Type": "application/json"}
NPZ = {"Content-Type": "application/x-npz"}


def write_pictures(folder: Path, solver: str = "pfdiff:k=2,l=1") -> Path:
    """An engine directory of out = tanh(0.7 x) + 0.001 t + 0.1 label, pictures [1, 8, 6] in NFE 5 and 8."""
    folder.mkdir()
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *PICTURES.shape]),
        helper.make_tensor_value_info("t", TensorProto.FLOAT, ["batch"]),
        helper.make_tensor_value_info("label", TensorProto.INT64, ["batch"]),
    ]
    nodes = [
        helper.make_node("Mul", ["x", "weight"], ["wx"]),
        helper.make_node("Tanh", ["wx"], ["a"]),
        helper.make_node("Reshape", ["t", "column"], ["t_column"]),
        helper.make_node("Mul", ["t_column", "t_weight"], ["b"]),
        helper.make_node("Cast", ["label"], ["label_float"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["label_float", "column"], ["label_column"]),
        helper.make_node("Mul", ["label_column", "label_weight"], ["c"]),
        helper.make_node("Sum", ["a", "b", "c"], ["out"]),
    ]
    values = {"weight": 0.7, "t_weight": 0.001, "label_weight": 0.1}
    constants = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in values.items()]
    constants.append(numpy_helper.from_array(np.array([-1, 1, 1, 1]), "column"))
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", *PICTURES.shape])
    graph = helper.make_graph(nodes, "shade", inputs, [output], constants)
    save_model(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), folder / "network.onnx"
    )
    programs = {nfe: program(nfe, PICTURES, solver=solver) for nfe in (5, 8)}
    write_manifest(Artifact(folder, PICTURES, (1, 4), "fp32", programs, {}, records_of(folder)))
    return folder


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return self.json["error"]["message"]


@dataclass(frozen=True)
class Client:
    """One connection a thread."""

    port: int
    headers: Mapping[str, str] = field(default_factory=dict)
    held: threading.local = field(default_factory=threading.local)
    opened: list[http.client.HTTPConnection] = field(default_factory=list)

    def __call__(self, path: str, body: Any = None, headers: Mapping[str, str] = JSON, method: str = "") -> Answer:
        """GET, or POST of a body: bytes as they are, all else as JSON."""
        connection = getattr(self.held, "connection", None)
        if connection is None:
            connection = self.held.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            self.opened.append(connection)
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        sent = {**self.headers, **(headers if body is not None else {})}
        try:
            connection.request(method or ("GET" if body is None else "POST"), path, raw, sent)
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        except (http.client.HTTPException, OSError):
            connection.close()
            self.held.connection = None
            raise

    def close(self) -> None:
        for connection in self.opened:
            connection.close()

    def samples(self, **body: Any) -> Answer:
        return self("/v1/samples", body)


def worker(name: str, opening: Path | Callable[[], Drawing], limits: Limits) -> Worker:
    made = Worker(
        name, opening if callable(opening) else lambda: load(opening, "cpu", "onnxruntime", threads=1), limits
    )
    made.start(lambda line: None)
    return made


@contextmanager
def serving(
    limits: Limits | None = None, access: Access | None = None, **engines: Path | Callable[[], Drawing]
) -> Iterator[Client]:
    """A client of a server of these engines by name, under uvicorn in a thread."""
    limits = limits or Limits(max_wait_ms=2)
    hosts: dict[str, Host] = {name: LocalHost(worker(name, one, limits)) for name, one in engines.items()}
    bound = listen("127.0.0.1", 0)
    bound.listen(256)
    server = uvicorn.Server(config(make_app(hosts, limits, access or Access())))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.005)
        client = Client(bound.getsockname()[1])
        with contextlib.closing(client):
            yield client
    finally:
        server.should_exit = True
        thread.join()


SHAPE = (3, 8, 8)
TEXT_CONTRACT = Contract(
    name="text",
    shape=SHAPE,
    schedule="linear:1000",
    prediction="eps",
    conditions=(Condition("guidance", "float32", default=4.0),),
)


class TextEngine:
    """A picture for each prompt, negative prompt, seed, NFE and guidance; nothing but arithmetic. `calls` counts.

    `fail`: called with what `images` got, may raise.
    """

    takes_prompt = True
    decoder: DecoderContract | None = None
    precision, backend, device, description = "fp32", "none", "cpu", "arithmetic"
    provenance: Mapping[str, Any] = {}
    contract = TEXT_CONTRACT

    def __init__(self, batch: tuple[int, ...] = (1, 4), fail: Callable[[Any], None] = lambda given: None) -> None:
        self.batch = batch
        self.programs: dict[int, Program] = {nfe: program(nfe, TEXT_CONTRACT) for nfe in (4, 8)}
        self.calls: list[tuple[int, ...]] = []
        self.closed = False
        self._fail = fail

    def sample(self, *, seeds: Any = None, nfe: int | None = None, **given: Any) -> torch.Tensor:
        pixels = self.images(seeds=seeds, nfe=nfe, **given)
        return pixels.permute(0, 3, 1, 2).float() / 255

    def images(self, *, seeds: Any = None, nfe: int | None = None, **given: Any) -> torch.Tensor:
        count = len(seeds)
        self.calls.append(tuple(int(seed) for seed in seeds))
        self._fail({"seeds": seeds, "nfe": nfe, **given})
        prompts, negatives = (
            [text] * count if isinstance(text, str) else text
            for text in (given["prompt"], given.get("negative_prompt", ""))
        )
        rows = zip(prompts, negatives, seeds, np.broadcast_to(given["guidance"], count), strict=True)
        return torch.from_numpy(np.stack([self.drawn(*row, nfe=nfe) for row in rows]))

    @staticmethod
    def drawn(prompt: str, negative: str, seed: int, guidance: float = 4.0, *, nfe: int | None) -> np.ndarray:
        """uint8 [8, 8, 3]."""
        key = zlib.crc32(f"{prompt}|{negative}|{int(seed)}|{float(guidance):g}|{nfe}".encode())
        return np.random.default_rng(key).integers(0, 256, (8, 8, 3), np.uint8)

    def close(self) -> None:
        self.closed = True
