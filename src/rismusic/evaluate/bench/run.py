"""The benchmark from Python: run, resume, share, merge."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from rismusic.devices import device_of
from rismusic.errors import InputError
from rismusic.evaluate.bench.methods import parse_method
from rismusic.evaluate.bench.plan import Unit, all_units
from rismusic.evaluate.bench.pool import run_all, usable_cores
from rismusic.evaluate.bench.spec import BenchSpec
from rismusic.evaluate.bench.store import Store, check_same, load_settings
from rismusic.evaluate.bench.summary import cell_rows
from rismusic.evaluate.bench.table import BenchRow, TimingRow, write_table
from rismusic.evaluate.bench.work import do_unit
from rismusic.nn.spec import weights_path

RESULTS, TIMINGS = "results.csv", "timings.csv"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Benchmark:
    """What came of a benchmark.

    Args:
        spec: its settings.
        rows: one for each cell and method; none while parts are missing.
        timings: how fast the methods were; those that have peeked are not timed.
        missing: parts that are not done yet (by other shares).
    """

    spec: BenchSpec
    rows: list[BenchRow]
    timings: list[TimingRow]
    missing: int


def bench(
    spec: BenchSpec | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    shard: tuple[int, int] = (0, 1),
    workers: int | None = None,
    device: torch.device | str | None = None,
    progress: Progress = lambda *_: None,
    **settings: object,
) -> Benchmark:
    """Compare methods over numbers of sources, SNR and other settings; the twin of ``rismusic bench``.

    Scenes are a function of (seed, split, number) alone, and a part is one method on one block of them, so
    the result does not depend on the number of processes, on shares, or on where a run was cut short (the
    same processor and libraries taken for granted: rounding differs between others).

    Args:
        spec: the settings; the default ones if none.
        out: folder for the settings, every scene's results and the tables; none keeps nothing.
        resume: go on in a folder that holds a part of this very benchmark.
        shard: (i, n): do share i, counted from 0, of n; see :func:`merge_benchmarks`.
        workers: processes, each with one thread; all cores if none. A script that asks for more than one
            needs ``if __name__ == "__main__":`` around it, as always with processes.
        device: where the methods compute, such as ``"cuda"``; the CPU if none. Scenes, bounds and the rows
            that know the truth stay on the CPU, so all devices see the same scenes. On another device the
            timings are wall-clock times, and one process is the default.
        progress: called with the number of scenes done (times methods) and that of all.
        settings: fields of :class:`~rismusic.evaluate.bench.spec.BenchSpec` to change, such as ``scenes=20``.

    Raises:
        InputError: an unknown or impossible setting, a folder of another benchmark, a worker that was
            killed, weights of the hybrid locator that are not there.
    """
    chosen = (spec or BenchSpec()).replace(**settings)
    place = None if device is None else device_of(device)
    if workers is None:
        workers = usable_cores() if place is None or place.type == "cpu" else 1
    if workers < 1:
        raise InputError("workers", "at least one process", str(workers))
    if not 0 <= shard[0] < shard[1]:
        raise InputError("shard", "(i, n) with 0 <= i < n", str(shard))
    uses_network = any(parse_method(name).base == "hybrid" for name in chosen.rows)
    if uses_network and not weights_path(chosen.locate.weights).exists():
        # Without them the classical fallback would be measured in the network's name.
        raise InputError("locate.weights", "installed weights or a file", repr(chosen.locate.weights))
    if out is None:
        with tempfile.TemporaryDirectory() as folder:
            store = Store(Path(folder))
            _run(chosen, store, shard, workers, place, progress)
            return _summed(chosen, store)
    store = Store(Path(out))
    store.open(chosen, resume=resume)
    _run(chosen, store, shard, workers, place, progress)
    return _finished(chosen, store)


def merge_benchmarks(folders: Sequence[str | Path], *, out: str | Path, resume: bool = False) -> Benchmark:
    """Put the shares of a benchmark together; the twin of ``rismusic bench --merge``.

    Args:
        folders: of all shares.
        out: folder for the whole.
        resume: the folder may hold parts of it already.

    Raises:
        InputError: folders of different benchmarks, or a part that is in none of them.
    """
    if not folders:
        raise InputError("merge", "one or more folders of a benchmark", "none")
    sources = [Store(Path(folder)) for folder in folders]
    spec = load_settings(sources[0].folder)
    for source in sources[1:]:
        check_same(spec, source.folder)
    store = Store(Path(out))
    found, missing = [], []
    for unit in all_units(spec):
        holders = [one for one in (store, *sources) if one.read(unit) is not None]
        if not holders:
            missing.append(unit)
        elif holders[0] is not store:
            found.append((unit, holders[0]))
    if missing:
        raise InputError(
            "merge", "folders that hold all parts together", f"{len(missing)} missing, first {missing[0]}"
        )
    store.open(spec, resume=resume)
    for unit, source in found:
        store.copy(unit, source)
    return _finished(spec, store)


def _run(
    spec: BenchSpec,
    store: Store,
    shard: tuple[int, int],
    workers: int,
    device: torch.device | None,
    progress: Progress,
) -> None:
    units = all_units(spec)[shard[0] :: shard[1]]
    total = sum(unit.stop - unit.start for unit in units)
    left = [unit for unit in units if store.read(unit) is None]
    completed = total - sum(unit.stop - unit.start for unit in left)
    progress(completed, total)

    def done(unit: Unit) -> None:
        nonlocal completed
        completed += unit.stop - unit.start
        progress(completed, total)

    run_all(partial(do_unit, spec, store, device=device), left, workers=workers, done=done)


def _finished(spec: BenchSpec, store: Store) -> Benchmark:
    """Tables beside the parts, if all of these are there."""
    result = _summed(spec, store)
    if result.missing == 0:
        store.clear()
        write_table(store.folder / RESULTS, result.rows, overwrite=True)
        if result.timings:
            write_table(store.folder / TIMINGS, result.timings, overwrite=True)
    return result


def _summed(spec: BenchSpec, store: Store) -> Benchmark:
    missing = sum(store.read(unit) is None for unit in all_units(spec))
    rows: list[BenchRow] = []
    timings: list[TimingRow] = []
    for cell in spec.cells() if missing == 0 else ():
        some, times = cell_rows(spec, cell, store)
        rows += some
        timings += times
    return Benchmark(spec, rows, timings, missing)
