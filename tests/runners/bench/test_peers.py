import dataclasses

import pytest
import torch

from moeut.ops import Dispatch, expert_linear, expert_mlp
from runners.bench.peers import load_peer

CVMM = """
import dataclasses
import torch

@dataclasses.dataclass
class Selection:
    raw_sel: object
    sel: object
    sel_index: object
    out_index: object
    reduction_weight: object = None

    def clone(self):
        return dataclasses.replace(self)

def cvmm_prepare_sel2(index, weights=None):
    # As the published kernel's: sorted experts, input rows, and where rows go.
    flat = index.flatten()
    experts, out_index = flat.sort(stable=True)
    return Selection(index, experts, out_index // index.shape[-1], out_index, weights)

def cvmm(x, selection, weight):
    rows = x.flatten(0, -2)[selection.sel_index]
    y = torch.einsum("sd,sdf->sf", rows, weight[selection.sel])
    place = selection.sel_index if selection.out_index is None else selection.out_index
    out = torch.zeros(len(place), weight.shape[-1]).index_copy(0, place, y)
    if selection.reduction_weight is not None:
        w = selection.reduction_weight
        return (out.view(*w.shape, -1) * w.unsqueeze(-1)).sum(-2)
    return out.view(*selection.raw_sel.shape, -1)
"""


@pytest.fixture
def cvmm(tmp_path):
    (tmp_path / "cvmm.py").write_text(CVMM)
    return load_peer(f"cvmm={tmp_path / 'cvmm.py'}")


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_published_kernel_is_called_as_the_layer_calls_it(cvmm):
    x, w_up, w_down, scores = draw(9, 6), draw(5, 6, 7), draw(5, 7, 6), draw(9, 5)
    gate, index = scores.topk(3)
    expected = expert_mlp(x, w_up, w_down, Dispatch.from_indices(index, 5), gate=gate)
    torch.testing.assert_close(cvmm.expert_mlp(x, w_up, w_down, index, gate), expected)


@pytest.mark.parametrize("kind", ["value", "output"])
def test_published_kernel_is_called_as_the_attention_calls_it(cvmm, kind):
    tokens, heads, top_k = 9, 2, 3
    gate, index = draw(tokens, heads, 4).topk(top_k)
    index = index + 4 * torch.arange(heads).view(1, heads, 1)
    x, weight = draw(tokens if kind == "value" else tokens * heads, 6), draw(8, 6, 7)
    slots = (heads * top_k, top_k) if kind == "value" else (top_k, heads * top_k)
    expected = expert_linear(
        *(x, weight, Dispatch.from_indices(index, 8)),
        slots_per_input=slots[0],
        slots_per_output=slots[1],
        gate=gate,
    )
    got = cvmm.expert_linear(x, weight, index, gate, *slots)
    torch.testing.assert_close(got, expected)


def test_bad_peers_are_refused(tmp_path):
    empty = tmp_path / "empty.py"
    empty.write_text("")
    for text, message in (
        ("cvmm", "expected NAME=PATH"),
        ("cvmm=missing.py", "missing.py is not a file"),
        (f"x={empty}", "defines neither expert_mlp nor expert_linear, nor cvmm"),
    ):
        with pytest.raises(ValueError, match=message):
            load_peer(text)


def test_a_peer_may_have_one_operation(tmp_path):
    file = tmp_path / "one.py"
    file.write_text("def expert_mlp(*_): return 1")
    peer = load_peer(f"one={file}")
    assert peer.expert_linear is None
    assert dataclasses.astuple(peer)[1]() == 1
