"""The operators' library: which are used, on which processor, and what is in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pynas.errors import PynasError
from pynas.ops import available, fused, library, use, using

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
