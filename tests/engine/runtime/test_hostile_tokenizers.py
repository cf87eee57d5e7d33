"""Tokenizers that are damaged, or made to do harm: one line, at the first prompt."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfdiff.bench.studies.mutants.mutated_engines import signed
from pfdiff.bench.studies.mutants.mutated_parts import resigned, write_words
from pfdiff.engine.api import Engine
from pfdiff.engine.errors import EngineFileError

pytest.importorskip("tokenizers")


def test_a_prompt_is_looked_up(tmp_path: Path) -> None:
    """`a red` is tokens 2, 3 and the padding 1, of a table from -1 to 1 in 50 steps."""
    write_words(tmp_path / "e")
    with Engine.open(tmp_path / "e", backend="onnxruntime") as engine:
        found = engine.sample(seeds=[5], nfe=3, prompt="A red")
        shift = np.linspace(-1, 1, 50, dtype=np.float32)[[2, 3, 1, 1]].reshape(4, 1)
        np.testing.assert_array_equal(found, engine.sample(seeds=[5], nfe=3, shift=shift))


def unknown(content: dict[str, Any]) -> None:
    content["model"]["unk_token"] = "[NONE]"


def padded(content: dict[str, Any]) -> None:
    content["padding"]["strategy"] = {"Fixed": 1 << 40}


def multiple(content: dict[str, Any]) -> None:
    content["padding"]["pad_to_multiple_of"] = 1 << 40


def uncut(content: dict[str, Any]) -> None:
    content["truncation"] = None


def empty(content: dict[str, Any]) -> None:
    content.clear()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (unknown, "the tokenizer of text fails"),
        (padded, "pads and cuts to 1099511627776 and 6 tokens, expected 6"),
        (multiple, "pads and cuts to 6 and 6 tokens"),
        (uncut, "pads and cuts to 6 and None tokens, expected 6"),
        (empty, "cannot be read"),
    ],
)
def test_a_damaged_tokenizer_is_refused_by_name(
    change: Callable[[dict[str, Any]], None], line: str, tmp_path: Path
) -> None:
    engine = write_words(tmp_path / "e").path
    path = engine / "encoders" / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    resigned(engine)
    with Engine.open(engine, backend="onnxruntime") as loaded, pytest.raises(EngineFileError, match=line) as caught:
        loaded.sample(seeds=[0], nfe=3, prompt="zebra")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("file", {"a": 1}, "text encoder: file"),
        ("tokenizer", [1], "text encoder: tokenizer"),
        ("plain", 7, "text encoder: plain 7, expected true or false"),
        ("contract", 10**400, "text encoder: length"),
        ("contract", 1 << 17, "text encoder: length 131072, expected an integer in 1..65536"),
    ],
)
def test_a_description_that_is_none_is_refused(field: str, value: Any, line: str, tmp_path: Path) -> None:
    engine = write_words(tmp_path / "e").path
    content = json.loads((engine / "engine.json").read_text())
    encoder = content["text_encoders"]["encoders"][0]
    encoder[field] = {**encoder["contract"], "length": value} if field == "contract" else value
    (engine / "engine.json").write_bytes(signed(content))
    with pytest.raises(EngineFileError, match=line) as caught:
        Engine.open(engine)
    assert len(str(caught.value)) < 300 + len(str(engine))
