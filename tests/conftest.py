"""Shapes and types of every function are enforced while the tests run; one thread, so that runs agree."""

from __future__ import annotations

import gc
import hashlib
import importlib.util
import multiprocessing
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from filelock import FileLock
from jaxtyping import AbstractArray, config, install_import_hook

from shape_checks import fits, jaxtyped

if "fcntl" in os.environ.get("HIDDEN_MODULES", ""):  # make test-no-fcntl
    with pytest.raises(ModuleNotFoundError, match="is hidden by the tests"):
        importlib.import_module("fcntl")

jaxtyping.jaxtyped = jaxtyped  # what the hook decorates with
type(AbstractArray).__instancecheck__ = fits
install_import_hook("rismusic", "beartype.beartype")
torch.set_num_threads(1)

HERE = Path(__file__).parent
SAMPLES = HERE.parent / "samples"


# Modules that take longest go first, so that two processes end at the same time (``make test``). The first
# one compiles the fits in single precision; meanwhile the second one works on a module without fits.
LONGEST = (
    "estimation/test_locate.py",
    "doctor/test_faults.py",
    "test_readme.py",
    "estimation/test_hard_input.py",
    "estimation/test_diagnosis.py",
    "docs/test_pages.py",
    "checks/test_truthfit.py",
    "checks/test_other_models.py",
    "estimation/test_fit_kernel.py",
    "doctor/test_findings.py",
    "doctor/test_counterfactuals.py",
    "doctor/test_validations.py",
    "doctor/test_function_checks.py",
    "nn/test_train_resume.py",
    "test_cli.py",
    "nn/test_train_folder.py",
    "benchmark/test_bench_own_methods.py",
    "tuning/test_study.py",
    "estimation/test_panel_calibration.py",
    "estimation/test_conformance.py",
    "benchmark/test_bench_run.py",
    "hybrid/test_hybrid_locate.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {HERE / name: place for place, name in enumerate(LONGEST)}
    assert all(path.exists() for path in places), "LONGEST names a file that is gone"
    items.sort(key=lambda item: places.get(item.path, len(places)))
    gc.freeze()  # no search for garbage through torch and all tests again and again


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Of two test processes one compiles a fit; the other waits and reads the code from the disk."""
    if "PYTEST_XDIST_WORKER" not in os.environ or importlib.util.find_spec("numba") is None:
        yield
        return
    from numba.core.caching import NullCache
    from numba.core.dispatcher import Dispatcher

    folder = tmp_path_factory.getbasetemp().parent  # of all processes of this run
    compile_ = Dispatcher.compile

    def locked(self: Any, signature: Any) -> Any:
        if isinstance(self._cache, NullCache):  # compiled within a function that is kept
            return compile_(self, signature)
        key = hashlib.sha256(f"{self.py_func.__qualname__} {signature}".encode()).hexdigest()
        with FileLock(folder / f"{key}.lock"):
            return compile_(self, signature)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Dispatcher, "compile", locked)
        yield


@pytest.fixture(scope="session")
def samples() -> Path:
    """Recordings that were not made by this code."""
    return SAMPLES


@pytest.fixture(scope="module")
def quick_validation() -> Iterator[None]:
    """Trainings whose validation does not search; for whole modules, by ``pytestmark``."""
    from validation_stub import nowhere

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("rismusic.nn.validation.rap_music_sources", nowhere)
        yield


@pytest.fixture
def quick_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes are forks of one that has imported the package; else, each takes seconds to start."""
    from joblib.externals import loky

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["rismusic.benchmark.run", "rismusic.cli.locate", "rismusic.cli.recordings"]
    )
    monkeypatch.setattr(loky, "ProcessPoolExecutor", partial(loky.ProcessPoolExecutor, context=context))


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20261121)


@pytest.fixture
def untyped() -> Iterator[None]:
    """Shapes and types not enforced, as for users: what the package says to bad input, and examples."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture
def memory_budget(monkeypatch):
    """Sets the memory budget, in bytes."""

    def set_budget(budget: float) -> None:
        monkeypatch.setenv("RISMUSIC_MEMORY_BUDGET_MIB", repr(budget / 2**20))

    return set_budget
