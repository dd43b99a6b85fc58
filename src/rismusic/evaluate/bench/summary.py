"""From the kept answers to rows: one metric for all, and each miss blamed on search, likelihood or count."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from rismusic.crb import Bound
from rismusic.evaluate.bench.interval import share_interval
from rismusic.evaluate.bench.methods import STARTS, Method, parse_method
from rismusic.evaluate.bench.plan import SCENES, Unit, blocks
from rismusic.evaluate.bench.spec import BenchSpec
from rismusic.evaluate.bench.store import Arrays, Store
from rismusic.evaluate.bench.sweeps import Cell
from rismusic.evaluate.bench.table import BenchRow, Share, TimingRow
from rismusic.evaluate.metrics import match, score
from rismusic.sources import Sources

# Log-likelihoods closer than this are the same: both descents stop within a fraction of it of the maximum.
TIE_NATS = 0.01


def cell_rows(spec: BenchSpec, cell: Cell, store: Store) -> tuple[list[BenchRow], list[TimingRow]]:
    """Rows of all methods in one cell, whose parts are all done."""
    kept: dict[str, Arrays] = {}

    def answer(name: str) -> Arrays:
        if name not in kept:
            method = parse_method(name) if name != SCENES else None
            if method is not None and (method.peeked, method.base) == (True, "best"):
                kept[name] = _likeliest(
                    [answer(method.beside(start)) for start in STARTS], method, answer(SCENES)
                )
            else:
                kept[name] = _joined(spec, cell, name, store)
        return kept[name]

    rows, timings = [], []
    for name in spec.rows:
        method = parse_method(name)
        result = answer(name)
        row = _row(cell, method, result, answer(method.beside("oracle:truth")), answer(SCENES))
        rows.append(row)
        if "seconds" in result and not method.peeked:
            seconds = float(result["seconds"])
            rate = row.scenes / seconds
            timings.append(
                TimingRow(**_about(cell), method=name, scenes=row.scenes, seconds=seconds, scenes_per_s=rate)
            )
    return rows, timings


def _joined(spec: BenchSpec, cell: Cell, name: str, store: Store) -> Arrays:
    """All blocks of a method in a cell, padded to the same number of places; seconds in all."""
    parts = []
    for start, stop in blocks(spec):
        part = store.read(Unit(cell, name, start, stop))
        assert part is not None, "only complete benchmarks are put together"
        parts.append(part)
    places = max(part["azimuth"].shape[1] for part in parts)
    joined = {}
    for key in parts[0]:
        values = [part[key] for part in parts]
        if key in ("azimuth", "elevation", "range"):
            missing = [((0, 0), (0, places - value.shape[1])) for value in values]
            values = [np.pad(v, m, constant_values=np.nan) for v, m in zip(values, missing, strict=True)]
        if key == "seconds":
            joined[key] = np.sum(values)
        elif key == "samples":
            joined[key] = values[0]
        else:
            joined[key] = np.concatenate(values)
    return joined


def nats(method: Method, answer: Arrays, scenes: Arrays) -> np.ndarray:
    r"""Minus the log-likelihood that a method goes by, up to what all fits of a scene have in common, [S].

    Unconditional: as kept. Conditional: :math:`L M \log f` of the cost f where the noise variance is fitted
    with it. (Where it is known, :math:`f / \sigma^2`, in the same order.)
    """
    if method.criterion == "unconditional":
        return answer["likelihood"]
    return scenes["samples"] * np.log(answer["cost"])


def _likeliest(answers: list[Arrays], method: Method, scenes: Arrays) -> Arrays:
    """Of several answers in each scene the likeliest one; the first of equal ones."""
    chosen = np.stack([nats(method, one, scenes) for one in answers]).argmin(0)
    everyone = np.arange(len(chosen))
    names = ("azimuth", "elevation", "range", "cost", "likelihood")
    return {name: np.stack([one[name] for one in answers])[chosen, everyone] for name in names}


def _sources(arrays: Arrays) -> Sources:
    azimuth, elevation, distance = (
        torch.from_numpy(arrays[name]) for name in ("azimuth", "elevation", "range")
    )
    return Sources(azimuth=azimuth, elevation=elevation, range=distance)


def _row(cell: Cell, method: Method, answer: Arrays, peeked: Arrays, scenes: Arrays) -> BenchRow:
    truth, found = _sources(scenes), _sources(answer)
    matched = match(truth, found)
    result = asdict(score(matched, Bound(torch.from_numpy(scenes["covariance"]), truth.range)))
    hits = matched.hit.sum(-1).double().numpy()
    true, seen = (count.double().numpy() for count in (matched.true_count, matched.found_count))
    missed = true - hits
    counted = true == seen
    search = counted & (nats(method, peeked, scenes) < nats(method, answer, scenes) - TIE_NATS)
    parts = {
        "misses": (missed, true),
        "search_failures": (missed * search, true),
        "ambiguities": (missed * (counted & ~search), true),
        "wrong_counts": (missed * ~counted, true),
        "false_alarms": (seen - hits, seen),
        "precision": (hits, seen),
        "recall": (hits, true),
        "f1": (2 * hits, true + seen),
        "count_right": (counted.astype(float), np.ones_like(true)),
    }
    shares: dict[str, Any] = {}
    for name, (part, whole) in parts.items():
        low, high = (float(limit) for limit in share_interval(part, whole))
        value = result.pop(name, None)
        shares[name] = Share(float(part.sum() / max(whole.sum(), 1)) if value is None else value, low, high)
    return BenchRow(**_about(cell), method=method.name, peeked=method.peeked, **shares, **result)


def _about(cell: Cell) -> dict[str, Any]:
    return {name: getattr(cell, name) for name in ("sweep", "point", "sources", "snr_db")}
