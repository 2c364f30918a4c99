import pytest
import torch

from moeut.ops import matmul


def test_padding_takes_few_sizes_and_wastes_little():
    sizes = {matmul.padded_rows(rows) for rows in range(1, matmul.MAX_BLOCK_ROWS + 1)}
    assert len(sizes) == 36
    assert max(sizes) == matmul.MAX_BLOCK_ROWS
    for rows in range(1, matmul.MAX_BLOCK_ROWS + 1):
        padding = matmul.padded_rows(rows) - rows
        assert 0 <= padding <= max(15, rows // 8)


def test_small_products_and_float64_go_to_torch(monkeypatch):
    monkeypatch.setattr(matmul, "onednn_is_faster", lambda: True)
    weight = torch.empty(1, 412, 128)
    assert matmul.choose_routine(10, weight) is matmul.PLAIN
    assert matmul.choose_routine(158, weight) is matmul.ONEDNN
    assert matmul.choose_routine(158, weight.double()) is matmul.PLAIN
    assert matmul.choose_routine(158, weight.bfloat16()) is matmul.PADDED


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
@pytest.mark.parametrize("rows", [1, 63, 100, 600])
def test_onednn_equals_float64_as_closely_as_torch(rows):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(rows, 82, generator=generator)
    b = torch.randn(82, 40, generator=generator)
    c = torch.randn(rows, 40, generator=generator)
    out = torch.empty(82, 40)
    matmul.ONEDNN.row_sum_into(out, a, c)
    for got, plain, exact in (
        (matmul.ONEDNN.product(a, b), a @ b, a.double() @ b.double()),
        (matmul.ONEDNN.product(c, b.t()), c @ b.t(), c.double() @ b.t().double()),
        (out, a.t() @ c, a.t().double() @ c.double()),
    ):
        allowed = 4 * (plain - exact).abs().max() + 1e-6
        assert (got - exact).abs().max() <= allowed
