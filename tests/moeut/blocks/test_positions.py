import math

import pytest
import torch

from moeut.blocks.positions import (
    LearnedPositions,
    Rotary,
    align_distances,
    ragged_distances,
    regular_distances,
    rotary_tables,
    rotate,
    sinusoids,
)


def test_sinusoids_are_sin_and_cos_of_falling_frequencies():
    table = sinusoids(torch.arange(50), 12, torch.float64)
    for position in (0, 1, 7, 49):
        for i in range(6):
            angle = position * math.exp(-2 * i * math.log(10000) / 12)
            assert table[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=4e-6)
            assert table[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=4e-6)


def test_sinusoids_are_computed_in_float32_whatever_the_dtype():
    positions = torch.arange(100)
    wide = sinusoids(positions, 12, torch.float64)
    assert torch.equal(wide, sinusoids(positions, 12, torch.float32).double())
    angles = positions.double()[:, None] * torch.exp(
        torch.arange(0, 12, 2).double() * (-math.log(10000) / 12)
    )
    assert not torch.equal(wide[:, 0::2], angles.sin())


def test_sinusoids_of_negative_positions_mirror_and_odd_widths_are_cut():
    table = sinusoids(torch.tensor([-3, 3]), 8, torch.float32)
    assert torch.equal(table[0, 0::2], -table[1, 0::2])
    assert torch.equal(table[0, 1::2], table[1, 1::2])
    assert torch.equal(
        sinusoids(torch.arange(4), 5, torch.float32)[:, 4],
        torch.sin(torch.arange(4.0) * torch.exp(torch.tensor(4 * (-math.log(10000.0) / 5)))),
    )


@pytest.mark.parametrize(
    ("fraction", "head_size", "width"), [(0.5, 82, 40), (0.5, 96, 48), (1.0, 7, 6), (0.5, 41, 20)]
)
def test_rotary_width_is_rounded_down_to_even(fraction, head_size, width):
    assert Rotary(fraction=fraction).width(head_size) == width


def test_rotary_width_of_zero_is_refused():
    with pytest.raises(ValueError, match="rotates no channel of a head of head_size=8"):
        Rotary(fraction=0.2).check(8)


def test_rotate_turns_channel_pairs_as_complex_numbers():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 10, dtype=torch.float64)
    tables = rotary_tables(torch.arange(5) + 4, Rotary(fraction=0.6), 10, torch.float64)
    rotated = rotate(x, tables)
    assert torch.equal(rotated[..., 6:], x[..., 6:])
    for position in range(5):
        for i in range(3):
            turn = torch.exp(torch.tensor(1j * (position + 4) * 10000.0 ** (-2 * i / 6)))
            pair = torch.complex(x[..., position, i], x[..., position, i + 3]) * turn
            assert torch.allclose(rotated[..., position, i], pair.real, atol=1e-13)
            assert torch.allclose(rotated[..., position, i + 3], pair.imag, atol=1e-13)


def test_rotary_logits_depend_on_distance_alone():
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 16, dtype=torch.float64)

    def logit(i: int, j: int) -> float:
        options = Rotary(fraction=1.0), 16, torch.float64
        at_i = rotate(query, rotary_tables(torch.tensor([i]), *options))
        at_j = rotate(key, rotary_tables(torch.tensor([j]), *options))
        return (at_i @ at_j.T).item()

    assert logit(3, 1) == pytest.approx(logit(103, 101), abs=1e-12)
    assert abs(logit(3, 1) - logit(3, 2)) > 1e-3


def test_rotate_keeps_low_precision_inputs_low_and_computes_in_float32():
    torch.manual_seed(0)
    x = torch.randn(1, 200, 16)
    tables = rotary_tables(torch.arange(200), Rotary(), 16, torch.bfloat16)
    assert tables.cosine.dtype == torch.float32
    low = x.to(torch.bfloat16)
    assert torch.equal(rotate(low, tables), rotate(low.float(), tables).to(torch.bfloat16))


@pytest.mark.parametrize(("num_queries", "offset"), [(1, 0), (1, 6), (5, 0), (3, 4)])
def test_regular_distances_are_key_minus_query(num_queries, offset):
    num_keys, width = num_queries + offset, 6
    like = torch.empty(0, dtype=torch.float64)
    distances = regular_distances(num_queries, num_keys, offset, width, like)
    for channel in range(width):
        scores = distances.table[:, channel].expand(2, 3, num_queries, -1)
        aligned = align_distances(scores, distances, num_keys)
        query = torch.arange(num_queries)[:, None] + offset
        wanted = sinusoids(torch.arange(num_keys) - query, width, torch.float64)[..., channel]
        assert torch.equal(aligned, wanted.expand(2, 3, -1, -1))


def test_ragged_distances_are_key_minus_query_in_every_row():
    positions = torch.tensor([[0, 1, 2], [5, 6, 7], [3, 4, 5]])
    like = torch.empty(0, dtype=torch.float64)
    distances = ragged_distances(positions, 8, 6, like)
    for channel in range(6):
        scores = distances.table[:, channel].expand(3, 2, 3, -1)
        aligned = align_distances(scores, distances, 8)
        wanted = sinusoids(torch.arange(8) - positions[:, :, None], 6, torch.float64)[..., channel]
        assert torch.equal(aligned, wanted[:, None].expand(-1, 2, -1, -1))


def test_learned_positions_end_somewhere():
    positions = LearnedPositions(3, 4)
    torch.nn.init.normal_(positions.weight)
    assert torch.equal(positions(torch.tensor([2, 0]), torch.float32), positions.weight[[2, 0]])
    positions.check_length(3)
    with pytest.raises(ValueError, match=r"sequence length 4: .*max_length=3"):
        positions.check_length(4)
