"""A user's network, whatever it came as, behind one contract.

    Network(module)                 an nn.Module with forward(x [B, *shape], t [B], ...) -> prediction
    Network("file.py:factory")      factory() returns such a module
    Network("unet.onnx")            an ONNX file from anybody
    Network("stable-diffusion")     a diffusers folder, and Network(pipeline), an object: see diffusers_source.py
    Network("fashion")              a shipped network

`network.write(folder)` makes network.onnx of it, compared with the source before it is accepted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from ..engine.compiler.schedule import named_by_content, parse_schedule
from ..engine.contract import PRECISIONS, PREDICTIONS, Condition, Contract
from ..engine.errors import InputError
from . import zoo
from .sources.from_diffusers import Asked, open_diffusers

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from torch import Tensor, nn

    from .decoders.from_module import ModuleDecoder
    from .decoders.from_onnx import OnnxDecoder
    from .decoders.options import Decoder
    from .guidance.in_onnx import GuidedOnnx
    from .guidance.options import Guidance
    from .sources.diffusers_config import Convention
    from .sources.from_module import ModuleSource
    from .sources.from_onnx import OnnxSource
    from .to_onnx import Progress

FORMAT = "pfdiff network 1"  # part of every digest: changes when the same source would be exported otherwise


@final
class Network:
    """A score network and its contract.

    source       an nn.Module, "file.py:factory", an ONNX file, a shipped network's name, a diffusers folder or pipeline
    shape        of one sample, without the batch; an ONNX file, a diffusers config or `example` may say it
    schedule     the noise schedule it was trained with, such as "cosine:300"; a diffusers scheduler may say it
    prediction   eps, x0, v, flow or edm (the raw F of EDM preconditioning); likewise
    conditions   further inputs by name: a Condition, or for a module an example tensor [B, ...]
    input, time  names of the inputs for x and the time, where they cannot be guessed
    output       name (ONNX, dict) or index (tuple) of the prediction among several outputs
    time_scale   the network is fed schedule time * time_scale; 1 unless the source says otherwise
    time_dtype   float32 or int64; found by trying when None
    learned_sigma  the output has twice the channels, of which the first half is the prediction
    data_range   what `images` turns into 0..255, and `tune` compares within; (-1, 1) unless the source says otherwise
    example      example tensors by parameter name, for shape, time and conditions of a module
    decoder      of a latent model: a Decoder (decoder.py) or what it takes alone, such as an AutoencoderKL or a text
                 "vae.py:load"; `engine.images` decodes, and `data_range` is that of the images
    guidance     ClassifierFree, ClassifierGuidance (guidance.py) or a text: "label=10", "classifier=fashion";
                 the scale becomes the condition `guidance`

    Raises InputError, one line, for everything that does not fit. `contract` is what network.onnx will take,
    `convention` the times, clip and end of the diffusers scheduler that came with it, or None.
    """

    def __init__(
        self,
        source: nn.Module | str | Path | DiffusionPipeline,
        *,
        shape: tuple[int, ...] | None = None,
        schedule: str | None = None,
        prediction: str | None = None,
        conditions: Mapping[str, Condition | Tensor] | None = None,
        input: str | None = None,
        time: str | None = None,
        output: str | int | None = None,
        time_scale: float | None = None,
        time_dtype: str | None = None,
        learned_sigma: bool = False,
        sigma_data: float | None = None,
        data_range: tuple[float, float] | None = None,
        name: str | None = None,
        example: Mapping[str, Tensor] | None = None,
        guidance: Guidance | str | None = None,
        decoder: Decoder | nn.Module | str | Path | None = None,
    ) -> None:
        conditions = dict(conditions or {})
        shape = None if shape is None else tuple(shape)
        text = str(source) if isinstance(source, (str, Path)) else None
        known, told = None, conditions
        if text in zoo.NAMES:
            known = zoo.load(text)
        elif input is None and time is None and output is None:  # with these a diffusers model is a module like any
            known, told = open_diffusers(source, Asked(shape, schedule, prediction, conditions)), {}
        if text is not None and known is None and not (text.endswith(".onnx") or ".py:" in text):
            raise InputError(f"network '{text}': not known; expected {_FORMS}")
        if known is not None:
            source, name, shape = known.module, name or known.name, shape or known.shape
            schedule, prediction = schedule or known.schedule, prediction or known.prediction
            conditions = {one.name: one for one in known.conditions} | told
        words = {
            "name": name or (type(source).__name__ if text is None else _name_of(text)),
            "schedule": schedule,
            "prediction": prediction,
            "time_scale": _first(time_scale, known and known.time_scale, 1.0),
            "time_dtype": time_dtype,
            "learned_sigma": learned_sigma or (known is not None and known.learned_sigma),
            "sigma_data": _first(sigma_data, known and known.sigma_data, 0.5),
            "data_range": data_range or (known.data_range if known and decoder is None else (-1.0, 1.0)),
        }
        self.convention: Convention | None = known and known.convention
        _check_words(words, shape)
        words["schedule"] = named_by_content(words["schedule"])
        roles: dict[str, Any] = {"shape": shape, "input": input, "time": time, "output": output}
        self._source: ModuleSource | OnnxSource | GuidedOnnx = _open(
            source, words, roles, conditions, dict(example or {})
        )
        if guidance is not None:
            from .guidance.apply import guided

            self._source = guided(self._source, guidance)
        self.decoder: ModuleDecoder | OnnxDecoder | None = None
        decoder = known.decoder if decoder is None and known is not None else decoder
        if decoder is not None:
            self.decoder = open_decoder(decoder, self.contract)

    @property
    def contract(self) -> Contract:
        """What network.onnx will take and predict, at precision fp32 (an ONNX file: its own precision)."""
        return self._source.contract

    @cached_property
    def digest(self) -> str:
        """sha256 hex of weights, code and contract, without the decoder's; nothing is exported.

        Later changes of the module do not show.
        """
        described = json.dumps(self.contract.to_dict(), sort_keys=True).encode()
        return hashlib.sha256(b"|".join((FORMAT.encode(), described, self._source.content()))).hexdigest()

    def write(
        self, folder: Path, precision: str = "fp32", progress: Progress | None = None, *, external: bool | None = None
    ) -> Contract:
        """Write network.onnx into the existing `folder` and compare it with the source; the contract of the file.

        `external` puts the weights into network.onnx.data (None: above 1 GiB). Raises InputError when the network
        cannot be exported, differs from its source, or returns NaN; nothing is left behind then.
        """
        if precision not in PRECISIONS:
            raise InputError(f"precision '{precision}', expected one of {', '.join(PRECISIONS)}")
        path = Path(folder) / "network.onnx"
        if progress:
            progress(f"exporting {self.contract.name} to ONNX ({precision})")
        try:
            return self._source.write(path, precision, external=external)
        except BaseException:
            for one in (path, path.with_name("network.onnx.data")):
                one.unlink(missing_ok=True)
            raise

    def evaluate(self, x: Tensor, t: Any, conditions: Mapping[str, Any] | None = None) -> Tensor:
        """The prediction [B, *shape] float32 of the source itself, in float32.

        x: [B, *shape] on any device. t: a number or [B], in the network's own time (`time_scale` applied).
        conditions: by name, as `Condition.values` takes them. Raises InputError on a wrong shape or name.
        """
        import torch

        from .check import Case

        contract = self.contract
        if tuple(x.shape[1:]) != contract.shape:
            raise InputError(f"x is {list(x.shape)}, expected [batch, {', '.join(map(str, contract.shape))}]")
        given = contract.by_name(conditions or {})
        fed = tuple(_as_array(one.values(_as_array(given.get(one.name)), len(x))) for one in contract.conditions)
        times = np.asarray(_as_array(t), dtype=contract.time_dtype)
        times = np.broadcast_to(times, (len(x),)).copy() if contract.time_rank else times.reshape(-1)[:1].reshape(())
        case = Case(np.ascontiguousarray(_as_array(x.float())), times, fed)
        return torch.from_numpy(self._source.evaluate(case)).to(x.device)


def _name_of(text: str) -> str:
    """`stem` of a file or a folder, `stem-factory` of "file.py:factory": one file may make several networks."""
    file, separator, factory = text.rpartition(".py:")
    return f"{Path(file).name}-{factory}" if separator else Path(text).stem


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


def _as_array(value: Any) -> Any:
    return value.detach().cpu().numpy() if hasattr(value, "detach") else value


def _check_words(words: dict[str, Any], shape: tuple[int, ...] | None) -> None:
    """Everything said of the network that needs no look at it, so that mistakes show before any work."""
    name = words["name"]
    if words["schedule"] is None:
        raise InputError(f"network '{name}': the schedule is missing; give schedule= (--schedule linear:1000)")
    if words["prediction"] is None:
        raise InputError(
            f"network '{name}': what it predicts is missing; give prediction= (--prediction {'|'.join(PREDICTIONS)})"
        )
    Contract(**{**words, "shape": (1,) if shape is None else shape, "time_dtype": words["time_dtype"] or "float32"})
    parse_schedule(words["schedule"])


def _open(
    source: Any,
    words: dict[str, Any],
    roles: dict[str, Any],
    conditions: dict[str, Condition | Tensor],
    example: dict[str, Tensor],
) -> ModuleSource | OnnxSource:
    for name, one in conditions.items():
        if isinstance(one, Condition) and one.name != name:
            raise InputError(f"condition '{name}' is described as '{one.name}'; use one name")
    from .sources.from_module import ModuleSource

    if not isinstance(source, (str, Path)):
        from torch import nn

        if not isinstance(source, nn.Module):
            raise InputError(f"network: got {type(source).__name__}, expected an nn.Module, a pipeline or {_FORMS}")
        return ModuleSource(source, b"", words, **roles, conditions=conditions, example=example)
    text = str(source)
    if text.endswith(".onnx"):
        from .sources.from_onnx import OnnxSource

        for name, one in conditions.items():
            if not isinstance(one, Condition):
                raise InputError(f"condition '{name}' of an ONNX file: got {type(one).__name__}, expected a Condition")
        return OnnxSource(Path(text), words, **roles, conditions=conditions)  # type: ignore[arg-type]
    from .sources.module_call import load_factory

    module, code = load_factory(text)
    return ModuleSource(module, code, words, **roles, conditions=conditions, example=example)


def open_decoder(decoder: Decoder | nn.Module | str | Path, network: Contract) -> ModuleDecoder | OnnxDecoder:
    """The decoder fitted to the samples of `network`. Raises InputError, one line, when it does not fit."""
    from torch import nn

    from .decoders.from_module import ModuleDecoder
    from .decoders.options import USAGE, Decoder, parse_decoder

    words = decoder if isinstance(decoder, Decoder) else Decoder(decoder)
    if words is not decoder and isinstance(decoder, str):
        words = parse_decoder(decoder)
    source = words.source
    if isinstance(source, nn.Module):
        return ModuleDecoder(source, b"", words, network)
    if not isinstance(source, (str, Path)):
        raise InputError(f"decoder: got {type(source).__name__}, expected {USAGE}")
    if str(source).endswith(".onnx"):
        from .decoders.from_onnx import OnnxDecoder

        return OnnxDecoder(Path(source), words, network)
    if ".py:" in str(source):
        from .sources.module_call import load_factory

        module, code = load_factory(str(source))
        return ModuleDecoder(module, code, words, network)
    raise InputError(f"decoder '{source}': not known; expected {USAGE}")


_FORMS = f"a path ending in .onnx, file.py:factory, a diffusers folder, or a shipped network ({', '.join(zoo.NAMES)})"
