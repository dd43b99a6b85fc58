"""Interruptions: SIGTERM and SIGHUP count as Ctrl-C, wait until results are stored, and none is lost."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import CodeType, FrameType

INTERRUPTED = 130
"""Exit code of a command that was interrupted."""

_POLL_S = 0.01  # seconds between two looks at the main thread, before an interruption is repeated
_arrived = threading.Event()  # a signal has interrupted the command that is running


def _interrupt(_: int, __: FrameType | None) -> None:
    """The handler of signals while a command runs: Ctrl-C that is remembered."""
    _arrived.set()
    raise KeyboardInterrupt


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Treat SIGTERM, and SIGHUP of a closed terminal, as Ctrl-C. Signals that are ignored stay ignored."""
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    before = {number: signal.getsignal(number) for number in numbers}
    before = {
        number: handler
        for number, handler in before.items()
        if handler in (signal.SIG_DFL, signal.default_int_handler)
    }
    if before:  # else another one of these contexts is around this one
        _arrived.clear()
    for number in before:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def interrupts_held() -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Hold Ctrl-C back while results are stored, so that files and what is known of them agree.

    The interrupt is raised at the end. A second one is raised at once.

    Yields:
        A context manager in which interrupts are raised as usual. Outside the main thread, which alone gets
        signals, nothing is held.
    """
    if threading.current_thread() is not threading.main_thread():
        yield nullcontext
        return
    # SIGTERM is among them in commands, which treat it as Ctrl-C.
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    interrupting = (signal.default_int_handler, _interrupt)
    held = {number: handler for number, handler in handlers.items() if handler in interrupting}
    received: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        if received:
            _interrupt(number, frame)
        received.append(number)

    def restore() -> None:
        for number, handler in held.items():
            signal.signal(number, handler)

    def handle() -> None:
        for number in held:
            signal.signal(number, hold)

    @contextmanager
    def released() -> Iterator[None]:
        restore()
        try:
            if received:
                raise KeyboardInterrupt
            yield
        finally:
            handle()

    handle()
    try:
        yield released
    finally:
        restore()
    if received:
        raise KeyboardInterrupt


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Record the first SIGINT or SIGTERM instead of raising; a second one takes effect at once.

    Yields:
        A function that returns whether a signal has arrived. Outside the main thread, where no handler can be
        installed, it always returns False.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    received = False
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore_handlers() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def on_signal(_: int, __: FrameType | None) -> None:
        nonlocal received
        received = True
        restore_handlers()

    for number in handlers:
        signal.signal(number, on_signal)
    try:
        yield lambda: received
    finally:
        restore_handlers()


@contextmanager
def no_interrupt_is_lost() -> Iterator[None]:
    """Interrupt again after C code has dropped a KeyboardInterrupt.

    Python prints an exception in a callback of a C library and goes on. So does the import of NumPy's C API,
    which then reports a missing module. Others, such as pydantic, raise an error of their own in its place.

    Raises:
        KeyboardInterrupt: in place of any error that follows an interruption.
    """
    hooks = sys.excepthook, sys.unraisablehook
    dropped, lock = threading.Event(), threading.Lock()
    ended = False

    def repeat() -> None:
        pause = threading.Event()
        # An exception in a hook would be lost, too, and a busy machine may stay in one for long.
        while not pause.wait(_POLL_S):
            with lock:
                if ended:
                    return
                if not _main_thread_runs(codes):
                    dropped.clear()
                    _interrupt_main()
                    return

    def note() -> None:
        if not dropped.is_set():
            dropped.set()
            _arrived.set()
            threading.Thread(target=repeat, daemon=True).start()

    sys.excepthook = lambda kind, error, trace: (
        note() if issubclass(kind, KeyboardInterrupt) else hooks[0](kind, error, trace)
    )
    sys.unraisablehook = lambda found: (
        note() if issubclass(found.exc_type, KeyboardInterrupt) else hooks[1](found)
    )
    codes = {sys.excepthook.__code__, sys.unraisablehook.__code__}
    try:
        yield
    except Exception as error:
        if _arrived.is_set():
            raise KeyboardInterrupt from error
        raise
    finally:
        try:
            with lock:
                ended = True
        finally:
            sys.excepthook, sys.unraisablehook = hooks


def _main_thread_runs(codes: Collection[CodeType]) -> bool:
    """Whether a function with one of these codes is being called in the main thread."""
    frame: FrameType | None = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if frame.f_code in codes:
            return True
        frame = frame.f_back
    return False


def _interrupt_main() -> None:
    """Send the main thread a signal that is handled, so that it leaves a system call as well."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if callable(signal.getsignal(number)):
            if hasattr(signal, "pthread_kill"):
                signal.pthread_kill(threading.main_thread().ident or 0, number)
            else:
                _thread.interrupt_main(number)
            return
