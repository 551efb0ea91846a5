"""The operators' library: which are used, on which processor, and what is in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pynas.errors import PynasError
from pynas.ops import available, fused, library, use, using
from pynas.ops.batch_norm import batch_norm_act, takes
from pynas.ops.depthwise import depthwise_conv2d
from pynas.ops.split_attention import split_attention_combine
from pynas.ops.squeeze_excite import batch_norm_act_se

needs_library = pytest.mark.skipif(not available(), reason="libpynas_ops.so is not built here")


def test_the_library_is_built_where_torch_is() -> None:
    assert available()


@needs_library
def test_use_chooses_for_the_process_and_using_for_a_block() -> None:
    before = fused()
    with using("reference"):
        assert not fused()
        with using("fused"):
            assert fused()
        assert not fused()
        with pytest.raises(PynasError, match=r"ops\.use: got 'quick', allowed are fused, reference"):
            use("quick")  # type: ignore[arg-type]
        assert not fused()
    assert fused() == before


CUDA_OPERATORS = {
    *("ema_update", "ema_update_from", "rmsprop_ema_step", "sgd_ema_step"),
    *("channel_statistics", "batch_norm_act", "batch_norm_act_backward_sums", "batch_norm_act_backward"),
}


@pytest.fixture
def undecided(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """As in a process that has not yet asked."""
    monkeypatch.setattr(library, "_chosen", None)
    monkeypatch.delenv("PYNAS_OPS", raising=False)
    library.why_missing.cache_clear()
    yield monkeypatch
    library.why_missing.cache_clear()


@needs_library
def test_the_environment_chooses(undecided: pytest.MonkeyPatch) -> None:
    for kind, expected in (("reference", False), ("fused", True), ("", True)):
        undecided.setattr(library, "_chosen", None)
        undecided.setenv("PYNAS_OPS", kind)
        assert fused() is expected
    undecided.setattr(library, "_chosen", None)
    undecided.setenv("PYNAS_OPS", "quick")
    with pytest.raises(PynasError, match="PYNAS_OPS: got 'quick', allowed are fused, reference"):
        fused()


def test_without_the_library_everything_is_the_reference(undecided: pytest.MonkeyPatch, tmp_path: Path) -> None:
    undecided.setattr(library, "PATH", tmp_path / "absent.so")
    assert not fused()
    with pytest.raises(PynasError, match=r"fused operators are not here: .*absent\.so is not there: it is built where"):
        use("fused")


def test_a_damaged_library_is_told_of_and_left_out(undecided: pytest.MonkeyPatch, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.so"
    damaged.write_bytes(b"no library")
    undecided.setattr(library, "PATH", damaged)
    with pytest.warns(UserWarning, match=r"fused operators are left out: .*damaged\.so cannot be loaded"):
        assert not fused()


@needs_library
def test_a_new_process_loads_quickly_and_takes_the_instruction_set_it_is_told() -> None:
    code = """
import os, sys, torch, pynas.ops as ops
assert ops.fused()
assert not {"torch._dynamo", "sympy"} & set(sys.modules)
try:
    torch.ops.pynas.instruction_set()
except RuntimeError as error:
    assert 'PYNAS_INSTRUCTION_SET is "avx1024"; this processor has up to' in str(error), error
os.environ["PYNAS_INSTRUCTION_SET"] = "baseline"
assert torch.ops.pynas.instruction_set() == 0
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYNAS_INSTRUCTION_SET": "avx1024"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr


@needs_library
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="CUDA kernels are compiled where nvcc is")
def test_cuda_kernels_are_compiled_in_and_registered_without_a_gpu() -> None:
    assert torch.ops.pynas.has_cuda()
    registered = torch._C._dispatch_get_registrations_for_dispatch_key("CUDA")
    assert {name.removeprefix("pynas::") for name in registered if name.startswith("pynas::")} >= CUDA_OPERATORS


