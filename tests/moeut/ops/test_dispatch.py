import pytest
import torch

from moeut.ops import Dispatch


def test_rows_of_an_expert_are_its_slots_in_ascending_order():
    dispatch = Dispatch.from_indices(torch.tensor([[2, 0], [-1, 2], [0, 3]]), 5)
    assert dispatch.expert_index.tolist() == [2, 0, -1, 2, 0, 3]
    assert dispatch.counts.tolist() == [2, 0, 2, 1, 0]
    assert dispatch.offsets.tolist() == [0, 2, 2, 4, 5, 5]
    assert dispatch.order.tolist() == [1, 4, 0, 3, 5, 2]
    assert dispatch.num_slots == 6


@pytest.mark.parametrize("num_slots", [0, 1, 63, 4095, 4096, 10_000, 32_767, 32_768, 40_001])
@pytest.mark.parametrize("num_experts", [1, 155, 40_000])
def test_sorting_is_stable_at_every_size(num_slots, num_experts):
    generator = torch.Generator().manual_seed(num_slots)
    index = torch.randint(-1, num_experts, (num_slots,), generator=generator)
    dispatch = Dispatch.from_indices(index, num_experts)
    values = index.tolist()
    expected = sorted(range(num_slots), key=lambda slot: (values[slot] < 0, values[slot]))
    assert dispatch.order.tolist() == expected
    assert dispatch.order.dtype == dispatch.offsets.dtype == torch.int64
    assert torch.equal(dispatch.counts, torch.bincount(index[index >= 0], minlength=num_experts))
    assert dispatch.offsets[-1] == (index >= 0).sum()


def test_a_view_of_every_second_index_is_sorted_as_its_copy():
    both = torch.tensor([2, 0, 1, 0, 0, 2, 1, 1]).view(4, 2)
    first, second = both.split(1, dim=1)
    assert Dispatch.from_indices(first, 3).order.tolist() == [2, 1, 3, 0]
    assert Dispatch.from_indices(second, 3).order.tolist() == [0, 1, 3, 2]


def test_int32_indices_equal_int64_indices():
    index = torch.tensor([3, -1, 0, 3])
    wide, narrow = (Dispatch.from_indices(index.to(t), 4) for t in (torch.int64, torch.int32))
    assert torch.equal(wide.order, narrow.order)


@pytest.mark.parametrize(
    ("index", "num_experts", "message"),
    [
        (torch.tensor([0, 4]), 4, r"from 0 to 4: expected -1 \(no expert\) to 3"),
        (torch.tensor([-2, 1]), 4, "from -2 to 1"),
        (torch.tensor([0.0]), 4, r"dtype=torch.float32: expected torch.int64"),
        (torch.tensor([0]), 0, "num_experts=0: expected at least 1"),
    ],
)
def test_bad_input_is_refused(index, num_experts, message):
    with pytest.raises(ValueError, match=message):
        Dispatch.from_indices(index, num_experts)
