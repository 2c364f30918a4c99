import dataclasses
import itertools
import math

import pytest
import torch
from torch.utils._pytree import tree_leaves

from moeut.blocks.layer import Layer
from moeut.blocks.updates import CopyGate
from moeut.models import build
from moeut.recurrence.halting import AdaptiveComputationTime
from moeut.recurrence.inputs import Inputs

FORMS = ["decoder_lm", "encoder_decoder", "encoder_classifier", "encoder_labeller"]


def _batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(0, 11, (3, 7), generator=generator)
    target = torch.randint(0, 11, (3, 5), generator=generator)
    source_mask = torch.arange(7) < torch.tensor([7, 4, 2])[:, None]
    target_mask = torch.arange(5) < torch.tensor([3, 5, 1])[:, None]
    return source, target, source_mask, target_mask


def _run(model, batch=None, **options):
    source, target, source_mask, target_mask = batch or _batch()
    form = model.config.form
    if form == "decoder_lm":
        return model(source, padding_mask=source_mask, **options)
    if form == "encoder_decoder":
        masks = {"source_mask": source_mask, "target_mask": target_mask}
        return model(source, target, **masks, **options)
    return model(source, source_mask=source_mask, **options)


def _loss(output, batch=None):
    """A smooth function of the logits at real positions, and the auxiliary loss."""
    _, target, source_mask, target_mask = batch or _batch()
    logits = output.logits
    if logits.dim() == 3:
        logits = logits[source_mask if logits.shape[1] != target.shape[1] else target_mask]
    return logits.log_softmax(-1)[..., 0].sum() + output.auxiliary_loss


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("norm", ["pre", "post", "peri"])
@pytest.mark.parametrize(
    ("attention", "feed_forward"),
    [
        ("geometric", "sigma_moe"),
        *itertools.product(["dense", "gates", "switch_head"], ["dense", "sigma_moe", "softmax"]),
    ],
)
def test_gradients_reach_every_parameter(make_model, form, norm, attention, feed_forward):
    positions = {
        "dense": "absolute_gate",
        "gates": "learned",
        "switch_head": "relative",
        "geometric": "none",
    }
    model = make_model(
        form,
        norm=norm,
        attention=attention,
        feed_forward=feed_forward,
        position=positions[attention],
        **({"pooling": "last"} if form == "encoder_classifier" else {}),
    ).train()
    output = _run(model)
    assert output.logits.shape[-1] == (
        4 if form in ("encoder_classifier", "encoder_labeller") else 11
    )
    _loss(output).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("position", ["rotary", "absolute_gate", "learned", "geometric"])
def test_padding_tokens_matter_to_nothing(make_model, form, position):
    options = {"position": position}
    if position == "geometric":
        options = {"position": "none", "attention": "geometric"}
    model = make_model(form, **options).train()
    results = []
    for fill in (0, 7):
        source, target, source_mask, target_mask = _batch()
        source = source.masked_fill(~source_mask, fill)
        target = target.masked_fill(~target_mask, fill)
        batch = source, target, source_mask, target_mask
        model.zero_grad()
        loss = _loss(_run(model, batch), batch)
        loss.backward()
        # Padding has other tokens, whose embeddings then get their zero gradients elsewhere.
        results.append((loss.item(), {n: p.grad.clone() for n, p in model.named_parameters()}))
    (first, wanted), (second, gradients) = results
    assert first == pytest.approx(second, abs=1e-12)
    for name, gradient in wanted.items():
        assert torch.allclose(gradients[name], gradient, rtol=0, atol=1e-12), name


@pytest.mark.parametrize("form", FORMS)
def test_activation_checkpointing_changes_no_bit(make_model, form):
    model = make_model(form, dropout=0.1).float().train()
    started = []
    for module in model.modules():
        if isinstance(module, Layer):
            module.register_forward_pre_hook(lambda *_: started.append(1))
    applied = 4 * len(model.config.stacks)
    results = []
    for model.activation_checkpointing in (False, True):
        started.clear()
        torch.manual_seed(5)
        model.zero_grad()
        loss = _loss(_run(model))
        loss.backward()
        assert len(started) == applied * (2 if model.activation_checkpointing else 1)
        results.append((loss, [p.grad.clone() for p in model.parameters()]))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(*pair) for pair in zip(results[0][1], results[1][1], strict=True))


def test_decoder_is_causal_and_its_prefix_is_not(make_model):
    model = make_model().eval()
    tokens = _batch()[0]
    other = tokens.clone()
    other[:, 4] = (other[:, 4] + 1) % 11
    prefix = torch.tensor([5, 0, 3])
    plain = (model(tokens).logits - model(other).logits).abs().amax(-1)
    assert plain[:, :4].max() < 1e-12
    assert plain[:, 4:].min() > 1e-6
    mixed = model(tokens, prefix_length=prefix).logits - model(other, prefix_length=prefix).logits
    mixed = mixed.abs().amax(-1)
    assert mixed[0].min() > 1e-6  # column 4 is in the prefix of this row
    assert mixed[1:, :4].max() < 1e-12
    assert mixed[:, 4:].min() > 1e-6


