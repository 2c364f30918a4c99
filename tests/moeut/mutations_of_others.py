"""Mistakes in blocks, caches and exits that have no row in the table of mechanisms."""

from mutating import Mutation

GEOMETRIC = "moeut/blocks/attention/test_geometric.py::test_geometric_attention_is_its_formula"
SWITCH_HEAD = "moeut/blocks/attention/test_switch_head.py::test_switch_head_is_its_formula"
COMPETING = "moeut.blocks.competing:CompetingRouter"
MIXED_ATTENTION = "moeut/blocks/test_competing.py::test_attention_is_its_formula[none]"
GROUPED = (
    "moeut/blocks/attention/test_dense.py"
    "::test_grouped_keys_biases_norms_and_rotation_are_their_formula[5-False-all-none]"
)
MUTUAL = "moeut/blocks/test_competing.py::test_loss_is_the_mutual_information_of_all_applications"
NEIGHBOURS = "moeut/blocks/feed_forward/test_neighbours.py"
CONVOLUTIONS = f"{NEIGHBOURS}::test_convolutional_is_two_convolutions"
ATTEND = "moeut.blocks.attention.base:Attention.forward"
GATED = "moeut.blocks.feed_forward.gated:GatedMLP.forward"
RULE = "moeut.recurrence.exit_rules:measure"
MEASURES = "moeut/recurrence/test_exit_rules.py::test_measures_are_their_formulas"

