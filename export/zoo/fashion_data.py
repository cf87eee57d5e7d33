"""The pictures that the shipped networks were trained on: Fashion-MNIST (Zalando, MIT licence).

Either `fashion_mnist_train_uint8.npz` (`x` uint8 [60000, 28, 28], `y` uint8 [60000]) or the four original `*-ubyte.gz`
files, which https://github.com/zalandoresearch/fashion-mnist offers in `data/fashion`.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np


def load_fashion(folder: Path, split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 [n, 28, 28] and labels uint8 [n]; split is "train" or "test"."""
    packed = folder / f"fashion_mnist_{split}_uint8.npz"
    if packed.exists():
        with np.load(packed) as data:
            return data["x"], data["y"]
    stem = {"train": "train", "test": "t10k"}[split]
    images, labels = folder / f"{stem}-images-idx3-ubyte.gz", folder / f"{stem}-labels-idx1-ubyte.gz"
    if not images.exists() or not labels.exists():
        raise FileNotFoundError(f"{folder} has neither {packed.name} nor {images.name} and {labels.name}")
    pixels = np.frombuffer(gzip.decompress(images.read_bytes()), np.uint8, offset=16).reshape(-1, 28, 28)
    return pixels, np.frombuffer(gzip.decompress(labels.read_bytes()), np.uint8, offset=8)
