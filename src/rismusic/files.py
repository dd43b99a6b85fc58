"""Reading of small files and writing of output files.

Every output file is written under a random temporary name in the same folder, which is created exclusively,
and gets its own name when it is complete. Temporary files of killed processes are removed by the next one
that writes to the folder.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import select
import socket
import stat
import sys
import time
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rismusic.errors import InputError
from rismusic.text import any_of

with warnings.catch_warnings():
    # Where the system has no locks, the library takes files for them; that is no news for each command.
    warnings.filterwarnings("ignore", "only soft file lock")
    from filelock import FileLock, Timeout

PLOT_ENDINGS = (".png", ".pdf", ".svg")
TABLE_ENDINGS = (".csv", ".json")
RECORDING_ENDINGS = (".h5", ".npz", ".mat")

SMALL_BYTES = 2**24
"""Largest size of a file that is read at once, unless the caller gives another one."""
_PART = ".rismusic-"
# A temporary file of another machine is removed when nothing was written to it for this long.
_ABANDONED_S = 7 * 24 * 3600.0
_LONGEST_NAME = 255
# Folders with temporary files of this process, or once with some.
_FOLDERS: set[Path] = set()
_UNKNOWN = "unknown"


def read_small(path: Path, *, limit: int = SMALL_BYTES) -> bytes:
    """Contents of a regular file of at most ``limit`` bytes. Opening a pipe or a device does not block.

    Raises:
        InputError: the file is missing, is a folder, a pipe or a device, is too large, or cannot be read.
    """
    with _opened(path) as (file, size):
        # Files of some file systems have no size; therefore not more than the limit is read. Python allocates
        # what it is asked to read, so no more is asked for than the file can hold.
        content = b"" if size > limit else file.read(min(limit, max(size, SMALL_BYTES)) + 1)
    size = max(size, len(content))
    if size > limit:
        raise InputError(str(path), f"is too large: at most {limit:,} bytes are read here, it has {size:,}")
    return content


def read_beginning(path: Path, size: int) -> bytes:
    """At most so many bytes of the beginning of a regular file."""
    with _opened(path) as (file, _):
        return file.read(size)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file and its size, opened so that neither opening nor reading waits for data."""
    flags = os.O_RDONLY | _flags("O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY", "O_BINARY")
    try:
        descriptor = os.open(path, flags)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise InputError(str(path), f"is {kind_of(found.st_mode)}, not a file")
            _check_ready(path, descriptor, found)
            with open(descriptor, "rb", closefd=False) as file:
                yield file, found.st_size
        finally:
            os.close(descriptor)
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise InputError(str(path), f"cannot be read: {failure(error).lower()}") from None


