"""Repositories of the hub, from a stub of it on loopback: what is fetched, what is not, and how it fails."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

import pfdiff
from pfdiff.export.pipelines.hub import is_hub_id, wanted

from ...small.diffusers import FAMILIES, WARNINGS, scheduler_of, text_unet

pytestmark = WARNINGS
pytest.importorskip("huggingface_hub")

COMMIT = "1234567890abcdef1234567890abcdef12345678"
SDXL = [
    *("README.md", "model_index.json", "sd_xl_base_1.0.safetensors", "scheduler/scheduler_config.json"),
    *("unet/config.json", "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"),
    *("unet/model.onnx", "unet/diffusion_flax_model.msgpack", "unet/diffusion_pytorch_model.bin"),
    *("text_encoder/config.json", "text_encoder/model.safetensors", "text_encoder/pytorch_model.bin"),
    *("text_encoder/openvino_model.xml", "tokenizer/vocab.json", "tokenizer/merges.txt", "pipeline.py"),
    *("vae/config.json", "vae/diffusion_pytorch_model.fp16.safetensors", "safety_checker/model.safetensors"),
]


def test_only_what_an_engine_is_made_of_is_fetched() -> None:
    chosen = [
        *("model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "vae/config.json"),
        *("vae/diffusion_pytorch_model.fp16.safetensors", "scheduler/scheduler_config.json"),
    ]
    texts = [
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
    ]
    assert sorted(wanted(SDXL, encoders=False)) == sorted(chosen)
    assert sorted(wanted(SDXL)) == sorted([*chosen, *texts])
    taesd = ["README.md", "config.json", "diffusion_pytorch_model.safetensors", "taesd_decoder.pth"]
    assert wanted(taesd) == ["config.json", "diffusion_pytorch_model.safetensors"]
    parts = [f"transformer/diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = "transformer/diffusion_pytorch_model.safetensors.index.json"
    half = "transformer/diffusion_pytorch_model.fp16.safetensors.index.json"
    found = wanted(["model_index.json", "transformer/config.json", *parts, index, half])
    assert sorted(found) == sorted(["model_index.json", "transformer/config.json", *parts, index])


def test_pickled_weights_are_refused() -> None:
    with pytest.raises(pfdiff.InputError, match=r"unet/diffusion_pytorch_model.bin is pickled"):
        wanted(["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.bin"])
    with pytest.raises(pfdiff.InputError, match="no pipeline or model"):
        wanted(["README.md", "data.parquet"])


def test_names_of_this_machine_are_no_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert is_hub_id("owner/name")
    assert is_hub_id("owner/name@v1.0")
    for text in ("models/mine", "fashion", "a/b.onnx", "/a/b", "../a/b", "nets/unet.py:load", "a/b/c"):
        assert not is_hub_id(text), text


class Hub(BaseHTTPRequestHandler):
    """Just enough of it: a repository's list of files, and the files."""

    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        headers: dict[str, str] = {}
        status, body = 404, b"{}"
        if path.startswith("/api/models/tiny/sd"):
            listed = [{"rfilename": name} for name in self.files]
            body = json.dumps({"id": "tiny/sd", "sha": COMMIT, "siblings": listed}).encode()
            if "/tree/" in path:
                listed = [
                    {"type": "file", "path": name, "size": len(one), "oid": "0"} for name, one in self.files.items()
                ]
                body = json.dumps(listed).encode()
            status, headers = 200, {"Content-Type": "application/json"}
        elif path.startswith(f"/tiny/sd/resolve/{COMMIT}/"):
            name = path.partition(f"{COMMIT}/")[2]
            if name in self.files:
                status, body = 200, self.files[name]
                headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": COMMIT}
        elif path.startswith("/api/models/gated"):
            status, headers = 403, {"X-Error-Code": "GatedRepo"}
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "tiny"
    text_unet().save_pretrained(folder / "unet")
    scheduler_of(FAMILIES["sd1"]).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickled")
    Hub.files = {one.relative_to(folder).as_posix(): one.read_bytes() for one in folder.rglob("*") if one.is_file()}
    Hub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def build(endpoint: str, home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`pfdiff build` in a process of its own: the library reads its environment once."""
    given = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-m", "pfdiff", "build", *arguments, "--nfe", "3", "--device", "cpu"]
    return subprocess.run(
        command, cwd=home.parent, env={**os.environ, **given, **environment}, capture_output=True, text=True
    )


@pytest.mark.slow
def test_a_repository_becomes_an_engine(hub: str, tmp_path: Path) -> None:
    home = tmp_path / "cache"
    done = build(hub, home, "tiny/sd", "-o", "sd.engine")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "sd.engine" / "engine.json").read_text())
    assert manifest["provenance"]["hub"] == {"repository": "tiny/sd", "commit": COMMIT}
    assert manifest["contract"]["name"] == "sd"
    assert not [path for path in Hub.asked if path.endswith(".bin")]
    # Without the hub its cache is enough.
    again = build("http://127.0.0.1:9", home, "tiny/sd", "-o", "sd.engine")
    assert again.returncode == 0, again.stderr
    assert "up to date" in again.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none/such", "'none/such' is no folder here, and from the hub it answers 404; check its name"),
        ("gated/model", "and from the hub it answers 403; ask for access on its page"),
    ],
)
def test_what_the_hub_refuses_is_one_line(hub: str, tmp_path: Path, name: str, message: str) -> None:
    done = build(hub, tmp_path / "cache", name)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_without_a_network_it_is_one_line(tmp_path: Path) -> None:
    done = build("http://127.0.0.1:9", tmp_path / "cache", "tiny/sd")
    assert done.returncode == 2
    assert "'tiny/sd' is no folder here, and from the hub it cannot be reached" in done.stderr
    assert done.stderr.count("\n") == 1
