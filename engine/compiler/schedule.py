"""Noise schedules: t -> (alpha_t, sigma_t) in float64, for x_t = alpha_t x_0 + sigma_t eps.

Notation: lambda_t = log(alpha_t / sigma_t), half the log signal-to-noise ratio (Lu et al., arXiv 2206.00927).
Times fall from `last` (most noise) to `first` (least noise that the network was trained on); `clean` is the
time of the clean point, where alpha = 1 and sigma = 0, at which no network is evaluated.

| string               | meaning                                                | source           |
|----------------------|--------------------------------------------------------|------------------|
| `linear:1000`        | discrete, betas 1e-4..0.02                             | arXiv 2006.11239 |
| `scaled_linear:1000` | discrete, square roots of betas linear, 0.00085..0.012 | arXiv 2112.10752 |
| `cosine:300`         | discrete, squared cosine, s 0.008, betas clipped       | arXiv 2102.09672 |
| `alphas:FILE`        | discrete, the file's own cumulative products           |                  |
| `vp`                 | continuous, t in 0..1, betas 0.1..20                   | arXiv 2011.13456 |
| `edm`                | continuous, t = sigma in 0.002..80, alpha 1            | arXiv 2206.00364 |
| `flow:shift=3`       | continuous, alpha = 1 - t, sigma = t                   | arXiv 2210.02747 |

Parameters follow a question mark: `cosine:60?beta_max=0.999`, `vp?beta_max=25`, `edm?sigma_max=50`. The three named
discrete schedules take `terminal`, the last cumulative product after rescaling to zero terminal SNR (arXiv
2305.08891): `linear:1000?terminal=0`.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import ClassVar, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError, did_you_mean, first_line, shown
from ..files.array_files import read_array, read_text

Float64s = NDArray[np.floating]  # float64 throughout; NumPy types many results no narrower


class Schedule(ABC):
    """alpha_t and sigma_t of a forward process, and the times at which it is defined."""

    discrete: ClassVar[bool] = False  # times are whole numbers
    velocity: ClassVar[str] = "v"  # the prediction that is called "the velocity" of this process

    @property
    @abstractmethod
    def span(self) -> tuple[float, float, float]:
        """(first, last, clean): see these."""

    @property
    def first(self) -> float:
        """The least noisy time at which the network may be evaluated."""
        return self.span[0]

    @property
    def last(self) -> float:
        """The noisiest time."""
        return self.span[1]

    @property
    def clean(self) -> float:
        """The time of the clean point: -1 for discrete schedules, 0 otherwise."""
        return self.span[2]

    @abstractmethod
    def alpha(self, t: ArrayLike) -> Float64s:
        """Signal coefficient, float64, shape of t. Raises InputError outside the schedule."""

    @abstractmethod
    def sigma(self, t: ArrayLike) -> Float64s:
        """Noise coefficient, float64, shape of t. Raises InputError outside the schedule."""

    @abstractmethod
    def time_from_lambda(self, lam: ArrayLike) -> Float64s:
        """Inverse of `lam`, float64; real numbers also for discrete schedules (the grid rounds)."""

    def lam(self, t: ArrayLike) -> Float64s:
        """lambda_t = log(alpha_t / sigma_t); +inf at the clean point, -inf where alpha is 0."""
        with np.errstate(divide="ignore"):
            return np.log(self.alpha(t)) - np.log(self.sigma(t))

    def prior_scale(self, t: float) -> float:
        """Standard deviation of the noise that sampling starts from at time t."""
        return 1.0

    def warp(self, u: ArrayLike) -> Float64s:
        """Evenly spaced u to time; only flow schedules with a shift bend it."""
        return np.asarray(u, np.float64)

    def unwarp(self, t: ArrayLike) -> Float64s:
        """Inverse of `warp`."""
        return np.asarray(t, np.float64)

    def check(self, t: ArrayLike) -> Float64s:
        """t as float64, inside [first, last] or the clean point. Raises InputError otherwise."""
        times = np.asarray(t, np.float64)
        low = min(self.first, self.clean)
        if not np.all((times >= low) & (times <= self.last)):
            bad = times.ravel()[np.argmax(~((times >= low) & (times <= self.last)).ravel())]
            raise InputError(f"time {bad:g} is outside this schedule; it runs from {self.last:g} down to {low:g}")
        return times


@final
@dataclass(frozen=True, eq=False)
class Discrete(Schedule):
    """T integer times 0..T-1 with cumulative products alphabar_t; alpha_t = sqrt(alphabar_t); -1 is clean."""

    discrete: ClassVar[bool] = True
    alphas_cumprod: Float64s
    # Index -1 of the extended arrays is the clean point, as the time -1 means.
    extended: Float64s = field(init=False, repr=False)

    def __post_init__(self) -> None:
        values = np.asarray(self.alphas_cumprod, np.float64)
        if values.ndim != 1 or len(values) < 2 or not np.all(np.isfinite(values)):
            raise InputError("cumulative products must be a list of at least 2 finite numbers")
        if not (np.all(np.diff(values) < 0) and values[-1] >= 0 and values[0] < 1):
            raise InputError("cumulative products must fall strictly from below 1 to at least 0")
        object.__setattr__(self, "extended", np.append(values, 1.0))

    @property
    def span(self) -> tuple[float, float, float]:
        return 0.0, float(len(self.extended) - 2), -1.0

    def index(self, t: ArrayLike) -> NDArray[np.int64]:
        times = self.check(t)
        if not np.all(times == np.round(times)):
            bad = times.ravel()[np.argmax((times != np.round(times)).ravel())]
            raise InputError(f"time {bad:g} is not an integer; discrete schedules have integer times only")
        return times.astype(np.int64)

    def alpha(self, t: ArrayLike) -> Float64s:
        return np.sqrt(self.extended[self.index(t)])

    def sigma(self, t: ArrayLike) -> Float64s:
        return np.sqrt(1 - self.extended[self.index(t)])

    def time_from_lambda(self, lam: ArrayLike) -> Float64s:
        lam_t = self.lam(np.arange(self.last + 1))  # falls with t
        return np.interp(-np.asarray(lam, np.float64), -lam_t, np.arange(self.last + 1))


class UnitTime(Schedule):
    """Times from 1 down to t_min; clean at 0."""

    t_min: float

    @property
    def span(self) -> tuple[float, float, float]:
        return self.t_min, 1.0, 0.0


@final
@dataclass(frozen=True)
class Vp(UnitTime):
    """log alpha_t = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2 (Song et al., arXiv 2011.13456, eq. 33)."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3

    def log_alpha(self, t: ArrayLike) -> Float64s:
        times = self.check(t)
        return -(times**2) * (self.beta_max - self.beta_min) / 4 - times * self.beta_min / 2

    def alpha(self, t: ArrayLike) -> Float64s:
        return np.exp(self.log_alpha(t))

    def sigma(self, t: ArrayLike) -> Float64s:
        return np.sqrt(-np.expm1(2 * self.log_alpha(t)))

    def time_from_lambda(self, lam: ArrayLike) -> Float64s:
        # -2 log alpha = log(1 + exp(-2 lambda)) is a quadratic in t; this root has no cancellation.
        c = 2 * (self.beta_max - self.beta_min) * np.logaddexp(-2 * np.asarray(lam, np.float64), 0)
        return c / (np.sqrt(self.beta_min**2 + c) + self.beta_min) / (self.beta_max - self.beta_min)


