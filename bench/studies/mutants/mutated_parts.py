"""Damaged parts of an engine beside its network: text encoders with tokenizers, programs that draw noise, decoders.

And what a decoder is built from: the config.json of an autoencoder.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import numpy as np

import pfdiff
from pfdiff.engine.artifact import Artifact, read_artifact, records_of, write_manifest
from pfdiff.engine.compiler.compile import compile as compile_program
from pfdiff.engine.compiler.program import Program
from pfdiff.engine.contract.contract import DecoderContract, TextEncoderContract
from pfdiff.engine.contract.text_encoders import TextEncoder, TextEncoders
from pfdiff.engine.errors import EngineFileError

from .mutated_engines import CONTRACT, SHAPE, Kind, signed, write_engine
from .mutators import of_bytes, of_json

LENGTH, SIZE = 6, 4  # tokens of a prompt, numbers that it stands for: those of `shift`


def resigned(folder: Path) -> None:
    """engine.json with the hashes that the files have now."""
    content = json.loads((folder / "engine.json").read_bytes())
    files = records_of(folder)
    content["files"] = {name: {"sha256": one.sha256, "bytes": one.bytes} for name, one in files.items()}
    (folder / "engine.json").write_bytes(signed(content))


def save_onnx(
    path: Path, nodes: list[Any], x: tuple[str, int, tuple[int, ...]], out: tuple[str, tuple[int, ...]]
) -> None:
    """A small network of one input and one output with an open batch; it knows the constants below by name."""
    from onnx import TensorProto, helper, numpy_helper, save_model

    constants = {
        "table": np.linspace(-1, 1, 50, dtype=np.float32),
        "first": np.array(0),
        "four": np.array([0]),
        "end": np.array([SIZE]),
        "axis": np.array([1]),
        "half": np.float32(0.5),
    }
    graph = helper.make_graph(
        nodes,
        "part",
        [helper.make_tensor_value_info(x[0], x[1], ["batch", *x[2]])],
        [helper.make_tensor_value_info(out[0], TensorProto.FLOAT, ["batch", *out[1]])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def write_words(folder: Path) -> Artifact:
    """An engine whose condition `shift` is the first four tokens of a prompt, looked up in a table."""
    from onnx import TensorProto, helper
    from tokenizers import Tokenizer, models, pre_tokenizers

    artifact = write_engine(folder)
    (folder / "encoders").mkdir()
    words = {word: number for number, word in enumerate(["[UNK]", "[PAD]", "a", "red", "fox", "in", "the", "fog"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))  # pyright: ignore[reportCallIssue]
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH, pad_id=1, pad_token="[PAD]")
    tokenizer.save(str(folder / "encoders" / "tokenizer.json"))
    nodes = [
        helper.make_node("Gather", ["tokens", "first"], ["ids"], axis=1),
        helper.make_node("Slice", ["ids", "four", "end", "axis"], ["cut"]),
        helper.make_node("Gather", ["table", "cut"], ["encoded"]),
    ]
    save_onnx(
        folder / "encoders" / "text.onnx", nodes, ("tokens", TensorProto.INT64, (2, LENGTH)), ("encoded", (SIZE,))
    )
    encoder = TextEncoder(
        "encoders/text.onnx", "encoders/tokenizer.json", TextEncoderContract("text", LENGTH, SIZE), plain=True
    )
    artifact = replace(artifact, text_encoders=TextEncoders(("shift",), (encoder,)), files=records_of(folder))
    write_manifest(artifact)
    return artifact


@final
class Words(Kind):
    """Tokenizer, text encoder, and what engine.json says of them; then a prompt."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.engine = write_words(folder / "e").path
        names = ("engine.json", "encoders/tokenizer.json", "encoders/text.onnx")
        self.valid = {name: (self.engine / name).read_bytes() for name in names}

    def damage(self, draw: random.Random) -> None:
        for name, data in self.valid.items():
            (self.engine / name).write_bytes(data)
        name = draw.choice(("engine.json", "encoders/tokenizer.json", "encoders/tokenizer.json", "encoders/text.onnx"))
        data = self.valid[name]
        if name == "engine.json":
            content = json.loads(data)
            content["text_encoders"] = of_json(draw, content["text_encoders"])
            (self.engine / name).write_bytes(signed(content))
            return
        plain = name.endswith(".json") and draw.random() < 0.8
        changed = json.dumps(of_json(draw, json.loads(data))).encode() if plain else of_bytes(draw, data)
        (self.engine / name).write_bytes(changed)
        resigned(self.engine)

    def use(self) -> bool:
        with pfdiff.load(self.engine, "cpu", "onnxruntime", threads=1) as loaded:
            found = loaded.sample(seeds=[1, 2], nfe=3, prompt="A red fox in the fog, on the run")
            return bool(found.isfinite().all())


