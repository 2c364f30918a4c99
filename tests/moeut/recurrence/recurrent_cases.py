"""Controllers, blocks and batches that the tests of recurrence share."""

import torch

from moeut.recurrence.conditioning import AdaptiveNorm, Vectors
from moeut.recurrence.exit_gate import ExitGate
from moeut.recurrence.halting import AdaptiveComputationTime
from moeut.recurrence.state import State
from moeut.recurrence.stick_breaking import StickBreaking

REPEATS = 4
FORMS = ["decoder_lm", "encoder_decoder", "encoder_classifier"]
BLOCKS = {
    "dense": {"attention": "dense", "feed_forward": "dense"},
    "experts": {"attention": "switch_head", "feed_forward": "sigma_moe"},
}
ACT = AdaptiveComputationTime(threshold=0.8, loss_weight=0.3, initial_bias=-1.0)
UPDATE = AdaptiveComputationTime(threshold=0.8, loss_weight=0.3, initial_bias=-1.0, halted="update")


BOTH_GATED = {"kind": "feed_forward", "hidden_size": 9, "gated": True, "bias": True}

LIKE_INIT = {"kind": "noise", "shape": "like_init"}


def state(start, injection, output="none"):
    return State.from_dict({"start": start, "injection": injection, "output": output})


CONTROLLERS = {
    "zero_add": {"state": state("zero", "add")},
    "noise_linear": {"state": state("noise", "linear")},
    "input_linear": {"state": state("input", "linear")},
    "noise_diagonal": {"state": state(LIKE_INIT, "diagonal", "linear")},
    "input_feed_forward": {"state": state("input", BOTH_GATED, "final_norm")},
    "noise_linear_out": {"state": state("noise", "linear", "feed_forward")},
    "act": {"halting": ACT},
    "act_vectors": {"halting": ACT, "conditioning": Vectors(size=REPEATS)},
    "add_adaptive_norm": {
        "state": state("input", "add"),
        "conditioning": AdaptiveNorm(size=REPEATS),
    },
    "act_update": {"halting": UPDATE},
    "gate": {"halting": ExitGate(threshold=0.8, initial_bias=-1.5)},
    "stick": {"halting": StickBreaking(threshold=0.97, loss_weight=0.3)},
    "act_noise_linear": {"halting": ACT, "state": state("noise", "linear")},
}


LENGTHS = [6, 3, 5]


def batch(model, rows=slice(None), width=6, seed=0):
    """Return the arguments of a padded batch, of some of its rows, in ``width`` columns."""
    generator = torch.Generator().manual_seed(seed)
    draw = {"generator": generator}
    tokens = torch.randint(0, 11, (3, 12), **draw)[:, :width][rows]
    source = torch.randint(0, 13, (3, 12), **draw)[:, :width][rows]
    mask = (torch.arange(width) < torch.tensor(LENGTHS)[:, None])[rows]
    form = model.config.form
    if form == "decoder_lm":
        return (tokens,), {"padding_mask": mask}
    if form == "encoder_decoder":
        return (source, tokens), {"source_mask": mask, "target_mask": mask}
    return (tokens,), {"source_mask": mask}


def real_logits(model, output, rows=slice(None), width=6):
    """Return the logits at real tokens (N, outputs)."""
    if output.logits.dim() == 2:
        return output.logits
    mask = (torch.arange(width) < torch.tensor(LENGTHS)[:, None])[rows]
    return output.logits[mask]


def loss_of(model, output, rows=slice(None), width=6):
    """Return a smooth function of what the model says of real tokens, and the auxiliary loss."""
    logits = real_logits(model, output, rows, width)
    return logits.log_softmax(-1)[..., 0].sum() + output.auxiliary_loss


def make_recurrent(make_model, form, controller, blocks, **options):
    """Return a float64 model whose tokens halt at different repeats, if they halt."""
    sizes = {"repeats": REPEATS, "prelude": 1, "coda": 1}
    model = make_model(form, **sizes | BLOCKS[blocks] | CONTROLLERS[controller] | options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "halting.weight" in name or ("down.weight" in name and "halting" in name):
                parameter.mul_(12.0)
    return model
