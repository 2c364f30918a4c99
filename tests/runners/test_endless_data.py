"""A run whose rows have no end is bitwise the same when it is interrupted, as any other."""

import pytest

from runners.config.run_file import read_run
from runners.process.checkpoint import list_checkpoints
from runners.process.run_directory import RunDirectory, RunRecord
from runners.training.experiment import data_hash

TEXT = """
task: {name: looped, problem: copy, train_lengths: [1, 4], test_lengths: [6],
       curriculum_start: 1, curriculum_rows: 16, iid_rows: 8, rows_per_test_length: 8}
model: {architecture: universal, d_model: 8, depth: {repeats: 3}, attention: {num_heads: 1},
        form: FORM, state: {injection: add}, dropout: 0.1}
train: {steps: 10, batch_size: 8, log_interval: 2, checkpoint_interval: 3, repeats: REPEATS}
evaluate: {interval: 5}
seed: 7
"""


@pytest.mark.parametrize("form", ["encoder_labeller", "decoder_lm"])
@pytest.mark.parametrize("repeats", ["{}", "{kind: length, per: sequence}"])
def test_stopped_and_resumed_run_is_bitwise_the_same(form, repeats, tmp_path, train):
    found = []
    for name, stops in (("whole", ()), ("parts", (0, 4, 7))):
        file = tmp_path / f"{name}.yaml"
        file.write_text(TEXT.replace("FORM", form).replace("REPEATS", repeats))
        config = read_run(file)
        digest = config.hash(data_hash(config.task))
        record = RunRecord(sweep="s", variant="universal", seed=config.seed, hash=digest)
        RunDirectory(tmp_path / name).prepare(config, record)
        for step in stops:
            assert train(tmp_path / name, stop_at=step) == "stopped"
        assert train(tmp_path / name) == "done"
        last = list_checkpoints(tmp_path / name / "checkpoints")[-1]
        files = [tmp_path / name / part for part in ("metrics.jsonl", "predictions.jsonl")]
        found.append([path.read_bytes() for path in (*files, last / "model.safetensors")])
    assert found[0] == found[1]


def test_a_task_without_lengths_has_no_loops_that_follow_them(tmp_path):
    from runners.config.schema import ConfigError
    from runners.training.experiment import build

    file = tmp_path / "run.yaml"
    text = TEXT.replace("FORM", "encoder_classifier").replace("REPEATS", "{kind: length}")
    start, end = text.index("task:"), text.index("model:")
    file.write_text(text[:start] + "task: {name: arithmetic, train_rows: 60}\n" + text[end:])
    with pytest.raises(ConfigError, match="does not generate rows of a length"):
        build(read_run(file))
