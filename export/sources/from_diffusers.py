"""A network that comes from diffusers: a folder that `save_pretrained` wrote, a pipeline object, or one of its models.

    Network("stable-diffusion-v1-5")                            a pipeline's folder: unet/, scheduler/, vae/ and others
    Network("unet", schedule="scaled_linear:1000", prediction="eps")        one model's folder: config.json and weights
    Network(pipeline)                                           an object; its denoiser and its scheduler are used

Denoiser, autoencoder and text encoders are loaded one after the other, from safetensors; pickled weights (.bin) are
executable code and are refused. The scheduler's config says schedule, prediction, times, clip and end; the model's
config shape, conditions and variance.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from ...engine.compiler.schedule import parse_schedule
from ...engine.contract.condition import Condition
from ...engine.errors import InputError
from ..convention import Convention
from ..decoders.open import read_decoder
from ..described import Described, Given
from ..families import FAMILIES, LEGACY
from ..families.family import Beside, Family
from ..pipelines.memory import Need
from ..pipelines.pipeline_changes import Changes, controlnet_of, controlnet_source, weights_of
from ..pipelines.pipeline_prompts import Texts, guidance_of, prompts_of, texts_in_folder, texts_of_object
from ..pipelines.saved_models import DECODERS, read_json
from ..pipelines.scheduler_classes import CLASSES, REFUSED
from ..pipelines.stochastic_classes import STOCHASTIC
from ..time_map import parse_prediction
from .controlnet import control_of
from .diffusers_config import convention_of, dynamic_mu, read_config
from .lora import parse_lora

if TYPE_CHECKING:
    from torch import nn

LATENT_RANGE = (-10.0, 10.0)  # latents have a deviation of 1 and no bounds: far enough out to cut nothing
AUTOENCODERS = ("vae", "vqvae")
# Parts of a pipeline whose work an engine would leave out.
STEERING = ("adapter", "motion_adapter", "transformer_2")
# Words in the names of pipelines that start from a picture, not from noise.
FROM_PICTURES = ("Upscale", "InstructPix2Pix", "Depth2Img", "ImageVariation")
PARTS = ("unet", "transformer")  # a pipeline's denoiser is one of these


@final
@dataclass(frozen=True)
class PipelineParts:
    """A denoiser and what stands beside it. scheduler: its config; vae: the autoencoder, of class `vae_class`.

    None where there is none. held: the names of all parts that the pipeline has. texts: its text encoders and
    tokenizers; zeros: without a negative prompt its conditions are zero. controlnet: of a ControlNet's pipeline.
    """

    name: str
    model: nn.Module | Path
    class_name: str
    scheduler: Mapping[str, Any] | None
    beside: Beside
    vae: nn.Module | Path | None = None
    vae_class: str = ""
    held: tuple[str, ...] = ()
    texts: Texts = field(default_factory=dict)
    zeros: bool = False
    controlnet: Any = None


def open_diffusers(source: Any, given: Given) -> Described | None:
    """The network in `source`, None where that is nothing of diffusers'. Raises InputError, BackendError."""
    if isinstance(source, (str, Path)):
        parts = _folder(Path(source)) if Path(source).is_dir() else None
    else:
        parts = _object(source)
    if parts is None:
        return None
    try:
        return _described(parts, given)
    except InputError as error:
        raise InputError(f"network '{parts.name}': {error}") from error


