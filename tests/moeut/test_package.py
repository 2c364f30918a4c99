"""What ``import moeut`` gives, to a program and to a type checker."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import moeut


def test_public_names_are_there():
    for name in moeut.__all__:
        assert getattr(moeut, name) is not None
    assert set(moeut.__all__) < set(dir(moeut))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        moeut.nothing  # noqa: B018


def test_type_checkers_see_the_names_that_are_there():
    tree = ast.parse(inspect.getsource(moeut))
    (block,) = [
        node for node in tree.body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name)
    ]  # fmt: skip
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert set(seen) == set(moeut.__all__)
    homes = {name: f"moeut.{module}" for name, module in moeut._MODULE_OF.items()}
    assert {name: module for name, module in seen.items() if module != "moeut"} == homes
    assert (Path(moeut.__file__).parent / "py.typed").exists()


def test_a_model_needs_torch_and_safetensors_alone(tmp_path):
    """And it is built without a compiler, PyTorch's or Triton, which take a second to import."""
    code = """
import sys
import moeut
assert "torch" not in sys.modules
assert moeut.ops.available_backends()
config = moeut.architecture("moeut", form="decoder_lm", vocabulary_size=9, d_model=32)
model = moeut.build(config)
assert not {"torch._dynamo", "triton"} & set(sys.modules)
import torch
tokens = torch.zeros(2, 3, dtype=torch.int64)
output = model(tokens)
(output.logits.sum() + output.auxiliary_loss).backward()
model.save(sys.argv[1])
same = moeut.load(sys.argv[1])(tokens).logits
assert torch.equal(same, model.eval()(tokens).logits)
others = "yaml rich sklearn scipy matplotlib tasks runners"
print([name for name in others.split() if name in sys.modules])
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr
