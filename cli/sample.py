"""`pfdiff sample`: samples of one engine, as pictures or arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..engine.errors import InputError
from . import options


def sample(
    context: typer.Context,
    engine: options.EngineArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help=".png (one grid), .npy, .npz, or a folder of PNGs.")],
    nfe: options.Evaluations = None,
    seeds: Annotated[str, typer.Option("--seeds", help="One image each: 0-15, or 0,3,7.")] = "0-15",
    backend: options.Backend = "auto",
    device: options.Device = "auto",
    threads: options.Threads = None,
) -> None:
    """Draw samples: one image a seed. The network's conditions are options too: --label 3."""
    from ..quality.pictures.pixels import check_shape
    from ..quality.pictures.write import kind_of, write_images, write_samples
    from .progress import bar, opened
    from .values import conditions_from, seeds_from

    chosen, kind = seeds_from(seeds), kind_of(out)
    with opened(engine, device, backend, threads) as loaded:
        if kind in ("grid", "folder"):
            check_shape(loaded.decoder.image if loaded.decoder else loaded.contract.shape)
        evaluations = _only_nfe(sorted(loaded.programs)) if nfe is None else nfe
        conditions = conditions_from(context.args, loaded.contract, len(chosen))
        draw = loaded.images if kind in ("grid", "folder") else loaded.sample
        batch = max(loaded.batch)
        parts = []
        for start in bar(range(0, len(chosen), batch), "sampling"):
            part = slice(start, start + batch)
            values = {name: value[part] for name, value in conditions.items()}
            parts.append(draw(seeds=chosen[part], nfe=evaluations, **values))
    import numpy as np

    results = np.concatenate([part.cpu().numpy() for part in parts])
    if kind in ("grid", "folder"):
        write_images(out, results, chosen)
    else:
        write_samples(out, results, chosen, conditions)
    print(f"{out}: {len(chosen)} {'sample' if len(chosen) == 1 else 'samples'}, {evaluations} evaluations each")


def _only_nfe(held: list[int]) -> int:
    if len(held) == 1:
        return held[0]
    raise InputError(f"--nfe is missing and this engine has several; choose one of {', '.join(map(str, held))}")