# Where it comes from.
def _folder(path: Path) -> PipelineParts:
    name = path.resolve().name
    if not (path / "model_index.json").is_file():
        if not (path / "config.json").is_file():
            raise InputError(
                f"network '{path}': it has neither model_index.json (a pipeline) nor config.json (a model); "
                "expected a folder that diffusers' save_pretrained wrote"
            )
        return PipelineParts(name, path, _class_name(path), None, Beside())
    index = read_json(path / "model_index.json")
    part = next((path / one for one in PARTS if (path / one).is_dir()), None)
    if part is None:
        raise InputError(f"network '{path}': its pipeline has no folder {' or '.join(PARTS)}, expected its denoiser")
    scheduler = path / "scheduler" / "scheduler_config.json"
    encoder = path / "text_encoder_2" / "config.json"
    vae = next((path / one for one in AUTOENCODERS if (path / one / "config.json").is_file()), None)
    autoencoder = {} if vae is None else read_json(vae / "config.json")
    return PipelineParts(
        name,
        part,
        _class_name(part),
        read_json(scheduler) if scheduler.is_file() else None,
        Beside(
            pipeline=str(index.get("_class_name")),
            pooled=read_json(encoder).get("projection_dim") if encoder.is_file() else None,
            pixels=_pixels(autoencoder),
            shift=_shift(autoencoder),
            options=index,
        ),
        vae,
        str(autoencoder.get("_class_name", "")),
        tuple(name for name, kind in index.items() if isinstance(kind, list) and any(kind)),
        texts_in_folder(path, index),
        bool(index.get("force_zeros_for_empty_prompt")),
        path / "controlnet" if (path / "controlnet").is_dir() else None,
    )


def _object(source: Any) -> PipelineParts | None:
    """A pipeline or a model; diffusers' classes are told by name, since it need not be installed."""
    name = type(source).__name__
    if _class_of(source, ("DiffusionPipeline",)) is None:
        found = _denoiser_class(source)
        return None if found is None else PipelineParts(name, source, found, None, Beside())
    part, scheduler, encoder, vae = (
        next((one for key in keys if (one := getattr(source, key, None)) is not None), None)
        for keys in (PARTS, ("scheduler",), ("text_encoder_2",), AUTOENCODERS)
    )
    if part is None or (found := _denoiser_class(part)) is None:
        got = f"a {type(part).__name__}" if part is not None else f"no {' or '.join(PARTS)}"
        raise InputError(f"network: the pipeline {name} has {got}; {_known_classes()}")
    return PipelineParts(
        name,
        part,
        found,
        None if scheduler is None else _config_of(scheduler),
        Beside(
            pipeline=name,
            pooled=None if encoder is None else getattr(encoder.config, "projection_dim", None),
            pixels=_pixels({} if vae is None else vae.config),
            shift=_shift({} if vae is None else vae.config),
            options=source.config,
        ),
        vae,
        "" if vae is None else _class_of(vae, DECODERS) or type(vae).__name__,
        tuple(key for key, value in source.components.items() if value is not None),
        texts_of_object(source),
        bool(getattr(source.config, "force_zeros_for_empty_prompt", False)),
        getattr(source, "controlnet", None),
    )


def _config_of(scheduler: Any) -> dict[str, Any]:
    """A scheduler's config with its class, which a live one leaves out; of a subclass, that of diffusers'."""
    known = _class_of(scheduler, (*CLASSES, *STOCHASTIC, *REFUSED))
    return {**scheduler.config, "_class_name": known or type(scheduler).__name__}


def _pixels(config: Mapping[str, Any]) -> int:
    blocks = config.get("block_out_channels") or config.get("decoder_block_out_channels") or (0,) * 4
    return 2 ** (len(blocks) - 1)


def _shift(config: Mapping[str, Any]) -> float:
    return (config.get("shift_factor") or 0.0) * (config.get("scaling_factor") or 1.0)


def _denoiser_class(module: Any) -> str | None:
    return _class_of(getattr(module, "_orig_mod", module), tuple(FAMILIES))  # what torch.compile wrapped


def _class_of(source: Any, names: tuple[str, ...]) -> str | None:
    kinds = (one for one in type(source).__mro__ if one.__module__.startswith("diffusers."))
    return next((one.__name__ for one in kinds if one.__name__ in names), None)