@pytest.mark.skipif(not library.available(), reason=library.why_missing())
def test_the_compiler_may_come_first() -> None:
    program = """
import torch
from torch import nn
from pynas.ops.batch_norm import batch_norm_act
x, norm = torch.randn(4, 16, 64, 64).contiguous(memory_format=torch.channels_last), nn.BatchNorm2d(16)
torch.compile(lambda x: batch_norm_act(x, norm, "relu"), fullgraph=True, backend="aot_eager")(x)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


META = "meta"


def _last(*shape: int) -> Tensor:
    return torch.randn(*shape).contiguous(memory_format=torch.channels_last)


@needs_library
@pytest.mark.parametrize("which", ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"])
@pytest.mark.parametrize("training", [False, True])
def test_a_norm_left_on_the_meta_device_is_refused(which: str, training: bool) -> None:
    norm, x = torch.nn.BatchNorm2d(32).train(training), _last(2, 32, 4, 4)
    home = norm._parameters if which in norm._parameters else norm._buffers
    home[which] = home[which].to(META)  # type: ignore[union-attr]
    se = torch.nn.Conv2d(32, 8, 1), torch.nn.Conv2d(8, 32, 1)
    with using("fused"):
        if which == "num_batches_tracked":  # torch counts it where it is
            assert takes(x, norm, "relu") == (not training)
            return
        for call in (
            lambda: batch_norm_act(x, norm, "relu"),
            lambda: batch_norm_act_se(x, norm, "relu", se[0], "relu", se[1]),
        ):
            with pytest.raises(RuntimeError, match="meta"):
                call()


@needs_library
def test_no_operator_mixes_the_meta_device_with_another() -> None:
    ops = torch.ops.pynas
    x, c, gate = _last(2, 32, 6, 6), torch.rand(32), torch.rand(2, 32)
    norm = (c, c, c, c, 1e-5, 1)
    calls: list[tuple[Any, tuple[Any, ...]]] = [
        (ops.running_statistics_, (c.clone(), c.clone(), torch.tensor(0), c, c, 0.1, 72)),
        (ops.batch_norm_act, (x, *norm, gate, x)),
        (ops.batch_norm_act_backward_sums, (x, x, *norm, gate)),
        (ops.batch_norm_act_backward, (x, x, *norm, gate, gate, torch.rand(2, 32), 72)),
        (ops.batch_norm_act_pool, (x, *norm)),
        (ops.batch_norm_act_gate_sums, (x, x, *norm)),
        (ops.split_attention_combine, (x, torch.rand(2, 16, 2))),
        (ops.split_attention_combine_backward, (_last(2, 16, 6, 6), x, torch.rand(2, 16, 2))),
        (ops.depthwise_conv2d, (x, torch.rand(32, 1, 3, 3), [1, 1], [1, 1])),
        (ops.depthwise_conv2d_backward, (x, x, torch.rand(32, 1, 3, 3), [1, 1], [1, 1], [True, True])),
        (ops.depthwise_forward, (x, torch.rand(32, 1, 3, 3), 1, 1, 1, 1)),
        (ops.depthwise_grad_input, (x, torch.rand(32, 1, 3, 3), 6, 6, 1, 1, 1, 1)),
        (ops.depthwise_grad_weight, (x, x, 3, 3, 1, 1, 1, 1)),
    ]
    for op, given in calls:
        op(*given)
        for i, value in enumerate(given):
            if isinstance(value, Tensor):
                with pytest.raises(RuntimeError, match="allowed: one device"):
                    op(*given[:i], value.to(META), *given[i + 1 :])


@needs_library
def test_functions_refuse_one_tensor_on_the_meta_device() -> None:
    x = _last(2, 32, 6, 6)
    with using("fused"):
        for call in (
            lambda: depthwise_conv2d(x, torch.rand(32, 1, 5, 5, device=META)),
            lambda: batch_norm_act(x, torch.nn.BatchNorm2d(32).eval(), keep=torch.ones(2, device=META)),
            lambda: split_attention_combine(x, torch.rand(2, 16, 2, device=META)),
        ):
            with pytest.raises(RuntimeError, match="meta"):
                call()
