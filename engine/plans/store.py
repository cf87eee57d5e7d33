"""TensorRT plans kept in an engine directory, each with its key and a seal; in the cache folder if it is read-only.

A plan is executable code, so it is kept like a compiler's cache and never like data. Why one is not loaded: refusal.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from ..artifact import PLANS, Artifact
from ..atomic import replacing, writing
from ..cache import cache_folder, make_private
from ..errors import EngineFileError, InputError
from ..progress import BuildProgress, Lines
from .build import build_plan
from .key import PlanKey
from .refusal import read_sealed, stored_key
from .seal import seal_of


def plan_path(artifact: Artifact, key: PlanKey) -> Path:
    return artifact.path / PLANS / f"{key.name}.plan"


def cached_path(key: PlanKey) -> Path:
    """Where the plan of a read-only engine is kept. The name has a digest of the key, and so of the network."""
    return cache_folder() / PLANS / f"{key.name}.plan"


def store_plan(artifact: Artifact, key: PlanKey, plan: bytes) -> Path:
    """Write plan and seal into `plans/` of the engine, each by a rename; where they are.

    Raises EngineFileError when the engine is read-only or the disk is full.
    """
    return _store(plan_path(artifact, key), key, plan)


def _store(path: Path, key: PlanKey, plan: bytes) -> Path:
    with writing(path):
        path.parent.mkdir(exist_ok=True)
        record = {"key": asdict(key), "sha256": hashlib.sha256(plan).hexdigest(), "seal": seal_of(key, plan)}
        for place, content in ((path, plan), (path.with_suffix(".json"), f"{json.dumps(record, indent=1)}\n".encode())):
            with replacing(place) as part:
                part.write_bytes(content)
    return path


def read_plan(artifact: Artifact, key: PlanKey, *, trust: bool = False) -> bytes:
    """The stored plan of `key`, if it is whole and this user built it.

    Raises EngineFileError with one sentence: none stored, built for something else (what differs), damaged, or built by
    somebody else and `trust` is not given.
    """
    return read_sealed(plan_path(artifact, key), key, trust=trust)


def obtain_plan(
    artifact: Artifact,
    key: PlanKey,
    *,
    trust: bool = False,
    say: Lines = lambda line: None,
    progress: BuildProgress | None = None,
) -> bytes:
    """The stored plan if it fits, else a new plan, built and stored now; `say` gets one line why.

    The plan of an engine that cannot be written to is kept in the user's cache folder. Raises BackendError.
    """
    try:
        return read_plan(artifact, key, trust=trust)
    except EngineFileError as error:
        with contextlib.suppress(EngineFileError):
            return read_sealed(cached_path(key), key, trust=trust)
        say(str(error))
    plan = build_plan(artifact, key, progress)
    try:
        store_plan(artifact, key, plan)
    except EngineFileError as error:
        say(f"{error}; {_store_in_cache(key, plan)}")
    return plan


def _store_in_cache(key: PlanKey, plan: bytes) -> str:
    """Keeps a plan that its engine cannot keep; what became of it, in one clause."""
    path = cached_path(key)
    try:
        make_private(path.parent.parent)
        _store(path, key, plan)
    except (OSError, EngineFileError, InputError):
        return "the plan is not kept and is built again by the next load"
    return f"the plan is kept in '{path.parent}'"


def stored_plans(artifact: Artifact) -> Mapping[Path, PlanKey | None]:
    """Every plan in `plans/` with its key; the key is None where the record is unreadable."""
    return {path: stored_key(path) for path in sorted((artifact.path / PLANS).glob("*.plan"))}
