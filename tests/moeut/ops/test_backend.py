import logging

import pytest
import torch

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


def test_backend_that_is_not_built_is_named():
    assert "triton" not in available_backends()
    with pytest.raises(ValueError, match="backend='triton': not available in this build"):
        resolve_backend("triton")


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
