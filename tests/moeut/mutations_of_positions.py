"""Mistakes in positions."""

from mutating import Mutation

POSITIONS = "moeut/blocks/test_positions.py"
ADDED = "moeut/recurrence/test_stack.py::test_positions_are_added_to_the_embedded_input"
RELATIVE = "moeut.blocks.positions.relative"
RELATIVE_FORMULA = "moeut/blocks/attention/test_base.py::test_relative_attention_is_its_formula"
ABACUS = "moeut.blocks.positions.abacus"
DIGITS = f"{POSITIONS}::test_digits_of_each_number_are_counted"
OFFSETS = f"{POSITIONS}::test_abacus_adds_one_offset_to_all_digits_in_training"
CLIPPED = "moeut.blocks.positions.clipped"
CLIPPED_FORMULA = "moeut/blocks/test_competing.py::test_attention_is_its_formula[clipped]"
FIRE = "moeut.blocks.positions.fire:FirePosition.bias"
FIRE_FORMULA = f"{POSITIONS}::test_fire_is_its_formula"

MUTATIONS: dict[str, list[Mutation]] = {
    "position: rotary": [
        Mutation(
            "frequencies fall with the channels of the head, not with those that turn",
            "moeut.blocks.positions.rotary:rotary_frequencies",
            "even / width",
            "even / head_size",
            f"{POSITIONS}::test_rotate_turns_channel_pairs_as_complex_numbers",
        ),
        Mutation(
            "neighbouring channels turn together where halves should",
            "moeut.blocks.positions.rotary:rotate",
            "if pairs:\n        turned",
            "if True:\n        turned",
            f"{POSITIONS}::test_rotate_turns_channel_pairs_as_complex_numbers",
            (
                (
                    "moeut.blocks.positions.rotary:rotate",
                    "if pairs:\n        both",
                    "if True:\n        both",
                ),
            ),
        ),
        Mutation(
            "values turn, too",
            "moeut.blocks.attention.base:Attention.forward",
            "value = self.values(plain, value_decision, context.routing)",
            "value = self._place(self.values(plain, value_decision, context.routing), context)",
            "moeut/blocks/attention/test_base.py"
            "::test_rotation_applies_to_queries_and_keys_and_not_to_values",
        ),
        Mutation(
            "an odd number of channels turns",
            "moeut.blocks.positions.rotary:Rotary.width",
            " // 2 * 2",
            "",
            f"{POSITIONS}::test_rotary_width_is_rounded_down_to_even",
        ),
    ],
    "position: relative": [
        Mutation(
            "distances are query minus key",
            f"{RELATIVE}:regular_distances",
            "sinusoids(values, ",
            "sinusoids(-values, ",
            RELATIVE_FORMULA,
        ),
        Mutation(
            "positions are met with the bias of contents",
            f"{RELATIVE}:RelativePosition.forward",
            "self.position_bias",
            "self.content_bias",
            RELATIVE_FORMULA,
        ),
        Mutation(
            "contents alone are scaled",
            f"{RELATIVE}:RelativePosition.forward",
            "(content + position) * (head_size**-0.5 if self.scale is None else self.scale)",
            "content * (head_size**-0.5 if self.scale is None else self.scale) + position",
            RELATIVE_FORMULA,
        ),
        Mutation(
            "an open gate is for absolute positions",
            f"{RELATIVE}:RelativePosition.forward",
            "position * gate + absolute * (1 - gate)",
            "position * (1 - gate) + absolute * gate",
            RELATIVE_FORMULA,
        ),
    ],
    "position: sinusoidal": [
        Mutation(
            "all sines come before all cosines",
            "moeut.blocks.positions.added:sinusoids",
            "torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)",
            "torch.cat((angles.sin(), angles.cos()), dim=-1)",
            f"{POSITIONS}::test_sinusoids_are_sin_and_cos_of_falling_frequencies",
        ),
        Mutation(
            "a float64 model has angles of float64",
            "moeut.blocks.positions.added:sinusoids",
            "positions.to(table)",
            "positions.to(dtype)",
            f"{POSITIONS}::test_sinusoids_are_computed_in_float32_whatever_the_dtype",
        ),
    ],
    "position: learned": [
        Mutation(
            "positions are counted from 1",
            "moeut.blocks.positions.added:LearnedPositions.forward",
            "positions.clamp(",
            "(positions + 1).clamp(",
            ADDED,
        ),
    ],
    "position: abacus": [
        Mutation(
            "what is no digit is moved, too",
            f"{ABACUS}:AbacusPositions.enter",
            "torch.where(numbers > 0, numbers + self.draw_offset(x.device), 0)",
            "numbers + self.draw_offset(x.device)",
            OFFSETS,
        ),
        Mutation(
            "each row has an offset of its own",
            f"{ABACUS}:AbacusPositions.draw_offset",
            "+ 1, ()",
            "+ 1, (2, 1)",
            OFFSETS,
        ),
        Mutation(
            "the largest offset is never drawn",
            f"{ABACUS}:AbacusPositions.draw_offset",
            "self.options.max_offset + 1",
            "self.options.max_offset",
            OFFSETS,
        ),
        Mutation(
            "digits of numbers are moved in evaluation",
            f"{ABACUS}:AbacusPositions.enter",
            "if self.training and",
            "if",
            OFFSETS,
        ),
    ],
    "position: clipped": [
        Mutation(
            "the bound itself is a distance",
            f"{CLIPPED}:Clipped.tables",
            "most = self.max_distance - 1",
            "most = self.max_distance",
            CLIPPED_FORMULA,
        ),
        Mutation(
            "distances are query minus key",
            f"{CLIPPED}:Clipped.tables",
            "keys - positions.unsqueeze(-1)",
            "positions.unsqueeze(-1) - keys",
            CLIPPED_FORMULA,
        ),
        Mutation(
            "the whole root of the head size scales queries",
            f"{CLIPPED}:ClippedPosition.forward",
            "query = query * head_size**-0.25",
            "query = query * head_size**-0.5",
            CLIPPED_FORMULA,
            ((f"{CLIPPED}:ClippedPosition.forward", "key * head_size**-0.25", "key"),),
        ),
    ],
    "position: fire": [
        Mutation(
            "distances are relative to the threshold alone",
            FIRE,
            "torch.maximum(queries, (self.factor * self.options.threshold).abs())",
            "(self.factor * self.options.threshold).abs()",
            FIRE_FORMULA,
        ),
        Mutation(
            "the threshold is not learned",
            FIRE,
            "(self.factor * self.options.threshold)",
            "(0 * self.factor + self.options.threshold)",
            FIRE_FORMULA,
        ),
    ],
    "input_position: sinusoidal": [
        Mutation(
            "sinusoids of scale inverse_sqrt are multiplied by the root",
            "moeut.blocks.positions.added:Sinusoidal.build_absolute",
            "d_model**-0.5",
            "d_model**0.5",
            ADDED,
        ),
    ],
    "input_position: learned": [
        Mutation(
            "embeddings alone are multiplied to keep the variance",
            "moeut.blocks.positions.added:LearnedPositions.enter",
            "ROOT_HALF * (x + added)",
            "ROOT_HALF * x + added",
            f"{POSITIONS}::test_learned_positions_keep_the_variance_of_scaled_embeddings",
        ),
        Mutation(
            "vectors are not multiplied as embeddings are",
            "moeut.blocks.positions.added:LearnedPositions.enter",
            " * entry.embedding_factor",
            "",
            f"{POSITIONS}::test_learned_positions_keep_the_variance_of_scaled_embeddings",
        ),
    ],
    "input_position: abacus": [
        Mutation(
            "digits are counted from 0",
            f"{ABACUS}:digit_numbers",
            "torch.where(is_digit, columns - before",
            "torch.where(is_digit, columns - 1 - before",
            DIGITS,
        ),
        Mutation(
            "a number goes on into the next document",
            f"{ABACUS}:digit_numbers",
            "& is_digit\n",
            "& False\n",
            DIGITS,
        ),
    ],
}
