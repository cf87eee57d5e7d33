"""The seal of a plan: HMAC-SHA256 of key and plan under a secret that this user's first build makes.

A plan is executable code. A plan without this user's seal is built again, unless the caller asks for it by name
(`trust=True`).
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
from dataclasses import asdict
from pathlib import Path

from ..atomic import writing_beside
from .key import PlanKey

SECRET_BYTES = 32
_PROCESS_SECRET = secrets.token_bytes(SECRET_BYTES)


def seal_of(key: PlanKey, plan: bytes) -> str:
    """64 hexadecimal digits."""
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
