"""Classifier guidance (Dhariwal & Nichol, arXiv 2105.05233, algorithm 2) as part of the network's own graph.

    g = grad_x log p(y | x_t)          x0 <- clamp(x0) + s sigma_t^2 / alpha_t g

which is their eps <- eps - s sigma_t g, with x0 clipped before. With x0 = P x_t + Q out the network's own prediction is
moved by (change of x0) / Q, so that nothing is converted to and fro and s = 0 without a clip is the network, bit for
bit. Where alpha_t = 0 there is nothing to guide.

The gradient is traced once, in float32: `make_fx` follows autograd through the classifier and leaves plain operators,
which every exporter and backend takes. No parameter gets a gradient; that of a convolution is a transposed one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from ...engine.compiler.schedule import Discrete, Edm, Flow, Schedule, Vp, parse_schedule
from ...engine.contract.condition import Condition
from ...engine.contract.contract import Contract
from ...engine.errors import InputError
from ..sources.module_call import Normalised, load_factory
from ..to_onnx import named_line, quiet
from .options import NAME, ClassifierGuidance

if TYPE_CHECKING:
    from ..sources.from_module import ModuleSource

FASHION = "fashion"
EXAMPLE_BATCH = 3  # 0 and 1 would be taken for fixed


@dataclass(frozen=True)
class Opened:
    """A traced classifier, its tensors by name, how many classes it knows, and the input that names one."""

    guidance: ClassifierGuidance
    gradient: torch.fx.GraphModule
    tensors: tuple[tuple[str, Tensor], ...]
    classes: int
    condition: Condition


def open_classifier(guidance: ClassifierGuidance, contract: Contract) -> Opened:
    """The classifier, tried and traced. Raises InputError when it does not fit the network or cannot be traced."""
    module, labels = guidance.classifier, guidance.labels
    if isinstance(module, str) and module == FASHION:
        from ..zoo.fashion import CLASSES
        from ..zoo.fashion_guide import load_guide

        module, labels = load_guide(), labels or CLASSES
    elif isinstance(module, str):
        module = load_factory(module)[0]
    if not isinstance(module, nn.Module):
        raise InputError(f"guidance: classifier {module!r}, expected an nn.Module, 'file.py:factory' or '{FASHION}'")
    x = torch.zeros(EXAMPLE_BATCH, *contract.shape)
    t = torch.ones((EXAMPLE_BATCH,) if contract.time_rank else (), dtype=getattr(torch, contract.time_dtype))
    name = type(module).__name__
    modes = [(one, one.training) for one in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            try:
                logits = module(x, t)
            except Exception as error:  # whatever the user's forward raises
                raise InputError(
                    f"guidance: classifier {name} fails with x {list(x.shape)}, t {list(t.shape)} "
                    f"{contract.time_dtype} ({named_line(error)}); expected forward(x, t) -> logits"
                ) from error
            if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != EXAMPLE_BATCH:
                got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
                raise InputError(f"guidance: classifier {name} returns {got}, expected logits [batch, classes]")
            classes = logits.shape[1]
            shared = {one.name: one for one in contract.conditions}.get(guidance.target)
            if shared is not None and (shared.shape or not shared.dtype.startswith("int")):
                raise InputError(
                    f"guidance: target '{shared.name}' is {shared.dtype} {list(shared.shape)}, expected one integer "
                    "for each sample; name another target"
                )
            condition = shared or Condition(guidance.target, "int64", low=0, high=classes - 1, labels=labels)
            tensors = (*module.named_parameters(), *module.named_buffers())
            held = tuple((key, tensor.detach().clone()) for key, tensor in tensors)
            values = [value.float() if value.is_floating_point() else value for _, value in held]
            try:
                gradient = _traced(module, [key for key, _ in held], x, t, classes, values)
            except Exception as error:  # whatever an operator raises that has no gradient
                raise InputError(
                    f"guidance: the gradient of classifier {name} cannot be traced ({named_line(error)}); "
                    "forward must be differentiable tensor operations only"
                ) from error
    finally:
        for one, training in modes:
            one.training = training
    return Opened(guidance, gradient, held, classes, condition)


def _traced(
    module: nn.Module, names: list[str], x: Tensor, t: Tensor, classes: int, values: list[Tensor]
) -> torch.fx.GraphModule:
    """graph(x, t, target [B] int64, arange(classes), values) -> grad log p(target | x); 0 where target is no class."""
    from torch._decomp import decomposition_table
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def gradient(x: Tensor, t: Tensor, target: Tensor, numbers: Tensor, tensors: list[Tensor]) -> Tensor:
        held = dict(zip(names, tensors, strict=True))
        logits, pull, *_ = torch.func.vjp(lambda x: torch.func.functional_call(module, held, (x, t)).float(), x)
        wanted = (target[:, None] == numbers).float()
        return pull(wanted - torch.softmax(logits, 1) * wanted.sum(1, keepdim=True))[0]

    fakes = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)

    def open_batch(tensor: Tensor) -> Tensor:
        sizes = [DimDynamic.DUCK, *[DimDynamic.STATIC] * (tensor.ndim - 1)] if tensor.ndim else []
        return fakes.from_tensor(tensor, symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes))

    def fixed(tensor: Tensor) -> Tensor:
        sizes = [DimDynamic.STATIC] * tensor.ndim
        return fakes.from_tensor(tensor, symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes))

    batched = [open_batch(one) for one in (x, t, torch.zeros(len(x), dtype=torch.int64))]
    others = [fixed(torch.arange(classes)), [fixed(value) for value in values]]
    # Forward operators stay whole; the exporter has no rules for those of autograd.
    rules: dict[Any, Callable[..., Any]] = dict(decomposition_table)
    table = {operator: rule for operator, rule in rules.items() if "backward" in str(operator)}
    table[torch.ops.aten.convolution_backward.default] = _convolution_backward
    with quiet(), sdpa_kernel(SDPBackend.MATH):
        return make_fx(gradient, decomposition_table=table, tracing_mode="symbolic")(*batched, *others)


def _convolution_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Any,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    output_mask: list[bool],
) -> tuple[Tensor | None, None, None]:
    """The gradient with respect to x alone: the convolution turned round."""
    if not output_mask[0]:
        return None, None, None
    axes = range(len(stride))
    if transposed:
        out = torch.ops.aten.convolution(
            grad, weight, None, stride, padding, dilation, False, [0] * len(stride), groups
        )
        return out, None, None
    left_over = [
        int(x.shape[2 + i])
        - ((int(grad.shape[2 + i]) - 1) * stride[i] - 2 * padding[i] + dilation[i] * (int(weight.shape[2 + i]) - 1) + 1)
        for i in axes
    ]
    out = torch.ops.aten.convolution(grad, weight, None, stride, padding, dilation, True, left_over, groups)
    return out, None, None


@final
class ClassifierModule(nn.Module):
    """forward(x [B, *shape], t, conditions..., target [B] int64, guidance [B]) -> guided prediction, float32.

    The classifier's weights are parameters of this module and cast with it; it computes in float32.
    """

    alphas: Tensor
    sigmas: Tensor
    classes: Tensor

    def __init__(self, source: ModuleSource, opened: Opened) -> None:
        super().__init__()
        contract, guidance = source.contract, opened.guidance
        self.network = Normalised(source.module, source.call)
        self.gradient = opened.gradient
        self.weights = nn.ParameterList()
        self.is_weight: tuple[bool, ...] = tuple(value.is_floating_point() for _, value in opened.tensors)
        for index, (_, value) in enumerate(opened.tensors):
            if self.is_weight[index]:
                self.weights.append(nn.Parameter(value, requires_grad=False))
            else:
                self.register_buffer(f"constant_{index}", value)
        self.names = tuple(one.name for one in contract.conditions)
        self.conditions = (
            *contract.conditions,
            *([] if opened.condition.name in self.names else [opened.condition]),
            Condition(NAME, "float32", default=float(guidance.scale)),
        )
        self.target = opened.condition.name
        self.register_buffer("classes", torch.arange(opened.classes), persistent=False)
        self.clip = guidance.clip
        self.prediction = contract.prediction
        self.sigma_data = contract.sigma_data
        self.time_scale = contract.time_scale
        self.code = str(opened.gradient.code)  # part of the digest
        self.traced_on = "cpu"
        schedule = parse_schedule(contract.schedule)
        self.process = schedule
        if isinstance(schedule, Discrete):
            times = range(int(schedule.last) + 1)
            for name, values in (("alphas", schedule.alpha(list(times))), ("sigmas", schedule.sigma(list(times)))):
                self.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)

    def forward(self, x: Tensor, t: Tensor, /, **given: Tensor) -> Tensor:
        out = self.network(x, t, *(given[name] for name in self.names)).float()
        alpha, sigma = (one.reshape(-1, *[1] * (x.ndim - 1)) for one in self._levels(t))
        x_t, x0_from_x, x0_from_out = self._conversion(x.float(), alpha, sigma)
        # x0 is clipped before the guidance, as in ADM.
        change = torch.zeros_like(x_t)
        if self.clip is not None:
            x0 = x0_from_x * x_t + x0_from_out * out
            change = x0.clamp(-self.clip, self.clip) - x0
        scale = given[NAME].reshape(-1, *[1] * (x.ndim - 1))
        strength = torch.where(alpha > 0, sigma.square() / alpha.clamp(min=1e-20), torch.zeros_like(alpha))
        change = change + scale * strength * self._score(x_t, t, given[self.target])
        return out + change / x0_from_out

    def _score(self, x_t: Tensor, t: Tensor, target: Tensor) -> Tensor:
        """grad log p(target | x_t), zero for a target that is no class."""
        self._follow(x_t.device)
        weights = iter(self.weights)
        tensors = [
            next(weights).float() if floating else getattr(self, f"constant_{index}")
            for index, floating in enumerate(self.is_weight)
        ]
        return self.gradient(x_t, t, target, self.classes, tensors)

    def _follow(self, device: torch.device) -> None:
        """Constants that the trace made on the CPU are made where x is."""
        if self.traced_on == str(device):
            return
        for node in self.gradient.graph.nodes:
            if "device" in node.kwargs:
                node.kwargs = {**node.kwargs, "device": device}
        self.gradient.recompile()
        self.traced_on = str(device)

    def _levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t, float32 of the shape of t."""
        time = t.float() / self.time_scale
        process: Schedule = self.process
        match process:
            case Discrete():
                index = time.round().long().clamp(0, len(self.alphas) - 1)
                return self.alphas[index], self.sigmas[index]
            case Vp():
                log_alpha = -time.square() * (process.beta_max - process.beta_min) / 4 - time * process.beta_min / 2
                return log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()
            case Flow():
                return 1 - time, time
            case Edm():
                return torch.ones_like(time), (4 * time).exp() if self.prediction == "edm" else time
        raise InputError(f"guidance: classifier guidance has no rule for the schedule {type(process).__name__}")

    def _conversion(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x_t, and (P, Q) with x0 = P x_t + Q out. An EDM network is fed c_in x_t."""
        match self.prediction:
            case "eps":
                alpha = alpha.clamp(min=1e-12)
                return x, 1 / alpha, -sigma / alpha
            case "x0":
                return x, torch.zeros_like(alpha), torch.ones_like(alpha)
            case "v":
                total = alpha.square() + sigma.square()
                return x, alpha / total, -sigma / total
            case "flow":
                return x, 1 / (alpha + sigma), -sigma / (alpha + sigma)
            case "edm":
                total = sigma.square() + self.sigma_data**2
                return x * total.sqrt(), self.sigma_data**2 / total, sigma * self.sigma_data * total.rsqrt()
        raise InputError(f"guidance: classifier guidance has no rule for prediction {self.prediction}")
