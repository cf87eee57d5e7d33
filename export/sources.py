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
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from ..engine.contract import PRECISIONS, PREDICTIONS, Condition, Contract
from ..engine.errors import InputError
from ..engine.schedule import parse_schedule
from . import zoo
from .diffusers_source import Asked, open_diffusers

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from torch import Tensor, nn

    from .check import Array, Case
    from .decoder import Decoder, ModuleDecoder
    from .diffusers_config import Convention
    from .guidance import Guidance
    from .guided_onnx import GuidedOnnx
    from .onnx_decoder import OnnxDecoder
    from .onnx_source import OnnxSource

Progress = Callable[[str], None]
FORMAT = "pfdiff network 1"  # part of every digest: changes when the same source would be exported otherwise


@final
class ModuleSource:
    """An nn.Module, how to call it, and the contract of the network.onnx made from it."""

    def __init__(
        self,
        module: nn.Module,
        code: bytes,
        words: Mapping[str, Any],
        *,
        shape: tuple[int, ...] | None,
        input: str | None,
        time: str | None,
        output: str | int | None,
        conditions: Mapping[str, Condition | Tensor],
        example: Mapping[str, Tensor],
    ) -> None:
        from .module_source import Call, read_conditions, read_signature

        self.module: nn.Module = getattr(module, "_orig_mod", module)  # what torch.compile wrapped
        self._code = code
        extra = {name: one for name, one in example.items() if name not in ("x", "t", input, time)}
        given = {**extra, **conditions}
        parameters, _ = read_signature(self.module, input, time, tuple(conditions))
        given = {name: one for name, one in given.items() if name not in parameters[:2]}
        parameters, positional = read_signature(self.module, input, time, tuple(given))
        x, t = (example.get(name, example.get(short)) for name, short in zip(parameters, ("x", "t"), strict=False))
        if shape is None:
            if x is None:
                raise InputError(
                    f"network '{words['name']}': the sample's shape is missing; give shape= (--shape 3x64x64)"
                )
            shape = tuple(x.shape[1:])
        channels = shape[0] if words["learned_sigma"] else None
        self.call = Call(parameters, positional, output, channels)
        contract = Contract(
            shape=shape,
            conditions=read_conditions(self.module, parameters[2:], given),
            time_rank=1 if t is None else min(t.ndim, 1),
            **{**words, "time_dtype": "float32"},
        )
        asked = words["time_dtype"]
        if asked is None and t is not None:
            asked = "float32" if t.is_floating_point() else "int64"
        self.contract = self._tried(contract, [asked] if asked else ["float32", "int64"])

    def _tried(self, contract: Contract, time_dtypes: list[str]) -> Contract:
        """The contract with the first time dtype that forward accepts, and label ranges from embedding tables."""
        from .module_source import probe
        from .to_onnx import first_line

        failures: list[Exception] = []
        for dtype in time_dtypes:
            contract = replace(contract, time_dtype=dtype)
            try:
                found, tables = probe(self.module, self.call, contract)
                break
            except InputError:
                raise
            except Exception as error:  # whatever the user's forward raises
                failures.append(error)
        else:
            shapes = [f"x {[2, *contract.shape]}", f"t {[2] if contract.time_rank else []} {' or '.join(time_dtypes)}"]
            shapes += [f"{one.name} {[2, *one.shape]} {one.dtype}" for one in contract.conditions]
            raise InputError(
                f"network '{contract.name}': forward failed with {', '.join(shapes)} "
                f"({first_line(failures[0])}); correct shape=, conditions= or time_dtype="
            ) from failures[0]
        single, double = [2, *contract.shape], [2, 2 * contract.shape[0], *contract.shape[1:]]
        wanted = double if contract.learned_sigma else single
        if found != wanted:
            hint = "it also predicts a variance: give learned_sigma=True (--learned-sigma)"
            hint = hint if found == double else "correct shape=, output= or learned_sigma="
            raise InputError(f"network '{contract.name}': forward returns {found}, expected {wanted}; {hint}")
        ranged = (
            replace(one, low=0, high=tables[one.name] - 1)
            if one.name in tables and one.low is None and one.high is None
            else one
            for one in contract.conditions
        )
        return replace(contract, conditions=tuple(ranged))

    def content(self) -> bytes:
        from .module_source import content_digest

        return content_digest(self.module, self._code + repr(self.call).encode())

    def evaluate(self, case: Case, precision: str = "fp32") -> Array:
        """The module on the CPU at `precision`, as float32 [B, *shape]. Raises InputError when forward fails."""
        import torch

        from .module_source import Normalised
        from .to_onnx import CONDITION_DTYPES, DTYPES, first_line, prepared

        x = torch.from_numpy(case.x).to(DTYPES[precision])
        conditions = (
            torch.from_numpy(value).to(CONDITION_DTYPES[one.dtype])
            for value, one in zip(case.conditions, self.contract.conditions, strict=True)
        )
        with prepared(self.module, DTYPES[precision]) as network, torch.no_grad():
            try:
                out = Normalised(network, self.call)(x, torch.from_numpy(case.t), *conditions)
            except Exception as error:  # whatever the user's forward raises
                raise InputError(
                    f"network '{self.contract.name}': forward fails at {case.where}, {precision} "
                    f"({first_line(error)}); it must take any batch size, time and condition that the contract allows"
                ) from error
        return out.float().numpy()

    def write(self, path: Path, precision: str, *, external: bool | None) -> Contract:
        from .check import compare
        from .module_source import Normalised
        from .to_onnx import DTYPES, export_module, prepared

        contract = replace(self.contract, precision=precision)
        with prepared(self.module, DTYPES[precision]) as network:
            export_module(Normalised(network, self.call), contract, path, external=external)
        plain = None if precision == "fp32" else lambda case: self.evaluate(case, precision)
        compare(path, contract, self.evaluate, plain)
        return contract


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
            "name": name or (type(source).__name__ if text is None else Path(text.rpartition(":")[0] or text).stem),
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
        roles: dict[str, Any] = {"shape": shape, "input": input, "time": time, "output": output}
        self._source: ModuleSource | OnnxSource | GuidedOnnx = _open(
            source, words, roles, conditions, dict(example or {})
        )
        if guidance is not None:
            from .guidance import apply

            self._source = apply(self._source, guidance)
        self.decoder: ModuleDecoder | OnnxDecoder | None = None
        decoder = known.decoder if decoder is None and known is not None else decoder
        if decoder is not None:
            from .decoder import open_decoder

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
    if not isinstance(source, (str, Path)):
        from torch import nn

        if not isinstance(source, nn.Module):
            raise InputError(f"network: got {type(source).__name__}, expected an nn.Module, a pipeline or {_FORMS}")
        return ModuleSource(source, b"", words, **roles, conditions=conditions, example=example)
    text = str(source)
    if text.endswith(".onnx"):
        from .onnx_source import OnnxSource

        for name, one in conditions.items():
            if not isinstance(one, Condition):
                raise InputError(f"condition '{name}' of an ONNX file: got {type(one).__name__}, expected a Condition")
        return OnnxSource(Path(text), words, **roles, conditions=conditions)  # type: ignore[arg-type]
    from .module_source import load_factory

    module, code = load_factory(text)
    return ModuleSource(module, code, words, **roles, conditions=conditions, example=example)


_FORMS = f"a path ending in .onnx, file.py:factory, a diffusers folder, or a shipped network ({', '.join(zoo.NAMES)})"
