"""An engine as models of a Triton Inference Server's repository: each program a one-file ONNX sampler and its config.

    OUT/
        fashion_nfe8/
            config.pbtxt
            1/model.onnx      noise or seeds, and conditions in, samples out; large weights beside it

The configuration is Triton's model_config.proto in text. A condition without a shape is [batch] in the graph; Triton's
batched inputs have at least one further dimension, so it is [batch, 1] for clients, reshaped by Triton.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ...engine.artifact import Artifact, read_artifact
from ...engine.atomic import replacing_folder
from ...engine.contract.contract import Contract
from ...engine.errors import InputError
from ...engine.files.outside import check_outside
from ...engine.version import __version__
from .sampler_onnx import export_sampler

CONFIG = "config.pbtxt"
WRITTEN = "# Written by pfdiff"
DATA_TYPES = {
    "float32": "TYPE_FP32",
    "uint64": "TYPE_UINT64",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "int64": "TYPE_INT64",
    "int32": "TYPE_INT32",
    "bool": "TYPE_BOOL",
}
QUEUE_DELAY_US = 5000


def export_triton(
    engine: str | os.PathLike[str],
    out: str | os.PathLike[str],
    nfe: int | None = None,
    *,
    from_seeds: bool = False,
    check: bool = True,
    progress: Callable[[str], None] | None = None,
) -> list[Path]:
    """Write a model for each program of `engine`, or that of `nfe`, into the repository `out`; returns their folders.

    A model that this function wrote before is replaced whole; other folders of the repository are left alone.
    from_seeds, check: as in `export_sampler`. Raises InputError, EngineFileError, BackendError.
    """
    say: Callable[[str], None] = progress or (lambda line: None)
    artifact = read_artifact(engine)
    repository = Path(out)
    if repository.is_file() or repository.suffix == ".onnx" or (repository / "engine.json").exists():
        raise InputError(f"out '{repository}', expected a folder for Triton's models, such as models")
    check_outside(repository)
    if nfe is not None and nfe not in artifact.programs:
        held = ", ".join(map(str, sorted(artifact.programs)))
        raise InputError(f"nfe={nfe}, this engine has {held}; choose one of them, or build more")
    chosen = sorted(artifact.programs) if nfe is None else [nfe]
    for program in (artifact.programs[count] for count in chosen):
        if program.noises and not from_seeds:  # [noises, batch, ...], which Triton's batches cannot hold
            raise InputError(
                f"{program.solver} draws noise on the way, which is no input of Triton's batches; say from_seeds= "
                "(--from-seeds)"
            )
    targets = {count: repository / model_name(artifact, count) for count in chosen}
    for target in targets.values():
        _check_ours(target)
    with _all_or_none(repository) as stack:
        for count, target in targets.items():
            folder = stack.enter_context(replacing_folder(target))
            (folder / "1").mkdir()
            export_sampler(engine, folder / "1" / "model.onnx", count, from_seeds=from_seeds, check=check, progress=say)
            (folder / CONFIG).write_text(config(artifact, count, from_seeds=from_seeds), encoding="utf-8")
    models = "1 model" if len(targets) == 1 else f"{len(targets)} models"
    say(f"{repository}: {models} for Triton, {', '.join(path.name for path in targets.values())}")
    return list(targets.values())


@contextlib.contextmanager
def _all_or_none(repository: Path) -> Iterator[contextlib.ExitStack]:
    """The repository's folder, and a stack for its models, which appear at the end; folders that are new go with them.

    Raises InputError for a disk on which they have no room.
    """
    new = [one for one in (repository, *repository.parents) if not one.exists()]
    try:
        repository.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            yield stack
    except BaseException as error:
        for one in new:
            with contextlib.suppress(OSError):
                one.rmdir()
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError):
            raise
        raise InputError(
            f"cannot write '{repository}': {cause.strerror or cause}; nothing was changed, free some space or choose "
            "another place"
        ) from cause


def model_name(artifact: Artifact, nfe: int) -> str:
    """The engine directory's name in letters that Triton takes, and the NFE."""
    stem = artifact.path.resolve().name.removesuffix(".engine")
    return f"{re.sub('[^A-Za-z0-9_.-]+', '_', stem)}_nfe{nfe}"


def config(artifact: Artifact, nfe: int, *, from_seeds: bool = False) -> str:
    """config.pbtxt: names, types, dims; batches up to the engine's largest, gathered for QUEUE_DELAY_US."""
    contract, program = artifact.contract, artifact.programs[nfe]
    fixed = contract.fixed_batch
    shape = _dims(contract, contract.shape)
    reshape = " reshape: { shape: [ ] }" if fixed is None else ""
    inputs = [_tensor("noise", "float32", shape)]
    if from_seeds:
        inputs = [_tensor("seeds", "uint64", _dims(contract, ()) or [1], reshape)]
    for one in contract.conditions:
        dims = _dims(contract, one.shape) or [1]
        inputs.append(_tensor(one.name, one.dtype, dims, "" if one.shape else reshape))
    meaning = "seeds: one a sample" if from_seeds else "noise: pfdiff.noise(seeds, shape), one normal number an element"
    lines = [
        f"{WRITTEN} {__version__}: {program.solver}, {nfe} evaluations, program {program.digest[:16]}.",
        f"# {meaning}." + (" samples: latents, the engine's decoder.onnx decodes them." if artifact.decoder else ""),
        f'name: "{model_name(artifact, nfe)}"',
        'backend: "onnxruntime"',
        'default_model_filename: "model.onnx"',
        f"max_batch_size: {0 if fixed else artifact.batch[-1]}",
        "input [",
        ",\n".join(inputs),
        "]",
        "output [",
        _tensor("samples", "float32", shape),
        "]",
    ]
    if fixed is None and artifact.batch[-1] > 1:
        sizes = ", ".join(str(size) for size in artifact.batch if size > 1)
        lines += [
            "dynamic_batching {",
            f"  preferred_batch_size: [ {sizes} ]",
            f"  max_queue_delay_microseconds: {QUEUE_DELAY_US}",
            "}",
        ]
    return "\n".join(lines) + "\n"


def _dims(contract: Contract, shape: Sequence[int]) -> list[int]:
    """Without the batch, which Triton adds, unless the network takes only one."""
    return list(shape) if contract.fixed_batch is None else [contract.fixed_batch, *shape]


def _tensor(name: str, dtype: str, dims: Sequence[int], reshape: str = "") -> str:
    listed = ", ".join(map(str, dims))
    return f'  {{ name: "{name}" data_type: {DATA_TYPES[dtype]} dims: [ {listed} ]{reshape} }}'


def _check_ours(target: Path) -> None:
    """Raises InputError when something else stands where a model would be written."""
    written = target / CONFIG
    if target.exists() and not (written.is_file() and written.read_text(encoding="utf-8").startswith(WRITTEN)):
        raise InputError(f"'{target}' is there and was not written by pfdiff; name another repository, or remove it")
