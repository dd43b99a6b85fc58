"""Two workers on one PostgreSQL server, one of which is killed: no trial is lost, and none counts twice."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.study import StudyDirection
from optuna.trial import TrialState

from rismusic.errors import InputError
from rismusic.tuning.storage import open_storage, quiet
from rismusic.tuning.study import tune
from rismusic.tuning.worker import current, history

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from postgres_server import NoServerError, postgres_server

HERE = Path(__file__).parent
TRIALS = 8

WORKER = """
import sys, time
sys.path.insert(0, sys.argv[1])
import optuna
from study_case import jobs, objective, worker
from rismusic.tuning.storage import open_storage, quiet
from pathlib import Path

stays = sys.argv[3] == "stays"
def value(number):
    print("trial", number, flush=True)
    time.sleep(60 if stays else 0.1)
    return float(number)
with quiet(), open_storage(sys.argv[2], Path("."), heartbeat_s=1) as storage:
    study = optuna.create_study(storage=storage, study_name="s", load_if_exists=True)
    worker(storage).run(study, objective(value), jobs(int(sys.argv[4])))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ExitStack() as stack:
        try:
            url = stack.enter_context(postgres_server())
        except NoServerError as error:
            pytest.skip(str(error))
        yield url


def test_a_database_that_is_not_resumed_is_left_as_it_is(server, tmp_path):
    def tables() -> set[str]:
        engine = sqlalchemy.create_engine(server.replace("postgresql:", "postgresql+psycopg:"))
        found = set(sqlalchemy.inspect(engine).get_table_names())
        engine.dispose()
        return found

    assert tables() == set()
    with pytest.raises(InputError, match=r"there is no study to resume: postgresql.* holds none"):
        tune(out=tmp_path, storage=server, resume=True)
    assert tables() == set()

    def write(storage):
        storage.create_new_study([StudyDirection.MINIMIZE], "not ours")

    with quiet(), open_storage(server, tmp_path, heartbeat_s=1) as storage:
        assert {"studies", "trials"} <= tables()
        storage.create_new_study([StudyDirection.MINIMIZE], "theirs")
    with pytest.raises(InputError, match="there is no study 'tune' to resume; the storage has: theirs"):
        tune(out=tmp_path, storage=server, resume=True)
    with (
        pytest.raises(InputError, match="read-only transaction"),
        open_storage(server, tmp_path, heartbeat_s=1, check=write),
    ):
        pass


def start(server: str, kind: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(HERE), server, kind, str(TRIALS)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_workers_one_killed(server, tmp_path):
    victim = start(server, "stays")
    assert victim.stdout is not None
    held = int(victim.stdout.readline().split()[1])
    other = start(server, "goes")
    # During a trial, while the other one is at work.
    assert other.stdout is not None
    seen = [int(other.stdout.readline().split()[1])]
    victim.kill()
    victim.wait()
    victim.stdout.close()
    rest, _ = other.communicate(timeout=120)
    assert other.returncode == 0
    seen += [int(line.split()[1]) for line in rest.splitlines() if line.startswith("trial")]
    with quiet(), open_storage(server, tmp_path, heartbeat_s=1) as storage:
        trials = optuna.load_study(storage=storage, study_name="s").get_trials()
    done = list(current(trials).values())
    assert [trial.state for trial in done] == [TrialState.COMPLETE] * TRIALS
    assert len(trials) == TRIALS + 1
    assert trials[held].state == TrialState.FAIL
    (back,) = (trial for trial in done if history(trial))
    assert history(back) == [held]
    assert back.params == trials[held].params
    # The survivor did each of them once.
    assert sorted(seen) == sorted(trial.number for trial in done)
