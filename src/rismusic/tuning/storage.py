"""Where a study is kept: a journal on a file system, or a database for many machines.

Who is at work is told in two ways. A database has heartbeats: a trial whose worker has been silent for twice
the interval is dead. Beside a journal each worker holds a lock, which the system takes back however the
process ends; a trial whose worker's lock can be had is dead.
"""

from __future__ import annotations

import copy
import fcntl
import os
import socket
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError

from rismusic.errors import InputError
from rismusic.tuning.ledger import JOB, RETRIES, cut_off, history, standing

JOURNAL = "study.journal"
WORKER = "worker"
# A trial that nobody has signed for so long was begun by a worker that died at once.
_UNSIGNED = timedelta(minutes=2)
# Another worker may be about to put back what it has just marked as failed.
_SETTLED = timedelta(minutes=1)


class Workers:
    """Who is at work on a study.

    Args:
        folder: of the locks; none for a database, which has heartbeats.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Hold this worker's lock meanwhile."""
        if self.folder is None:
            yield
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = (self.folder / self.name).open("w", encoding="utf-8")
        except OSError as error:
            raise InputError(
                str(self.folder), "a place that can be written to", error.strerror or str(error)
            ) from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        (self.folder / self.name).unlink()

    def is_dead(self, trial: FrozenTrial) -> bool:
        """Whether nobody works on a running trial any more; in a database, where nobody ever signed it."""
        name = trial.user_attrs.get(WORKER)
        if name is None:
            return trial.datetime_start is not None and datetime.now() - trial.datetime_start > _UNSIGNED
        return self.folder is not None and name != self.name and not _is_held(self.folder / name)


def _is_held(path: Path) -> bool:
    try:
        file = path.open("r+", encoding="utf-8")
    except FileNotFoundError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def open_storage(storage: str | None, folder: Path, *, heartbeat_s: int) -> tuple[BaseStorage, Workers]:
    """The storage of a study, and who works on it.

    Args:
        storage: the URL of a database, or the path of a journal; a journal in ``folder`` if none.
        folder: of the results.
        heartbeat_s: seconds between two signs of life in a database.

    Raises:
        InputError: no such database or no driver for it, or a journal that cannot be read.
    """
    if storage is None or "://" not in storage:
        path = folder / JOURNAL if storage is None else Path(storage)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            cut_torn_line(path)
            kept = JournalStorage(JournalFileBackend(str(path)))
        except (OSError, ValueError, KeyError) as error:
            raise InputError(str(path), "a journal of a study", str(error)) from error
        return kept, Workers(path.with_name(f"{path.name}.workers"))
    # SQLAlchemy would look for another driver than the one that comes with us.
    url = storage.replace("postgresql://", "postgresql+psycopg://", 1)
    try:
        with experimental():
            database = RDBStorage(
                url,
                heartbeat_interval=heartbeat_s,
                grace_period=2 * heartbeat_s,
                heartbeat_stale_trial_callback=PutBack(max_retry=RETRIES),
            )
    except (ImportError, ArgumentError, NoSuchModuleError, OperationalError) as error:
        found = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError("storage", "a database that can be reached", found) from None
    return database, Workers(None)


@contextmanager
def closing(storage: BaseStorage) -> Iterator[None]:
    """Close the connections to a database in the end."""
    try:
        yield
    finally:
        storage.remove_session()
        if isinstance(storage, RDBStorage):
            storage.engine.dispose()


def cut_torn_line(path: Path) -> None:
    """Take back the last line of a journal if it was cut short, so that the next one is not spoilt too."""
    if not path.exists():
        return
    lock = JournalFileSymlinkLock(str(path))
    lock.acquire()
    try:
        with path.open("rb+") as file:
            text = file.read()
            if text and not text.endswith(b"\n"):
                file.truncate(text.rfind(b"\n") + 1)
    finally:
        lock.release()


def put_back_dead(study: optuna.Study, storage: BaseStorage, workers: Workers) -> list[int]:
    """Put back the trials of dead workers; the numbers of those trials.

    Several workers may do this at once: a trial is marked as failed by one of them only, which then puts it
    back.
    """
    with experimental():
        optuna.storages.fail_stale_trials(study)
    back = []
    for trial in standing(study.get_trials(deepcopy=False)):
        if trial.state == TrialState.RUNNING and workers.is_dead(trial):
            try:
                storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            except UpdateFinishedTrialError:
                continue
        elif not (cut_off(trial) and _settled(trial)):
            continue
        if put_back(study, storage, trial):
            back.append(trial.number)
    return back


class PutBack(RetryHeartbeatStaleTrialCallback):
    """Optuna's, but that the new trial knows its job alone: nobody has signed it yet."""

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Add a trial that takes the place of this one."""
        # Deep: the list of numbers before it is appended to in place.
        fresh = copy.deepcopy(trial)
        fresh.user_attrs = {name: value for name, value in trial.user_attrs.items() if name == JOB}
        with experimental():
            super().__call__(study, fresh)


def put_back(study: optuna.Study, storage: BaseStorage, trial: FrozenTrial) -> bool:
    """Let a failed trial be done again, unless it has taken too many workers with it already."""
    if len(history(trial)) >= RETRIES:
        return False
    with experimental():
        PutBack(max_retry=RETRIES)(study, storage.get_trial(trial._trial_id))
    return True


@contextmanager
def experimental() -> Iterator[None]:
    """Where optuna calls a part of itself experimental, we know."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """What optuna would say of trials is said by us."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with experimental():
            yield
    finally:
        optuna.logging.set_verbosity(before)


def _settled(trial: FrozenTrial) -> bool:
    return trial.datetime_complete is not None and datetime.now() - trial.datetime_complete > _SETTLED
