"""Language models for Hugging Face Transformers (extra ``[hf]``).

Importing this module registers the model with ``AutoConfig`` and ``AutoModelForCausalLM``::

    import moeut.interop.huggingface
    moeut.interop.huggingface.wrap(model).save_pretrained("folder")
    model = AutoModelForCausalLM.from_pretrained("folder")

What computes is ``moeut.DecoderLM``; here is only the interface. ``Trainer`` trains it: see
``MoEUTForCausalLM.forward`` for what its loss is when gradients are accumulated.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import logging
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import moeut
from moeut.config import ModelConfig
from moeut.models import DecoderLM
from moeut.options import nearest
from moeut.output import ModelOutput
from moeut.recurrence.cache import StackCache

try:
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        GenerationMixin,
        PretrainedConfig,
        PreTrainedModel,
    )
    from transformers.modeling_outputs import MoeCausalLMOutputWithPast
except ImportError as error:
    raise ImportError(
        f"moeut.interop.huggingface needs 'transformers': pip install 'moeut-suite[hf]' ({error})"
    ) from error


LOG = logging.getLogger(__name__)

IGNORE = -100
"""The label that is not counted."""

_OUTPUTS = ("output_attentions", "output_hidden_states")
"""Options of every Transformers config that this model has no answer to."""

_NAMES = {field.name for field in dataclasses.fields(MoeCausalLMOutputWithPast)}
CACHE = "cache" if "cache" in _NAMES else "past_key_values"
"""What this version of Transformers calls the keys and values of the tokens read."""


class MoEUTConfig(PretrainedConfig):
    """A ``ModelConfig`` of form ``decoder_lm``, as Transformers keeps it in ``config.json``.

    Args:
        decoder_lm: ``ModelConfig.to_dict()``; left out only by Transformers itself, when it
            compares a config with the default one.
    """

    model_type = "moeut"

    def __init__(self, decoder_lm: dict[str, Any] | None = None, **others: Any) -> None:
        self.decoder_lm = decoder_lm or {}
        if decoder_lm is not None:
            config = self.model_config()
            if config.form != "decoder_lm":
                raise ValueError(f"form={config.form!r}: expected decoder_lm")
            self.vocab_size = config.vocabulary_size
            self.hidden_size = config.d_model
            self.num_hidden_layers = config.depth.num_applications
            self.num_attention_heads = config.attention.num_heads
        # The head reads the embedding itself where they are tied: there is no second tensor.
        others["tie_word_embeddings"] = False
        super().__init__(**others)

    def model_config(self) -> ModelConfig:
        """Return the config of the model inside."""
        return ModelConfig.from_dict(self.decoder_lm)


class GenerationCache:
    """A ``StackCache`` with the methods that Transformers asks of a cache."""

    is_compileable = False
    is_croppable = False
    is_linear = ()  # so that Transformers leaves it to prepare_inputs_for_generation what is new

    def __init__(self, cache: StackCache) -> None:
        self.cache = cache
        self.num_columns = 0
        """Columns of ``input_ids`` that were read, padding included."""

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of columns read."""
        return self.num_columns

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the rows that beam search goes on with."""
        self.cache = self.cache.select(beam_idx)


class MoEUTForCausalLM(PreTrainedModel, GenerationMixin):
    """``moeut.DecoderLM`` as a Transformers model."""

    config_class = MoEUTConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    accepts_loss_kwargs = True
    """So a ``Trainer`` says how many targets all parts of a batch have."""

    def __init__(self, config: MoEUTConfig) -> None:
        super().__init__(config)
        model = moeut.build(config.model_config())
        assert isinstance(model, DecoderLM)
        self.model = model
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Leave the weights as ``moeut.build`` has drawn them."""

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def get_input_embeddings(self) -> torch.nn.Module:
        """Return the token embedding."""
        return self.model.embedding

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        cache: GenerationCache | None = None,
        past_key_values: GenerationCache | None = None,
        use_cache: bool | None = None,
        num_repeats: int | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **others: Any,
    ) -> MoeCausalLMOutputWithPast | tuple[Any, ...]:
        """Predict the token after each of ``input_ids`` (B, T).

        ``attention_mask`` (B, T): 0 at padding, on the left or on the right. ``past_key_values`` is
        what older versions of Transformers call ``cache``. ``return_dict=False`` gives a tuple.

        ``labels`` (B, T) are shifted here; -100 is not counted. The loss has the auxiliary loss in
        it, which is also returned as ``aux_loss``:

            loss = (Σ of the cross entropies + Σ over rows of n · auxiliary loss of the row) / N

        with n the targets of a row and N = ``num_items_in_batch``, those of all parts of an
        accumulated batch, so that the losses of the parts add up to that of the batch. Without it N
        are the targets of this call, and the auxiliary loss is that of ``moeut``, where all rows
        weigh the same.

        Raises:
            ValueError: padding between real tokens, shapes that do not fit, or an argument that
                this model has no use for.
        """
        self._refuse(others)
        if input_ids is None:
            raise ValueError("input_ids=None: expected token ids (B, T)")
        if labels is not None and labels.shape != input_ids.shape:
            raise ValueError(
                f"labels: shape {tuple(labels.shape)} does not fit input_ids "
                f"{tuple(input_ids.shape)}"
            )
        holder = past_key_values if cache is None else cache
        if holder is None and use_cache:
            holder = GenerationCache(self.model.new_cache(num_repeats))
        targets = None if labels is None else _targets(labels)
        total = row_shares = None
        if num_items_in_batch is not None and targets is not None:
            # DataParallel hands each replica its copy of the number in a tensor of one element.
            total = torch.as_tensor(num_items_in_batch, device=input_ids.device).reshape(())
            row_shares = (targets != IGNORE).sum(dim=1) / total.clamp_min(1)
        output, logits = self._predict(input_ids, attention_mask, holder, num_repeats, row_shares)
        loss = None
        if targets is not None:
            loss = _cross_entropy(logits, targets, total) + output.auxiliary_loss
        elif num_items_in_batch is not None and output.auxiliary_loss.requires_grad:
            _warn_of_lost_loss()
        result = MoeCausalLMOutputWithPast(  # type: ignore[call-arg]
            loss=loss,
            aux_loss=output.auxiliary_loss if self.training else None,
            logits=logits,
            **{CACHE: holder},  # type: ignore[arg-type]
        )
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return result if as_dict else result.to_tuple()

    def _refuse(self, others: dict[str, Any]) -> None:
        """Raise ValueError for an argument, or an option of the config, that would do nothing."""
        asked = {name: getattr(self.config, name, None) for name in _OUTPUTS} | others
        known = list(inspect.signature(type(self).forward).parameters)[1:-1]
        for name, value in asked.items():
            # False and 0 ask for nothing; a tensor of zeros is an input.
            if value is not None and not (isinstance(value, int) and not value):
                raise ValueError(
                    f"{name}: not supported by {type(self).__name__}; expected one of "
                    f"{', '.join(known)}{nearest(name, known)}"
                )

    def _predict(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        holder: GenerationCache | None,
        num_repeats: int | None,
        row_shares: Tensor | None,
    ) -> tuple[ModelOutput, Tensor]:
        """Return the model's output, and its logits (B, T, V) in the columns of ``input_ids``."""
        mask = None if attention_mask is None else _mask_of(attention_mask, input_ids)
        padding = None if mask is None else _left_padding(mask)
        if mask is not None and bool(mask.all()):
            mask = None
        if mask is not None and holder is not None and holder.num_columns:
            raise ValueError("attention_mask: expected no padding in what follows a cached prompt")
        tokens = input_ids
        if padding is not None:
            tokens, mask = _roll(tokens, -padding), _roll(mask, -padding)  # type: ignore[arg-type]
        output = self.model(
            tokens,
            padding_mask=mask,
            cache=None if holder is None else holder.cache,
            num_repeats=num_repeats,
            row_shares=row_shares,
        )
        if holder is not None:
            holder.num_columns += input_ids.shape[1]
        return output, output.logits if padding is None else _roll(output.logits, padding)

    def _validate_generated_length(
        self, generation_config: Any, input_ids_length: int, has_default_max_length: bool
    ) -> None:
        """Refuse, before anything is computed, more tokens than learned positions reach."""
        check = super()._validate_generated_length  # type: ignore[misc] # its self is a protocol
        check(generation_config, input_ids_length, has_default_max_length)
        limit = self.model.config.stacks["decoder"].position_limit
        # The last token is not read.
        if limit is not None and generation_config.max_length - 1 > limit[1]:
            room = max(0, limit[1] + 1 - input_ids_length)
            raise ValueError(
                f"max_length={generation_config.max_length}: the model's learned positions end at "
                f"{limit[1]}; after a prompt of {input_ids_length} tokens, "
                f"max_new_tokens={room} is the most"
            )

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Tensor,
        cache: GenerationCache | None = None,
        past_key_values: GenerationCache | None = None,
        attention_mask: Tensor | None = None,
        use_cache: bool | None = True,
        num_repeats: int | None = None,
        **others: Any,
    ) -> dict[str, Any]:
        """Return what ``forward`` is called with for the next token: the columns not read yet."""
        cache = past_key_values if cache is None else cache
        read = 0 if cache is None else cache.get_seq_length()
        return {
            "input_ids": input_ids[:, read:],
            "attention_mask": attention_mask if read == 0 else None,
            "cache": cache,
            "use_cache": use_cache,
            "num_repeats": num_repeats,
        }


