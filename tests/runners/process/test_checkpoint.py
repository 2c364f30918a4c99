"""Checkpoints are whole or refused, whatever happens to the process, the file or the disk."""

import json
import os
import random
import resource
import signal
import time

import pytest
import torch

from runners.process.checkpoint import (
    Damaged,
    DiskFull,
    Refused,
    check_run,
    list_checkpoints,
    load_checkpoint,
    load_latest,
    save_checkpoint,
)

FILES = ("model.safetensors", "state.pt", "config.json", "manifest.json")


def save(folder, step, *, size=64, best=None):
    weights = {"model": {"weight": torch.arange(float(size)) + step}}
    if best is not None:
        weights["best"] = {"weight": torch.full((size,), float(best))}
    state = {"step": step, "moments": torch.ones(size) * step, "none": None, "names": ["a", "b"]}
    return save_checkpoint(
        folder, step=step, state=state, weights=weights, files={"config.json": b'{"a": 1}\n' * 20}
    )


def test_what_is_saved_comes_back(tmp_path):
    path = save(tmp_path, 7, best=3)
    assert path.name == "step_000007"
    checkpoint = load_checkpoint(path)
    assert checkpoint.step == 7
    assert torch.equal(checkpoint.weights()["weight"], torch.arange(64.0) + 7)
    assert torch.equal(checkpoint.weights("best")["weight"], torch.full((64,), 3.0))
    assert checkpoint.state["none"] is None
    assert torch.equal(checkpoint.state["moments"], torch.full((64,), 7.0))


def test_weights_that_are_one_tensor_under_two_names_are_saved_under_both(tmp_path):
    layer = torch.nn.Linear(3, 3)
    weights = {"a": layer.weight, "b": layer.weight.T}
    path = save_checkpoint(tmp_path, step=1, state={}, weights={"model": weights})
    found = load_checkpoint(path).weights()
    assert torch.equal(found["a"], layer.weight)
    assert torch.equal(found["b"], layer.weight.T)


def test_two_are_kept_and_a_step_can_be_saved_again(tmp_path):
    for step in (5, 10, 1_000_000):
        save(tmp_path, step)
    save(tmp_path, 1_000_000, best=9)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_000010", "step_1000000"]
    assert load_latest(tmp_path).weights("best")["weight"][0] == 9
    assert sorted(os.listdir(tmp_path)) == ["step_000010", "step_1000000"]


def test_no_checkpoint_is_none(tmp_path):
    assert load_latest(tmp_path / "nowhere") is None


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_file_is_named_and_the_checkpoint_before_used(name, share, tmp_path):
    save(tmp_path, 1)
    file = save(tmp_path, 2) / name
    os.truncate(file, int(share * file.stat().st_size))
    messages = []
    assert load_latest(tmp_path, warn=messages.append).step == 1
    assert len(messages) == 1
    assert str(file) in messages[0]
    with pytest.raises(Damaged, match=name):
        load_checkpoint(file.parent)


@pytest.mark.parametrize("name", FILES[:3])
def test_any_flipped_bit_is_found(name, tmp_path):
    file = save(tmp_path, 2) / name
    content = file.read_bytes()
    generator = random.Random(0)
    for _ in range(20):
        place, bit = generator.randrange(len(content)), generator.randrange(8)
        damaged = bytearray(content)
        damaged[place] ^= 1 << bit
        file.write_bytes(damaged)
        with pytest.raises(Damaged, match=name):
            load_checkpoint(file.parent)
    file.write_bytes(content)
    assert load_checkpoint(file.parent).step == 2


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_named(name, tmp_path):
    file = save(tmp_path, 2) / name
    file.unlink()
    with pytest.raises(Damaged, match=f"{name}: missing"):
        load_checkpoint(file.parent)


def test_checkpoint_under_the_name_of_another_step_is_refused(tmp_path):
    path = save(tmp_path, 2).rename(tmp_path / "step_000003")
    with pytest.raises(Damaged, match="is of step 2"):
        load_checkpoint(path)


def test_nothing_whole_is_an_error_and_not_a_fresh_start(tmp_path):
    for step in (1, 2):
        (save(tmp_path, step) / "model.safetensors").unlink()
    with pytest.raises(Damaged, match="every checkpoint is damaged"):
        load_latest(tmp_path, warn=lambda message: None)


@pytest.mark.parametrize("limit", [1_000, 60_000, 100_000], ids=["weights", "state", "state end"])
def test_full_disk_leaves_the_checkpoint_before_and_says_how_much_is_needed(limit, tmp_path):
    size = 12_000  # 48,000 bytes each of weights and state
    save(tmp_path, 1, size=size)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit > 48_500:  # weights fit, the state does not: give it more
        state = {"moments": torch.ones(4 * size)}
        weights = {"model": {"weight": torch.ones(size)}}
    else:
        state, weights = {}, {"model": {"weight": torch.ones(size)}}
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(DiskFull, match=r"\d[\d,]* bytes needed"):
            save_checkpoint(tmp_path, step=2, state=state, weights=weights)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(os.listdir(tmp_path)) == ["step_000001"]
    assert load_latest(tmp_path).step == 1


def test_full_disk_is_told_from_other_errors(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        save(tmp_path / "file", 1)


def test_kill_during_saves_leaves_every_checkpoint_whole(tmp_path):
    began = time.monotonic()
    save(tmp_path, 1, size=50_000)
    one_save = time.monotonic() - began
    generator = random.Random(1)
    for _ in range(100):
        first = load_latest(tmp_path).step + 1
        process = os.fork()
        if process == 0:
            try:
                for step in range(first, first + 10_000):
                    save(tmp_path, step, size=50_000)
            finally:
                os._exit(1)
        time.sleep(one_save * generator.uniform(0.3, 3.0))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        messages = []
        found = load_latest(tmp_path, warn=messages.append)
        assert messages == []
        assert found.step >= first - 1
        # What a save takes is that of a busy machine: wait longer if none came to its end.
        one_save *= 1.1 if found.step < first else 0.97
        assert torch.equal(found.weights()["weight"], torch.arange(50_000.0) + found.step)
    assert found.step > 10  # the kills came during saves, not before the first
    save(tmp_path, found.step + 1)
    assert len(os.listdir(tmp_path)) == 2  # what the kills left behind is gone


def test_manifest_is_readable_json(tmp_path):
    content = json.loads((save(tmp_path, 4) / "manifest.json").read_text())
    assert content["step"] == 4
    assert sorted(content["sha256"]) == ["config.json", "model.safetensors", "state.pt"]


class Executed:
    """What a pickle with code in it holds."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def test_code_in_a_state_is_refused_and_no_checkpoint_before_taken(tmp_path):
    save(tmp_path, 1)
    path = save_checkpoint(
        tmp_path, step=2, state={"hash": Executed(tmp_path / "ran")}, weights={"model": {}}
    )
    for load in (lambda: load_checkpoint(path), lambda: load_latest(tmp_path)):
        with pytest.raises(Refused, match=r"state\.pt: refused: holds more than tensors") as error:
            load()
        assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()
    assert len(list_checkpoints(tmp_path)) == 2


def test_a_checkpoint_belongs_to_one_run(tmp_path):
    path = save_checkpoint(tmp_path, step=1, state={"hash": "0a"}, weights={"model": {}})
    checkpoint = load_checkpoint(path)
    check_run(checkpoint, "0a")
    with pytest.raises(Refused, match=r"step_000001: a checkpoint of the run 0a, expected .* 0b"):
        check_run(checkpoint, "0b")
