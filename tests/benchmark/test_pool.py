"""Processes that do the parts: all of them, once each, and none is left over when things go wrong."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
import time

import pytest

from rismusic.benchmark.pool import run_all, usable_cores
from rismusic.benchmark.spec import parse_shard
from rismusic.errors import InputError


@pytest.mark.parametrize("workers", [1, 2])
def test_every_task_once(workers):
    done = []
    run_all(time.sleep, [0.001 * i for i in range(9)], workers=workers, done=done.append)
    assert sorted(done) == [0.001 * i for i in range(9)]
    assert multiprocessing.active_children() == []
    run_all(time.sleep, [], workers=workers, done=done.append)
    assert usable_cores() >= 1


def test_a_killed_worker_is_named():
    def kill(_task):
        multiprocessing.active_children()[0].kill()

    with pytest.raises(InputError, match=r"workers: a worker process was killed .* run again with resume"):
        run_all(time.sleep, [0.0, 60.0, 60.0], workers=2, done=kill)
    assert multiprocessing.active_children() == []


def test_ctrl_c_ends_workers_in_mid_task():
    def interrupt(_task):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all(time.sleep, [0.0, 600.0, 600.0], workers=2, done=interrupt)
    assert multiprocessing.active_children() == []


def test_bad_input_travels_from_a_worker_in_its_own_words():
    with pytest.raises(InputError, match="shard: give a share") as caught:
        run_all(parse_shard, ["0/1", "none", "0/2"], workers=2, done=lambda _: None)
    assert caught.value.field == "shard"
    assert "got 'none'" in str(caught.value)
    assert caught.value.__notes__[-1] == "in none"


SCRIPT = """
import time
from rismusic.benchmark.pool import run_all
if __name__ == "__main__":
    run_all(time.sleep, [0.0, 600.0, 600.0], workers=2, done=lambda _: print("one", flush=True))
"""


def test_no_worker_outlives_a_killed_parent(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    process = subprocess.Popen([sys.executable, tmp_path / "script.py"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "one\n"
    process.send_signal(signal.SIGKILL)
    # Workers hold standard output open: it ends with the last of them.
    assert process.communicate(timeout=60)[0] == ""
