"""What FSDP has to see; two ranks are in ``tests/runners/process/test_ranks.py``."""

import dataclasses

import pytest
import torch
from torch.utils._pytree import tree_leaves

import moeut
from moeut.blocks.layer import Layer
from runners.training.sharding import register_outputs

TOKENS = torch.tensor([[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize(
    ("form", "sizes", "inputs"),
    [
        ("decoder_lm", {}, (TOKENS,)),
        ("encoder_decoder", {"source_vocabulary_size": 9}, (TOKENS, TOKENS)),
        ("encoder_classifier", {"num_classes": 3}, (TOKENS,)),
    ],
)
def test_all_gradients_go_through_tensors_that_fsdp_sees(form, sizes, inputs):
    """An output that torch does not flatten hides its tensors: their gradients stay unsent."""
    register_outputs()
    config = moeut.architecture("moeut", form=form, vocabulary_size=9, d_model=16, **sizes)
    model = moeut.build(config).train()
    outputs = []
    layers = [module for module in model.modules() if isinstance(module, Layer)]
    for module in (model, *layers):
        module.register_forward_hook(lambda module, args, output: outputs.append(output))
    model(*inputs)
    assert len(outputs) > len(layers) > 0
    for output in outputs:
        leaves = tree_leaves(output)
        assert not [leaf for leaf in leaves if dataclasses.is_dataclass(leaf)]
        assert any(torch.is_tensor(leaf) and leaf.requires_grad for leaf in leaves)
