import pytest

from runners.bench.limits import Limits
from runners.bench.sizes import GPU_SIZES, SIZES, backward_bytes, check_sizes, forward_bytes


def test_published_sizes_take_the_published_work():
    """The 244M feed-forward on 64 x 1024 tokens: 0.55 TFLOP and 0.75 GB at least."""
    size = SIZES["mlp-244m-64k"]
    assert size.forward_flop == pytest.approx(0.550e12, rel=1e-3)
    assert forward_bytes(size, 2) == pytest.approx(0.75e9, rel=0.01)
    assert size.num_slots / size.num_experts == pytest.approx(2709, abs=1)
    assert SIZES["value-244m-64k"].forward_flop == 2 * 65536 * 4 * 2 * 1024 * 128


def test_backward_moves_about_twice_as_much():
    for name in GPU_SIZES:
        ratio = backward_bytes(SIZES[name], 2) / forward_bytes(SIZES[name], 2)
        assert 1.4 < ratio < 2.1, name


def test_roofline_takes_the_longer_of_operations_and_bytes():
    limits = Limits(tflop_per_second=2.0, terabytes_per_second=0.5)
    assert limits.milliseconds(2e12, 0.1e12) == pytest.approx(1000)
    assert limits.milliseconds(2e10, 1e12) == pytest.approx(2000)


def test_unknown_size_is_refused():
    with pytest.raises(ValueError, match="did you mean 'mlp-244m-64k'"):
        check_sizes(["mlp-244m-64"])
