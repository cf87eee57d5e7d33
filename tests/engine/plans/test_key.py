"""What a plan is valid for: each part of its key tells plans apart."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest

import pfdiff
from pfdiff.engine.artifact import FileRecord
from pfdiff.engine.contract.contract import DecoderContract
from pfdiff.engine.plans import store
from pfdiff.engine.plans.key import load_flavour, parse_targets, plan_key

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")


def test_every_part_of_the_key_matters(small):
    key = plan_key(small, "tensorrt_rtx", "sm89")
    changes = {"version": "9", "capability": "sm86", "gpu": "x", "network": "0", "precision": "fp16", "batch": (1, 2)}
    names = {dataclasses.replace(key, **{field: value}).name for field, value in (*changes.items(), ("tf32", True))}
    assert len(names | {key.name}) == len(changes) + 2


def test_targets():
    assert parse_targets("SM86, sm89,sm86") == ("sm86", "sm89")
    for bad in ("86", "sm8", "sm", "ada"):
        with pytest.raises(pfdiff.InputError, match="is no compute capability"):
            parse_targets(bad)


def test_flavours():
    with pytest.raises(pfdiff.InputError, match="unknown TensorRT flavour 'trt'; known: tensorrt, tensorrt_rtx"):
        load_flavour("trt")


def test_network_and_decoder_have_plans_of_their_own(small, tmp_path):
    before = plan_key(small, "tensorrt_rtx", "sm89")
    decoder = DecoderContract("up", (3, 8, 8), (3, 16, 16), precision="fp16")
    keys = []
    for content in (b"decoder", b"another"):
        record = FileRecord(hashlib.sha256(content).hexdigest(), len(content))
        latent = dataclasses.replace(small, decoder=decoder, files={**small.files, "decoder.onnx": record})
        assert plan_key(latent, "tensorrt_rtx", "sm89") == before  # its decoder is not the network's business
        keys.append(plan_key(latent, "tensorrt_rtx", "sm89", file="decoder.onnx"))
        assert (keys[-1].precision, before.precision) == ("fp16", "fp32")
    assert len({before.name, *(key.name for key in keys)}) == 3
    store.store_plan(dataclasses.replace(small, path=tmp_path), keys[0], b"plan")
    with pytest.raises(pfdiff.EngineFileError, match=r"no plan for sm89 is stored in '.*plans'$"):
        store.read_plan(dataclasses.replace(small, path=tmp_path), before)  # the decoder's is none of its own
