"""Initial weights of every model, in one place."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from moeut.blocks.attention.base import Attention
from moeut.blocks.feed_forward.base import FeedForward
from moeut.blocks.own import expanded
from moeut.blocks.roles import HasRoles, Role, truncated_normal
from moeut.blocks.updates import deepnorm_of_pair
from moeut.config import ModelConfig
from moeut.design import Initialization
from moeut.recurrence.stack import DepthStack


@torch.no_grad()
def initialize(model: nn.Module, config: ModelConfig) -> None:
    """Draw every parameter of ``model`` from the distribution that ``config`` names.

    ``config.initialization`` chooses the column, the module that owns a parameter its row (its
    role). D is ``d_model``, L the applied layers of the stack, H·d the attention width, N·F all
    hidden units of a feed-forward (all experts together), s = sqrt(2 / L). N is a normal, T a
    normal cut at two standard deviations and rescaled to exactly the given one, G the Glorot
    uniform, U the uniform on ± the given bound.

    ====================  =====================  =======================  ======================
    parameter             ``moeut``              ``depth_scaled``         ``glorot``, ``normal``,
                                                                          ``kaiming``
    ====================  =====================  =======================  ======================
    embeddings, learned   N(1/sqrt(D))           N(1/sqrt(D))             G, N(1), N(sqrt(2/D))
    positions
    query, key, value,    N(s/sqrt(D))           T(s/sqrt(D))             G
    relative projection
    routers, gates, halt  N(s/sqrt(D))           T(s/sqrt(D))             G
    attention output      N(s/sqrt(H·d))         T(s/sqrt(H·d))           G
    feed-forward up       N(s/sqrt(D))           T(s/sqrt(D))             G × sqrt(2)
    feed-forward down     N(s/sqrt(N·F))         T(s/sqrt(N·F))           G
    injection, its last   N(1/sqrt(2·D))         N(1/sqrt(2·D))           G
    weight
    diagonal injection,   the identity matrix; decay as configured         same
    output of the state
    attention biases      0                        0                        0
    feed-forward biases   0                      0                        U(1/sqrt(fan-in))
    head weight           U(1/sqrt(D))           U(1/sqrt(D))             G
    head bias             U(1/sqrt(D)), 0 if tied to the embedding        same
    short convolution     N(1/sqrt(k)), k taps   same                     G
    norms                 weight 1, bias 0       same                     same
    relative biases       0; learned logit scale 1/sqrt(d)                same
    copy gate's bias      -3, or as configured                            same
    ====================  =====================  =======================  ======================

    ``lecun`` is ``depth_scaled`` with s = 1, whatever the depth is (TRM, HRM, URM; there also the
    head is normal).

    ``deepnorm`` (arXiv 2203.00555) is ``depth_scaled``, with projections, routers and feed-forwards
    drawn from the Glorot normal, times (8 L)^(-1/4) where the output of a sublayer is in proportion
    to them: values, attention output, feed-forward. An encoder and its decoder have factors of
    their own (``deepnorm_of_pair``).

    Expert weights are drawn as above per head (attention) or as one matrix over all experts
    (feed-forward). ``renormalise_router`` then gives all router rows of a feed-forward one norm,
    ``renormalise_experts`` gives the value and output weights of SwitchHead equal norm over
    experts; both keep the standard deviation of the whole tensor. Geometric attention draws each
    head by itself, with a fan of d where others have H·d, and its scalars are constants.

    Sources: ``moeut`` is the published release (RobertCsordas/moeut at 87f0497) and training code
    (RobertCsordas/moeut_training_code at a0f771a) of arXiv 2405.16039, which differ in the two
    renormalisations; ``depth_scaled`` its dense baseline; the three others are the
    encoder-decoders of arXiv 2108.12284 (RobertCsordas/transformer_generalization at 38f2734).
    The draws come from PyTorch's global generator, in the order of ``named_parameters``.

    Raises:
        ValueError: a parameter has no role.
    """
    roles, branches = dict(roles_of(model)), set(_branches(model))
    for name, parameter in model.named_parameters():
        if name not in roles:
            raise ValueError(f"parameter {name!r} has no role: its module must name it in roles()")
        role, depth = roles[name]
        scheme = config.initialization
        if scheme == "deepnorm" and role.part in ("weight", "up"):
            gain = _beta(config, name, depth) if parameter in branches else 1.0
            parameter.normal_(std=gain * math.sqrt(2.0 / (role.fan_in + role.fan_out)))
        else:
            _draw(parameter, role, scheme, depth)
        if role.equal_norm is not None:
            keep_standard_deviation(parameter, dim=role.equal_norm)
    for module in model.modules():
        if isinstance(module, DepthStack):
            module.draw()


def _beta(config: ModelConfig, name: str, depth: int) -> float:
    """Return DeepNorm's factor on a weight of that name, of a stack of ``depth`` applied layers."""
    if config.form != "encoder_decoder":
        return float((8.0 * depth) ** -0.25)
    return deepnorm_of_pair(*config.applied_layers)[name.startswith("decoder.")].beta


