"""Compiled fits are kept on disk, and loaded from there only where no other user can have put them."""

from __future__ import annotations

import importlib.util
import logging
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

numba = pytest.importorskip("numba")

from rismusic.estimation import kernel_cache  # noqa: E402
from rismusic.estimation.kernel_cache import CompiledFunction, untrusted  # noqa: E402

SOURCE = "def f(first, last, x):\n    for i in range(first, last):\n        x[i] += 1\n"


class Planted:
    """A pickle that runs code."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """Compile the function as a new process would do; the folder of the cache is that of this test."""
    package = tmp_path / "package"
    package.mkdir(mode=0o755)
    source = package / "planted_source.py"
    source.write_text(SOURCE)
    loaded = importlib.util.spec_from_file_location("planted_source", source)
    module = importlib.util.module_from_spec(loaded)
    monkeypatch.setitem(sys.modules, "planted_source", module)
    loaded.loader.exec_module(module)

    def run():
        function = CompiledFunction(module.f, {})
        x = np.zeros(3)
        function.for_arguments((0, 3, x))(0, 3, x)
        assert x.tolist() == [1, 1, 1]
        return function

    return run


def files(folder, ending):
    return list(folder.rglob(f"planted_source.*{ending}"))


def hits(function):
    """Whether the code was loaded."""
    return function._kept is not None and bool(sum(function._kept.stats.cache_hits.values()))


def test_compiled_code_is_kept_and_damaged_code_is_compiled_again(compiled, tmp_path, caplog):
    assert not hits(compiled())
    assert hits(compiled())
    for ending in (".nbi", ".nbc"):
        (path,) = files(tmp_path, ending)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert not hits(compiled())
        assert "cannot be loaded and are compiled again" in caplog.text
        caplog.clear()
        assert hits(compiled())
    assert caplog.text == ""


def test_compiling_that_takes_long_is_announced_once(compiled, monkeypatch, caplog):
    monkeypatch.setattr(kernel_cache, "_ANNOUNCED_S", 0.0)
    kernel_cache._announce.cache_clear()
    for _ in range(2):
        compiled()
    assert caplog.messages == ["the fits are compiled when they are first used, which takes about a minute"]
    caplog.clear()
    monkeypatch.setattr(kernel_cache, "_ANNOUNCED_S", 1e6)
    kernel_cache._announce.cache_clear()
    compiled()
    assert not caplog.messages


def open_folder(folder):
    folder.chmod(0o777)


def open_file(folder):
    (folder / "a.nbc").chmod(0o666)


def foreign_file(folder):
    os.chown(folder / "a.nbc", 65534, 65534)


def open_parent(folder):
    folder.parent.chmod(0o777)


@pytest.mark.skipif(os.getuid() != 0, reason="gives files away")
@pytest.mark.parametrize("expose", [open_folder, open_file, foreign_file, open_parent])
@pytest.mark.parametrize("beside", [True, False])
def test_what_other_users_may_write_is_untrusted(expose, beside, tmp_path):
    """Beside the source and elsewhere."""
    folder = tmp_path / "package" / "cache"
    folder.mkdir(parents=True)
    (folder / "a.nbc").touch(mode=0o644)
    source = (folder.parent if beside else tmp_path) / "source.py"
    assert untrusted(folder, source) is None
    expose(folder)
    # Who may write to the folder of the source can change the source as well.
    assert (untrusted(folder, source) is None) == (beside and expose is open_parent)


def test_no_code_of_other_users_is_run(compiled, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "elsewhere"))
    compiled()
    (index,) = files(tmp_path, ".nbi")
    index.write_bytes(pickle.dumps(Planted(str(tmp_path / "mark"))))
    index.parent.chmod(0o777)
    compiled()
    assert not (tmp_path / "mark").exists()
    assert "other users may write" in caplog.text


def test_a_group_or_a_sticky_folder_that_is_safe(tmp_path):
    folder = tmp_path / "sticky" / "cache"
    folder.mkdir(parents=True)
    folder.parent.chmod(0o1777)
    folder.chmod(0o770)
    expected = None if folder.group() == folder.owner() else folder
    assert untrusted(folder, Path("/elsewhere/source.py")) == expected
    folder.chmod(0o700)
    assert untrusted(folder, Path("/elsewhere/source.py")) is None


def test_code_that_cannot_be_kept_is_compiled_all_the_same(compiled, monkeypatch, caplog):
    """There is no folder for it, or it takes no more files."""
    caplog.set_level(logging.INFO)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(kernel_cache, "FileLock", full)
        compiled()
    assert "No space left on device" in caplog.text
    with monkeypatch.context() as patched:
        patched.setattr(numba.core.caching.IndexDataCacheFile, "save", full)
        compiled()
    njit = numba.njit

    def without_folder(function, *, cache=False, **settings):
        if cache:
            raise RuntimeError("no locator available")
        return njit(function, **settings)

    monkeypatch.setattr(numba, "njit", without_folder)
    assert compiled()._kept is None


def test_a_file_of_another_kind_of_lock_is_no_lock(tmp_path, monkeypatch):
    """What a process with locks of the system leaves behind is waited for by none without them."""
    kinds = {"UnixFileLock", "SoftFileLock", "WindowsFileLock"}
    for kind in kinds - {kernel_cache.FileLock.__name__}:
        (tmp_path / f"rismusic.{kind}").touch()
    (tmp_path / "rismusic.lock").touch()
    monkeypatch.setattr(kernel_cache, "_PATIENCE_S", 0.2)
    with kernel_cache._alone(tmp_path):
        pass
