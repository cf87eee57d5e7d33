"""A network that comes from diffusers: a folder that `save_pretrained` wrote, a pipeline object, or one of its models.

    Network("stable-diffusion-v1-5")                            a pipeline's folder: unet/, scheduler/, vae/ and others
    Network("unet", schedule="scaled_linear:1000", prediction="eps")        one model's folder: config.json and weights
    Network(pipeline)                                           an object; its denoiser and its scheduler are used

Only the denoiser and the decoder (an AutoencoderKL) are loaded, from safetensors; pickled weights (.bin) are executable
code and are refused. The scheduler's config says schedule, prediction, times, clip and end; the model's config shape,
conditions and variance.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from ...engine.compiler.schedule import parse_schedule
from ...engine.contract import Condition
from ...engine.errors import BackendError, InputError
from ..described import Known
from .diffusers_config import Convention, complete, dynamic_mu, read_config

if TYPE_CHECKING:
    from torch import nn

    from .diffusers_models import Beside, Denoiser

WEIGHTS = "diffusion_pytorch_model"
LATENT_RANGE = (-10.0, 10.0)  # latents have a deviation of 1 and no bounds: far enough out to cut nothing
DECODER = "AutoencoderKL"
PARTS = ("unet", "transformer")  # a pipeline's denoiser is one of these
PIPELINE_TOKENS = {"PixArtSigmaPipeline": 300}  # of a prompt, where they are not the class's
SPANS = {"FluxTransformer2DModel": (1.0, None)}  # FluxPipeline gives sigmas of its own: 1 ... 1 / N


@final
@dataclass(frozen=True)
class Parts:
    """A denoiser and what stands beside it. scheduler: its config; vae: the autoencoder; None where there is none."""

    name: str
    model: nn.Module | Path
    class_name: str
    scheduler: Mapping[str, Any] | None
    beside: Beside
    vae: nn.Module | Path | None = None


@final
@dataclass(frozen=True)
class Asked:
    """What the caller of `Network` said himself; it goes before what the configs say."""

    shape: tuple[int, ...] | None = None
    schedule: str | None = None
    prediction: str | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict)


def open_diffusers(source: Any, asked: Asked) -> Known | None:
    """The network in `source`, None where that is nothing of diffusers'. Raises InputError, BackendError."""
    if isinstance(source, (str, Path)):
        parts = _folder(Path(source)) if Path(source).is_dir() else None
    else:
        parts = _object(source)
    if parts is None:
        return None
    try:
        return _known(parts, asked)
    except InputError as error:
        raise InputError(f"network '{parts.name}': {error}") from error


# Where it comes from.
def _folder(path: Path) -> Parts:
    from .diffusers_models import Beside

    name = path.resolve().name
    if not (path / "model_index.json").is_file():
        if not (path / "config.json").is_file():
            raise InputError(
                f"network '{path}': it has neither model_index.json (a pipeline) nor config.json (a model); "
                "expected a folder that diffusers' save_pretrained wrote"
            )
        return Parts(name, path, _class_name(path), None, Beside())
    index = read_json(path / "model_index.json")
    part = next((path / one for one in PARTS if (path / one).is_dir()), None)
    if part is None:
        raise InputError(f"network '{path}': its pipeline has no folder {' or '.join(PARTS)}, expected its denoiser")
    scheduler = path / "scheduler" / "scheduler_config.json"
    encoder, vae = path / "text_encoder_2" / "config.json", path / "vae" / "config.json"
    autoencoder = read_json(vae) if vae.is_file() else {}
    return Parts(
        name,
        part,
        _class_name(part),
        read_json(scheduler) if scheduler.is_file() else None,
        Beside(
            tokens=PIPELINE_TOKENS.get(str(index.get("_class_name"))),
            pooled=read_json(encoder).get("projection_dim") if encoder.is_file() else None,
            pixels=_pixels(autoencoder),
        ),
        vae.parent if autoencoder.get("_class_name") == DECODER else None,
    )


def _object(source: Any) -> Parts | None:
    """A pipeline or a model; diffusers' classes are told by name, since it need not be installed."""
    from .diffusers_models import Beside

    name = type(source).__name__
    if _class_of(source, ("DiffusionPipeline",)) is None:
        found = _denoiser_class(source)
        return None if found is None else Parts(name, source, found, None, Beside())
    part, scheduler, encoder, vae = (
        next((one for key in keys if (one := getattr(source, key, None)) is not None), None)
        for keys in (PARTS, ("scheduler",), ("text_encoder_2",), ("vae",))
    )
    if part is None or (found := _denoiser_class(part)) is None:
        got = f"a {type(part).__name__}" if part is not None else f"no {' or '.join(PARTS)}"
        raise InputError(f"network: the pipeline {name} has {got}; {_known_classes()}")
    return Parts(
        name,
        part,
        found,
        None if scheduler is None else dict(scheduler.config),
        Beside(
            tokens=PIPELINE_TOKENS.get(name),
            pooled=None if encoder is None else getattr(encoder.config, "projection_dim", None),
            pixels=_pixels({} if vae is None else vae.config),
        ),
        vae if vae is not None and _class_of(vae, (DECODER,)) else None,
    )


