"""Time, memory and hits on large panels: ``python benchmarks/large_panels.py [--csv FILE] [--limit 90]``.

Default system at 10 dB with three sources, their number and the noise variance unknown: panels of 16 x 16 to
64 x 64 elements, growth with snapshots and scenes, and a 50 x 50 panel at 28 GHz with one antenna, 200
configurations and a constant pilot. Each cell is a process of its own with one thread, and is ended after
``--limit`` seconds of processor time. A scene of the default panel goes first, so that imports and the start
of the compiled fits are not counted. ``first_s`` includes the preparation of the search grid, ``cpu_s`` is
the mean over further scenes, ``together`` of them in each call. ``search`` is ``subarrays`` or, to compare,
``dictionary``: the steering vectors of all points.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from measure import peak_memory_mib, write_csv

LIMIT_S = 90
ORDER = ("search", "method", "side", "snapshots", "antennas", "sources", "together", "constant")


@dataclass(frozen=True)
class Cell:
    """One set of scenes.

    Args:
        side: rows and columns of the panel.
        snapshots: L.
        antennas: M.
        sources: K.
        method: of ``locate``.
        search: ``subarrays``, or ``dictionary`` for the steering vectors of all points.
        scenes: number of scenes after the first.
        together: how many of them one call locates.
        constant: whether a constant pilot at 28 GHz comes from 1 to 4 m.
    """

    side: int
    snapshots: int = 16
    antennas: int = 16
    sources: int = 3
    method: str = "omp"
    search: str = "subarrays"
    scenes: int = 3
    together: int = 1
    constant: bool = False


SIDES = (16, 24, 32, 48, 64)
CELLS = (
    *(Cell(side) for side in SIDES),
    *(Cell(side, search="dictionary", scenes=1 if side > 24 else 3) for side in SIDES[:3]),
    *(Cell(side, method="hybrid") for side in (24, 32)),
    *(Cell(32, snapshots=L) for L in (32, 64, 128)),
    *(Cell(32, scenes=S, together=S) for S in (2, 4, 8, 16)),
    Cell(64, snapshots=64, scenes=1),
    Cell(64, snapshots=64, method="hybrid", scenes=1),
    *(Cell(50, 200, 1, 1, method, constant=True, scenes=5) for method in ("omp", "hybrid")),
    Cell(50, 200, 1, 1, search="dictionary", constant=True, scenes=5),
)


def measured(cell: Cell) -> dict[str, float]:
    """Locate the scenes of a cell in this process."""
    import torch

    from rismusic.estimation import search
    from rismusic.hybrid import locate
    from rismusic.io import Recording
    from rismusic.metrics import match
    from rismusic.simulation.simulator import simulate

    torch.set_num_threads(1)
    if cell.search == "dictionary":
        patch.object(search, "subarrays_of", lambda _: None).start()
    panel: dict[str, Any] = {"rows": cell.side, "columns": cell.side}
    settings: dict[str, Any] = {}
    volume: dict[str, Any] = {}
    if cell.constant:
        panel["wavelength_m"] = 299792458.0 / 28e9
        volume = {"range_min_m": 1.0, "range_max_m": 4.0}
        settings["scene"] = {"symbols": "constant", **volume}
    made = simulate(
        scenes=cell.scenes + 1,
        sources=cell.sources,
        snr_db=10.0,
        seed=1,
        panel=panel,
        channel={"antennas": cell.antennas},
        codebook={"snapshots": cell.snapshots},
        **settings,
    )
    assert made.truth is not None
    blind = replace(made, noise_variance=None, truth=None)

    def located(part: Recording) -> tuple[Any, float, float]:
        cpu, wall = time.process_time(), time.perf_counter()
        sources = locate(part, n_sources="auto", method=cell.method, **volume).sources
        return sources, time.process_time() - cpu, time.perf_counter() - wall

    small = simulate(scenes=1, sources=1, snr_db=10.0)
    locate(replace(small, noise_variance=None, truth=None), method="omp")
    rows = [located(blind[:1])]
    for start in range(1, len(made), cell.together):
        rows.append(located(blind[start : start + cell.together]))
    slices = [slice(0, 1), *(slice(i, i + cell.together) for i in range(1, len(made), cell.together))]
    truths = (made[part].truth for part in slices)
    found = [match(true, row[0]) for true, row in zip(truths, rows, strict=True) if true is not None]
    hits = sum(int(one.hit.sum()) for one in found)
    return {
        "first_s": rows[0][1],
        "cpu_s": sum(row[1] for row in rows[1:]) / cell.scenes,
        "wall_s": sum(row[2] for row in rows[1:]) / cell.scenes,
        "peak_mib": peak_memory_mib(),
        "sources_total": len(made) * cell.sources,
        "hits": hits,
        "false_alarms": sum(int(one.found_count.sum()) for one in found) - hits,
    }


def in_process(cell: Cell, limit: int) -> dict[str, Any]:
    """A row of the table, measured in a new process; without figures where it passes the limit."""
    command = [sys.executable, __file__, "--cell", json.dumps(asdict(cell))]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            preexec_fn=partial(resource.setrlimit, resource.RLIMIT_CPU, (limit, limit + 1)),
        )
        figures = json.loads(done.stdout.splitlines()[-1])
    except subprocess.CalledProcessError as error:
        if error.returncode != -signal.SIGXCPU:
            raise RuntimeError(error.stderr) from error
        names = ("first_s", "cpu_s", "wall_s", "peak_mib", "sources_total", "hits", "false_alarms")
        figures = dict.fromkeys(names, "")
    described = asdict(cell)
    return {name: described[name] for name in ORDER} | {
        name: round(value, 3) if isinstance(value, float) else value for name, value in figures.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--limit", type=int, default=LIMIT_S)
    parser.add_argument("--sides", type=int, nargs="+", default=[*SIDES, 50])
    parser.add_argument("--cell")
    chosen = parser.parse_args()
    if chosen.cell is not None:
        print(json.dumps(measured(Cell(**json.loads(chosen.cell)))))
        return
    rows = []
    for cell in CELLS:
        if cell.side in chosen.sides:
            rows.append(in_process(cell, chosen.limit))
            print(rows[-1], flush=True)
    if chosen.csv is not None:
        write_csv(chosen.csv, rows)


if __name__ == "__main__":
    main()
