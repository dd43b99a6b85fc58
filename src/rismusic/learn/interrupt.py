"""Ctrl-C between two steps, never within one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def remembered() -> Iterator[Callable[[], bool]]:
    """Remember the first Ctrl-C (or SIGTERM) instead of stopping there; a second one acts at once.

    Yields:
        Whether there has been one. Outside the main thread, where nothing can be caught, there never is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    seen = False
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def remember(_: int, __: FrameType | None) -> None:
        nonlocal seen
        seen = True
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, remember)
    try:
        yield lambda: seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
