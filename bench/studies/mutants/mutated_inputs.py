"""What `mutations` damages: for each kind of input a valid one, how a case is made of it, and how it is used.

An attempt returns "used" or "not finite", or raises; what it raises is judged by `mutations`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import sys
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np

from pfdiff.engine.backends.fastest import _kept
from pfdiff.engine.bulk.manifest import ShardRecord, check_recipe, open_manifest, shard_name
from pfdiff.engine.bulk.recipe import make_recipe
from pfdiff.engine.bulk.shards import Shard, write_shard
from pfdiff.engine.cache import ArrayStore, Journal
from pfdiff.engine.compiler.compile import compile as compile_program
from pfdiff.engine.compiler.program import Program
from pfdiff.engine.compiler.schedule import parse_schedule
from pfdiff.engine.errors import EngineFileError, InputError
from pfdiff.engine.plans import store
from pfdiff.engine.plans.key import PlanKey
from pfdiff.engine.runtime.noise import parse_seeds

from .mutated_engines import CONTRACT, SHAPE, Engines, Kind, OnnxFiles, write_engine
from .mutated_parts import Autoencoders, Decoders, NoisePrograms, Words
from .mutators import VALUES, of_bytes, of_json, of_text


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


def _sampled(folder: Path, *words: str) -> bool:
    """`pfdiff sample` of the engine in `folder`."""
    given = ["--nfe", "3", "-o", str(folder / "out.npy"), "--backend", "onnxruntime"]
    return _command("sample", str(folder / "e"), *given, *words)


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
        return _sampled(self.folder, f"--seeds={self.text}")


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
        from pfdiff.engine.contract.condition import parse_condition

        for attempt in (lambda: parse_condition(self.described), lambda: CONTRACT.values({"label": self.value}, 3)):
            with contextlib.suppress(InputError):
                attempt()
        with contextlib.suppress(InputError):
            CONTRACT.values({"shift": self.value}, 3)
        return _sampled(self.folder, "--seeds=0-3", self.text)


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
    "words": Words,
    "noise": NoisePrograms,
    "decoders": Decoders,
    "autoencoders": Autoencoders,
}
