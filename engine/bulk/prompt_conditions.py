"""Prompts as conditions of an engine whose network is not loaded: for what draws many samples of a few prompts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..artifact import IMAGE_ENCODER, Artifact, read_artifact
from ..backends.abstract import CudaOptions, NetworkFiles
from ..backends.choose import Beside
from ..backends.registry import check_backend
from ..contract.controls import control_condition
from ..device import parse_device, why_not_cuda
from ..runtime.later import LaterNetwork
from ..runtime.pictures.control import ControlPicture
from ..runtime.prompts import Prompt, Prompts


def prompt_conditions(
    engine: str | os.PathLike[str] | Artifact,
    prompt: Prompt | None,
    negative_prompt: Prompt | None = None,
    given: Mapping[str, Any] | None = None,
    *,
    device: str = "auto",
    backend: str = "auto",
    threads: int | None = None,
) -> dict[str, Any]:
    """`given`, by the conditions' own names, with float32 [*shape] of one prompt or [m, *shape] of a list of m.

    A list of negative prompts has as many. The picture of a ControlNet becomes the latents that its network takes. The
    text encoders are loaded and freed again; the network is not read.
    Raises InputError, EngineFileError, BackendError.
    """
    check_backend(backend)
    artifact = engine if isinstance(engine, Artifact) else read_artifact(engine)
    lists = [one for one in (prompt, negative_prompt) if isinstance(one, Sequence) and not isinstance(one, str)]
    files = NetworkFiles(artifact.network_path, artifact.contract, None, artifact, CudaOptions(), None)
    where = parse_device(device) or torch.device("cpu" if why_not_cuda() else "cuda")
    beside = Beside(files, where, "auto" if backend == "torch" else backend, threads)
    prompts = Prompts(artifact, beside)
    images = LaterNetwork(artifact, beside, "the image encoder", IMAGE_ENCODER, artifact.image_encoder)
    try:
        words = prompts.conditions(prompt, negative_prompt, given or {}, max(map(len, lists), default=1))
        return ControlPicture(artifact, images).conditions(words) if control_condition(artifact.contract) else words
    finally:
        prompts.close()
        images.close()
