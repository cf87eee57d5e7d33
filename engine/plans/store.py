"""TensorRT plans kept in an engine directory, each with its key and a seal; in the cache folder if it is read-only.

A plan is executable code, so it is kept like a compiler's cache and never like data. The seal is HMAC-SHA256 of key and
plan under a secret that this user's first build makes. A plan without it was not built by this user: it is built again,
with a message, unless the caller asks for it by name (`trust=True`).
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..artifact import PLANS, Artifact
from ..atomic import replacing, writing, writing_beside
from ..cache import cache_folder, make_private
from ..errors import EngineFileError, InputError, first_line
from ..json_fields import is_integer, parse_json, read_fields
from ..open_folder import OpenFolder, read_at_most
from ..progress import BuildProgress, Lines
from .build import build_plan
from .key import PlanKey

SECRET_BYTES = 32
LARGEST_RECORD_BYTES = 1 << 20
LARGEST_PLAN_BYTES = 1 << 37  # weights included
_PROCESS_SECRET = secrets.token_bytes(SECRET_BYTES)


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
        record = {"key": asdict(key), "sha256": hashlib.sha256(plan).hexdigest(), "seal": _seal(key, plan)}
        for place, content in ((path, plan), (path.with_suffix(".json"), f"{json.dumps(record, indent=1)}\n".encode())):
            with replacing(place) as part:
                part.write_bytes(content)
    return path


def read_plan(artifact: Artifact, key: PlanKey, *, trust: bool = False) -> bytes:
    """The stored plan of `key`, if it is whole and this user built it.

    Raises EngineFileError with one sentence: none stored, built for something else (what differs), damaged, or built by
    somebody else and `trust` is not given.
    """
    return _read(plan_path(artifact, key), key, trust=trust)


def _read(path: Path, key: PlanKey, *, trust: bool) -> bytes:
    try:
        plan = _content(path, LARGEST_PLAN_BYTES)
        stored, digest, seal = _record(path)
    except FileNotFoundError:
        raise EngineFileError(
            f"no plan for {key.capability} is stored in '{path.parent}'{_nearest(path, key)}"
        ) from None
    except (OSError, InputError) as error:
        reason = first_line(error)[:120]
        raise EngineFileError(f"plan '{path.name}' has no readable record ({reason}); it is built again") from None
    wanted = json.loads(json.dumps(asdict(key)))
    if stored != wanted:
        raise EngineFileError(f"plan '{path.name}' was built for {_difference(stored, wanted)}; it is built again")
    if hashlib.sha256(plan).hexdigest() != digest:
        raise EngineFileError(f"plan '{path.name}' was changed after it was built; it is not loaded and built again")
    if not hmac.compare_digest(seal, _seal(key, plan)) and not trust:
        raise EngineFileError(
            f"plan '{path.name}' was not built by this user and a plan is executable code; it is built again "
            "(or load it by name with trust, if you know who built it)"
        )
    return plan


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
            return _read(cached_path(key), key, trust=trust)
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
    return {path: _stored_key(path) for path in sorted((artifact.path / PLANS).glob("*.plan"))}


def _nearest(path: Path, key: PlanKey) -> str:
    """The first difference to a stored plan of the same flavour, for a message; empty without such a plan."""
    wanted = json.loads(json.dumps(asdict(key)))
    for other in sorted(path.parent.glob(f"{key.flavour}-*.plan")):
        held = _stored_key(other)
        if held is not None and held.file == key.file:
            return f"; the one there was built for {_difference(json.loads(json.dumps(asdict(held))), wanted)}"
    return ""


def _stored_key(path: Path) -> PlanKey | None:
    try:
        fields = read_fields("plan", PlanKey, _record(path)[0])
        texts = ("flavour", "version", "capability", "gpu", "network", "precision", "file")
        fits = all(isinstance(fields.get(name, ""), str) for name in texts) and isinstance(
            fields.get("tf32", False), bool
        )
        batch = fields["batch"]
        return PlanKey(**fields) if fits and isinstance(batch, tuple) and all(map(is_integer, batch)) else None
    except (OSError, InputError):
        return None


def _record(path: Path) -> tuple[dict[str, Any], str, str]:
    """(key, SHA-256, seal) beside the plan at `path`. Raises OSError, InputError."""
    record = parse_json(_content(path.with_suffix(".json"), LARGEST_RECORD_BYTES))
    match record:
        case {"key": dict(key), "sha256": str(digest), "seal": str(seal)} if digest.isascii() and seal.isascii():
            return key, digest, seal
    raise InputError("expected a key, a sha256 and a seal")


def _content(path: Path, most: int) -> bytes:
    """A regular file, no link, of at most `most` bytes. Raises OSError, InputError."""
    with OpenFolder(path.parent) as folder, folder.open(path.name) as file:
        content = read_at_most(file, most)
    if content is None:
        raise InputError(f"more than {most} bytes")
    return content


def _difference(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The first field that differs: `version 1.6.0, this is 1.7.1`."""
    for name, value in wanted.items():
        if stored.get(name) != value:
            short = [str(v)[: 12 if name == "network" else 60] for v in (stored.get(name), value)]
            return f"{name} {short[0]}, this is {short[1]}"
    return "the same"


def _seal(key: PlanKey, plan: bytes) -> str:
    message = json.dumps(asdict(key), sort_keys=True).encode() + hashlib.sha256(plan).digest()
    return hmac.new(_secret(), message, hashlib.sha256).hexdigest()


def _secret() -> bytes:
    """32 random bytes of this user's first build, readable by nobody else. If they are lost, plans are built again."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    path = Path(state) / "pfdiff" / "plan-secret"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.stat().st_size != SECRET_BYTES:  # a former pfdiff could leave an empty one
            path.unlink(missing_ok=True)
            with writing_beside(path) as part:
                part.chmod(0o600)
                part.write_bytes(_PROCESS_SECRET)
                with contextlib.suppress(FileExistsError):  # another process was first
                    os.link(part, path)  # whole or not at all
        found = path.read_bytes()
    except OSError:
        return _PROCESS_SECRET  # no place to keep a secret: this process trusts its own plans only
    return found if len(found) == SECRET_BYTES else _PROCESS_SECRET
