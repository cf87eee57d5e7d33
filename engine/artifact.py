"""The engine directory: read, verified, and written so that it is at any moment either the former engine or the new.

    faces.engine/
        engine.json       {format, provenance, contract, batch, precision, programs, files, digest}; if there
                          are any: decoder, text_encoders, image_encoder, policy;
                          alphas: the numbers of a schedule `alphas:FILE`, which the contract names by their SHA-256
        network.onnx      and its external data files, if any
        decoder.onnx      of a latent model, likewise
        encoders/         text encoders with their tokenizers; image.onnx, a latent model's way from pictures;
                          observation.onnx of a policy
        plans/            a local cache, never listed in `files`

`files` maps each name to its SHA-256 and size. `digest` is the SHA-256 of the manifest without that entry. Both find
damage, not forgery: whoever can write the directory can write the hashes. A new directory is built beside the former
and swapped with it in one system call. A new manifest replaces the former by a rename.
"""

from __future__ import annotations

import hashlib
import json
import operator
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, SupportsIndex, final

from .atomic import part_prefix, replacing, writing
from .compiler.program import Program
from .compiler.schedule import held_alphas, hold_alphas
from .contract.contract import QUANTISED, AnyContract, Contract, DecoderContract
from .contract.pictures import Pictures
from .contract.policy import PolicyContract
from .contract.second import LARGEST_BATCH
from .contract.text_encoders import TextEncoders
from .errors import EngineFileError, InputError, first_line, shown
from .files.file_records import MANIFEST, FileRecord, check_file, damaged, read_records
from .files.open_folder import OpenFolder, read_at_most
from .json_fields import is_integer, parse_json

FORMAT = 1
PART = part_prefix(MANIFEST)  # begins the name of a manifest that is being written
NETWORK = "network.onnx"
DECODER = "decoder.onnx"
ENCODERS = "encoders"
IMAGE_ENCODER = f"{ENCODERS}/image.onnx"
OBSERVATION_ENCODER = f"{ENCODERS}/observation.onnx"
PLANS = "plans"
WEIGHT_BITS = "int8 weight bits"  # of the provenance: 7 or 8, of a network with int8 inside
KEYS = ("format", "provenance", "contract", "batch", "precision", "programs", "files", "digest")
LARGEST_MANIFEST_BYTES = 16 << 20  # 4096 evaluations would need more; the C++ reader has the same bound
MOST_SWAPS = 100  # of the directory while it is read


@final
@dataclass(frozen=True, eq=False)
class Artifact:
    """The content of an engine directory. `batch`: ascending bucket sizes; `programs`: by NFE; `files`: by name.

    `precision`: the contract's, or int8 or fp8 where layers of the network compute in eight bits.

    `decoder`: input and output of decoder.onnx; None where samples are not decoded. `text_encoders`: what turns prompts
    into conditions. `image_encoder`: input and output of encoders/image.onnx, which takes images and makes latents.
    `policy`: what makes actions of observations.
    """

    path: Path
    contract: Contract
    batch: tuple[int, ...]
    precision: str
    programs: Mapping[int, Program]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    decoder: DecoderContract | None = None
    text_encoders: TextEncoders | None = None
    image_encoder: DecoderContract | None = None
    policy: PolicyContract | None = None

    @property
    def network_path(self) -> Path:
        return self.path / NETWORK

    def program(self, nfe: SupportsIndex | None = None) -> Program:
        """The program of `nfe` evaluations; None for the only one. Raises InputError that names what there is."""
        held = sorted(self.programs)
        if nfe is None and len(held) == 1:
            return self.programs[held[0]]
        if nfe is None:
            raise InputError(f"nfe is missing and this engine has several; choose one of {', '.join(map(str, held))}")
        if isinstance(nfe, bool) or not hasattr(nfe, "__index__") or nfe not in self.programs:
            known = ", ".join(map(str, held))
            raise InputError(
                f"nfe={shown(nfe)}, this engine has {known}; choose one of them, or build {shown(nfe)} too"
            )
        return self.programs[operator.index(nfe)]

    def bucket(self, batch: int | None = None) -> int:
        """One of the batch sizes; None for the smallest. Raises InputError that names them."""
        if batch is None:
            return self.batch[0]
        if batch not in self.batch:
            raise InputError(f"batch {shown(batch)}, expected one of this engine's: {', '.join(map(str, self.batch))}")
        return batch

    @property
    def contracts(self) -> Mapping[str, AnyContract]:
        """The contract of each network by its file."""
        return {
            NETWORK: self.contract,
            **({DECODER: self.decoder} if self.decoder else {}),
            **({one.file: one.contract for one in self.text_encoders.encoders} if self.text_encoders else {}),
            **({IMAGE_ENCODER: self.image_encoder} if self.image_encoder else {}),
            **({OBSERVATION_ENCODER: self.policy.encoder} if self.policy and self.policy.encoder else {}),
        }

    @property
    def pictures(self) -> Pictures:
        """What it takes as a picture to start from."""
        shape = self.image_encoder.shape if self.image_encoder else self.contract.shape
        return Pictures(self.contract, shape, is_latent=self.decoder is not None and self.image_encoder is None)


