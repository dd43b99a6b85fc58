"""``python -m rismusic``, and the script ``rismusic``."""

import atexit
import gc
import os
import signal
import sys
import threading

from rismusic.interruption import INTERRUPTED, no_interrupt_is_lost, terminated_as_interrupted


def main() -> int:
    """Run the command line. An interruption while it is still being loaded leaves no stack trace."""
    # Importing torch makes many objects, none of them garbage: collections would take an eighth of its time.
    gc.set_threshold(100_000)
    try:
        with terminated_as_interrupted(), no_interrupt_is_lost():
            from rismusic.cli import main as run

            code = run()
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        code = INTERRUPTED
    finally:
        # The work is done. An interruption while Python ends would stop nothing, and show a traceback.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
        gc.freeze()  # nor does Python look for garbage among them when it ends, which takes 0.7 s
    if code == INTERRUPTED or (code and threading.active_count() > 1):
        # Threads of a command that was interrupted may compute for long, and Python would wait for them. It
        # would also end by SIGINT, whatever the signal was, if that came in code that exec() ran.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
