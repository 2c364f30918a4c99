"""Mistakes in layers: norms, updates, and what each repeat has of its own."""

from mutating import Mutation

PLACEMENT = "moeut/blocks/test_layer.py::test_norm_placement"
NORM = "moeut/blocks/test_norms.py::test_kind_is_its_formula"
COPIES = "moeut/blocks/test_updates.py::test_a_layer_with_a_copy_gate_is_its_formula"
DEEPNORM = "moeut/blocks/test_updates.py::test_deepnorm_scales_what_a_sublayer_reads"
LAYER = "moeut.blocks.layer:Layer"
DISTINCT = "moeut/recurrence/test_own.py::test_they_are_distinct_layers_that_share_the_rest"
ENCODED = "moeut/recurrence/test_own.py::test_an_encoding_scales_the_state_after_a_recursion"
MOR = "golden/test_mor.py::test_logits_losses_and_gradients"

MUTATIONS: dict[str, list[Mutation]] = {
    "update: residual": [
        Mutation(
            "the feed-forward is added to what the attention read",
            "moeut.blocks.updates:Update.last",
            "self.between(x, ",
            "self.between(start, ",
            PLACEMENT,
        ),
    ],
    "update: copy_gate": [
        Mutation(
            "an open gate copies",
            "moeut.blocks.updates:CopyGateUpdate.last",
            "start * (1 - gate) + proposal * gate",
            "start * gate + proposal * (1 - gate)",
            COPIES,
        ),
        Mutation(
            "the state after the attention is copied",
            "moeut.blocks.updates:CopyGateUpdate.last",
            "start * (1 - gate)",
            "x * (1 - gate)",
            COPIES,
        ),
        Mutation(
            "a norm follows, as after other feed-forwards",
            "moeut.blocks.updates:CopyGateUpdate.last",
            "return (start * (1 - gate) + proposal * gate)",
            "return torch.layer_norm(start * (1 - gate) + proposal * gate, start.shape[-1:])",
            COPIES,
        ),
    ],
    "update: deepnorm": [
        Mutation(
            "the output of a sublayer counts more",
            "moeut.blocks.updates:DeepNormUpdate.between",
            "between(self.alpha * x, change, norm)",
            "between(x, self.alpha * change, norm)",
            DEEPNORM,
        ),
        Mutation(
            "distinct layers are counted, and not applied ones",
            "moeut.config:ModelConfig._stack",
            "num_applications=self._num_applied(depth)",
            "num_applications=depth.num_distinct",
            DEEPNORM,
        ),
        Mutation(
            "the norm stands inside",
            "moeut.blocks.updates:DeepNormUpdate.between",
            "super().between(self.alpha * x, change, norm)",
            "super().between(self.alpha * x, change if norm is None else norm(change), None)",
            DEEPNORM,
        ),
    ],
    "norm: pre": [
        Mutation(
            "values and experts read what is not normed",
            "moeut.blocks.norms:views",
            'x if placement == "peri" else normed',
            "x",
            f"{PLACEMENT}[layer-False-dense-pre]",
        ),
    ],
    "norm: post": [
        Mutation(
            "the sum is not normed and the sublayer's input is",
            f"{LAYER}._behind",
            'norm if self.norm == "post" else None',
            "None",
            f"{PLACEMENT}[layer-False-dense-post]",
            (("moeut.blocks.norms:views", 'or placement == "post"', ""),),
        ),
    ],
    "norm: peri": [
        Mutation(
            "values and experts read what is normed",
            "moeut.blocks.norms:views",
            'x if placement == "peri" else normed',
            "normed",
            f"{PLACEMENT}[layer-False-dense-peri]",
        ),
    ],
    "norm: sandwich": [
        Mutation(
            "the second norm acts on the branch",
            f"{LAYER}._behind",
            "return second",
            "return None",
            f"{PLACEMENT}[layer-False-dense-sandwich]",
            ((f"{LAYER}._of_branch", 'self.norm == "branch"', "True"),),
        ),
    ],
    "norm: branch": [
        Mutation(
            "the second norm acts on the sum",
            f"{LAYER}._of_branch",
            'self.norm == "branch"',
            "False",
            f"{PLACEMENT}[layer-False-dense-branch]",
            ((f"{LAYER}._behind", 'self.norm == "sandwich"', "second is not None"),),
        ),
    ],
    "norm_kind: layer": [
        Mutation(
            "it has an epsilon of its own",
            "moeut.blocks.norms:LayerNorm.__init__",
            "width, epsilon, elementwise",
            "width, 1e-5, elementwise",
            f"{NORM}[layer]",
        ),
    ],
    "norm_kind: rms": [
        Mutation(
            "it has an epsilon of its own",
            "moeut.blocks.norms:RMSNorm.__init__",
            "width, epsilon, elementwise",
            "width, None, elementwise",
            f"{NORM}[rms]",
        ),
    ],
    "norm_kind: unbiased": [
        Mutation(
            "the deviation is the biased one",
            "moeut.blocks.norms:UnbiasedNorm.forward",
            "(x.shape[-1] - 1)",
            "x.shape[-1]",
            f"{NORM}[unbiased]",
        ),
        Mutation(
            "epsilon stands inside the root",
            "moeut.blocks.norms:UnbiasedNorm.forward",
            "torch.finfo(exact).tiny",
            "self.epsilon",
            f"{NORM}[unbiased]",
            (
                (
                    "moeut.blocks.norms:UnbiasedNorm.forward",
                    "(deviation + self.epsilon)",
                    "deviation",
                ),
            ),
        ),
    ],
    "own.norms: true": [
        Mutation(
            "all repeats have the norms of the first",
            f"{LAYER}._norms",
            "first = of_repeat(first, repeat)",
            "first = of_repeat(first, 0)",
            f"{DISTINCT}[norms-cycle]",
        ),
    ],
    "own.routers: true": [
        Mutation(
            "all repeats have the router of the first",
            "moeut.blocks.feed_forward.sigma_moe:SigmaMoEMLP.forward",
            "of_repeat(self.router, context.repeat)",
            "of_repeat(self.router, 0)",
            f"{DISTINCT}[routers-cycle]",
        ),
        Mutation(
            "routers of values and outputs are those of the first",
            "moeut.blocks.attention.switch_head:SwitchHeadAttention.decide",
            "of_repeat(self.value_router, context.repeat)",
            "of_repeat(self.value_router, 0)",
            f"{DISTINCT}[routers-cycle]",
        ),
        Mutation(
            "all routers of a layer are balanced as one",
            "moeut.blocks.own:Relaxable.router_index",
            "max([0, *(index_of(getattr(self, name), repeat) for name in self.routers)])",
            "0",
            f"{DISTINCT}[routers-cycle]",
        ),
    ],
    "own.attention: true": [
        Mutation(
            "all repeats have the attention of the first",
            f"{LAYER}.forward",
            "of_repeat(self.attention, repeat)",
            "of_repeat(self.attention, 0)",
            f"{DISTINCT}[attention-cycle]",
        ),
        Mutation(
            "experts are a repeat's own, too",
            f"{LAYER}._attention",
            "if one is not first:",
            "if False:",
            "moeut/recurrence/test_own.py::test_experts_are_those_of_all_repeats",
        ),
    ],
    "own.update: true": [
        Mutation(
            "all repeats have the gate of the first",
            f"{LAYER}.forward",
            "of_repeat(self.update, repeat)",
            "of_repeat(self.update, 0)",
            f"{DISTINCT}[update-cycle]",
        ),
    ],
    "own.encoding: true": [
        Mutation(
            "all repeats have the factor of the first",
            "moeut.blocks.own:Encoding.forward",
            "of_repeat(self.scale, repeat)",
            "of_repeat(self.scale, 0)",
            ENCODED,
        ),
        Mutation(
            "a factor follows the first layer of a recursion",
            "moeut.recurrence.schedule:Depth.ends_recursion",
            "self.prelude + self.group - 1",
            "self.prelude",
            ENCODED,
        ),
    ],
    "own.adapters.rank: 1": [
        Mutation(
            "changes are not scaled",
            "moeut.blocks.own:Adapter.forward",
            " * self.scaling",
            "",
            f"{DISTINCT}[adapters-cycle]",
        ),
        Mutation(
            "all repeats have the changes of the first",
            "moeut.blocks.own:Adapter.forward",
            "of_repeat(self.down, repeat), of_repeat(self.up, repeat)",
            "of_repeat(self.down, 0), of_repeat(self.up, 0)",
            f"{DISTINCT}[adapters-cycle]",
        ),
        Mutation(
            "alpha is not divided by the rank",
            "moeut.blocks.own:Adapters.factor",
            "self.alpha / rank",
            "self.alpha",
            "moeut/recurrence/test_own.py::test_alpha_is_divided_by_the_rank",
        ),
        Mutation(
            "what begins as distinct layers is not divided by the factor",
            "moeut.relaxing:_adapter",
            'if adapters == "scaled" else 1.0',
            "if False else 1.0",
            "moeut/test_relaxing.py::test_full_rank_is_the_model_itself",
        ),
    ],
    "shared_keys: first": [
        Mutation(
            "later repeats compute keys of their own",
            "moeut.recurrence.passing:Passing.apply",
            'if shares == "first" else None',
            "if False else None",
            f"{MOR}[restated/expert_shared_keys]",
        ),
    ],
    "shared_keys: update": [
        Mutation(
            "tokens that sit out have the keys of the repeat before, and not of the first",
            "moeut.recurrence.passing:Passing.apply",
            'and (shares == "none" or is_first)',
            "",
            f"{MOR}[restated/expert_updated_keys]",
        ),
    ],
    "value_embeddings": [
        Mutation(
            "a gate is at most 1",
            "moeut.blocks.value_embeddings:ValueEmbedding.forward",
            "2.0 * router_logits",
            "router_logits",
            "moeut/blocks/test_value_embeddings.py::test_what_joins_the_values",
        ),
        Mutation(
            "every second layer begins with the first",
            "moeut.blocks.value_embeddings:ValueEmbeddings.of",
            "(num_layers - 1) % 2",
            "0",
            "moeut/blocks/test_value_embeddings.py::test_which_layers_have_them",
        ),
        Mutation(
            "they take the place of the values",
            "moeut.blocks.attention.base:Attention.forward",
            "value + context.routing.added_values(",
            "context.routing.added_values(",
            "golden/test_parcae.py::test_states_logits_loss_and_gradients[restated/parcae_defaults-0]",
        ),
    ],
}
