"""Two processes under torchrun train as one does."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from train_case import SPEC, checkpoint_of, finished, log_of, nowhere

from rismusic.errors import InputError
from rismusic.learn import validation
from rismusic.learn.learner import Learner
from rismusic.learn.ranks import Ranks
from rismusic.spec import dump_spec


def test_two_processes_are_one(tmp_path, monkeypatch):
    spec = SPEC.replace(
        accumulation=2,
        batch=2,
        schedule=SPEC.schedule.replace(epochs=1),
        network=SPEC.network.replace(dropout=0.2),
    )
    (tmp_path / "small.toml").write_text(dump_spec(spec))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "rismusic", "train", str(tmp_path / "small.toml"), "--out", str(tmp_path / "two")],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("[BETA]") == 1  # one of them speaks
    monkeypatch.setattr(validation, "sources_of", nowhere)
    finished(tmp_path / "one", spec)
    steps = [log_of(tmp_path / name, "step") for name in ("one", "two")]
    assert len(steps[0]) == len(steps[1]) == 4
    for one, two in zip(*steps, strict=True):
        assert one.pop("kind") == two.pop("kind")
        assert one == pytest.approx(two, rel=2e-4, abs=1e-5)
    assert steps[0][0]["loss"] != steps[0][1]["loss"]
    # The optimizer's memory, not the weights: AdamW divides by the size of the gradient, so that where it is
    # nearly 0 a weight moves by what the rounding says.
    (_, first), (_, second) = checkpoint_of(tmp_path / "one"), checkpoint_of(tmp_path / "two")
    means = [name for name in first if name.endswith(".exp_avg")]
    assert len(means) == len(Learner(spec).weights)
    for name in means:
        assert (first[name] - second[name]).norm() < 1e-3 * first[name].norm() + 1e-6


def test_a_batch_that_cannot_be_shared():
    with pytest.raises(InputError, match="batch: expected a multiple of the 3 processes, found 4"):
        Learner(SPEC, Ranks(0, 3, torch.device("cpu")))
