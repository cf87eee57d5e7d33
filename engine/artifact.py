"""The engine directory: read, verified, and written so that it is at any moment either the former engine or the new.

    faces.engine/
        engine.json       {format, provenance, contract, batch, precision, programs, files, digest}; if there
                          are any: decoder, text_encoders, image_encoder;
                          alphas: the numbers of a schedule `alphas:FILE`, which the contract names by their SHA-256
        network.onnx      and its external data files, if any
        decoder.onnx      of a latent model, likewise
        encoders/         text encoders with their tokenizers, and image.onnx, a latent model's way from pictures
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
from .contract import AnyContract, Contract, DecoderContract
from .errors import EngineFileError, InputError
from .text_encoders import TextEncoders

FORMAT = 1
MANIFEST = "engine.json"
PART = part_prefix(MANIFEST)  # begins the name of a manifest that is being written
NETWORK = "network.onnx"
DECODER = "decoder.onnx"
ENCODERS = "encoders"
IMAGE_ENCODER = f"{ENCODERS}/image.onnx"
PLANS = "plans"
KEYS = ("format", "provenance", "contract", "batch", "precision", "programs", "files", "digest")
LARGEST_MANIFEST_BYTES = 64 << 20


@final
@dataclass(frozen=True)
class FileRecord:
    """The expected content of a file in the directory: `sha256` in 64 hexadecimal digits, and its size in `bytes`."""

    sha256: str
    bytes: int


@final
@dataclass(frozen=True, eq=False)
class Artifact:
    """The content of an engine directory. `batch`: ascending bucket sizes; `programs`: by NFE; `files`: by name.

    `decoder`: input and output of decoder.onnx; None where samples are not decoded. `text_encoders`: what turns prompts
    into conditions. `image_encoder`: input and output of encoders/image.onnx, which takes images and makes latents.
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
            raise InputError(f"nfe={nfe!r}, this engine has {known}; choose one of them, or build {nfe!r} too")
        return self.programs[operator.index(nfe)]

    @property
    def contracts(self) -> Mapping[str, AnyContract]:
        """The contract of each network by its file."""
        return {
            NETWORK: self.contract,
            **({DECODER: self.decoder} if self.decoder else {}),
            **({one.file: one.contract for one in self.text_encoders.encoders} if self.text_encoders else {}),
            **({IMAGE_ENCODER: self.image_encoder} if self.image_encoder else {}),
        }


