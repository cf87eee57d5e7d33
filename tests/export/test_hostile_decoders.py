"""config.json of an autoencoder that is damaged: one line, before a model is made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pfdiff.bench.studies.mutants.mutated_engines import CONTRACT
from pfdiff.engine.errors import InputError
from pfdiff.export.decoders.open import open_decoder

from ..small.diffusers import WARNINGS, diffusers

pytestmark = WARNINGS


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    model = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=2, **blocks)
    folder = tmp_path_factory.mktemp("vae")
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("layers_per_block", 1 << 31, "layers_per_block 2147483648, expected at most 1000"),
        ("scaling_factor", "0.18", "scaling_factor '0.18', expected numbers"),
        ("latents_std", [0, 1], r"latents_std \[0, 1\], expected numbers"),
        ("_class_name", {"a": ["b"] * 90}, "the decoder is a {'a': "),
    ],
)
def test_what_is_no_decoder_is_refused_by_name(key: str, value: Any, line: str, saved: Path) -> None:
    path = saved / "config.json"
    valid = path.read_text()
    path.write_text(json.dumps({**json.loads(valid), "latents_mean": [0, 0], key: value}))
    try:
        with pytest.raises(InputError, match=line) as caught:
            open_decoder(str(saved), CONTRACT)
    finally:
        path.write_text(valid)
    assert len(str(caught.value)) < 300 + len(str(saved))
