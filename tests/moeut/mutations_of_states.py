"""Mistakes in depth and state: what is applied when, and what it reads."""

from mutating import Mutation

STACK = "moeut.recurrence.stack:DepthStack"
INJECTED = "moeut/recurrence/test_injection.py::test_repeats_read_state_and_input"
LEFT = "moeut/recurrence/test_injection.py::test_the_last_state_passes_its_output_before_the_coda"
RECURSION = "moeut/recurrence/test_recursion.py::test_states_and_gradients_are_those_of_the_papers"
SCHEDULE = (
    "moeut/recurrence/test_schedule.py::test_schedule_is_prelude_then_repeated_group_then_coda"
)
REPEAT_NORM = "moeut/recurrence/test_stack.py::test_a_norm_where_each_repeat_ends_is_passed_on"
LOOPED = "golden/test_looped_length.py::test_logits_after_every_loop[restated/dict_embedding]"
ROW = "moeut.recurrence.row_depth:RowDepthRun"
ROWS = "moeut/recurrence/test_row_depth.py"

MUTATIONS: dict[str, list[Mutation]] = {
    "depth.order: sequence": [
        Mutation(
            "layers take turns, as in a cycle",
            "moeut.recurrence.schedule:Depth.places",
            "for index in group for repeat in range(repeats)]",
            "for repeat in range(repeats) for index in group]",
            SCHEDULE,
        ),
    ],
    "depth.prelude: 1": [
        Mutation(
            "what repeats read again is the input before the prelude",
            f"{STACK}.forward",
            "about = Pass(x, ",
            "about = Pass(passing.hidden[0], ",
            f"{INJECTED}[zero-add]",
        ),
        Mutation(
            "the group begins at the first layer",
            "moeut.recurrence.schedule:Depth.places",
            "(self.prelude + i, ",
            "(i, ",
            SCHEDULE,
        ),
    ],
    "depth.coda: 1": [
        Mutation(
            "a norm stands between repeats and coda where none was asked for",
            f"{STACK}._leave",
            'if self.options.state.output == "final_norm":',
            "if self.options.depth.coda:",
            f"{INJECTED}[zero-add]",
        ),
        Mutation(
            "the coda is the layers after a group without prelude",
            "moeut.recurrence.schedule:Depth.places",
            "range(self.prelude + self.group, self.num_distinct)",
            "range(self.group, self.num_distinct - self.prelude)",
            SCHEDULE,
        ),
    ],
    "recursion: two_level": [
        Mutation(
            "the low state does not read the high one",
            "moeut.recurrence.recursion:TwoLevel.cycle",
            "reads=(1,)",
            "reads=()",
            f"{RECURSION}[trm]",
        ),
        Mutation(
            "the high state reads the input, too",
            "moeut.recurrence.recursion:TwoLevel.cycle",
            "injects=False",
            "injects=True",
            f"{RECURSION}[trm]",
        ),
        Mutation(
            "the low state is read out",
            "moeut.recurrence.recursive_stack:RecursiveStack._repeat",
            "return states[-1]",
            "return states[0]",
            f"{RECURSION}[trm]",
        ),
        Mutation(
            "of two networks, the whole last cycle has gradients",
            "moeut.recurrence.recursion:TwoLevel.num_with_gradient",
            "else 2",
            "else self.low_cycles + 1",
            f"{RECURSION}[hrm]",
        ),
        Mutation(
            "rows that begin anew go on, and others begin",
            "moeut.recurrence.carry:Carried.state",
            "first, given.to(first.dtype)",
            "given.to(first.dtype), first",
            f"{RECURSION}[trm]",
        ),
    ],
    "recursion: single": [
        Mutation(
            "the update that closes a cycle reads the input",
            "moeut.recurrence.recursion:SingleLevel.cycle",
            "injects=False",
            "injects=True",
            f"{RECURSION}[singlez]",
        ),
        Mutation(
            "the last update alone has gradients",
            "moeut.recurrence.recursion:SingleLevel.num_with_gradient",
            "self.low_cycles + self.closes",
            "1",
            f"{RECURSION}[urm]",
        ),
        Mutation(
            "the input is not read again",
            "moeut.recurrence.recursion:SingleLevel.cycle",
            "injects=True",
            "injects=False",
            f"{RECURSION}[urm]",
        ),
    ],
    "state.start: input": [
        Mutation(
            "what is the input already is not given it in the first repeat",
            "moeut.recurrence.state:InjectionRun.before",
            "if rule is None",
            "if rule is None or place.repeat == 0",
            f"{INJECTED}[input-add]",
        ),
    ],
    "state.start: zero": [
        Mutation(
            "the first state is 1, as where the input is a factor in published code",
            "moeut.recurrence.start:ZeroStart.state",
            "new_zeros(",
            "new_ones(",
            f"{INJECTED}[zero-add]",
        ),
    ],
    "state.start: noise": [
        Mutation(
            "in evaluation each row has noise of its own",
            "moeut.recurrence.start:noise_by_position",
            "torch.zeros(batch, 1, dtype=torch.int64, device=device)",
            "torch.arange(batch, device=device).unsqueeze(1)",
            "moeut/recurrence/test_injection.py::test_a_noise_start_is_noise_of_the_position",
        ),
        Mutation(
            "noise like embeddings is not multiplied as they are",
            "moeut.recurrence.start:NoiseStart._factor",
            " * embedding_factor",
            "",
            "moeut/recurrence/test_injection.py::test_the_shapes_of_noise",
        ),
        Mutation(
            "noise like embeddings is not cut",
            "moeut.recurrence.start:NoiseStart.state",
            'cut=self.shape == "like_init"',
            "cut=False",
            "moeut/recurrence/test_injection.py::test_the_shapes_of_noise",
        ),
        Mutation(
            "unit noise is not brought to mean 0",
            "moeut.recurrence.start:NoiseStart.state",
            "(noise - mean) / deviation",
            "noise / deviation",
            "moeut/recurrence/test_injection.py::test_the_shapes_of_noise",
        ),
    ],
    "state.injection: add": [
        Mutation(
            "the input enters before the last layer of a repeat",
            "moeut.recurrence.state:InjectionController.rule_at",
            "if place.is_first",
            "if place.is_last",
            f"{INJECTED}[zero-add]",
        ),
    ],
    "state.injection: gate": [
        Mutation(
            "the state is kept beside the product",
            "moeut.recurrence.injection:GateRule.forward",
            "state * embedded",
            "state + state * embedded",
            f"{INJECTED}[input-gate]",
        ),
    ],
    "state.injection: linear": [
        Mutation(
            "the input comes first",
            "moeut.recurrence.injection:LinearRule.forward",
            "(state, embedded), dim",
            "(embedded, state), dim",
            f"{INJECTED}[zero-linear]",
        ),
    ],
    "state.injection: feed_forward": [
        Mutation(
            "the input comes first",
            "moeut.recurrence.injection:FeedForwardRule.forward",
            "(state, embedded), dim",
            "(embedded, state), dim",
            f"{INJECTED}[zero-feed_forward]",
        ),
        Mutation(
            "the second half is the gate",
            "moeut.recurrence.injection:FeedForwardRule.forward",
            "gate, value = ",
            "value, gate = ",
            f"{INJECTED}[zero-feed_forward]",
        ),
    ],
    "state.injection: diagonal": [
        Mutation(
            "what enters is not multiplied by the step",
            "moeut.recurrence.injection:DiagonalRule.forward",
            "+ step * linear(",
            "+ linear(",
            f"{INJECTED}[zero-diagonal]",
        ),
        Mutation(
            "the step does not shorten the memory",
            "moeut.recurrence.injection:DiagonalRule.forward",
            "(-step * self.rate.exp())",
            "(-self.rate.exp())",
            f"{INJECTED}[input-diagonal]",
        ),
        Mutation(
            "the input is not normed behind the prelude",
            "moeut.recurrence.stack:DepthStack.forward",
            "x = self.state_norm(x)",
            "x = x + 0",
            "moeut/recurrence/test_injection.py::test_what_enters_may_be_normed_behind_the_prelude",
        ),
    ],
    "state.output: final_norm": [
        Mutation(
            "the norm stands before the head alone",
            f"{STACK}._leave",
            "return self.final_norm(x)",
            "return x",
            LEFT,
        ),
        Mutation(
            "the norm stands before the coda alone",
            f"{STACK}._read_out",
            "if self.final_norm is None",
            'if self.options.state.output == "final_norm"',
            LEFT,
        ),
    ],
    "state.output: linear": [
        Mutation(
            "the projection stands after the coda",
            f"{STACK}._read_out",
            "x = self._leave(x, passing)\n    for place in coda:\n"
            "        x = passing.apply_once(place, x, record=record)\n",
            "for place in coda:\n        x = passing.apply_once(place, x, record=record)\n"
            "    x = self._leave(x, passing)\n",
            LEFT,
        ),
        Mutation(
            "the projection is transposed",
            "moeut.recurrence.state:OutputProjection.forward",
            "self.weight, ",
            "self.weight.T, ",
            LEFT,
        ),
    ],
    "state.output: feed_forward": [
        Mutation(
            "the feed-forward is added to the state",
            "moeut.recurrence.state:OutputFeedForward.forward",
            "return self.feed_forward",
            "return x + self.feed_forward",
            LEFT,
        ),
    ],
    "repeat_norm: true": [
        Mutation(
            "a norm follows each layer",
            "moeut.recurrence.stack:DepthStack._repeat",
            "if place.is_last and self.repeat_norm",
            "if self.repeat_norm",
            REPEAT_NORM,
        ),
        Mutation(
            "the normed state is read and not passed on",
            "moeut.recurrence.stack:DepthStack._repeat",
            "if place.is_last and self.repeat_norm",
            "if place.application + 2 == self.options.depth.num_applications and self.repeat_norm",
            REPEAT_NORM,
        ),
    ],
    "looped: start zero, add, repeat_norm": [
        Mutation(
            "the input enters the first loop alone",
            "moeut.recurrence.state:InjectionRun.before",
            "if rule is None",
            "if rule is None or place.repeat",
            LOOPED,
        ),
        Mutation(
            "the norm follows the last loop alone",
            "moeut.recurrence.stack:DepthStack._repeat",
            "if place.is_last and self.repeat_norm",
            "if place.is_last and place.repeat + 1 == place.num_repeats and self.repeat_norm",
            LOOPED,
        ),
    ],
    "train.repeats.per: sequence": [
        Mutation(
            "a row goes through one repeat more",
            f"{ROW}.before",
            "self.last > place.repeat - self.without",
            "self.last >= place.repeat - self.without",
            f"{ROWS}::test_a_row_is_the_row_alone_at_its_depth[decoder_lm-dense]",
        ),
        Mutation(
            "repeats with gradient are counted from the first of all",
            f"{ROW}.before",
            "self.last > place.repeat - self.without",
            "self.last > place.repeat",
            f"{ROWS}::test_which_repeat_a_row_is_in",
        ),
    ],
    "train.repeats.per: token": [
        Mutation(
            "a token that waits goes on",
            f"{ROW}.after",
            "torch.where(self.moves.unsqueeze(-1), x, self.begun)",
            "x",
            f"{ROWS}::test_a_token_that_waits_is_read_in_the_state_it_waits_with[dense]",
        ),
    ],
    "train.backprop_repeats: 1": [
        Mutation(
            "the first repeats have gradients as many as the last should",
            "moeut.recurrence.stack:DepthStack.repeats_without_gradient",
            "max(repeats - backprop_repeats, 0)",
            "min(repeats, backprop_repeats)",
            "moeut/recurrence/test_depth.py::test_gradients_flow_through_the_last_repeats_alone",
        ),
        Mutation(
            "the input that enters has no gradient",
            "moeut.recurrence.state:InjectionRun.before",
            "self.about.embedded",
            "self.about.embedded.detach()",
            "moeut/recurrence/test_depth.py::test_gradients_flow_through_the_last_repeats_alone",
        ),
    ],
    "train.objective: every repeat": [
        Mutation(
            "repeats are read out without the coda",
            "moeut.recurrence.stack:DepthStack.forward",
            "self._read_out(state, places[end:], passing, record=False)",
            "self._read_out(state, [], passing, record=False)",
            "moeut/recurrence/test_reading.py::test_a_repeat_is_read_out_as_if_it_were_the_last",
        ),
        Mutation(
            "the first repeats count, and not the last",
            "runners.training.criterion:EveryRepeat.loss",
            "range(-count, 0)",
            "range(count)",
            "runners/training/test_criterion.py::test_every_repeat_counts_for_its_weight[linear-3-encoder_classifier]",
        ),
    ],
}