def test_a_prefix_pass_equals_what_its_mask_says(make_model):
    """Row by row: the prefix alone is bidirectional and does not depend on what follows."""
    model = make_model(position="relative").eval()
    tokens = _batch()[0]
    full = model(tokens, prefix_length=torch.tensor([4, 4, 4])).logits
    alone = model(tokens[:, :4], prefix_length=torch.tensor([4, 4, 4])).logits
    assert (full[:, :4] - alone).abs().max() < 1e-12
    assert (model(tokens[:, :4]).logits - alone)[:, :3].abs().max() > 1e-3


def test_encoder_decoder_reads_its_source_and_takes_a_pair_of_depths(make_model):
    model = make_model("encoder_decoder").eval()
    source, target, _, _ = _batch()
    default = model(source, target).logits
    assert torch.equal(model(source, target, num_repeats=2).logits, default)
    assert torch.equal(model(source, target, num_repeats=(2, None)).logits, default)
    pairs = {pair: model(source, target, num_repeats=pair).logits for pair in ((1, 3), (3, 1))}
    assert (pairs[1, 3] - pairs[3, 1]).abs().max() > 1e-3
    encoded = model.encode(source, num_repeats=(1, 3))
    again = model.decode(target, encoded, num_repeats=(1, 3)).logits
    assert torch.equal(again, pairs[1, 3])
    assert (model(source.flip(0), target).logits - default).abs().max() > 1e-3
    with pytest.raises(ValueError, match="expected one number or a pair"):
        model(source, target, num_repeats=(1, 2, 3))


@pytest.mark.parametrize("form", FORMS)
def test_an_unshared_model_has_one_depth(make_model, form):
    model = make_model(form, group=4, repeats=1).eval()
    with pytest.raises(ValueError, match="shares no layers"):
        _run(model, num_repeats=2)


@pytest.mark.parametrize("pooling", ["first", "last"])
def test_classifier_reads_one_column(make_model, pooling):
    model = make_model("encoder_classifier", pooling=pooling).eval()
    source, _, mask, _ = _batch()
    output = model(source, source_mask=mask, trace=True)
    states = model.encoder.final_norm(output.hidden["encoder"][-1])
    column = [0, 0, 0] if pooling == "first" else [6, 3, 1]
    wanted = states[range(3), column] @ model.head.weight.T + model.head.bias
    assert torch.allclose(output.logits, wanted, rtol=0, atol=1e-13)
    unpadded = model(source[:1]).logits
    assert torch.allclose(output.logits[:1], unpadded, rtol=0, atol=1e-13)


