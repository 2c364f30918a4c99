import pytest

from runners.bench.layers import (
    GPU_SIZES,
    LAYERS,
    SIZES,
    USES,
    backward_bytes,
    backward_flop,
    check_sizes,
    forward_bytes,
    unfused_bytes,
)
from runners.bench.limits import Limits

H200 = Limits(tflop_per_second=790.0, terabytes_per_second=4.3)

# Calculated by hand for 64 x 1024 tokens in bfloat16; milliseconds on an H200 unless said.
MLP = {  # rows, TFLOP, ms; least GB, ms; unfused GB, ms; backward: ms; unfused GB, ms
    "44m": "5074 0.166 0.21 0.35 0.08 2.4 0.57 0.42 4.6 1.07",
    "244m": "2709 0.550 0.70 0.75 0.17 7.3 1.70 1.39 13.1 3.05",
    "1b": "2784 1.237 1.57 1.26 0.29 16.0 3.71 3.13 28.1 6.54",
}
HEAD = {  # forward compute, unfused V, unfused O; backward compute, unfused V, unfused O
    "44m": "0.045 0.15 0.23 0.09 0.36 0.27",
    "244m": "0.174 0.33 0.56 0.35 0.85 0.62",
    "1b": "0.391 0.69 1.22 0.78 1.85 1.31",
}


def assert_rounds_to(got, expected):
    """Each number is the written one, give or take one in its last digit."""
    for number, text in zip(got, expected.split(), strict=True):
        last_digit = 10.0 ** -len(text.partition(".")[2])
        assert abs(number - float(text)) < last_digit, (number, text)


@pytest.mark.parametrize("name", MLP)
def test_feed_forward_takes_the_work_calculated_by_hand(name):
    size = SIZES[f"mlp-{name}-64k"]
    unfused_forward, unfused_backward = unfused_bytes(size, 2)
    least = forward_bytes(size, 2)
    got = (
        *(size.num_slots / size.num_experts, size.forward_flop / 1e12),
        *(H200.compute_ms(size.forward_flop), least / 1e9, H200.bytes_ms(least)),
        *(
            unfused_forward / 1e9,
            H200.bytes_ms(unfused_forward),
            H200.compute_ms(backward_flop(size)),
        ),
        *(unfused_backward / 1e9, H200.bytes_ms(unfused_backward)),
    )
    assert_rounds_to(got, MLP[name])


@pytest.mark.parametrize("name", HEAD)
def test_attention_takes_the_work_calculated_by_hand(name):
    value, output = (SIZES[f"{kind}-{name}-64k"] for kind in ("value", "output"))
    assert value.forward_flop == output.forward_flop
    forward, backward = zip(*(unfused_bytes(size, 2) for size in (value, output)), strict=True)
    got = (
        *(H200.compute_ms(value.forward_flop), *map(H200.bytes_ms, forward)),
        *(H200.compute_ms(backward_flop(value)), *map(H200.bytes_ms, backward)),
    )
    assert_rounds_to(got, HEAD[name])


def test_every_use_is_measured_at_every_size():
    assert set(GPU_SIZES) == {f"{use}-{layer}" for use in USES for layer in LAYERS}
    assert {SIZES[name].tokens for name in GPU_SIZES} == {64 * 1024, 8 * 128}


def test_backward_moves_about_twice_as_much():
    for name in GPU_SIZES:
        if name.startswith(("mlp", "value", "output")):
            ratio = backward_bytes(SIZES[name], 2) / forward_bytes(SIZES[name], 2)
            assert 1.4 < ratio < 2.1, name


def test_gradients_of_float32_weights_are_float32():
    size = SIZES["mlp-244m-64k"]
    more = backward_bytes(size, 2, 4) - backward_bytes(size, 2)
    assert more == 2 * 2 * 387 * 1024 * 128


def test_a_dispatch_reads_indices_and_writes_their_order():
    assert forward_bytes(SIZES["dispatch-244m-64k"], 2) == 2 * 8 * 65536 * 16 + 8 * 387
    assert backward_bytes(SIZES["dispatch-244m-64k"], 2) == 0


def test_unknown_size_is_refused():
    with pytest.raises(ValueError, match="did you mean 'mlp-244m-64k'"):
        check_sizes(["mlp-244m-64"])
