"""One contestant of ``bench step``, in a process of its own: builds a model, then runs on demand.

Started as a script, with the checkout to measure on ``PYTHONPATH``, so that it serves older code
and published code alike, and imports of either what both have. Its argument is a contestant as JSON
(``runners.bench.step_cases``). It answers each line of its input, a number of repetitions, with the
CPU seconds of one: a training step, or a decoding.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

Work = Callable[[], Any]


def configured(contestant: dict[str, Any]) -> Work:
    """Return the training step of a variant of a sweep file, as a run with changes makes it."""
    import torch

    from runners.config.grid import expand
    from runners.config.schema import RunConfig
    from runners.config.sweep_file import read_sweep
    from runners.training.experiment import build, build_model, train_columns
    from runners.training.loop import Loop, seed_everything

    variant = contestant["variant"]
    names = read_sweep(contestant["config"]).config.variants
    others = ", ".join(f"{{variant: {name}}}" for name in names if name != variant)
    changes = [*contestant["changes"], f"exclude=[{others}]"]
    if "match" not in RunConfig.__dataclass_fields__:  # a checkout of before
        changes = [text.replace("match.parameters", "model.match_parameters") for text in changes]
    config = expand(read_sweep(contestant["config"], changes))[0].config
    built, device = build(config), torch.device("cpu")
    seed_everything(config.seed)
    loop = Loop(
        config.train,
        objective=built.objective,
        model=build_model(built.model_config, device),
        columns=train_columns(built.objective),
        seed=config.seed,
        d_model=built.model_config.d_model,
        device=device,
    )
    return loop.advance


class Rows:
    """Random rows of different lengths: tokens (B, T) from 3 on, their lengths (B,) and mask."""

    def __init__(self, batch: int, shortest: int, longest: int, vocabulary: int) -> None:
        import torch

        self.lengths = torch.linspace(shortest, longest, batch).long()
        self.mask = torch.arange(longest) < self.lengths[:, None]
        self.tokens = torch.randint(3, vocabulary, (batch, longest)) * self.mask


def ours(contestant: dict[str, Any]) -> Work:
    """Return the training step, or the decoding, of a model of this suite."""
    import torch
    from torch.nn import functional as F

    import moeut
    import moeut.ops

    preset = contestant.get("preset")
    config = moeut.preset(preset) if preset else moeut.architecture(**contestant["architecture"])
    model = moeut.build(config)
    if contestant.get("weights") == "bfloat16":  # what round_weights does; older code has none
        with torch.no_grad():
            for one in model.parameters():
                one.copy_(one.to(torch.bfloat16) if one.dim() > 1 else one)
    kind = contestant["kind"]
    if kind == "decode":
        return _decoding(model, contestant)
    if kind == "answers":
        return _answers(model, contestant)
    data = [Rows(**rows) for rows in contestant["rows"]]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    sum_of = getattr(moeut.ops, "cross_entropy_sum", None)

    def mean_loss(logits: Any, targets: Any) -> Any:
        if sum_of is None:  # older code
            return F.cross_entropy(logits, targets)
        return sum_of(logits, targets, -100) / (targets != -100).sum()

    def loss() -> Any:
        if kind == "language":
            tokens = data[0].tokens
            output = model(tokens[:, :-1])
            targets = tokens[:, 1:]
        elif kind == "translation":
            source, target = data
            read, targets = target.tokens[:, :-1], target.tokens[:, 1:]
            targets = targets.masked_fill(~target.mask[:, 1:], -100)
            masks = {"source_mask": source.mask, "target_mask": target.mask[:, :-1]}
            output = model(source.tokens, read, **masks)
        else:
            (source,) = data
            output = model(source.tokens, source_mask=source.mask)
            targets = source.tokens[:, 0] % 8
        return mean_loss(output.logits.flatten(0, -2), targets.flatten()) + output.auxiliary_loss

    return _training(model, loss, optimizer)


def _training(model: Any, loss: Work, optimizer: Any) -> Work:
    import torch

    model.train()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()

    return step


def _decoding(model: Any, contestant: dict[str, Any]) -> Work:
    """Return the decoding of one token a row; few rows are multiplied as ``generate`` does."""
    import torch

    import moeut.ops

    fewest_rows = getattr(moeut.ops, "fewest_rows", contextlib.nullcontext)  # older code has none

    def read(tokens: Any, cache: Any) -> Any:
        with torch.no_grad(), fewest_rows():
            cache = model.new_cache() if cache is None else cache
            model(tokens, cache=cache)
        return cache

    return _token_by_token(model, contestant, read)


def _token_by_token(
    model: Any, contestant: dict[str, Any], read: Callable[[Any, Any], Any]
) -> Work:
    """Return the reading of one token a row, after a prompt that is read again every 32 tokens.

    ``read`` takes tokens and a cache, None for a prompt, and returns the cache with them.
    """
    import torch

    model.eval()
    prompt = torch.randint(3, 1000, (contestant["batch"], contestant["prompt"]))
    state: dict[str, Any] = {"left": 0}

    def step() -> None:
        if not state["left"]:
            state["cache"], state["left"] = read(prompt, None), 32
        read(prompt[:, :1], state["cache"])
        state["left"] -= 1

    return step


def _answers(model: Any, contestant: dict[str, Any]) -> Work:
    import torch

    from moeut.decoding import greedy_decode

    model.eval()
    source = Rows(**contestant["rows"][0])
    special: dict[str, Any] = {"bos": 1, "eos": 2, "pad": 0, "suppress_eos": True}
    longest = contestant["longest"]

    def decode() -> None:
        with torch.no_grad():
            greedy_decode(model, source.tokens, source.mask, max_length=longest, **special)

    return decode


# --- published code -------------------------------------------------------------------------


class _Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for what published code imports to log and draw, and no step uses."""

    NAMES = ("wandb", "torch.utils.tensorboard", "matplotlib", "PIL", "cv2", "tqdm", "plotly")

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        if any(name == one or name.startswith(one + ".") for one in self.NAMES):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> Any:
        module = mock.MagicMock(name=spec.name)
        module.__path__, module.__spec__ = [], spec
        return module

    def exec_module(self, module: object) -> None:
        pass


