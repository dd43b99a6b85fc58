"""The storage of a study: files that are something else are left alone, and passwords are redacted."""

from __future__ import annotations

import logging
import os
import re
import signal
import sqlite3

import h5py
import numpy as np
import optuna
import pytest

from rismusic.errors import InputError
from rismusic.text import redact
from rismusic.tuning.objective import Evaluation
from rismusic.tuning.spec import TuneSpec, apply, load_space
from rismusic.tuning.storage import create_storage, open_storage, quiet
from rismusic.tuning.study import _settings, tune


def hdf5(path):
    with h5py.File(path, "w") as file:
        file["data"] = np.arange(1000)


def numpy(path):
    with path.open("wb") as file:
        np.save(file, np.arange(1000))


def another_database(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE studies (name TEXT)")
    connection.close()


def half_a_database(path):
    another_database(path)
    path.write_bytes(path.read_bytes()[:100] + b"nothing\nof it")


def damaged_name(path):
    another_database(path)
    path.write_bytes(path.read_bytes().replace(b"CREATE TABLE studies", b"CREATE TABLE stud\xce\x00s"))
    path.write_bytes(path.read_bytes().replace(b"studies", b"stu\xcees"))


def journal(path):
    path.write_text('{"op_code":0,"worker_id":"w","study_name":"s","directions":[1]}\n{"op_code":4,"wor')


@pytest.mark.parametrize("write", [hdf5, numpy, another_database, half_a_database, damaged_name, journal])
@pytest.mark.parametrize("prefix", ["", "sqlite:///"])
def test_a_file_that_is_something_else_is_left_as_it_is(tmp_path, write, prefix):
    path = tmp_path / "measured.data"
    write(path)
    before, files = path.read_bytes(), sorted(tmp_path.iterdir())
    with (
        pytest.raises(InputError, match=r"measured\.data: is not a database of a study\. It was left"),
        open_storage(f"{prefix}{path}", tmp_path, heartbeat_s=1),
    ):
        pass
    assert path.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == files


def test_what_is_no_file_is_no_database(tmp_path):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    for storage, sentence in (
        (str(tmp_path), "is a folder, not a file"),
        (f"sqlite:///{tmp_path}/file/study.db", "cannot be read: not a directory"),
        (str(tmp_path / "pipe"), "is a pipe, not a file"),
        ("sqlite:////dev/zero", "is a device, not a file"),
        ("sqlite://", "must be a file"),
        (f"sqlite:///file:{tmp_path}/file?uri=true", "must be a file"),
    ):
        with (
            pytest.raises(InputError, match=sentence),
            open_storage(storage, tmp_path, heartbeat_s=1),
        ):
            pass
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
@pytest.mark.parametrize("name", ["new.db", "with space & ?.db", "empty.db"])
def test_new_and_empty_files_are_taken_and_reopened(tmp_path, name):
    path = tmp_path / "new folder" / name
    if name == "empty.db":
        path.parent.mkdir()
        path.touch()
    for value in (1.0, 2.0):
        with quiet(), open_storage(str(path), tmp_path, heartbeat_s=1) as storage:
            study = optuna.create_study(storage=storage, study_name="s", load_if_exists=True)
            study.tell(study.ask(), value)
            assert study.get_trials()[-1].value == value
            assert len(study.get_trials()) == value
    assert path.stat().st_size > 0


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_a_study_whose_writer_was_killed_is_opened(tmp_path):
    """What it had half written is undone."""
    create_storage(
        None, tmp_path, lambda storage: optuna.create_study(storage=storage, study_name="s"), heartbeat_s=1
    )
    path = tmp_path / "study.db"
    child = os.fork()
    if child == 0:
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA cache_size = 1")  # so that the file is written before the end
        connection.execute("BEGIN")
        connection.execute("UPDATE studies SET study_name = 'half'")
        connection.execute(
            "INSERT INTO study_user_attributes (study_id, key, value_json) VALUES (1, 'h', zeroblob(99999))"
        )
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert (tmp_path / "study.db-journal").stat().st_size
    with quiet(), open_storage(None, tmp_path, heartbeat_s=1, create=False) as storage:
        assert optuna.get_all_study_names(storage) == ["s"]


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
@pytest.mark.parametrize("suffix", ["-journal", "-wal"])
def test_a_file_with_the_name_of_a_journal_is_left_as_it_is(tmp_path, suffix):
    """SQLite would take it for its own and delete it."""
    create_storage(
        None, tmp_path, lambda storage: optuna.create_study(storage=storage, study_name="s"), heartbeat_s=1
    )
    notes = tmp_path / f"study.db{suffix}"
    notes.write_text("Notes on this study")
    with (
        pytest.raises(InputError, match=rf"study\.db{suffix}: has the name of a journal of SQLite"),
        open_storage(None, tmp_path, heartbeat_s=1, create=False),
    ):
        pass
    assert notes.read_text() == "Notes on this study"


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_a_new_file_appears_with_its_study_or_not_at_all(tmp_path):
    def begin(storage):
        optuna.create_study(storage=storage, study_name="s")

    def interrupted(storage):
        begin(storage)
        raise KeyboardInterrupt

    path = tmp_path / "study.db"
    with pytest.raises(KeyboardInterrupt):
        create_storage(None, tmp_path, interrupted, heartbeat_s=1)
    assert list(tmp_path.iterdir()) == []
    assert create_storage(None, tmp_path, begin, heartbeat_s=1)
    assert [one.name for one in tmp_path.iterdir()] == ["study.db"]
    assert not create_storage(str(path), tmp_path, interrupted, heartbeat_s=1)
    with open_storage(None, tmp_path, heartbeat_s=1) as storage:
        assert optuna.get_all_study_names(storage) == ["s"]


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_a_file_that_another_worker_creates_meanwhile_is_joined(tmp_path):
    path = tmp_path / "study.db"
    assert not create_storage(None, tmp_path, lambda _: path.write_bytes(b"theirs"), heartbeat_s=1)
    assert path.read_bytes() == b"theirs"
    assert [one.name for one in tmp_path.iterdir()] == ["study.db"]


def nothing(path):
    path.touch()


def no_tables(path):
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 7")
    connection.close()


def of_an_older_optuna(path):
    a_study(path, "tune")
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v2.4.0.a'")
        connection.execute("DROP TABLE trial_heartbeats")
    connection.close()


def half_of_an_optuna(path):
    a_study(path, "tune")
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM version_info")
    connection.close()


def a_view_in_place_of_a_table(path):
    a_study(path, "tune")
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE trial_values RENAME TO hidden")
        connection.execute("CREATE VIEW trial_values AS SELECT * FROM hidden")
    connection.close()


def without_a_column(path):
    a_study(path, "tune")
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE trial_intermediate_values DROP COLUMN intermediate_value_type")
    connection.close()


def with_number(number):
    def write(path):
        a_study(path, "tune").add_trial(optuna.trial.create_trial(value=1.0))
        with sqlite3.connect(path) as connection:
            connection.execute(f"UPDATE trials SET number = {number}")
        connection.close()

    return write


def without_a_number(path):
    study = a_study(path, "tune")
    for _ in range(2):
        study.add_trial(optuna.trial.create_trial(value=1.0))
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE trials SET number = NULL WHERE trial_id = 2")
    connection.close()


def of_another_program(path):
    a_study(path, "tune").add_trial(optuna.trial.create_trial(value=1.0))


def of_another_name(path):
    a_study(path, "other")


def with_other_settings(path):
    a_study(path, "tune").set_user_attr("settings", {"spec": 1})


def a_study(path, name):
    with quiet(), open_storage(str(path), path.parent, heartbeat_s=1) as storage:
        return optuna.create_study(storage=storage, study_name=name)


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
@pytest.mark.parametrize(
    ("write", "resume", "sentence"),
    [
        (nothing, True, "there is no study to resume: .* holds none"),
        (no_tables, True, "there is no study to resume: .* holds none"),
        (of_another_name, True, "there is no study 'tune' to resume; the storage has: other"),
        (of_another_program, True, "'tune' was not written by this version of rismusic tune"),
        (with_other_settings, True, "'tune' was not written by this version of rismusic tune"),
        (of_an_older_optuna, True, "no longer compatible with the table schema"),
        (half_of_an_optuna, True, "is damaged: the version of its tables is missing"),
        (a_view_in_place_of_a_table, False, "is damaged: no table trial_values"),
        (with_number("'FAIL'"), True, "column number of table trials has a value that is not an integer"),
        (with_number("1e300"), True, "column number of table trials has a value that is not an integer"),
        (without_a_number, True, "is damaged: a value of a study or a trial cannot be read"),
        (without_a_column, False, "table trial_intermediate_values has no column intermediate_value_type"),
        (of_another_program, False, "'tune' was not written by rismusic tune"),
        (with_other_settings, False, "'tune' exists in this storage with other settings"),
        (of_an_older_optuna, False, "no longer compatible with the table schema"),
        (half_of_an_optuna, False, "is damaged: the version of its tables is missing"),
    ],
)
def test_a_database_that_is_refused_is_left_as_it_is(tmp_path, write, resume, sentence):
    path = tmp_path / "a {name} %41#?.db"
    write(path)
    before, files = path.read_bytes(), sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=sentence):
        tune(out=tmp_path / "out", storage=str(path), resume=resume, device="cpu")
    with pytest.raises(InputError, match=r"%41#|%2541%23"):  # the file is named
        tune(out=tmp_path / "out", storage=str(path), resume=resume, device="cpu")
    assert path.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == files


