"""Mistakes in what decides who goes on: halting, and rules of exits."""

from mutating import Mutation

STACK = "moeut.recurrence.stack:DepthStack"
ACT = "moeut.recurrence.halting:ActRun"
HALTS = "moeut/recurrence/test_halting.py::test_halting_is_the_formula_token_by_token"
SIGNALS = (
    "moeut/recurrence/test_halting.py"
    "::test_the_unit_reads_the_state_with_its_signals_and_without_the_input"
)
ACT_VARIANT = "moeut/recurrence/test_act_variants.py::test_a_variant_is_its_recursion"
EXITS = "moeut/recurrence/test_exit_gate.py"
STICK = "moeut.recurrence.stick_breaking:StickBreakingRun"
STICKS = "moeut/recurrence/test_stick_breaking.py::test_halting_is_the_recursion[0.8-2-cycle]"
MIXTURE = "moeut.recurrence.mixture"
EXPERT = "moeut/recurrence/test_mixture.py::test_expert_choice_is_its_formula"
TOKEN = "moeut/recurrence/test_mixture.py::test_token_choice_is_its_formula"
RULES = "moeut/recurrence/test_exit_rules.py"
MOR = "golden/test_mor.py::test_logits_losses_and_gradients"

MUTATIONS: dict[str, list[Mutation]] = {
    "halting: act": [
        Mutation(
            "p is read after the layer",
            f"{ACT}.before",
            "self._decide(step.x, running, place)",
            "self.running = running",
            HALTS,
            (
                (
                    f"{ACT}.after",
                    "self._add(x)",
                    "self._decide(x, self.running, place); self._add(x)",
                ),
            ),
        ),
        Mutation(
            "the state before the repeat is weighed",
            f"{ACT}.after",
            "self._add(x)",
            "self._add(step.x)",
            HALTS,
        ),
        Mutation(
            "the last state weighs p, and not what is left",
            f"{ACT}._decide",
            "halts * self.remainder\n    self.repeats",
            "halts * p\n    self.repeats",
            HALTS,
        ),
        Mutation(
            "nobody has to halt at the last repeat",
            f"{ACT}._decide",
            "if is_final and ",
            "if False and ",
            ACT_VARIANT,
        ),
        Mutation(
            "brackets are left out, as in Tensor2Tensor",
            f"{ACT}._add",
            "result = result * (1 - weight)",
            "result = result * 1 - weight",
            ACT_VARIANT,
        ),
        Mutation(
            "p is read before what is added to the state",
            f"{STACK}.__init__",
            "for k, v in built.items() if v is not None",
            "for k in ('halting', *built) if (v := built[k]) is not None",
            SIGNALS,
        ),
        Mutation(
            "p is read after the input has entered",
            f"{STACK}.__init__",
            "for k, v in built.items() if v is not None",
            "for k in ('coordinates', 'injection', *built) if (v := built[k]) is not None",
            SIGNALS,
        ),
        Mutation(
            "padding counts in the mean of the loss",
            f"{ACT}.finish",
            'self.options.loss_over == "all"',
            "True",
            "moeut/recurrence/test_halting.py::test_padding_has_no_say_unless_asked",
        ),
        Mutation(
            "padding runs",
            f"{ACT}.__init__",
            "(~about.real).to(self.dtype)",
            "zeros",
            "moeut/recurrence/test_halting.py::test_padding_has_no_say_unless_asked",
        ),
        Mutation(
            "who has halted is not updated where it should be",
            f"{ACT}.before",
            'if self.options.halted == "update"',
            "if False",
            "moeut/recurrence/test_halting.py::test_halted_states_stay_and_updated_ones_go_on",
        ),
        Mutation(
            "the ponder cost of a port trains",
            f"{ACT}.finish",
            'if self.options.cost == "ponder_without_gradient"',
            "if False",
            "moeut/recurrence/test_act_variants.py::test_the_published_ponder_cost_trains_nothing",
        ),
        Mutation(
            "padding has a say in the p of its row",
            "moeut.recurrence.halting:ActController.probability",
            "(p * real).sum(dim=1, keepdim=True) / count",
            "p.mean(dim=1, keepdim=True)",
            f"{ACT_VARIANT}[global]",
        ),
    ],
    "halting: exit_gate": [
        Mutation(
            "the last gate has a say",
            "moeut.recurrence.exits:log_probabilities",
            "F.pad(leaves, (0, 1))",
            "F.logsigmoid(logits)",
            f"{EXITS}::test_probabilities_are_the_definition",
        ),
        Mutation(
            "entropy is punished",
            "moeut.recurrence.exit_gate:ExitGate.penalty",
            "-self.entropy_weight",
            "self.entropy_weight",
            f"{EXITS}::test_penalties_are_the_definition",
        ),
        Mutation(
            "the last p is compared with the threshold, and not the sum",
            "moeut.recurrence.exit_gate:LeavingRun.leaves",
            "self.spent + p",
            "p",
            f"{EXITS}::test_a_token_leaves_with_its_state_at_the_exit",
        ),
        Mutation(
            "the result in training is the last state",
            "moeut.recurrence.exit_gate:ExpectedRun.finish",
            "self.result.to(x.dtype)",
            "x",
            f"{EXITS}::test_training_gives_the_expected_state_and_the_mean_penalty",
        ),
        Mutation(
            "repeats to leave after are counted from 1",
            "moeut.recurrence.exit_gate:LeavingRun.leaves",
            "place.repeat >= self.options.exit_at",
            "place.repeat + 1 >= self.options.exit_at",
            f"{EXITS}::test_a_token_leaves_with_its_state_at_the_exit",
        ),
    ],
    "halting: ponder": [
        Mutation(
            "the divergence is that from the prior",
            "moeut.recurrence.exit_gate:Ponder.penalty",
            "(log_p, prior) if",
            "(prior, log_p) if",
            f"{EXITS}::test_penalties_are_the_definition",
        ),
        Mutation(
            "the prior is cut and not normalised again",
            "moeut.recurrence.exits:geometric",
            "if normalised",
            "if not normalised",
            f"{EXITS}::test_penalties_are_the_definition",
        ),
        Mutation(
            "the last repeat keeps its own part of who is left",
            "moeut.recurrence.exit_gate:ExpectedRun._weigh",
            "if place.repeat != place.num_repeats - 1",
            "if True",
            f"{EXITS}::test_training_gives_the_expected_state_and_the_mean_penalty",
        ),
    ],
    "halting: stick_breaking": [
        Mutation(
            "others read the newest state",
            f"{STICK}.before",
            "source = self.output",
            "source = self.state",
            STICKS,
        ),
        Mutation(
            "the newest state weighs 1 in what is read",
            f"{STICK}.after",
            "self.left.unsqueeze(-1) * x",
            "x",
            STICKS,
        ),
        Mutation(
            "depth is counted from 1",
            f"{STICK}._break_off",
            "self.decisions * part",
            "(self.decisions + 1) * part",
            STICKS,
        ),
        Mutation(
            "the first logit is for halting",
            "moeut.recurrence.stick_breaking:Gate.forward",
            "goes_on, halts = ",
            "halts, goes_on = ",
            STICKS,
        ),
        Mutation(
            "what others read of a halted token goes on moving",
            f"{STICK}.after",
            "torch.where(self.active.unsqueeze(-1), mixed, self.output)",
            "mixed",
            STICKS,
        ),
    ],
    "halting: expert_choice": [
        Mutation(
            "what the group makes is weighed without its own input",
            f"{MIXTURE}:MixtureOptions.gated",
            "x = x * gate",
            "x = (x - begun) * gate",
            EXPERT,
        ),
        Mutation(
            "a repeat takes tokens that the one before left out",
            f"{MIXTURE}:ExpertChoiceRun._choose",
            "candidates = self.active",
            "candidates = torch.ones_like(self.active)",
            EXPERT,
        ),
        Mutation(
            "a repeat takes its part of those that the one before took",
            f"{MIXTURE}:ExpertChoiceRun._take_largest",
            "int(part * length)",
            "int(part * int(candidates.sum(1)[0]))",
            EXPERT,
        ),
        Mutation(
            "tokens that take part see the others",
            f"{MIXTURE}:ExpertChoiceRun.before",
            "is_alone=True",
            "is_alone=False",
            EXPERT,
        ),
        Mutation(
            "chosen tokens are given positions anew",
            "moeut.blocks.packing:Packing.table",
            "(0, self.tokens % self.shape[1])",
            "(0, torch.arange(len(self.tokens)))",
            EXPERT,
        ),
        Mutation(
            "the loss that samples is over all tokens",
            f"{MIXTURE}:ExpertChoiceRun._learn",
            "about.mean(missed, among=candidates)",
            "about.mean(missed)",
            f"{MOR}[restated/expert_tanh_auxloss]",
        ),
        Mutation(
            "another router teaches the state",
            f"{MIXTURE}:ExpertChoiceRun._choose",
            "x.detach()",
            "x",
            f"{MOR}[restated/expert_own_norms]",
        ),
        Mutation(
            "gates are not multiplied by alpha",
            f"{MIXTURE}:ExpertChoiceRun._gate",
            " * self.options.alpha",
            "",
            EXPERT,
        ),
        Mutation(
            "logits are not squared",
            f"{MIXTURE}:ExpertChoiceRun._learn",
            "logits.square()",
            "logits",
            f"{MOR}[restated/expert_additive]",
        ),
    ],
    "halting: token_choice": [
        Mutation(
            "what the group makes is weighed without its own input",
            f"{MIXTURE}:MixtureOptions.gated",
            "x = x * gate",
            "x = (x - begun) * gate",
            TOKEN,
        ),
        Mutation(
            "a token is added to the state that it began its last repeat with",
            f"{MIXTURE}:TokenChoiceRun.after",
            "gated(self.begun, ",
            "gated(step.x, ",
            TOKEN,
        ),
        Mutation(
            "a token leaves one repeat early",
            f"{MIXTURE}:TokenChoiceRun.before",
            "self.depth >= place.repeat",
            "self.depth > place.repeat",
            TOKEN,
        ),
        Mutation(
            "the gate has the bias that balances",
            f"{MIXTURE}:TokenChoiceRun._choose",
            "self.gate = p.gather",
            "self.gate = biased.gather",
            f"{MOR}[restated/token_loss_free]",
        ),
        Mutation(
            "the bias follows the wrong way",
            f"{MIXTURE}:TokenChoiceController.after_update",
            "(shares.mean() - shares)",
            "(shares - shares.mean())",
            "moeut/recurrence/test_mixture.py::test_the_bias_follows_the_shares",
        ),
        Mutation(
            "logits are not squared",
            f"{MIXTURE}:TokenChoiceRun._penalty",
            "logits.logsumexp(dim=-1).square()",
            "logits.logsumexp(dim=-1)",
            f"{MOR}[restated/token_additive_keys]",
        ),
    ],
    "exit: latent_diff": [
        Mutation(
            "the change is relative to the state before",
            "moeut.recurrence.exit_rules:measure",
            "/ now.state.norm(dim=-1)",
            "/ before.state.norm(dim=-1)",
            f"{RULES}::test_measures_are_their_formulas",
        ),
    ],
    "exit: kl": [
        Mutation(
            "there is no change in the first repeat",
            "moeut.recurrence.exit_rules:measure",
            "torch.zeros_like(now.logits) if before.logits is None",
            "now.logits if before.logits is None",
            f"{RULES}::test_measures_are_their_formulas",
        ),
        Mutation(
            "the divergence is that of the current repeat from the one before",
            "moeut.recurrence.exit_rules:measure",
            "(old.exp() * (old - new))",
            "(new.exp() * (new - old))",
            f"{RULES}::test_measures_are_their_formulas",
        ),
    ],
}
