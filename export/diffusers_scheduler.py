"""`pfdiff.PFDiffScheduler`: every solver of this project as a diffusers scheduler, by one assignment.

    pipe.scheduler = pfdiff.PFDiffScheduler.from_config(pipe.scheduler.config, solver="pfdiff:k=2,l=1")

`set_timesteps(N)` compiles the program of N network evaluations on diffusers' own times for this config (or on `grid`),
and each `step` executes one row of it (see `Program`): the B states stay here in float32, the pipeline holds
s_0, the network's next input. A row needs what the pipeline's loop gives it and nothing else, so guidance, latents,
epsilon, v, EDM and flow pipelines all work; what is combined is the output after guidance.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np
import torch

from ..engine.compiler.basis import PRECONDITIONED
from ..engine.compiler.compile import compile as compile_program
from ..engine.compiler.defaults import AUTO, BASIS, SOLVER
from ..engine.compiler.grid import make_grid
from ..engine.compiler.program import Program
from ..engine.compiler.schedule import parse_schedule
from ..engine.compiler.solvers import parse_solver
from ..engine.compiler.start import default_start, doubt_of_clean_start
from ..engine.errors import BackendError, InputError
from .choice.sampler_choice import EXACT, few_step_grid
from .convention import Convention
from .pipelines.running_program import Running, step_count
from .pipelines.scheduler_config import class_of, completed
from .pipelines.stochastic_classes import STOCHASTIC
from .sources.diffusers_config import convention_of

try:
    from diffusers.configuration_utils import ConfigMixin, FrozenDict, register_to_config
    from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin, SchedulerOutput
    from diffusers.utils.torch_utils import randn_tensor
except ImportError as error:
    raise BackendError(f"PFDiffScheduler needs diffusers ({error}); install it with: pip install diffusers") from None

if TYPE_CHECKING:
    from torch import Tensor

FLOW_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
EDM_SCHEDULERS = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")


@final
class PFDiffScheduler(SchedulerMixin, ConfigMixin):
    """A program's rows behind diffusers' scheduler interface.

    Its own options: solver, grid, basis, clip, t_start, end as in `pfdiff.compile`, each None for what the config of
    the pipeline's former scheduler says. Solver "auto" is the default sampler, on the few-step form of that scheduler's
    grid; any other solver, and grid "diffusers", has its exact times; schedule and prediction replace what is
    read from betas, shift and prediction_type. All other options are diffusers' and mean what they mean there.

    N inference steps are N network evaluations, whatever the solver. `timesteps` [N]: what the pipeline feeds, int64 on
    discrete schedules, T sigma on flow, ln(sigma)/4 on EDM. Raises InputError (a ValueError) on every misuse.
    """

    _compatibles: ClassVar[list[str]] = [
        *(one.name for one in KarrasDiffusionSchedulers),
        *FLOW_SCHEDULERS,
        *EDM_SCHEDULERS,
        *STOCHASTIC,
    ]
    order = 1

    @register_to_config
    def __init__(
        self,
        solver: str = AUTO,
        grid: str | Sequence[float] | None = None,
        basis: str | None = None,
        clip: float | None = None,
        t_start: float | None = None,
        end: str | None = None,
        schedule: str | None = None,
        prediction: str | None = None,
        scheduler_class: str | None = None,
        original_inference_steps: int | None = None,
        timestep_scaling: float | None = None,
        clip_denoised: bool | None = None,
        algorithm_type: str | None = None,
        solver_type: str | None = None,
        # Of diffusers' schedulers.
        num_train_timesteps: int = 1000,
        beta_start: float | None = None,
        beta_end: float | None = None,
        beta_schedule: str | None = None,
        trained_betas: Sequence[float] | None = None,
        prediction_type: str | None = None,
        timestep_spacing: str | None = None,
        timestep_type: str | None = None,
        steps_offset: int = 0,
        set_alpha_to_one: bool | None = None,
        final_sigmas_type: str | None = None,
        rescale_betas_zero_snr: bool = False,
        snr_shift_scale: float | None = None,
        clip_sample: bool = False,
        clip_sample_range: float | None = None,
        thresholding: bool = False,
        solver_order: int | None = None,
        predictor_order: int | None = None,
        corrector_order: int | None = None,
        lambda_min_clipped: float | None = None,
        scale_factors: Sequence[float] | None = None,
        predict_x0: bool | None = None,
        use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False,
        use_lu_lambdas: bool | None = False,
        use_flow_sigmas: bool | None = False,
        flow_shift: float | None = None,
        shift: float | None = None,
        shift_terminal: float | None = None,
        use_dynamic_shifting: bool = False,
        time_shift_type: str | None = None,
        invert_sigmas: bool = False,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        sigma_data: float | None = None,
        sigma_schedule: str | None = None,
        rho: float | None = None,
    ) -> None:
        # A key that is not said is left out: written down as null it would stop other schedulers from reading the file.
        said = {key: value for key, value in dict(self.config).items() if value is not None}
        self._internal_dict = FrozenDict(said)
        self._convention = convention_of(said, mu=1.0)
        self._solver = parse_solver((self._convention.solver or SOLVER) if solver == AUTO else solver)
        self._process = process = parse_schedule(self._convention.schedule)
        self._program: Program | None = None
        self._grid: tuple[float, ...] = ()
        self._begin: int | None = None
        self._step: int | None = None
        self._running: Running | None = None
        self.num_inference_steps: int | None = None
        self.timesteps: Tensor = torch.tensor([process.last * self._convention.time_scale])
        self.init_noise_sigma: float = process.prior_scale(process.last)

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """A scheduler with the times, schedule and prediction of any scheduler's `config`; kwargs: our options.

        The config is read as its own class reads it, which `scheduler_class` keeps.
        """
        if isinstance(config, Mapping):
            config = {key: value for key, value in config.items() if key != "_use_default_values"}
            if "solver" not in config:
                config["_class_name"] = config["scheduler_class"] = class_of(config)
                if not kwargs.get("schedule"):
                    config = completed(config, kwargs)
        return super().from_config(config, return_unused_kwargs, **kwargs)

    @property
    def program(self) -> Program | None:
        """The program that `set_timesteps` compiled; None before."""
        return self._program

    @property
    def step_index(self) -> int | None:
        """How many entries of `timesteps` are done; None before the first."""
        return self._step

    @property
    def begin_index(self) -> int | None:
        """The entry of `timesteps` at which the pipeline starts; None for the first."""
        return self._begin

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at this entry of `timesteps`, from a sample of that time (image to image). Raises InputError."""
        steps = self.num_inference_steps
        if begin_index < 0 or (steps is not None and begin_index >= steps):
            raise InputError(f"begin_index {begin_index}, expected 0 up to the number of steps, {steps}, less 1")
        self._begin = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Compile the program of `num_inference_steps` network evaluations and forget all states.

        timesteps, sigmas: own values, falling, in diffusers' units, in place of the config's spacing; sigmas are not
        used when `grid` is set, as pipelines of flow networks always give some. mu: of dynamic shifting.
        Solvers that walk more points than they evaluate read the line through them, so `timesteps` afterwards may
        differ from those given. Raises InputError.
        """
        given = timesteps if timesteps is not None else [one for one in sigmas if one > 0] if sigmas is not None else ()
        if num_inference_steps is None and not len(given):
            raise InputError("num_inference_steps is missing; give the number of evaluations, or timesteps or sigmas")
        steps = len(given) if num_inference_steps is None else step_count(num_inference_steps)
        if timesteps is not None and sigmas is not None:
            raise InputError("got timesteps and sigmas; give one of them")
        if len(given) not in (0, steps) or steps < 1:
            raise InputError(f"got {steps} steps and {len(given)} timesteps or sigmas; give as many, at least one")
        convention = self._convention = convention_of(self.config, mu)
        self._process = process = parse_schedule(convention.schedule)
        self._grid = self._points(steps, timesteps, sigmas)
        self._program = program = self._compiled(steps, self._grid)
        if doubt := doubt_of_clean_start(program):
            warnings.warn(doubt, stacklevel=2)
        fed = program.network_times * convention.time_scale
        self.timesteps = torch.from_numpy(fed.astype(np.int64 if process.discrete else np.float32)).to(device)
        self.num_inference_steps = steps
        self.init_noise_sigma = float(program.init[0])
        self._begin = self._step = self._running = None

    def _points(
        self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None
    ) -> tuple[float, ...]:
        """The times that the solver walks, the end's included."""
        config, convention, process = self.config, self._convention, self._process
        grid: Any = config.get("grid")
        start = config.get("t_start")
        if grid is None and config["solver"] == AUTO:
            grid = few_step_grid(convention) if convention.solver is None else EXACT
        # Times that the pipeline gives come first; sigmas, which those of flow networks always give, before no rule.
        if timesteps is not None or grid == EXACT or (config.get("grid") is None and sigmas is not None):
            times = None if timesteps is None else _times_of(timesteps, convention)
            grid = convention.walk(self._solver, steps, times=times, sigmas=sigmas)
        elif grid is None:
            grid = convention.grid if start is not None else convention.walk(self._solver, steps)
        elif start is None and isinstance(grid, str) and config["solver"] == AUTO:
            start = default_start(convention.schedule, convention.prediction, convention.clip)
        start = start if isinstance(grid, str) else None
        intervals = self._solver.intervals(steps)
        points = make_grid(grid, process, intervals, start, convention.end, self._solver.evaluations).tolist()
        # A rule's last time misses the schedule's first by a rounding where it is bent.
        return (*(max(t, process.first) for t in points[:-1]), points[-1])

    # What pipelines read of other schedulers.
    @property
    def sigmas(self) -> Tensor:
        """sigma / alpha, or a flow's sigma, at `timesteps` and at the end, float32 [N + 1]; before, at all times."""
        process = self._process
        if self._program is not None:
            times = np.append(self._program.times, self._grid[-1])
        else:
            falling = np.arange(process.last, -1, -1) if process.discrete else np.array([process.last])
            times = np.append(falling, process.clean)
        sigma = process.sigma(times)
        if process.velocity != "flow":
            sigma = sigma / np.maximum(process.alpha(times), 1e-12)
        return torch.from_numpy(sigma.astype(np.float32))

    @property
    def alphas_cumprod(self) -> Tensor:
        """alpha_t^2 of all T times, float32 [T]. Raises AttributeError on continuous schedules."""
        process = self._process
        if not process.discrete:
            raise AttributeError(f"the schedule {self._convention.schedule} is continuous and has no alphas_cumprod")
        return torch.from_numpy((process.alpha(np.arange(process.last + 1)) ** 2).astype(np.float32))

    @property
    def betas(self) -> Tensor:
        """1 - alphabar_t / alphabar_t-1 of all T times, float32 [T]. Raises AttributeError on continuous schedules."""
        alphas_cumprod = self.alphas_cumprod.double()
        before = torch.cat((torch.ones(1, dtype=torch.float64), alphas_cumprod[:-1]))
        return (1 - alphas_cumprod / before).float()

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """What the network is fed: c_in * sample for EDM networks, else the sample itself."""
        if self._convention.prediction not in PRECONDITIONED:
            return sample
        running, n = self._at(timestep)
        c_in = float(running.program.c_in[n])
        return sample if c_in == 1 else sample * c_in

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        generator: Any = None,
        return_dict: bool = True,
    ) -> Any:
        """One row of the program; SchedulerOutput with `prev_sample`, or a tuple of it without `return_dict`.

        model_output: [B, C, ...] after guidance; where it has 2 C channels the second half, a variance, is dropped.
        sample: what the last step returned, or an edit of it, which is kept; the first is the noise. Stochastic solvers
        draw from `generator`, one or a list of as many as samples, like diffusers' schedulers. eta is part of the
        solver's string (ddim:eta=1, tcd:gamma=0.3) and must be 0 here. A clipped x0 is always used for both terms, as
        use_clipped_model_output=True does.
        """
        if eta:
            raise InputError(
                f"eta {eta:g}, expected 0; say it in the solver: 'ddim:eta={eta:g}' or 'tcd:gamma={eta:g}'"
            )
        running, n = self._at(timestep)
        if model_output.ndim > 1 and model_output.shape[1] == 2 * sample.shape[1]:
            model_output = model_output[:, : sample.shape[1]]
        if model_output.shape != sample.shape:
            raise InputError(f"model_output {list(model_output.shape)}, expected the sample's {list(sample.shape)}")
        xi, draws = None, running.program.draws
        if draws and n <= draws[-1]:  # as diffusers' SA-Solver, which draws at steps that add nothing too
            xi = randn_tensor(
                model_output.shape, generator=generator, device=model_output.device, dtype=model_output.dtype
            )
        result = running.advance(n, model_output, sample, xi)
        self._step = self._index() + 1
        return SchedulerOutput(prev_sample=result) if return_dict else (result,)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha_t x_0 + sigma_t eps at `timesteps` [B] or [1], in the units of `self.timesteps`; dtype of x_0."""
        process = parse_schedule(self._convention.schedule)
        times = _times_of(np.atleast_1d(torch.as_tensor(timesteps).cpu().numpy()).tolist(), self._convention)
        # Float32 timesteps miss the ends of a continuous schedule by a rounding.
        times = np.clip(times, process.first, process.last)
        shape = (-1, *(1 for _ in original_samples.shape[1:]))
        alpha, sigma = (
            torch.from_numpy(one.reshape(shape)).to(original_samples.device, torch.float32)
            for one in (process.alpha(times), process.sigma(times))
        )
        return (alpha * original_samples + sigma * noise).to(original_samples.dtype)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """`add_noise` under the name that pipelines of flow networks use."""
        return self.add_noise(sample, noise, timestep)

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])

    # Where the loop is.
    def _index(self) -> int:
        return self._step or 0

    def _at(self, timestep: Any) -> tuple[Running, int]:
        """The program in progress and its row for `timestep`; the first call decides where it starts."""
        if self._program is None:
            raise InputError("no program yet; call set_timesteps first")
        if self._step is None or self._running is None:
            self._step = self._begin if self._begin is not None else self._entry(timestep)
            self._running = Running(self._started(self._program, self._step))
        if self._step >= len(self.timesteps):
            raise InputError(f"all {len(self.timesteps)} steps are done; call set_timesteps before the next sample")
        self._check_next(timestep, self.timesteps[self._step])
        return self._running, self._step - (len(self.timesteps) - self._running.program.nfe)

    def _check_next(self, timestep: Any, expected: Tensor) -> None:
        """Raises InputError when a step is taken at another time than the next."""
        if timestep is None:
            return
        value = torch.as_tensor(timestep).reshape(-1)[0].to(expected.device)
        if abs(float(value) - float(expected)) > 1e-4 * max(1.0, abs(float(expected))):
            raise InputError(
                f"timestep {value.item():g}, expected {expected.item():g}, the next of the scheduler's timesteps; loop "
                "over them in order, from set_begin_index on"
            )

    def _entry(self, timestep: Any) -> int:
        if timestep is None:
            return 0
        value = torch.as_tensor(timestep).reshape(-1)[0].to(self.timesteps.device)
        found = torch.nonzero(self.timesteps == value)
        if len(found) == 0:
            raise InputError(
                f"timestep {value.item():g} is none of {self.timesteps.tolist()}; loop over scheduler.timesteps"
            )
        return int(found[0])

    def _started(self, program: Program, entry: int) -> Program:
        """The program that starts at entry `entry` and evaluates at the remaining times: the same walk from there."""
        if entry == 0:
            return program
        rest = program.nfe - entry
        length = self._solver.intervals(rest) + (len(self._grid) - 1 - self._solver.intervals(program.nfe))
        late = self._compiled(rest, (float(program.times[entry]), *self._grid[-length:]))
        if not np.array_equal(late.times, program.times[entry:]):
            raise InputError(f"{self._solver} cannot start at step {entry}; choose a strength that starts at another")
        return late

    def _compiled(self, nfe: int, grid: tuple[float, ...]) -> Program:
        convention, config = self._convention, self.config
        stored = BASIS if config["solver"] == AUTO and convention.solver is None else convention.basis
        return compile_program(
            str(self._solver),
            convention.schedule,
            nfe,
            grid=grid,
            basis=config.get("basis") or stored,
            prediction=convention.prediction,
            clip=convention.clip,
            sigma_data=convention.sigma_data,
        )


def _times_of(timesteps: Sequence[float], convention: Convention) -> list[float]:
    """The schedule's times that a pipeline's timesteps mean."""
    if convention.prediction in PRECONDITIONED:  # c_noise = ln(sigma) / 4
        return [math.exp(4 * float(value) / convention.time_scale) for value in timesteps]
    return [float(value) / convention.time_scale for value in timesteps]
