"""Run and resume benchmarks."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from rismusic.array import Panel
from rismusic.benchmark.spec import RESULTS, SCENES, TIMINGS, BenchSpec, Unit, all_units, parse_method
from rismusic.benchmark.summary import Arrays, BenchRow, Store, TimingRow, cell_rows, write_table
from rismusic.covariance import true_covariance
from rismusic.crb import recording_crb
from rismusic.devices import device_of, one_thread
from rismusic.errors import InputError
from rismusic.estimation.grid import SearchGrid, Volume
from rismusic.estimation.maximum_likelihood import Fit, complete_fit, nfmle, unpack
from rismusic.estimation.signal_model import for_geometry
from rismusic.estimation.spectra import music, rap_music
from rismusic.hybrid import locate
from rismusic.interruption import interrupts_held
from rismusic.io import Recording
from rismusic.nn.inference import LoadedNetwork
from rismusic.nn.spec import weights_path
from rismusic.parallel import check_workers, run_all, usable_cores
from rismusic.registry import load_plugins
from rismusic.simulation.simulator import Simulator
from rismusic.sources import Sources

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Benchmark:
    """Result of a benchmark: a row for each cell and method, and computing times; oracles are not timed."""

    spec: BenchSpec
    rows: list[BenchRow]
    timings: list[TimingRow]


def bench(
    spec: BenchSpec | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    workers: int | None = None,
    cluster: str | None = None,
    device: torch.device | str | None = None,
    progress: Progress = lambda *_: None,
    **settings: object,
) -> Benchmark:
    """Compare methods over numbers of sources, SNR and other settings, as ``rismusic bench`` does.

    Scenes depend on (seed, split, number) alone, and a unit of work is one method on one block of scenes. The
    result therefore does not depend on the number of processes or on interruptions. Different
    processors and library versions may round differently.

    Args:
        spec: the settings; the default settings if none.
        out: folder for the settings, the results of every scene and the tables; nothing is kept if none.
        resume: continue in a folder that holds part of the same benchmark.
        workers: number of processes, each with one thread; all cores if none.
        cluster: address of a Dask scheduler, such as ``tcp://host:8786``, whose workers take the place of
            processes of this machine.
        device: where the methods compute, such as ``"cuda"``; the CPU if none. Scenes, bounds and the rows
            that know the truth stay on the CPU, so all devices see the same scenes. On another device the
            timings are wall-clock times, and one process is the default.
        progress: called with the completed and the total number of scenes, summed over methods.
        settings: fields of :class:`~rismusic.benchmark.spec.BenchSpec` to change, such as ``scenes=20``.

    Raises:
        InputError: a setting is unknown or invalid, the folder holds another benchmark, a worker was killed,
            or the weights of the hybrid method are missing or damaged.
    """
    chosen = (spec or BenchSpec()).replace(**settings)
    target = None if device is None else device_of(device)
    check_workers(workers, cluster)
    if workers is None:
        workers = usable_cores() if target is None or target.type == "cpu" else 1
    for cell in chosen.cells():
        for_geometry(chosen.locate, Panel.from_spec(cell.system.panel))
    uses_network = any(parse_method(name).base == "hybrid" for name in chosen.rows)
    if uses_network:
        # Without weights locate falls back to a classical method, which must not be reported as hybrid.
        if not weights_path(chosen.locate.weights).exists():
            raise InputError(
                "locate.weights",
                f"the hybrid method needs weights, and {chosen.locate.weights!r} is neither installed nor a "
                "file",
            )
        LoadedNetwork.load(chosen.locate.weights, torch.device("cpu"))  # refuses damaged ones
    with tempfile.TemporaryDirectory() if out is None else nullcontext(out) as folder:
        store = Store(Path(folder))
        if out is not None:
            store.open(chosen, resume=resume)
        _run(chosen, store, workers, cluster, target, progress)
        result = Benchmark(chosen, [], [])
        for cell in chosen.cells():
            rows, timings = cell_rows(chosen, cell, store)
            result.rows.extend(rows)
            result.timings.extend(timings)
        if out is not None:
            store.clear()
            write_table(store.folder / RESULTS, result.rows, overwrite=True)
            if result.timings:
                write_table(store.folder / TIMINGS, result.timings, overwrite=True)
    return result


def _run(
    spec: BenchSpec,
    store: Store,
    workers: int,
    cluster: str | None,
    device: torch.device | None,
    progress: Progress,
) -> None:
    units = all_units(spec)
    total = sum(unit.stop - unit.start for unit in units)
    left = [unit for unit in units if store.read(unit) is None]
    completed = total - sum(unit.stop - unit.start for unit in left)
    progress(completed, total)
    work = partial(do_unit, spec, device=device)
    for unit, arrays in run_all(work, left, workers=min(workers, max(1, len(left))), cluster=cluster):
        with interrupts_held():
            store.write(unit, arrays)
        completed += unit.stop - unit.start
        progress(completed, total)


def do_unit(spec: BenchSpec, unit: Unit, *, device: torch.device | None = None) -> Arrays:
    """The results of one unit, computed by a single thread."""
    load_plugins(spec.locate.plugins)  # a worker process has not imported them yet
    with one_thread():
        return results(spec, unit, device)


def results(spec: BenchSpec, unit: Unit, device: torch.device | None = None) -> Arrays:
    """The arrays to store for one unit.

    For the scenes themselves: the truth, the bound and the noise variance. For a method: azimuth (rad),
    elevation (rad) and range (m) of its estimates [S, K], NaN-padded, their conditional cost and negative
    unconditional log-likelihood [S], and the processor time in seconds.
    """
    recording = Simulator(unit.cell.system, seed=spec.seed, split=spec.split).scenes(unit.start, unit.stop)
    if unit.method == SCENES:
        return _truth(recording)
    noise = recording.noise_variance if spec.noise == "known" else None
    blind = replace(recording, truth=None, noise_variance=noise)
    # The time of a process leaves out what a GPU does for it.
    clock = time.process_time if device is None or device.type == "cpu" else time.perf_counter
    begin, fit = clock(), None
    if parse_method(unit.method).uses_truth:
        assert recording.truth is not None
        found, fit = _oracle(blind, recording.truth, spec, unit)
    else:
        count = "auto" if spec.count == "auto" else unit.cell.sources
        found = locate(blind, n_sources=count, spec=spec.search(unit.method), device=device).sources
    seconds = torch.tensor(clock() - begin)
    fit = fit or _at(blind, found, Volume.from_spec(spec.locate))
    values = {**_positions(found), "cost": fit.cost, "likelihood": fit.neg_log_likelihood, "seconds": seconds}
    return {name: value.numpy() for name, value in values.items()}


def _truth(recording: Recording) -> Arrays:
    assert recording.truth is not None
    assert recording.noise_variance is not None
    _, L, M = recording.snapshots.shape
    values = {
        **_positions(recording.truth),
        "covariance": recording_crb(recording).covariance,
        "noise_variance": recording.noise_variance.double(),
        "samples": torch.tensor(L * M),
    }
    return {name: value.numpy() for name, value in values.items()}


def _oracle(blind: Recording, truth: Sources, spec: BenchSpec, unit: Unit) -> tuple[Sources, Fit]:
    """Oracles: MUSIC on the true covariance, or maximum likelihood started at the truth."""
    method = parse_method(unit.method)
    volume = Volume.from_spec(spec.locate)
    start = Sources(**_positions(truth))
    if method.base == "music":
        assert truth.power is not None
        A = start.steering(blind.panel)
        grid = SearchGrid.cover(blind.panel, volume, spec.locate.oversampling)
        spectrum = music(true_covariance(A, truth.power.double()), unit.cell.sources)
        # With an exact covariance a second pass over the sources improves the result.
        found = rap_music(spectrum, grid, unit.cell.sources)
        start = Sources(azimuth=found.azimuth, elevation=found.elevation, range=found.range)
    fit = (
        nfmle(blind, start, volume, criterion=method.criterion)
        if method.polish
        else _at(blind, start, volume)
    )
    return fit.sources, fit


def _at(recording: Recording, found: Sources, volume: Volume) -> Fit:
    """Cost and log-likelihood at given positions."""
    positions, active = unpack(found, recording)
    return complete_fit(recording, positions, active, torch.ones_like(active[:, 0]), volume)


def _positions(sources: Sources) -> dict[str, Tensor]:
    return {name: getattr(sources, name).double() for name in ("azimuth", "elevation", "range")}