@final
@dataclass(frozen=True)
class Edm(Schedule):
    """alpha = 1, sigma = t (Karras et al., arXiv 2206.00364)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    @property
    def span(self) -> tuple[float, float, float]:
        return self.sigma_min, self.sigma_max, 0.0

    def alpha(self, t: ArrayLike) -> Float64s:
        return np.ones_like(self.check(t))

    def sigma(self, t: ArrayLike) -> Float64s:
        return self.check(t)

    def time_from_lambda(self, lam: ArrayLike) -> Float64s:
        return np.exp(-np.asarray(lam, np.float64))

    def prior_scale(self, t: float) -> float:
        return float(t)


@final
@dataclass(frozen=True)
class Flow(UnitTime):
    """alpha = 1 - t, sigma = t (Lipman et al., arXiv 2210.02747); evenly spaced grids are bent by
    t = shift u / (1 + (shift - 1) u) (Esser et al., arXiv 2403.03206, eq. 23)."""

    velocity: ClassVar[str] = "flow"
    shift: float = 1.0
    t_min: float = 1e-3

    def alpha(self, t: ArrayLike) -> Float64s:
        return 1 - self.check(t)

    def sigma(self, t: ArrayLike) -> Float64s:
        return self.check(t)

    def time_from_lambda(self, lam: ArrayLike) -> Float64s:
        return 1 / (1 + np.exp(np.asarray(lam, np.float64)))

    def prior_scale(self, t: float) -> float:
        return float(t)

    def warp(self, u: ArrayLike) -> Float64s:
        u = np.asarray(u, np.float64)
        return self.shift * u / (1 + (self.shift - 1) * u)

    def unwarp(self, t: ArrayLike) -> Float64s:
        t = np.asarray(t, np.float64)
        return t / (self.shift - (self.shift - 1) * t)


# Discrete schedules by name.


def linear(length: int, beta_min: float = 1e-4, beta_max: float = 0.02, terminal: float | None = None) -> Discrete:
    """Betas linear in t (Ho et al., arXiv 2006.11239)."""
    return _from_betas(np.linspace(beta_min, beta_max, length, dtype=np.float64), terminal)


def scaled_linear(
    length: int, beta_min: float = 0.00085, beta_max: float = 0.012, terminal: float | None = None
) -> Discrete:
    """Square roots of betas linear in t (Rombach et al., arXiv 2112.10752, their code)."""
    return _from_betas(np.linspace(beta_min**0.5, beta_max**0.5, length, dtype=np.float64) ** 2, terminal)


def cosine(
    length: int, s: float = 0.008, beta_min: float = 1e-4, beta_max: float = 0.9999, terminal: float | None = None
) -> Discrete:
    """alphabar = cos^2((t/T + s) / (1 + s) pi/2), betas clipped (Nichol & Dhariwal, arXiv 2102.09672, eq. 17)."""
    alphabar = np.cos((np.arange(length + 1) / length + s) / (1 + s) * np.pi / 2) ** 2
    return _from_betas(np.clip(1 - alphabar[1:] / alphabar[:-1], beta_min, beta_max), terminal)


def _from_betas(betas: Float64s, terminal: float | None) -> Discrete:
    """alphabar = prod(1 - beta); with `terminal` sqrt(alphabar) is moved and scaled so that its first value stays and
    its last is 0 (Lin et al., arXiv 2305.08891, algorithm 1). alphabar's last is then `terminal`, or half the one
    before where that is smaller: linear betas leave 4e-9 there, less than the 2^-24 that diffusers puts at the end.
    """
    alphabar = np.cumprod(1 - betas)
    if terminal is not None:
        root = np.sqrt(alphabar)
        alphabar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        alphabar[-1] = min(terminal, alphabar[-2] / 2)
    return Discrete(alphabar)


def alphas(path: str) -> Discrete:
    """Own cumulative products: .npy, .txt (one a line) or .json (a list, or a key alphas_cumprod, abars or betas)."""
    try:
        held = read_array(path) if path.endswith(".npy") else read_text(path)
    except InputError as error:
        raise InputError(f"cannot read schedule file {path}: {error}") from None
    try:
        if not isinstance(held, str):
            return Discrete(held)
        data = json.loads(held) if path.endswith(".json") else np.loadtxt(held.splitlines(), ndmin=1)
        if isinstance(data, dict):
            key = next((key for key in ("alphas_cumprod", "abars", "betas") if key in data), None)
            if key is None:
                raise InputError(f"{path} has no key alphas_cumprod or betas; it has {shown(list(data))}")
            data = np.cumprod(1 - np.asarray(data[key], np.float64)) if key == "betas" else data[key]
        return Discrete(np.asarray(data, np.float64))
    except InputError as error:
        raise InputError(f"schedule file {path}: {error}") from error
    except (OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(
            f"cannot read schedule file {path}: {first_line(error)[:100]}; expected .npy, .json or .txt numbers"
        ) from error


DISCRETE = {"linear": linear, "scaled_linear": scaled_linear, "cosine": cosine}
CONTINUOUS = {"vp": Vp, "edm": Edm, "flow": Flow}


# Own schedules by content: a file may change or be left behind, so networks and engines hold its numbers.
CONTENT = "alphas:sha256="
_held: dict[str, Discrete] = {}


def hold_alphas(values: ArrayLike) -> str:
    """The name `alphas:sha256=HEX` of own cumulative products, a schedule string in this process from now on."""
    schedule = Discrete(np.asarray(values, np.float64))
    name = CONTENT + hashlib.sha256(schedule.extended[:-1].astype("<f8").tobytes()).hexdigest()[:32]
    _held.setdefault(name, schedule)
    return name


def held_alphas(name: str) -> list[float] | None:
    """The numbers that `hold_alphas` named so; None for any other schedule string."""
    return _held[name].extended[:-1].tolist() if name in _held else None


def named_by_content(text: str) -> str:
    """`alphas:FILE` as the name of its numbers, which are held; any other string as it is. Raises InputError."""
    if not text.startswith("alphas:") or text in _held:
        return text
    return hold_alphas(alphas(text.removeprefix("alphas:")).alphas_cumprod)


def parse_schedule(text: str) -> Schedule:
    """A schedule from its string, see the table above. Raises InputError."""
    path = text.removeprefix("alphas:")
    if text in _held:
        return _held[text]
    if text.startswith(CONTENT):
        raise InputError(
            f"schedule {shown(text)}: its numbers are in no engine loaded here; give their file, alphas:FILE"
        )
    return alphas(path) if path not in (text, "") else _parsed(text)  # a file is read each time: it may have changed


@lru_cache(maxsize=64)
def _parsed(text: str) -> Schedule:
    head, _, query = text.partition("?")
    name, _, argument = head.partition(":")
    known = ", ".join([*DISCRETE, *CONTINUOUS, "alphas"])
    if name not in DISCRETE and name not in CONTINUOUS:
        hint = did_you_mean(name, [*DISCRETE, *CONTINUOUS])
        raise InputError(f"unknown schedule {shown(text)}; known: {known} (for example cosine:300){hint}")
    if name in CONTINUOUS:
        query = "&".join(filter(None, (argument, query)))
    options = _options(query, text)
    if name in CONTINUOUS:
        cls = CONTINUOUS[name]
        _reject_unknown(options, [f.name for f in fields(cls)], text)
        if any(value <= 0 for value in options.values()):
            raise InputError(f"schedule {shown(text)}: every parameter must be above 0")
        return cls(**options)
    if not argument.isdigit() or not 2 <= int(argument) <= 1_000_000:
        raise InputError(f"schedule {shown(text)} needs its number of times, at least 2, for example {name}:1000")
    make = DISCRETE[name]
    _reject_unknown(options, make.__code__.co_varnames[1 : make.__code__.co_argcount], text)
    return make(int(argument), **options)


def _options(query: str, text: str) -> dict[str, float]:
    try:
        return {key: float(value) for key, value in (pair.split("=") for pair in query.split("&") if pair)}
    except ValueError as error:
        raise InputError(f"schedule {shown(text)}: expected key=number after the name, got {shown(query)}") from error


def _reject_unknown(options: dict[str, float], known: tuple[str, ...] | list[str], text: str) -> None:
    unknown = [key for key in options if key not in known]
    if unknown:
        raise InputError(
            f"schedule {shown(text)} has no parameter {shown(unknown[0])}; it has {', '.join(known)}"
            f"{did_you_mean(unknown[0], known)}"
        )