def _class_name(folder: Path) -> str:
    if not (folder / "config.json").is_file():
        raise InputError(f"network '{folder}': config.json is missing; expected a folder that save_pretrained wrote")
    config = read_json(folder / "config.json")
    name = config.get("_class_name")
    name = LEGACY.get(str(config.get("norm_type")), name) if name == "Transformer2DModel" else name
    if name not in FAMILIES:
        raise InputError(f"network '{folder}': config.json names the class '{name}'; {_known_classes()}")
    return str(name)


def _known_classes() -> str:
    return f"known are {', '.join(FAMILIES)}; give another as an nn.Module"


# What it is.
def _described(parts: PipelineParts, given: Given) -> Described:
    family = FAMILIES[parts.class_name]
    # Before gigabytes are read.
    _check_schedule(parts, given)
    _check_parts(parts, given)
    control = controlnet_source(parts.controlnet, given.controlnet, parts.class_name)
    texts = parts.texts if given.encoders else {}
    need = Need.of((parts.model, control[0]), parts.vae if given.decoder is None else None, texts)
    if isinstance(parts.model, Path) and need.warning:
        warnings.warn(f"network '{parts.name}': {need.warning}", RuntimeWarning, stacklevel=2)
    loras = [parse_lora(one) for one in given.lora]
    changes = Changes(parts.beside.pipeline, parts.class_name, parts.model, loras)
    # Each is read and freed before the next. The denoiser is last, since it is exported first.
    parts = replace(parts, texts=changes.texts(texts))
    decoder = parts.vae if given.decoder is None else None
    decoder = read_decoder(decoder) if isinstance(decoder, Path) else decoder
    reading = changes.denoiser
    model: Any = reading.read() if reading else parts.model
    model = getattr(model, "_orig_mod", model)
    config: Mapping[str, Any] = model.config
    learned_sigma = family.learned_sigma(config)
    shape = given.shape or family.shape(config)
    if shape is None:
        raise InputError("its config has no sample_size; give shape= (--shape 4x64x64)")
    channels = family.channels(config)
    if len(shape) != 1 + len(family.AXES) or shape[0] != channels:
        raise InputError(f"shape {list(shape)}, expected [{channels}, {', '.join(family.AXES)}] as its in_channels say")
    pixels = parts.beside.pixels
    controlnet, controls = controlnet_of(control, model, parts.class_name, shape, pixels)
    weights = None if reading is None else weights_of(model, reading, controlnet, control[0], parts.class_name)
    conditions = _conditions(family, config, shape, parts.beside, given, controls)
    convention = _convention(parts, family, config, shape, given)
    prompting = family.prompting(config, parts.beside) if given.encoders else None
    prompts = prompts_of(prompting, parts.texts, zeros=parts.zeros)
    schedule = given.schedule or (convention.schedule if convention else "")
    flow = parse_schedule(schedule).velocity == "flow"
    adapted = family.adapted(model, shape, conditions)
    if controlnet is not None:
        adapted = control_of(parts.class_name).module(adapted, controlnet, parts.beside.shift)
    return Described(
        adapted.eval(),
        parts.name,
        shape,
        schedule,
        convention.prediction if convention else given.prediction or "",
        {one.name: one for one in conditions},
        time_scale=(convention.time_scale if convention else 1000.0 if flow else 1.0) * family.TIME_UNIT,
        learned_sigma=learned_sigma,
        sigma_data=convention.sigma_data if convention else 0.5,
        data_range=(-1.0, 1.0) if channels in (1, 3) or decoder is not None else LATENT_RANGE,
        decoder=decoder,
        convention=convention,
        prompts=prompts,
        guidance=guidance_of(prompts),
        need=need,
        weights=weights,
        origin={"lora": [one.record for one in loras]} if loras else {},
    )


