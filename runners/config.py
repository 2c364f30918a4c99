"""The config tree of a run and of a sweep.

Every field's docstring is what ``--help`` prints. ``task`` and ``model`` are open sections: their keys are
the options of the chosen task (``tasks.TASKS``) and architecture (``moeut.ARCHITECTURES``), checked there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained."""

    steps: int = 1000
    """Optimiser updates."""
    batch_size: int = 128
    """Sequences per update, over all accumulated parts."""
    tokens_per_batch: int | None = None
    """Upper bound on padded target + source tokens per update; length-bucketed batches fill it.
    Replaces batch_size where given."""
    accumulate: int = 1
    """Parts into which each batch is split; gradients are those of the whole batch."""
    optimizer: Literal["adam", "adamw"] = "adamw"
    """Adam, or Adam with decoupled weight decay."""
    learning_rate: float = 1e-3
    """Peak learning rate; under noam the factor in front of 1/sqrt(d_model)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates."""
    epsilon: float = 1e-8
    """Adam's epsilon."""
    weight_decay: float = 0.0
    """Weight decay on every parameter."""
    clip_norm: float | None = 1.0
    """Largest global gradient norm; null turns clipping off."""
    schedule: Literal["constant", "linear", "cosine", "noam"] = "constant"
    """Shape after the warm-up."""
    warmup_steps: int = 0
    """Linear warm-up."""
    final_learning_rate_ratio: float = 0.1
    """Where linear and cosine end, as a share of the peak."""
    label_smoothing: float = 0.0
    """Label smoothing of the cross entropy."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: autocast with float32 weights."""
    compile: bool = False
    """Run the model through torch.compile."""
    activation_checkpointing: bool = False
    """Recompute layers in the backward pass instead of keeping their activations."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""
    num_threads: int = 1
    """CPU threads of one run; part of its identity, since it decides the last bits."""
    deterministic: bool = True
    """Only deterministic GPU kernels, so that a resumed run is bitwise the same."""
    log_interval: int = 50
    """Steps between rows in metrics.jsonl."""
    checkpoint_interval: int = 200
    """Steps between checkpoints."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is measured, when."""

    splits: list[str] = field(default_factory=list)
    """Splits scored at the end; empty: every split but train."""
    interval: int | None = None
    """Steps between evaluations of interval_splits on the way; null: only at the end."""
    interval_splits: list[str] = field(default_factory=list)
    """Splits scored on the way; empty: the in-distribution split."""
    repeats: list[int] = field(default_factory=list)
    """Further depths (num_repeats) at which a shared model is scored at the end, besides its own."""
    rows_per_category: int | None = None
    """Score only so many rows of each category of a split, chosen by hash; tables say so."""
    batch_size: int = 256
    """Sequences decoded at once."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run."""

    task: dict[str, Any]
    """name and the options of that task; see ``python -m tasks.show --help``."""
    model: dict[str, Any]
    """architecture and its options."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How it is trained."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """What is measured."""
    select: str = "final"
    """Which weights are scored: ``final``, or ``best:<split>`` on a validation split."""
    seed: int = 0
    """Initialisation, data order and dropout."""


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Many runs: variants × parameters × seeds."""

    name: str
    """Directory under runs/."""
    base: dict[str, Any]
    """A run, which every variant changes."""
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The models compared: name → changes to base."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Grid in W&B's form: dotted key → {value: x} or {values: [x, y]}."""
    seeds: list[int] | int = 1
    """A list of seeds, or how many (0, 1, …)."""
    exclude: list[dict[str, Any]] = field(default_factory=list)
    """Grid points left out: every key given must match; ``variant`` is a key too."""
    baseline: str | None = None
    """Variant that the others are tested against; default: the first."""
    headline: dict[str, Any] = field(default_factory=dict)
    """{split, metric} of the main column; default: the last split's exact match or accuracy."""
