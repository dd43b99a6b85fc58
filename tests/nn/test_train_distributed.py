"""Two processes, told of each other as torchrun tells them, train as one does, and end as one."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
from pathlib import Path

import pytest
import torch
from train_case import SPEC, checkpoint_of, finished, log_of

from rismusic.cli import main
from rismusic.errors import InputError
from rismusic.nn import validation
from rismusic.nn.distributed import ProcessGroup
from rismusic.nn.learner import Learner
from rismusic.spec import dump_spec
from validation_stub import nowhere


def work(rank, port, said, arguments):
    """One of two processes."""
    here = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": 2,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in here.items()})
    torch.set_num_threads(1)
    validation.rap_music_sources = nowhere
    with Path(f"{said}{rank}").open("w") as file, contextlib.redirect_stderr(file):
        code = main(arguments)
    raise SystemExit(code)


def under_torchrun(folder, *arguments):
    """Exit codes of two processes, and what they say."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rismusic.nn.train"])  # torch is waited for once
    given = [(rank, port, str(folder / "said"), ["train", *arguments]) for rank in (0, 1)]
    both = [context.Process(target=work, args=one) for one in given]
    for one in both:
        one.start()
    for one in both:
        one.join(timeout=200)
    stuck = [one.is_alive() for one in both]
    for one in both:
        one.kill()
    assert stuck == [False, False]
    return [one.exitcode for one in both], [(folder / f"said{rank}").read_text() for rank in (0, 1)]


def test_two_processes_are_one(tmp_path, monkeypatch):
    spec = SPEC.replace(
        accumulation=2,
        batch=2,
        schedule=SPEC.schedule.replace(epochs=1),
        network=SPEC.network.replace(dropout=0.2),
    )
    (tmp_path / "small.toml").write_text(dump_spec(spec))
    codes, said = under_torchrun(tmp_path, str(tmp_path / "small.toml"), "--out", str(tmp_path / "two"))
    assert codes == [0, 0], said
    assert said[0].count("[BETA]") == 1
    assert "[" not in said[1]  # one of them speaks
    monkeypatch.setattr(validation, "rap_music_sources", nowhere)
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


def test_bad_input_that_one_process_meets_ends_both(tmp_path):
    """Process 0 alone makes the folder; the other one does not wait for it."""
    (tmp_path / "small.toml").write_text(dump_spec(SPEC))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "something").write_text("of somebody")
    codes, said = under_torchrun(tmp_path, str(tmp_path / "small.toml"), "--out", str(tmp_path / "run"))
    assert codes == [2, 2], said
    for one in said:
        assert "must be a new or empty folder" in one
        assert one.count("\n") == 1


def test_a_batch_that_cannot_be_shared():
    with pytest.raises(InputError, match="batch: must be a multiple of the number of processes, 3; got 4"):
        Learner(SPEC, ProcessGroup(0, 3, torch.device("cpu")))
