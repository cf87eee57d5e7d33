"""What stands in a LoRA file: how many layers of which part it changes, and other adapters, which are refused by name.

W <- W + strength alpha / rank B A        kohya's files say alpha of each layer, diffusers' mostly none: alpha = rank
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from ...engine.errors import InputError, first_line

DENOISER = "denoiser"
# How layers of text encoders begin: kohya's names and diffusers'.
TEXTS = {"lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2", "lora_te_": "text_encoder"}
TEXTS |= {f"text_encoder{number}.": f"text_encoder{number}" for number in ("", "_2", "_3")}
DOWN = re.compile(r"(\.(lora_A(\.default)?|lora_down|lora_linear_layer\.down)|[._]lora\.down)\.")
UP = re.compile(r"(\.(lora_B(\.default)?|lora_up|lora_linear_layer\.up)|[._]lora\.up)\.weight$")
# Other adapters, by what their keys hold. What diffusers would leave out, or computes otherwise, is among them.
OTHERS = {
    r"\.hada_w": "LoHa",
    r"\.lokr_": "LoKr",
    r"\.oft_": "OFT",
    r"\.on_input$": "(IA)^3",
    r"\.diff(_b)?$|\.[wb]_norm$": "whole differences of weights",
    r"\.lora_mid\.": "LoRA of convolutions in three factors (lora_mid)",
    r"\.dora_scale$": "DoRA as LyCORIS writes it (dora_scale)",
    r"bundle_emb|^emb_params": "textual inversion",
}
USAGE = "such as style.safetensors or style.safetensors:0.8"


def layers_of(path: Path) -> Counter[str]:
    """How many layers the file has updates for, by text encoder and of the "denoiser". Raises InputError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            keys = list(file.keys())
    except (OSError, SafetensorError) as error:
        raise InputError(f"lora '{path}' cannot be read ({first_line(error)}); copy it again") from None
    other = next((name for key in keys for found, name in OTHERS.items() if re.search(found, key)), None)
    if other is not None:
        raise InputError(f"lora '{path}' holds {other}, which is not supported; give a plain LoRA, {USAGE}")
    downs = [key for key in keys if DOWN.search(key)]
    ups = sum(bool(UP.search(key)) for key in keys)
    if not downs:
        raise InputError(f"lora '{path}' holds no LoRA ({keys[0] if keys else 'it is empty'}); give one, {USAGE}")
    if ups != len(downs):
        raise InputError(f"lora '{path}' has {len(downs)} first factors and {ups} second ones; copy it again")
    return Counter(next((TEXTS[one] for one in TEXTS if key.startswith(one)), DENOISER) for key in downs)


def with_alphas(path: Path) -> dict[str, Any] | None:
    """kohya's numbers with alpha / rank multiplied into A; None for a file without alphas.

    diffusers (0.42) gives layers of attention whose alpha is not the file's most frequent one that one's.
    """
    from safetensors.torch import load_file

    found = load_file(path)
    alphas = [key for key in found if key.endswith(".alpha")]
    for key in alphas:
        alpha, down = found.pop(key), f"{key.removesuffix('.alpha')}.lora_down.weight"
        if down in found:
            found[down] = found[down].float() * (float(alpha) / len(found[down]))
    return found if alphas else None
