"""Why a stored plan is not loaded: none there, built for something else, changed, or not built by this user.

Each reason is one sentence, and each ends in a new build. The seal is in seal.py.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import EngineFileError, InputError, first_line
from ..files.open_folder import OpenFolder, read_at_most
from ..json_fields import is_integer, parse_json, read_fields
from .key import PlanKey
from .seal import seal_of

LARGEST_RECORD_BYTES = 1 << 20
LARGEST_PLAN_BYTES = 1 << 37  # weights included


def read_sealed(path: Path, key: PlanKey, *, trust: bool) -> bytes:
    """The plan at `path`, if it is whole, fits `key` and this user built it, or `trust`. Raises EngineFileError."""
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
    if not hmac.compare_digest(seal, seal_of(key, plan)) and not trust:
        raise EngineFileError(
            f"plan '{path.name}' was not built by this user and a plan is executable code; it is built again "
            "(or load it by name with trust, if you know who built it)"
        )
    return plan


def _nearest(path: Path, key: PlanKey) -> str:
    """The first difference to a stored plan of the same flavour, for a message; empty without such a plan."""
    wanted = json.loads(json.dumps(asdict(key)))
    for other in sorted(path.parent.glob(f"{key.flavour}-*.plan")):
        held = stored_key(other)
        if held is not None and held.file == key.file:
            return f"; the one there was built for {_difference(json.loads(json.dumps(asdict(held))), wanted)}"
    return ""


def stored_key(path: Path) -> PlanKey | None:
    """What the plan at `path` was built for; None where its record is unreadable."""
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
