"""Mistakes in what training counts and draws, which has no row in the table of mechanisms."""

from mutating import Mutation

CRITERION = "runners/training/test_criterion.py"
BALANCE = "moeut/blocks/test_routing.py::test_balance_loss_is_the_published_formula"
PASSES = "runners.training.criterion:Progressive.loss"
PROGRESSIVE = f"{CRITERION}::test_progressive_mixes_a_full_and_a_random_depth"
WEIGHTS = f"{CRITERION}::test_the_gradient_of_a_step_counts_for_its_depth"
ROW_LOSSES = f"{CRITERION}::test_losses_of_a_row_are_their_formulas"
SUPERVISION = "golden/test_recursive_reasoning.py::test_each_step_of_supervision"

MUTATIONS: dict[str, list[Mutation]] = {
    "balance loss": [
        Mutation(
            "the entropy of each repeat counts, and not that of their mean",
            "moeut.recurrence.passing:Passing.balance_losses",
            "(place.layer, which)",
            "(place.layer, place.application)",
            "moeut/recurrence/test_stack.py::test_balance_loss_joins_the_repeats_of_each_layer",
        ),
        Mutation(
            "entropy is punished",
            "moeut.blocks.routing:_negative_entropy",
            "return -weight * entropy.mean(dim=1).sum()",
            "return weight * entropy.mean(dim=1).sum()",
            BALANCE,
        ),
        Mutation(
            "logits are averaged, and not probabilities",
            "moeut.blocks.routing:mean_probability",
            "return probability.mean(dim=1)",
            "return logits.mean(dim=1).softmax(dim=-1)",
            BALANCE,
        ),
    ],
    "train.repeats: poisson_lognormal": [
        Mutation(
            "no 1 is added",
            "runners.training.depth:_draw",
            "drawn = 1 + generator.poisson(rate)",
            "drawn = generator.poisson(rate)",
            "runners/training/test_depth.py::test_poisson_lognormal_has_the_mean_and_variance_of_its_formula",
        ),
        Mutation(
            "the mean is the median",
            "runners.training.depth:_draw",
            " - config.sigma**2 / 2",
            "",
            "runners/training/test_depth.py::test_poisson_lognormal_has_the_mean_and_variance_of_its_formula",
        ),
    ],
    "train.repeats: poisson": [
        Mutation(
            "no repeat may be drawn",
            "runners.training.depth:_draw",
            "size=count), 1)",
            "size=count), 0)",
            "runners/training/test_depth.py::test_poisson_is_a_poisson_number_and_at_least_1",
        ),
    ],
    "train.objective: progressive": [
        Mutation(
            "alpha is the share of the full depth",
            PASSES,
            "(1.0 - alpha, self.repeats, self.most)",
            "(alpha, self.repeats, self.most)",
            PROGRESSIVE,
            (
                (
                    PASSES,
                    "(alpha, without + with_gradient, with_gradient)",
                    "(1.0 - alpha, without + with_gradient, with_gradient)",
                ),
            ),
        ),
        Mutation(
            "the full pass has all gradients",
            PASSES,
            "(1.0 - alpha, self.repeats, self.most)",
            "(1.0 - alpha, self.repeats, self.repeats)",
            f"{CRITERION}::test_the_full_pass_of_progressive_has_gradients_in_half_of_it",
        ),
        Mutation(
            "a gradient counts for a whole part more",
            "runners.training.criterion:progressive_weight",
            "last / 2.0",
            "last",
            f"{CRITERION}::test_what_a_progressive_gradient_counts_for",
        ),
    ],
    "train.objective: last": [
        Mutation(
            "a gradient counts for all repeats",
            "runners.training.criterion:gradient_weight",
            "min(last, repeats)",
            "repeats",
            WEIGHTS,
        ),
        Mutation(
            "the mean is not halved",
            "runners.training.criterion:depth_weight",
            "(mean // 2 + 1)) **",
            "(mean + 1)) **",
            WEIGHTS,
        ),
    ],
    "train.objective: deep_supervision": [
        Mutation(
            "stablemax is 1 + a below 0, too",
            "runners.training.supervision:stablemax_cross_entropy",
            "torch.where(exact < 0.0, below, exact + 1.0)",
            "(exact + 1.0).abs()",
            f"{CRITERION}::test_stablemax_is_that_of_the_paper_and_has_finite_gradients",
        ),
        Mutation(
            "rows that go on give way to new ones",
            "runners.training.supervision:DeepSupervision.choose",
            "np.where(self.halted, rows, self.rows)",
            "np.where(self.halted, self.rows, rows)",
            f"{CRITERION}::test_rows_keep_their_place_until_they_halt",
        ),
        Mutation(
            "losses of halting count whole",
            "runners.training.supervision:row_losses",
            "0.5 * loss",
            "loss",
            ROW_LOSSES,
        ),
        Mutation(
            "targets of a batch are averaged, and not those of a row",
            "runners.training.supervision:row_losses",
            "counted.sum(dim=1).clamp_min(1)",
            "(counted.sum() / len(counted)).clamp_min(1)",
            ROW_LOSSES,
        ),
        Mutation(
            "what going on is worth counts after the last pass",
            "runners.training.supervision:value_of_going_on",
            "torch.where(steps >= rules.most, halting[:, 0], halting.amax(dim=1))",
            "halting.amax(dim=1)",
            ROW_LOSSES,
        ),
        Mutation(
            "halting is compared with going on where that has no value",
            "runners.training.supervision:halts",
            "if rules.learns_value else",
            "if True else",
            f"{SUPERVISION}[restated/trm_learned]",
        ),
        Mutation(
            "the last position says whether to halt",
            "moeut.recurrence.carry:HaltHead.forward",
            "states[:, 0]",
            "states[:, -1]",
            f"{SUPERVISION}[restated/trm_learned]",
        ),
        Mutation(
            "rows halt before those that explore should",
            "runners.training.supervision:halts",
            " & (steps >= least)",
            "",
            f"{SUPERVISION}[restated/trm_learned]",
        ),
    ],
    "train.repeats: published draws": [
        Mutation(
            "the seed is the step's alone",
            "runners.training.depth:_published",
            "(PUBLISHED_SEED + step)",
            "step",
            "runners/training/test_depth.py::test_published_draws_are_their_formula",
        ),
        Mutation(
            "the mean may lie below the repeats with gradient",
            "runners.training.depth:_published",
            "max(config.mean, least)",
            "config.mean",
            "runners/training/test_depth.py::test_published_draws_are_their_formula",
        ),
        Mutation(
            "no 1 is added",
            "runners.training.depth:_published",
            "1 + torch.poisson",
            "torch.poisson",
            "runners/training/test_depth.py::test_published_draws_are_their_formula",
        ),
    ],
    "train.objective: repeats weighed by gates": [
        Mutation(
            "all repeats count alike",
            "runners.training.objective:Objective.loss",
            "loss(read, shares=share)",
            "loss(read)",
            "runners/training/test_objective.py::test_a_loss_that_weighs_repeats",
        ),
    ],
    "targets of a prefix": [
        Mutation(
            "the last token of the prompt predicts nothing",
            "runners.training.objective:PrefixObjective.columns",
            "[IGNORE] * (len(x) - 1) + y",
            "[IGNORE] * len(x) + y[1:]",
            "runners/training/test_objective.py::test_prefix",
        ),
    ],
}
