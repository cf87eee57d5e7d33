"""Does the network's time run the way its description says? Noised zeros tell, without any data.

With x_0 = 0 the state is x_t = sigma_t eps, and a network that has learned anything predicts a part of eps:

    <out, eps> / <eps, eps>  is about 1 for `eps` and `flow`, about alpha_t for `v`

A network whose time or sign is the other way round predicts the reverse at the noisiest time or in the middle. An
untrained one predicts neither, and nothing is said of it.

A flow network whose time and sign both run the other way is noticed in the middle alone, where it predicts
-(1 - s^2) / (1 + s^2) of eps for normal data of deviation s: below REVERSED[1] for s < 0.42. With 1 / s in place of s
it would be a right one, so more cannot be told without data. Samples of few numbers are not asked there: zero may be
far from all of their data, and a right network then predicts the reverse as well.

The raw F of an EDM network predicts next to nothing of eps at its largest sigma (arXiv 2206.00364, equation 7 and
section 5). A denoiser D(x, sigma), which is fed c_in x and c_noise in its place, gives back a part of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..engine.compiler.schedule import parse_schedule
from ..engine.contract.contract import Contract
from ..engine.errors import InputError
from .check import Array, TrialInputs, random_condition

REVERSED = (-1.3, -0.7)  # the share of eps that a reversed network predicts
RETURNED = 0.1  # the share of eps above which it is no raw F
AGAINST = -0.8  # the cosine between such a prediction and eps, at most
FEW = 64  # numbers of a sample


def doubt_of_time(contract: Contract, evaluate: Callable[[TrialInputs], Array]) -> str | None:
    """One line where the prediction points against the noise; None where nothing is wrong or can be said."""
    if contract.prediction not in ("eps", "flow", "edm"):
        return None
    process, generator = parse_schedule(contract.schedule), np.random.default_rng(0)
    batch, denoiser = contract.fixed_batch or 2, contract.prediction == "edm"
    middle = float(process.time_from_lambda(0.0))
    last_alone = denoiser or math.prod(contract.shape) < FEW
    for time in (process.last, round(middle) if process.discrete else middle)[: 1 if last_alone else 2]:
        noise = generator.standard_normal((batch, *contract.shape), dtype=np.float32)
        scale = contract.time_scale
        asked = math.log(time) / 4 if denoiser else time
        fed = contract.feed_times([round(asked * scale) / scale if contract.time_dtype == "int64" else asked])
        t = np.resize(fed, batch) if contract.time_rank else np.array(fed[0])
        conditions = tuple(random_condition(one, batch, generator) for one in contract.conditions)
        x = (noise * (1.0 if denoiser else process.sigma(time))).astype(np.float32)
        out = evaluate(TrialInputs(x, t, conditions))
        if out.shape != noise.shape:
            raise InputError(
                f"network '{contract.name}' returns {list(out.shape)} for {list(noise.shape)}; it must treat every "
                "sample alike"
            )
        product, length = float(np.vdot(out, noise)), float(np.linalg.norm(noise))
        share, cosine = product / length**2, product / (length * float(np.linalg.norm(out)) or 1.0)
        if denoiser and share > RETURNED and cosine > -AGAINST:
            return (
                f"network '{contract.name}': it gives {share:.2f} of the noise back at sigma {time:g}, EDM's raw F "
                "next to nothing; a denoiser D(x, sigma) is schedule edm with prediction x0"
            )
        if REVERSED[0] < share < REVERSED[1] and cosine < AGAINST:
            return (
                f"network '{contract.name}': it predicts {share:.2f} of the noise at time {time:g}, expected about 1: "
                "its time or its sign seems to run the other way; see time_map (1-t) and prediction (-flow)"
            )
    return None
