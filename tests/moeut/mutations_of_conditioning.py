"""Mistakes in what tells one repeat from another."""

from mutating import Mutation

CONDITIONED = "moeut/recurrence/test_conditioning.py::test_each_kind_is_its_formula"
CONDITIONING = "moeut.recurrence.conditioning"

MUTATIONS: dict[str, list[Mutation]] = {
    "conditioning: coordinates": [
        Mutation(
            "frequencies end before 1/10000",
            f"{CONDITIONING}:timing_signal",
            "max(count - 1, 1)",
            "count",
            f"{CONDITIONED}[coordinates]",
        ),
        Mutation(
            "signals are added to the first repeat alone",
            f"{CONDITIONING}:DepthRun.before",
            "if place.is_first",
            "if place.is_first and place.repeat == 0",
            f"{CONDITIONED}[coordinates]",
        ),
        Mutation(
            "learned steps are not multiplied by the root of the width",
            f"{CONDITIONING}:CoordinatesController.before",
            " * math.sqrt(width)",
            "",
            f"{CONDITIONED}[learned_steps]",
        ),
        Mutation(
            "signals stand before the state",
            f"{CONDITIONING}:CoordinatesController.before",
            "(x, *beside)",
            "(*beside, x)",
            f"{CONDITIONED}[beside]",
        ),
        Mutation(
            "positions are shifted in evaluation",
            f"{CONDITIONING}:CoordinatesController.begin",
            "if self.training and",
            "if",
            "moeut/recurrence/test_conditioning.py::test_positions_of_a_row_are_shifted_in_training_alone",
        ),
    ],
    "conditioning: vectors": [
        Mutation(
            "repeats are counted from 1",
            f"{CONDITIONING}:TableController.entry",
            "min(place.repeat, last)",
            "min(place.repeat + 1, last)",
            f"{CONDITIONED}[vectors]",
        ),
    ],
    "conditioning: network": [
        Mutation(
            "sines come first",
            f"{CONDITIONING}:NetworkController.before",
            "(angles.cos(), angles.sin())",
            "(angles.sin(), angles.cos())",
            f"{CONDITIONED}[network]",
        ),
        Mutation(
            "frequencies end at 1/10000",
            f"{CONDITIONING}:NetworkController.before",
            "rates / self.frequencies",
            "rates / (self.frequencies - 1)",
            f"{CONDITIONED}[network]",
        ),
        Mutation(
            "frequencies are as exact as the model",
            f"{CONDITIONING}:NetworkController.before",
            "dtype=torch.float32, device=number.device",
            "dtype=self.up.dtype, device=number.device",
            "golden/test_huginn.py::test_states_logits_and_loss[restated/train_ffn_gated]",
        ),
    ],
    "conditioning: film": [
        Mutation(
            "the scale is the whole factor",
            f"{CONDITIONING}:FilmController.before",
            "(1.0 + scale)",
            "scale",
            f"{CONDITIONED}[film]",
        ),
    ],
    "conditioning: adaptive_norm": [
        Mutation(
            "values and feed-forwards read what is not scaled",
            "moeut.blocks.norms:modulated",
            "changed if plain is routed else plain",
            "plain",
            f"{CONDITIONED}[adaptive_norm]",
        ),
        Mutation(
            "the scale is that of the first repeat in each",
            f"{CONDITIONING}:AdaptiveNormController.modulation",
            "self.entry(step, place)",
            "self.table[0]",
            f"{CONDITIONED}[adaptive_norm]",
        ),
    ],
}