def nanogpt(contestant: dict[str, Any]) -> Work:
    """Return the training step of karpathy/nanoGPT's ``model.GPT``."""
    import torch
    from model import GPT, GPTConfig

    sizes = contestant["sizes"]
    model = GPT(GPTConfig(dropout=0.0, bias=False, **sizes))
    tokens = Rows(**contestant["rows"][0]).tokens
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    read, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    return _training(model, lambda: model(read, targets)[1], optimizer)


def llama(contestant: dict[str, Any]) -> Work:
    """Return the training step, or the decoding of a token a row, of Transformers' Llama."""
    import torch
    from torch.nn import functional as F
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**contestant["sizes"]))
    model = model.to(getattr(torch, contestant.get("weights", "float32")))
    if contestant.get("kind") == "decode":
        return _llama_decoding(model, contestant)
    tokens = Rows(**contestant["rows"][0]).tokens

    def loss() -> Any:
        logits = model(tokens[:, :-1], use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    return _training(model, loss, optimizer)


def _llama_decoding(model: Any, contestant: dict[str, Any]) -> Work:
    import torch

    def read(tokens: Any, cache: Any) -> Any:
        with torch.inference_mode():
            return model(tokens, use_cache=True, past_key_values=cache).past_key_values

    return _token_by_token(model, contestant, read)


def transformer_generalization(contestant: dict[str, Any]) -> Work:
    """Return the step, or the decoding, of RobertCsordas/transformer_generalization on SCAN."""
    sys.meta_path.insert(0, _Absent())
    import torch
    from layers import transformer as layers
    from models.transformer_enc_dec import TransformerEncDecModel
    from torch.nn import functional as F

    unchanged: dict[str, Any] = {"pos_embeddig": lambda x, offset: x, "embedding_init": "xavier"}
    scaled: dict[str, Any] = {"embedding_init": "kaiming", "scale_mode": "down"}
    classes = {
        "standard": (layers.Transformer, scaled),
        "relative": (layers.RelativeTransformer, unchanged),
        "universal": (layers.UniversalTransformer, scaled),
    }
    kind, options = classes[contestant["variant"]]
    source, target = (Rows(**rows) for rows in contestant["rows"])
    num_in, num_out = (rows["vocabulary"] for rows in contestant["rows"])
    model = TransformerEncDecModel(
        *(num_in, num_out, 128),
        nhead=8,
        num_encoder_layers=3,
        num_decoder_layers=3,
        ff_multiplier=2,
        transformer=kind,
        tied_embedding=True,
        **options,
    )
    if contestant["kind"] == "answers":
        model.eval()
        longest = contestant["longest"]

        def decode() -> None:
            with torch.no_grad():
                model(*(source.tokens, source.lengths, None, None), False, longest)

        return decode
    targets = target.tokens[:, 1:].masked_fill(~target.mask[:, 1:], -100)

    def loss() -> Any:
        rows = (source.tokens, source.lengths, target.tokens[:, 1:], target.lengths - 1)
        return F.cross_entropy(model(*rows, True).data.flatten(0, 1), targets.flatten())

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)
    return _training(model, loss, optimizer)


