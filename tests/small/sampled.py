"""Samples of a network with prompts, without an export: its own modules in PyTorch, along a compiled program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import pfdiff
from pfdiff.engine.compiler.solvers import parse_solver
from pfdiff.engine.contract.contract import TextEncoderContract
from pfdiff.engine.contract.text_encoders import TextEncoder
from pfdiff.export.encoders.from_pipeline import load_encoder


@torch.no_grad()
def encoded(network: pfdiff.Network, texts: list[str], *, negative: bool) -> dict[str, Tensor]:
    """The conditions of texts, by the modules that are exported."""
    from tokenizers import Tokenizer

    assert network.encoders is not None
    held: Any = network.encoders.text
    prompting, frame = held._given.prompting, held._around
    total = torch.zeros(())
    for name, (source, _) in held._given.sources.items():
        words = {"tidy": prompting.tidy, "before": frame.before, "after": frame.after}
        described = TextEncoder(
            "a.onnx",
            "a.json",
            TextEncoderContract(name, 1, 1),
            prompting.plain,
            **words,
            negative_before=frame.negative_before,
        )
        tokenizer = Tokenizer.from_str(held._tokenizer_json(name))
        found = tokenizer.encode_batch([described.framed(one, negative=negative) for one in texts])
        tokens = torch.tensor([[one.ids, one.attention_mask] for one in found])
        encoder = load_encoder(source) if isinstance(source, Path) else source
        total = total + held._module(name, encoder, held._places[name])(tokens)
    sizes = [int(np.prod(shape)) for shape in held._shapes.values()]
    pieces = zip(held._shapes.items(), total.split(sizes, 1), strict=True)
    return {name: piece.unflatten(1, shape) for (name, shape), piece in pieces}


@torch.no_grad()
def sampled(
    network: pfdiff.Network,
    noise: Tensor,
    steps: int,
    prompts: list[str] | None = None,
    negative: str = "",
    scale: float = 1.0,
    **given: Any,
) -> Tensor:
    """DDIM on the times of its scheduler, in float32: S = W_n S + w_n out, out = network(c_in_n S_0, t_n)."""
    convention, contract = network.convention, network.contract
    assert convention is not None
    times = convention.walk(parse_solver("ddim"), steps)
    words = (convention.schedule, steps, times, convention.basis, convention.prediction)
    program = pfdiff.compile("ddim", *words, end=convention.end)
    conditions: dict[str, Any] = dict(given)
    if prompts:
        conditions |= encoded(network, prompts, negative=False)
        other = encoded(network, len(prompts) * [negative], negative=True)
        conditions |= {f"{name}_unconditional": one for name, one in other.items()}
        conditions |= {"guidance": torch.tensor(scale)}
    states = torch.tensor(program.init, dtype=torch.float32).reshape(-1, *[1] * noise.ndim) * noise
    fed = contract.feed_times(program.network_times)
    for n in range(steps):
        out = network.evaluate(float(program.c_in[n]) * states[0], fed[n], conditions)
        W, w = (torch.tensor(one[n], dtype=torch.float32) for one in (program.W, program.w))
        states = torch.tensordot(W, states, 1) + w.reshape(-1, *[1] * noise.ndim) * out
    return states[0]