# Reading.
def read_artifact(path: str | os.PathLike[str], *, verify: bool = True) -> Artifact:
    """The engine in the directory `path`; with `verify` the SHA-256 of every file is compared.

    While another process replaces the engine, this is the former or the new one. Raises EngineFileError: no engine
    there, another format, a damaged manifest, a file that is missing, changed, not listed or outside the directory.
    """
    folder = Path(path)
    for _ in range(MOST_SWAPS):
        with _opened(folder) as held:
            try:
                return _read(held, verify)
            except EngineFileError:
                if held.is_still_there():
                    raise
    raise EngineFileError(f"engine '{folder}' is replaced again and again while it is read; wait for the builds")


def check_in_place(artifact: Artifact) -> None:
    """Raises EngineFileError when the directory holds other networks than when `artifact` was read.

    For those who hand the paths of its files to a library: check afterwards.
    """
    if not is_in_place(artifact):
        raise EngineFileError(f"engine '{artifact.path}' was replaced by another since it was read; load it again")


def is_in_place(artifact: Artifact) -> bool:
    """Whether the directory holds the networks that it held when `artifact` was read. Raises EngineFileError."""
    with _opened(artifact.path) as held:
        return read_records(held.path, _read_manifest(held)["files"]) == artifact.files


def _opened(folder: Path) -> OpenFolder:
    try:
        return OpenFolder(folder)
    except FileNotFoundError:
        what = "does not exist"
    except NotADirectoryError:
        what = "is not a directory"
    except (OSError, ValueError) as error:
        what = f"cannot be read ({first_line(error)})"
    raise EngineFileError(f"engine '{folder}' {what}; give a directory that 'pfdiff build' wrote")


def _read(held: OpenFolder, verify: bool) -> Artifact:
    folder = held.path
    content = _read_manifest(held)
    try:
        contract = Contract.from_dict(content["contract"])
        if "alphas" in content and hold_alphas(content["alphas"]) != contract.schedule:
            raise InputError(f"'alphas' are not the numbers of its schedule {contract.schedule}")
        decoder, images = (
            DecoderContract.from_dict(content[key]) if key in content else None for key in ("decoder", "image_encoder")
        )
        if decoder is not None and decoder.shape != contract.shape:
            raise InputError(f"its decoder takes {list(decoder.shape)}, the network makes {list(contract.shape)}")
        if images is not None and images.image != contract.shape:
            raise InputError(f"its image encoder makes {list(images.image)}, samples are {list(contract.shape)}")
        texts = TextEncoders.from_dict(content["text_encoders"], contract) if "text_encoders" in content else None
        policy = PolicyContract.from_dict(content["policy"]) if "policy" in content else None
        if policy is not None:
            policy.check(contract.shape, {one.name: one.shape for one in contract.conditions})
        programs = _programs(content["programs"], contract)
        batch = _batch(content["batch"], contract, decoder)
        provenance = _provenance(content["provenance"])
    except (InputError, TypeError, ValueError, OverflowError) as error:
        raise damaged(folder, str(error)) from None
    precision = content["precision"]
    if precision not in (contract.precision, *QUANTISED):
        raise damaged(folder, f"precision {shown(precision)}, the contract says {contract.precision!r}")
    files = read_records(folder, content["files"])
    artifact = Artifact(folder, contract, batch, precision, programs, provenance, files, decoder, texts, images, policy)
    for name in (*artifact.contracts, *(one.tokenizer for one in (texts.encoders if texts else ()))):
        if name not in files:
            raise damaged(folder, f"'{name}' is not among its files")
    for name in files:
        check_file(held, name, files, verify, network=name in artifact.contracts)
    return artifact


