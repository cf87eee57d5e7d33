"""What a captured batch reads of a program: coefficients and times, one block of bytes on the device.

A graph holds the addresses of its batch's own block. Another program that touches the same states takes its place by
one copy on the device, without a new capture: so all starts from a picture share the graph of their NFE.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch

from ....kernels.table import Update, coefficients, kept_factors, noise_factors, updates
from ...compiler.program import Program
from ...compiler.schedule import Float64s
from ...contract.contract import Contract
from ...tensors import TORCH_DTYPES
from ..loop import Tables
from .blocks import ALIGNMENT_BYTES, Parts, block_of, views


@final
@dataclass(frozen=True, eq=False)
class Coefficients:
    """Parts of one block. table float32 [N + 1, 4 + B + B^2]; factors float32 [N + 1, B] of the noise on the way.

    times [N, bucket or more] of the network's dtype: a row for each evaluation, so that nothing is written between
    two. kept float32 [N + 1, 2] of a mask, None without. data uint8: all of it.
    """

    data: torch.Tensor
    table: torch.Tensor
    factors: torch.Tensor
    times: torch.Tensor
    kept: torch.Tensor | None

    @classmethod
    def of(cls, tables: Tables, contract: Contract, bucket: int, device: torch.device, *, masked: bool) -> Coefficients:
        """Those of a program, on the device when this returns."""
        program = tables.program
        rows = coefficients(
            init=program.init,
            p=program.p,
            q=program.q,
            W=program.W,
            w=program.w,
            c_in=program.c_in,
            clip=program.clip,
        )
        given = [
            torch.from_numpy(rows),
            torch.from_numpy(noise_factors(_added(program))),
            _time_rows(tables, contract, bucket),
        ]
        if masked:
            given.append(torch.from_numpy(kept_factors(*tables.known.T)))
        parts: Parts = [(one.dtype, tuple(one.shape)) for one in given]
        block = block_of(parts, "cpu")
        for part, one in zip(views(block, parts), given, strict=True):
            part.copy_(one)
        table, factors, times, *kept = views(moved := block.to(device), parts)
        return cls(moved, table, factors, times, kept[0] if masked else None)


def _added(program: Program) -> Float64s:
    """[N, B] of what is added beside states and z: noise, or the output as it is, which the kernel takes like noise."""
    return program.U if program.keeps_eps else program.V


def _time_rows(tables: Tables, contract: Contract, bucket: int) -> torch.Tensor:
    """[N, bucket or more]. Each row starts on an address that TensorRT and vector loads take."""
    fed = torch.from_numpy(tables.times).to(TORCH_DTYPES[contract.time_dtype])
    aligned = ALIGNMENT_BYTES // fed.element_size()
    return fed[:, None].expand(-1, -(-bucket // aligned) * aligned)


def updates_of(tables: Tables, *, separate: bool, masked: bool) -> tuple[Update, ...]:
    """The N + 1 updates of a program, in the last place its start. Programs share a graph where these are equal."""
    program = tables.program
    return updates(
        p=program.p,
        W=program.W,
        w=program.w,
        clip=program.clip is not None,
        separate=separate,
        V=_added(program),
        masked=masked,
    )
