import pytest
import torch

from moeut.ops import products


def test_padding_takes_few_sizes_and_wastes_little():
    sizes = {products.padded_rows(rows) for rows in range(1, products.MAX_BLOCK_ROWS + 1)}
    assert len(sizes) == 36
    assert max(sizes) == products.MAX_BLOCK_ROWS
    for rows in range(1, products.MAX_BLOCK_ROWS + 1):
        padding = products.padded_rows(rows) - rows
        assert 0 <= padding <= max(15, rows // 8)


def test_small_products_and_float64_go_to_torch(monkeypatch):
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    weight = torch.empty(1, 412, 128)
    assert products.choose_routine(10, weight) is products.PLAIN
    assert products.choose_routine(158, weight) is products.ONEDNN
    assert products.choose_routine(158, weight.double()) is products.PLAIN
    assert products.choose_routine(158, weight.bfloat16()) is products.PADDED


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
@pytest.mark.parametrize("rows", [1, 63, 100, 600])
def test_onednn_equals_float64_as_closely_as_torch(rows):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(rows, 82, generator=generator)
    b = torch.randn(82, 40, generator=generator)
    c = torch.randn(rows, 40, generator=generator)
    out = torch.empty(82, 40)
    products.ONEDNN.row_sum_into(out, a, c)
    for got, plain, exact in (
        (products.ONEDNN.product(a, b), a @ b, a.double() @ b.double()),
        (products.ONEDNN.product(c, b.t()), c @ b.t(), c.double() @ b.t().double()),
        (out, a.t() @ c, a.t().double() @ c.double()),
    ):
        allowed = 4 * (plain - exact).abs().max() + 1e-6
        assert (got - exact).abs().max() <= allowed