@final
class NoisePrograms(Kind):
    """Programs that draw noise: their JSON, alone and in an engine."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        artifact = write_engine(folder / "e")
        self.valid = compile_program("ddim:eta=1", CONTRACT.schedule, 4, "uniform").to_json()
        drawing = compile_program("euler-a", CONTRACT.schedule, 5, "trailing")
        write_manifest(replace(artifact, programs={4: Program.from_json(self.valid), 5: drawing}))
        self.manifest = (folder / "e" / "engine.json").read_bytes()
        self.text = self.valid

    def damage(self, draw: random.Random) -> None:
        self.text = json.dumps(of_json(draw, json.loads(self.valid)))
        content = json.loads(self.manifest)
        content["programs"] = of_json(draw, content["programs"])
        (self.folder / "e" / "engine.json").write_bytes(signed(content))

    def use(self) -> bool:
        try:
            artifact = read_artifact(self.folder / "e")
        except EngineFileError:
            program = Program.from_json(self.text)
            with np.errstate(all="ignore"):
                found = program.evaluate(lambda x, t: np.tanh(x), np.ones((2, 3)), seeds=range(2))
            return bool(np.isfinite(found).all())
        with pfdiff.load(artifact.path, "cpu", "onnxruntime", threads=1) as loaded:
            given = loaded.contract.stand_ins
            return all(bool(loaded.sample(seeds=[1, 2], nfe=n, **given).isfinite().all()) for n in loaded.programs)


@final
class Decoders(Kind):
    """decoder.onnx and what engine.json says of it; then pictures."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from onnx import TensorProto, helper

        artifact = write_engine(folder / "e")
        self.engine = artifact.path
        nodes = [
            helper.make_node("Mul", ["latents", "half"], ["scaled"]),
            helper.make_node("Tanh", ["scaled"], ["image"]),
        ]
        nodes.append(helper.make_node("Identity", ["image"], ["unused"]))
        save_onnx(self.engine / "decoder.onnx", nodes, ("latents", TensorProto.FLOAT, SHAPE), ("image", SHAPE))
        decoder = DecoderContract("tanh", SHAPE, SHAPE)
        write_manifest(replace(artifact, decoder=decoder, files=records_of(self.engine)))
        self.valid = {name: (self.engine / name).read_bytes() for name in ("engine.json", "decoder.onnx")}

    def damage(self, draw: random.Random) -> None:
        for name, data in self.valid.items():
            (self.engine / name).write_bytes(data)
        if draw.random() < 0.6:
            content = json.loads(self.valid["engine.json"])
            content["decoder"] = of_json(draw, content["decoder"])
            (self.engine / "engine.json").write_bytes(signed(content))
        else:
            (self.engine / "decoder.onnx").write_bytes(of_bytes(draw, self.valid["decoder.onnx"]))
            resigned(self.engine)

    def use(self) -> bool:
        with pfdiff.load(self.engine, "cpu", "onnxruntime", threads=1) as loaded:
            images = loaded.images(seeds=[1, 2], nfe=3, **loaded.contract.stand_ins)
            return str(images.dtype) == "torch.uint8"


@final
class Autoencoders(Kind):
    """config.json of a small autoencoder of diffusers, opened as a decoder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        blocks: dict[str, Any] = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
        model = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=2, **blocks)
        model.save_pretrained(folder / "vae")
        self.path = folder / "vae" / "config.json"
        self.valid = json.loads(self.path.read_bytes())

    def damage(self, draw: random.Random) -> None:
        self.path.write_text(json.dumps(of_json(draw, self.valid)), errors="surrogatepass")

    def use(self) -> bool:
        from pfdiff.export.decoders.open import open_decoder

        return open_decoder(str(self.path.parent), CONTRACT).contract.shape == SHAPE
