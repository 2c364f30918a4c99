import logging
import subprocess
import sys

import pytest
import torch

import moeut
from moeut.ops import Dispatch, available_backends, backend, expert_linear, resolve_backend


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    monkeypatch.delenv("MOEUT_BACKEND", raising=False)


def test_argument_overrides_environment_overrides_automatic_choice(monkeypatch):
    assert resolve_backend() == "grouped"
    monkeypatch.setenv("MOEUT_BACKEND", "reference")
    assert resolve_backend() == "reference"
    assert resolve_backend("grouped") == "grouped"


def test_automatic_choice_is_logged_once(caplog):
    backend._announce.cache_clear()
    with caplog.at_level(logging.INFO, logger="moeut.ops.backend"):
        resolve_backend(device="cpu")
        resolve_backend(device="cpu")
    assert [record.getMessage() for record in caplog.records] == [
        "expert backend on cpu: grouped (the fastest)"
    ]


@pytest.mark.parametrize(("architecture", "lines"), [("universal", 0), ("moeut", 1)])
def test_choice_is_logged_for_models_with_experts_alone(architecture, lines, caplog):
    config = moeut.architecture(architecture, form="decoder_lm", vocabulary_size=5, d_model=16)
    model = moeut.build(config)
    backend._announce.cache_clear()
    with caplog.at_level(logging.INFO, logger="moeut.ops.backend"):
        model(torch.zeros(1, 2, dtype=torch.long))
    assert len(caplog.records) == lines


def test_backend_that_cannot_serve_says_why(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="backend='triton': cannot serve, Triton needs a CUDA"):
        resolve_backend("triton")
    with pytest.raises(ValueError, match="not meta; expected one of auto, reference, grouped"):
        resolve_backend("triton", "meta")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ValueError, match="float16 and bfloat16, not torch"):
        resolve_backend("triton", "cpu", torch.float64)


def test_without_triton_the_package_works_and_says_so(monkeypatch):
    monkeypatch.setattr(backend, "has_triton", lambda: False)
    assert available_backends() == ("reference", "grouped")
    with pytest.raises(ValueError, match="cannot serve, Triton is not installed"):
        resolve_backend("triton")
    assert resolve_backend("auto", "cuda") == "grouped"


def test_a_cpu_does_without_triton_and_our_modules_for_it():
    """Triton takes a second to import, and may be missing or broken."""
    code = """
import sys
sys.modules["triton"] = None
import torch
import moeut.ops as ops
dispatch = ops.Dispatch.from_indices(torch.tensor([0]), 1)
print(ops.expert_linear(torch.ones(1, 1), torch.ones(1, 1, 1), dispatch).item())
print([name for name in sys.modules if name.startswith("moeut.ops.triton")])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "1.0\n[]\n", result.stderr


@pytest.mark.skipif(not backend.has_triton(), reason="Triton is not installed")
def test_interpreter_serves_the_cpu_when_asked_only(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert resolve_backend("triton") == "triton"
    assert resolve_backend() == "grouped"


def test_misspelt_backend_gets_the_nearest_name(monkeypatch):
    monkeypatch.setenv("MOEUT_BACKEND", "gruoped")
    with pytest.raises(ValueError, match=r"MOEUT_BACKEND='gruoped'.*did you mean 'grouped'"):
        resolve_backend()


def test_operation_uses_the_backend_it_is_told(monkeypatch):
    called = []
    monkeypatch.setattr(
        "moeut.ops.reference.expert_linear", lambda x, *_: called.append("reference") or x
    )
    dispatch = Dispatch.from_indices(torch.tensor([0]), 1)
    expert_linear(torch.ones(1, 2), torch.ones(1, 2, 2), dispatch, backend="reference")
    expert_linear(torch.ones(1, 2), torch.ones(1, 2, 2), dispatch, backend="grouped")
    assert called == ["reference"]
