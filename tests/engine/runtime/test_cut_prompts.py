"""Prompts that are too long are cut, and one line says what was left out: of negative prompts that stand alone too."""

from __future__ import annotations

from typing import Any

import pytest

from pfdiff.engine.contract.contract import TextEncoderContract
from pfdiff.engine.contract.text_encoders import TextEncoder
from pfdiff.engine.runtime import prompts

tokenizers = pytest.importorskip("tokenizers")

LENGTH, ROWS = 8, 5  # three tokens of an instruction are no rows
WORDS = ["[PAD]", "[BOS]", "say", "it", "well", "a", "b", "c", "d", "e", "f"]


def loaded() -> Any:
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    made = tokenizers.Tokenizer(WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[PAD]"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(single="[BOS] $A", special_tokens=[("[BOS]", 1)])
    made.enable_truncation(LENGTH)
    made.enable_padding(length=LENGTH, pad_id=0, pad_token="[PAD]")
    contract = TextEncoderContract("text_encoder", LENGTH, ROWS)
    encoder = TextEncoder("a.onnx", "a.json", contract, before="say it well ", negative_before="")
    nothing: Any = None
    return prompts.LoadedEncoder(encoder, made, ROWS, nothing, nothing, nothing)


@pytest.mark.parametrize(
    ("text", "negative", "line"),
    [
        ("a b c d", False, ""),
        ("a b c d e", False, "the prompt is cut at 8 tokens of text_encoder; left out is 'e'"),
        ("a b c d", True, ""),
        ("a b c d e", True, "the negative prompt is cut at 5 tokens of text_encoder; left out is 'e'"),
        ("a b c d e f a b c", True, "the negative prompt is cut at 5 tokens of text_encoder; left out is 'e f a b c'"),
    ],
)
def test_what_is_left_out_is_said(text: str, negative: bool, line: str, recwarn: pytest.WarningsRecorder) -> None:
    found = prompts._tokens(loaded(), [(text, negative)])
    assert found.shape == (1, 2, LENGTH)
    assert [str(one.message) for one in recwarn] == ([line] if line else [])