def wrap(model: DecoderLM) -> MoEUTForCausalLM:
    """Return a Transformers model around the weights of a language model.

    Raises:
        ValueError: the model is of another form.
    """
    with torch.device("meta"):
        wrapped = MoEUTForCausalLM(MoEUTConfig(decoder_lm=model.config.to_dict()))
    wrapped.model = model
    return wrapped.train(model.training)


def _targets(labels: Tensor) -> Tensor:
    """Return the token after each one (B, T), ``IGNORE`` where there is none."""
    return F.pad(labels[:, 1:], (0, 1), value=IGNORE)


def _cross_entropy(logits: Tensor, targets: Tensor, total: Tensor | None) -> Tensor:
    """Return the sum of the cross entropies, divided by ``total``, or by how many they are."""
    targets = targets.to(logits.device)
    total = (targets != IGNORE).sum() if total is None else total
    summed = F.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum"
    )
    return summed / total.clamp_min(1)


@functools.cache
def _warn_of_lost_loss() -> None:
    """Say once that whoever computes the loss has to add the auxiliary loss."""
    LOG.warning(
        "the loss is computed outside the model (label smoothing, compute_loss_func), without the "
        "auxiliary loss of its routers: add the output's aux_loss, or leave it to the model"
    )


def _mask_of(attention_mask: Tensor, input_ids: Tensor) -> Tensor:
    """Return the mask (B, T) of the columns of ``input_ids``: the last ones, after a cache."""
    mask = attention_mask[:, -input_ids.shape[1] :].bool()
    if mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask: shape {tuple(attention_mask.shape)} does not fit input_ids "
            f"{tuple(input_ids.shape)}"
        )
    return mask


def _left_padding(mask: Tensor) -> Tensor | None:
    """Return the padding on the left of each row (B,), or None where there is none."""
    left = (mask.cumsum(dim=1) == 0).sum(dim=1)
    changes = (mask[:, 1:] != mask[:, :-1]).sum(dim=1)
    if bool((changes > 1).any()) or bool((left == mask.shape[1]).any()):
        raise ValueError("attention_mask: padding must be on one side of a row's tokens")
    return left if bool((left > 0).any()) else None


def _roll(values: Tensor, steps: Tensor) -> Tensor:
    """Roll each row of (B, T, …) by its own number of steps (B,) to the right."""
    length = values.shape[1]
    columns = (torch.arange(length, device=values.device) - steps[:, None]) % length
    rows = torch.arange(values.shape[0], device=values.device)[:, None]
    return values[rows, columns]


AutoConfig.register(MoEUTConfig.model_type, MoEUTConfig, exist_ok=True)
AutoModelForCausalLM.register(MoEUTConfig, MoEUTForCausalLM, exist_ok=True)
