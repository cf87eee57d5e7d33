"""Solvers, one family a file, and the strings that name them: `name` or `name:key=value,...` or `dpm++:2m`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

from ..errors import InputError
from .abstract import Solver
from .ddim import Ddim
from .dpm_solver import MultiStep, SingleStep
from .pfdiff import PFDiff

Options = dict[str, str]


def _ddim(options: Options) -> Solver:
    return Ddim()


def _dpm_solver(options: Options) -> Solver:
    return SingleStep("dpm-solver", _integer(options.get("order", "2"), "order"))


def _dpm_plus(options: Options) -> Solver:
    kinds: dict[str, Callable[[], Solver]] = {
        "1s": lambda: SingleStep("dpm++", 1),
        "2s": lambda: SingleStep("dpm++", 2),
        "3s": lambda: SingleStep("dpm++", 3),
        "2m": MultiStep,
    }
    kind = options.get("", "2m")
    if kind not in kinds:
        raise InputError(f"dpm++ has no variant {kind!r}; known: {', '.join(kinds)}")
    return kinds[kind]()


def _pfdiff(options: Options) -> Solver:
    k = _integer(options.get("k", "2"), "k")
    try:
        l = float(options.get("l", "1"))
    except ValueError:
        raise InputError(f"pfdiff takes a number for l, got {options['l']!r}") from None
    return PFDiff(k, l, options.get("base", "ddim"), options.get("use", "both"))


# Name -> (maker, keys it takes; "" is a bare word).
SOLVERS: dict[str, tuple[Callable[[Options], Solver], tuple[str, ...]]] = {
    "ddim": (_ddim, ()),
    "dpm-solver": (_dpm_solver, ("order",)),
    "dpm++": (_dpm_plus, ("",)),
    "pfdiff": (_pfdiff, tuple(f.name for f in fields(PFDiff))),
}


def parse_solver(text: str) -> Solver:
    """A solver from its string. Raises InputError naming what is known."""
    name, _, query = text.partition(":")
    if name not in SOLVERS:
        raise InputError(f"unknown solver {text!r}; known: {', '.join(SOLVERS)} (for example pfdiff:k=2,l=1)")
    make, known = SOLVERS[name]
    options: Options = {}
    for part in filter(None, query.split(",")):
        key, equals, value = part.partition("=")
        key, value = (key.strip(), value.strip()) if equals else ("", key.strip())
        if key not in known:
            takes = ", ".join(k or "a variant" for k in known) or "no options"
            raise InputError(f"solver {text!r}: unexpected {part!r}; {name} takes {takes}")
        if key in options:
            raise InputError(f"solver {text!r}: {key or 'the variant'} is given twice")
        options[key] = value
    return make(options)


def _integer(text: str, key: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{key} must be a whole number, got {text!r}") from None
