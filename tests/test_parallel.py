"""Processes that run tasks: all of them, once each, and none is left over when things go wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextvars import ContextVar

import pytest

from rismusic.errors import InputError
from rismusic.parallel import check_workers, run_all, usable_cores
from rismusic.registry import load_plugins


@pytest.mark.parametrize("parallel", [{}, {"workers": 2}, {"threads": 2}])
def test_every_task_once(parallel):
    tasks = [0.02, 0.0, 0.01, 0.0, 0.0]
    ordered = list(run_all(time.sleep, iter(tasks), **parallel, ordered=True))
    assert ordered == [(task, None) for task in tasks]
    assert sorted(run_all(time.sleep, tasks, **parallel)) == sorted(ordered)
    assert list(run_all(time.sleep, [], **parallel)) == []
    assert usable_cores() >= 1


def test_threads_run_at_the_same_time_with_the_context_of_their_caller():
    setting, together = ContextVar("setting", default=0), threading.Barrier(2, timeout=60)

    def task(_):
        together.wait()
        return setting.get()

    token = setting.set(3)
    try:
        assert [result for _, result in run_all(task, range(4), threads=2)] == [3] * 4
    finally:
        setting.reset(token)
    with pytest.raises(ZeroDivisionError) as caught:
        list(run_all(lambda task: 1 // task, [1, 0, 1], threads=2))
    assert caught.value.__notes__[-1] == "in 0"


def test_tasks_are_made_as_they_are_needed():
    made = []

    def tasks():
        for number in range(40):
            made.append(number)
            yield number

    running = run_all(abs, tasks(), workers=2, ordered=True)
    assert next(running) == (0, 0)
    assert len(made) <= 5
    running.close()


def pid_or_sleep(seconds):
    time.sleep(seconds)
    return os.getpid()


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_killed_worker_is_named():
    running = run_all(pid_or_sleep, [0.0, 60.0, 60.0], workers=2)
    _, pid = next(running)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(InputError, match=r"workers: a worker process was killed .* run again with resume"):
        list(running)


def test_ctrl_c_ends_workers_in_mid_task():
    running = run_all(pid_or_sleep, [0.0, 600.0, 600.0], workers=2)
    _, pid = next(running)
    with pytest.raises(KeyboardInterrupt):
        running.throw(KeyboardInterrupt())
    assert not alive(pid)


def test_bad_input_travels_from_a_worker_in_its_own_words():
    with pytest.raises(InputError, match=r"plugins: cannot import 'no_such'") as caught:
        list(run_all(load_plugins, [("math",), ("no_such",), ("math",)], workers=2))
    assert caught.value.field == "plugins"
    assert caught.value.__notes__[-1] == "in ('no_such',)"


def test_options_that_contradict_each_other(monkeypatch):
    for workers, cluster, sentence in (
        (0, None, "workers: must be from 1 to 1024 processes; got 0"),
        (2, "tcp://nowhere:1", "workers: cannot be combined with cluster"),
    ):
        with pytest.raises(InputError, match=sentence):
            check_workers(workers, cluster)
    monkeypatch.setattr("rismusic.parallel.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"cluster: needs Dask, .* pip install 'rismusic\[cluster\]'"):
        list(run_all(abs, [1], cluster="tcp://nowhere:1"))


SCRIPT = """
import time
from rismusic.parallel import run_all
for _ in run_all(time.sleep, [0.0, 600.0, 600.0], workers=2):
    print("one", flush=True)
"""


def test_no_worker_outlives_a_killed_parent(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    process = subprocess.Popen([sys.executable, tmp_path / "script.py"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "one\n"
    process.send_signal(signal.SIGKILL)
    # Workers hold standard output open: it ends with the last of them.
    assert process.communicate(timeout=60)[0] == ""
