"""What the build of a pipeline imports, without what it does not use, for a process that does nothing else.

diffusers and transformers import some libraries wherever these are installed. The build of a pipeline's folder uses
none of them: peft changes weights by LoRA files, scipy computes noise schedules and losses of detectors, trio waits
for the network. They are a fifth of the modules that a build would import. They are hidden while these packages look
for them. Later imports find them, but what diffusers and transformers have concluded stays. So this is for the command
line, and not for where the user's own code runs or a LoRA is fused.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

UNUSED = ("peft", "scipy", "trio")
PIPELINE = ("diffusers.models.unets", "diffusers.models.autoencoders", "diffusers.models.transformers")
EXPORTER = ("torch.export._trace", "onnxscript", "torch.onnx._internal.exporter._core")


def is_pipeline_folder(network: str) -> bool:
    """Whether `network` is a folder that a pipeline's save_pretrained wrote."""
    return (Path(network) / "model_index.json").is_file()


def import_exporter() -> None:
    """What exports a module, which would be imported on the way."""
    _imported(EXPORTER)


def import_pipeline() -> None:
    """What reads a pipeline's folder and exports its networks, without `UNUSED`.

    Nothing is hidden where diffusers is there already: it has looked.
    """
    with _hidden(() if "diffusers" in sys.modules else UNUSED):
        _imported(PIPELINE)
    import_exporter()


def _imported(names: tuple[str, ...]) -> None:
    for name in names:
        with contextlib.suppress(ImportError):  # another version; what is missing is told where it is used
            import_module(name)


@contextlib.contextmanager
def _hidden(names: tuple[str, ...]) -> Iterator[None]:
    """Python says of these packages meanwhile that they are not installed, unless they are imported already."""
    gone = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(gone))  # type: ignore[arg-type]  # None: not found
    try:
        yield
    finally:
        for name in gone:
            del sys.modules[name]
