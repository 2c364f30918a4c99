"""What the tests of attention share: sizes, modules with random weights, and the plain formulas."""

import torch

from moeut.blocks.attention import AttentionContext, DenseAttention, SwitchHead

D, H, SIZE, B, T = 12, 2, 6, 3, 5
DENSE = DenseAttention(num_heads=H, head_size=SIZE)
SWITCH_HEAD = SwitchHead(num_heads=H, head_size=SIZE, num_experts=4, top_k=2)


def make_attention(options, position=None, seed=0):
    torch.manual_seed(seed)
    module = options.within(d_model=D, dropout=0.0).build(D, position).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return module


def make_views():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, B, T, D, generator=generator, dtype=torch.float64).unbind(0)


def split_heads(x):
    return x.unflatten(-1, (H, SIZE)).transpose(1, 2)


def attend(logits, value, allowed):
    return logits.masked_fill(~allowed, float("-inf")).softmax(-1) @ value


def queries_and_keys(module, routed):
    return split_heads(routed @ module.query.weight.T), split_heads(routed @ module.key.weight.T)


CAUSAL = torch.ones(T, T).tril().bool()
CONTEXT = AttentionContext(is_causal=True)