# Reading.
def read_artifact(path: str | os.PathLike[str], *, verify: bool = True) -> Artifact:
    """The engine in the directory `path`; with `verify` the SHA-256 of every file is compared.

    Raises EngineFileError: no engine there, another format, a damaged manifest, a file that is missing, changed or
    outside the directory.
    """
    folder = Path(path)
    content = _read_manifest(folder)
    try:
        contract = Contract.from_dict(content["contract"])
        if "alphas" in content and hold_alphas(content["alphas"]) != contract.schedule:
            raise InputError(f"'alphas' are not the numbers of its schedule {contract.schedule}")
        programs = {_nfe(key): Program.from_json(json.dumps(value)) for key, value in content["programs"].items()}
        batch = tuple(content["batch"])
        files = {name: FileRecord(**record) for name, record in content["files"].items()}
        precision, provenance = content["precision"], dict(content["provenance"])
        decoder, images = (
            DecoderContract.from_dict(content[key]) if key in content else None for key in ("decoder", "image_encoder")
        )
        texts = TextEncoders.from_dict(content["text_encoders"], contract) if "text_encoders" in content else None
    except (InputError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(folder, str(error)) from None
    for nfe, program in programs.items():
        if program.nfe != nfe or program.prediction != contract.prediction:
            raise _damaged(folder, f"program '{nfe}' has {program.nfe} evaluations of {program.prediction}")
    if not (programs and batch) or any(type(size) is not int or size < 1 for size in batch):
        raise _damaged(folder, f"batch {list(batch)} and {len(programs)} programs, expected at least one of each")
    if precision != contract.precision:
        raise _damaged(folder, f"precision {precision!r}, the contract says {contract.precision!r}")
    if decoder is not None and decoder.shape != contract.shape:
        raise _damaged(folder, f"its decoder takes {list(decoder.shape)}, the network makes {list(contract.shape)}")
    if images is not None and images.image != contract.shape:
        raise _damaged(folder, f"its image encoder makes {list(images.image)}, samples are {list(contract.shape)}")
    sizes = tuple(sorted(set(batch)))
    artifact = Artifact(folder, contract, sizes, precision, programs, provenance, files, decoder, texts, images)
    for name in (*artifact.contracts, *(one.tokenizer for one in (texts.encoders if texts else ()))):
        if name not in files:
            raise _damaged(folder, f"'{name}' is not among its files")
    for name, record in files.items():
        _check_file(folder, name, record, verify)
    return artifact


def _read_manifest(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        what = "is not a directory" if folder.exists() else "does not exist"
        raise EngineFileError(f"engine '{folder}' {what}; give a directory that 'pfdiff build' wrote")
    try:
        with open(folder / MANIFEST, "rb") as file:
            text = file.read(LARGEST_MANIFEST_BYTES)
    except FileNotFoundError:
        message = f"'{folder}' has no {MANIFEST}, so it is no engine; give a directory that 'pfdiff build' wrote"
        raise EngineFileError(message) from None
    except OSError as error:
        raise EngineFileError(f"'{folder / MANIFEST}' cannot be read: {error.strerror}") from None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(folder, f"not JSON ({error})") from None
    if not isinstance(content, dict):
        raise _damaged(folder, f"a JSON {type(content).__name__}, expected an object")
    if content.get("format") != FORMAT:
        raise EngineFileError(
            f"engine '{folder}' has format {content.get('format')!r}, this pfdiff reads {FORMAT}; "
            "rebuild it, or use the pfdiff that wrote it"
        )
    missing = [key for key in KEYS if key not in content]
    if missing:
        raise _damaged(folder, f"'{missing[0]}' is missing")
    if content["digest"] != _digest(content):
        raise _damaged(
            folder, f"its content has SHA-256 {_digest(content)[:12]}, 'digest' says {content['digest']!s:.12}"
        )
    return content


def _nfe(key: str) -> int:
    if not (key.isascii() and key.isdigit()):
        raise InputError(f"the program '{key}' is not named by its NFE")
    return int(key)


def _check_file(folder: Path, name: str, record: FileRecord, verify: bool) -> None:
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or any(letter in name for letter in "\\:\0"):
        raise EngineFileError(f"engine '{folder}' names the file {name!r} outside its directory; do not trust it")
    path = folder / name
    if any((folder / Path(*parts[: end + 1])).is_symlink() for end in range(len(parts))):
        raise EngineFileError(f"'{path}' is a symbolic link; an engine holds plain files, copy the file itself")
    if not path.is_file():
        raise EngineFileError(f"engine '{folder}': the file '{name}' is missing; rebuild the engine or copy it again")
    size = path.stat().st_size
    if size != record.bytes:
        raise _changed(folder, name, f"{size} bytes", f"{record.bytes}")
    if verify and (found := sha256_of(path)) != record.sha256:
        raise _changed(folder, name, f"SHA-256 {found[:12]}", f"{record.sha256:.12}")


def _changed(folder: Path, name: str, got: str, expected: str) -> EngineFileError:
    return EngineFileError(
        f"engine '{folder}': the file '{name}' has {got}, expected {expected}: "
        "it was changed or not copied whole; rebuild the engine or copy it again"
    )


def _damaged(folder: Path, why: str) -> EngineFileError:
    return EngineFileError(f"'{folder / MANIFEST}' is damaged: {why}; rebuild the engine or copy it again")


# Writing.
def write_manifest(artifact: Artifact, folder: Path | None = None) -> None:
    """Write engine.json into `folder` (default: the artifact's own) and rename it into place.

    Changes that another process made since `artifact` was read are lost, unless both read and write inside
    `locked_for_build`.

    Raises EngineFileError when the disk is full or the directory cannot be written; the former manifest then stands.
    """
    folder = folder or artifact.path
    content: dict[str, Any] = {
        "format": FORMAT,
        "provenance": dict(artifact.provenance),
        "contract": artifact.contract.to_dict(),
        "batch": list(artifact.batch),
        "precision": artifact.precision,
        "programs": {str(nfe): json.loads(artifact.programs[nfe].to_json()) for nfe in sorted(artifact.programs)},
        "files": {name: {"sha256": one.sha256, "bytes": one.bytes} for name, one in sorted(artifact.files.items())},
    }
    if artifact.decoder is not None:
        content["decoder"] = artifact.decoder.to_dict()
    if artifact.text_encoders is not None:
        content["text_encoders"] = artifact.text_encoders.to_dict()
    if artifact.image_encoder is not None:
        content["image_encoder"] = artifact.image_encoder.to_dict()
    if (alphas := held_alphas(artifact.contract.schedule)) is not None:
        content["alphas"] = alphas
    content["digest"] = _digest(content)
    with writing(artifact.path), replacing(folder / MANIFEST) as part, open(part, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, allow_nan=False)


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
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