def keep_standard_deviation(weight: Tensor, *, dim: int) -> None:
    """Give all slices along ``dim`` one norm, keeping the standard deviation of the whole."""
    deviation = weight.std()
    weight.div_(weight.norm(dim=dim, keepdim=True))
    weight.mul_(deviation / weight.std())


def roles_of(
    module: nn.Module, prefix: str = "", depth: int = 1
) -> Iterator[tuple[str, tuple[Role, int]]]:
    """Yield the role of each parameter by its name, with the applied layers of its stack."""
    if isinstance(module, DepthStack):
        depth = module.options.num_applications
    if isinstance(module, HasRoles):
        for name, role in expanded(module.roles(), module).items():
            yield prefix + name, (role, depth)
    for name, child in module.named_children():
        yield from roles_of(child, f"{prefix}{name}.", depth)


def _branches(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the weights that the output of a sublayer is in proportion to, one at a time."""
    of_attention = ("value", "output", "up", "down")
    for module in model.modules():
        if not isinstance(module, Attention | FeedForward) or not isinstance(module, HasRoles):
            continue
        is_attention = isinstance(module, Attention)
        named = dict(module.named_parameters(remove_duplicate=False))
        for name, role in expanded(module.roles(), module).items():
            first = name.partition(".")[0]
            counts = first in of_attention if is_attention else first != "router"
            if counts and role.part in ("weight", "up"):
                yield named[name]


def _draw(parameter: Tensor, role: Role, scheme: Initialization, depth: int) -> None:
    if scheme == "deepnorm":
        scheme = "depth_scaled"
    if scheme == "lecun":  # a branch of the first of two layers has the deviation 1/sqrt(fan-in)
        scheme, depth = "depth_scaled", 2
    is_scaled = scheme in ("moeut", "depth_scaled")
    if role.part == "constant":
        parameter.fill_(role.value)
    elif role.part == "identity":
        nn.init.eye_(parameter)
    elif role.part == "embedding":
        _embedding(parameter, role, scheme)
    elif role.part == "head" and not is_scaled:
        _glorot(parameter, role)
    elif role.part in ("head", "head_bias"):
        _uniform(parameter, 1.0 / math.sqrt(role.fan_in))
    elif role.part == "bias":
        _uniform(parameter, 0.0 if is_scaled else 1.0 / math.sqrt(role.fan_in))
    elif role.part == "mix" and is_scaled:  # once on the way of every repeat, so depth is no factor
        parameter.normal_(std=1.0 / math.sqrt(role.fan_in))
    elif not is_scaled:
        _glorot(parameter, role, gain=math.sqrt(2.0) if role.part == "up" else 1.0)
    else:
        deviation = math.sqrt(2.0 / (depth * role.fan_in))
        if scheme == "moeut":
            parameter.normal_(std=deviation)
        else:
            truncated_normal(parameter)
            parameter.mul_(deviation / parameter.std())


def _embedding(parameter: Tensor, role: Role, scheme: Initialization) -> None:
    if scheme == "glorot":
        _glorot(parameter, role)
    elif scheme == "normal":
        parameter.normal_()
    elif scheme == "kaiming":
        parameter.normal_(std=math.sqrt(2.0 / role.fan_in))
    else:
        parameter.normal_(std=1.0 / math.sqrt(role.fan_in))


def _uniform(parameter: Tensor, bound: float) -> None:
    """Draw from ± bound; a bound of 0 draws nothing, so that the generator stays where it is."""
    if bound == 0.0:
        parameter.zero_()
    else:
        parameter.uniform_(-bound, bound)


def _glorot(parameter: Tensor, role: Role, *, gain: float = 1.0) -> None:
    _uniform(parameter, gain * math.sqrt(6.0 / (role.fan_in + role.fan_out)))
