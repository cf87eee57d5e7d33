"""Guidance inside the exported graph, with its scale as one more run-time input, `guidance` [batch].

Classifier-free (Ho & Salimans, arXiv 2207.12598), with c, u the predictions with and without the condition:

    g = u + s (c - u)             one evaluation of 2 x batch samples, which counts as one; s = 1 outside `interval`
    g <- r g std(c)/std(g) + (1 - r) g            `rescale` r (Lin et al., arXiv 2305.08891, section 3.4)
    g <- g |c| / |g|                              `keep`, in parts of a sample, as pipelines of flow networks do

s = 1 is the network itself, s = 0 the unconditional one (with `rescale`, as wide as c). Classifier guidance (Dhariwal &
Nichol, arXiv 2105.05233) is the other kind; its mathematics stands in classifier_guidance.py.

Everything is a condition of the contract then: `engine.sample(seeds=..., label=3, guidance=[1.0, 2.5, ...])`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

import numpy as np

from ...engine.compiler.basis import PRECONDITIONED
from ...engine.compiler.schedule import parse_schedule
from ...engine.contract.condition import Condition
from ...engine.contract.contract import Contract
from ...engine.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

NAME = "guidance"
AT_RUN_TIME = "input"
WORDS = ("scale", "rescale", "interval", "classifier", "clip", "target")  # of our own in a text
KEPT = ("", "rows", "patches")
USAGE = (
    "label=10[,scale=2][,interval=100..800][,rescale=0.7], or "
    "classifier=file.py:factory[,scale=1][,clip=1][,target=label]"
)


@final
@dataclass(frozen=True)
class ClassifierFree:
    """Classifier-free guidance.

    unconditional   by name of a condition the value that means "none": a number, a label's name, an array of the
                    condition's shape, None for the condition's default, or "input" for a further run-time input,
                    NAME_unconditional, alias negative_ALIAS (a negative prompt). Conditions left out are the same in
                    both halves
    scale           default of the input `guidance`
    interval        two times of the schedule, both included, outside which the scale is 1 (arXiv 2404.07724)
    rescale         0 to 1, see the module
    offset          added to the scale inside the interval: 1 for pipelines whose scale counts from 0
    keep            "rows" (along the last axis) or "patches" (2 x 2 over all channels): the length that the guided
                    prediction keeps of the conditional one; "" for none
    """

    unconditional: Mapping[str, Any]
    scale: float = 1.0
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    offset: float = 0.0
    keep: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.unconditional, Mapping) or not self.unconditional:
            raise InputError(f"guidance: unconditional {self.unconditional!r}, expected for instance {{'label': 10}}")
        _check_number("scale", self.scale)
        _check_number("rescale", self.rescale, low=0.0, high=1.0)
        _check_number("offset", self.offset)
        if self.keep not in KEPT:
            raise InputError(f"guidance: keep {self.keep!r}, expected rows, patches or nothing")
        span: Any = self.interval
        if span is not None:
            if not (isinstance(span, (tuple, list)) and len(span) == 2):
                raise InputError(f"guidance: interval {span!r}, expected two times of the schedule, such as (100, 800)")
            for time in span:
                _check_number("interval", time)


@final
@dataclass(frozen=True)
class ClassifierGuidance:
    """Guidance by the gradient of a classifier's log-probability.

    classifier   an nn.Module, forward(x_t [B, *shape], t) -> logits [B, classes], of the time the network is fed;
                 "file.py:factory", or "fashion", the shipped one
    target       the int64 input that names the class. A condition of the network of that name is shared: a label that
                 the classifier does not have (no class) is not guided then
    scale        default of the input `guidance`; 0 is the network itself (with its x0 clipped)
    clip         x0 is clamped to [-clip, clip] before the guidance, as in ADM; None: not at all
    labels       names of the classes
    """

    classifier: nn.Module | str
    target: str = "target"
    scale: float = 1.0
    clip: float | None = None
    labels: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        _check_number("scale", self.scale)
        if self.clip is not None:
            _check_number("clip", self.clip, low=1e-6)


Guidance = ClassifierFree | ClassifierGuidance


def parse_guidance(text: str) -> Guidance:
    """The guidance that a text means, such as 'label=10,scale=2' or 'classifier=fashion,clip=1'. Raises InputError."""
    words: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not key.isidentifier() or key in words or (equals and not value):
            raise InputError(f"guidance '{text}': got '{part}', expected {USAGE}")
        words[key] = value
    options: dict[str, Any] = {key: _number(text, words.pop(key)) for key in ("scale", "rescale") if key in words}
    if "classifier" in words:
        if "clip" in words:
            options["clip"] = _number(text, words.pop("clip"))
        for key in words:
            if key not in ("classifier", "target"):
                raise InputError(f"guidance '{text}': unexpected '{key}', expected {USAGE}")
        if "rescale" in options:
            raise InputError(f"guidance '{text}': rescale belongs to classifier-free guidance; leave it out")
        return ClassifierGuidance(**words, **options)
    if "interval" in words:
        low, dots, high = words.pop("interval").partition("..")
        options["interval"] = (_number(text, low), _number(text, high if dots else ""))
    return ClassifierFree({name: _value(value) for name, value in words.items()}, **options)


@final
class Halves:
    """Classifier-free guidance fitted to a contract: what both sources need to know.

    values       by condition of the network, in its order: the unconditional value [*shape], None where both halves
                 get the same, or the name of the run-time input that holds it
    conditions   of the guided network: the network's, the run-time inputs, `guidance`
    interval     in the time that the network is fed, ascending, or None
    """

    def __init__(self, guidance: ClassifierFree, contract: Contract) -> None:
        self.guidance = guidance
        known = {one.name: one for one in contract.conditions}
        if not known:
            raise InputError(f"guidance: network '{contract.name}' has no conditions; use a classifier")
        self.values: dict[str, np.ndarray | str | None] = dict.fromkeys(known)
        extra: list[Condition] = []
        for name, given in _named(guidance.unconditional, contract).items():
            one = known[name]
            if isinstance(given, str) and given == AT_RUN_TIME:
                own, alias = f"{name}_unconditional", one.alias and f"negative_{one.alias}"
                extra.append(Condition(own, one.dtype, one.shape, low=one.low, high=one.high, alias=alias))
                self.values[name] = extra[-1].name
                continue
            if given is None and one.default is None:
                raise InputError(
                    f"guidance: condition '{name}' has no default; say which value means none, such as {name}=10, or "
                    f"{name}=input to give it at run time"
                )
            self.values[name] = _filled(one, given)
        self.conditions = (
            *contract.conditions,
            *extra,
            Condition(NAME, "float32", default=float(guidance.scale)),
        )
        self.interval = None if guidance.interval is None else fed_interval(guidance.interval, contract)


def _named(unconditional: Mapping[str, Any], contract: Contract) -> dict[str, Any]:
    """`by_name`, which asks after our own words too. Raises InputError."""
    try:
        return contract.by_name(unconditional)
    except InputError as error:
        known = {name for one in contract.conditions for name in (one.name, one.alias)}
        wrong = next((name for name in unconditional if name not in known), "")
        hint = "" if "did you mean" in str(error) else did_you_mean(wrong, WORDS)
        raise InputError(f"{error}{hint}") from None


def _filled(condition: Condition, given: Any) -> np.ndarray:
    """The unconditional value [*shape]; one number fills the shape."""
    given = given.detach().cpu().numpy() if hasattr(given, "detach") else given
    if np.ndim(given) == 0 and condition.shape and not isinstance(given, str) and given is not None:
        given = np.full(condition.shape, given)
    return np.asarray(condition.values(given, 1)[0])


def fed_interval(interval: tuple[float, float], contract: Contract) -> tuple[float, float]:
    """Two times of the schedule as the network is fed them, ascending. Raises InputError outside the schedule."""
    schedule = parse_schedule(contract.schedule)
    times = np.sort(schedule.check(interval))
    if contract.prediction in PRECONDITIONED:
        with np.errstate(divide="ignore"):
            times = np.log(schedule.sigma(times)) / 4  # c_noise
    low, high = (float(time) for time in np.maximum(times, -1e30) * contract.time_scale)
    if contract.time_dtype == "int64":
        return math.ceil(low - 1e-6), math.floor(high + 1e-6)
    return float(np.float32(low)), float(np.float32(high))


def _check_number(what: str, value: Any, low: float = -math.inf, high: float = math.inf) -> None:
    fine = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not fine or not low <= value <= high:
        span = (
            "a finite number"
            if math.isinf(low)
            else f"at least {low:g}"
            if math.isinf(high)
            else f"{low:g} to {high:g}"
        )
        raise InputError(f"guidance: {what} {value!r}, expected {span}")


def _number(text: str, word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise InputError(f"guidance '{text}': '{word}' is no number; expected {USAGE}") from None


def _value(word: str) -> int | float | str | None:
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word or None
