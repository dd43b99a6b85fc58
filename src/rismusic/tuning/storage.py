"""Where a study is stored: an SQLite file on one machine, or a database server for several machines.

Both have Optuna's heartbeat: a trial whose worker has been silent for twice the interval has failed, and
Optuna queues it again.
"""

from __future__ import annotations

import copy
import logging
import sqlite3
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import cache
from json import JSONDecodeError
from pathlib import Path
from typing import Literal

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial
from sqlalchemy import URL, Float, Integer, create_engine, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from rismusic.errors import InputError
from rismusic.files import check_regular, failure, replace_file, writing
from rismusic.text import redact

DATABASE = "study.db"
JOB = "job"
"""Attribute of a trial: the name of the job that it does."""
RETRIES = 2
"""How many times a trial whose worker was killed is queued again."""
# Tables of an Optuna database.
_TABLES = {"studies", "trials", "version_info"}
# What a journal of SQLite begins with: a mark, or zeros as long as it is not complete.
_JOURNALS = {
    "-journal": (bytes.fromhex("d9d505f920a163d7"), bytes(8)),
    "-wal": (bytes.fromhex("377f0682"), bytes.fromhex("377f0683"), bytes(8)),
}
# Seconds to wait for another process that is writing to an SQLite file.
_LOCKED_S = 60
# A database without studies, with studies, or with studies and a change that was not completed.
State = Literal["new", "studies", "interrupted"]


def create_storage(
    storage: str | None, folder: Path, begin: Callable[[RDBStorage], object], *, heartbeat_s: int
) -> bool:
    """Create the SQLite file of a study, which ``begin`` puts into it, if the file does not exist.

    The file appears when it is complete. Return whether it was created, never for a database server; see
    :func:`open_storage`.
    """
    url = _url(storage, folder)
    path = _sqlite_path(url)
    if path is None:
        return False
    check_sqlite(path)
    if path.exists():
        return False
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replace_file(path, overwrite=False) as temporary:
            place = URL.create("sqlite", database=str(temporary))
            with _opened(place, heartbeat_s=heartbeat_s, shown=url) as new:
                begin(new)
    except InputError:
        if path.exists():  # another worker has created it meanwhile
            return False
        raise
    return True


@contextmanager
def open_storage(
    storage: str | None,
    folder: Path,
    *,
    heartbeat_s: int,
    create: bool = True,
    check: Callable[[RDBStorage], object] = lambda _: None,
) -> Iterator[RDBStorage]:
    """Open the storage of a study, and close its connections at the end.

    ``storage`` is the URL of a database, or an SQLite file; ``study.db`` in ``folder`` if none. An existing
    database is opened for writing only after it has been read and is known to hold Optuna studies that pass
    ``check``, which raises if they are not those that are wanted. It is not called if a process was killed
    while it wrote to the file, until that is undone. Without studies, it is filled if ``create`` is on.
    """
    url = _url(storage, folder)
    path = _sqlite_path(url)
    found = _state_of_server(url) if path is None else check_sqlite(path)
    if found == "new" and not create:
        missing = path is not None and not path.exists()
        reason = "does not exist" if missing else "holds none"
        raise InputError("storage", f"there is no study to resume: {path or _shown(url)} {reason}")
    if found == "studies":
        with _opened(url, heartbeat_s=heartbeat_s, read_only=True) as opened:
            check(opened)
    if path is not None:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
    with _opened(url, heartbeat_s=heartbeat_s) as opened:
        yield opened


def _state_of_server(url: URL) -> State:
    """What the database of a server holds."""
    try:
        engine = create_engine(url)
        try:
            return "studies" if set(inspect(engine).get_table_names()) >= _TABLES else "new"
        finally:
            engine.dispose()
    except (ImportError, OSError, RuntimeError, SQLAlchemyError) as error:
        raise InputError("storage", _failure(url, error)) from None


def _url(storage: str | None, folder: Path) -> URL:
    try:
        str(folder if storage is None else storage).encode()
    except UnicodeEncodeError:
        raise InputError("storage", "the name of the database or its folder is not valid UTF-8") from None
    if storage is None or "://" not in storage:
        return URL.create("sqlite", database=str(folder / DATABASE if storage is None else storage))
    try:
        url = make_url(storage)
    except (ArgumentError, ValueError):
        raise InputError("storage", f"{redact(storage)} is not a valid database URL") from None
    if url.drivername == "postgresql":  # else SQLAlchemy looks for psycopg2
        url = url.set(drivername="postgresql+psycopg")
    return url


