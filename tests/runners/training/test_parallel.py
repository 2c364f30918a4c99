"""One context decides the precision."""

import pytest
import torch

from runners.training.parallel import autocast


@pytest.mark.parametrize(
    ("precision", "expected"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_products_have_the_precision_of_training(precision, expected):
    x = torch.ones(2, 2)
    with autocast(torch.device("cpu"), precision):
        assert (x @ x).dtype == expected
