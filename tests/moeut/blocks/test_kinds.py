"""A new kind of a block is one file and one entry: configured, built, drawn, sized, saved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

import moeut
from moeut.blocks.attention import ATTENTION, Attention, AttentionContext, DenseAttention
from moeut.blocks.attention.dense import DenseMultiHeadAttention
from moeut.blocks.norms import NormOptions
from moeut.blocks.positions import PositionOptions
from moeut.blocks.roles import Roles, constant, linear
from moeut.blocks.updates import UPDATE, Update, UpdateOptions
from moeut.sizing import count_parameters, macs_per_token


@dataclass(frozen=True, kw_only=True)
class Temperature(DenseAttention):
    """Dense attention whose logits have a learned factor."""

    kind: ClassVar[str] = "temperature"
    start: float = 2.0
    """Its first value."""

    def build(self, d_model: int, position: PositionOptions | None = None) -> Attention:
        return TemperatureAttention(self, d_model, position)


class TemperatureAttention(DenseMultiHeadAttention):
    def __init__(
        self, options: Temperature, d_model: int, position: PositionOptions | None
    ) -> None:
        super().__init__(options, d_model, position)
        self.start = options.start
        self.factor = nn.Parameter(torch.empty(()))

    def roles(self) -> Roles:
        return super().roles() | {"factor": constant(self.start)}

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, context: AttentionContext, routed: Tensor
    ):
        return super().attend(query * self.factor, key, value, context, routed)


@dataclass(frozen=True, kw_only=True)
class Gate(UpdateOptions):
    """The last sublayer's result is mixed with the state that the layer started from."""

    kind: ClassVar[str] = "gate"

    def build(self, d_model: int, norms: NormOptions) -> Update:
        return GatedUpdate(d_model)

    def macs(self, d_model: int) -> int:
        return d_model * d_model


class GatedUpdate(Update):
    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.gate = nn.Linear(d_model, d_model, bias=False)

    def roles(self) -> Roles:
        return {"gate.weight": linear(self.gate.in_features, self.gate.out_features)}

    def last(
        self, start: Tensor, x: Tensor, change: Tensor, norm: nn.Module | None, routed: Tensor
    ) -> Tensor:
        gate = self.gate(routed).sigmoid()
        return start * (1 - gate) + super().last(start, x, change, norm, routed) * gate


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ATTENTION, "temperature", Temperature)  # type: ignore[arg-type]
    monkeypatch.setitem(UPDATE, "gate", Gate)  # type: ignore[arg-type]


def make(**options) -> moeut.ModelConfig:
    return moeut.architecture(
        "universal", form="decoder_lm", vocabulary_size=9, d_model=16, **options
    )


@pytest.mark.usefixtures("kinds")
def test_new_kinds_are_models_like_any(tmp_path) -> None:
    plain = make()
    config = make(attention={"kind": "temperature", "num_heads": 2}, update="gate")
    assert moeut.ModelConfig.from_dict(config.to_dict()) == config
    with pytest.raises(moeut.OptionError, match=r"attention\.strat=1.*did you mean 'start'"):
        make(attention={"kind": "temperature", "strat": 1})
    assert count_parameters(config) == count_parameters(plain) + 1 + 16 * 16
    macs = [macs_per_token(one, sequence_length=5) for one in (plain, config)]
    assert macs[1] - macs[0] == 4 * 16 * 16

    torch.manual_seed(0)
    model = moeut.build(config).eval()
    layer = model.decoder.layers[0]
    assert layer.attention.factor.item() == 2.0
    assert 0.5 < layer.update.gate.weight.std() / (2 / 4 / 16) ** 0.5 < 1.5
    tokens = torch.arange(5)[None]
    logits = model(tokens).logits
    model.save(tmp_path)
    assert torch.equal(moeut.load(tmp_path)(tokens).logits, logits)
    with torch.no_grad():
        layer.attention.factor.zero_()
    assert not torch.allclose(model(tokens).logits, logits)

    # A gate that is shut leaves the state as it was: every depth gives the same.
    layer.update.gate.bias = nn.Parameter(torch.full((16,), -1e4))
    shallow, deep = (model(tokens, num_repeats=n).logits for n in (1, 6))
    assert torch.allclose(shallow, deep, atol=1e-6)