def test_tied_embeddings_are_the_output_weight_unscaled(make_model):
    options = {"tie_embeddings": True, "embedding_scale": "sqrt_d_model"}
    model = make_model(**options).eval()
    assert [name for name, _ in model.head.named_parameters()] == ["bias"]
    tokens = _batch()[0]
    output = model(tokens, trace=True)
    first = output.hidden["decoder"][0]
    assert torch.allclose(first, model.embedding.weight[tokens] * math.sqrt(16), rtol=0, atol=1e-14)
    states = model.decoder.final_norm(output.hidden["decoder"][-1])
    wanted = states @ model.embedding.weight.T + model.head.bias
    assert torch.allclose(output.logits, wanted, rtol=0, atol=1e-12)
    unbiased = make_model(**options, head_bias=False)
    assert not list(unbiased.head.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_auxiliary_loss_is_for_training(make_model, form):
    model = make_model(form)
    training = _run(model.train()).auxiliary_loss
    assert training.dim() == 0
    assert training.item() < -0.1
    assert _run(model.eval()).auxiliary_loss.item() == 0.0
    if form == "encoder_decoder":
        source, target, source_mask, target_mask = _batch()
        memory = model.train().encode(source, source_mask=source_mask)
        encoder = memory.output.auxiliary_loss
        decoder = model.decoder(
            model.embedding(target), Inputs(real=target_mask, memory=memory.memory)
        ).auxiliary_loss
        assert training.item() == pytest.approx((encoder + decoder).item(), abs=1e-13)
        assert min(-encoder.item(), -decoder.item()) > 0.1


@pytest.mark.parametrize("form", FORMS)
def test_all_gradients_go_through_tensors_that_fsdp_sees(make_model, form):
    """An output that torch does not flatten hides its tensors: their gradients stay unsent."""
    model = make_model(form).train()
    outputs = []
    layers = [module for module in model.modules() if isinstance(module, Layer)]
    for module in (model, *layers):
        module.register_forward_hook(lambda module, args, output: outputs.append(output))
    _run(model)
    assert len(outputs) > len(layers) > 0
    for output in outputs:
        leaves = tree_leaves(output)
        assert not [leaf for leaf in leaves if dataclasses.is_dataclass(leaf)]
        assert any(torch.is_tensor(leaf) and leaf.requires_grad for leaf in leaves)


@pytest.mark.parametrize("loss_over", ["real", "all"])
def test_shares_of_rows_make_parts_add_up_to_the_auxiliary_loss(make_model, loss_over):
    halting = AdaptiveComputationTime(loss_weight=0.5, loss_over=loss_over, accumulator="exact")
    model = make_model("decoder_lm", halting=halting).train()
    tokens = torch.randint(11, (2, 6), generator=torch.Generator().manual_seed(0))
    real = torch.arange(6) < torch.tensor([[6], [2]])
    shares = torch.tensor([0.8, 0.2], dtype=torch.float64)

    def auxiliary(rows, shares):
        output = model(tokens[rows], padding_mask=real[rows], row_shares=shares)
        return output.auxiliary_loss.item()

    parts = [auxiliary([0], shares[:1]), auxiliary([1], shares[1:])]
    whole = auxiliary([0, 1], shares)
    assert whole == pytest.approx(sum(parts), abs=1e-7)
    # A row alone, with the whole share, has the loss of a batch of that row.
    alone = model(tokens[:1], padding_mask=real[:1]).auxiliary_loss.item()
    assert parts[0] == pytest.approx(0.8 * alone, abs=1e-7)
    assert abs(whole - auxiliary([0, 1], None)) > 1e-4


@pytest.mark.parametrize("form", FORMS)
def test_low_precision_stays_close_to_float32(make_model, form):
    model = make_model(form, position="relative").float().eval()
    exact = _run(model).logits
    with torch.autocast("cpu", torch.bfloat16):
        low = _run(model).logits
    assert (low.float() - exact).abs().max() < 0.1 * exact.abs().max()
    assert not torch.equal(low.float(), exact)


def test_build_draws_from_the_global_generator_alone(make_config):
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(build(make_config()).state_dict())
    same, other = (
        [torch.equal(models[0][name], models[i][name]) for name in models[0]] for i in (1, 2)
    )
    assert all(same)
    assert not all(other)
    assert all(tensor.isfinite().all() for tensor in models[0].values())


def test_tokens_have_to_be_whole_numbers_in_two_dimensions(make_model):
    model = make_model()
    with pytest.raises(ValueError, match=r"tokens: expected whole numbers of shape"):
        model(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"got torch.float32"):
        model(torch.zeros(2, 3))


@pytest.mark.parametrize("attention", ["dense", "switch_head", "geometric"])
def test_compiles_without_a_graph_break(make_model, attention):
    others = {"position": "none", "update": CopyGate()} if attention == "geometric" else {}
    model = make_model(attention=attention, **others).float().train()
    tokens = _batch()[0]
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    output, wanted = compiled(tokens), model(tokens)
    assert torch.allclose(output.logits, wanted.logits, atol=1e-5)
    assert torch.allclose(output.auxiliary_loss, wanted.auxiliary_loss, atol=1e-6)
    gradients = [
        torch.autograd.grad(_loss(out), list(model.parameters())) for out in (output, wanted)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("part", "option", "value", "in_training_only"),
    [
        ("model", "norm_epsilon", 0.5, False),
        ("model", "norm_input", True, False),
        ("depth", "order", "sequence", False),
        ("model", "dropout", 0.3, True),
        ("position", "base", 10.0, False),
        ("position", "fraction", 1.0, False),
        ("attention", "top_k", 1, False),
        ("attention", "dropout", 0.3, True),
        ("attention", "expert_dropout", 0.3, True),
        ("feed_forward", "top_k", 1, False),
        ("feed_forward", "router", "softmax", False),
        ("feed_forward", "expert_dropout", 0.3, True),
    ],
)
def test_every_option_changes_what_is_computed(make_model, part, option, value, in_training_only):
    """With the same weights, and each option of its own."""
    model = make_model()
    changes = {option: value}
    if part != "model":
        changes = {part: dataclasses.replace(getattr(model.config, part), **changes)}
    other = build(dataclasses.replace(model.config, **changes)).double()
    other.load_state_dict(model.state_dict())
    tokens = _batch()[0]
    for training in (True, False):
        logits = [one.train(training)(tokens).logits for one in (model, other)]
        if in_training_only and not training:
            assert torch.equal(*logits)
        else:
            assert (logits[0] - logits[1]).abs().max() > 1e-4


def test_every_norm_has_the_epsilon(make_model):
    model = make_model("encoder_decoder", norm_epsilon=0.5)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert len(norms) == 2 * (2 + 3) + 2
    assert {norm.eps for norm in norms} == {0.5}


def test_dropout_falls_on_the_embedded_input(make_model):
    model = make_model(dropout=0.5).train()
    tokens = _batch()[0]
    embedded = model(tokens, trace=True).hidden["decoder"][0]
    assert 0.3 < (embedded == 0).double().mean() < 0.7
    whole = model.eval()(tokens, trace=True).hidden["decoder"][0]
    kept = embedded != 0
    assert torch.allclose(embedded[kept], 2 * whole[kept])
