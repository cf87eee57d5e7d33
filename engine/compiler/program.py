"""A sampler as numbers: the program that every backend, kernel and file format of this project executes.

    s_j = init_j * noise
    for n = 0 ... N-1:
        out = network(c_in_n * s_0, network_time_n)
        z   = out                                           without clip
            = clamp(p_n s_0 + q_n out, -clip, +clip)        with clip: the x0 that the network means
        s_j <- sum_i W_n[j, i] s_i + w_n[j] z + U_n[j] out + V_n[j] xi_n     all j at once
    sample = s_0

A deterministic sampler has V = 0 and draws nothing; its JSON form has no V. Where V_n is not 0, xi_n is standard normal
noise, draw n + 1 of the sample's seed (engine/philox.py). U is 0, and not in the JSON form, but for the sampler that
clips x0 and keeps the network's own eps (own_eps.py).

The conversion from the network's prediction to the solver's basis is folded into W and w in float64. The updates
combine the network's own output, so v-networks keep their accuracy where alpha is small. The program also holds the
dense table in the solver's basis, to be read, hashed and tested.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, final

import numpy as np

from ..errors import InputError, first_line, shown
from ..json_fields import is_integer, is_number, parse_json
from ..notebook import html_table
from ..philox import Seeds, fill_numpy, parse_seeds
from .basis import PRECONDITIONED, PREDICTIONS
from .schedule import Float64s, parse_schedule

ARRAYS = {
    "times": 1,
    "network_times": 1,
    "c_in": 1,
    "table": 2,
    "init": 1,
    "p": 1,
    "q": 1,
    "W": 3,
    "w": 2,
    "V": 2,
    "U": 2,
}
OPTIONAL = ("V", "U")  # which most programs have not, nor their JSON form
# What a file may ask for; the C++ reader has the same bounds.
MOST_NFE = 4096
MOST_BUFFERS = 8  # solvers need 1 to 6
LONGEST_TEXT = 4096
LARGEST = 3e38  # coefficients are executed in float32


@final
@dataclass(frozen=True, eq=False)
class Program:
    """One sampler for one NFE; all arrays float64. N = nfe, B = buffers.

    times [N]: the schedule's time of each evaluation. network_times [N]: what the network is fed, ln(sigma)/4 for
    `edm`. c_in [N]: factor of the network's input. table [N+1, 1+K+N]: rows y_0 ... y_N-1, sample; columns noise,
    the K = `noises` draws, d_0 ... d_N-1 in `basis`, as if nothing were clipped. init [B], p [N], q [N], W [N, B, B],
    w, V, U [N, B]: see the module.
    """

    solver: str
    schedule: str
    grid: str | tuple[float, ...]
    basis: str
    prediction: str
    clip: float | None
    t_start: float | None
    end: str | float
    sigma_data: float
    times: Float64s
    network_times: Float64s
    c_in: Float64s
    table: Float64s
    init: Float64s
    p: Float64s
    q: Float64s
    W: Float64s
    w: Float64s
    V: Float64s
    U: Float64s

    def __post_init__(self) -> None:
        for name in ARRAYS:
            getattr(self, name).setflags(write=False)

    @property
    def nfe(self) -> int:
        return len(self.times)

    @property
    def buffers(self) -> int:
        return len(self.init)

    @property
    def draws(self) -> tuple[int, ...]:
        """The evaluations, counted from 0, after which noise is drawn and added; empty for deterministic samplers."""
        return tuple(np.flatnonzero(self.V.any(axis=1)).tolist())

    @property
    def columns(self) -> list[str]:
        """Names of the table's columns: noise, the draws xi_n, the outputs by their basis."""
        outputs = (f"{self.basis}_{n}" for n in range(self.nfe))
        return ["noise", *(f"xi_{n}" for n in self.draws), *outputs]

    @property
    def keeps_eps(self) -> bool:
        """Whether the updates take the network's output beside the clipped x0."""
        return bool(self.U.any())

    @property
    def noises(self) -> int:
        """How many noises are drawn on the way, after the one that sampling starts from."""
        return len(self.draws)

    def check_deterministic(self, where: str) -> None:
        """Raises InputError, "`where` adds none", if noise is drawn on the way."""
        if self.noises:
            raise InputError(f"{self.solver} draws noise on the way and {where} adds none; take a solver such as ddim")

    @property
    def digest(self) -> str:
        """SHA-256 of the JSON form, hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def __repr__(self) -> str:
        grid = self.grid if isinstance(self.grid, str) else f"{len(self.grid)} given times"
        clip = "" if self.clip is None else f", clip {self.clip:g}"
        return (
            f"Program({self.solver}, NFE {self.nfe}: {self.schedule} from {self.times[0]:g}, grid {grid}, "
            f"basis {self.basis}, predicts {self.prediction}{clip}, {self.buffers} buffers)"
        )

    def _repr_html_(self) -> str:
        """The dense table, for notebooks: rows are the network's inputs and the sample, columns noise and outputs."""
        header = ["", "time", *self.columns]
        names = [*(f"y_{n}" for n in range(self.nfe)), "sample"]
        times = [*(f"{t:.6g}" for t in self.times), ""]
        rows = [
            [name, time, *(f"{value:.4g}" if value else "" for value in row)]
            for name, time, row in zip(names, times, self.table, strict=True)
        ]
        return html_table(rows, header, repr(self))

    def evaluate(
        self, network: Callable[[Any, float], Any], noise: Any, seeds: Seeds | None = None, steps_noise: Any = None
    ) -> Any:
        """The reference execution, in the type and dtype of `noise` (NumPy array or torch tensor, any shape).

        network(x_t, t) -> prediction of the same shape; t is an int on discrete schedules, else a float. For `edm` it
        is the raw F, called with c_in x and c_noise. A stochastic program also takes seeds, one for each row of
        `noise`, whose draws 1 ... N are added on the way, or steps_noise [noises, *noise.shape] in their place.
        Raises InputError.
        """
        drawn = self._drawn(noise, seeds, steps_noise)
        own = self.schedule.startswith("alphas:")  # discrete, wherever its numbers are
        whole = self.prediction not in PRECONDITIONED and (own or parse_schedule(self.schedule).discrete)
        states = [float(c) * noise for c in self.init]
        for n in range(self.nfe):
            t = float(self.network_times[n])
            out = network(float(self.c_in[n]) * states[0], int(t) if whole else t)
            raw = out
            if self.clip is not None:
                out = (float(self.p[n]) * states[0] + float(self.q[n]) * out).clip(-self.clip, self.clip)
            xi = drawn(n) if n in self.draws else None
            states = [self._combine(states, out, raw, xi, n, j) for j in range(self.buffers)]
        return states[0]

    def _drawn(self, noise: Any, seeds: Seeds | None, steps_noise: Any) -> Callable[[int], Any]:
        """n -> xi_n like `noise`. Raises InputError when what the program draws is not determined."""
        if steps_noise is not None:
            shape = (self.noises, *np.shape(noise))
            if seeds is not None or np.shape(steps_noise) != shape:
                got = "also seeds" if seeds is not None else f"shape {np.shape(steps_noise)}"
                raise InputError(f"steps_noise and {got}; {self.solver} takes steps_noise {shape} or one seed a sample")
            return lambda n: _like(noise, steps_noise[self.draws.index(n)])
        if seeds is None and self.noises:
            raise InputError(f"{self.solver} draws {self.noises} noises on the way; give seeds= or steps_noise=")
        keys, shape = parse_seeds([] if seeds is None else seeds), np.shape(noise)
        if self.noises and shape[:1] != keys.shape:
            raise InputError(f"{len(keys)} seeds for noise of shape {shape}; give one seed for each of its rows")

        def draw(n: int) -> Any:
            xi = np.empty((len(keys), math.prod(shape[1:])), np.float32)
            fill_numpy(xi, keys, n + 1)
            return _like(noise, xi.reshape(shape))

        return draw

    def _combine(self, states: Sequence[Any], out: Any, raw: Any, xi: Any, n: int, j: int) -> Any:
        total = float(self.w[n, j]) * out
        for i in np.flatnonzero(self.W[n, j]).tolist():
            total = total + float(self.W[n, j, i]) * states[i]
        if self.U[n, j] != 0:
            total = total + float(self.U[n, j]) * raw
        return total if self.V[n, j] == 0 else total + float(self.V[n, j]) * xi

    def to_json(self) -> str:
        """Every field; floats in the shortest form that reads back exactly."""
        return json.dumps(self.to_dict(), allow_nan=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data, every field; `from_dict` reads it back."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values |= {name: values[name].tolist() for name in ARRAYS}
        grid = values["grid"]
        values["grid"] = list(grid) if isinstance(grid, tuple) else grid
        for name in OPTIONAL:
            if not getattr(self, name).any():
                del values[name]
        return {"nfe": self.nfe, "buffers": self.buffers, **values}

    @staticmethod
    def from_json(text: str) -> Program:
        """Inverse of `to_json`. Raises InputError when a field is missing, of a wrong type or shape."""
        try:
            data = parse_json(text.encode())
        except (InputError, AttributeError, UnicodeEncodeError) as error:
            raise _unfit(f"{first_line(error)[:100]}; expected the output of to_json") from None
        return Program.from_dict(data)

    @staticmethod
    def from_dict(data: Any) -> Program:
        """Inverse of `to_dict`. Raises InputError when a field is missing, of a wrong type or shape."""
        if not isinstance(data, dict):
            raise _unfit(f"{shown(data)}, expected an object")
        known = {*data, *OPTIONAL}
        missing = [name for name in ("nfe", "buffers", *(f.name for f in fields(Program))) if name not in known]
        if missing:
            raise _unfit(f"'{missing[0]}' is missing; expected the output of to_json")
        nfe, buffers = _integer("nfe", data["nfe"], MOST_NFE), _integer("buffers", data["buffers"], MOST_BUFFERS)
        shapes = {1: (nfe,), 2: (nfe, buffers), 3: (nfe, buffers, buffers)}
        expected = {name: shapes[rank] for name, rank in ARRAYS.items()}
        data = {**{name: np.zeros((nfe, buffers)).tolist() for name in OPTIONAL}, **data}
        noises = int(np.count_nonzero(_array("V", data["V"], expected["V"]).any(axis=1)))
        expected |= {"table": (nfe + 1, 1 + noises + nfe), "init": (buffers,)}
        values = {f.name: data[f.name] for f in fields(Program)}
        _check_origin(values)
        values |= {name: _array(name, values[name], shape) for name, shape in expected.items()}
        if values["U"].any() and (values["clip"] is None or noises):
            raise _unfit(f"U is given {'beside V' if noises else 'without a clip'}, expected a clip and no V")
        if isinstance(values["grid"], list):
            values["grid"] = tuple(values["grid"])
        return Program(**values)


def _like(noise: Any, values: Any) -> Any:
    """`values` in the type and dtype of `noise`, an array or a tensor, for which torch need not be imported."""
    if isinstance(noise, np.ndarray | np.generic | float):
        return np.asarray(values, np.result_type(noise))
    return noise.new_tensor(values) if isinstance(values, np.ndarray) else values.to(noise)


def _unfit(why: str) -> InputError:
    return InputError(f"not a program: {why}")


def _integer(name: str, value: Any, most: int) -> int:
    if not (is_integer(value) and 1 <= value <= most):
        raise _unfit(f"{name} is {shown(value)}, expected an integer in 1..{most}")
    return value


def _array(name: str, value: Any, shape: tuple[int, ...]) -> Float64s:
    """A list of numbers, of lists of them, or of lists of these, as float64 of that shape."""
    try:
        found = np.array(value)
        flat = value
        for _ in found.shape[1:]:
            flat = [one for row in flat for one in row]
        if not set(map(type, flat)) <= {int, float}:  # NumPy would take true for 1 and "1" for a text
            raise TypeError
        values = found.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        raise _unfit(f"{name} is {shown(value)}, expected numbers of shape {list(shape)}") from None
    if values.shape != shape:
        raise _unfit(f"{name} has shape {values.shape}, expected {shape}")
    if not np.all(np.abs(values) <= LARGEST):  # false for NaN
        raise _unfit(f"{name} has values that are not finite, or beyond float32")
    return values


def _check_origin(values: Mapping[str, Any]) -> None:
    """The fields that say how a program was made, and its clip."""

    def check(name: str, fits: bool, expected: str) -> None:
        if not fits:
            raise _unfit(f"{name} is {shown(values[name])}, expected {expected}")

    text = f"at most {LONGEST_TEXT} characters"
    for name in ("solver", "schedule", "basis"):
        check(name, _is_text(values[name]), text)
    grid, end, start, clip = (values[name] for name in ("grid", "end", "t_start", "clip"))
    check("grid", all(map(is_number, grid)) if isinstance(grid, list) else _is_text(grid), f"numbers, or {text}")
    check("end", is_number(end) or _is_text(end), f"a number, or {text}")
    check("t_start", start is None or is_number(start), "a number, or null")
    check("sigma_data", is_number(values["sigma_data"]), "a number")
    check("clip", clip is None or (is_number(clip) and 0 < clip <= LARGEST), "a number above 0, or null")
    check("prediction", values["prediction"] in PREDICTIONS, f"one of {', '.join(PREDICTIONS)}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST_TEXT and "\0" not in value
