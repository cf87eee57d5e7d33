"""What `mutations` damages: for each kind of input a valid one, how a case is made of it, and how it is used.

An attempt returns "used" or "not finite", or raises; what it raises is judged by `mutations`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np

import pfdiff
from pfdiff.engine.artifact import Artifact, records_of, write_manifest
from pfdiff.engine.backends.fastest import _kept
from pfdiff.engine.bulk.manifest import ShardRecord, check_recipe, open_manifest, shard_name
from pfdiff.engine.bulk.recipe import make_recipe
from pfdiff.engine.bulk.shards import Shard, write_shard
from pfdiff.engine.cache import ArrayStore, Journal
from pfdiff.engine.compiler.compile import compile as compile_program
from pfdiff.engine.compiler.program import Program
from pfdiff.engine.compiler.schedule import parse_schedule
from pfdiff.engine.condition import Condition
from pfdiff.engine.contract import Contract
from pfdiff.engine.errors import EngineFileError, InputError
from pfdiff.engine.plans import store
from pfdiff.engine.plans.key import PlanKey
from pfdiff.engine.runtime.noise import parse_seeds

from .mutators import VALUES, of_bytes, of_json, of_text

SHAPE = (2, 4, 4)
CONDITIONS = (
    Condition("label", "int64", default=0, low=0, high=9, labels=("zero", "one", "two")),
    Condition("shift", "float32", (4, 1), default=0.0),
)
CONTRACT = Contract(name="tiny", shape=SHAPE, schedule="linear:1000", prediction="eps", conditions=CONDITIONS)


def write_network(path: Path) -> None:
    """out = tanh(w x) + 0.001 t + 0.05 label + shift, as an ONNX file with an open batch."""
    from onnx import TensorProto, helper, numpy_helper, save_model

    ins = {"x": (1, SHAPE), "t": (1, ()), "label": (TensorProto.INT64, ()), "shift": (1, (4, 1))}
    constants = {
        "w": np.full(SHAPE, 0.7, np.float32),
        "late": np.float32(0.001),
        "each": np.float32(0.05),
        "column": np.array([-1, 1, 1, 1]),
        "axis": np.array([1]),
    }
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["wx"]),
        helper.make_node("Tanh", ["wx"], ["a"]),
        helper.make_node("Reshape", ["t", "column"], ["t4"]),
        helper.make_node("Mul", ["t4", "late"], ["b"]),
        helper.make_node("Cast", ["label"], ["label_float"], to=1),
        helper.make_node("Reshape", ["label_float", "column"], ["label4"]),
        helper.make_node("Mul", ["label4", "each"], ["c"]),
        helper.make_node("Unsqueeze", ["shift", "axis"], ["d"]),
        helper.make_node("Sum", ["a", "b", "c", "d"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, kind, ["batch", *shape]) for name, (kind, shape) in ins.items()],
        [helper.make_tensor_value_info("out", 1, ["batch", *SHAPE])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def write_engine(folder: Path) -> Artifact:
    folder.mkdir()
    write_network(folder / "network.onnx")
    programs = {nfe: compile_program("pfdiff:k=2,l=1", CONTRACT.schedule, nfe, "logsnr") for nfe in (3, 4)}
    artifact = Artifact(folder, CONTRACT, (1, 4), "fp32", programs, {"network": "tiny"}, records_of(folder))
    write_manifest(artifact)
    return artifact


def signed(content: Any) -> bytes:
    """A manifest with the digest that its writer would have given it, where JSON has one."""
    if isinstance(content, dict):
        rest = {key: value for key, value in content.items() if key != "digest"}
        with contextlib.suppress(TypeError, ValueError, RecursionError):
            text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
            content = {**rest, "digest": hashlib.sha256(text.encode()).hexdigest()}
    return json.dumps(content).encode()


class Kind(ABC):
    """One kind of input: `count` cases of it in a whole run."""

    count: ClassVar[int] = 500

    def __init__(self, folder: Path) -> None:
        """Make the valid input, in an empty folder."""
        self.folder = folder

    @abstractmethod
    def damage(self, draw: random.Random) -> None:
        """Put a damaged input in the place of the valid one, or of the one before."""

    @abstractmethod
    def use(self) -> bool:
        """Read and use it. Whether what comes of it is finite."""


def _samples_finite(engine: Path) -> bool:
    with pfdiff.load(engine, "cpu", "onnxruntime", threads=1) as loaded:
        given = loaded.contract.stand_ins
        return all(bool(loaded.sample(seeds=[1, 2], nfe=nfe, **given).isfinite().all()) for nfe in loaded.programs)


@final
class Engines(Kind):
    """engine.json: its data, mostly with the right digest, or its bytes."""

    count = 5000

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.text = (write_engine(folder / "e").path / "engine.json").read_bytes()

    def damage(self, draw: random.Random) -> None:
        data = self.text
        if draw.random() < 0.85:
            changed = of_json(draw, json.loads(data))
            data = signed(changed) if draw.random() < 0.9 else json.dumps(changed).encode()
        else:
            data = of_bytes(draw, data)
        (self.folder / "e" / "engine.json").write_bytes(data)

    def use(self) -> bool:
        return _samples_finite(self.folder / "e")


@final
class OnnxFiles(Kind):
    """An ONNX file: in an engine with its right hash, and every other time given to `Network` and built."""

    count = 1000

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.artifact = write_engine(folder / "e")
        self.data = (folder / "e" / "network.onnx").read_bytes()
        self.builds = False

    def damage(self, draw: random.Random) -> None:
        self.builds = draw.random() < 0.5
        data = self._other_message(draw) if draw.random() < 0.4 else of_bytes(draw, self.data)
        (self.folder / "e" / "network.onnx").write_bytes(data)
        artifact = Artifact(
            self.artifact.path, CONTRACT, (1, 4), "fp32", self.artifact.programs, {}, records_of(self.artifact.path)
        )
        write_manifest(artifact)

    def _other_message(self, draw: random.Random) -> bytes:
        """A message that protobuf reads and no network should be."""
        import onnx

        model = onnx.ModelProto.FromString(self.data)
        tensor = draw.choice(model.graph.initializer)
        node = draw.choice(model.graph.node)
        value = draw.choice([*model.graph.input, *model.graph.output])
        match draw.randrange(8):
            case 0:
                tensor.dims[:] = [draw.choice((0, -1, 1 << 40, 1 << 62, 7))] * draw.choice((1, 2, 9))
            case 1:
                tensor.data_type = draw.choice((0, 2, 7, 8, 16, 99))
            case 2:
                tensor.data_location = onnx.TensorProto.EXTERNAL
                for key, one in (
                    ("location", draw.choice(("/etc/passwd", "../x", "network.onnx", "", "\x1b[2J"))),
                    ("offset", "abc"),
                ):
                    tensor.external_data.add(key=key, value=one)
            case 3:
                node.op_type = draw.choice(("Loop", "If", "Conv", "NoSuch", "", "MatMul"))
            case 4:
                node.input[:] = [draw.choice(("x", "t", "none", "out", ""))] * draw.choice((1, 2, 5))
            case 5:
                value.type.tensor_type.elem_type = draw.choice((0, 7, 8, 11, 99))
            case 6:
                for one in value.type.tensor_type.shape.dim:
                    one.dim_value = draw.choice((0, -5, 3, 1 << 40))
            case _:
                value.name = draw.choice(("", "x", "out", "seeds", "a b", "\x1b[2J", "y" * 3000))
        return model.SerializeToString()

    def use(self) -> bool:
        if not self.builds:
            return _samples_finite(self.folder / "e")
        network = pfdiff.Network(self.folder / "e" / "network.onnx", schedule="linear:1000", prediction="eps")
        out = self.folder / "built.engine"
        with pfdiff.build(network, 2, "ddim", grid="uniform", backend="onnxruntime", device="cpu", out=out) as engine:
            return bool(engine.sample(seeds=[1], nfe=2, **engine.contract.stand_ins).isfinite().all())


@final
class Programs(Kind):
    """The JSON of a program."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.valid = compile_program("dpm++:2m", "vp", 5, clip=1.0).to_json()
        self.text = self.valid

    def damage(self, draw: random.Random) -> None:
        changed = json.dumps(of_json(draw, json.loads(self.valid))) if draw.random() < 0.8 else ""
        self.text = changed or of_text(draw, self.valid)

    def use(self) -> bool:
        program = Program.from_json(self.text)
        with np.errstate(all="ignore"):
            return bool(np.isfinite(program.evaluate(lambda x, t: np.tanh(x), np.ones(3))).all())


