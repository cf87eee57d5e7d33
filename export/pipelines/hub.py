"""A pipeline on the Hugging Face hub, `owner/name` or `owner/name@revision`, fetched by huggingface_hub.

Only what an engine is made of is fetched: configs, tokenizers and safetensors of the parts that are used, in plain
precision where there is one. Pickled weights and code never are. Cache, tokens, endpoint and progress bars are the
library's own (HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, final

from ...engine.errors import BackendError, InputError, first_line

ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")
PARTS = ("unet", "transformer", "vae", "scheduler", "controlnet")
TEXTS = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
CONFIGS = (".json", ".txt", ".model")
WEIGHTS = re.compile(r"(diffusion_pytorch_model|model)(\.[a-z0-9_]+)?(-\d+-of-\d+)?\.safetensors(\.index.*\.json)?")


@final
@dataclass(frozen=True)
class Fetched:
    """A folder of the library's cache, and what an engine's provenance says of it."""

    folder: Path
    name: str
    origin: dict[str, Any]


def is_hub_id(text: str) -> bool:
    """Whether a text may name a repository of the hub: nothing of this machine is called so."""
    return bool(ID.fullmatch(text)) and not text.endswith((".onnx", ".py")) and not Path(text).exists()


def fetch(text: str, *, encoders: bool = True) -> Fetched:
    """What `text` names, downloaded or from the cache. Raises InputError, BackendError, one line."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise BackendError(
            f"'{text}' is no folder here; to fetch it from the hub, pip install 'pfdiff[diffusers]' ({error})"
        ) from None
    found = ID.fullmatch(text)
    assert found is not None
    repository, revision = found[1], found[2]
    try:
        info = huggingface_hub.HfApi().model_info(repository, revision=revision)
        names = wanted([one.rfilename for one in info.siblings or ()], encoders=encoders)
        # By its own name, so that the cache knows it by this name when the hub does not answer.
        folder = huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=names)
        commit = Path(folder).name
    except InputError as error:
        raise InputError(f"'{text}' on the hub: {error}") from None
    except Exception as error:  # of the library and of its HTTP client, without a common base
        folder, commit = _cached(text, repository, revision, error)
    return Fetched(Path(folder), repository.rpartition("/")[2], {"hub": {"repository": repository, "commit": commit}})


def _cached(text: str, repository: str, revision: str | None, error: Exception) -> tuple[str, str]:
    """The folder and commit that the cache has, when the hub does not answer."""
    import huggingface_hub

    answered = getattr(getattr(error, "response", None), "status_code", None)
    if answered is None:
        for name in ("model_index.json", "config.json"):
            found = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision)
            if isinstance(found, str):
                folder = Path(found).parent
                return str(folder), folder.name
    why = f"it answers {answered}" if answered else f"it cannot be reached ({first_line(error)})"
    remedy = {401: "give a token (HF_TOKEN)", 403: "ask for access on its page", 404: "check its name"}
    raise InputError(
        f"'{text}' is no folder here, and from the hub {why}; "
        + (remedy.get(answered or 0) or "give a folder, or try again with a network")
    ) from error


def wanted(names: Sequence[str], *, encoders: bool = True) -> list[str]:
    """Of a repository's files those that are fetched. Raises InputError where weights are pickled only, or missing."""
    whole = "model_index.json" in names
    folders = ["", *PARTS, *(TEXTS if encoders else ())] if whole else [""]
    chosen: list[str] = []
    for folder in folders:
        inside = [name for name in names if str(PurePosixPath(name).parent) == (folder or ".")]
        weights = [name for name in inside if WEIGHTS.fullmatch(PurePosixPath(name).name)]
        chosen += [name for name in inside if name.endswith(CONFIGS) and name not in weights]
        if folder or not whole:
            chosen += _plain(weights)
            pickled = [name for name in inside if name.endswith((".bin", ".pt", ".ckpt"))]
            if pickled and not weights and not folder.startswith("tokenizer"):
                raise InputError(f"{pickled[0]} is pickled, which can run any code; there are no safetensors")
    if not any(name.endswith(".safetensors") for name in chosen):
        raise InputError("it holds no pipeline or model of diffusers' with safetensors; give another")
    return chosen


def _plain(weights: Sequence[str]) -> list[str]:
    """The files without a variant in their names, else those of the first variant."""
    by_variant: dict[str, list[str]] = {}
    for name in weights:
        file = PurePosixPath(name).name
        found = re.fullmatch(r"\w+?(?:\.(?!safetensors)([a-z0-9_]+?))?(?:-\d+-of-\d+)?\.safetensors.*", file)
        variant = (found and found[1]) or ""
        index = re.search(r"\.index\.([a-z0-9_]+)\.json$", file)
        by_variant.setdefault(index[1] if index else variant, []).append(name)
    return by_variant[min(by_variant)] if by_variant else []