def _read_manifest(held: OpenFolder) -> dict[str, Any]:
    folder, path = held.path, held.path / MANIFEST
    try:
        with held.open(MANIFEST) as file:
            data = read_at_most(file, LARGEST_MANIFEST_BYTES)
    except FileNotFoundError:
        message = f"'{folder}' has no {MANIFEST}, so it is no engine; give a directory that 'pfdiff build' wrote"
        raise EngineFileError(message) from None
    except OSError as error:
        raise EngineFileError(f"'{path}' cannot be read: {error.strerror}; an engine holds plain files") from None
    if data is None:
        raise damaged(folder, f"more than {LARGEST_MANIFEST_BYTES >> 20} MiB")
    try:
        content = parse_json(data)
        if not isinstance(content, dict):
            raise InputError(f"a JSON {type(content).__name__}, expected an object")
    except InputError as error:
        raise damaged(folder, str(error)) from None
    if type(content.get("format")) is not int or content["format"] != FORMAT:
        raise EngineFileError(
            f"engine '{folder}' has format {shown(content.get('format'))}, this pfdiff reads {FORMAT}; "
            "rebuild it, or use the pfdiff that wrote it"
        )
    missing = [key for key in KEYS if key not in content]
    if missing:
        raise damaged(folder, f"'{missing[0]}' is missing")
    try:
        digest = _digest(content)
    except ValueError:  # a number beyond float64, which was read as infinity
        raise damaged(folder, "a number that is not finite") from None
    if content["digest"] != digest:
        raise damaged(folder, f"its content has SHA-256 {digest[:12]}, 'digest' says {content['digest']!s:.12}")
    return content


def _programs(plain: Any, contract: Contract) -> dict[int, Program]:
    programs: dict[int, Program] = {}
    for key, value in _fields("programs", plain).items():
        if not (key.isascii() and key.isdigit() and len(key) < 8):
            raise InputError(f"the program {shown(key)} is not named by its NFE")
        program = programs[int(key)] = Program.from_dict(value)
        if program.nfe != int(key) or program.prediction != contract.prediction:
            raise InputError(f"program '{key}' has {program.nfe} evaluations of {program.prediction}")
    if not programs:
        raise InputError("0 programs, expected at least one")
    return programs


def _batch(plain: Any, contract: Contract, decoder: DecoderContract | None) -> tuple[int, ...]:
    """The bucket sizes, ascending. A network of one batch size has no other."""
    if (
        not isinstance(plain, list)
        or not plain
        or not all(is_integer(one) and 1 <= one <= LARGEST_BATCH for one in plain)
    ):
        raise InputError(f"batch {shown(plain)}, expected sizes in 1..{LARGEST_BATCH}")
    sizes = tuple(sorted(set(plain)))
    for one in (contract, decoder):
        if one is not None and one.fixed_batch is not None and sizes != (one.fixed_batch,):
            raise InputError(f"batch {shown(plain)}, but its network takes batches of {one.fixed_batch} only")
    return sizes