def _pixels(config: Mapping[str, Any]) -> int:
    return 2 ** (len(config.get("block_out_channels") or (0,) * 4) - 1)


def _denoiser_class(module: Any) -> str | None:
    from .diffusers_models import DENOISERS

    return _class_of(getattr(module, "_orig_mod", module), tuple(DENOISERS))  # what torch.compile wrapped


def _class_of(source: Any, names: tuple[str, ...]) -> str | None:
    kinds = (one for one in type(source).__mro__ if one.__module__.startswith("diffusers."))
    return next((one.__name__ for one in kinds if one.__name__ in names), None)


def _class_name(folder: Path) -> str:
    from .diffusers_models import DENOISERS, LEGACY

    if not (folder / "config.json").is_file():
        raise InputError(f"network '{folder}': config.json is missing; expected a folder that save_pretrained wrote")
    config = read_json(folder / "config.json")
    name = config.get("_class_name")
    name = LEGACY.get(str(config.get("norm_type")), name) if name == "Transformer2DModel" else name
    if name not in DENOISERS:
        raise InputError(f"network '{folder}': config.json names the class '{name}'; {_known_classes()}")
    return str(name)


def _known_classes() -> str:
    from .diffusers_models import DENOISERS

    return f"known are {', '.join(DENOISERS)}; give another as an nn.Module"


