"""Interrupted at any instant, a training ends where an undisturbed one does, bit by bit."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from train_case import SPEC, assert_same_run, checkpoint_of, finished, log_of, resumed, trainer

from forked import ended, forked
from rismusic.nn import checkpoint
from rismusic.nn.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("quick_validation")


@pytest.fixture(scope="module")
def undisturbed(quick_validation, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    finished(folder, save_steps=3)
    return folder


def test_killed_in_mid_epoch(undisturbed, tmp_path):
    """kill -9 in the second epoch, a step after a checkpoint, from another process."""
    folder = tmp_path / "run"

    def killed():
        one = trainer(folder, save_steps=3)
        with one.run.lock():
            one._progress = lambda done, _: done == 32 and os.kill(os.getpid(), signal.SIGKILL)
            one.train()

    assert ended(forked(killed)) == -signal.SIGKILL
    state, _ = checkpoint_of(folder)
    assert (state.epoch, state.step) == (1, 3)
    one = resumed(folder)
    with one.run.lock():  # the lock went with the process
        one.train()
    assert_same_run(undisturbed, folder)


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("write", [3, 5, 8])
def test_killed_while_a_checkpoint_is_written(undisturbed, tmp_path, monkeypatch, write):
    """Half a file of tensors, of the best weights, or of the state that names the tensors."""
    count, whole = 0, Path.write_bytes

    def dies(path, data):
        nonlocal count
        count += 1
        if count == write:
            whole(path, data[: len(data) // 2])
            raise Killed
        whole(path, data)

    one = trainer(tmp_path / "run", save_steps=3)
    monkeypatch.setattr(Path, "write_bytes", dies)
    with pytest.raises(Killed):
        one.train()
    monkeypatch.undo()
    resumed(tmp_path / "run").train()
    assert_same_run(undisturbed, tmp_path / "run")
    assert not list((tmp_path / "run").glob(".*.part*"))


def test_ctrl_c_between_two_steps(undisturbed, tmp_path):
    before = signal.getsignal(signal.SIGINT)  # ignored where the tests run in the background
    one = trainer(tmp_path / "run", save_steps=3)
    one._progress = lambda done, _: done == 8 and os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        one.train()
    state, _ = checkpoint_of(tmp_path / "run")
    assert (state.epoch, state.step) == (0, 2)
    assert signal.getsignal(signal.SIGINT) is before
    one, said = resumed(tmp_path / "run"), []
    one._log = said.append
    one.train()
    last = SPEC.schedule.epochs - 1
    assert said[0] == f"epoch 0 (0 to {last}), from step 2"
    assert f"epoch {last} (0 to {last})" in said
    assert_same_run(undisturbed, tmp_path / "run")


def test_the_comparison_can_fail(undisturbed, tmp_path):
    """One bit of one weight."""
    shutil.copytree(undisturbed, tmp_path / "run")
    assert_same_run(undisturbed, tmp_path / "run")
    state, tensors = checkpoint_of(tmp_path / "run")
    tensors["weights/count.0.bias"].view(torch.int32)[0] ^= 1
    checkpoint.save_checkpoint(RunFolder(tmp_path / "run"), SPEC.replace(save_steps=3), state, tensors)
    with pytest.raises(AssertionError):
        assert_same_run(undisturbed, tmp_path / "run")


def test_a_finished_training_is_left_alone(undisturbed):
    before = (undisturbed / "log.jsonl").read_bytes()
    one = resumed(undisturbed)
    one.train()
    assert one.state.stopped
    assert (undisturbed / "log.jsonl").read_bytes() == before


def test_checkpoints_in_mid_epoch_change_nothing(undisturbed, tmp_path):
    finished(tmp_path / "run", save_steps=1)
    lines = [log_of(folder, "step") for folder in (undisturbed, tmp_path / "run")]
    assert lines[0] == lines[1]
    assert len(lines[0]) == SPEC.schedule.epochs * SPEC.steps_per_epoch
    (_, tensors), (_, other) = checkpoint_of(undisturbed), checkpoint_of(tmp_path / "run")
    assert all(torch.equal(tensors[name], other[name]) for name in tensors)
