"""Rotary embeddings in real numbers, for models that multiply complex ones: ONNX has none.

(a, b) -> (a cos - b sin, a sin + b cos) for every pair of a head's numbers, as (a + i b) (cos + i sin)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from ...mirrored import mirrored


def with_processor(model: nn.Module, processor: Any) -> Any:
    """A mirror whose attention is done by `processor`."""
    made = mirrored(model)
    for one in made.modules():
        if hasattr(one, "processor"):
            one.processor = processor
    return made


def pairs(complex_numbers: Tensor) -> Tensor:
    """cos and sin float32 [..., n, 2] of complex [..., n]."""
    return torch.view_as_real(complex_numbers).float().contiguous()


@final
class Tables(nn.Module):
    """forward(places int64 [B, n, axes]) -> rotations [B, n, half a head, 2]; one table an axis.

    No buffers, which a half precision would round: they stay float32.
    """

    def __init__(self, tables: list[Tensor]) -> None:
        super().__init__()
        self.tables = [pairs(one) for one in tables]

    def forward(self, places: Tensor) -> Tensor:
        found = [one.to(places.device)[places[..., axis]] for axis, one in enumerate(self.tables)]
        return torch.cat(found, -2)


def turned(x: Tensor, rotations: Tensor) -> Tensor:
    """x [B, n, heads, d] turned by rotations [B or 1, n, d / 2, 2], computed in float32."""
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rotations[:, :, None].unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).type_as(x)


def heads_of(attention: Any, query: Tensor, key: Tensor, value: Tensor, norms: Mapping[str, Any]) -> list[Tensor]:
    """Each as [B, n, heads, d], query and key normalised; keys of fewer heads are repeated."""
    query = query.unflatten(-1, (attention.heads, -1))
    key, value = (one.unflatten(-1, (-1, query.shape[-1])) for one in (key, value))
    query = query if norms["query"] is None else norms["query"](query)
    key = key if norms["key"] is None else norms["key"](key)
    return [query, key, value]


def attended(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of [B, n, heads, d] as [B, n, heads d]; mask: bool [B, n] of the keys."""
    repeats = query.shape[2] // key.shape[2]
    if repeats > 1:
        key, value = (one.repeat_interleave(repeats, 2) for one in (key, value))
    query, key, value = (one.transpose(1, 2) for one in (query, key, value))
    keys = None if mask is None else mask.bool()[:, None, None, :]
    out = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=keys)
    return out.transpose(1, 2).flatten(2)


@final
class SelfAttention:
    """The attention of Z-Image and Lumina 2; rotations come where the models' own take complex numbers."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        freqs_cis: Tensor | None = None,
        image_rotary_emb: Tensor | None = None,
    ) -> Tensor:
        norms = {"query": attn.norm_q, "key": attn.norm_k}
        x = hidden_states
        query, key, value = heads_of(attn, attn.to_q(x), attn.to_k(x), attn.to_v(x), norms)
        rotations = image_rotary_emb if freqs_cis is None else freqs_cis
        assert rotations is not None
        out = attended(turned(query, rotations), turned(key, rotations), value, attention_mask)
        for layer in attn.to_out:
            out = layer(out)
        return out


@final
class JointAttention:
    """The attention of Qwen-Image, of a picture and its prompt."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        assert image_rotary_emb is not None
        x, text = hidden_states, encoder_hidden_states
        norms = {"query": attn.norm_q, "key": attn.norm_k}
        picture = heads_of(attn, attn.to_q(x), attn.to_k(x), attn.to_v(x), norms)
        norms = {"query": attn.norm_added_q, "key": attn.norm_added_k}
        prompt = heads_of(attn, attn.add_q_proj(text), attn.add_k_proj(text), attn.add_v_proj(text), norms)
        for held, rotations in ((picture, image_rotary_emb[0]), (prompt, image_rotary_emb[1])):
            held[:2] = [turned(one, rotations) for one in held[:2]]
        query, key, value = (torch.cat(both, 1) for both in zip(prompt, picture, strict=True))
        mask = encoder_hidden_states_mask
        if mask is not None:
            mask = nn.functional.pad(mask.bool(), (0, x.shape[1]), value=True)
        out = attended(query, key, value, mask)
        told, shown = out[:, : text.shape[1]], out[:, text.shape[1] :]
        for layer in attn.to_out:
            shown = layer(shown)
        return shown, attn.to_add_out(told)
