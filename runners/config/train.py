"""How a model is trained: the section ``train``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from runners.config.checks import NOT_IDENTITY, above_zero, at_least, below_one, refuse
from runners.config.objective import ObjectiveConfig
from runners.config.repeats import RepeatsConfig
from tasks.base.options import OptionError


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained."""

    steps: int = 1000
    """Updates of the weights."""
    batch_size: int = 128
    """Sequences, or windows of text, per update, over all accumulated parts and all ranks."""
    tokens_per_batch: int | None = None
    """Upper bound on padded target + source tokens per update; length-bucketed batches fill it.
    Replaces batch_size where given."""
    accumulate: int = 1
    """Parts into which each rank's share of a batch is split to save memory; gradients are those
    of the whole batch."""
    optimizer: Literal["adam", "adamw", "muon"] = "adamw"
    """Adam; Adam with decoupled weight decay; or Muon (arXiv 2502.16982) for the matrices of
    layers, those of experts one by one, with AdamW for all else: embeddings, head, norms, biases,
    routers, gates. An update of Muon's is as large as one of AdamW's, so both take the learning
    rate and the weight decay below."""
    learning_rate: float = 1e-3
    """Peak learning rate; under noam the factor in front of 1/sqrt(d_model)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's and AdamW's decay rates of the first and the second moment."""
    epsilon: float = 1e-8
    """What Adam adds to the root of the second moment."""
    weight_decay: float = 0.0
    """Weight decay, on every parameter: an L2 penalty under adam, else decoupled."""
    ema: float = 0.0
    """Decay m of an average of the weights, ema ← m · ema + (1 - m) · weights after every update,
    from the initial weights on: it is scored, selected and exported in the place of the weights,
    which training goes on with. 0: there is none; TRM and URM have 0.999."""
    repeats: RepeatsConfig = field(default_factory=RepeatsConfig)
    """How often the group of shared layers is applied; drawn anew for each step from its number
    and the seed."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """What of the recurrence the loss is taken of."""
    backprop_repeats: int | None = None
    """Last repeats that gradients flow through; null: all of them. Needs model.state.injection."""
    static_depth: bool = False
    """Run as many repeats in every step as the deepest may have, in which a sequence waits once it
    is done: the same numbers by one graph, which is compiled once. Needs a bound on repeats."""
    clip_norm: float | None = 1.0
    """Largest global gradient norm; null turns clipping off."""
    schedule: Literal["constant", "linear", "cosine", "cosine_paper", "noam", "stable"] = "constant"
    """Shape after the warm-up. cosine_paper is MoEUT's: the cosine is as long as the run but begins
    after the warm-up, so that it ends before its floor by as many steps. stable
    (warm-up-stable-decay) stays at the peak and falls in a line over the last decay_steps."""
    decay_steps: int | None = None
    """Last updates over which schedule stable falls to its floor."""
    warmup_steps: int = 0
    """Updates over which the learning rate rises in a line from 0 to its peak."""
    final_learning_rate_ratio: float = 0.1
    """Floor of linear, both cosines and stable, as a share of the peak."""
    shared_rate: Literal["same", "root"] = "same"
    """Learning rate of layers that are repeated: that of all, or it over the root of the repeats
    that the model is made for. What each repeat has of its own, and recursions, keep it."""
    label_smoothing: float = 0.0
    """Share of the target's probability that is spread over all tokens, in training's loss."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: autocast, with weights and optimiser in float32; on a GPU the products that stay in
    float32, those of routers, are in TF32."""
    compile: bool = False
    """Run the model through torch.compile."""
    cuda_graph: bool | Literal["auto"] = field(default=False, metadata=NOT_IDENTITY)
    """Record training steps as CUDA graphs, one for each shape of batch and depth, and replay them:
    the same bits with fewer launches. auto: where a GPU waits for launches and the model can."""
    activation_checkpointing: bool = False
    """Recompute layers in the backward pass instead of keeping their activations."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""
    parallel: Literal["ddp", "fsdp"] = field(default="ddp", metadata=NOT_IDENTITY)
    """How several ranks under torchrun share the work: ddp keeps weights and optimiser on each,
    fsdp (FSDP2) a part of them; one process is neither."""
    num_threads: int = 1
    """CPU threads of one run; part of its identity, since it decides the last bits."""
    deterministic: bool = True
    """Only deterministic GPU kernels, so that a resumed run is bitwise the same."""
    log_interval: int = field(default=50, metadata=NOT_IDENTITY)
    """Updates between rows of metrics.jsonl: loss (in nats), gradient norm and learning rate; of
    language models also perplexity, tokens/s, model FLOPs utilisation (null where the device's peak
    is unknown, as of every CPU), peak memory in bytes, and each router's dead experts and
    entropy."""
    checkpoint_interval: int = field(default=200, metadata=NOT_IDENTITY)
    """Updates between checkpoints, of which the last two are kept."""
    tensorboard: bool = field(default=False, metadata=NOT_IDENTITY)
    """Write the rows of metrics.jsonl for TensorBoard too, into the run's directory."""
    wandb: bool = field(default=False, metadata=NOT_IDENTITY)
    """Send the rows to Weights & Biases too (extra [wandb]; offline where nobody is logged in)."""
    trackio: bool = field(default=False, metadata=NOT_IDENTITY)
    """Hand the rows to trackio too (extra [trackio])."""

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "batch_size", "tokens_per_batch", "accumulate", "num_threads")
        at_least(self, 1, "backprop_repeats")
        if self.static_depth and self.repeats.most is None:
            needed = {"fixed": "number"}.get(self.repeats.kind, "longest")
            refuse(self, "static_depth", f"needs repeats.{needed}, which bounds the depth")
        at_least(self, 1, "log_interval", "checkpoint_interval")
        at_least(self, 0, "warmup_steps", "weight_decay", "final_learning_rate_ratio")
        above_zero(self, "learning_rate", "epsilon", "clip_norm")
        below_one(self, "label_smoothing", "ema")
        for index, beta in enumerate(self.betas):
            if not 0.0 <= beta < 1.0:
                refuse(self, "betas", f"number {index + 1} must be at least 0 and below 1")
        if self.accumulate > self.batch_size and self.tokens_per_batch is None:
            refuse(self, "accumulate", f"must be at most batch_size={self.batch_size}")
        if self.schedule == "noam" and self.warmup_steps < 1:
            refuse(self, "warmup_steps", "schedule noam needs at least 1")
        ends = self.schedule in ("linear", "cosine", "cosine_paper", "stable")
        if ends and self.warmup_steps >= self.steps:
            expected = f"must be below steps={self.steps} under schedule {self.schedule}"
            refuse(self, "warmup_steps", expected)
        self._check_decay()
        self._check_objective()
        if self.cuda_graph is True and self.device == "cpu":
            refuse(self, "cuda_graph", "device cpu has no CUDA graphs; use false or auto")

    def _check_objective(self) -> None:
        """Refuse what an objective asks of the depth or the steps and does not get."""
        objective, repeats = self.objective, self.repeats

        def refuse_option(name: str, expected: str) -> None:
            raise OptionError(f"objective.{name}", getattr(objective, name), expected)

        if objective.weights == "depth" and repeats.mean is None:
            refuse_option("weights", "depth needs repeats.mean, which it compares a step with")
        is_of_step = objective.kind == "last" and objective.weights != "uniform"
        if is_of_step and (repeats.per != "batch" or repeats.kind == "length"):
            said = "weighs a step, whose rows need one depth (repeats.per batch)"
            refuse_option("weights", f"{objective.weights} {said}")
        if objective.gate_steps is not None and objective.gate_steps > self.steps:
            refuse_option("gate_steps", f"must be at most steps={self.steps}")

    def _check_decay(self) -> None:
        """Refuse decay_steps without schedule stable, the reverse, and a fall that has no room."""
        if self.schedule != "stable":
            if self.decay_steps is not None:
                refuse(self, "decay_steps", "has an effect only under schedule stable")
            return
        if self.decay_steps is None:
            refuse(self, "decay_steps", "schedule stable needs it: the last updates that fall")
        room = self.steps - self.warmup_steps
        if not 1 <= self.decay_steps <= room:
            expected = f"must be at least 1 and at most steps - warmup_steps = {room}"
            refuse(self, "decay_steps", expected)
