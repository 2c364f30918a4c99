import cmath
import dataclasses
import math

import pytest
import torch

from moeut.blocks.positions import (
    Abacus,
    Fire,
    Learned,
    LearnedPositions,
    Rotary,
    align_distances,
    ragged_distances,
    regular_distances,
    rotary_tables,
    rotate,
    sinusoids,
)
from moeut.blocks.positions.abacus import digit_numbers
from moeut.blocks.positions.fire import FirePlaces
from moeut.options import OptionError


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
            turn = cmath.exp(1j * (position + 4) * 10000.0 ** (-2 * i / 6))
            pair = torch.complex(x[..., position, i], x[..., position, i + 3]) * turn
            assert torch.allclose(rotated[..., position, i], pair.real, rtol=0, atol=1e-13)
            assert torch.allclose(rotated[..., position, i + 3], pair.imag, rtol=0, atol=1e-13)


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


# --- added to the embedding -------------------------------------------------------------


def test_learned_positions_keep_the_variance_of_scaled_embeddings(make_model):
    learned = Learned(max_length=9, keep_variance=True)
    model = make_model(position="none", input_position=learned, embedding_scale="sqrt_d_model")
    tokens = torch.tensor([[3, 1, 4]])
    entered = model(tokens, trace=True).hidden["decoder"][0]
    width = model.config.d_model
    vectors = model.embedding.weight[tokens] + model.decoder.position.weight[:3]
    assert (entered - math.sqrt(width) * 0.707106781 * vectors).abs().max() < 1e-14


def test_digits_of_each_number_are_counted():
    #         7   .   1  2  3  .  .  9  9     and the second document begins at its fifth token
    digits = [True, False, True, True, True, False, False, True, True]
    rows = torch.tensor([digits, digits])
    documents = torch.tensor([[0] * 9, [0] * 4 + [1] * 5])
    assert digit_numbers(rows).tolist() == [[1, 0, 1, 2, 3, 0, 0, 1, 2]] * 2
    assert digit_numbers(rows, documents).tolist() == [
        [1, 0, 1, 2, 3, 0, 0, 1, 2],
        [1, 0, 1, 2, 1, 0, 0, 1, 2],
    ]


def test_abacus_adds_one_offset_to_all_digits_in_training(make_model):
    model = make_model(position="abacus")
    tokens = torch.tensor([[5, 2, 1, 9], [2, 2, 9, 9]])
    weight = model.decoder.position.weight
    seen = set()
    for _ in range(40):
        entered = model.train()(tokens, trace=True).hidden["decoder"][0]
        added = entered - model.embedding.weight[tokens]
        offset = int((weight[1:] - added[0, 0]).abs().sum(-1).argmin())
        seen.add(offset)
        numbers = torch.tensor([[1, 0, 1, 2], [0, 0, 1, 2]])
        numbers = numbers + offset * (numbers > 0)
        assert (added - weight[numbers]).abs().max() < 1e-14
    assert seen == {0, 1, 2, 3}
    for _ in range(8):  # a draw might be 0
        entered = model.eval()(tokens, trace=True).hidden["decoder"][0]
        assert torch.allclose(entered[0, 0], model.embedding.weight[5] + weight[1])


def test_abacus_refuses_what_it_cannot_tell(make_model):
    with pytest.raises(ValueError, match=r"at least 9 digits.*end at max_length=8"):
        make_model(position="abacus")(torch.full((1, 9), 5))
    model = make_model("encoder_decoder", position="abacus")
    assert [model.config.stacks[name].position.digits for name in ("encoder", "decoder")] == [
        (3, 9),
        (1, 5, 9),
    ]
    for left_out, form in (("digits", "decoder_lm"), ("source_digits", "encoder_decoder")):
        position = dataclasses.replace(model.config.position, **{left_out: None})
        with pytest.raises(OptionError, match="missing") as caught:
            make_model(form, position="none", input_position=position)
        assert caught.value.option == f"input_position.{left_out}"
    told = Abacus().told(["<", "7", "+", "0", "12"], None)
    assert told.digits == (1, 3)
    assert Abacus(digits=[4]).told(["7"], ["a", "8"]) == Abacus(digits=[4], source_digits=[1])


@torch.no_grad()
def test_two_kinds_of_positions_may_add_to_the_embedding(make_model):
    learned = Learned(max_length=9)
    with pytest.raises(OptionError, match="adds the same to the embedded tokens already"):
        make_model(position="learned", input_position=learned)
    model = make_model(position="abacus", input_position=learned).eval()
    tokens = torch.tensor([[5, 2, 1, 9], [2, 2, 9, 9]])
    stack = model.decoder
    numbers = torch.tensor([[1, 0, 1, 2], [0, 0, 1, 2]])
    wanted = stack.position.weight[:4] + stack.second_position.weight[numbers]
    entered = model(tokens, trace=True).hidden["decoder"][0]
    assert (entered - model.embedding.weight[tokens] - wanted).abs().max() < 1e-14
    assert stack.options.position_limit == ("input_position.max_length", 9)
    cache = model.new_cache()
    steps = [model(tokens[:, i : i + 1], cache=cache).logits for i in range(4)]
    assert (torch.cat(steps, dim=1) - model(tokens).logits).abs().max() < 1e-12


# --- FIRE -------------------------------------------------------------------------------


def make_fire(**options):
    torch.manual_seed(0)
    fire = Fire(hidden_size=5, threshold=4.0, **options).build_relative(2, 4, 8).double()
    for parameter in fire.parameters():
        torch.nn.init.normal_(parameter)
    return fire


def test_fire_is_its_formula():
    fire = make_fire()
    places = FirePlaces(torch.tensor([3, 7]), torch.arange(8))
    bias = fire.bias(places, torch.float64)
    c, threshold = fire.scale.item(), abs(fire.factor.item()) * 4.0
    for t, i in enumerate((3, 7)):
        for j in range(8):
            far = math.log(abs(c * max(i, threshold)) + 1) + 1e-6
            x = torch.tensor([math.log(abs(c * (i - j)) + 1) / far], dtype=torch.float64)
            wanted = fire.down(fire.up(x).relu())
            assert (bias[0, :, t, j] - wanted).abs().max() < 1e-13
    query, key = torch.randn(3, 2, 2, 4).double(), torch.randn(3, 2, 8, 4).double()
    logits = fire(query, key, places, query)
    assert (logits - (query @ key.mT / 2 + bias)).abs().max() < 1e-13


def test_fire_learns_all_of_its_parameters():
    fire = make_fire()
    places = FirePlaces(torch.arange(6), torch.arange(6))
    names = [name for name, _ in fire.named_parameters()]
    query = torch.zeros(1, 2, 6, 4, dtype=torch.float64)

    def logits(*values):
        named = dict(zip(names, values, strict=True))
        return torch.func.functional_call(fire, named, (query, query, places, query))

    assert torch.autograd.gradcheck(logits, tuple(fire.parameters()))


def test_fire_draws_positions_in_training_alone():
    options = Fire(max_length=50)
    sizes = {"head_size": 4, "d_model": 8, "like": torch.zeros(1)}
    columns = torch.arange(6)
    drawn = [options.tables(columns, 0, 6, training=True, **sizes).distances for _ in range(2)]
    for queries, keys in drawn:
        assert torch.equal(queries, keys)
        assert (keys[1:] > keys[:-1]).all()
        assert keys[0] >= 0
        assert keys[-1] < 50
    assert not torch.equal(drawn[0].keys, drawn[1].keys)
    still = options.tables(columns, 0, 6, training=False, **sizes).distances
    assert torch.equal(still.keys, columns)