@final
class Schedules(Kind):
    """alphas:FILE as .npy, .json and .txt, and the strings of schedules."""

    NAMES = ("a.npy", "a.json", "a.txt")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        values = np.linspace(0.99, 0.01, 40)
        np.save(folder / "a.npy", values)
        (folder / "a.json").write_text(json.dumps({"alphas_cumprod": values.tolist()}))
        np.savetxt(folder / "a.txt", values)
        self.valid = {name: (folder / name).read_bytes() for name in self.NAMES}
        self.text = ""

    def damage(self, draw: random.Random) -> None:
        name = draw.choice((*self.NAMES, "a.npy", "a.npy", "string"))
        if name == "string":
            self.text = of_text(
                draw, draw.choice(("linear:1000", "cosine:60?beta_max=0.9", "flow:shift=3", "edm?sigma_max=5"))
            )
            return
        data = self.valid[name]
        if name == "a.json" and draw.random() < 0.7:
            changed = json.dumps(of_json(draw, json.loads(data))).encode()
        else:
            changed = of_bytes(draw, data)
        (self.folder / name).write_bytes(changed)
        self.text = f"alphas:{self.folder / name}"

    def use(self) -> bool:
        process = parse_schedule(self.text)
        middle = float(np.rint((process.first + process.last) / 2)) if process.discrete else process.last
        return bool(np.isfinite(process.alpha(middle)) and np.isfinite(process.sigma(middle)))


