"""The kernels worth compiling before anybody asks: each op with its constants, argument types and alignment fixed.

A program's own set follows from `table.updates`, which the runtime uses too (`program_variants`); `standard` lists
what covers every program.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

from . import images, noise, step
from .launch import Kernel
from .table import PICTURE_ALONE, WITH_NOISE, Update

DTYPES = ("fp32", "fp16", "bf16")
WIDTH = {"fp32": 4, "fp16": 2, "bf16": 2, "u8": 1, "i64": 8, "i32": 4}  # bytes; the names are Triton's
CHANNELS = (1, 3, 4)
PROMISED = (
    "states",
    "y_in",
    "out",
    "elements",
    "xi",
    "picture",
    "eps",
    "mask",
)  # multiples of 16 where data are aligned
# What updates with noise read and write in the shipped samplers of one and two states: DDPM, Euler ancestral, DDIM with
# eta, LCM, TCD, consistency models; DPM-Solver++ SDE, SA-Solver. State 0 is written unless the network has a buffer of
# its own, and all that is touched gets noise.
DRAWN = {1: ((0, 1), (1, 0), (1, 1)), 2: ((1, 2), (1, 3), (2, 1), (3, 0), (3, 1), (3, 2), (3, 3))}


@dataclass(frozen=True)
class Variant:
    """One kernel to compile: `types` in launch order, constants, and the bytes per element that it cannot avoid.

    `promised` names the arguments that will be multiples of 16 (addresses in bytes, sizes in elements), which is what
    makes 16-byte accesses possible; empty for a kernel that takes anything. `grid` is the number of programs.
    """

    op: str
    name: str
    kernel: Kernel
    types: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, int | bool], ...]
    promised: tuple[str, ...]
    grid: str
    read_floor: int
    write_floor: int

    @property
    def block(self) -> int:
        """Elements per program."""
        return dict(self.constants)["BLOCK"]


def step_variant(
    buffers: int,
    update: Update,
    out: str = "fp32",
    y_in: str | None = None,
    aligned: bool = True,
    *,
    given: bool = False,
) -> Variant:
    """The step kernel for one kind of update; y_in is the dtype of the network's own buffer, None unless separate.

    given: the noise that it adds is read, not made.
    """
    if not 1 <= buffers <= step.MAX_BUFFERS or (update.reads | update.writes) >> buffers:
        raise ValueError(f"no step kernel with {buffers} buffers and masks {update.reads:b}, {update.writes:b}")
    if out not in DTYPES or y_in not in (*DTYPES, None) or update.separate != (y_in is not None):
        raise ValueError(f"no step kernel from {out} to {y_in} with separate={update.separate}")
    words = ["step", f"b{buffers}", f"r{update.reads:0{buffers}b}", f"w{update.writes:0{buffers}b}"]
    words += [f"n{update.noise:0{buffers}b}" + "x" * given] if update.noise else []
    words += [f"k{update.keeps}"] if update.keeps else []
    words += ["clip"] * update.clip + [out] + ([y_in] if y_in else []) + ["any"] * (not aligned)
    pointers = (("states", "*fp32"), ("y_in", f"*{y_in or 'fp32'}"), ("out", f"*{out}"), ("table", "*fp32"))
    seeds = (("seeds", "*i64"), ("factors", "*fp32"), ("size", "i64"))
    drawn = () if not update.noise else (("factors", "*fp32"), ("xi", "*fp32")) if given else seeds
    eps = (("eps", "*fp32"),) if update.keeps == WITH_NOISE else ()
    kept = (("picture", "*fp32"), *eps, ("mask", "*u8"), ("kept", "*fp32")) if update.keeps else ()
    read = 4 * update.reads.bit_count() + 4 * (bool(update.noise) and given) + 4 * len(eps) + 5 * bool(update.keeps)
    named = (*pointers, ("row", "i32"), ("elements", "i64"), *drawn, *kept)
    return Variant(
        op="step" + "-noise" * bool(update.noise) + "-mask" * bool(update.keeps),
        name="-".join(words),
        kernel=step.kernel_of(buffers, draws=bool(update.noise) and not given),
        types=named,
        constants=(
            ("BUFFERS", buffers),
            ("READS", update.reads),
            ("WRITES", update.writes),
            ("CLIP", update.clip),
            ("SEPARATE", update.separate),
            ("BLOCK", step.BLOCK),
            *((("NOISE", update.noise),) if update.noise else ()),
            *((("KEEPS", update.keeps),) if update.keeps else ()),
        ),
        promised=tuple(name for name, _ in named if name in PROMISED) if aligned else (),
        grid="ceil(elements / BLOCK)",
        read_floor=read + WIDTH[out],
        write_floor=4 * update.writes.bit_count() + (WIDTH[y_in] if y_in else 0),
    )


def noise_variant(aligned: bool = True) -> Variant:
    return Variant(
        op="noise",
        name="noise" if aligned else "noise-any",
        kernel=noise.KERNEL,
        types=(("z", "*fp32"), ("seeds", "*i64"), ("elements", "i64")),
        constants=(("BLOCK", noise.BLOCK),),
        promised=("z", "elements") if aligned else (),
        grid="samples * ceil(elements / BLOCK)",
        read_floor=0,
        write_floor=4,
    )


def images_variant(channels: int, aligned: bool = True) -> Variant:
    return Variant(
        op="images",
        name=f"images-c{channels}" + ("" if aligned else "-any"),
        kernel=images.KERNEL,
        types=(("pixels", "*u8"), ("x", "*fp32"), ("low", "fp32"), ("factor", "fp32"), ("area", "i32")),
        constants=(("CHANNELS", channels), ("BLOCK", images.BLOCK)),
        promised=("pixels", "x", "area") if aligned else (),
        grid="samples * ceil(area * CHANNELS / BLOCK)",
        read_floor=4,
        write_floor=1,
    )


def program_variants(buffers: int, rows: Iterable[Update], network: str, aligned: bool = True) -> list[Variant]:
    """The step kernels of one program: rows as `table.updates` returns them, network one of DTYPES.

    The last row starts from float32 noise, the others from the network's output.
    """
    rows = list(rows)
    sources = [network] * (len(rows) - 1) + ["fp32"]
    found = [
        step_variant(buffers, row, source, network if row.separate else None, aligned)
        for row, source in zip(rows, sources, strict=True)
    ]
    return list(dict.fromkeys(found))


def standard() -> list[Variant]:
    """Every variant that the shipped solvers, networks and data need, without repetition.

    Programs of one or two states (DDIM, PFDiff, two-step methods) find the kernel with exactly their masks. Larger ones
    are served by the kernels that read and write everything: a coefficient of zero adds nothing to a finite state.
    Those, and only those, also exist without the promise of alignment. Noise goes to every state that the update
    touches. Masks, with noise and without, are served by kernels that read and write everything. Of six states and more
    there are only kernels without the promise: a warp's accesses are whole cache lines in either case.
    """
    found: list[Variant] = []
    for buffers in range(1, step.MAX_BUFFERS + 1):
        everything = (1 << buffers) - 1
        for network, separate, clip in _modes():
            if buffers <= 2:
                found += _exact(buffers, network, separate, clip)
            for aligned in (True, False) if buffers < step.MANY else (False,):
                rows = [
                    Update(everything, everything, clip, separate),
                    Update(everything, 1, clip, False),
                    Update(0, everything, False, separate),
                ]
                found += program_variants(buffers, rows, network, aligned)
                found += _with_noise(buffers, network, separate, clip, aligned)
                found += _with_mask(buffers, network, separate, clip, aligned)
    for aligned in (True, False):
        found.append(noise_variant(aligned))
        found += [images_variant(channels, aligned) for channels in CHANNELS]
    return list(dict.fromkeys(found))


def _modes() -> list[tuple[str, bool, bool]]:
    """(network dtype, separate input, clip): a float32 network has its own buffer only where c_in is not 1."""
    inputs = [("fp32", False), ("fp32", True), ("fp16", True), ("bf16", True)]
    return [(dtype, separate, clip) for dtype, separate in inputs for clip in (False, True)]


def _with_noise(buffers: int, network: str, separate: bool, clip: bool, aligned: bool) -> list[Variant]:
    """Of updates between two evaluations, exact for one and two states where the shipped samplers have these masks; and
    of the last one, which draws where a program ends before the clean point.
    """
    everything = (1 << buffers) - 1
    masks = DRAWN.get(buffers, ()) if aligned else ()
    rows = [Update(reads, writes, clip, separate, writes | separate) for reads, writes in masks]
    rows += [Update(everything, everything, clip, separate, everything), Update(everything, 1, clip, False, 1)]
    return [
        step_variant(buffers, row, network, network if row.separate else None, aligned)
        for row in rows
        if separate or row.writes & 1
    ]


def _with_mask(buffers: int, network: str, separate: bool, clip: bool, aligned: bool) -> list[Variant]:
    """Of updates between two evaluations and of the last one, each with noise and without."""
    everything = (1 << buffers) - 1
    rows = [
        row
        for noise in (0, everything)
        for row in (
            Update(everything, everything, clip, separate, noise, WITH_NOISE),
            Update(everything, 1, clip, False, noise & 1, PICTURE_ALONE),
        )
    ]
    return [step_variant(buffers, row, network, network if row.separate else None, aligned) for row in rows]


def _exact(buffers: int, network: str, separate: bool, clip: bool) -> list[Variant]:
    """All masks that `table.updates` can return: the last update writes s_0 alone, and only it may read no state."""
    masks = range(1 << buffers)
    found: list[Variant] = []
    for reads, writes in product(masks, masks):
        if separate and reads:
            found.append(step_variant(buffers, Update(reads, writes, clip, True), network, network))
        if writes == 1 or (writes & 1 and reads and not separate):
            found.append(step_variant(buffers, Update(reads, writes, clip, False), network))
    for writes in masks:
        if separate or writes & 1:
            found.append(
                step_variant(buffers, Update(0, writes, False, separate), "fp32", network if separate else None)
            )
    return found