def shown(storage: str | None, folder: Path) -> str:
    """The file of a storage, or its URL without the password, for messages; arguments as above."""
    url = _url(storage, folder)
    return str(_sqlite_path(url) or _shown(url))


def _sqlite_path(url: URL) -> Path | None:
    """The SQLite file of a URL; none for a database server."""
    if url.get_backend_name() != "sqlite":
        return None
    name = str(url.database or "")
    if name in ("", ":memory:") or name.startswith("file:") or url.query:
        raise InputError(
            "storage", "an SQLite database must be a file, sqlite:///PATH without further parameters"
        )
    return Path(name)


@contextmanager
def _opened(
    url: URL, *, heartbeat_s: int, shown: URL | None = None, read_only: bool = False
) -> Iterator[RDBStorage]:
    """Connect to a database; its errors are converted, with the URL ``shown`` in place of ``url``."""
    shown = shown or url
    options: dict[str, object] = {}
    if url.get_backend_name() == "sqlite":
        options = {"connect_args": {"timeout": _LOCKED_S}}
        if read_only:
            place = Path(str(url.database)).resolve().as_uri()
            url = url.set(database=place, query={"mode": "ro", "uri": "true"})
    elif read_only:
        options = {"execution_options": {"postgresql_readonly": True}}
    # Optuna fills in a template.
    template = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    try:
        with experimental():
            opened = RDBStorage(
                template,
                engine_kwargs=options,
                skip_table_creation=read_only,
                heartbeat_interval=heartbeat_s,
                grace_period=2 * heartbeat_s,
                heartbeat_stale_trial_callback=Requeue(max_retry=RETRIES),
            )
    except (ImportError, OSError, RuntimeError, SQLAlchemyError, StorageInternalError) as error:
        cause = error.__cause__ or error
        if read_only and "readonly" in str(cause):  # Optuna writes the version where there is none
            damaged = "is damaged: the version of its tables is missing"
            raise InputError("storage", f"the database {_shown(shown)} {damaged}") from None
        raise InputError("storage", _failure(shown, cause)) from None
    try:
        _check_columns(opened, shown)
        _read_all(opened, shown)
        yield opened
    except (StorageInternalError, SQLAlchemyError, JSONDecodeError) as error:
        raise InputError("storage", _failure(shown, error.__cause__ or error)) from error
    finally:
        opened.remove_session()
        opened.engine.dispose()


def _check_columns(opened: RDBStorage, shown: URL) -> None:
    """Compare the tables with those of a new database.

    Optuna reads them where it needs them: a view in place of a table fails at the end of the first trial, and
    so does a text in a column of numbers or a fraction in one of integers, which SQLite stores.
    """
    found, sqlite = inspect(opened.engine), opened.engine.dialect.name == "sqlite"
    tables = set(found.get_table_names())
    for table, wanted in _columns_of_new().items():
        columns = {one["name"] for one in found.get_columns(table)} if table in tables else set()
        for name, number in wanted.items():
            damage = ""
            if name not in columns:
                damage = f"table {table} has no column {name}" if columns else f"no table {table}"
            elif sqlite and number:
                others = "'text', 'blob', 'real'" if number == "an integer" else "'text', 'blob'"
                words = f"SELECT 1 FROM {table} WHERE typeof({name}) IN ({others}) LIMIT 1"
                with opened.engine.connect() as connection:
                    if connection.execute(text(words)).first():
                        damage = f"column {name} of table {table} has a value that is not {number}"
            if damage:
                raise InputError("storage", f"the database {_shown(shown)} is damaged: {damage}")


@cache
def _columns_of_new() -> dict[str, dict[str, str]]:
    """Tables of a new database with their columns, and which numbers these hold; empty for other values."""

    def number(kind: object) -> str:
        return "an integer" if isinstance(kind, Integer) else "a number" if isinstance(kind, Float) else ""

    with experimental():
        new = RDBStorage("sqlite://")
    try:
        schema = inspect(new.engine)
        return {
            table: {one["name"]: number(one["type"]) for one in schema.get_columns(table)}
            for table in schema.get_table_names()
        }
    finally:
        new.remove_session()
        new.engine.dispose()


