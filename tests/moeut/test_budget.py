"""Models are sized to budgets, one or several, as far as they have free options."""

import pytest

from moeut import architecture
from moeut.budget import Budget, misses, sized_to
from moeut.options import OptionError
from moeut.sizing import cache_bytes_per_token, count_parameters, macs_per_token

LENGTH = 12
FORMS = {
    "decoder_lm": {},
    "encoder_decoder": {"source_vocabulary_size": 13},
    "encoder_classifier": {"num_classes": 5},
}


def made(name, form="decoder_lm", **options):
    return architecture(name, form=form, vocabulary_size=11, d_model=32, **FORMS[form], **options)


def flops(config):
    return 2 * macs_per_token(config, sequence_length=LENGTH)


def fitted(config, **budget):
    return sized_to(config, Budget(**budget), sequence_length=LENGTH)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["transformer", "universal", "sut", "moeut", "huginn"])
def test_operations_are_the_nearest_that_a_width_gives(name, form) -> None:
    """One more, or less, of the free option is further from the budget."""
    large = {"kind": "sigma_moe", "num_experts": 60} if name == "moeut" else {"hidden_size": 70}
    options = {} if name == "sut" else {"feed_forward": large}
    config = made(name, form, **options)
    block = config.feed_forward
    option = block.active_width or block.free_width
    budget = 0.9 * flops(config)
    found = fitted(config, flops_per_token=budget)
    size = getattr(found.feed_forward, option)
    assert size > 1
    for other in (size - 1, size + 1):
        if other <= getattr(block, "num_experts", other):
            assert abs(flops(found) - budget) <= abs(flops(resized(found, option, other)) - budget)
    if block.active_width is None:
        assert misses(found, Budget(flops_per_token=budget), sequence_length=LENGTH) == []


def resized(config, option, size):
    import dataclasses

    block = dataclasses.replace(config.feed_forward, **{option: size})
    return dataclasses.replace(config, feed_forward=block)


@pytest.mark.parametrize("position", ["rotary", "relative"])
@pytest.mark.parametrize("name", ["transformer", "moeut", "sut"])
def test_a_cache_is_as_large_as_asked(name, position) -> None:
    config = made(name, position=position)
    held = cache_bytes_per_token(config)
    assert fitted(config, cache_bytes_per_token=held) == config
    assert cache_bytes_per_token(fitted(config, cache_bytes_per_token=3 * held)) == 3 * held
    per_channel = held // config.attention.head_size
    near = fitted(config, cache_bytes_per_token=held + per_channel + per_channel // 3)
    assert cache_bytes_per_token(near) == held + per_channel


def test_several_budgets_are_met_at_once() -> None:
    """Heads, experts and active experts are sized each to one of them."""
    config = made("moeut", feed_forward={"expert_size": 4, "top_k": 1})
    budget = Budget(parameters=60_000, flops_per_token=150_000, cache_bytes_per_token=2048)
    found = sized_to(config, budget, sequence_length=LENGTH)
    assert cache_bytes_per_token(found) == 2048
    assert count_parameters(found) == pytest.approx(60_000, rel=0.01)
    assert flops(found) == pytest.approx(150_000, rel=0.01)
    assert misses(found, budget, sequence_length=LENGTH) == []


def test_what_has_no_free_option_is_said() -> None:
    """A dense width is sized to parameters, and then the operations are what they are."""
    budget = Budget(parameters=40_000, flops_per_token=40_000)
    found = sized_to(made("transformer"), budget, sequence_length=LENGTH)
    assert found == sized_to(made("transformer"), Budget(parameters=40_000))
    (miss,) = misses(found, budget, sequence_length=LENGTH)
    assert (miss.name, miss.budget, miss.found) == ("flops_per_token", 40_000, flops(found))
    assert str(miss) == f"flops_per_token 40,000 is not met: {flops(found):,} " + (
        f"({flops(found) / 40_000 - 1:+.1%})"
    )
    # All experts at once are not enough.
    found = fitted(made("moeut"), flops_per_token=10**7)
    assert found.feed_forward.top_k == found.feed_forward.num_experts
    assert misses(found, Budget(flops_per_token=10**7), sequence_length=LENGTH) != []


def test_heads_whose_values_have_another_size_are_not_sized() -> None:
    config = made("transformer", attention={"value_head_size": 5})
    with pytest.raises(OptionError, match=r"cannot be combined with attention\.value_head_size"):
        fitted(config, cache_bytes_per_token=1024)


@pytest.mark.parametrize(
    ("form", "budget", "said"),
    [
        ("decoder_lm", {"parameters": 10}, "parameters=10: the smallest feed-forward already"),
        ("decoder_lm", {"flops_per_token": 10}, "flops_per_token=10: the smallest feed-forward"),
        ("decoder_lm", {"cache_bytes_per_token": 10}, "the smallest head already holds 128"),
        ("encoder_classifier", {"cache_bytes_per_token": 99}, "no effect with form='encoder_class"),
    ],
)
def test_budgets_below_the_smallest_model_are_refused(form, budget, said) -> None:
    with pytest.raises(OptionError) as caught:
        fitted(made("transformer", form), **budget)
    assert said in str(caught.value)
    assert caught.value.option in budget
