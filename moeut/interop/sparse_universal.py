"""Import Sparse Universal Transformers of the paper's training code, its ``actsut_universal``."""

from __future__ import annotations

from moeut.blocks.attention import MixtureOfAttention
from moeut.blocks.feed_forward import SoftmaxMoE
from moeut.blocks.positions.clipped import Clipped
from moeut.config import ModelConfig
from moeut.interop.mapping import RawOptions, TensorMap, rename, rename_layer
from moeut.recurrence.schedule import Depth
from moeut.recurrence.stick_breaking import StickBreaking

VARIANT = "actsut_universal"
"""What the option ``transformer.variant`` calls them."""


def sparse_universal_config(read: RawOptions, *, depth: Depth, vocabulary_size: int) -> ModelConfig:
    """Return the model config of the code's options.

    Raises:
        ValueError: what an option asks for is not supported.
    """
    for name in ("moa.cvloss", "moa.switchloss", "moa.zloss", "sut.drop_gate", "sut.sample_topk"):
        read.require(name, read.number(name, 0.0), 0.0, default=0.0)
    d_model = read.integer("state_size", 128)
    head_size = read.integer("transformer.head_projection_size")
    width = read.integer("moe.att.expert_size")
    if width % head_size:
        said = f"must be a multiple of transformer.head_projection_size={head_size}"
        raise read.error("moe.att.expert_size", width, said)
    loss = read.number("moa.miloss", 0.01)
    return ModelConfig(
        form="decoder_lm",
        d_model=d_model,
        vocabulary_size=vocabulary_size,
        depth=depth,
        halting=StickBreaking(
            threshold=0.999, loss_weight=read.number("transformer.act_loss", 0.0), halted="update"
        ),
        attention=MixtureOfAttention(
            num_heads=width // head_size,
            head_size=head_size,
            num_experts=read.integer("moe.att.n_experts", 4),
            top_k=read.integer("moe.att.k", 2),
            balance_loss=loss,
            balance="sum_of_entropies",
        ),
        feed_forward=SoftmaxMoE(
            num_experts=read.integer("moe.n_experts", 128),
            expert_size=read.integer("moe.expert_size", 128),
            top_k=read.integer("pkm.n_heads", 1),
            balance_loss=loss,
            balance="sum_of_entropies",
        ),
        position=Clipped(max_distance=read.integer("sut.max_relative_positions", 64)),
        norm="post",
        norm_input=read.boolean("lm.trafo.norm_input", False),
        final_norm=read.boolean("lm.trafo.force_out_norm", False),
        embedding_scale="sqrt_d_model",
        initialization="moeut",
    )


def sparse_universal_maps(index: int) -> list[TensorMap]:
    """Return where the tensors of one distinct layer belong, its gate among them."""
    theirs, ours = f"unique_layers.{index}", f"decoder.layers.{index}"
    gate = f"decoder.controllers.halting.gates.{index}"
    attention, moe = f"{theirs}.mod.self_attn", f"{theirs}.mod.moe"
    names = {
        f"{attention}.k_proj.weight": "attention.key.weight",
        f"{attention}.v_proj.weight": "attention.value.weight",
        f"{attention}.q_proj.experts.w": "attention.query",
        f"{attention}.q_proj.output_experts.w": "attention.output",
        f"{attention}.rel_pos_emb": "attention.relative.weight",
        f"{moe}.experts.w": "feed_forward.up",
        f"{moe}.experts.b": "feed_forward.up_bias",
        f"{moe}.output_experts.w": "feed_forward.down",
        f"{moe}.output_experts.b": "feed_forward.down_bias",
    }
    maps = [rename(a, f"{ours}.{b}") for a, b in names.items()]
    norms = {"self_attn_layer_norm": "attention_norm", "final_layer_norm": "feed_forward_norm"}
    for a, b in norms.items():
        maps += rename_layer(f"{theirs}.mod.{a}", f"{ours}.{b}")
    for a, b in {f"{attention}.q_proj": "attention", moe: "feed_forward"}.items():
        maps += rename_layer(f"{a}.w_gate.0", f"{ours}.{b}.router.hidden")
        maps.append(rename(f"{a}.w_gate.3.weight", f"{ours}.{b}.router.output.weight"))
    maps += rename_layer(f"{theirs}._gate.0", f"{gate}.up")
    maps.append(rename(f"{theirs}._gate.3.weight", f"{gate}.down.weight"))
    return maps