def read_text(path: Path, *, limit: int = SMALL_BYTES) -> str:
    """Contents of a small UTF-8 file; see :func:`read_small`."""
    try:
        return read_small(path, limit=limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(str(path), f"is not a text file: byte {error.start} is not valid UTF-8") from None


def check_regular(path: Path) -> None:
    """Check that a path is a regular file or does not exist. Pipes and devices are not opened."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise InputError(str(path), f"cannot be read: {failure(error).lower()}") from None
    if not stat.S_ISREG(found.st_mode):
        raise InputError(str(path), f"is {kind_of(found.st_mode)}, not a file")
    if found.st_size == 0:
        with _opened(path):
            pass


def _check_ready(path: Path, descriptor: int, found: os.stat_result) -> None:
    """Refuse a file that reading would wait for: files of the kernel, such as /proc/kmsg, have no size."""
    if found.st_size == 0 and hasattr(select, "poll"):
        waiting = select.poll()
        waiting.register(descriptor, select.POLLIN)
        if not waiting.poll(0):
            raise InputError(str(path), "holds nothing yet, and reading it would wait for data")


def check_not_link(path: Path) -> None:
    """Check that a file that is written in place is a regular file or does not exist."""
    if path.is_symlink():
        raise InputError(str(path), "is a symbolic link, which is not followed; remove it")
    check_regular(path)


def kind_of(mode: int) -> str:
    """What a file of this mode is, such as "a folder"."""
    kinds = {stat.S_IFREG: "a file", stat.S_IFDIR: "a folder", stat.S_IFLNK: "a symbolic link"}
    kinds |= {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def failure(error: Exception) -> str:
    """Reason of a failed operation on a file."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "no space left on the disk"
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def check_output(path: Path, *, overwrite: bool, endings: Collection[str] = ()) -> None:
    """Check that an output file can be written, before work starts.

    Raises:
        InputError: the extension is not in ``endings``; the folder is missing or cannot be written; or the
            path is a folder, a symbolic link, a pipe, a device, a read-only file, or an existing file without
            ``overwrite``.
    """
    try:
        obstacle = _obstacle(path, overwrite=overwrite, endings=endings)
        if obstacle is None:
            # Some folders allow new files by their permissions, and take none.
            probe, descriptor = _open_temporary(path)
            os.close(descriptor)
            probe.unlink()
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        obstacle = f"cannot be written: {failure(error)}"
    if obstacle is not None:
        raise InputError(str(path), obstacle)


def _obstacle(path: Path, *, overwrite: bool, endings: Collection[str]) -> str | None:
    """What keeps an output file from being written, as far as names and permissions tell."""
    if not path.name:
        return "is a folder; give the name of a file"
    if endings and path.suffix not in endings:
        return f"the file name must end in {any_of(endings)}"
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist"
    if len(os.fsencode(path.name)) > _LONGEST_NAME:
        return f"the file name is longer than {_LONGEST_NAME} bytes"
    with contextlib.suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            return "is a symbolic link; remove it, or give the name of the file that it points to"
        if not stat.S_ISREG(mode):
            return f"is {kind_of(mode)}; give the name of a file"
        if not overwrite:
            return "the file exists already; pass overwrite=True (--overwrite) to replace it"
        if not mode & 0o222:
            return "is read-only; make it writable or give another name"
    if not os.access(path.parent, os.W_OK | os.X_OK):
        return f"cannot be written: the folder {path.parent} is read-only for this user"
    return None


def is_vacant(folder: Path) -> bool:
    """Whether a folder is missing or empty. Temporary files of killed processes are removed first."""
    try:
        if folder.exists():
            if not folder.is_dir():
                return False
            sweep(folder)
            return not any(folder.iterdir())
        is_link = folder.is_symlink()
    except (OSError, ValueError) as error:
        raise InputError(str(folder), f"cannot be read: {failure(error).lower()}") from None
    if is_link:
        raise InputError(str(folder), "is a symbolic link to nothing; remove it")
    return True


def writable_by_others(path: Path) -> Path | None:
    """The part of a path that another user may change, and with it what is found there.

    A folder is not open if it is sticky and what is in it belongs to this user. A group of the same name as
    the owner has no other members. Links count with what they point to.

    Returns:
        The path itself or a folder above it; none if only this user and the system may write them. Always
        none on platforms without the permissions of POSIX.
    """
    if os.name != "posix":
        return None
    absolute, resolved = path.absolute(), path.resolve()
    system = {0, *_unmapped_users()}
    for one in (absolute, resolved, *absolute.parents, *resolved.parents):
        found = one.lstat()
        above = one not in (absolute, resolved)
        if found.st_uid not in ({os.geteuid(), *system} if above else {os.geteuid(), 0}):
            return one
        if stat.S_ISLNK(found.st_mode) or (above and found.st_mode & stat.S_ISVTX):
            continue
        if found.st_mode & stat.S_IWOTH or (found.st_mode & stat.S_IWGRP and not _has_own_group(one)):
            return one
    return None


def _has_own_group(path: Path) -> bool:
    """Whether the group of a file is that of its owner alone."""
    try:
        return path.group() == path.owner()
    except KeyError:  # numbers without a name
        return False


def _unmapped_users() -> set[int]:
    """The number of all users that a user namespace does not know; none outside of one."""
    try:
        whole = Path("/proc/self/uid_map").read_text("ascii").split() == ["0", "0", "4294967295"]
        return set() if whole else {int(Path("/proc/sys/kernel/overflowuid").read_text("ascii"))}
    except OSError:  # not Linux
        return set()


class OutputFile:
    """A file under a random temporary name, until it is complete.

    The temporary file is created exclusively, so that no link of that name is followed. It has the mode of
    the file that it replaces. Errors are those of :func:`check_output`.

    Attributes:
        temporary: the temporary name, in the same folder and with the same extension.
    """

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        check_output(path, overwrite=overwrite)
        self.path, self._overwrite = path, overwrite
        sweep(path.parent)
        suffix = path.suffix if len(os.fsencode(path.suffix)) <= 16 else ""
        self.temporary, descriptor = _open_temporary(path, suffix)
        try:
            with contextlib.suppress(FileNotFoundError):
                self.temporary.chmod(stat.S_IMODE(path.stat().st_mode))
        finally:
            os.close(descriptor)

    def commit(self) -> None:
        """Give the complete file its name; see :func:`publish`."""
        publish(self.temporary, self.path, overwrite=self._overwrite)

    def discard(self) -> None:
        """Remove the temporary file, if it is still there."""
        self.temporary.unlink(missing_ok=True)


def publish(temporary: Path, path: Path, *, overwrite: bool) -> None:
    """Give a complete file in the same folder its name. After a power cut it is the old or the new one.

    Raises:
        InputError: see :func:`check_output`; or another process has written the file meanwhile.
        OSError: the file cannot be written.
    """
    check_output(path, overwrite=overwrite)
    sync(temporary)
    if overwrite:
        temporary.replace(path)
    else:
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise InputError(
                str(path), "another process has written the file meanwhile; it was left as it is"
            ) from None
        except OSError:  # a file system without hard links
            check_output(path, overwrite=False)
            temporary.rename(path)
        else:
            temporary.unlink()
    if os.name == "posix":
        sync(path.parent)


@contextmanager
def replace_file(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """A temporary file beside ``path``; renamed to ``path`` on success, removed on failure.

    Raises:
        InputError: see :func:`check_output`; or the file cannot be written, as on a full disk.
    """
    output: OutputFile | None = None
    try:
        output = OutputFile(path, overwrite=overwrite)
        yield output.temporary
        output.commit()
    except OSError as error:
        raise InputError(str(path), f"cannot be written: {failure(error)}") from error
    finally:
        if output is not None:
            output.discard()


def write_text(path: Path, text: str, *, overwrite: bool) -> None:
    """Write a text file as UTF-8; see :func:`replace_file`."""
    with replace_file(path, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert errors of writing a file to :class:`~rismusic.errors.InputError`."""
    try:
        yield
    except OSError as error:
        raise InputError(str(path), f"cannot write: {failure(error)}") from error


@contextmanager
def locked(path: Path, field: str, sentence: str) -> Iterator[None]:
    """Hold a lock file with the number of this process. It ends with the process, however that ends.

    Raises:
        InputError: another process holds the lock (``sentence``), or the file is something else or cannot be
            written.
    """
    check_not_link(path)
    if path.exists() and path.stat().st_size and _holder(path) == _UNKNOWN:
        raise InputError(str(path), "is not a lock file; it was left as it is. Remove it")
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(field, f"{sentence} (process {_holder(path)})") from None
    except OSError as error:
        raise InputError(str(path), f"cannot write: {failure(error)}") from error
    try:
        # Without locks of the operating system the library writes the number itself.
        if _holder(path) != str(os.getpid()):
            with writing(path):
                path.write_text(f"{os.getpid()}\n", encoding="ascii")
        yield
    finally:
        lock.release()


def _holder(path: Path) -> str:
    """Number of the process in a lock file."""
    try:
        text = read_small(path, limit=1000).decode("ascii", "replace").split()
    except InputError:  # a file that the system does not let others read
        text = []
    return text[0] if text and text[0].isdecimal() else _UNKNOWN


def sweep(folder: Path) -> None:
    """Remove the temporary files of processes that were killed.

    Those of this machine are removed if their process has ended; those of others after a week without a
    change, since the folder may be shared.
    """
    own = _owned().rpartition("-")[0].rpartition("-")[0]
    try:
        entries = list(os.scandir(folder))
    except PermissionError:  # a folder that can be written but not listed
        return
    for found in entries:
        if not found.name.startswith(_PART) or ".part" not in found.name:
            continue
        host, _, rest = found.name.removeprefix(_PART).partition("-")
        pid = rest.partition("-")[0]
        # Another process may remove the file at the same time, and one of another user cannot be removed.
        with contextlib.suppress(FileNotFoundError, PermissionError):
            ended = f"{_PART}{host}" == own and pid.isdecimal() and not is_running(int(pid))
            age = time.time() - found.stat(follow_symlinks=False).st_mtime
            if ended or age > _ABANDONED_S:
                Path(found).unlink()


def remove_own() -> None:
    """Remove all temporary files of this process after an interruption.

    It may have come between the creation of a file and the first line that would remove it. Databases have
    files beside them, which a database that is not closed leaves.
    """
    for folder in _FOLDERS:
        with contextlib.suppress(OSError):
            for found in os.scandir(folder):
                if found.name.startswith(_owned()):
                    Path(found).unlink(missing_ok=True)


def sweep_tree(folder: Path) -> None:
    """Remove the temporary files of killed processes in a folder and all folders below; see :func:`sweep`."""
    for found in {path.parent for path in folder.rglob(f"{_PART}*")}:
        sweep(found)


def is_running(pid: int) -> bool:
    """Whether a process of this machine is running; taken to be so where the system cannot tell."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _owned() -> str:
    """Start of the names of this process's temporary files: machine and process."""
    host = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
    return f"{_PART}{host}-{os.getpid()}-"


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY if sys.platform != "win32" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open_temporary(path: Path, suffix: str = "") -> tuple[Path, int]:
    """A new temporary file of this process beside a path, opened exclusively and not through a link."""
    temporary = path.with_name(f"{_owned()}{secrets.token_hex(8)}.part{suffix}")
    _FOLDERS.add(path.parent.absolute())
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _flags("O_NOFOLLOW", "O_CLOEXEC")
    return temporary, os.open(temporary, flags, 0o666)


def _flags(*names: str) -> int:
    """Flags of ``os.open`` that this platform has."""
    return sum(getattr(os, name, 0) for name in names)