def _check_parts(parts: PipelineParts, given: Given) -> None:
    """Raises InputError for parts that an engine would leave out; warns of a pipeline that starts from a picture."""
    pipeline = parts.beside.pipeline
    for name in STEERING:
        if name in parts.held:
            raise InputError(
                f"its pipeline {pipeline} has the part '{name}', which an engine does not hold yet; give the pipeline "
                "without it, such as StableDiffusionPipeline.from_pipe(pipeline)"
            )
    named = next((one for one in AUTOENCODERS if one in parts.held), None)
    if named is not None and parts.vae is None and given.decoder is None:
        raise InputError(
            f"the folder {named}/ with its config.json is missing, which model_index.json names; copy it there, or "
            f"give another decoder= (--decoder), or, for an engine of latents, write [null, null] for {named} there"
        )
    model: Any = parts.model
    config = read_json(model / "config.json") if isinstance(model, Path) else model.config
    if "image_proj" in str(config.get("encoder_hid_dim_type")) or _has_adapter(model):
        raise InputError("an IP-Adapter is loaded, which is not supported; unload it (pipeline.unload_ip_adapter())")
    if parts.vae_class not in ("", *DECODERS) and given.decoder is None:
        raise InputError(
            f"its autoencoder is of class {parts.vae_class}, expected {' or '.join(DECODERS)}; give decoder= "
            "(--decoder file.py:factory), a module that makes images of latents"
        )
    if any(word in pipeline for word in FROM_PICTURES):
        warnings.warn(
            f"{pipeline} starts from a picture and more, of which an engine takes the picture alone: no mask, no edit",
            stacklevel=2,
        )


def _has_adapter(model: Any) -> bool:
    """Of Stable Diffusion 3, whose config does not say it."""
    return not isinstance(model, Path) and getattr(model, "image_proj", None) is not None


def _check_schedule(parts: PipelineParts, given: Given) -> None:
    missing = [option for option in ("schedule", "prediction") if getattr(given, option) is None]
    if parts.scheduler is None and missing:
        raise InputError(
            f"there is no scheduler, so say {' and '.join(f'{one}= (--{one})' for one in missing)}, or give the "
            "folder of the whole pipeline, with scheduler/scheduler_config.json"
        )
    if given.schedule is not None and given.prediction is None:
        raise InputError("with another schedule its scheduler is not read, so say prediction= (--prediction) too")


def _convention(
    parts: PipelineParts, family: Family, config: Mapping[str, Any], shape: tuple[int, ...], given: Given
) -> Convention | None:
    """The scheduler's, with the prediction asked for; None where another schedule is asked for."""
    if parts.scheduler is None or given.schedule is not None:
        return None
    patches = family.patches(config, shape)
    mu = dynamic_mu(parts.scheduler, patches)
    # A PFDiffScheduler's own options go before those of the scheduler that it was made from.
    read = convention_of if "solver" in parts.scheduler else read_config
    convention = family.scheduled(read(parts.scheduler, mu), patches)
    if given.prediction is None:
        return convention
    return replace(convention, prediction=parse_prediction(given.prediction)[0])


def _conditions(
    family: Family,
    config: Mapping[str, Any],
    shape: tuple[int, ...],
    beside: Beside,
    given: Given,
    controls: tuple[Condition, ...] = (),
) -> tuple[Condition, ...]:
    """The class's conditions. One that is given may say its default and range, and how many tokens a prompt has."""
    sizes = {
        name: one.shape if isinstance(one, Condition) else tuple(one.shape[1:])
        for name, one in given.conditions.items()
    }
    if len(prompt := sizes.get("encoder_hidden_states", ())) == 2:
        beside = replace(beside, tokens=prompt[0])
    if len(pooled := sizes.get("text_embeds", ())) == 1:
        beside = replace(beside, pooled=pooled[0])
    found = {
        one.name: replace(one, alias=family.ALIASES.get(one.name, ""))
        for one in family.conditions(config, shape, beside)
    }
    found |= {one.name: one for one in controls}
    for name, one in given.conditions.items():
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
