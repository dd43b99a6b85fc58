"""Run tasks in several processes. The workers end when their parent does."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import TypeVar

from rismusic.errors import InputError

Task = TypeVar("Task")


def usable_cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_all(
    work: Callable[[Task], None], tasks: Sequence[Task], *, workers: int, done: Callable[[Task], None]
) -> None:
    """Run all tasks, in this process if there is one worker, else in worker processes.

    The workers end at once after Ctrl-C, after an error, and when this process is killed.

    Args:
        work: runs one task; a module-level function, so that it can be pickled.
        tasks: the tasks.
        workers: number of processes.
        done: called in this process after each task.

    Raises:
        InputError: a worker was killed.
    """
    if workers == 1 or len(tasks) < 2:
        for task in tasks:
            with _named(task):
                work(task)
            done(task)
        return
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    executor = ProcessPoolExecutor(
        min(workers, len(tasks)), mp_context=context, initializer=_start, initargs=(ours,)
    )
    try:
        with _interrupts_held():
            futures = {executor.submit(work, task): task for task in tasks}
        for future in as_completed(futures):
            with _named(futures[future]):
                future.result()
            done(futures[future])
        executor.shutdown()
    except BrokenProcessPool:
        raise InputError(
            "workers",
            "a worker process was killed (out of memory?). Completed parts are kept: run again with resume",
        ) from None
    finally:
        theirs.close()
        executor.shutdown(cancel_futures=True)
        ours.close()


@contextlib.contextmanager
def _named(task: object) -> Iterator[None]:
    """Add the name of the task to an error."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in {task}")
        raise


def _start(lifeline: Connection) -> None:
    """Prepare a worker: ignore Ctrl-C, which the parent handles, and exit when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with, args=(lifeline,), daemon=True).start()


def _leave_with(lifeline: Connection) -> None:
    # Nothing is ever sent. The pipe becomes readable when its other end closes, also after SIGKILL.
    lifeline.poll(None)
    os._exit(1)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Block Ctrl-C here and in processes started meanwhile, until they can ignore it themselves."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