MUTATIONS: dict[str, list[Mutation]] = {
    "attention: dense": [
        Mutation(
            "key heads are repeated as a whole",
            "moeut.blocks.attention.base:Attention._attend_rows",
            "heads.repeat_interleave(group, dim=1)",
            "heads.repeat(1, group, 1, 1)",
            GROUPED,
        ),
        Mutation(
            "biases of queries and keys are added after the rotation",
            "moeut.blocks.attention.base:Attention._query_and_key",
            "ops.linear(routed, weight, bias)",
            "ops.linear(routed, weight)",
            GROUPED,
            (
                (
                    ATTEND,
                    "self._place(self._split_heads(both, sum(heads)), context).split(heads, 1)",
                    "(self._place(self._split_heads(both, sum(heads)), context)"
                    " + torch.cat((self.query.bias, self.key.bias))"
                    ".unflatten(0, (sum(heads), 1, -1))"
                    ").split(heads, 1)",
                ),
            ),
        ),
    ],
    "attention: geometric": [
        Mutation(
            "the left key comes first at equal distance",
            "moeut.blocks.attention.geometric:_nearest_first",
            "torch.minimum(distance - 1, left), torch.minimum(distance, right)",
            "torch.minimum(distance, left), torch.minimum((distance - 1).clamp(min=0), right)",
            GEOMETRIC,
        ),
        Mutation(
            "a token sees itself",
            "moeut.blocks.attention.geometric:GeometricMultiHeadAttention.attend",
            "allowed = offset != 0",
            "allowed = offset == offset",
            GEOMETRIC,
        ),
        Mutation(
            "weights are always normalised",
            "moeut.blocks.attention.geometric:geometric_weights",
            "if normalise else",
            "if True else",
            GEOMETRIC,
        ),
        Mutation(
            "front and back are exchanged",
            "moeut.blocks.attention.geometric:GeometricMultiHeadAttention._logits",
            "torch.where(offset > 0, front, back)",
            "torch.where(offset > 0, back, front)",
            GEOMETRIC,
        ),
    ],
    "attention: switch_head": [
        Mutation(
            "values read what is normed",
            ATTEND,
            "self.values(plain, ",
            "self.values(routed, ",
            SWITCH_HEAD,
        ),
        Mutation(
            "outputs are chosen by the router of values",
            "moeut.blocks.attention.switch_head:SwitchHeadAttention.decide",
            "of_repeat(self.output_router, context.repeat)",
            "of_repeat(self.value_router, context.repeat)",
            SWITCH_HEAD,
        ),
        Mutation(
            "routers count expert by expert, and not head by head",
            "moeut.blocks.attention.switch_head:SwitchHeadAttention._decide",
            "logits.unflatten(-1, (-1, self.num_experts))",
            "logits.unflatten(-1, (self.num_experts, -1)).transpose(-1, -2)",
            SWITCH_HEAD,
        ),
    ],
    "attention: token_mixing": [
        Mutation(
            "the norm is over channels",
            "moeut.blocks.norms:PositionNorm.forward",
            "squares.mean(dim=1, keepdim=True)",
            "squares.mean(dim=2, keepdim=True)",
            "golden/test_recursive_reasoning.py::test_each_step_of_supervision[restated/trm_single_mlp]",
        ),
    ],
    "attention: mixture": [
        Mutation(
            "chosen gates are not brought to a sum of 1",
            f"{COMPETING}.forward",
            "best / (best.sum(dim=-1, keepdim=True) + 1e-6)",
            "best",
            MIXED_ATTENTION,
        ),
        Mutation(
            "a router has no hidden function",
            f"{COMPETING}.forward",
            ".tanh()",
            "",
            MIXED_ATTENTION,
        ),
    ],
    "feed_forward: softmax_moe": [
        Mutation(
            "the gate does not weigh the bias",
            "moeut.blocks.feed_forward.softmax_moe:SoftmaxMoEMLP.forward",
            "scatter_add(1, chosen, gates)",
            "scatter_add(1, chosen, torch.ones_like(gates))",
            "moeut/blocks/test_competing.py::test_feed_forward_is_its_formula",
        ),
        Mutation(
            "the two entropies are subtracted where published code adds them",
            "moeut.blocks.routing:mutual_information_loss",
            "1.0 if mutual[0].is_sum else -1.0",
            "-1.0",
            MUTUAL,
        ),
        Mutation(
            "tokens weigh 1, whatever is left of them",
            f"{COMPETING}._record",
            "if context.keep is not None",
            "if False",
            MUTUAL,
        ),
    ],
    "feed_forward: sigma_moe": [
        Mutation(
            "chosen gates are brought to a sum of 1",
            "moeut.blocks.routing:choose_experts",
            "gates = best.sigmoid()",
            "gates = best.sigmoid() / best.sigmoid().sum(dim=-1, keepdim=True)",
            "moeut/blocks/test_routing.py::test_sigmoid_gates_are_not_renormalised",
        ),
        Mutation(
            "the softmax is over the chosen experts",
            "moeut.blocks.routing:choose_experts",
            "logits.softmax(dim=-1).gather(-1, selection)",
            "best.softmax(dim=-1)",
            "moeut/blocks/test_routing.py::test_softmax_gates_are_over_all_experts",
        ),
        Mutation(
            "experts read what the router reads",
            "moeut.blocks.feed_forward.sigma_moe:SigmaMoEMLP.forward",
            "expert_mlp(plain.flatten",
            "expert_mlp(routed.flatten",
            "moeut/blocks/feed_forward/test_sigma_moe.py::test_sigma_moe_is_its_formula",
        ),
    ],
    "feed_forward: convolutional": [
        Mutation(
            "nothing follows the second convolution",
            "moeut.blocks.feed_forward.convolutional:ConvolutionalMLP.forward",
            "if self.activate_output",
            "if False",
            CONVOLUTIONS,
        ),
        Mutation(
            "it reads the left where it should read both sides",
            "moeut.blocks.feed_forward.convolutional:ConvolutionalMLP.__init__",
            "-(options.width // 2)",
            "-(options.width - 1)",
            CONVOLUTIONS,
        ),
    ],
    "feed_forward: gated": [
        Mutation(
            "the other half is the gate",
            GATED,
            'self.activation(self.project("gate", plain, repeat))',
            'self.project("gate", plain, repeat)',
            "moeut/blocks/feed_forward/test_gated.py::test_gated_reads_the_plain_view",
            (
                (
                    GATED,
                    'gate * self.project("up", plain, repeat)',
                    'gate * self.activation(self.project("up", plain, repeat))',
                ),
            ),
        ),
        Mutation(
            "a short convolution comes before the gate",
            GATED,
            "hidden = self.activation(self.convolution(hidden, context))",
            "hidden = self.project('up', plain, repeat)\n"
            "        hidden = gate * self.activation(self.convolution(hidden, context))",
            f"{NEIGHBOURS}::test_short_convolution_comes_after_the_gate",
        ),
    ],
    "cache: shared": [
        Mutation(
            "runs and turns are exchanged",
            "moeut.recurrence.cache:SharedSlots.slots",
            "if self.in_runs",
            "if not self.in_runs",
            "moeut/recurrence/test_cache.py::test_applications_may_share_places_of_a_cache",
        ),
        Mutation(
            "places of the prelude are shared, too",
            "moeut.recurrence.cache:SharedSlots.slots",
            "first + (index",
            "(index",
            "moeut/recurrence/test_cache.py::test_applications_may_share_places_of_a_cache",
        ),
    ],
    "exit: entropy_diff": [
        Mutation(
            "the entropy before the first repeat is 0",
            RULE,
            "100.0 if",
            "0.0 if",
            MEASURES,
        ),
    ],
    "exit: cosine": [
        Mutation(
            "the angle is to the state itself",
            RULE,
            "F.cosine_similarity(now.state, before.state, dim=-1)",
            "F.cosine_similarity(now.state, now.state, dim=-1)",
            MEASURES,
        ),
    ],
    "exit: min_p_kl": [
        Mutation(
            "what is levelled is not brought to a sum of 1",
            "moeut.recurrence.exit_rules:_levelled",
            "(levelled / levelled.sum(dim=-1, keepdim=True)).log()",
            "levelled.log()",
            MEASURES,
        ),
    ],
    "exit: argmax_stability": [
        Mutation(
            "a change is not counted as one",
            RULE,
            "(count + same.to(now.logits.dtype)) * same",
            "count + same.to(now.logits.dtype)",
            MEASURES,
        ),
    ],
    "confidence": [
        Mutation(
            "all predictions count, those before the answer too",
            "moeut.recurrence.confidence:uncertainty",
            "if counted is None",
            "if True",
            "golden/test_looped_length.py::test_logits_after_every_loop[restated/dict_embedding]",
        ),
    ],
    "logit cap": [
        Mutation(
            "the cap alone multiplies",
            "moeut.blocks.embeddings:Head.scaled",
            "(logits / self.cap).tanh()",
            "logits.tanh()",
            "golden/test_parcae.py::test_states_logits_loss_and_gradients[restated/parcae_token-0]",
        ),
    ],
    "head": [
        Mutation(
            "a tied head is multiplied as embeddings are",
            "moeut.blocks.embeddings:Head.forward",
            "embedding if self.weight is None",
            "embedding * embedding.shape[1] ** 0.5 if self.weight is None",
            "moeut/test_models.py::test_tied_embeddings_are_the_output_weight_unscaled",
        ),
        Mutation(
            "the adapter of the read-out is not transposed",
            "moeut.blocks.embeddings:Head.forward",
            "projection.T",
            "projection",
            "golden/test_arithmetic.py::test_passes_progressive_loss_and_gradients[restated/linear_sandwich]",
        ),
    ],
}
