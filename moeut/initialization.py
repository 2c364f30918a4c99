"""Initial weights of every model, in one place."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from moeut.config import SigmaMoE, StackConfig, SwitchHead

if TYPE_CHECKING:
    from moeut.config import ModelConfig

_EMBEDDINGS = ("embedding.weight", "source_embedding.weight", "position.weight")


@torch.no_grad()
def initialize(model: torch.nn.Module) -> None:
    """Draw every parameter of ``model`` from the distribution that its config names.

    ``model.config.initialization`` chooses the column. D is ``d_model``, L the applied layers of
    the stack, H·d the attention width, N·F all hidden units of a feed-forward (all experts
    together), s = sqrt(2 / L). N is a normal, T a normal cut at two standard deviations and
    rescaled to exactly the given one, G the Glorot uniform, U the uniform on ± the given bound.

    ====================  =====================  =======================  ======================
    parameter             ``moeut``              ``depth_scaled``         ``glorot``, ``normal``,
                                                                          ``kaiming``
    ====================  =====================  =======================  ======================
    embeddings, learned   N(1/sqrt(D))           N(1/sqrt(D))             G, N(1), N(sqrt(2/D))
    positions
    query, key, value,    N(s/sqrt(D))           T(s/sqrt(D))             G
    relative projection
    routers, gates        N(s/sqrt(D))           T(s/sqrt(D))             G
    attention output      N(s/sqrt(H·d))         T(s/sqrt(H·d))           G
    feed-forward up       N(s/sqrt(D))           T(s/sqrt(D))             G × sqrt(2)
    feed-forward down     N(s/sqrt(N·F))         T(s/sqrt(N·F))           G
    feed-forward biases   0                      0                        U(1/sqrt(fan-in))
    head weight           U(1/sqrt(D))           U(1/sqrt(D))             G
    head bias             U(1/sqrt(D)), 0 if tied to the embedding        same
    norms                 weight 1, bias 0       same                     same
    relative biases       0; learned logit scale 1/sqrt(d)                same
    ====================  =====================  =======================  ======================

    Expert weights are drawn as above per head (attention) or as one matrix over all experts
    (feed-forward). ``renormalise_router`` then gives all router rows of a feed-forward one norm,
    ``renormalise_experts`` gives the value and output weights of SwitchHead equal norm over
    experts; both keep the standard deviation of the whole tensor.

    Sources: ``moeut`` is the published release (RobertCsordas/moeut at 87f0497) and training code
    (RobertCsordas/moeut_training_code at a0f771a) of arXiv 2405.16039, which differ in the two
    renormalisations; ``depth_scaled`` its dense baseline; the three others are the
    encoder-decoders of arXiv 2108.12284 (RobertCsordas/transformer_generalization at 38f2734).
    The draws come from PyTorch's global generator, in the order of ``named_parameters``.
    """
    config: ModelConfig = model.config  # type: ignore[assignment]
    for name, parameter in model.named_parameters():
        stack = config.stacks.get(name.split(".")[0])
        if name.endswith(_EMBEDDINGS):
            _embedding(parameter, config)
        elif name.startswith("head."):
            _head(name, parameter, config)
        elif "norm." in name:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
        elif name.endswith(("content_bias", "position_bias")):
            parameter.zero_()
        elif name.endswith("relative.scale"):
            assert stack is not None
            parameter.fill_(1.0 / math.sqrt(stack.attention.head_size))
        elif name.endswith("bias"):
            _feed_forward_bias(name, parameter, config, stack)
        else:
            _weight(name, parameter, config, stack)


def keep_standard_deviation(weight: torch.Tensor, *, dim: int) -> None:
    """Give all slices along ``dim`` one norm, keeping the standard deviation of the whole."""
    deviation = weight.std()
    weight.div_(weight.norm(dim=dim, keepdim=True))
    weight.mul_(deviation / weight.std())


def fan_in_and_out(name: str, config: ModelConfig, stack: StackConfig) -> tuple[int, int]:
    """Return how many units feed, and are fed by, the weight called ``name`` in ``stack``."""
    attention_size = stack.attention.num_heads * stack.attention.head_size
    parts = name.split(".")
    if parts[-1] == "weight":
        parts.pop()
    block, part = parts[3], parts[-1]
    feed_forward = stack.feed_forward
    if isinstance(feed_forward, SigmaMoE):
        hidden = feed_forward.num_experts * feed_forward.expert_size
        routes = feed_forward.num_experts
    else:
        hidden, routes = feed_forward.hidden_size, 0
    if block == "feed_forward":
        return {
            "up": (config.d_model, hidden),
            "down": (hidden, config.d_model),
            "router": (config.d_model, routes),
        }[part]
    if part == "output":
        return attention_size, config.d_model
    if part.endswith(("router", "gate")):
        experts = stack.attention.num_experts if isinstance(stack.attention, SwitchHead) else 1
        return config.d_model, stack.attention.num_heads * experts
    return config.d_model, attention_size  # query, key, value, relative projection


def _weight(
    name: str, parameter: torch.Tensor, config: ModelConfig, stack: StackConfig | None
) -> None:
    if stack is None:
        raise ValueError(f"parameter {name!r} belongs to no stack of the config")
    fan_in, fan_out = fan_in_and_out(name, config, stack)
    deviation = math.sqrt(2.0 / (stack.num_layers * fan_in))
    if config.initialization == "moeut":
        parameter.normal_(std=deviation)
    elif config.initialization == "depth_scaled":
        torch.nn.init.trunc_normal_(parameter)
        parameter.mul_(deviation / parameter.std())
    else:
        is_up = ".feed_forward.up" in name
        _glorot(parameter, fan_in, fan_out, gain=math.sqrt(2.0) if is_up else 1.0)

    feed_forward, attention = stack.feed_forward, stack.attention
    if name.endswith("feed_forward.router"):
        if isinstance(feed_forward, SigmaMoE) and feed_forward.renormalise_router:
            keep_standard_deviation(parameter, dim=1)
    elif (
        isinstance(attention, SwitchHead)
        and attention.renormalise_experts
        and name.endswith(("attention.value", "attention.output"))
        and parameter.shape[0] > 1  # over a single expert every element would become ±1
    ):
        keep_standard_deviation(parameter, dim=0)


def _embedding(parameter: torch.Tensor, config: ModelConfig) -> None:
    scheme = config.initialization
    if scheme == "glorot":
        _glorot(parameter, parameter.shape[1], parameter.shape[0])
    elif scheme == "normal":
        parameter.normal_()
    elif scheme == "kaiming":
        parameter.normal_(std=math.sqrt(2.0 / config.d_model))
    else:
        parameter.normal_(std=1.0 / math.sqrt(config.d_model))


def _head(name: str, parameter: torch.Tensor, config: ModelConfig) -> None:
    bound = 1.0 / math.sqrt(config.d_model)
    if name.endswith("bias"):
        if config.tie_embeddings:
            parameter.zero_()
        else:
            parameter.uniform_(-bound, bound)
    elif config.initialization in ("moeut", "depth_scaled"):
        parameter.uniform_(-bound, bound)
    else:
        _glorot(parameter, parameter.shape[1], parameter.shape[0])


def _feed_forward_bias(
    name: str, parameter: torch.Tensor, config: ModelConfig, stack: StackConfig | None
) -> None:
    if stack is None:
        raise ValueError(f"parameter {name!r} belongs to no stack of the config")
    if config.initialization in ("moeut", "depth_scaled"):
        parameter.zero_()
        return
    fan_in, _ = fan_in_and_out(name.removesuffix(".bias"), config, stack)
    bound = 1.0 / math.sqrt(fan_in)
    parameter.uniform_(-bound, bound)


def _glorot(parameter: torch.Tensor, fan_in: int, fan_out: int, *, gain: float = 1.0) -> None:
    bound = gain * math.sqrt(6.0 / (fan_in + fan_out))
    parameter.uniform_(-bound, bound)
