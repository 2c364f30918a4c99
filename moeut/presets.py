"""The language models of the MoEUT paper (arXiv 2405.16039) and its baselines, by name.

``PRESETS["moeut-44m"]`` is a ``ModelConfig`` with the paper's vocabulary of 8000. Sizes are those
of the sweeps of RobertCsordas/moeut_training_code at a0f771a. Names end in the paper's size labels;
dense and σ-MoE models of one label are matched in parameters to MoEUT's.
"""

from __future__ import annotations

from moeut.config import (
    Attention,
    DenseAttention,
    DenseFeedForward,
    ModelConfig,
    SigmaMoE,
    StackConfig,
    SwitchHead,
)

VOCABULARY_SIZE = 8000
EXPERT_SIZE = 128


def _sparse(
    d_model: int,
    num_layers: int,
    group_size: int,
    attention: Attention,
    num_experts: int,
    top_k: int,
) -> ModelConfig:
    return ModelConfig(
        form="decoder_lm",
        d_model=d_model,
        vocabulary_size=VOCABULARY_SIZE,
        decoder=StackConfig(
            num_layers=num_layers,
            group_size=group_size,
            attention=attention,
            feed_forward=SigmaMoE(num_experts=num_experts, expert_size=EXPERT_SIZE, top_k=top_k),
            norm="peri",
        ),
        initialization="moeut",
    )


def _moeut(
    d_model: int,
    num_layers: int,
    group_size: int,
    num_heads: int,
    head_size: int,
    attention_experts: int,
    num_experts: int,
    top_k: int,
    *,
    renormalise_experts: bool = True,
) -> ModelConfig:
    attention = SwitchHead(
        num_heads=num_heads,
        head_size=head_size,
        num_experts=attention_experts,
        renormalise_experts=renormalise_experts,
    )
    return _sparse(d_model, num_layers, group_size, attention, num_experts, top_k)


def _sigma_moe(
    d_model: int, num_layers: int, num_heads: int, head_size: int, num_experts: int, top_k: int
) -> ModelConfig:
    attention = DenseAttention(
        num_heads=num_heads, head_size=head_size, attention_gates="value_and_output"
    )
    return _sparse(d_model, num_layers, num_layers, attention, num_experts, top_k)


def _transformer(
    d_model: int, num_layers: int, num_heads: int, head_size: int, feed_forward_size: int
) -> ModelConfig:
    return ModelConfig(
        form="decoder_lm",
        d_model=d_model,
        vocabulary_size=VOCABULARY_SIZE,
        decoder=StackConfig(
            num_layers=num_layers,
            group_size=num_layers,
            attention=DenseAttention(num_heads=num_heads, head_size=head_size),
            feed_forward=DenseFeedForward(hidden_size=feed_forward_size),
            norm="pre",
        ),
        initialization="depth_scaled",
    )


PRESETS: dict[str, ModelConfig] = {
    #                    d_model layers group heads head  N_A  N_E  K
    "moeut-44m": _moeut(412, 16, 2, 4, 82, 8, 155, 12, renormalise_experts=False),
    "moeut-126m": _moeut(768, 18, 2, 4, 96, 10, 254, 12),
    "moeut-244m": _moeut(1024, 18, 2, 4, 128, 10, 387, 16),
    "moeut-319m": _moeut(1024, 24, 3, 4, 128, 10, 338, 16),
    "moeut-728m": _moeut(1280, 36, 4, 5, 128, 13, 467, 20),
    "moeut-1b": _moeut(1536, 36, 4, 6, 128, 12, 565, 24),
    #                            d_model layers heads head feed-forward
    "transformer-44m": _transformer(412, 16, 10, 41, 2053),
    "transformer-126m": _transformer(768, 16, 16, 48, 3072),
    "transformer-244m": _transformer(1024, 18, 16, 64, 4110),
    "transformer-319m": _transformer(1024, 24, 16, 64, 4110),
    "transformer-728m": _transformer(1280, 36, 20, 64, 5120),
    "transformer-1b": _transformer(1536, 36, 24, 64, 6144),
    #                        d_model layers heads head N_E  K
    "sigma_moe-44m": _sigma_moe(412, 16, 4, 82, 17, 12),
    "sigma_moe-126m": _sigma_moe(768, 18, 4, 96, 26, 12),
    "sigma_moe-244m": _sigma_moe(1024, 18, 4, 128, 40, 16),
    "sigma_moe-319m": _sigma_moe(1024, 24, 4, 128, 40, 16),
    "sigma_moe-728m": _sigma_moe(1280, 36, 5, 128, 50, 20),
}