def test_an_interrupted_start_is_no_study(tmp_path, monkeypatch):
    """After an interruption before its settings are stored, the same command can be given again."""

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("rismusic.tuning.study._settings", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tune(out=tmp_path, device="cpu")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("rismusic.tuning.study.Worker.run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune(out=tmp_path, device="cpu")
    with pytest.raises(InputError, match="already contains a study"):
        tune(out=tmp_path, device="cpu")
    with pytest.raises(InputError, match="there is no study to resume"):
        tune(out=tmp_path / "new", storage=str(tmp_path / "new.db"), study="other", resume=True)
    assert [one.name for one in tmp_path.iterdir() if one.suffix == ".db"] == ["study.db"]


def test_databases_that_cannot_be_used(tmp_path):
    for url, reason in (
        (f"postgresql://u:secret@/d?host={tmp_path}", "cannot use the database"),
        ("oracul://u:secret@/d", "cannot use the database"),
        ("postgresql://u:secret@host:port/d", "is not a valid database URL"),
    ):
        with pytest.raises(InputError, match=f"storage: .*{reason}") as error:
            open_storage(url, tmp_path, heartbeat_s=1).__enter__()
        assert "secret" not in str(error.value)


def test_the_password_in_the_message_of_a_driver_is_redacted(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no role 'me' with password s/ecret")

    monkeypatch.setattr("rismusic.tuning.storage.create_engine", refuse)
    with pytest.raises(InputError, match=r"me:\*\*\*@host/db: no role 'me' with password \*\*\*$"):
        open_storage("postgresql://me:s%2Fecret@host/db", tmp_path, heartbeat_s=1).__enter__()


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("tune --storage postgresql://me:secret@host/db --trials 5", "postgresql://me:***@host/db"),
        ("tune --storage 'postgresql://me:s/ec:r@et@host/db'", "'postgresql://me:***@host/db'"),
        ("--storage=postgresql://host/db?user=me&password=secret", "host/db?user=me&password=***"),
        ("'postgresql://host/db?sslpassword=secret&a=b'", "sslpassword=***&a=b'"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("see http://a.b/c, mail x@y.z", "see http://a.b/c, mail x@y.z"),
    ],
)
def test_passwords_are_redacted(text, redacted):
    assert redacted in redact(text)
    assert "secret" not in redact(text)


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
@pytest.mark.parametrize(
    "content",
    ["{", '{"spec": {}}', '{"spec": {"x": 1}, "space": {}, "trials": 1}', "3", "[" * 900 + "]" * 900],
)
def test_a_study_with_damaged_settings_is_one_sentence(tmp_path, content):
    path = tmp_path / "study.db"
    with quiet(), open_storage(str(path), tmp_path, heartbeat_s=1) as storage:
        optuna.create_study(storage=storage, study_name="tune").set_user_attr("settings", 1)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE study_user_attributes SET value_json = ?", (content,))
    connection.close()
    with pytest.raises(InputError, match=r"was not written by this version|is damaged: a value of a study"):
        tune(out=tmp_path / "out", storage=str(path), resume=True, device="cpu")


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
@pytest.mark.parametrize("name", ["tune", "tune-long-1"])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            "UPDATE trial_user_attributes SET value_json = '{\"hits\": [{}]}'",
            "trial 0 of study 'NAME' is damaged",
        ),
        (
            f"UPDATE trial_user_attributes SET value_json = '{'[' * 900}{']' * 900}'",
            "is damaged: a value of a study or a trial cannot be read",
        ),
        ("DELETE FROM trial_user_attributes", "it is complete, but has no evaluation"),
        ("UPDATE trials SET state = x'ff'", "is damaged: a value of a study or a trial cannot be read"),
    ],
)
def test_a_study_with_damaged_trials_is_one_sentence(tmp_path, change, sentence, name):
    path = tmp_path / "study.db"
    spec, space = TuneSpec(), load_space("narrow")
    with quiet(), open_storage(str(path), tmp_path, heartbeat_s=1) as storage:
        study = optuna.create_study(storage=storage, study_name="tune")
        study.set_user_attr("settings", _settings(spec, space, 1))
        named = study if name == "tune" else optuna.create_study(storage=storage, study_name=name)
        named.add_trial(optuna.trial.create_trial(value=1.0, user_attrs={"evaluation": 1}))
    with sqlite3.connect(path) as connection:
        connection.execute(change)
    connection.close()
    sentence = sentence.replace("NAME", name)
    with pytest.raises(
        InputError, match=f"^storage: .*{sentence}.*{re.escape(str(path))}|{path}.*{sentence}"
    ):
        tune(out=tmp_path / "out", storage=str(path), resume=True, device="cpu")


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_a_trial_whose_values_do_not_suit_the_settings_is_one_sentence(tmp_path):
    path = tmp_path / "study.db"
    evaluation = {"hits": [1], "true": [1], "estimated": [1], "gospa_m": [0.5]}
    epoch = {"surrogate": 1.0, "loss": 1.0, "f1": 1.0, "gospa_m": 1.0}
    with quiet(), open_storage(str(path), tmp_path, heartbeat_s=1) as storage:
        study = optuna.create_study(storage=storage, study_name="tune")
        study.set_user_attr("settings", _settings(TuneSpec(), load_space("narrow"), 1))
        study.add_trial(
            optuna.trial.create_trial(
                value=1.0,
                params={"backbone_learning_rate": "fast"},
                distributions={
                    "backbone_learning_rate": optuna.distributions.CategoricalDistribution(["fast", 1.0])
                },
                user_attrs={"evaluation": evaluation, "epochs": [epoch], "job": "0"},
            )
        )
    with pytest.raises(
        InputError, match=rf"^backbone_learning_rate: expected a number.*{re.escape(str(path))}"
    ):
        tune(out=tmp_path / "out", storage=str(path), resume=True, device="cpu")


