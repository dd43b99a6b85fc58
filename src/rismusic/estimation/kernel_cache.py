"""Compiled functions, kept on disk by Numba and called in threads.

Problems of different scenes run in threads, as many as torch uses. (Numba's own ``prange`` cannot run in a
forked process, or be called from two threads, with every threading layer.) The results do not depend on their
number.

To load such a file is to run the code in it. It is loaded only from a folder that no other user may write.
"""

from __future__ import annotations

import inspect
import logging
import math
import os
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np
import torch
from filelock import FileLock

from rismusic.files import writable_by_others

_LOG = logging.getLogger("rismusic.locate")
_PATIENCE_S = 120  # other processes that compile the same function are waited for so long, in seconds
_ANNOUNCED_S = 3.0  # compiling that takes longer than this, in seconds, is announced
# Fewer problems than this are not shared among threads; the others in this many parts for each thread, since
# they take different times.
_LEAST_PARTED, _PARTS = 4, 4

SETTINGS: dict[str, Any] = {
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
    "error_model": "numpy",
    "nogil": True,
}
"""Sums may be reordered for vector instructions, but NaN and infinity keep their meaning."""

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function) -> _Function:
    """A function that is compiled when it is first called, free of the type checks of the tests."""
    return numba.njit(inspect.unwrap(function), **SETTINGS, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def call(function: Callable[..., None], count: int, arguments: tuple[object, ...]) -> None:
    """Compile a function, or load it, and call it for ``count`` problems in threads.

    It is called as ``function(first, last, *arguments)`` for the problems ``first`` to ``last`` - 1.
    Arguments are arrays that Numba knows, numbers, and tuples of these.
    """
    ready = _entry(function).for_arguments((0, count, *arguments))
    threads = torch.get_num_threads()
    if threads <= 1 or count < _LEAST_PARTED:
        ready(0, count, *arguments)
        return
    step = math.ceil(count / (_PARTS * threads))
    with ThreadPoolExecutor(threads) as pool:
        parts = [
            pool.submit(ready, first, min(first + step, count), *arguments) for first in range(0, count, step)
        ]
        for part in parts:
            part.result()


@lru_cache
def _entry(function: Callable[..., None]) -> CompiledFunction:
    """A compiled function to call from Python, kept on disk if a folder for it can be written."""
    return CompiledFunction(inspect.unwrap(function), SETTINGS)


class CompiledFunction:
    """A function that is compiled for the types of its arguments, or loaded if that was done before."""

    def __init__(self, function: Callable[..., None], settings: dict[str, Any]) -> None:
        self._function, self._settings = function, settings
        self._plain = numba.njit(function, **settings)
        self._kept = self._open()
        self._ready: dict[object, Callable[..., None]] = {}

    def for_arguments(self, arguments: tuple[object, ...]) -> Callable[..., None]:
        """The machine code for arguments of these types."""
        # Numba takes a millisecond to name the types of many arrays.
        kind = _kind(arguments)
        if kind not in self._ready:
            self._ready[kind] = self._for_types(tuple(map(numba.typeof, arguments)))
        return self._ready[kind]

    def _for_types(self, types: tuple[Any, ...]) -> Callable[..., None]:
        announcement = threading.Timer(_ANNOUNCED_S, _announce)
        announcement.daemon = True
        announcement.start()
        try:
            if self._load(types):
                return self._kept
            self._plain.compile(types)
            return self._plain
        finally:
            announcement.cancel()

    def _open(self) -> Any:
        """The function with a cache on disk; none if no folder for it can be written or trusted."""
        try:
            kept = numba.njit(self._function, **self._settings, cache=True)
        except RuntimeError:  # no such folder
            return None
        other = untrusted(Path(kept.stats.cache_path), Path(self._function.__code__.co_filename))
        if other is None:
            return kept
        _LOG.warning(
            "compiled fits are not kept, so that each process compiles them: other users may write %s, and "
            "compiled fits that are loaded are run",
            other,
        )
        return None

    def _load(self, types: tuple[Any, ...]) -> bool:
        """Load or compile and keep the function; whether that was possible."""
        if self._kept is None or types in self._kept.overloads:
            return self._kept is not None
        folder = Path(self._kept.stats.cache_path)
        try:
            with _alone(folder):
                try:
                    self._kept.compile(types)
                except OSError:
                    raise
                except Exception as error:
                    # Damaged files raise nearly everything. Other errors come again with the compilation.
                    _LOG.warning(
                        "compiled fits in %s cannot be loaded and are compiled again (%r)", folder, error
                    )
                    for path in folder.glob(f"*.{self._function.__qualname__}-*.nb[ic]"):
                        path.unlink(missing_ok=True)
                    self._kept = self._open()
                    if self._kept is None:
                        return False
                    self._kept.compile(types)
        except OSError as error:  # a full disk, a folder that is gone, or one without locks
            _LOG.info("compiled fits are not kept on disk: %s", error)
        return types in self._kept.overloads


@lru_cache
def _announce() -> None:
    """Say once in a process what takes so long."""
    _LOG.warning("the fits are compiled when they are first used, which takes about a minute")


def _kind(value: Any) -> object:
    """What Numba derives the type of an argument from; arrays are of the machine's byte order."""
    kind = type(value)
    if kind is np.ndarray:
        return value.dtype.num, value.ndim, value.flags.num
    return tuple([_kind(part) for part in value]) if kind is tuple else kind


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Exclude other processes that use the same cache.

    Numba numbers its files by an index that two processes may read at the same time. And what one of them
    compiles, the others need not.
    """
    # A lock of the operating system leaves its file behind. One without the system would take it for held.
    with FileLock(folder / f"rismusic.{FileLock.__name__}", timeout=_PATIENCE_S):
        for left in folder.glob("*.nb[ic].tmp.*"):  # of killed processes
            left.unlink(missing_ok=True)
        yield


def untrusted(folder: Path, source: Path) -> Path | None:
    """What other users may write of a cache, so that its code must not be run; none if there is nothing.

    Beside the source, the cache may be as open as the folder of the source: who can write there can change
    the source as well.
    """
    if os.name != "posix":
        return None
    if folder.parent != source.parent:
        parts = [folder, *folder.glob("*.nb[ic]")]
        return next((other for path in parts if (other := writable_by_others(path))), None)
    package = source.parent.stat()
    for path in (folder, *folder.glob("*.nb[ic]")):
        found = path.lstat()
        group = stat.S_IWGRP if found.st_gid == package.st_gid else 0
        allowed = package.st_mode & (stat.S_IWOTH | group)
        own = found.st_uid in (0, os.geteuid(), package.st_uid)
        if not own or stat.S_ISLNK(found.st_mode) or found.st_mode & 0o022 & ~allowed:
            return path
    return None
