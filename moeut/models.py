"""The forms of a model: causal language model, encoder-decoder, classifier, labeller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moeut.base import Model, build_stack
from moeut.blocks import masks
from moeut.blocks.embeddings import Embedding, Head
from moeut.config import Form, ModelConfig
from moeut.encoders import EncoderClassifier, EncoderLabeller
from moeut.initialization import initialize
from moeut.ops import takes_any_rows
from moeut.output import ModelOutput, output_of
from moeut.recurrence.cache import SharedSlots, StackCache
from moeut.recurrence.inputs import Inputs, Memory, StackOutput
from moeut.recurrence.row_depth import RowDepth

Repeats = int | tuple[int | None, int | None] | None
"""Passes through the group: of every stack, or of encoder and decoder; None: as configured."""


@dataclass(frozen=True)
class Encoded:
    """A source that an encoder has read, for ``EncoderDecoder.decode``."""

    memory: Memory
    output: StackOutput

    def select(self, rows: Tensor) -> Encoded:
        """Keep the given rows of the batch, (N,) int64; traces are left out."""
        states = self.memory.states.index_select(0, rows)
        real = self.memory.real
        return Encoded(
            Memory(states, None if real is None else real.index_select(0, rows)),
            StackOutput(states, self.output.auxiliary_loss),
        )


class DecoderLM(Model):
    """A causal language model, optionally with a bidirectional prefix in each row."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.decoder = build_stack(config.stacks["decoder"], config.d_model, causal=True)
        self.head = Head(
            config.d_model,
            config.vocabulary_size,
            tied=config.tie_embeddings,
            bias=config.head_bias,
            scale=config.logit_scale,
            cap=config.logit_cap,
            projected=config.head_projection,
            embedding_size=config.embedding_size,
        )

    def new_cache(
        self, num_repeats: int | None = None, *, shared: SharedSlots | None = None
    ) -> StackCache:
        """Return an empty cache for decoding at this depth, ``shared`` by repeated applications."""
        return self.decoder.new_cache(num_repeats, shared=shared)

    def forward(
        self,
        tokens: Tensor,
        *,
        padding_mask: Tensor | None = None,
        prefix_length: Tensor | None = None,
        document_numbers: Tensor | None = None,
        num_repeats: int | None = None,
        backprop_repeats: int | None = None,
        row_depth: RowDepth | None = None,
        cache: StackCache | None = None,
        row_shares: Tensor | None = None,
        read_repeats: Sequence[int] | None = None,
        trace: bool = False,
    ) -> ModelOutput:
        """Predict the token after each of ``tokens`` (B, T).

        ``padding_mask`` (B, T) bool: True at real tokens; padding is on the right.
        ``prefix_length`` (B,): each row's first tokens that see one another in both directions.
        ``document_numbers`` (B, T), never falling along a row: tokens see those of their own number
        alone, and absolute positions begin anew with each, so that the logits of a document are
        those of the document alone. The balance loss stays one of rows: a router's choices are
        balanced over a row's tokens, whatever documents they are of. Not with a prefix or a cache.
        With ``cache``, ``tokens`` continue what it holds; rows may have prompts of different
        length, whose padding is then overwritten; a prefix has to come in one call, the first.
        ``num_repeats``: passes through the group, as configured if left out; gradients flow through
        the last ``backprop_repeats`` of them, or through all. ``row_depth``: how many of either
        each row or token takes part in. ``row_shares`` (B,): the share of each row in the auxiliary
        loss, where the rows are a part of a larger batch.
        ``read_repeats``: repeats, from 0, whose logits are returned too; -1 is the last.
        """
        if cache is not None and takes_any_rows():
            unusual = (padding_mask, prefix_length, document_numbers, row_depth, read_repeats)
            if not trace and all(one is None for one in unusual):
                from moeut import token_pass  # imports what only written text needs

                logits = token_pass.read(self, self.decoder, tokens, cache, num_repeats)
                if logits is not None:
                    return ModelOutput(logits, logits.new_zeros(()), cache, repeats={"decoder": []})
        mask = masks.check_mask(padding_mask, tokens, "padding_mask")
        masks.check_right_padded(mask, "padding_mask")
        masks.check_prefix(prefix_length, mask, tokens)
        masks.check_documents(document_numbers, tokens)
        if document_numbers is not None and not (prefix_length is None and cache is None):
            raise ValueError("document_numbers: cannot be given with prefix_length or cache")
        out = self.decoder(
            self._embed(self.embedding, tokens, "tokens"),
            Inputs(
                tokens=tokens,
                real=mask,
                prefix_length=prefix_length,
                document_numbers=document_numbers,
                num_repeats=num_repeats,
                backprop_repeats=backprop_repeats,
                row_depth=row_depth,
                cache=cache,
                row_shares=row_shares,
                read_repeats=read_repeats,
                exit_rule=self.exit_rule,
                read_logits=self._read_out,
                trace=trace,
                activation_checkpointing=self.activation_checkpointing,
            ),
        )
        return output_of(self._read_out, cache, decoder=out)