def _read_all(opened: RDBStorage, shown: URL) -> None:
    """Read and copy all studies and trials once, as Optuna does later."""
    try:
        for study in opened.get_all_studies():
            copy.deepcopy(study.user_attrs)
            sorted(trial.number for trial in opened.get_all_trials(study._study_id))
    except (StorageInternalError, SQLAlchemyError):
        raise
    except Exception as error:  # Optuna raises nearly everything on damaged values
        damaged = f"the database {_shown(shown)} is damaged: a value of a study or a trial cannot be read"
        raise InputError("storage", damaged) from error


class Requeue(RetryHeartbeatStaleTrialCallback):
    """Queue a trial again with the same parameters and the same job."""

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Add a waiting trial that repeats this one."""
        again = copy.deepcopy(trial)
        # Not the worker and the epochs of the old one. The property returns a copy, so the whole is replaced.
        again.user_attrs = {name: value for name, value in trial.user_attrs.items() if name == JOB}
        with experimental():
            super().__call__(study, again)


def check_sqlite(path: Path) -> State:
    """What a file holds that can be the database of a study, by reading alone."""
    check_regular(path)
    if not path.exists():
        return "new"
    interrupted = False
    other = (
        "is not a database of a study. It was left as it is; give a new file, or one that rismusic tune wrote"
    )
    try:
        with path.open("rb") as file:
            head = file.read(16)
        if not head:
            return "new"
        if head != b"SQLite format 3\0":
            raise InputError(str(path), other)
        for suffix, beginnings in _JOURNALS.items():
            _check_journal(Path(f"{path}{suffix}"), beginnings)
        try:
            tables = _tables(path, "mode=ro")
        except sqlite3.OperationalError:
            # A process was killed while it was writing, and to undo that is to write. The tables were there.
            tables, interrupted = _tables(path, "immutable=1"), True
    except (sqlite3.Error, UnicodeError):  # a name or a message with damaged characters
        raise InputError(str(path), other) from None
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {failure(error)}") from None
    if tables and not tables >= _TABLES:
        raise InputError(str(path), other)
    return "new" if not tables else "interrupted" if interrupted else "studies"


def _check_journal(path: Path, beginnings: tuple[bytes, ...]) -> None:
    """Check that SQLite wrote the file that it would take for its journal and delete."""
    try:
        with path.open("rb") as file:
            found = file.read(8)
    except FileNotFoundError:  # usually; another worker's may be gone again
        return
    if not any(found.startswith(start) or start.startswith(found) for start in beginnings):
        raise InputError(
            str(path),
            "has the name of a journal of SQLite and is none. It was left as it is; move it elsewhere, since "
            "SQLite would delete it",
        )


def _tables(path: Path, how: str) -> set[str]:
    """Names of the tables in an SQLite file, opened with these parameters."""
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?{how}", uri=True)) as connection:
        rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    return {name for (name,) in rows}


def _failure(url: URL, error: BaseException) -> str:
    # What the database says, without SQLAlchemy's name of its error.
    error = getattr(error, "orig", None) or error
    cause = (str(error).splitlines() or [""])[0] or type(error).__name__
    if url.password:
        cause = cause.replace(str(url.password), "***")
    return f"cannot use the database {_shown(url)}: {redact(cause)}"


def _shown(url: URL) -> str:
    return redact(url.render_as_string(hide_password=True))


@contextmanager
def experimental() -> Iterator[None]:
    """Ignore the warnings of Optuna's experimental features, which are used on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Optuna's messages about trials, since this package prints its own.

    SQLAlchemy's about connections, too: after Ctrl-C within a query it prints that it could not close one.
    """
    before, pool = optuna.logging.get_verbosity(), logging.getLogger("sqlalchemy.pool")
    level = pool.level
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pool.setLevel(logging.CRITICAL)
    try:
        with experimental():
            yield
    finally:
        optuna.logging.set_verbosity(before)
        pool.setLevel(level)