def ndr(contestant: dict[str, Any]) -> Work:
    """Return the training step of RobertCsordas/ndr on table lookup."""
    sys.meta_path.insert(0, _Absent())
    import torch
    from layers.transformer import (
        RelativeTransformerEncoderLayer,
        UniversalTransformerEncoderWithLayer,
    )
    from models.transformer_classifier import TransformerClassifierModel
    from torch.nn import functional as F

    (source,) = (Rows(**rows) for rows in contestant["rows"])
    model = TransformerClassifierModel(
        *(contestant["rows"][0]["vocabulary"], 8, 128),
        ff_multiplier=2,
        transformer=UniversalTransformerEncoderWithLayer(RelativeTransformerEncoderLayer),
        pos_embeddig=lambda x, offset: x,
        result_column="last",
        nhead=4,
        n_layers=11,
    )

    def loss() -> Any:
        rows = (source.tokens[:, 1:-1], source.lengths - 2)  # it adds both ends itself
        return F.cross_entropy(model(*rows), source.tokens[:, 0] % 8)

    return _training(model, loss, torch.optim.AdamW(model.parameters(), lr=1e-5))


MAKERS: dict[str, Callable[[dict[str, Any]], Work]] = {
    "configured": configured,
    "ours": ours,
    "nanoGPT": nanogpt,
    "llama": llama,
    "transformer_generalization": transformer_generalization,
    "ndr": ndr,
}


def serve(contestant: dict[str, Any], lines: Iterator[str]) -> None:
    """Build the contestant, run it twice, and answer every line of numbers with seconds."""
    import torch

    clock = time.perf_counter if contestant["wall"] else time.process_time

    torch.set_num_threads(contestant["threads"])
    torch.manual_seed(0)
    if contestant.get("retain_memory"):
        from runners.process.environment import retain_memory

        retain_memory()
    work = MAKERS[contestant["maker"]](contestant)
    for _ in range(2):
        work()
    answers = sys.__stdout__
    assert answers is not None
    answers.write("ready\n")
    answers.flush()
    for line in lines:
        count = int(line)
        began = clock()
        for _ in range(count):
            work()
        seconds = (clock() - began) / count
        answers.write(f"{seconds if math.isfinite(seconds) else 0.0}\n")
        answers.flush()


if __name__ == "__main__":
    sys.path.pop(0)  # the folder of this file, where `generate` would hide others' modules
    sys.stdout = sys.stderr  # published code prints
    serve(json.loads(sys.argv[1]), iter(sys.stdin))
