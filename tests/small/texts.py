"""Tiny text encoders with random weights and their tokenizers, for the pipelines of `small.diffusers`."""

from __future__ import annotations

import inspect
import json
import string
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch

from .diffusers import Family, diffusers, scheduler_of, text_unet, vae

transformers = pytest.importorskip("transformers")

LETTERS = string.ascii_lowercase + string.digits + ",.!'"
MERGES = ["t h", "th e</w>", "i n", "f o", "fo g</w>"]


@cache
def clip_tokenizer(pad: str = "<|endoftext|>") -> Any:
    """A CLIP tokenizer of letters and three merges, read from vocab.json and merges.txt as real ones are."""
    words = [one + end for end in ("", "</w>") for one in LETTERS]
    words += ["".join(one.split()) for one in MERGES] + ["<|startoftext|>", "<|endoftext|>"]
    folder = Path(mkdtemp())
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
    return transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=77, pad_token=pad)


@cache
def t5_tokenizer(tokens: int = 512) -> Any:
    """A T5 tokenizer of letters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁the", -3.0)]
    pieces += [(one, -4.0) for one in LETTERS + string.ascii_uppercase]
    return transformers.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=tokens)


def clip(width: int = 8, *, projection: int = 0, **changes: Any) -> Any:
    """A CLIP text encoder; with `projection` one that projects its pooled output to so many numbers."""
    tokenizer = clip_tokenizer()
    config = transformers.CLIPTextConfig(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": 16,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "projection_dim": projection or 8,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **changes,
        }
    )
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return kind(config).eval()


def t5(width: int = 12) -> Any:
    config = transformers.T5Config(
        vocab_size=len(t5_tokenizer()), d_model=width, d_kv=4, d_ff=16, num_layers=2, num_heads=2
    )
    return transformers.T5EncoderModel(config).eval()


def sdxl_unet() -> Any:
    return text_unet(
        block_out_channels=(8, 16),
        cross_attention_dim=16,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=12 + 6 * 8,
    )


def texts_of(name: str) -> dict[str, Any]:
    """Encoders and tokenizers of a family's pipeline."""
    match name:
        case "sd1":
            return {"text_encoder": clip(), "tokenizer": clip_tokenizer()}
        case "sdxl":
            return {
                "text_encoder": clip(),
                "tokenizer": clip_tokenizer(),
                "text_encoder_2": clip(projection=12),
                "tokenizer_2": clip_tokenizer("!"),
            }
        case "pixart":
            return {"text_encoder": t5(), "tokenizer": t5_tokenizer()}
        case "sd3":
            return {
                "text_encoder": clip(4, projection=4),
                "tokenizer": clip_tokenizer(),
                "text_encoder_2": clip(6, projection=6),
                "tokenizer_2": clip_tokenizer("!"),
                "text_encoder_3": t5(),
                "tokenizer_3": t5_tokenizer(),
            }
        case _:
            return {
                "text_encoder": clip(10),
                "tokenizer": clip_tokenizer(),
                "text_encoder_2": t5(),
                "tokenizer_2": t5_tokenizer(),
            }


def still_vae(name: str = "sd1") -> Any:
    """An autoencoder whose encoder draws nothing, its deviation is e^-15; with a shift where pipelines want it."""
    made = vae()
    if name in ("sd3", "flux"):
        made.register_to_config(shift_factor=0.2, scaling_factor=0.4)
    with torch.no_grad():
        made.quant_conv.weight[4:] = 0
        made.quant_conv.bias[4:] = -40
    return made


def whole_pipeline(name: str, family: Family, **parts: Any) -> Any:
    """The family's pipeline with everything that takes a prompt to pixels."""
    torch.manual_seed(3)
    kind = getattr(diffusers, family.pipeline)
    model = sdxl_unet() if name == "sdxl" else family.model()
    own = {
        family.part: model.eval(),
        "scheduler": scheduler_of(family),
        "vae": still_vae(name),
        **texts_of(name),
        **parts,
    }
    needed = [one.name for one in inspect.signature(kind).parameters.values() if one.default is one.empty]
    unsafe = {"requires_safety_checker": False} if "safety_checker" in needed else {}
    pipeline = kind(**{one: own.get(one) for one in needed}, **unsafe)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