def _provenance(plain: Any) -> dict[str, Any]:
    """As it is; but for the records of searches, by NFE, nothing in it is read again."""
    found = dict(_fields("provenance", plain))
    for nfe, record in _fields("provenance: search", found.get("search", {})).items():
        if not (nfe.isascii() and nfe.isdigit() and isinstance(record, dict)):
            raise InputError(f"provenance: search {shown(nfe)}: {shown(record)}, expected a record by its NFE")
    return found


def _fields(what: str, plain: Any) -> dict[str, Any]:
    if not isinstance(plain, dict):
        raise InputError(f"{what} {shown(plain)}, expected an object with named fields")
    return plain


# Writing.
def write_manifest(artifact: Artifact, folder: Path | None = None) -> None:
    """Write engine.json into `folder` (default: the artifact's own) and rename it into place.

    Changes that another process made since `artifact` was read are lost, unless both read and write inside
    `locked_for_build`.

    Raises EngineFileError when the disk is full or the directory cannot be written, InputError when it would be larger
    than what is read; the former manifest then stands.
    """
    folder = folder or artifact.path
    content: dict[str, Any] = {
        "format": FORMAT,
        "provenance": dict(artifact.provenance),
        "contract": artifact.contract.to_dict(),
        "batch": list(artifact.batch),
        "precision": artifact.precision,
        "programs": {str(nfe): artifact.programs[nfe].to_dict() for nfe in sorted(artifact.programs)},
        "files": {name: {"sha256": one.sha256, "bytes": one.bytes} for name, one in sorted(artifact.files.items())},
    }
    if artifact.decoder is not None:
        content["decoder"] = artifact.decoder.to_dict()
    if artifact.text_encoders is not None:
        content["text_encoders"] = artifact.text_encoders.to_dict()
    if artifact.image_encoder is not None:
        content["image_encoder"] = artifact.image_encoder.to_dict()
    if artifact.policy is not None:
        content["policy"] = artifact.policy.to_dict()
    if (alphas := held_alphas(artifact.contract.schedule)) is not None:
        content["alphas"] = alphas
    content["digest"] = _digest(content)
    text = json.dumps(content, indent=1, allow_nan=False)
    _check_size(len(text), artifact.programs)  # ASCII
    with writing(artifact.path), replacing(folder / MANIFEST) as part, open(part, "w", encoding="utf-8") as file:
        file.write(text)


def check_room(programs: Mapping[int, Program]) -> None:
    """Raises InputError for samplers that no manifest has room for: before the network is exported."""
    _check_size(sum(len(json.dumps(one.to_dict(), indent=1)) for one in programs.values()), programs)


def _check_size(size: int, programs: Mapping[int, Program]) -> None:
    if size > LARGEST_MANIFEST_BYTES:
        got, most = (f"{-(-100 * one >> 20) / 100:.4g} MiB" for one in (size, LARGEST_MANIFEST_BYTES))
        counts = ", ".join(map(str, sorted(programs)))
        raise InputError(
            f"NFE {counts}: {MANIFEST} would be {got}, expected at most {most}, and its size grows with the square of "
            "the evaluations; take fewer, or an engine for each"
        )


def records_of(folder: Path) -> dict[str, FileRecord]:
    """Name, SHA-256 and size of every file in `folder`, but for the manifest and the plans."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    kept = {name: path for name, path in names.items() if name != MANIFEST and not name.startswith(f"{PLANS}/")}
    return {name: FileRecord(sha256_of(path), path.stat().st_size) for name, path in kept.items()}


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def network_digest(artifact: Artifact, file: str = NETWORK) -> str:
    """SHA-256 over a network's files, external data included, as the manifest has them."""
    others = (DECODER, f"{ENCODERS}/")  # the network's are all but these
    own = (
        (name, one.sha256)
        for name, one in artifact.files.items()
        if (not name.startswith(others) if file == NETWORK else name.startswith(file))
    )
    return hashlib.sha256(json.dumps(sorted(own)).encode()).hexdigest()


def _digest(content: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in content.items() if key != "digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
