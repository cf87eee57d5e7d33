"""A network given as an nn.Module: called as trials show it takes, exported, compared with what was exported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import final

import torch
from torch import nn

from ...engine.backends.casting import cast_copy
from ...engine.contract.contract import Contract
from ...engine.errors import InputError
from ...engine.tensors import PRECISION_DTYPES, TORCH_DTYPES
from ..check import LARGE_BYTES, Array, TrialInputs, check_export, trial_inputs
from ..described import Described
from ..pipelines.reread import Reread
from ..pipelines.weights import free_weights, return_memory
from ..to_onnx import export_module, named_line, prepared
from .module_call import Call, Normalised, left_out, probe, read_conditions, read_signature
from .module_digest import content_digest


@final
class ModuleSource:
    """An nn.Module, how to call it, and the contract of the network.onnx made from it.

    left_out: forward's optional parameters that nobody asked for.
    """

    def __init__(self, module: nn.Module, code: bytes, described: Described) -> None:
        self.module: nn.Module = getattr(module, "_orig_mod", module)  # what torch.compile wrapped
        self._code = code
        self.weights: Reread | None = described.weights
        if isinstance(self.module, torch.jit.ScriptModule):
            raise InputError(
                f"network '{described.name}': it is TorchScript, which is not exported; give the nn.Module that was "
                "traced or scripted"
            )
        input, time, example = described.input, described.time, described.example
        # Examples beside those of x and the time describe conditions.
        extra = {name: one for name, one in example.items() if name not in ("x", "t", input, time)}
        given = {**extra, **described.conditions}
        parameters, _ = read_signature(self.module, input, time, tuple(described.conditions))
        given = {name: one for name, one in given.items() if name not in parameters[:2]}
        parameters, positional = read_signature(self.module, input, time, tuple(given))
        x, t = (example.get(name, example.get(short)) for name, short in zip(parameters, ("x", "t"), strict=False))
        shape = described.shape
        if shape is None:
            if x is None:
                raise InputError(
                    f"network '{described.name}': the sample's shape is missing; give shape= (--shape 3x64x64)"
                )
            shape = tuple(x.shape[1:])
        channels = shape[0] if described.learned_sigma else None
        self.left_out = left_out(self.module, parameters)
        self.call = Call(parameters, positional, described.output, channels)
        conditions = read_conditions(self.module, parameters[2:], given)
        contract = described.contract(shape, conditions, time_rank=1 if t is None else min(t.ndim, 1))
        asked = described.time_dtype
        if asked is None and t is not None:
            asked = "float32" if t.is_floating_point() else "int64"
        self.contract = self._tried(contract, [asked] if asked else ["float32", "int64"])

    def _tried(self, contract: Contract, time_dtypes: list[str]) -> Contract:
        """The contract with the first time dtype that forward accepts, and label ranges from embedding tables."""

        failures: list[Exception] = []
        for dtype in time_dtypes:
            contract = replace(contract, time_dtype=dtype)
            try:
                found, tables = probe(self.module, self.call, contract)
                break
            except InputError:
                raise
            except Exception as error:  # whatever the user's forward raises
                failures.append(error)
        else:
            shapes = [f"x {[2, *contract.shape]}", f"t {[2] if contract.time_rank else []} {' or '.join(time_dtypes)}"]
            shapes += [f"{one.name} {[2, *one.shape]} {one.dtype}" for one in contract.conditions]
            raise InputError(
                f"network '{contract.name}': forward failed with {', '.join(shapes)} "
                f"({named_line(failures[0])}); correct shape=, conditions= or time_dtype="
            ) from failures[0]
        single, double = [2, *contract.shape], [2, 2 * contract.shape[0], *contract.shape[1:]]
        wanted = double if contract.learned_sigma else single
        if found != wanted:
            hint = "it also predicts a variance: give learned_sigma=True (--learned-sigma)"
            hint = hint if found == double else "correct shape=, output= or learned_sigma="
            raise InputError(f"network '{contract.name}': forward returns {found}, expected {wanted}; {hint}")
        ranged = (
            replace(one, low=0, high=tables[one.name] - 1)
            if one.name in tables and one.low is None and one.high is None
            else one
            for one in contract.conditions
        )
        return replace(contract, conditions=tuple(ranged))

    def content(self) -> bytes:
        return content_digest(self.whole(), self._code + repr(self.call).encode())

    def free(self) -> None:
        """Free weights that were read from files. Who needs them afterwards reads them again."""
        if self.weights is not None:
            self.weights.free()

    def whole(self) -> nn.Module:
        """The module with its weights. Raises InputError where their files have changed since they were freed."""
        if self.weights is not None:
            self.weights.restore()
        return self.module

    def evaluate(self, case: TrialInputs, precision: str = "fp32") -> Array:
        """The module on the CPU at `precision`, as float32 [B, *shape]. Raises InputError when forward fails."""
        with prepared(self.whole(), PRECISION_DTYPES[precision]) as network:
            return self._run(network, case, precision)

    @torch.no_grad()
    def _run(self, network: nn.Module, case: TrialInputs, precision: str) -> Array:
        """The same of a module that is at `precision` already."""
        x = torch.from_numpy(case.x).to(PRECISION_DTYPES[precision])
        conditions = (
            torch.from_numpy(value).to(TORCH_DTYPES[one.dtype])
            for value, one in zip(case.conditions, self.contract.conditions, strict=True)
        )
        try:
            out = Normalised(network, self.call)(x, torch.from_numpy(case.t), *conditions)
        except Exception as error:  # whatever the user's forward raises
            raise InputError(
                f"network '{self.contract.name}': forward fails at {case.where}, {precision} "
                f"({named_line(error)}); it must take any batch size, time and condition that the contract allows"
            ) from error
        return out.float().numpy()

    def write(self, path: Path, precision: str, *, external: bool | None, consumes: bool = False) -> Contract:
        """consumes: the weights may be freed on the way, which a half precision does."""
        contract = replace(self.contract, precision=precision)
        if consumes and precision != "fp32":
            self._write_short(path, contract, external=external)
            return contract
        with prepared(self.whole(), PRECISION_DTYPES[precision]) as network:
            export_module(Normalised(network, self.call), contract, path, external=external)
        plain = None if precision == "fp32" else lambda case: self.evaluate(case, precision)
        check_export(path, contract, self.evaluate, plain)
        return contract

    def _write_short(self, path: Path, contract: Contract, *, external: bool | None) -> None:
        """In a half precision: what the float32 weights give, what the cast ones give, then the file, one by one."""
        precision = contract.precision
        size = sum(one.numel() for one in self.module.parameters()) * PRECISION_DTYPES[precision].itemsize
        cases = tuple(trial_inputs(contract, large=size > LARGE_BYTES))
        exact = {id(case): self.evaluate(case) for case in cases}
        short = cast_copy(self.module, PRECISION_DTYPES[precision], consumes=True).eval()
        self.free()
        return_memory(size)
        plain = {id(case): self._run(short, case, precision) for case in cases}
        export_module(Normalised(short, self.call), contract, path, external=external)
        return_memory(free_weights(short))
        check_export(path, contract, lambda case: exact[id(case)], lambda case: plain[id(case)], cases)
