"""Parts done by several processes, none of which outlives the one that started them."""

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
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_all(
    work: Callable[[Task], None], tasks: Sequence[Task], *, workers: int, done: Callable[[Task], None]
) -> None:
    """Do all tasks, in this process if there is one worker, in others if there are more.

    Ctrl-C, an error, and the death of this process by whatever signal end the others at once.

    Args:
        work: does a task; a function of a module, for it is named to other processes.
        tasks: what is to be done.
        workers: processes.
        done: called here after each task.

    Raises:
        InputError: a worker died.
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
            "workers that live (what is done is kept: go on with resume)",
            "one that was killed (out of memory?)",
        ) from None
    finally:
        theirs.close()
        executor.shutdown(cancel_futures=True)
        ours.close()


@contextlib.contextmanager
def _named(task: object) -> Iterator[None]:
    """An error says which task it came from."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in {task}")
        raise


def _start(lifeline: Connection) -> None:
    """Prepare a worker: Ctrl-C is for the parent, and where that is gone so is the worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with, args=(lifeline,), daemon=True).start()


def _leave_with(lifeline: Connection) -> None:
    # Nothing is ever sent: the pipe becomes readable when its other end is closed, be it by the kernel.
    lifeline.poll(None)
    os._exit(1)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes started inside never see Ctrl-C, not even before they can ignore it; it reaches us after."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
