import pytest
import torch

from runners.config.schema import TrainConfig
from runners.process import environment


@pytest.fixture(autouse=True)
def _restored():
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    torch.use_deterministic_algorithms(deterministic)


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [
        ("cuda", "bfloat16", "high"),
        ("cuda", "float32", "highest"),
        ("cpu", "bfloat16", "highest"),
    ],
)
def test_routers_multiply_in_tf32_beside_bfloat16_on_a_gpu(device, precision, expected):
    config = TrainConfig(precision=precision, deterministic=False)
    environment.prepare_process(config, torch.device(device))
    assert torch.get_float32_matmul_precision() == expected