def test_sqlalchemy_prints_no_trace_when_ctrl_c_has_broken_a_connection():
    log = logging.getLogger("sqlalchemy.pool.impl.QueuePool")
    with quiet():
        assert not log.isEnabledFor(logging.ERROR)
    assert log.isEnabledFor(logging.ERROR)


@pytest.mark.parametrize("name", ["out", "storage"])
def test_names_that_are_no_text_are_one_sentence(name, tmp_path):
    """SQLAlchemy has no form for bytes that are not UTF-8, which file systems allow."""
    names = {"out": tmp_path / "out", name: f"{tmp_path}/\udc80"}
    with pytest.raises(
        InputError, match=r"^storage: the name of the database or its folder is not valid UTF-8"
    ):
        tune(**names, trials=1, device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_with_more_than_was_stored_is_read():
    """What another version adds to a record is left out."""
    stored = {"hits": [1], "true": [2], "estimated": [1], "gospa_m": [0.5], "extra": True}
    trial = optuna.trial.create_trial(value=1.0, user_attrs={"test": stored})
    assert Evaluation.of(trial, "test") == Evaluation((1,), (2,), (1,), (0.5,))


def test_a_value_of_an_unknown_parameter_is_one_sentence():
    with pytest.raises(InputError, match=r"^oddity: is not a parameter of the search space"):
        apply(TuneSpec().locate, load_space("narrow").locate, {"oddity": 1})
