"""A user's network, whatever it came as, behind one contract.

    Network(module)                 an nn.Module with forward(x [B, *shape], t [B], ...) -> prediction
    Network("file.py:factory")      factory() returns such a module
    Network("unet.onnx")            an ONNX file from anybody
    Network("stable-diffusion")     a diffusers folder, and Network(pipeline), an object: see diffusers_source.py
    Network("owner/name@revision")  a pipeline of the Hugging Face hub, see pipelines/hub.py
    Network("pusht-policy")         a folder of a LeRobot DiffusionPolicy, and an object: see policies/lerobot.py
    Network("fashion")              a shipped network

`network.write(folder)` makes network.onnx of it, compared with the source before it is accepted.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from ..engine.contract.condition import Condition
from ..engine.contract.contract import Contract
from ..engine.errors import InputError
from ..engine.notebook import html_table
from .check import LARGE_BYTES
from .decoders.from_module import ModuleDecoder
from .decoders.open import OpenedDecoder, open_decoder, read_decoder
from .describe import describe
from .described import Given, as_shape, check_types
from .encoders.open import Encoders, open_encoders
from .guidance.apply import Source, guide
from .policies.open import OpenedPolicy
from .precision.write import Asked, Written, write_network
from .sources.controlnet import controlnet_path
from .sources.from_module import ModuleSource
from .sources.open import open_source
from .time_check import doubt_of_time

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from torch import Tensor, nn

    from ..engine.progress import Lines
    from .convention import Convention
    from .decoders.options import Decoder
    from .guidance.options import Guidance
    from .pipelines.memory import Need
    from .policies.options import Policy

FORMAT = "pfdiff network 1"  # part of every digest: changes when the same source would be exported otherwise


@final
class Network:
    """A score network and its contract.

    source       an nn.Module, "file.py:factory", an ONNX file, a shipped network's name, a diffusers folder or pipeline
    shape        of one sample, without the batch; an ONNX file, a diffusers config or `example` may say it
    schedule     the noise schedule it was trained with, such as "cosine:300"; a diffusers scheduler may say it
    prediction   eps, x0, v, flow, edm (the raw F of EDM preconditioning), consistency, or what diffusers calls them
    conditions   further inputs by name: a Condition, or for a module an example tensor [B, ...]
    input, time  names of the inputs for x and the time, where they cannot be guessed
    output       name (ONNX, dict) or index (tuple) of the prediction among several outputs
    time_scale   the network is fed schedule time * time_scale; 1 unless the source says otherwise
    time_map     what it is fed where a scale does not do: "1-t", "1000-1000*t", "sigma", "logsnr", "c_noise"; with a
                 time that runs from noise to data, `flow` is x_0 - eps (time_map.py, docs/reference/time.md)
    time_dtype   float32 or int64; found by trying when None
    learned_sigma  the output has twice the channels, of which the first half is the prediction
    data_range   what `images` turns into 0..255, and `tune` compares within; (-1, 1) unless the source says otherwise
    example      example tensors by parameter name, for shape, time and conditions of a module
    decoder      of a latent model: a Decoder (decoder.py) or what it takes alone, such as an AutoencoderKL or a text
                 "vae.py:load"; `engine.images` decodes, and `data_range` is that of the images
    guidance     ClassifierFree, ClassifierGuidance (guidance.py) or a text: "label=10", "classifier=fashion";
                 the scale becomes the condition `guidance`. By default a pipeline with text encoders has its own
                 classifier-free guidance, and nothing else has any; "none" for none
    encoders     keep a pipeline's text encoders, and the encoder of its autoencoder
    lora         of a pipeline: safetensors files, "style.safetensors:0.8" with a strength, fused into the weights
    controlnet   of a pipeline: a ControlNet's folder, "canny:0.5" with the default of its condition
    policy       a Policy (policies/options.py) of a network that samples actions; a LeRobot folder has its own

    Raises InputError, one line, for everything that does not fit. `contract` is what network.onnx will take,
    `convention` the times, clip and end of the diffusers scheduler that came with it, or None.
    """

    def __init__(
        self,
        source: nn.Module | str | Path | DiffusionPipeline,
        *,
        shape: int | tuple[int, ...] | None = None,
        schedule: str | None = None,
        prediction: str | None = None,
        conditions: Mapping[str, Condition | Tensor] | None = None,
        input: str | None = None,
        time: str | None = None,
        output: str | int | None = None,
        time_scale: float | None = None,
        time_map: str | None = None,
        time_dtype: str | None = None,
        learned_sigma: bool = False,
        sigma_data: float | None = None,
        data_range: tuple[float, float] | None = None,
        name: str | None = None,
        example: Mapping[str, Tensor] | None = None,
        guidance: Guidance | str | None = None,
        decoder: Decoder | nn.Module | str | Path | None = None,
        encoders: bool = True,
        lora: str | Path | Sequence[str | Path] = (),
        controlnet: str | Path | None = None,
        policy: Policy | None = None,
    ) -> None:
        texts = {"schedule": schedule, "prediction": prediction, "time_map": time_map}
        check_types(texts, {"conditions": conditions, "example": example})
        given = Given(
            shape=None if shape is None else as_shape(shape),
            schedule=schedule,
            prediction=prediction,
            conditions=dict(conditions or {}),
            input=input,
            time=time,
            output=output,
            time_scale=time_scale,
            time_map=time_map,
            time_dtype=time_dtype,
            learned_sigma=learned_sigma,
            sigma_data=sigma_data,
            data_range=data_range,
            name=name,
            example=dict(example or {}),
            decoder=decoder,
            encoders=encoders,
            lora=tuple(map(str, (lora,) if isinstance(lora, (str, Path)) else lora)),
            controlnet=controlnet_path(controlnet),
            policy=policy,
        )
        if decoder is not None:  # read and freed before the network is read
            given = replace(given, decoder=read_decoder(decoder))
        described = describe(source, given)
        opened = open_source(described)
        guidance = described.guidance if guidance is None else None if guidance == "none" else guidance
        self._source: Source = opened if guidance is None else guide(opened, guidance)
        self.decoder: OpenedDecoder | None = None
        if described.decoder is not None:
            self.decoder = open_decoder(described.decoder, self.contract)
        self.policy: OpenedPolicy | None = None
        if described.policy is not None:
            self.policy = OpenedPolicy(described.policy, self.contract)
        self.convention: Convention | None = described.convention
        self.origin: Mapping[str, Any] = described.origin
        self.need: Need | None = described.need
        self._frees = False
        self.encoders: Encoders | None = open_encoders(described, self.contract, self.decoder) if encoders else None

    def __repr__(self) -> str:
        contract = self.contract
        given = "".join(f", {one.alias or one.name}" for one in contract.conditions)
        decoded = f", decoded by {self.decoder.contract.name}" if self.decoder else ""
        return (
            f"Network({contract.name}: {contract.input} {list(contract.shape)}, {contract.time}{given} -> "
            f"{contract.prediction}, {contract.schedule}{decoded})"
        )

    def _repr_html_(self) -> str:
        """The contract, for notebooks."""
        contract = self.contract
        rows = [
            ("input", f"{contract.input} {list(contract.shape)}"),
            ("time", f"{contract.time}, {contract.time_dtype}"),
            *(("condition", f"{one.alias or one.name}: {one.dtype} {list(one.shape)}") for one in contract.conditions),
            ("predicts", contract.prediction),
            ("schedule", contract.schedule),
            ("data range", "{:g}..{:g}".format(*contract.data_range)),
            *((("decoder", self.decoder.contract.name),) if self.decoder else ()),
        ]
        return html_table(rows, caption=contract.name)

    @property
    def contract(self) -> Contract:
        """What network.onnx will take and predict, at precision fp32 (an ONNX file: its own precision)."""
        return self._source.contract

    @property
    def notes(self) -> tuple[str, ...]:
        """What somebody who builds it should know, a line each."""
        names = self._source.left_out if isinstance(self._source, ModuleSource) else ()
        if not names:
            return ()
        return (
            f"network '{self.contract.name}': forward's optional {', '.join(names)} keeps its default; to feed it, "
            f"describe it: conditions={{'{names[0]}': ...}} (--condition {names[0]}:dtype:shape)",
        )

    @cached_property
    def digest(self) -> str:
        """sha256 hex of weights, code and contract, without the decoder's; nothing is exported.

        Later changes of the module do not show.
        """
        described = json.dumps(self.contract.to_dict(), sort_keys=True).encode()
        return hashlib.sha256(b"|".join((FORMAT.encode(), described, self._source.content()))).hexdigest()

    def written(
        self, folder: Path, precision: str, asked: Asked, say: Lines, *, external: bool | None = None
    ) -> Written:
        """`write` in any precision (fp32, fp16, bf16, int8, fp8), with the record of what it cost: precision/write.py.

        Raises InputError; nothing is left behind then.
        """
        path = Path(folder) / "network.onnx"
        say(f"exporting {self.contract.name} to ONNX ({precision})")
        consumes = self.frees
        doubt = doubt_of_time(self.contract, self._source.evaluate) if consumes else None  # before its weights go
        try:
            made = write_network(self._source, path, precision, asked, say, external=external, consumes=consumes)
        except BaseException:
            for one in (path, path.with_name("network.onnx.data")):
                one.unlink(missing_ok=True)
            raise
        if not consumes and path.stat().st_size < LARGE_BYTES:
            doubt = doubt_of_time(self.contract, self._source.evaluate)
        if doubt:
            warnings.warn(doubt, stacklevel=3)
        return made

    def write(
        self, folder: Path, precision: str = "fp32", progress: Lines | None = None, *, external: bool | None = None
    ) -> Contract:
        """Write network.onnx into the existing `folder` and compare it with the source; the contract of the file.

        precision: fp32, fp16, bf16, int8 or fp8; the last two calibrated on the sampler of the rule.

        `external` puts the weights into network.onnx.data (None: above 1 GiB). Raises InputError when the network
        cannot be exported, differs from its source, or returns NaN; nothing is left behind then. Warns of a time or a
        sign that seems to run the other way.
        """
        say = progress or (lambda line: None)
        return self.written(folder, precision, Asked(), say, external=external).contract

    @property
    def frees(self) -> bool:
        """Whether a build frees the network's weights once they are written: see `disposable`."""
        return self._frees and isinstance(self._source, ModuleSource) and self._source.weights is not None

    def disposable(self) -> Network:
        """Itself, whose weights a build may free, each part's once it is written, where they come from files.

        Who evaluates it afterwards reads them again. Weights that came as an object are not freed.
        """
        self._frees = True
        return self

    def kept(self) -> Network:
        """Itself, whose weights stay: takes `disposable` back."""
        self._frees = False
        return self

    def free(self, part: str) -> None:
        """Free the weights of "network" or "decoder" where `disposable` lets it and they come from files."""
        one = self._source if part == "network" else self.decoder
        if self._frees and isinstance(one, (ModuleSource, ModuleDecoder)):
            one.free()

    def restore(self) -> None:
        """Read again what was freed of network and decoder. Raises InputError for files that have changed since."""
        for one in (self._source, self.decoder):
            if isinstance(one, (ModuleSource, ModuleDecoder)):
                one.whole()

    def evaluate(self, x: Tensor, t: Any, conditions: Mapping[str, Any] | None = None) -> Tensor:
        """The prediction [B, *shape] float32 of the source itself, in float32.

        x: [B, *shape] on any device. t: a number or [B], in the network's own time (`time_scale` applied).
        conditions: by name, as `Condition.values` takes them. Raises InputError on a wrong shape or name.
        """
        import torch

        from .check import TrialInputs

        contract = self.contract
        if tuple(x.shape[1:]) != contract.shape:
            raise InputError(f"x is {list(x.shape)}, expected [batch, {', '.join(map(str, contract.shape))}]")
        given = contract.by_name(conditions or {})
        fed = tuple(_as_array(one.values(_as_array(given.get(one.name)), len(x))) for one in contract.conditions)
        times = np.asarray(_as_array(t), dtype=contract.time_dtype)
        times = np.broadcast_to(times, (len(x),)).copy() if contract.time_rank else times.reshape(-1)[:1].reshape(())
        trial = TrialInputs(np.ascontiguousarray(_as_array(x.float())), times, fed)
        return torch.from_numpy(self._source.evaluate(trial)).to(x.device)


def _as_array(value: Any) -> Any:
    return value.detach().cpu().numpy() if hasattr(value, "detach") else value