@final
class Caches(Kind):
    """Journals of searches and of backends, and cached arrays: nothing there may stop a run."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        journal, rows = Journal(folder / "j.jsonl"), ArrayStore(folder)
        for count in range(8):
            journal.put(f"key {count}", count / 3)
        journal.put("backend", ["openvino", "timed here"])
        rows.put("a", np.linspace(-1, 1, 48, dtype=np.float32).reshape(3, 16))
        self.valid = {name: (folder / name).read_bytes() for name in ("j.jsonl", "a.npy")}

    def damage(self, draw: random.Random) -> None:
        for name, data in self.valid.items():
            lines = data.splitlines() if name == "j.jsonl" and draw.random() < 0.5 else []
            if lines:
                at = draw.randrange(len(lines))
                lines[at] = json.dumps(of_json(draw, json.loads(lines[at]))).encode()
            (self.folder / name).write_bytes(b"\n".join(lines) + b"\n" if lines else of_bytes(draw, data))

    def use(self) -> bool:
        journal = Journal(self.folder / "j.jsonl")
        numbers = [journal.number(f"key {count}") for count in range(8)]
        backend = _kept(journal, "backend", ("onnxruntime", "openvino"))
        if backend is not None and backend[0] not in ("onnxruntime", "openvino"):
            raise AssertionError(f"backend {backend!r}")
        held = ArrayStore(self.folder).get("a", (3, 16))
        journal.put("more", 1.0)
        if Journal(self.folder / "j.jsonl").number("more") != 1.0:
            raise AssertionError("a line is lost")
        if held is not None and not np.array_equal(held.ravel(), np.linspace(-1, 1, 48, dtype=np.float32)):
            raise AssertionError("a damaged array is used")
        return all(number is None or number == number for number in numbers)


@final
class Plans(Kind):
    """A TensorRT plan and its record: none that was changed is ever used."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        os.environ["XDG_STATE_HOME"] = str(folder / "state")
        self.artifact = write_engine(folder / "e")
        self.key = PlanKey("tensorrt", "10.9", "sm90", "GPU", "0" * 64, "fp32", (1, 4))
        self.path = store.store_plan(self.artifact, self.key, b"plan" * 50)
        self.record = self.path.with_suffix(".json").read_bytes()

    def damage(self, draw: random.Random) -> None:
        whole = draw.random() < 0.7
        self.path.write_bytes(b"plan" * 50 if whole else of_bytes(draw, b"plan" * 50))
        changed = json.dumps(of_json(draw, json.loads(self.record))).encode() if draw.random() < 0.7 else b""
        self.path.with_suffix(".json").write_bytes(changed or of_bytes(draw, self.record))

    def use(self) -> bool:
        store.stored_plans(self.artifact)
        with contextlib.suppress(EngineFileError):
            store.read_plan(self.artifact, PlanKey("tensorrt", "10.9", "sm80", "", "0" * 64, "fp32", (1,)))
        return store.read_plan(self.artifact, self.key) == b"plan" * 50


