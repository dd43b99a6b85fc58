"""A PostgreSQL server of one's own for a while, behind a socket in a temporary folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class NoServerError(RuntimeError):
    """Why there is none."""


def binaries() -> Path:
    """Where the server is installed.

    Raises:
        NoServerError: nowhere.
    """
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).parent
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not places:
        raise NoServerError("no PostgreSQL server is installed (Debian: apt-get install postgresql)")
    return places[-1].parent


@contextmanager
def postgres_server() -> Iterator[str]:
    """The URL of an empty database.

    Raises:
        NoServerError: no server is installed, or none that could be started.
    """
    place = binaries()
    before: list[str] = []
    # The server refuses to run as root.
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            raise NoServerError("PostgreSQL does not run as root, and there is no setpriv")
        before = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    # A short path: the name of a socket has 107 letters at most.
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    folder.chmod(0o777)
    data = folder / "data"

    def run(program: str, *arguments: str) -> None:
        command = [*before, str(place / program), *arguments]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)

    try:
        run("initdb", "-D", str(data), "-A", "trust", "-U", "tuner", "--no-sync")
        options = f"-k {folder} -c listen_addresses= -c fsync=off"
        run("pg_ctl", "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield f"postgresql://tuner@/postgres?host={folder}"
        finally:
            run("pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder)
