import os

import pytest
import torch

from moeut.ops import Dispatch

pytest.importorskip("triton")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("no CUDA device, and no interpreter that works", allow_module_level=True)

from moeut.ops.triton import dispatch as triton_dispatch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def draw(num_slots, num_experts, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1, num_experts, (num_slots,), generator=generator)


def expected_tiles(dispatch, tile_rows):
    """Return (expert, first row) of every tile, from the sorted slots."""
    bounds = [*dispatch.offsets.tolist(), dispatch.num_slots]
    return [
        (expert, row)
        for expert in range(dispatch.num_experts + 1)
        for row in range(bounds[expert], bounds[expert + 1], tile_rows)
    ]


def check(index, num_experts, tile_rows):
    got = triton_dispatch.dispatch(index.to(DEVICE), num_experts, tile_rows)
    order, counts, offsets, tiles = (tensor.cpu() for tensor in got)
    sorted_by_torch = Dispatch.from_indices(index, num_experts, backend="grouped")
    assert torch.equal(order, sorted_by_torch.order)
    assert torch.equal(counts, sorted_by_torch.counts)
    assert torch.equal(offsets, sorted_by_torch.offsets)
    expected = expected_tiles(sorted_by_torch, tile_rows)
    assert [*zip(*tiles[:, : len(expected)].tolist(), strict=True)] == expected
    assert (tiles[0, len(expected) :] == -1).all()


@pytest.mark.parametrize("num_slots", [0, 1, 63, 128, 1000])
@pytest.mark.parametrize("num_experts", [1, 5, 31])
def test_equals_a_stable_sort(num_slots, num_experts):
    check(draw(num_slots, num_experts), num_experts, 16)


@pytest.mark.parametrize("tile_rows", [32, 128])
def test_tiles_end_with_their_expert(tile_rows):
    check(draw(900, 4), 4, tile_rows)


def test_skewed_and_empty_experts():
    check(torch.full((300,), 2), 7, 16)
    check(torch.full((300,), -1), 7, 16)
    check(torch.tensor([6] * 129 + [0] + [-1] * 3 + [6]), 7, 16)


def test_more_blocks_than_one_scan_step(monkeypatch):
    monkeypatch.setattr(triton_dispatch, "SCAN_BLOCKS", 4)
    check(draw(9 * triton_dispatch.BLOCK_SLOTS + 5, 3), 3, 128)


def test_too_many_experts_to_count_are_sorted(monkeypatch):
    monkeypatch.setattr(triton_dispatch, "MAX_COUNTED_EXPERTS", 3)
    check(draw(100, 9), 9, 16)


def test_experts_out_of_range_are_none():
    """A device cannot raise an error without waiting; nor may it write where it should not."""
    index = torch.tensor([0, 9, 1, -5, 0])
    order, counts, offsets, _ = triton_dispatch.dispatch(index.to(DEVICE), 2, 16)
    assert order.tolist() == [0, 4, 2, 1, 3]
    assert counts.tolist() == [2, 1]
    assert offsets.tolist() == [0, 2, 3]


@pytest.mark.parametrize("num_experts", [1, 7, 155])
@pytest.mark.parametrize("num_slots", [1, 40, 5000])
@pytest.mark.parametrize("tile_rows", [16, 128])
def test_number_of_tiles_is_bounded_without_counting(num_slots, num_experts, tile_rows):
    """The worst case: every expert but one has one row more than full tiles."""
    bound = triton_dispatch.max_num_tiles(num_slots, num_experts, tile_rows)
    counts = [1] * min(num_slots, num_experts + 1)
    counts[0] += num_slots - sum(counts)
    assert sum(-(-count // tile_rows) for count in counts) <= bound


def test_rows_of_a_tile_take_few_values():
    choose = triton_dispatch.choose_tile_rows
    sizes = {choose(slots, 155, (8, 0)) for slots in range(1, 400_000, 997)}
    assert sizes == {16, 32, 64, 128}
    assert choose(65536 * 16, 387, (8, 0)) == 128
    assert choose(65536 * 16, 387, (9, 0)) == 256
    assert choose(1024 * 12, 155, (9, 0)) == 32


def test_tiles_of_slots_that_another_backend_sorted():
    index = draw(200, 5)
    order, _, offsets, tiles = triton_dispatch.dispatch(index.to(DEVICE), 5, 16)
    assert torch.equal(triton_dispatch.make_tiles(offsets, len(order), 16), tiles)


def test_registration_passes_opcheck():
    results = torch.library.opcheck(triton_dispatch.dispatch, (draw(20, 3).to(DEVICE), 3, 16))
    assert set(results.values()) == {"SUCCESS"}