def _command(*words: str) -> bool:
    """`pfdiff ...` in this process; its line becomes the error that it stands for."""
    from pfdiff.cli import main

    said, kept = io.StringIO(), sys.argv
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            sys.argv = ["pfdiff", *words]
            status = main()
    except SystemExit as end:
        status = end.code
    finally:
        sys.argv = kept
    if status in (0, None):
        return True
    lines = said.getvalue().strip().splitlines()
    if status != 2 or not lines or "Traceback" in said.getvalue():
        raise AssertionError(f"status {status}: {said.getvalue()[-300:]}")
    raise InputError(" ".join(lines[-1:]))


@final
class Seeds(Kind):
    """--seeds TEXT, and seeds= in Python."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        write_engine(folder / "e")
        self.text, self.values = "", None

    def damage(self, draw: random.Random) -> None:
        self.values = draw.choice(
            (*VALUES, range(10**12), range(-5, 5), range(10**30), range(5, 0, -1), (2.0,), [HUGE_SEED])
        )
        self.text = of_text(draw, draw.choice(("0-15", "0,3,7", "0-3,9", "7")))

    def use(self) -> bool:
        with contextlib.suppress(InputError):
            parse_seeds(self.values)
        out = self.folder / "out.npy"
        return _command(
            "sample",
            str(self.folder / "e"),
            "--nfe",
            "3",
            f"--seeds={self.text}",
            "-o",
            str(out),
            "--backend",
            "onnxruntime",
        )


HUGE_SEED = 10**5000


@final
class Conditions(Kind):
    """--label TEXT and its like, descriptions of conditions, and values in Python."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        write_engine(folder / "e")
        np.save(folder / "v.npy", np.zeros((4, 1), np.float32))
        self.valid = (folder / "v.npy").read_bytes()
        self.text, self.described, self.value = "", "", None

    def damage(self, draw: random.Random) -> None:
        (self.folder / "v.npy").write_bytes(of_bytes(draw, self.valid))
        at = f"--shift=@{self.folder / 'v.npy'}"
        text = of_text(draw, draw.choice(("3", "one", "0-3", "3,5,7", "0.5")))
        self.text = draw.choice((f"--label={text}", f"--shift={text}", at, of_text(draw, "--label=3")))
        self.described = of_text(draw, draw.choice(("label:int64:0..9=9", "text:float32:77x768", "w:float32=1.5")))
        self.value = draw.choice((*VALUES, [[1], [2, 3]], np.zeros((0, 4)), np.full(3, np.inf), "one", ["one", "two"]))

    def use(self) -> bool:
        from pfdiff.engine.condition import parse_condition

        for attempt in (lambda: parse_condition(self.described), lambda: CONTRACT.values({"label": self.value}, 3)):
            with contextlib.suppress(InputError):
                attempt()
        with contextlib.suppress(InputError):
            CONTRACT.values({"shift": self.value}, 3)
        out = self.folder / "out.npy"
        return _command(
            "sample",
            str(self.folder / "e"),
            "--nfe",
            "3",
            "--seeds",
            "0-3",
            "-o",
            str(out),
            "--backend",
            "onnxruntime",
            self.text,
        )


