import subprocess

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


def test_the_code_is_a_commit_and_whether_it_is_clean(tmp_path):
    def git(*words):
        names = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *names, *words], check=True)

    assert environment.describe_code(tmp_path)["git"] is None
    for package in environment.CODE:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
    git("init", "-q")
    assert environment.describe_code(tmp_path)["git"] is None  # the work tree of something else
    git("add", ".")
    git("commit", "-qm", "one")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "result.json").write_text("{}")
    clean = environment.describe_code(tmp_path)["git"]
    assert (len(clean["commit"]), clean["dirty"], clean["changes"]) == (40, False, None)
    found = []
    for text in ("x = 1", "x = 2"):
        (tmp_path / "moeut" / "__init__.py").write_text(text)
        found.append(environment.describe_code(tmp_path)["git"])
        assert found[-1]["dirty"]
    assert found[0] != found[1]
