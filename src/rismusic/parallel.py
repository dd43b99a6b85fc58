"""Run tasks in several threads or processes of this machine, or on the workers of a Dask cluster.

Threads start at once and share what is in memory, but only one of them at a time runs Python. The processes
are those of joblib's loky executor. They end when this process ends, however that happens. A cluster is one
that exists: ``dask scheduler`` runs on one machine and ``dask worker`` on each. Tasks and results travel over
the network, so that the machines need not share a file system. A task whose worker is killed runs again on
another.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextvars import Context, copy_context
from importlib.util import find_spec
from itertools import islice
from multiprocessing.connection import Connection
from typing import TypeVar

from rismusic.errors import InputError, not_installed

Task = TypeVar("Task")
Result = TypeVar("Result")

MOST_THREADS = 8
"""Most threads that locate scenes. Python runs for a tenth of the time, and in one thread at a time."""

_IN_FLIGHT = 2  # tasks in flight for each worker: the next one waits there while one runs
_CONNECT_S, _WORKERS_S = 10, 30  # seconds to wait for the scheduler of a cluster, and for its first worker


def usable_cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_division(blocks: int, cores: int, *, threaded: bool = True) -> tuple[int, int]:
    """Numbers of processes and of threads among which blocks of scenes are divided by default.

    Threads start at once and share what is in memory, but run Python in one of them at a time, and not every
    method is safe in several (``threaded``). Starting a process takes about as long as one block, so that
    each needs two.
    """
    processes = min(cores, max(1, blocks // 2))
    if threaded and processes <= MOST_THREADS:
        return 1, min(cores, MOST_THREADS, max(1, blocks))
    return processes, 1


_MOST_WORKERS = 1024  # more processes than any machine has cores are a slip


def check_workers(workers: int | None, cluster: str | None) -> None:
    """Check the options before work starts."""
    if workers is not None and not 1 <= workers <= _MOST_WORKERS:
        raise InputError("workers", f"must be from 1 to {_MOST_WORKERS} processes; got {workers}")
    if cluster is not None and workers is not None:
        raise InputError("workers", "cannot be combined with cluster, whose workers are counted there")
    if cluster is not None and find_spec("distributed") is None:
        raise not_installed("cluster", "cluster", "needs Dask, which ")


def run_all(
    work: Callable[[Task], Result],
    tasks: Iterable[Task],
    *,
    workers: int = 1,
    threads: int = 1,
    cluster: str | None = None,
    ordered: bool = False,
) -> Generator[tuple[Task, Result], None, None]:
    """Run all tasks and yield each with its result.

    Tasks are taken when a worker has room for them, so that they may be made one by one. The processes end at
    once after Ctrl-C, after an error, when the iterator is closed, and when this process is killed; threads
    end when they have run their task.

    Args:
        work: runs one task.
        tasks: the tasks.
        workers: number of processes; with 1 the tasks run in this process.
        threads: number of threads of this process, if the tasks run in it. Each computes in one thread.
        cluster: address of a Dask scheduler, such as ``tcp://host:8786``, in place of ``workers``.
        ordered: yield in the order of the tasks, not as they complete.

    Raises:
        InputError: a worker was killed, or the cluster does not answer.
    """
    check_workers(None if cluster else workers, cluster)
    if cluster is None and workers == threads == 1:
        for task in tasks:
            with _named(task):
                result = work(task)
            yield task, result
        return
    if cluster is not None:
        pool = _cluster(cluster)
    else:
        pool = _processes(workers) if workers > 1 else _threads(threads)
    queue, running = iter(tasks), deque[tuple[Task, Future[Result]]]()
    with pool as (executor, count):
        while True:
            with _interrupts_held():
                for task in islice(queue, _IN_FLIGHT * count() - len(running)):
                    running.append((task, executor.submit(work, task)))
            if not running:
                return
            if not ordered:
                done, _ = wait([future for _, future in running], return_when=FIRST_COMPLETED)
                running.rotate(-next(i for i, (_, future) in enumerate(running) if future in done))
            task, future = running.popleft()
            with _named(task):
                result = future.result()
            yield task, result


@contextlib.contextmanager
def _named(task: object) -> Iterator[None]:
    """Add the name of the task to an error."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in {task}")
        raise


@contextlib.contextmanager
def _threads(count: int) -> Iterator[tuple[Executor, Callable[[], int]]]:
    """Threads of this process with its context variables, each with one thread of torch, and their number."""
    from rismusic.devices import one_thread

    executor = ThreadPoolExecutor(count, initializer=_adopt, initargs=(copy_context(),))
    with one_thread():
        try:
            yield executor, lambda: count
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def _processes(workers: int) -> Iterator[tuple[Executor, Callable[[], int]]]:
    """Processes of this machine, and their number."""
    from joblib.externals.loky import ProcessPoolExecutor

    ours, theirs = multiprocessing.get_context("spawn").Pipe(duplex=False)
    executor = ProcessPoolExecutor(workers, initializer=_start, initargs=(ours,))
    try:
        yield executor, lambda: workers
    except BrokenProcessPool:
        raise InputError(
            "workers",
            "a worker process was killed (out of memory?). Completed parts are kept: run again with resume",
        ) from None
    finally:
        theirs.close()
        executor.shutdown(wait=True, kill_workers=True)
        ours.close()


@contextlib.contextmanager
def _cluster(address: str) -> Iterator[tuple[Executor, Callable[[], int]]]:
    """A Dask cluster, and the number of its threads at the moment."""
    from distributed import Client, KilledWorker

    try:
        client = Client(address, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            "cluster",
            f"no Dask scheduler answers at {address} ({error}); give the address that 'dask scheduler' "
            "prints, such as tcp://host:8786",
        ) from None
    with client:
        try:
            client.wait_for_workers(1, timeout=_WORKERS_S)
        except TimeoutError:
            raise InputError(
                "cluster", f"{address} has no workers; start one: dask worker {address} --nthreads 1"
            ) from None
        try:
            with client.get_executor(pure=False) as executor:
                yield executor, lambda: max(1, sum(client.nthreads().values()))
        except KilledWorker as error:
            raise InputError(
                "cluster",
                f"several workers were killed by one task (out of memory?): {error}. Completed parts are "
                "kept: run again with resume",
            ) from None
        except CancelledError:
            raise InputError(
                "cluster",
                f"the connection to {address} was lost. Completed parts are kept: run again with resume",
            ) from None


def _adopt(context: Context) -> None:
    """Give this thread the context variables of another."""
    for variable, value in context.items():
        variable.set(value)


def _start(lifeline: Connection) -> None:
    """Prepare a process: ignore Ctrl-C, which the parent handles, and exit when the parent is gone."""
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
