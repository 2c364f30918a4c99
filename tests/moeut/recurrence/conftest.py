"""Models with each controller, whose tokens halt at different repeats."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for recurrent_cases


@pytest.fixture(scope="session")
def make_recurrent(make_model):
    """Return a function that makes a model of a form with a controller and kind of blocks."""
    from recurrent_cases import make_recurrent

    def make(form="decoder_lm", controller="act", blocks="experts", **options):
        return make_recurrent(make_model, form, controller, blocks, **options)

    return make
