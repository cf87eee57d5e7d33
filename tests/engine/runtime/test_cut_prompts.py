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
    cuts: list[prompts.Cut] = []
    found = prompts._tokens(loaded(), [(text, negative)], cuts)
    prompts.say_cuts(cuts, "negative prompt" if negative else "prompt")
    assert found.shape == (1, 2, LENGTH)
    assert [str(one.message) for one in recwarn] == ([line] if line else [])


def test_encoders_that_leave_out_the_same_share_a_line(recwarn: pytest.WarningsRecorder) -> None:
    words = [("text_encoder", 77, "in fog"), ("text_encoder_2", 77, "in fog"), ("text_encoder_3", 256, "fog")]
    prompts.say_cuts([prompts.Cut(*one) for one in words], "prompt")
    assert [str(one.message) for one in recwarn] == [
        "the prompt is cut at 77 tokens of text_encoder and text_encoder_2; left out is 'in fog'",
        "the prompt is cut at 256 tokens of text_encoder_3; left out is 'fog'",
    ]


def test_of_a_long_rest_the_first_words_are_shown(recwarn: pytest.WarningsRecorder) -> None:
    prompts.say_cuts([prompts.Cut("text_encoder", 77, " ".join(500 * ["fog"]))], "negative prompt")
    (line,) = (str(one.message) for one in recwarn)
    assert line.startswith("the negative prompt is cut at 77 tokens of text_encoder; left out is 'fog fog fog")
    assert line.endswith(" ...', 500 words")
    assert len(line) < 260
