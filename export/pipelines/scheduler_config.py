"""The config of a live diffusers scheduler, completed: of which class it is, and that class's own defaults."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

from ..sources.diffusers_config import class_name, read_config, scheduler_class
from .scheduler_classes import REFUSED


def class_of(config: Mapping[str, Any]) -> str | None:
    """The class that a config is of: by name, else by its parameters, with which a live scheduler's config begins."""
    name = class_name(config)
    if name is not None:
        return name
    import diffusers

    keys = [key for key in config if not key.startswith("_")]
    for refused in REFUSED:
        kind = getattr(diffusers, refused, None)
        parameters = list(inspect.signature(kind.__init__).parameters)[1:] if kind is not None else []
        if parameters and set(parameters) == set(keys[: len(parameters)]):
            return refused
    return None


def completed(config: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the defaults of its class for what it leaves out, checked before a scheduler is made of it."""
    read_config({**config, **options}, mu=1.0)
    defaults = scheduler_class(config).read if class_name(config) is not None else {}
    said = {key: value for key, value in config.items() if value is not None}
    finite = {key: value for key, value in defaults.items() if value is not None and value != -math.inf}
    return {**finite, **said}
