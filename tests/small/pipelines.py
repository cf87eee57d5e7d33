"""Tiny whole pipelines with random weights, from prompt to pixels: the families of `small.diffusers` and further ones.

Each is made by a function of its name; its text encoder and tokenizer are of the classes that the real one has.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .diffusers import DDIM, FLOW, SCALED, diffusers
from .texts import t5, t5_tokenizer, transformers

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


# Tokenizers.
@cache
def qwen_tokenizer() -> Any:
    """A byte-level tokenizer with a chat template, as Qwen's."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = {one: n for n, one in enumerate(dict.fromkeys(bytes_to_unicode().values()))}
    made = transformers.Qwen2Tokenizer(vocab={**letters, "Ġt": len(letters)}, merges=[("Ġ", "t")])
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = CHAT
    made.model_max_length = 4096
    return made


@cache
def gemma_tokenizer() -> Any:
    """A tokenizer of letters that pads on the left and puts <bos> first, as Gemma's does."""
    from tokenizers.processors import TemplateProcessing

    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *string.ascii_letters, *string.digits, *"\n.,!'<>-:()"]
    made = transformers.GemmaTokenizer(vocab={one: n for n, one in enumerate(words)}, merges=[])
    made.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return made


@cache
def bert_tokenizer() -> Any:
    pieces = [*string.ascii_lowercase, *string.digits, ",", "!", ".", "'"]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces, *(f"##{one}" for one in pieces)]
    return transformers.BertTokenizer(vocab={one: n for n, one in enumerate(words)}, model_max_length=77)


# Text encoders.
LANGUAGE: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


def qwen3(layers: int = 3) -> Any:
    config = transformers.Qwen3Config(vocab_size=len(qwen_tokenizer()), num_hidden_layers=layers, **LANGUAGE)
    return transformers.Qwen3ForCausalLM(config).eval()


def qwen_vl() -> Any:
    text = {**LANGUAGE, "vocab_size": len(qwen_tokenizer()), "num_hidden_layers": 2}
    text |= {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}}
    vision = {"depth": 1, "hidden_size": 16, "out_hidden_size": 16, "num_heads": 2, "intermediate_size": 16}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return transformers.Qwen2_5_VLForConditionalGeneration(config).eval()


def gemma2() -> Any:
    config = transformers.Gemma2Config(vocab_size=len(gemma_tokenizer()), num_hidden_layers=3, **LANGUAGE)
    return transformers.Gemma2Model(config).eval()


def umt5() -> Any:
    sizes = {"d_model": 12, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2}
    return transformers.UMT5EncoderModel(transformers.UMT5Config(vocab_size=len(t5_tokenizer()), **sizes)).eval()


def bert() -> Any:
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return transformers.BertModel(transformers.BertConfig(vocab_size=len(bert_tokenizer()), **sizes)).eval()


