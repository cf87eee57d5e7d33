"""`load` an engine directory, sample from it: the Python face of a built engine.

with pfdiff.load("faces.engine") as engine:
    x = engine.sample(seeds=range(8), nfe=8, label=3)     # float32 [8, *shape]
    pixels = engine.images(seeds=range(8), nfe=8)         # uint8 [8, H, W, C]
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch

from .artifact import Artifact, is_in_place, read_artifact
from .backends.abstract import CudaOptions
from .backends.registry import check_backend, open_backend
from .compiler.program import Program
from .contract.condition import INPAINTING
from .contract.contract import Contract, DecoderContract
from .contract.controls import CONTROL_IMAGE
from .contract.pictures import inpaints
from .contract.policy import PolicyContract
from .contract.text_encoders import TextEncoders
from .device import parse_device
from .errors import BackendError, EngineFileError, InputError
from .json_fields import is_integer
from .philox import Seeds, parse_seeds
from .runtime.asked import NOTHING, Asked
from .runtime.draws import check_draws
from .runtime.engine_table import engine_table
from .runtime.inputs import Conditions, Inputs, check_noise
from .runtime.loop import make_tables
from .runtime.noise import noise
from .runtime.opened import Opened, Wanted, open_networks
from .runtime.pictures.control import ControlPicture, Shown
from .runtime.pictures.picture_start import PictureStart
from .runtime.plain import check_plain
from .runtime.policy import PolicyRuntime
from .runtime.prompts import Prompt, Prompts
from .runtime.session import Session
from .runtime.timing.deadline import Deadlines
from .runtime.timing.latency import Latency, Ran, TimedParts, measured

if TYPE_CHECKING:
    from .backends.abstract import Module
    from .progress import BuildProgress

MOST_RELOADS = 10  # of an engine that is replaced while it is loaded


@final
class Engine:
    """A loaded engine: one network, one program for each NFE. Not for two threads at once: load one for each.

    contract, programs, batch, precision, provenance, path   what the directory holds
    decoder                                                  contract of a latent model's decoder, else None
    text_encoders                                            what turns prompts into conditions, else None
    policy                                                   what turns observations into actions, else None
    backend, backend_reason, device, threads, description    who runs it, and why
    """

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str] | Artifact,
        device: str = "auto",
        backend: str = "auto",
        *,
        threads: int | None = None,
        module: Module | None = None,
        decoder_module: Module | None = None,
        options: CudaOptions | None = None,
        progress: BuildProgress | None = None,
    ) -> Engine:
        """The engine in the directory `path`, verified and ready; close it, or use it in a `with` block.

        device: auto (a GPU that some backend can use, else the CPU), cpu, cuda or cuda:N. backend: auto (the best that
        works; on a CPU the fastest, timed when this machine first loads the engine, in a second or two, and
        remembered), tensorrt, tensorrt_rtx, torch, onnxruntime or openvino. threads: CPU threads, None for the
        backend's own choice. module: for backend torch, the network as module(x, t, *conditions), conditions in the
        contract's order; decoder_module: the decoder as module(latents) -> images, without which another backend
        decodes. options: of CUDA backends. progress: called while a TensorRT plan is built, which the first load on a
        GPU does.
        An engine that another process replaces meanwhile is read again; an Artifact is not.
        Raises InputError, EngineFileError (missing, damaged, of another format), BackendError (not installed, refuses).
        """
        check_backend(backend)
        given = (backend, threads, module, decoder_module, options or CudaOptions(), progress)
        wanted = Wanted(parse_device(device), *given)
        if isinstance(path, Artifact):
            return cls(open_networks(path, wanted))
        for _ in range(MOST_RELOADS):
            artifact = read_artifact(path)
            try:
                return cls(open_networks(artifact, wanted))
            except (EngineFileError, BackendError):  # of a file that is gone, or of another engine than was read
                if is_in_place(artifact):
                    raise
        raise EngineFileError(f"engine '{os.fspath(path)}' is replaced again and again; wait for the builds")

    def __init__(self, opened: Opened) -> None:
        """What `open` has opened."""
        artifact, backend, beside = opened.artifact, opened.backend, opened.beside
        self.path: Path = artifact.path
        self.contract: Contract = artifact.contract
        self.programs: dict[int, Program] = {nfe: artifact.programs[nfe] for nfe in opened.tables}
        self.batch: tuple[int, ...] = artifact.batch
        self.precision: str = artifact.precision
        self.provenance: Mapping[str, Any] = artifact.provenance
        self.decoder: DecoderContract | None = artifact.decoder
        self.text_encoders: TextEncoders | None = artifact.text_encoders
        self.policy: PolicyContract | None = artifact.policy
        self.threads: int | None = opened.wanted.threads
        self.backend: str = backend.name
        self.backend_reason: str = opened.reason
        self.device: str = str(backend.device)
        self.description: str = backend.description
        self._artifact = artifact
        self._files = opened.files
        self._tables = opened.tables
        self._decoder = opened.decoder
        self._conditions = Conditions(artifact.contract, backend.device)
        graph = opened.files.options.graph
        self._session = Session(backend, artifact.contract, artifact.batch, opened.decoder, graph=graph)
        self._prompts = Prompts(artifact, beside)
        self._pictures = PictureStart(artifact, beside)
        self._control = ControlPicture(artifact, self._pictures.encoded)
        self._policy = PolicyRuntime(artifact, beside)
        self._deadlines = Deadlines(self.tick_call)

    @property
    def decoding(self) -> str:
        """Who decodes, like `description`; empty without a decoder."""
        return self._decoder.backend.description if self._decoder else ""

    @property
    def encoding(self) -> str:
        """Who encodes prompts, like `description`; empty before the first prompt."""
        return self._prompts.description

    @property
    def takes_image(self) -> bool:
        """Whether sampling may start from pixels; a latent model needs its image encoder for that."""
        return self.decoder is None or self._artifact.image_encoder is not None

    @property
    def control_picture(self) -> Shown | None:
        """What it takes as the picture of its ControlNet; None without one."""
        return self._control.shown

    @property
    def takes_prompt(self) -> bool:
        """Whether the engine holds text encoders, so that `images` and `sample` take `prompt`."""
        return self._artifact.text_encoders is not None

    @property
    def execution(self) -> str:
        """How a schedule is run, in a few words: captured in one CUDA graph, or why not. Known after the first call."""
        return self._session.execution

    def sample(
        self,
        *,
        seeds: Seeds | None = None,
        noise: Any = None,
        steps_noise: Any = None,
        nfe: int | None = None,
        deadline_ms: float | Any = None,
        prompt: Prompt | Any = None,
        negative_prompt: Prompt | Any = None,
        image: Any = None,
        strength: float | Any = None,
        strength_counts: str | Any = "part",
        mask: Any = None,
        **conditions: Any,
    ) -> torch.Tensor:
        """Samples float32 [n, *shape] on the device, one for each seed or each row of `noise`; latents stay latents.

        seeds: integers in [0, 2^64); a seed's sample is the same alone and in any batch. noise: [n, *shape] floating,
        in their place. nfe: may be left out when the engine has one program, and with deadline_ms, see `nfe_within`.
        conditions: by the contract's names or their aliases, one value for all samples or [n, ..]. Any n: larger ones
        are cut into batches, 0 gives none. Of a policy: observation=, an array or a dictionary of arrays, gives actions
        in their own units, and `image` is a chunk of actions.
        prompt, negative_prompt: a text for all samples or a list of n, of engines with text encoders; they take the
        place of the conditions that they are encoded as. image: a picture to start from, in place of noise alone:
        uint8 [n, H, W, C], floats [n, C, H, W] in the data's range, or latents [n, *shape], or one without n for all.
        strength: above 0 and at most 1 (default 0.8), how much of the way from noise to samples is walked. nfe
        evaluations walk this part; with strength_counts "whole" they would walk the whole way, and nfe strength of
        them are done, rounded as in diffusers: up on flows, else down. mask: [H, W] or [n, H, W] of the picture, 1
        (or white, uint8) where it is drawn anew, 0 where it is kept; strength is then 1 if nothing is said. Words that
        are conditions of the network mean these.
        On a CUDA device the call returns before the device is done, ordered on the current stream. Samples, and noise
        and conditions that are tensors on the device, are looked at (finite, in range) in the first call of each kind;
        on a CPU always.
        Raises InputError; BackendError when the network fails, is not finite, or the engine is closed or in use.
        """
        if deadline_ms is not None:
            rows = parse_seeds(seeds) if noise is None else noise
            nfe = self._deadlines.nfe(deadline_ms, len(rows), self.programs, instead=nfe)
        asked = Asked(prompt, negative_prompt, image, strength, strength_counts, mask)
        return self._sample(self._session, seeds, noise, nfe, conditions, asked, steps_noise)

    def nfe_within(self, deadline_ms: float, batch: int = 1) -> int:
        """The largest NFE whose calls take at most `deadline_ms` (p99, timed by the first call). InputError: none."""
        if not (is_integer(batch) and batch >= 1):
            raise InputError(f"batch={batch!r}, expected a number of samples of at least 1")
        return self._deadlines.nfe(deadline_ms, batch, self.programs)

    def images(
        self,
        *,
        seeds: Seeds | None = None,
        noise: Any = None,
        steps_noise: Any = None,
        nfe: int | None = None,
        prompt: Prompt | Any = None,
        negative_prompt: Prompt | Any = None,
        image: Any = None,
        strength: float | Any = None,
        strength_counts: str | Any = "part",
        mask: Any = None,
        **conditions: Any,
    ) -> torch.Tensor:
        """Like `sample`, as pixels uint8 [n, H, W, C]: `contract.data_range` becomes 0..255, the rest is clamped.

        A latent model's samples are decoded first. Raises InputError also when a sample is not [C, H, W].
        """
        if self.decoder is None and len(self.contract.shape) != 3:
            shape = list(self.contract.shape)
            raise InputError(f"samples of shape {shape} are no images [C, H, W]; use sample(), or write .npy or .npz")
        asked = Asked(prompt, negative_prompt, image, strength, strength_counts, mask)
        return self._sample(self._session, seeds, noise, nfe, conditions, asked, steps_noise, pixels=True)

    def encode(
        self, prompt: Prompt, negative_prompt: Prompt | None = None, *, control_image: Any = None
    ) -> dict[str, Any]:
        """The conditions that prompts stand for, by their own names: float32 [*shape], or [m, *shape] of a list of m.

        For `generate`, `tune`, `compare` and `evaluate`, which take `conditions=`. A negative prompt that is not given
        is that of the pipeline. control_image: of an engine with a ControlNet, as `sample` takes it, for what it stands
        for likewise. Raises InputError, BackendError.
        """
        count = 1 if isinstance(prompt, str) else len(prompt)
        found = self._prompts.conditions(prompt, negative_prompt, {}, count)
        if control_image is None:
            return found
        return self._control.conditions(self.contract.by_name({**found, CONTROL_IMAGE: control_image}))

    def bench(
        self, nfe: int | None = None, batch: int | None = None, rounds: int = 50, *, seconds: float | None = None
    ) -> Latency:
        """Time `rounds` whole calls of `batch` seeds in turns with `nfe` bare network evaluations of the same batch.

        nfe, batch: by default the only program and the smallest bucket; `batch` must be a bucket. seconds: fewer rounds
        where all would take longer, or where the median is known to 1 % after 20; `Latency.rounds` says how many. A
        second copy of the network is loaded for the time, so that the first call is a first one. Raises InputError,
        BackendError.
        """
        nfe, batch = self._artifact.program(nfe).nfe, self._artifact.bucket(batch)
        ran = Ran(self.backend, self.device, self.precision, self.threads, nfe, batch)
        return measured(ran, self._open, self._whole, self._parts, rounds, seconds)

    def parts(self, nfe: int | None = None, batch: int | None = None) -> TimedParts:
        """What `bench` times, for a benchmark of one's own: a whole call, its bare evaluations, its updates.

        nfe, batch: as in `bench`. Not for use while another thread samples. Raises InputError, BackendError.
        """
        return self._parts(self._session, self._artifact.program(nfe).nfe, self._artifact.bucket(batch))

    def with_programs(self, programs: Mapping[int, Program]) -> Engine:
        """Another face of this engine, with other programs by NFE on the same loaded network, buffers and lock.

        Closing either closes both. Raises InputError when a program is of another prediction or its times do not fit.
        """
        for program in programs.values():
            if program.prediction != self.contract.prediction:
                raise InputError(f"a program of {program.prediction}, this network predicts {self.contract.prediction}")
        other = object.__new__(Engine)  # a copy would load the network again
        vars(other).update(vars(self))
        other._artifact = replace(self._artifact, programs=programs)
        other.programs = {nfe: programs[nfe] for nfe in sorted(programs)}
        other._tables = {nfe: make_tables(program, self.contract) for nfe, program in other.programs.items()}
        other._deadlines = Deadlines(other.tick_call)
        return other

    def close(self) -> None:
        """Free network and buffers; calls after that raise BackendError. Closing twice is fine."""
        self._session.close()
        self._prompts.close()
        self._pictures.close()
        self._policy.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy is loaded again, from the same directory and by the same backend: for other processes, for deepcopy.

        Raises InputError for an engine that was given a module.
        """
        if self._files.module is not None:
            raise InputError(
                f"engine '{self.path}' runs a module of this process and cannot be copied; load it again with module="
            )
        again = {"backend": self.backend, "threads": self.threads, "options": self._files.options}
        return functools.partial(Engine.open, device=self.device, **again), (self._artifact,)

    def __repr__(self) -> str:
        held = ", ".join(map(str, self.programs))
        return f"Engine({str(self.path)!r}: {self.contract.name}, NFE {held}, {self.description})"

    def _repr_html_(self) -> str:
        """Network, programs and backend, for notebooks."""
        return engine_table(self.contract, self.programs, self.batch, self.description, str(self.path))

    def _open(self) -> Session:
        """A second session like the engine's own, with a network of its own."""
        opened = open_backend(self.backend, self._files, self.threads, torch.device(self.device))
        return Session(opened, self.contract, self.batch, graph=self._files.options.graph)

    def _whole(self, session: Session, nfe: int, batch: int) -> Callable[[], object]:
        given = self._policy.stand_ins(self.contract.stand_ins)
        return lambda: self._sample(session, range(batch), None, nfe, given)

    def tick_call(self, nfe: int | None = None, batch: int = 1) -> Callable[[int], object]:
        """A function of a tick's number: a whole call with seeds from it on, done when it returns. For `run_at`."""
        nfe, given = self._artifact.program(nfe).nfe, self._policy.stand_ins(self.contract.stand_ins)
        session = self._session
        return lambda tick: (self._sample(session, range(tick, tick + batch), None, nfe, given), session.wait())

    def _parts(self, session: Session, nfe: int, batch: int) -> TimedParts:
        return session.timed_parts(self._tables[nfe], batch, self._whole(session, nfe, batch))

    def _sample(
        self,
        session: Session,
        seeds: Any,
        given_noise: Any,
        nfe: int | None,
        conditions: Mapping[str, Any],
        asked: Asked = NOTHING,
        steps_noise: Any = None,
        *,
        pixels: bool = False,
    ) -> torch.Tensor:
        tables = self._tables[self._artifact.program(nfe).nfe]
        pictures = {"image": asked.image, "mask": asked.mask, "strength": asked.strength}
        check_plain({"noise": given_noise, "steps_noise": steps_noise, **pictures, **conditions})
        both = bool(tables.draws) and seeds is not None and given_noise is not None  # the seeds are of the draws alone
        if (seeds is None) == (given_noise is None) and not both:
            got = "both" if given_noise is not None else "neither"
            raise InputError(f"got {got} of seeds and noise, expected one of them, such as seeds=range(8)")
        device = torch.device(self.device)
        drawn_by = keys = None if seeds is None else parse_seeds(seeds)
        start = None if given_noise is None else check_noise(given_noise, self.contract, device)
        count = len(start) if start is not None else len(keys) if keys is not None else 0
        keys = None if start is not None else keys
        asked, conditions = asked.without(self.contract, conditions)
        conditions = self._prompts.conditions(asked.prompt, asked.negative_prompt, conditions, count)
        conditions = self._policy.conditions(self._control.conditions(conditions), count)
        asked = self._policy.asked(asked)
        masked = None
        if inpaints(self.contract) and asked.mask is None and not {*INPAINTING} <= {*conditions}:
            raise InputError("this network inpaints; give image= and mask=, 1 where the picture is drawn anew")
        if asked.image is not None:
            draw = functools.partial(self._start_noise, keys, start)
            begun = self._pictures.start(asked, tables.program, count, draw)
            masked, conditions = begun.masked, {**conditions, **begun.conditions}
            if begun.tables is not None:
                tables, keys, start = begun.tables, None, begun.noise
        draws = check_draws(tables.program, self.contract, drawn_by, steps_noise, count, device)
        inputs = Inputs(keys, start, *self._conditions(conditions, count), draws, masked)
        made = session.run(tables, inputs, pixels=pixels)
        return made if pixels else self._policy.actions(made)

    def _start_noise(self, keys: Any, start: torch.Tensor | None) -> torch.Tensor:
        """float32 [n, elements] of the seeds, or as given."""
        return start if start is not None else noise(keys, (math.prod(self.contract.shape),), self.device)


load = Engine.open
__all__ = ["Engine", "Latency", "load", "noise"]