def read_json(path: Path) -> dict[str, Any]:
    """A config file. Raises InputError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({str(error).splitlines()[0]}); copy it again") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, expected an object; copy it again")
    return content


# Weights.
def load_model(folder: Path, class_name: str) -> nn.Module:
    """The model in `folder` in float32, from safetensors alone. Raises InputError, BackendError."""
    variant = _variant(folder)
    try:
        import diffusers
        import torch
    except ImportError as error:
        raise BackendError(
            f"'{folder}' needs diffusers ({error}); install it with: pip install pfdiff[diffusers]"
        ) from None
    from ..to_onnx import quiet

    try:
        with quiet():
            model, report = getattr(diffusers, class_name).from_pretrained(
                folder,
                torch_dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                variant=variant,
                output_loading_info=True,
            )
    except Exception as error:  # of diffusers, safetensors and torch, without a common base
        said = " ".join(f"{type(error).__name__}: {error}".split())[:240]
        raise InputError(f"'{folder}' cannot be loaded ({said}); save it again") from error
    for key in ("missing_keys", "mismatched_keys"):
        if report[key]:
            what = f"{len(report[key])} {key.replace('_keys', '')} weights, such as {next(iter(report[key]))}"
            raise InputError(f"'{folder}' has {what}; config.json and the weights do not fit: save them again")
    return model.eval()


def _variant(folder: Path) -> str | None:
    """None for the plain safetensors, else the only variant there, such as fp16. Raises InputError."""
    found = [one.name for one in folder.glob(f"{WEIGHTS}*.safetensors*")]
    if any(one.removeprefix(WEIGHTS).startswith((".safetensors", "-0")) for one in found):
        return None
    variants = sorted({one.removeprefix(f"{WEIGHTS}.").split(".")[0].split("-")[0] for one in found})
    if variants:
        return variants[0]
    pickled = sorted(one.name for one in folder.iterdir() if one.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if pickled:
        raise InputError(
            f"'{folder}' has pickled weights only ({pickled[0]}), which can run any code when they are read; "
            "save it again with save_pretrained(..., safe_serialization=True)"
        )
    raise InputError(f"'{folder}' has no {WEIGHTS}.safetensors; copy it there, or save the model again")


# What it is.
def _known(parts: Parts, asked: Asked) -> Known:
    from .diffusers_models import DENOISERS, Adapted

    kind = DENOISERS[parts.class_name]
    _check_schedule(parts, asked)  # before gigabytes are read
    model = load_model(parts.model, parts.class_name) if isinstance(parts.model, Path) else parts.model
    model: Any = getattr(model, "_orig_mod", model)
    config: Mapping[str, Any] = model.config
    taken = int(config["in_channels"])
    given = int(config.get("out_channels") or taken)
    if given not in (taken, 2 * taken):
        raise InputError(
            f"it takes {taken} channels and predicts {given}, an inpainting or editing model; "
            "give it as an nn.Module, forward(x, t, ...), with the further channels as a condition"
        )
    shape = asked.shape or kind.shape(config)
    if shape is None:
        raise InputError("its config has no sample_size; give shape= (--shape 4x64x64)")
    channels = taken // (4 if kind.packed else 1)
    if len(shape) != 3 or shape[0] != channels:
        raise InputError(f"shape {list(shape)}, expected [{channels}, height, width] as its in_channels say")
    beside = parts.beside if parts.beside.tokens else replace(parts.beside, tokens=kind.tokens)
    conditions = _conditions(kind, config, shape, beside, asked)
    tokens = next((one.shape[0] for one in conditions if one.name == "encoder_hidden_states"), 0)
    convention = _convention(parts, kind, config, shape, asked)
    decoder = load_model(parts.vae, DECODER) if isinstance(parts.vae, Path) else parts.vae
    schedule = asked.schedule or (convention.schedule if convention else "")
    flow = parse_schedule(schedule).velocity == "flow"
    return Known(
        Adapted(model, kind, shape, tokens).eval(),
        parts.name,
        shape,
        schedule,
        asked.prediction or (convention.prediction if convention else ""),
        conditions,
        time_scale=(convention.time_scale if convention else 1000.0 if flow else 1.0) * kind.time_unit,
        learned_sigma=given == 2 * taken,
        sigma_data=convention.sigma_data if convention else 0.5,
        data_range=(-1.0, 1.0) if channels in (1, 3) or decoder is not None else LATENT_RANGE,
        decoder=decoder,
        convention=convention,
    )


def _check_schedule(parts: Parts, asked: Asked) -> None:
    missing = [word for word in ("schedule", "prediction") if getattr(asked, word) is None]
    if parts.scheduler is None and missing:
        raise InputError(
            f"there is no scheduler, so say {' and '.join(f'{word}= (--{word})' for word in missing)}, or give the "
            "folder of the whole pipeline, with scheduler/scheduler_config.json"
        )
    if asked.schedule is not None and asked.prediction is None:
        raise InputError("with another schedule its scheduler is not read, so say prediction= (--prediction) too")


def _convention(
    parts: Parts, kind: Denoiser, config: Mapping[str, Any], shape: tuple[int, ...], asked: Asked
) -> Convention | None:
    """The scheduler's, with the prediction asked for; None where another schedule is asked for."""
    if parts.scheduler is None or asked.schedule is not None:
        return None
    found = complete(parts.scheduler)
    mu = dynamic_mu(found, kind.patches(config, shape))
    if "solver" in found:  # a PFDiffScheduler, whose own options go before what it was made from
        from ..diffusers_scheduler import convention_of

        convention = convention_of(found, mu)
    else:
        convention = read_config(found, mu)
    if parts.class_name in SPANS and convention.spacing == "flow":
        convention = replace(convention, span=SPANS[parts.class_name], is_open=False)
    return convention if asked.prediction is None else replace(convention, prediction=asked.prediction)


def _conditions(
    kind: Denoiser, config: Mapping[str, Any], shape: tuple[int, ...], beside: Beside, asked: Asked
) -> tuple[Condition, ...]:
    """The class's conditions. One that is asked for may say its default and range, and how many tokens a prompt has."""
    from .diffusers_models import ALIASES

    given = asked.conditions
    sizes = {name: one.shape if isinstance(one, Condition) else tuple(one.shape[1:]) for name, one in given.items()}
    if len(text := sizes.get("encoder_hidden_states", ())) == 2:
        beside = replace(beside, tokens=text[0])
    if len(pooled := sizes.get("text_embeds", ())) == 1:
        beside = replace(beside, pooled=pooled[0])
    found = {one.name: replace(one, alias=ALIASES.get(one.name, "")) for one in kind.conditions(config, shape, beside)}
    for name, one in given.items():
        if name not in found:
            raise InputError(f"it has no condition '{name}'; its conditions are {', '.join(found) or 'none'}")
        own = found[name]
        if sizes[name] != own.shape:
            raise InputError(
                f"condition '{name}' of shape {list(sizes[name])}, expected {list(own.shape)} as its config says; "
                "correct conditions= (--condition), or leave it out"
            )
        if isinstance(one, Condition):
            found[name] = replace(one, alias=one.alias or own.alias)
    return tuple(found.values())