# Autoencoders.
def kl(depth: int = 2, **changes: Any) -> Any:
    """An AutoencoderKL of factor 2^(depth - 1) with the shift of the flow pipelines."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * depth, "up_block_types": ("UpDecoderBlock2D",) * depth}
    sizes = {"block_out_channels": (4,) * depth, "norm_num_groups": 2, "latent_channels": 4}
    words = {"scaling_factor": 0.4, "shift_factor": 0.2}
    return diffusers.AutoencoderKL(**{**sizes, **blocks, **words, **changes}).eval()


def kl_flux2() -> Any:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    made = diffusers.AutoencoderKLFlux2(block_out_channels=(4, 4), norm_num_groups=2, latent_channels=4, **blocks)
    made.bn.running_mean.normal_()
    made.bn.running_var.uniform_(0.5, 2)
    return made.eval()


def kl_qwen() -> Any:
    means = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [0.5, 1.0, 2.0, 1.5]}
    sizes = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1], "num_res_blocks": 1, "temperal_downsample": [False]}
    return diffusers.AutoencoderKLQwenImage(**sizes, **means).eval()


def kl_wan() -> Any:
    means = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [0.5, 1.0, 2.0, 1.5]}
    sizes = {
        "base_dim": 4,
        "z_dim": 4,
        "dim_mult": [1, 1, 1],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True],
    }
    scale = {"scale_factor_temporal": 2, "scale_factor_spatial": 4}
    return diffusers.AutoencoderKLWan(**sizes, **means, **scale).eval()


def dc() -> Any:
    types = ["ResBlock", "EfficientViTBlock"]
    blocks = {"encoder_block_types": types, "decoder_block_types": types}
    sizes = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    depth = {"encoder_layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1)}
    more = {"encoder_qkv_multiscales": ((), (5,)), "decoder_qkv_multiscales": ((), (5,)), "attention_head_dim": 4}
    return diffusers.AutoencoderDC(in_channels=3, latent_channels=4, **blocks, **sizes, **depth, **more).eval()


# Denoisers.
def z_image() -> Any:
    rope = {"axes_dims": [2, 6, 8], "axes_lens": [560, 16, 16]}
    made = diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16, **rope
    )
    torch.nn.init.normal_(made.x_pad_token)
    torch.nn.init.normal_(made.cap_pad_token)
    return made


def flux2() -> Any:
    heads = {"num_attention_heads": 2, "attention_head_dim": 16, "axes_dims_rope": (4, 4, 4, 4)}
    sizes = {"num_layers": 1, "num_single_layers": 1, "joint_attention_dim": 48, "timestep_guidance_channels": 16}
    return diffusers.Flux2Transformer2DModel(in_channels=16, guidance_embeds=False, **heads, **sizes)


def qwen_image() -> Any:
    heads = {"num_attention_heads": 2, "attention_head_dim": 16, "axes_dims_rope": (4, 6, 6)}
    return diffusers.QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=1, joint_attention_dim=16, **heads
    )


def sana() -> Any:
    heads = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1}
    cross = {"num_cross_attention_heads": 2, "cross_attention_head_dim": 8, "cross_attention_dim": 16}
    return diffusers.SanaTransformer2DModel(
        in_channels=4, out_channels=4, sample_size=16, caption_channels=16, **heads, **cross
    )


def pixart_sigma() -> Any:
    heads = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1}
    words = {"out_channels": 8, "cross_attention_dim": 16, "caption_channels": 12, "use_additional_conditions": False}
    return diffusers.PixArtTransformer2DModel(**heads, sample_size=8, patch_size=2, in_channels=4, **words)


def chroma() -> Any:
    heads = {"num_attention_heads": 2, "attention_head_dim": 16, "axes_dims_rope": (4, 6, 6)}
    sizes = {"num_layers": 1, "num_single_layers": 1, "joint_attention_dim": 12}
    approximator = {"approximator_num_channels": 8, "approximator_hidden_dim": 16, "approximator_layers": 1}
    return diffusers.ChromaTransformer2DModel(in_channels=16, **heads, **sizes, **approximator)


def aura_flow() -> Any:
    heads = {"num_attention_heads": 2, "attention_head_dim": 8, "num_mmdit_layers": 1, "num_single_dit_layers": 1}
    sizes = {"joint_attention_dim": 12, "caption_projection_dim": 16, "pos_embed_max_size": 64}
    return diffusers.AuraFlowTransformer2DModel(sample_size=8, patch_size=2, in_channels=4, **heads, **sizes)


def hunyuan_dit() -> Any:
    heads = {"num_attention_heads": 2, "attention_head_dim": 8, "hidden_size": 16, "num_layers": 2}
    text = {"cross_attention_dim": 8, "cross_attention_dim_t5": 16, "pooled_projection_dim": 8}
    return diffusers.HunyuanDiT2DModel(
        in_channels=4, patch_size=2, sample_size=8, **heads, **text, activation_fn="gelu-approximate"
    )


def lumina2() -> Any:
    sizes = {"hidden_size": 24, "num_layers": 1, "num_refiner_layers": 1, "num_attention_heads": 2, "num_kv_heads": 1}
    rope = {"axes_dim_rope": (4, 4, 4), "axes_lens": (300, 64, 64)}
    return diffusers.Lumina2Transformer2DModel(
        sample_size=8, in_channels=4, cap_feat_dim=16, multiple_of=8, **sizes, **rope
    )


def wan() -> Any:
    heads = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 1, "ffn_dim": 16}
    return diffusers.WanTransformer3DModel(
        in_channels=4, out_channels=4, text_dim=12, freq_dim=16, rope_max_seq_len=64, **heads
    )


# What each family is.
SHIFTED = (FLOW, {"shift": 3.0})
DYNAMIC = (FLOW, {"shift": 3.0, "use_dynamic_shifting": True})
BETA = (FLOW, {"shift": 1.0, "use_beta_sigmas": True})  # as Chroma1-HD has it


@dataclass(frozen=True)
class Whole:
    """A family's pipeline, its parts, and how both sides are called.

    run: of the pipeline alone. words: of Network. packed: latents stand in patches of 2 x 2. scale: guidance of both.
    """

    pipeline: str
    model: Callable[[], Any]
    scheduler: tuple[str, dict[str, Any]]
    vae: Callable[[], Any]
    texts: Callable[[], dict[str, Any]]
    run: dict[str, Any] = field(default_factory=dict)
    words: dict[str, Any] = field(default_factory=dict)
    packed: bool = False
    scale: str = "guidance_scale"
    negative: bool = True
    pixels: int = 2
    options: dict[str, Any] = field(default_factory=dict)


def _one(encoder: Callable[[], Any], tokenizer: Callable[[], Any]) -> Callable[[], dict[str, Any]]:
    return lambda: {"text_encoder": encoder(), "tokenizer": tokenizer()}


SHAPE = {"shape": (4, 8, 8)}
WHOLE = {
    "z-image": Whole("ZImagePipeline", z_image, DYNAMIC, kl, _one(qwen3, qwen_tokenizer), words=SHAPE),
    "flux2-klein": Whole(
        "Flux2KleinPipeline",
        flux2,
        DYNAMIC,
        kl_flux2,
        _one(lambda: qwen3(28), qwen_tokenizer),
        words={"shape": (16, 4, 4)},
        negative=False,
        pixels=4,
        options={"is_distilled": False},
    ),
    "qwen-image": Whole(
        "QwenImagePipeline",
        qwen_image,
        DYNAMIC,
        kl_qwen,
        _one(qwen_vl, qwen_tokenizer),
        words=SHAPE,
        packed=True,
        scale="true_cfg_scale",
    ),
    "sana": Whole(
        "SanaPipeline",
        sana,
        SHIFTED,
        dc,
        _one(gemma2, gemma_tokenizer),
        run={"clean_caption": False, "use_resolution_binning": False},
        words={"shape": (4, 16, 16)},
    ),
    "pixart-sigma": Whole(
        "PixArtSigmaPipeline",
        pixart_sigma,
        (DDIM, {"clip_sample": False}),
        lambda: kl(shift_factor=None),
        _one(t5, t5_tokenizer),
        run={"clean_caption": False, "use_resolution_binning": False},
    ),
    "chroma": Whole("ChromaPipeline", chroma, BETA, kl, _one(t5, t5_tokenizer), words=SHAPE, packed=True),
    "auraflow": Whole("AuraFlowPipeline", aura_flow, SHIFTED, lambda: kl(shift_factor=None), _one(umt5, t5_tokenizer)),
    "hunyuan-dit": Whole(
        "HunyuanDiTPipeline",
        hunyuan_dit,
        (DDIM, {**SCALED, "prediction_type": "v_prediction"}),
        lambda: kl(4, shift_factor=None),
        lambda: {
            "text_encoder": bert(),
            "tokenizer": bert_tokenizer(),
            "text_encoder_2": t5(16),
            "tokenizer_2": t5_tokenizer(),
        },
        run={"use_resolution_binning": False},
        pixels=8,
    ),
    "lumina2": Whole("Lumina2Pipeline", lumina2, (FLOW, {"shift": 6.0}), kl, _one(gemma2, gemma_tokenizer)),
    "wan": Whole(
        "WanPipeline",
        wan,
        SHIFTED,
        kl_wan,
        _one(umt5, t5_tokenizer),
        run={"num_frames": 5},
        words={"shape": (4, 3, 4, 4)},
        pixels=4,
    ),
}


@cache
def whole(name: str) -> Any:
    """The family's pipeline; it is shared, so nothing may be changed in it."""
    import inspect

    family = WHOLE[name]
    torch.manual_seed(3)
    kind = getattr(diffusers, family.pipeline)
    own = {
        "transformer": randomized(family.model()),
        "scheduler": getattr(diffusers, family.scheduler[0])(**family.scheduler[1]),
        "vae": family.vae(),
        **family.texts(),
        **family.options,
    }
    needed = [one.name for one in inspect.signature(kind).parameters.values() if one.default is one.empty]
    needed += [one for one in own if one not in needed]
    unsafe = {"requires_safety_checker": False} if "safety_checker" in needed else {}
    pipeline = kind(**{one: own.get(one) for one in needed}, **unsafe)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def randomized(model: Any) -> Any:
    """The model with every weight drawn: some start at zero, and would hide what they multiply."""
    for name, one in model.named_parameters():
        if one.ndim < 2 and not name.endswith("bias") and "norm" in name:
            continue
        if not bool(one.any()):
            one.normal_(std=0.2)
    return model.eval()


def packed(x: Tensor) -> Tensor:
    return torch.nn.functional.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)


def unpacked(x: Tensor, side: int) -> Tensor:
    return torch.nn.functional.pixel_shuffle(x.transpose(1, 2).unflatten(2, (side // 2, side // 2)), 2)


def patched(latents: Tensor, vae: Any) -> Tensor:
    """FLUX.2's latents before its pipeline unpacks them: patches of 2 x 2, normalised."""
    mean = vae.bn.running_mean.view(1, -1, 1, 1)
    deviation = (vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps).sqrt()
    return (torch.nn.functional.pixel_unshuffle(latents, 2) - mean) / deviation
