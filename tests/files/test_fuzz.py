"""150 damaged files for the readers by hypothesis; for the commands 52, and 60 odd options, by the fuzzer.

``python benchmarks/fuzz_inputs.py --inputs 2000`` tries more of both.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rismusic import load_sample, read
from rismusic.errors import InputError
from rismusic.io import write
from rismusic.nn.checkpoint import read_network
from rismusic.nn.run_folder import LOG, RunFolder
from rismusic.nn.spec import TrainSpec
from rismusic.spec import SystemSpec, read_spec

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def fuzz_inputs():
    spec = importlib.util.spec_from_file_location("fuzz_inputs", BENCHMARKS / "fuzz_inputs.py")
    sys.modules["fuzz_inputs"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.warm_up()
    return module


@pytest.fixture(scope="module")
def files(fuzz_inputs, tmp_path_factory):
    """The valid files of the fuzzer."""
    folder = tmp_path_factory.mktemp("files") / "valid"
    fuzz_inputs.make_files(folder)
    return folder


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """A valid file for each reader, and the reader."""
    folder = tmp_path_factory.mktemp("valid")
    recording = load_sample("ideal_10dB")[:2]
    for name in ("a.h5", "a.npz", "a.mat"):
        write(folder / name, recording)
    with np.load(folder / "a.npz") as held:
        np.savez_compressed(folder / "packed.npz", **held)
    write(folder / "b.mat", recording, mat_version="7.3")
    (folder / "a.toml").write_text("sources = [1, 3]\n[panel]\nrows = 4\n")
    run = RunFolder(folder / "run")
    run.create(TrainSpec())
    run.log([{"kind": "step", "epoch": epoch, "step": 0, "taken": 1.0, "loss": 0.5} for epoch in range(5)])
    weights = Path(sys.modules["rismusic"].__file__).parent / "weights" / "ideal.safetensors"
    (folder / "w.safetensors").write_bytes(weights.read_bytes())
    return folder


READERS = {
    "a.h5": read,
    "a.npz": read,
    "packed.npz": read,
    "a.mat": read,
    "b.mat": read,
    "a.toml": lambda path: read_spec(SystemSpec, path),
    f"run/{LOG}": lambda path: RunFolder(path.parent).records("step"),
    "w.safetensors": read_network,
}

changes = st.lists(
    st.tuples(
        st.sampled_from(["overwrite", "insert", "remove", "cut"]),
        st.floats(0, 1, exclude_max=True),
        st.one_of(
            st.binary(min_size=1, max_size=16), st.sampled_from([b"\xff" * 8, bytes(8), b"[[[[", b"nan"])
        ),
    ),
    min_size=1,
    max_size=3,
)


@pytest.mark.usefixtures("untyped")
@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(name=st.sampled_from(sorted(READERS)), changes=changes, head=st.booleans())
def test_a_damaged_file_is_read_or_named(name, changes, head, valid, tmp_path):
    data = (valid / name).read_bytes()
    for kind, where, value in changes:
        # Half of the changes hit the first kilobyte, where the structure is.
        place = int(where * min(len(data), 1024 if head else len(data)))
        data = {
            "overwrite": data[:place] + value + data[place + len(value) :],
            "insert": data[:place] + value + data[place:],
            "remove": data[:place] + data[place + len(value) :],
            "cut": data[:place],
        }[kind]
    folder = tmp_path / "run"
    folder.mkdir(exist_ok=True)
    path = folder / Path(name).name
    path.write_bytes(data)
    with suppress(InputError):
        READERS[name](path)
    assert path.read_bytes() == data


@pytest.mark.usefixtures("untyped")
def test_no_command_shows_a_trace_hangs_or_loses_a_file(fuzz_inputs, files, tmp_path):
    """One damaged file for each command and file that it reads."""
    said, every = [], fuzz_inputs.cases()
    found = fuzz_inputs.fuzz(len(every), 7, tmp_path, valid=files, say=said.append)
    assert said == []
    assert sum(found.values()) == len(every) == 52


@pytest.mark.usefixtures("untyped")
def test_no_command_fails_on_odd_options_or_writes_what_it_reads(fuzz_inputs, files, tmp_path):
    said = []
    fuzz_inputs.fuzz(25, 11, tmp_path, odd=1.0, valid=files, say=said.append)
    assert said == []


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("fault", "verdict"),
    [
        (lambda path: 1 / 0, "trace"),
        (lambda path: (path.unlink(), sys.exit(0)), "changed a.h5"),
        (lambda path: np.ones(2**27), "memory"),
        (lambda path: os.kill(os.getpid(), signal.SIGUSR1), "signal 10"),
    ],
)
def test_the_fuzzer_can_fail(fault, verdict, fuzz_inputs, files, tmp_path, monkeypatch):
    (tmp_path / "input").mkdir()
    shutil.copy(files / "a.h5", tmp_path / "input")
    (held,) = re.findall(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    monkeypatch.setattr(
        fuzz_inputs, "BYTES", 1024 * int(held) + 2**28
    )  # below what is allocated here; a fork shares the pages of libraries
    monkeypatch.setattr("rismusic.checks.check", lambda path, **_: fault(path))
    assert fuzz_inputs.attempt(fuzz_inputs.cases()[0], tmp_path / "input").verdict == verdict
