"""A source with guidance in its graph is a source again: the kinds of guidance put onto the kinds of network."""

from __future__ import annotations

from ...engine.errors import InputError
from ..sources.from_module import ModuleSource
from ..sources.from_onnx import OnnxSource
from ..sources.mapped_onnx import MappedOnnx
from ..sources.wrapped import wrapped
from .classifier import ClassifierModule, open_classifier
from .in_module import ClassifierFreeModule
from .in_onnx import GuidedOnnx
from .options import NAME, USAGE, ClassifierFree, ClassifierGuidance, Guidance, Halves, parse_guidance

Opened = ModuleSource | OnnxSource | MappedOnnx
Source = Opened | GuidedOnnx


def guide(source: Opened, guidance: Guidance | str) -> Source:
    """The guided network as another source. Raises InputError when the guidance does not fit the network."""
    if isinstance(guidance, str):
        guidance = parse_guidance(guidance)
    if not isinstance(guidance, (ClassifierFree, ClassifierGuidance)):
        raise InputError(
            f"guidance: got {type(guidance).__name__}, expected ClassifierFree, ClassifierGuidance or a text: {USAGE}"
        )
    contract = source.contract
    if any(one.name == NAME for one in contract.conditions):
        raise InputError(
            f"network '{contract.name}' has an input '{NAME}' of its own: give it as a condition and leave guidance= "
            "out, or rename that input"
        )
    if isinstance(guidance, ClassifierFree):
        plan = Halves(guidance, contract)
        if not isinstance(source, ModuleSource):
            return GuidedOnnx(source, plan)
        return wrapped(source, ClassifierFreeModule(source, plan), plan.conditions)
    if not isinstance(source, ModuleSource):
        raise InputError(
            f"network '{contract.name}' is an ONNX file, and classifier guidance is exported together with an "
            "nn.Module; give the module, or use classifier-free guidance"
        )
    module = ClassifierModule(source, open_classifier(guidance, contract))
    return wrapped(source, module, module.conditions)
