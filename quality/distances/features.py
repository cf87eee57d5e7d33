"""Feature extractors: pictures become the vectors that distances are measured between.

    features = extractor("fashion")(pixels)      # pixels uint8 [n, H, W, C] -> pooled [n, d], spatial [n, d_s] or None

| name                   | what it is                                                                               |
|------------------------|------------------------------------------------------------------------------------------|
| `fashion`              | the shipped Fashion-MNIST classifier: its 128 mean activations, its 7x7 maps             |
| `fashion:second`       | another classifier of it, to judge what was trained on the first                         |
| `inception:FILE`       | Inception-v3 of 2015-12-05 as TorchScript, the user's file: the only one that gives FID, |
|                        | and only if its SHA-256 is that of NVIDIA's. `inception` alone: the cache folder's       |
| `judge.onnx[:OUTPUT]`  | an ONNX network of the user's: x [n, C, H, W] -> features [n, d]; maps are an output     |
|                        | [n, c, h, w] if it has just one. OUTPUT names the features                               |
| `judge.py:factory`     | a module of the user's: forward(x) -> features [n, d], or (features, maps)               |

x is float32 with 0 and 255 at the ends of `scale`. Spatial features are the first 7 channels of the maps, flattened, as
in sFID (Nash et al., arXiv 2103.03841).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...engine.artifact import sha256_of
from ...engine.cache import cache_folder, content_key
from ...engine.device import parse_device, why_not_cuda
from ...engine.errors import InputError, first_line
from ...export.sources.module_call import load_factory
from ...export.sources.module_digest import content_digest
from ...export.sources.onnx_roles import external_files, read_model

Array = NDArray[np.float32]
Pixels = NDArray[np.uint8]
SHIPPED = ("fashion", "fashion:second")
SPATIAL_CHANNELS = 7
BATCH = 100
INCEPTION = "inception"
INCEPTION_FILE = "inception-2015-12-05.pt"
INCEPTION_URL = f"https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/{INCEPTION_FILE}"
# SHA-256 of NVIDIA's inception-2015-12-05.pt, as k-diffusion's evaluation.py checks it: what gives FID.
FID_DIGEST = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
EXPECTED = "fashion, inception:FILE, an .onnx file or file.py:factory"


@final
@dataclass(frozen=True, eq=False)
class Features:
    """Of n pictures: pooled float32 [n, d]; spatial float32 [n, d_s], None when the extractor has no maps."""

    pooled: Array
    spatial: Array | None

    def __len__(self) -> int:
        return len(self.pooled)

    def __add__(self, other: Features) -> Features:
        return joined([self, other])


@final
@dataclass(frozen=True, eq=False)
class Extractor:
    """run(pixels uint8 [b, H, W, C]) -> ([b, d], maps [b, c, h, w] or None), and a digest of all that decides it."""

    name: str
    digest: str
    run: Callable[[Pixels], tuple[Tensor, Tensor | None]]

    @property
    def fid(self) -> bool:
        """Whether a Frechet distance on these features is FID."""
        return self.digest == FID_DIGEST

    def __call__(self, pixels: Pixels, tell: Callable[[int], None] | None = None) -> Features:
        """The features of pixels uint8 [n, H, W, C], n at least 1, in batches; tell(done). Raises InputError."""
        pooled: list[Array] = []
        spatial: list[Array] = []
        for first in range(0, len(pixels), BATCH):
            part = pixels[first : first + BATCH]
            features, maps = self._checked(part)
            pooled.append(features.float().cpu().numpy())
            if maps is not None:
                spatial.append(maps[:, :SPATIAL_CHANNELS].flatten(1).float().cpu().numpy())
            if tell:
                tell(first + len(part))
        return Features(np.concatenate(pooled), np.concatenate(spatial) if spatial else None)

    def _checked(self, part: Pixels) -> tuple[Tensor, Tensor | None]:
        size = "x".join(map(str, part.shape[1:]))
        try:
            features, maps = self.run(part)
        except InputError:
            raise
        except Exception as error:  # whatever the user's network raises
            raise InputError(
                f"features '{self.name}' refuse pictures of {size} (height, width, channels): {first_line(error)}"
            ) from error
        if features.ndim != 2 or len(features) != len(part) or (maps is not None and maps.ndim != 4):
            got = " and ".join(str(list(one.shape)) for one in (features, maps) if one is not None)
            raise InputError(
                f"features '{self.name}' gave {got} for {len(part)} pictures, expected [n, d], maps [n, c, h, w]"
            )
        if not bool(torch.isfinite(features).all()):
            raise InputError(f"features '{self.name}' gave NaN or infinity for pictures of {size}")
        return features, maps


def extractor(source: str | nn.Module, *, scale: tuple[float, float] = (-1.0, 1.0), device: str = "auto") -> Extractor:
    """The extractor of that name, or a module. scale: what 0 and 255 become for the user's own networks.

    device: of modules, auto is a GPU if there is one; ONNX runs on the CPU. Raises InputError, BackendError.
    """
    place = parse_device(device) or torch.device("cpu" if why_not_cuda() else "cuda")
    if not scale[0] < scale[1]:
        raise InputError(f"scale {scale[0]:g},{scale[1]:g}, expected two ascending numbers such as 0,1")
    if isinstance(source, nn.Module):
        return _of_module(type(source).__name__, source, b"", scale, place)
    if source in SHIPPED:
        return _shipped(source, place)
    kind, _, rest = source.partition(":")
    if kind == INCEPTION:
        from .inception import run_inception

        cached = cache_folder() / INCEPTION_FILE
        text = str(cached) if source == INCEPTION else rest
        path = _file(source, text, f"{INCEPTION_URL} there, or as inception:FILE")
        digest = sha256_of(path)
        name = INCEPTION if digest == FID_DIGEST else f"{INCEPTION}:{path.name}"
        return Extractor(name, digest, run_inception(path, place))
    if ".onnx" in source:
        return _of_onnx(source, scale)
    if ".py:" in source:
        module, code = load_factory(source)
        return _of_module(Path(source).name, module, code, scale, place)
    raise InputError(f"unknown features '{source}'; expected {EXPECTED}")


def with_whole_path(source: str) -> str:
    """The same extractor's name for a process that works in another folder."""
    if source in SHIPPED:
        return source
    if source == INCEPTION:
        return f"{INCEPTION}:{cache_folder() / INCEPTION_FILE}"
    kind = f"{INCEPTION}:" if source.startswith(f"{INCEPTION}:") else ""
    return kind + os.path.join(os.getcwd(), source.removeprefix(kind))