@final
class Schedulers(Kind):
    """scheduler_config.json of diffusers."""

    CONFIGS: ClassVar[tuple[dict[str, Any], ...]] = (
        {
            "_class_name": "DDIMScheduler",
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "num_train_timesteps": 1000,
            "prediction_type": "epsilon",
            "steps_offset": 1,
            "timestep_spacing": "leading",
            "set_alpha_to_one": False,
            "clip_sample": False,
        },
        {
            "_class_name": "DPMSolverMultistepScheduler",
            "beta_schedule": "linear",
            "solver_order": 2,
            "algorithm_type": "dpmsolver++",
            "use_karras_sigmas": True,
            "rescale_betas_zero_snr": False,
            "trained_betas": None,
            "thresholding": False,
            "final_sigmas_type": "zero",
        },
        {
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "shift": 3.0,
            "num_train_timesteps": 1000,
            "use_dynamic_shifting": False,
        },
        {"_class_name": "EDMEulerScheduler", "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5},
    )

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.path = folder / "scheduler_config.json"

    def damage(self, draw: random.Random) -> None:
        text = json.dumps(of_json(draw, draw.choice(self.CONFIGS)))
        self.path.write_text(text if draw.random() < 0.9 else of_text(draw, text), errors="surrogatepass")

    def use(self) -> bool:
        from pfdiff.export.sources.diffusers_config import read_config
        from pfdiff.export.sources.from_diffusers import read_json

        convention = read_config(read_json(self.path))
        process = parse_schedule(convention.schedule)
        return bool(np.isfinite(process.alpha(process.last)))


@final
class Pictures(Kind):
    """.png, .jpg, .npy and .npz of pictures."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from PIL import Image

        pixels = np.arange(4 * 8 * 8 * 3, dtype=np.uint8).reshape(4, 8, 8, 3)
        Image.fromarray(pixels[0]).save(folder / "p.png")
        Image.fromarray(pixels[0]).save(folder / "p.jpg")
        np.save(folder / "p.npy", pixels)
        np.savez_compressed(folder / "p.npz", pixels=pixels)
        self.valid = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.name = ""

    def damage(self, draw: random.Random) -> None:
        self.name = draw.choice(sorted(self.valid))
        (self.folder / self.name).write_bytes(of_bytes(draw, self.valid[self.name]))

    def use(self) -> bool:
        from pfdiff.quality.pictures.read import read_pictures

        return read_pictures(self.folder / self.name).dtype == np.uint8


@final
class Runs(Kind):
    """The manifest of a bulk run that is taken up again."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.recipe = make_recipe(write_engine(folder / "e"), 8, 3, size=4, format="npz")
        self.out = folder / "out"
        with open_manifest(self.out, self.recipe) as manifest:
            for index in range(2):
                seeds = self.recipe.seeds(index)
                path = self.out / shard_name(self.recipe, index)
                path.touch()
                sha256, size = write_shard(path, Shard(seeds, {}, np.zeros((4, *SHAPE), np.float32)), "npz")
                manifest.add(index, ShardRecord(path.name, int(seeds[0]), 4, size, sha256, "nobody"))
        self.valid = (self.out / "manifest.json").read_bytes()

    def damage(self, draw: random.Random) -> None:
        changed = json.dumps(of_json(draw, json.loads(self.valid))).encode() if draw.random() < 0.8 else b""
        (self.out / "manifest.json").write_bytes(changed or of_bytes(draw, self.valid))

    def use(self) -> bool:
        check_recipe(self.out, self.recipe)
        with open_manifest(self.out, self.recipe) as manifest:
            return all(index in (0, 1) for index in manifest.finished)


KINDS: dict[str, type[Kind]] = {
    "engines": Engines,
    "onnx": OnnxFiles,
    "programs": Programs,
    "schedules": Schedules,
    "caches": Caches,
    "plans": Plans,
    "seeds": Seeds,
    "conditions": Conditions,
    "schedulers": Schedulers,
    "pictures": Pictures,
    "runs": Runs,
}
