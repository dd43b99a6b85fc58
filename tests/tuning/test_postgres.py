"""Two workers on one PostgreSQL server, one of them killed in mid-trial: no trial is lost, none is double."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from rismusic.tuning.ledger import history, standing
from rismusic.tuning.storage import closing, open_storage, quiet

HERE = Path(__file__).parent
TRIALS = 8

WORKER = """
import sys, time
sys.path.insert(0, sys.argv[1])
import optuna
from study_case import loop, signed
from rismusic.tuning.storage import closing, open_storage, quiet
from pathlib import Path

storage, workers = open_storage(sys.argv[2], Path("."), heartbeat_s=1)
stays = sys.argv[3] == "stays"
def value(number):
    print("trial", number, flush=True)
    time.sleep(60 if stays else 0.1)
    return float(number)
with quiet(), closing(storage), workers.at_work():
    study = optuna.create_study(storage=storage, study_name="s", load_if_exists=True)
    loop(storage, workers).run(study, signed(workers, value), int(sys.argv[4]))
"""


def binaries() -> Path | None:
    """Where the server is installed."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).parent
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return places[-1].parent if places else None


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of a database on a server of its own, behind a socket in a temporary folder."""
    place = binaries()
    if place is None:
        pytest.skip("no PostgreSQL server is installed (Debian: apt-get install postgresql)")
    # The server refuses to run as root.
    before = []
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("PostgreSQL does not run as root, and there is no setpriv to become somebody else")
        before = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    # A short path: the name of a socket has 107 letters at most.
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    folder.chmod(0o777)
    data = folder / "data"

    def run(program: str, *arguments: str) -> None:
        subprocess.run(
            [*before, place / program, *arguments], check=True, cwd=folder, stdout=subprocess.DEVNULL
        )

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


def start(server: str, kind: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(HERE), server, kind, str(TRIALS)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_workers_one_killed(server, tmp_path):
    victim = start(server, "stays")
    assert victim.stdout is not None
    held = int(victim.stdout.readline().split()[1])
    other = start(server, "goes")
    # In mid-trial, while the other one is at work.
    assert other.stdout is not None
    seen = [int(other.stdout.readline().split()[1])]
    victim.kill()
    victim.wait()
    victim.stdout.close()
    rest, _ = other.communicate(timeout=120)
    assert other.returncode == 0
    seen += [int(line.split()[1]) for line in rest.splitlines() if line.startswith("trial")]
    storage, _ = open_storage(server, tmp_path, heartbeat_s=1)
    with quiet(), closing(storage):
        trials = optuna.load_study(storage=storage, study_name="s").get_trials()
    done = standing(trials)
    assert [trial.state for trial in done] == [TrialState.COMPLETE] * TRIALS
    assert len(trials) == TRIALS + 1
    assert trials[held].state == TrialState.FAIL
    (back,) = (trial for trial in done if history(trial))
    assert history(back) == [held]
    assert back.params == trials[held].params
    # Each was done once, by the one that lived.
    assert sorted(seen) == sorted(trial.number for trial in done)
