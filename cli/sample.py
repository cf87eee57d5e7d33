"""`pfdiff sample`: samples of one engine, as pictures or arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .arguments import options

Out = Annotated[
    str, typer.Option("--out", "-o", help=".png (one sheet), .mp4, .npy, .npz, or a folder of PNGs, or frames.")
]
Seeds = Annotated[str, typer.Option("--seeds", help="One image each: 0-15, or 0,3,7.")]
Image = Annotated[str | None, options.valued("FILE", "--image", "A picture to start from; also .npy, such as latents.")]
Mask = Annotated[
    str | None, options.valued("FILE", "--mask", "With --image: white where it is drawn anew, black is kept.")
]
Strength = Annotated[
    str | None,
    options.valued(
        "<float>", "--strength", "With --image: 0 to 1, how much is drawn anew; default: 0.8, with --mask 1."
    ),
]
StrengthCounts = Annotated[
    str | None, typer.Option("--strength-counts", help="part: all of --nfe for this part; whole: as diffusers counts.")
]


def sample(
    context: typer.Context,
    engine: options.EngineArgument,
    out: Out,
    nfe: options.Evaluations = None,
    seeds: Seeds = "0-15",
    prompt: options.Prompts = None,
    negative_prompt: options.NegativePrompts = None,
    image: Image = None,
    mask: Mask = None,
    strength: Strength = None,
    strength_counts: StrengthCounts = None,
    backend: options.Backend = "auto",
    device: options.Device = "auto",
    threads: options.Threads = None,
) -> None:
    """Draw samples: one image a seed. The network's conditions are options too: --label 3."""
    from ..engine.contract.condition import INPAINTING
    from ..engine.contract.controls import CONTROL_LATENTS
    from ..quality.pictures.pixels import check_shape
    from ..quality.pictures.video import check_video
    from ..quality.pictures.write import kind_of, write_images, write_samples
    from .arguments.conditions import conditions_from
    from .arguments.networks import read_engine
    from .arguments.prompts import ASKED, asked_from, by_seed, check_asked, check_texts
    from .arguments.values import seeds_from
    from .output.figures import as_name
    from .output.progress import bar, opened

    # Everything that engine.json decides, before torch and the network are loaded.
    chosen, kind = seeds_from(seeds), kind_of(out)
    artifact = read_engine(engine, backend=backend, device=device)
    evaluations = artifact.program(nfe).nfe
    pictures = kind in ("grid", "folder", "video")
    shape = artifact.decoder.image if artifact.decoder else artifact.contract.shape
    if pictures:
        check_shape(shape, frames=kind != "grid" and artifact.decoder is not None)
        if kind == "video":
            check_video(shape, Path(out))
    typed = {name: context.params[name] for name in ASKED if context.params[name] not in (None, [], ())}
    extra, asked = asked_from(typed, artifact.contract, shape)
    check_texts(asked, artifact)
    each = by_seed(asked, chosen, len(shape))
    encoded = {*(artifact.text_encoders.encoded if artifact.text_encoders else ()), *INPAINTING, CONTROL_LATENTS}
    conditions = conditions_from([*context.args, *extra], artifact.contract, len(chosen), encoded)
    check_asked(asked, conditions, artifact, len(chosen))

    with opened(engine, device, backend, threads) as loaded:
        draw = loaded.images if pictures else loaded.sample
        batch = max(loaded.batch)
        parts = []
        for start in bar(range(0, len(chosen), batch), "sampling"):
            part = slice(start, start + batch)
            values = {**asked, **{name: value[part] for name, value in {**each, **conditions}.items()}}
            parts.append(draw(seeds=chosen[part], nfe=evaluations, **values))
    import numpy as np

    results = np.concatenate([part.cpu().numpy() for part in parts])
    if pictures:
        write_images(out, results, chosen)
    else:
        write_samples(out, results, chosen, conditions)
    count, spent = len(chosen), "1 evaluation" if evaluations == 1 else f"{evaluations} evaluations"
    named = as_name(out)
    print(f"{named}: 1 sample, {spent}" if count == 1 else f"{named}: {count} samples, {spent} each")
