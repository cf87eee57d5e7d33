"""An engine directory, opened: its network and its decoder with who runs them, its programs as the tables of loops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch

from ..artifact import Artifact, check_in_place
from ..backends.abstract import Backend, CudaOptions, NetworkFiles
from ..backends.choose import Beside, open_best
from ..errors import BackendError, EngineFileError
from .decoder import LoadedDecoder, load_decoder
from .loop import Tables, make_tables

if TYPE_CHECKING:
    from ..backends.abstract import Module
    from ..progress import BuildProgress


@final
@dataclass(frozen=True, eq=False)
class Wanted:
    """What `Engine.open` was asked for. device: None for a GPU if one works, else the CPU."""

    device: torch.device | None
    backend: str
    threads: int | None
    module: Module | None
    decoder_module: Module | None
    options: CudaOptions
    progress: BuildProgress | None


@final
@dataclass(frozen=True, eq=False)
class Opened:
    """reason: why this backend, in one line. tables: of each program, by NFE."""

    artifact: Artifact
    wanted: Wanted
    files: NetworkFiles
    backend: Backend
    reason: str
    decoder: LoadedDecoder | None
    tables: Mapping[int, Tables]

    @property
    def beside(self) -> Beside:
        """Opens the engine's further networks where its own is open."""
        return Beside.of(self.files, self.backend, self.wanted.backend, self.wanted.threads)


def open_networks(artifact: Artifact, wanted: Wanted) -> Opened:
    """What was read, opened. Raises EngineFileError when another engine has taken its place, BackendError."""
    files = NetworkFiles(
        artifact.network_path, artifact.contract, wanted.module, artifact, wanted.options, wanted.progress
    )
    tables = {nfe: make_tables(artifact.programs[nfe], artifact.contract) for nfe in sorted(artifact.programs)}
    backend, reason = open_best(files, wanted.device, wanted.backend, wanted.threads)
    decoder = None
    try:
        decoder = load_decoder(files, backend, wanted.backend, wanted.threads, wanted.decoder_module)
        if artifact.files:  # of a module there may be none
            check_in_place(artifact)
    except (EngineFileError, BackendError):
        for one in (backend, *([decoder.backend] if decoder else [])):
            one.close()
        raise
    return Opened(artifact, wanted, files, backend, reason, decoder, tables)