class EncoderDecoder(Model):
    """A bidirectional encoder, and a causal decoder that reads its output."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        assert config.source_vocabulary_size is not None
        self.source_embedding = Embedding(config.source_vocabulary_size, config.embedding_size)
        encoder, decoder = config.stacks["encoder"], config.stacks["decoder"]
        self.encoder = build_stack(encoder, config.d_model, causal=False)
        self.decoder = build_stack(decoder, config.d_model, causal=True, cross_attention=True)
        self.head = Head(
            config.d_model,
            config.vocabulary_size,
            tied=config.tie_embeddings,
            bias=config.head_bias,
            scale=config.logit_scale,
            cap=config.logit_cap,
            projected=config.head_projection,
            embedding_size=config.embedding_size,
        )

    def new_cache(self, num_repeats: Repeats = None) -> StackCache:
        """Return an empty cache for decoding at this depth."""
        return self.decoder.new_cache(_pair(num_repeats)[1])

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        *,
        source_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
        num_repeats: Repeats = None,
        backprop_repeats: int | None = None,
        row_depth: RowDepth | None = None,
        read_repeats: Sequence[int] | None = None,
        trace: bool = False,
    ) -> ModelOutput:
        """Predict the token after each of ``target`` (B, T), having read ``source`` (B, S).

        Masks are bool, True at real tokens; the target's padding is on the right.
        ``num_repeats``: one number for both stacks, or a pair (encoder, decoder); gradients flow
        through the last ``backprop_repeats`` of each, or through all; a ``row_depth`` of rows holds
        for both. ``read_repeats``: repeats of the decoder, from 0, whose logits are returned too;
        -1 is the last.
        """
        encoded = self.encode(
            source,
            source_mask=source_mask,
            num_repeats=num_repeats,
            backprop_repeats=backprop_repeats,
            row_depth=row_depth,
            trace=trace,
        )
        return self.decode(
            target,
            encoded,
            target_mask=target_mask,
            num_repeats=num_repeats,
            backprop_repeats=backprop_repeats,
            row_depth=row_depth,
            read_repeats=read_repeats,
            trace=trace,
        )

    def encode(
        self,
        source: Tensor,
        *,
        source_mask: Tensor | None = None,
        num_repeats: Repeats = None,
        backprop_repeats: int | None = None,
        row_depth: RowDepth | None = None,
        trace: bool = False,
    ) -> Encoded:
        """Read ``source`` (B, S)."""
        mask = masks.check_mask(source_mask, source, "source_mask")
        out = self.encoder(
            self._embed(self.source_embedding, source, "source"),
            Inputs(
                tokens=source,
                real=mask,
                is_memory=True,
                num_repeats=_pair(num_repeats)[0],
                backprop_repeats=backprop_repeats,
                row_depth=row_depth,
                trace=trace,
                activation_checkpointing=self.activation_checkpointing,
            ),
        )
        return Encoded(Memory(out.states, mask), out)

    def decode(
        self,
        target: Tensor,
        memory: Encoded,
        *,
        target_mask: Tensor | None = None,
        num_repeats: Repeats = None,
        backprop_repeats: int | None = None,
        row_depth: RowDepth | None = None,
        cache: StackCache | None = None,
        read_repeats: Sequence[int] | None = None,
        trace: bool = False,
    ) -> ModelOutput:
        """Predict the token after each of ``target`` (B, T), given what ``encode`` returned.

        With ``cache``, ``target`` continues what it holds, and the memory's keys and values are
        computed once.
        """
        mask = masks.check_mask(target_mask, target, "target_mask")
        masks.check_right_padded(mask, "target_mask")
        out = self.decoder(
            self._embed(self.embedding, target, "target"),
            Inputs(
                tokens=target,
                real=mask,
                memory=memory.memory,
                num_repeats=_pair(num_repeats)[1],
                backprop_repeats=backprop_repeats,
                row_depth=row_depth,
                cache=cache,
                read_repeats=read_repeats,
                exit_rule=self.exit_rule,
                read_logits=self._read_out,
                trace=trace,
                activation_checkpointing=self.activation_checkpointing,
            ),
        )
        return output_of(self._read_out, cache, encoder=memory.output, decoder=out)


FORMS: dict[Form, type[DecoderLM] | type[EncoderDecoder] | type[EncoderClassifier]] = {
    "decoder_lm": DecoderLM,
    "encoder_decoder": EncoderDecoder,
    "encoder_classifier": EncoderClassifier,
    "encoder_labeller": EncoderLabeller,
}


def build(config: ModelConfig) -> Model:
    """Return the model that ``config`` describes, with initial weights.

    The weights come from PyTorch's global random generator. The result is a ``DecoderLM``, an
    ``EncoderDecoder``, an ``EncoderClassifier`` or an ``EncoderLabeller``.
    """
    with torch.device("meta"):  # so that only initialize draws random numbers
        model = FORMS[config.form](config)
    device = torch.get_default_device()
    # Module.to_empty would import SymPy, to compare strides.
    model._apply(lambda t: torch.empty_strided(t.size(), t.stride(), dtype=t.dtype, device=device))
    initialize(model, config)
    return model


def _pair(num_repeats: Repeats) -> tuple[int | None, int | None]:
    """Return the repeats of the encoder and of the decoder."""
    if isinstance(num_repeats, (tuple, list)):
        if len(num_repeats) != 2:
            raise ValueError(f"num_repeats={num_repeats!r}: expected one number or a pair")
        return num_repeats[0], num_repeats[1]
    return num_repeats, num_repeats
