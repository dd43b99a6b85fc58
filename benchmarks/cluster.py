"""Locate on a Dask cluster of two worker processes of this machine, one of which is killed on the way.

The file must be the same as that of one process. Numbers of ``docs/performance.md``:

    python benchmarks/cluster.py --scenes 512
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from measure import report

# Each worker is killed as a whole: without its nanny, which would start it again.
_WORKER = ("-m", "dask", "worker", "--nthreads", "1", "--no-nanny", "--no-dashboard")


def main() -> None:
    # The processes started here must end also when this one is told to.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--scenes", type=int, default=512)
    arguments.add_argument("--method", default="omp")
    given = arguments.parse_args()
    rows: dict[str, float | str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recording = str(folder / "scenes.h5")
        run("simulate", "-o", recording, "--scenes", str(given.scenes), "--sources", "2", "--snr-db", "10")
        settings = ("--method", given.method, "--sources", "2")
        whole = folder / "one.csv"
        seconds = locate(recording, whole, *settings, "--workers", "1")
        rows["one process, s"] = seconds
        with_two = folder / "two.csv"
        seconds = locate(recording, with_two, *settings, "--workers", "2")
        rows["two processes, s"] = seconds
        rows["two processes, file"] = same(whole, with_two)
        for killed in (False, True):
            output = folder / f"cluster{killed}.csv"
            seconds, tasks = on_cluster(recording, output, settings, kill=killed)
            what = f"two Dask workers, {tasks}"
            rows[f"{what}, s"] = seconds
            rows[f"{what}, file"] = same(whole, output)
    report("locate on a cluster", rows)


def on_cluster(recording: str, output: Path, settings: Sequence[str], *, kill: bool) -> tuple[float, str]:
    """Seconds of ``locate`` with two Dask workers, and what was killed when."""
    log = output.with_suffix(".log")
    with log.open("w") as file:
        scheduler = subprocess.Popen(
            [sys.executable, "-m", "dask", "scheduler", "--port", "0", "--no-dashboard"], stderr=file
        )
    workers: list[subprocess.Popen[bytes]] = []
    process: subprocess.Popen[bytes] | None = None
    try:
        while (found := re.search(r"tcp://[\d.]+:\d+", log.read_text())) is None:
            time.sleep(0.1)
        address = found[0]
        workers = [
            subprocess.Popen([sys.executable, *_WORKER, address], stderr=subprocess.DEVNULL) for _ in range(2)
        ]
        begin = time.perf_counter()
        process = subprocess.Popen(
            command("locate", recording, "-o", str(output), *settings, "--cluster", address)
        )
        said = "none killed"
        state = output.with_name(f"{output.name}.run.json")
        while kill and process.poll() is None:
            done = re.search(r'"scenes": (\d+)', state.read_text()) if state.exists() else None
            if done and int(done[1]):
                workers[0].send_signal(signal.SIGKILL)
                said = f"one killed after {done[1]} scenes"
                break
            time.sleep(0.02)
        if process.wait():
            raise SystemExit(f"locate ended with {process.returncode}")
        return time.perf_counter() - begin, said
    finally:
        if process is not None:
            process.kill()
        for worker in workers:
            worker.kill()
        scheduler.kill()
        for worker in workers:
            worker.wait()
        scheduler.wait()


def locate(recording: str, output: Path, *options: str) -> float:
    """Seconds of one command."""
    begin = time.perf_counter()
    run("locate", recording, "-o", str(output), *options)
    return time.perf_counter() - begin


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "rismusic", *words]


def run(*words: str) -> None:
    subprocess.run(command(*words), check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def same(one: Path, other: Path) -> str:
    return "the same" if one.read_bytes() == other.read_bytes() else "ANOTHER"


if __name__ == "__main__":
    main()
