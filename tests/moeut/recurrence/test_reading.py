"""Logits of every repeat: what a pass of that depth says, and nothing else changes."""

import pytest
import torch
from recurrent_cases import FORMS, REPEATS, batch

EVERY = range(REPEATS)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("controller", ["zero_add", "input_linear"])
@torch.no_grad()
def test_a_repeat_is_read_out_as_if_it_were_the_last(make_recurrent, form, controller):
    model = make_recurrent(form, controller).eval()
    arguments, masks = batch(model)
    output = model(*arguments, **masks, read_repeats=EVERY)
    assert len(output.repeat_logits) == REPEATS
    for number, logits in enumerate(output.repeat_logits):
        depth = number + 1
        if form == "encoder_decoder":  # the encoder goes on to its end
            depth = (REPEATS, depth)
        wanted = model(*arguments, **masks, num_repeats=depth).logits
        assert (logits - wanted).abs().max() < 1e-12
    assert output.repeat_logits[-1] is output.logits
    assert (output.repeat_logits[0] - output.logits).abs().max() > 1e-3


@pytest.mark.parametrize("controller", ["zero_add", "act_noise_linear"])
def test_reading_changes_neither_result_nor_losses(make_recurrent, controller):
    model = make_recurrent("decoder_lm", controller).train()
    arguments, masks = batch(model)
    outputs = []
    for read in (None, [0, -1, 1]):
        torch.manual_seed(3)
        outputs.append(model(*arguments, **masks, read_repeats=read))
    plain, read = outputs
    assert torch.equal(plain.logits, read.logits)
    assert torch.equal(plain.auxiliary_loss, read.auxiliary_loss)
    assert plain.repeat_logits == []
    assert plain.repeats == {"decoder": []}
    assert [logits.shape for logits in read.repeat_logits] == [plain.logits.shape] * 3
    # The result of adaptive computation time is a mean over repeats, not the last state.
    same = torch.equal(read.repeat_logits[1], read.logits)
    assert same == (controller == "zero_add")


def test_what_cannot_be_read_is_refused(make_recurrent, make_model):
    model = make_recurrent("decoder_lm", "zero_add")
    tokens = batch(model)[0][0]
    with pytest.raises(ValueError, match=r"read_repeats=4: expected one of 0 to 3"):
        model(tokens, read_repeats=[4])
    with pytest.raises(ValueError, match="keys of the result alone in the coda"):
        model(tokens, read_repeats=[0], cache=model.new_cache())
    model = make_model("decoder_lm", repeats=2, order="sequence")
    with pytest.raises(ValueError, match=r"depth\.order=sequence has no whole repeats"):
        model(tokens, read_repeats=[0])
