"""A temporary PostgreSQL server, behind a socket in a temporary folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class NoServerError(RuntimeError):
    """No server could be started."""


def binaries() -> Path:
    """The folder of the server's programs.

    Raises:
        NoServerError: PostgreSQL is not installed.
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
    """Start a server with an empty database, yield its URL, and stop it at the end.

    Raises:
        NoServerError: no server is installed, or it cannot be started.
    """
    place = binaries()
    prefix: list[str] = []
    # The server refuses to run as root.
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            raise NoServerError("PostgreSQL does not run as root, and setpriv is not installed")
        prefix = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    # A short path, since the name of a socket has at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    folder.chmod(0o777)
    data = folder / "data"

    def run(program: str, *arguments: str) -> None:
        command = [*prefix, str(place / program), *arguments]
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
