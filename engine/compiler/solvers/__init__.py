"""Solvers, one family a file, and the strings that name them: `name` or `name:key=value,...` or `dpm++:2m`.

| string                                            | evaluations | order of accuracy                            |
|---------------------------------------------------|-------------|----------------------------------------------|
| `ddim`, `euler`                                   | n           | 1; Euler in sigma, or in a flow's t, is DDIM |
| `dpm-solver:order=1..3`, `dpm++:1s|2s|3s`         | order x n   | as named                                     |
| `dpm-solver:2m|3m`, `dpm++:2m|3m`                 | n           | 2                                            |
| `deis:order=1..4[,variant=t|rho|lambda]`          | n           | as named, after a start as good              |
| `ab:order=1..4[,variable=lambda|rho|t]`           | n           | the same methods, by default in lambda       |
| `ipndm:order=1..4[,variant=fixed|variable]`       | n           | 2 (1: 1); variable: deis in rho              |
| `unipc:order=1..3[,variant=bh2|bh1][,form=x0|eps]`| n           | one above its name, after a start as good    |
| `heun`, `edm`                                     | 2n, 2n - 1  | 2                                            |
| `pfdiff:k=K,l=L[,base=...][,use=...]`             | n           | 1, or 2 with the springboard in the middle   |

These draw noise on the way; their order is that of the marginals' mean and variance:

| string                                            | evaluations | order of the marginals                       |
|---------------------------------------------------|-------------|----------------------------------------------|
| `ddpm[:variance=small|large]`                     | n           | 1                                            |
| `ddim:eta=E`, `euler-a[:eta=E]`                   | n           | 1; eta from 0 to 1, of euler-a by default 1  |
| `dpm++:sde`, `dpm++:2m-sde|3m-sde`                | 2n - 1, n   | 2; `dpm++:3m-sde-diffusers`: 1               |
| `sa[:predictor=P,corrector=C,tau=T,low=,high=]`   | n           | 2; predictor 1 alone: 1                      |
| `analytic-ddpm`, `analytic-ddim`, with `x0_var=`   | n           | exact for normal data                        |
| `pfdiff:k=K,l=L,eta=E`, `base=analytic-ddim`      | n           | 1                                            |
| `tada[:variables=N,order=P,scale=S]`              | n           | P, by steps of an ODE from N noises          |
| `lcm[:scaling=S]`, `tcd[:gamma=G]`, `consistency` | n           | none: for networks distilled to them         |

`ddim:eps=own` clips x0 and keeps the network's eps, as diffusers' DDIM does; without a clip it is ddim.
A method with several names compiles under one of them: `euler` is ddim, `euler-a` is ddim with an eta, `ab` and
`ipndm:variant=variable` are deis.
Four methods combine outputs of several times and have no form of their own: deis, ipndm, heun and edm. They work in
basis eps, x0 or, on flow schedules, v.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

from ...errors import InputError, did_you_mean
from .abstract import Solver
from .ddim import CLIPPED, Ddim
from .deis import Deis
from .dpm_solver import MultiStep, SingleStep
from .heun import Edm, Heun
from .ipndm import IPndm
from .pfdiff import PFDiff
from .stochastic.analytic import AnalyticStep
from .stochastic.consistency import Consistency
from .stochastic.ddpm import Ddpm
from .stochastic.dpm_sde import MultiStepSde, SingleStepSde
from .stochastic.lcm import Lcm
from .stochastic.sa import SASolver
from .stochastic.tcd import Tcd
from .tada import Tada
from .unipc import UniPC

Options = dict[str, str]


def _ddim(options: Options) -> Solver:
    return Ddim(_number(options.get("eta", "0"), "eta"), options.get("eps", CLIPPED))


def _euler_a(options: Options) -> Solver:
    return Ddim(_number(options.get("eta", "1"), "eta"))


def _sa(options: Options) -> Solver:
    predictor, corrector = (_integer(options.get(key, "2"), key) for key in ("predictor", "corrector"))
    tau, low, high = (_number(options.get(*one), one[0]) for one in (("tau", "1"), ("low", "0"), ("high", "inf")))
    return SASolver(predictor, corrector, tau, low, high)


def _dpm_solver(options: Options) -> Solver:
    if "" not in options:
        return SingleStep("dpm-solver", _integer(options.get("order", "2"), "order"))
    if "order" in options:
        raise InputError("dpm-solver takes an order or a variant, not both")
    return _pick(
        "dpm-solver", {"2m": lambda: MultiStep("dpm-solver", 2), "3m": lambda: MultiStep("dpm-solver", 3)}, options
    )


def _dpm_plus(options: Options) -> Solver:
    kinds: dict[str, Callable[[], Solver]] = {
        "1s": lambda: SingleStep("dpm++", 1),
        "2s": lambda: SingleStep("dpm++", 2),
        "3s": lambda: SingleStep("dpm++", 3),
        "2m": lambda: MultiStep("dpm++", 2),
        "3m": lambda: MultiStep("dpm++", 3),
        "sde": SingleStepSde,
        "2m-sde": lambda: MultiStepSde(2),
        "3m-sde": lambda: MultiStepSde(3),
        "3m-sde-diffusers": lambda: MultiStepSde(3, shift=1.0),
    }
    return _pick("dpm++", kinds, {"": "2m", **options})


def _pick(name: str, kinds: dict[str, Callable[[], Solver]], options: Options) -> Solver:
    kind = options[""]
    if kind not in kinds:
        raise InputError(f"{name} has no variant {kind!r}; known: {', '.join(kinds)}")
    return kinds[kind]()


def _deis(options: Options) -> Solver:
    return Deis(_integer(options.get("order", "3"), "order"), options.get("variant", "t"))


def _ab(options: Options) -> Solver:
    return Deis(_integer(options.get("order", "2"), "order"), options.get("variable", "lambda"))


def _ipndm(options: Options) -> Solver:
    order = _integer(options.get("order", "4"), "order")
    kinds: dict[str, Callable[[], Solver]] = {"fixed": lambda: IPndm(order), "variable": lambda: Deis(order, "rho")}
    return _pick("ipndm", kinds, {"": options.get("variant", "fixed")})


def _unipc(options: Options) -> Solver:
    order = _integer(options.get("order", "2"), "order")
    return UniPC(order, options.get("variant", "bh2"), options.get("form", "x0"))


def _pfdiff(options: Options) -> Solver:
    k = _integer(options.get("k", "2"), "k")
    try:
        l = float(options.get("l", "1"))
    except ValueError:
        raise InputError(f"pfdiff takes a number for l, got {options['l']!r}") from None
    eta = _number(options.get("eta", "0"), "eta")
    return PFDiff(k, l, options.get("base", "ddim"), options.get("use", "both"), eta, _variances(options))


def _tada(options: Options) -> Solver:
    variables, order = (_integer(options.get(*one), one[0]) for one in (("variables", "2"), ("order", "3")))
    return Tada(variables, order, _number(options.get("scale", "1"), "scale"))


def _variances(options: Options) -> tuple[float, ...]:
    return tuple(_number(one, "each of x0_var") for one in options["x0_var"].split("/")) if "x0_var" in options else ()


# Name -> (maker, keys it takes; "" is a bare word).
SOLVERS: dict[str, tuple[Callable[[Options], Solver], tuple[str, ...]]] = {
    "ddim": (_ddim, ("eta", "eps")),
    "dpm-solver": (_dpm_solver, ("order", "")),
    "dpm++": (_dpm_plus, ("",)),
    "deis": (_deis, ("order", "variant")),
    "ab": (_ab, ("order", "variable")),
    "ipndm": (_ipndm, ("order", "variant")),
    "unipc": (_unipc, ("order", "variant", "form")),
    "euler": (_ddim, ()),
    "heun": (lambda options: Heun(), ()),
    "edm": (lambda options: Edm(), ()),
    "euler-a": (_euler_a, ("eta",)),
    "ddpm": (lambda options: Ddpm(options.get("variance", "small")), ("variance",)),
    "analytic-ddpm": (lambda options: AnalyticStep("ddpm", _variances(options)), ("x0_var",)),
    "analytic-ddim": (lambda options: AnalyticStep("ddim", _variances(options)), ("x0_var",)),
    "sa": (_sa, ("predictor", "corrector", "tau", "low", "high")),
    "tada": (_tada, ("variables", "order", "scale")),
    "lcm": (lambda options: Lcm(_number(options.get("scaling", "10"), "scaling")), ("scaling",)),
    "tcd": (lambda options: Tcd(_number(options.get("gamma", "0.3"), "gamma")), ("gamma",)),
    "consistency": (lambda options: Consistency(), ()),
    "pfdiff": (_pfdiff, tuple(f.name for f in fields(PFDiff))),
}


def parse_solver(text: str) -> Solver:
    """A solver from its string. Raises InputError naming what is known."""
    name, _, query = text.partition(":")
    if name not in SOLVERS:
        hint = did_you_mean(name, SOLVERS)
        raise InputError(f"unknown solver {text!r}; known: {', '.join(SOLVERS)} (for example pfdiff:k=2,l=1){hint}")
    make, known = SOLVERS[name]
    options: Options = {}
    for part in filter(None, query.split(",")):
        key, equals, value = part.partition("=")
        key, value = (key.strip(), value.strip()) if equals else ("", key.strip())
        if key not in known:
            takes = ", ".join(k or "a variant" for k in known) or "no options"
            raise InputError(f"solver {text!r}: unexpected {part!r}; {name} takes {takes}{did_you_mean(key, known)}")
        if key in options:
            raise InputError(f"solver {text!r}: {key or 'the variant'} is given twice")
        options[key] = value
    return make(options)


def _integer(text: str, key: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{key} must be a whole number, got {text!r}") from None


def _number(text: str, key: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{key} must be a number, got {text!r}") from None
