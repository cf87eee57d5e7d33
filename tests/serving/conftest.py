"""An engine of a tiny pipeline that reads prompts, built once for the tests of this folder."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

import pfdiff


@pytest.fixture(scope="session")
def text_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Diffusion 1 with random weights, pictures [8, 8, 3] in 4 and 5 evaluations."""
    pytest.importorskip("transformers", reason="pip install 'pfdiff[diffusers]'")
    pytest.importorskip("diffusers", reason="pip install 'pfdiff[diffusers]'")
    path = tmp_path_factory.mktemp("text") / "sd1.engine"
    given: dict[str, Any] = {"solver": "ddim", "grid": "diffusers", "batch": [1, 4], "out": path}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of diffusers and transformers, which the server does without
        from ..small.diffusers import FAMILIES
        from ..small.texts import whole_pipeline

        described = {key: one for key, one in FAMILIES["sd1"].words.items() if key != "guidance"}
        network = pfdiff.Network(whole_pipeline("sd1", FAMILIES["sd1"]), **described)
        pfdiff.build(network, [4, 5], backend="onnxruntime", device="cpu", **given).close()
    return path
