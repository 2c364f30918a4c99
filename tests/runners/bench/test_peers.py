import dataclasses
import sys
import types

import pytest
import torch

from moeut.ops import Dispatch, expert_linear, expert_mlp
from runners.bench.peers import load_peer, load_peers

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


def test_published_kernel_is_called_as_its_layers_call_it(cvmm):
    check_operations(cvmm)


def test_bad_peers_are_refused(tmp_path):
    empty = tmp_path / "empty.py"
    empty.write_text("")
    for text, message in (
        ("cvmm", "expected NAME=PATH"),
        ("cvmm=missing.py", "missing.py does not exist"),
        (f"x={tmp_path}", "expected a checkout of scattermoe or sonicmoe"),
        (f"x={empty}", "defines neither expert_mlp nor expert_linear, and is none of"),
    ):
        with pytest.raises(ValueError, match=message):
            load_peer(text)


def test_the_kernel_and_its_rewrite_register_operators_side_by_side(tmp_path):
    define = """
torch.library.define("mylib::cvmm_triton", "(Tensor x) -> Tensor")
torch.library.impl("mylib::cvmm_triton", "default")(lambda x: x {})
call = torch.ops.mylib.cvmm_triton
"""
    changes = {"published": ("+ 1", ""), "rewrite": ("+ 2", ", route_input=False")}
    for name, (change, option) in changes.items():
        text = CVMM.replace("weights=None):", f"weights=None{option}):") + define.format(change)
        (tmp_path / f"{name}.py").write_text(text)
    peers = [load_peer(f"{name}={tmp_path / name}.py") for name in changes]
    assert [peer.kind for peer in peers] == ["cvmm", "cvmm rewrite"]
    calls = [sys.modules[f"peer_{name}"].call(torch.zeros(1)).item() for name in changes]
    assert calls == [1.0, 2.0]


SCATTERMOE = """
import torch

def flatten_sort_count(index, num_experts):
    experts, order = index.flatten().sort()
    return experts, order, index.flatten().bincount(minlength=num_experts).cumsum(0)

def parallel_linear(inputs, expert_weights, k, sorted_expert_idxs, sorted_scattered_idxs,
                    expert_offsets, expert_biases=None, gates=None, grouped_in=False,
                    grouped_out=False):
    # As the published layer: rows in sorted order where grouped, otherwise of slots.
    assert sorted_scattered_idxs.size(0) == inputs.size(0) * k
    rows = inputs if grouped_in else inputs[sorted_scattered_idxs // k]
    y = torch.einsum("sd,sdf->sf", rows, expert_weights[sorted_expert_idxs])
    if not grouped_out:
        y = torch.zeros_like(y).index_copy(0, sorted_scattered_idxs, y)
    if gates is None:
        return y
    return (gates.unsqueeze(1) @ y.view(*gates.shape, -1)).squeeze(1)
"""


@pytest.mark.parametrize("place", ["", "scattermoe"])
def test_scattermoe_is_called_as_its_layers_call_it(tmp_path, monkeypatch, place):
    (tmp_path / "scattermoe").mkdir()
    (tmp_path / "scattermoe" / "__init__.py").write_text(SCATTERMOE)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "scattermoe", raising=False)
    check_operations(load_peer(f"them={tmp_path / place}"))


def check_operations(peer):
    x, w_up, w_down, scores = draw(9, 6), draw(5, 6, 7), draw(5, 7, 6), draw(9, 5)
    gate, index = scores.topk(3)
    expected = expert_mlp(x, w_up, w_down, Dispatch.from_indices(index, 5), gate=gate)
    torch.testing.assert_close(peer.expert_mlp(x, w_up, w_down, index, gate), expected)
    tokens, heads, top_k = 9, 2, 3
    gate, index = draw(tokens, heads, 4).topk(top_k)
    index = index + 4 * torch.arange(heads).view(1, heads, 1)
    for rows, slots in ((tokens, (heads * top_k, top_k)), (tokens * heads, (top_k, heads * top_k))):
        x, weight = draw(rows, 6), draw(8, 6, 7)
        expected = expert_linear(
            *(x, weight, Dispatch.from_indices(index, 8)),
            slots_per_input=slots[0],
            slots_per_output=slots[1],
            gate=gate,
        )
        torch.testing.assert_close(peer.expert_linear(x, weight, index, gate, *slots), expected)


SONICMOE = {
    "__init__": "",
    "enums": "import enum\nclass ActivationType(enum.Enum):\n    RELU = 'relu'",
    "functional": """
import torch

def moe_general_routing_inputs(x, router_scores, token_indices, expert_indices, w1, b1, w2, b2, E,
                               stream_id, activation_type, is_inference_mode_enabled=False):
    # w1 (I, H, E) and w2 (H, I, E) are views of (E, I, H) and (E, H, I).
    assert activation_type.value == "relu" and w1.permute(2, 0, 1).is_contiguous()
    assert w2.permute(2, 0, 1).is_contiguous() and E == w2.size(-1)
    hidden = torch.einsum("sd,fds->sf", x[token_indices], w1[:, :, expert_indices]).relu()
    y = torch.einsum("sf,dfs->sd", hidden, w2[:, :, expert_indices])
    return torch.zeros_like(x).index_add(0, token_indices, y * router_scores[:, None]), None
""",
}


def test_sonicmoe_is_called_with_decisions_made_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "sonicmoe").mkdir()
    for name, text in SONICMOE.items():
        (tmp_path / "sonicmoe" / f"{name}.py").write_text(text)
    monkeypatch.setattr(sys, "path", list(sys.path))
    stream = types.SimpleNamespace(cuda_stream=0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    peer = load_peer(f"sonic={tmp_path}")
    x, w_up, w_down, scores = draw(9, 6), draw(5, 6, 7), draw(5, 7, 6), draw(9, 5)
    gate, index = scores.topk(3)
    expected = expert_mlp(x, w_up, w_down, Dispatch.from_indices(index, 5), gate=gate)
    torch.testing.assert_close(peer.expert_mlp(x, w_up, w_down, index, gate), expected)
    assert peer.expert_linear is None


def test_a_peer_that_cannot_be_imported_is_named_and_left_out(tmp_path):
    there, broken = tmp_path / "there.py", tmp_path / "broken.py"
    there.write_text("def expert_mlp(*_): return 1")
    broken.write_text("import a_package_that_nobody_has")
    peers, unavailable = load_peers([f"broken={broken}", f"there={there}"])
    assert [peer.name for peer in peers] == ["there"]
    assert "No module named 'a_package_that_nobody_has'" in unavailable["broken"]


def test_a_peer_may_have_one_operation(tmp_path):
    file = tmp_path / "one.py"
    file.write_text("def expert_mlp(*_): return 1")
    peer = load_peer(f"one={file}")
    assert peer.expert_linear is None
    assert dataclasses.astuple(peer)[1]() == 1