def scaled(pixels: Pixels, scale: tuple[float, float], device: torch.device) -> Tensor:
    """x float32 [n, C, H, W] of pixels [n, H, W, C]: 0 and 255 at the ends of `scale`."""
    low, high = scale
    return torch.from_numpy(pixels).to(device).movedim(3, 1).float() * ((high - low) / 255) + low


def joined(parts: Sequence[Features]) -> Features:
    """One set of features from several, in their order."""
    spatial = [part.spatial for part in parts if part.spatial is not None]
    return Features(np.concatenate([part.pooled for part in parts]), np.concatenate(spatial) if spatial else None)


# Where networks come from.
def _shipped(name: str, device: torch.device) -> Extractor:
    """Of the two classifiers of Fashion-MNIST."""
    from ...export.zoo import fashion_classifier, fashion_second_judge

    first = name == "fashion"
    weights = (fashion_classifier if first else fashion_second_judge).WEIGHTS
    model = (fashion_classifier.load_classifier() if first else fashion_second_judge.load_second_judge()).to(device)

    @torch.inference_mode()
    def run(pixels: Pixels) -> tuple[Tensor, Tensor]:
        if pixels.shape[1:] != (28, 28, 1):
            raise InputError(f"features '{name}' take pictures of 28x28x1, got {'x'.join(map(str, pixels.shape[1:]))}")
        maps = model.maps(scaled(pixels, (-1.0, 1.0), device))
        return model.features_of_maps(maps), maps

    return Extractor(name, sha256_of(weights), run)


def _of_module(
    name: str, module: nn.Module, code: bytes, scale: tuple[float, float], device: torch.device
) -> Extractor:
    digest = content_key(content_digest(module, code).hex(), scale)
    model = module.eval().to(device)

    @torch.inference_mode()
    def run(pixels: Pixels) -> tuple[Tensor, Tensor | None]:
        answer = model(scaled(pixels, scale, device))
        return answer if isinstance(answer, tuple) else (answer, None)

    return Extractor(name, digest, run)


def onnx_judge(source: str, scale: tuple[float, float]) -> tuple[Any, list[str], str]:
    """(session, names of features and, if there are, maps, digest) of judge.onnx[:OUTPUT]. Raises InputError."""
    import onnxruntime

    file, _, output = source.rpartition(":") if not source.endswith(".onnx") else (source, "", "")
    path = _file(source, file, "judge.onnx or judge.onnx:OUTPUT")
    files = [path, *(path.parent / name for name in sorted(external_files(read_model(path))))]
    try:
        session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base of their own
        raise InputError(f"features '{path}': onnxruntime refuses the file ({first_line(error)})") from error
    ranks = {one.name: len(one.shape) for one in session.get_outputs()}
    flat = [name for name, rank in ranks.items() if rank == 2]
    if (output and output not in ranks) or (not output and len(flat) != 1):
        held = ", ".join(f"{name} of rank {rank}" for name, rank in ranks.items())
        raise InputError(f"features '{path}': choose the output [n, d] with {path.name}:OUTPUT; the file gives {held}")
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(float)":
        held = ", ".join(f"{one.name} {one.type}" for one in inputs)
        raise InputError(f"features '{path}': the file takes {held}, expected one float32 input [n, C, H, W]")
    maps = [name for name, rank in ranks.items() if rank == 4]
    names = [output or flat[0], *(maps if len(maps) == 1 else [])]
    return session, names, content_key([sha256_of(file) for file in files], names, scale)


def _of_onnx(source: str, scale: tuple[float, float]) -> Extractor:
    session, names, digest = onnx_judge(source, scale)
    (given,) = session.get_inputs()

    def run(pixels: Pixels) -> tuple[Tensor, Tensor | None]:
        x = scaled(pixels, scale, torch.device("cpu")).numpy()
        answers = [torch.from_numpy(value) for value in session.run(names, {given.name: np.ascontiguousarray(x)})]
        return answers[0], answers[1] if len(answers) > 1 else None

    file = source if source.endswith(".onnx") else source.rpartition(":")[0]
    return Extractor(f"{Path(file).name}:{names[0]}", digest, run)


def _file(source: str, text: str, example: str) -> Path:
    path = Path(text)
    if not text or not path.is_file():
        raise InputError(f"features '{source}': there is no file '{text}'; expected {example}")
    return path
