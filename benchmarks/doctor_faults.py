"""Plant faults, diagnose each training, and write what the doctor finds as CSV.

====================== ==============================================================================
``--set patched``      the list of known mistakes (``tests/doctor/faults``), and healthy trainings
``--set source``       source edits of a copy of the package (``source_faults.py``), one process for each
``--set healthy``      healthy trainings over their settings, with the shipped recipes and presets
``--set modules``      small networks of the usual kinds, healthy and with faults (``module_faults.py``)
``--set loops``        small training loops under ``rismusic.watch``, likewise (``loop_faults.py``)
====================== ==============================================================================

A fault is *named* if a finding outside its limit matches the fault's regular expression, *noticed* if there
are other findings only, and *missed* if there is none.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
MEASURED = ROOT / "docs" / "measured"
OUT = {
    "patched": MEASURED / "doctor_faults.csv",
    "source": MEASURED / "doctor_source_faults.csv",
    "healthy": MEASURED / "doctor_healthy.csv",
    "modules": MEASURED / "doctor_modules.csv",
    "loops": MEASURED / "doctor_loops.csv",
}
FAST = "--fast"
# Seconds of wall time after which a diagnosis counts as a crash.
_LIMIT = 1800


@dataclass(frozen=True)
class Outcome:
    """The diagnosis of one training or network.

    Args:
        case: name of the fault, or of the healthy training or network.
        outcome: ``named``, ``noticed``, ``missed`` or ``crashed``; ``healthy`` or ``alarm`` without a fault.
        check: check of the finding that names the fault, else of the first finding.
        finding: that finding.
        checks: all checks with a finding outside its limit.
        seconds: CPU time of the diagnosis.
        texts: all findings outside their limits.
    """

    case: str
    outcome: str
    check: str
    finding: str
    checks: str
    seconds: float
    texts: str = ""

    def __str__(self) -> str:
        found = f"[{self.check}] {self.finding}" if self.check else ""
        return f"{self.outcome:8} {self.seconds:5.1f} s  {self.case}: {found}"


def judge(case: str, names: str | None, found: Sequence[tuple[str, str]], seconds: float) -> Outcome:
    """The outcome of a diagnosis from its findings outside their limits, as pairs of check and text.

    Args:
        case: name.
        names: regular expression of the cause; None for a healthy case.
        found: check, and name and meaning of each finding.
        seconds: CPU time.
    """
    check, text = found[0] if found else ("", "")
    if names is None:
        outcome = "alarm" if found else "healthy"
    else:
        outcome = "noticed" if found else "missed"
        for check_, text_ in found:
            if re.search(names, text_):
                outcome, check, text = "named", check_, text_
                break
    checks = " ".join(dict.fromkeys(check for check, _ in found))
    texts = " | ".join(f"[{check}] {text}" for check, text in found)
    return Outcome(case, outcome, check, text, checks, round(seconds, 1), texts)


def isolated(work: Callable[[], object]) -> tuple[Any, str, float]:
    """Result, error and CPU seconds of a function in a forked process, which may import its own package.

    The parent has imported torch but not the package, so that each process saves the seconds of that import.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        process = os.fork()
        if process == 0:
            code = 1
            try:
                answer.write_text(json.dumps(work()), encoding="utf-8")
                code = 0
            except BaseException:
                answer.write_text(traceback.format_exc(limit=-3), encoding="utf-8")
            finally:
                os._exit(code)
        end = time.monotonic() + _LIMIT
        while True:
            done, status, used = os.wait4(process, os.WNOHANG)
            if done:
                break
            if time.monotonic() > end:
                os.kill(process, 9)
                used = os.wait4(process, 0)[2]
                return None, f"no answer in {_LIMIT} s", used.ru_utime + used.ru_stime
            time.sleep(0.02)
        seconds = used.ru_utime + used.ru_stime
        text = answer.read_text(encoding="utf-8") if answer.exists() else ""
        if status:
            return None, text or f"ended with status {status}", seconds
        return json.loads(text), "", seconds


def edited_package(folder: Path, file: str, old: str, new: str) -> None:
    """Copy the package into a folder, with the first occurrence of a text replaced in one file.

    Raises:
        ValueError: the text does not occur.
    """
    shutil.copytree(ROOT / "src" / "rismusic", folder / "rismusic")
    path = folder / "rismusic" / file
    text = path.read_text(encoding="utf-8")
    if old not in text:
        raise ValueError(f"{file} does not contain {old!r}")
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def changed(spec: Any, settings: Mapping[str, object]) -> Any:
    """Settings with some changed; dots in a name separate the sections."""
    values = spec.model_dump()
    for name, value in settings.items():
        *sections, last = name.split(".")
        part = values
        for section in sections:
            part = part[section]
        part[last] = value
    return type(spec).model_validate(values)


# The checks that a fault in a file concerns, for ``--fast``, up to the first that names the cause. All others
# are left out, so that a fault that is missed may still be noticed by the whole doctor.
_CONCERNED = {
    "nn/learner": "REPLAY OPTIMIZER STEP FINITE HELDOUT FILES SCHEDULE",
    "nn/train": "REPLAY HELDOUT FILES",
    "nn/data": "DRAWS LEAK HELDOUT",
    "nn/losses": "FUNCTIONS DRAWS SYMMETRY R_SAMP",
    "covariance": "FUNCTIONS R_SAMP",
    "nn/network": "INSIDE GRADPATH BACKWARD INPUT CONSTANT LITMUS",
    "nn/validation": "HELDOUT",
    "metrics": "FUNCTIONS",
    "": "WAVE TRUTH POSITIONS LINK DRAWS",
}


def concerned(file: str) -> list[str]:
    """The checks that a fault in a file concerns."""
    return next(checks for start, checks in _CONCERNED.items() if file.startswith(start)).split()


def diagnosed(
    package: Path, settings: Mapping[str, object], checks: Sequence[str] = (), names: str = ""
) -> list[tuple[str, str]]:
    """The findings of the small healthy training with the package in a folder.

    Args:
        package: folder of the package.
        settings: settings to change.
        checks: the checks to run, up to the first that names the cause; all by default.
        names: regular expression of the cause.
    """
    sys.path[:0] = [str(package), str(ROOT / "tests" / "doctor")]
    torch.set_num_threads(1)
    healthy = importlib.import_module("faults.plant").healthy
    from rismusic.doctor.case import open_case
    from rismusic.doctor.diagnose import CHECKS, diagnose, run_check

    spec = changed(healthy(), settings)
    if not checks:
        return findings(diagnose(spec))
    found: list[tuple[str, str]] = []
    with open_case(spec) as case:
        for tag in checks:
            for report in run_check(tag, dict(CHECKS)[tag], case):
                found += [(report.tag, f"{one.name}: {one.meaning}") for one in report.wrong]
            if any(re.search(names, text) for _, text in found):
                break
    return found


def preload() -> None:
    """Import in this process what the package imports from elsewhere, once for all forked ones."""
    for name in ("scipy.optimize", "pydantic", "jaxtyping", "safetensors.torch", "h5py", "rich.table"):
        importlib.import_module(name)


def findings(diagnosis: Any) -> list[tuple[str, str]]:
    """Check and text of each finding outside its limit."""
    return [
        (report.tag, f"{one.name}: {one.meaning}") for report in diagnosis.reports for one in report.wrong
    ]


def source_outcomes(only: Sequence[str]) -> Iterable[Outcome]:
    """Outcomes of the source edits, after that of the package as it is."""
    faults = importlib.import_module("source_faults").FAULTS
    preload()
    with tempfile.TemporaryDirectory() as folder:
        for fault in [f for f in faults if not set(only) - {FAST} or f.name in only]:
            package = Path(folder) / "package"
            shutil.rmtree(package, ignore_errors=True)
            edited_package(package, fault.file, fault.old, fault.new)
            checks = concerned(fault.file) if FAST in only else []
            yield outcome_of(
                fault.name, fault.names, partial(diagnosed, package, fault.settings, checks, fault.names)
            )


def outcome_of(case: str, names: str | None, work: Callable[[], object]) -> Outcome:
    """The outcome of a diagnosis in a process of its own."""
    found, error, seconds = isolated(work)
    if found is None:
        return Outcome(case, "crashed", "", " ".join(error.split())[-300:], "", round(seconds, 1))
    return judge(case, names, [(check, text) for check, text in found], seconds)


def healthy_outcomes(only: Sequence[str]) -> Iterable[Outcome]:
    """Outcomes of healthy trainings."""
    trainings = importlib.import_module("healthy_trainings").TRAININGS
    preload()
    for name in only or trainings:
        yield outcome_of(name, None, partial(healthy_findings, trainings[name]))


def healthy_findings(settings: Mapping[str, object]) -> list[tuple[str, str]]:
    """The findings of a healthy training; ``preset`` and ``recipe`` name the settings to start from."""
    sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "doctor")]
    torch.set_num_threads(1)
    healthy = importlib.import_module("faults.plant").healthy
    from rismusic.doctor.diagnose import diagnose
    from rismusic.nn.spec import TrainSpec
    from rismusic.spec import read_spec

    own = {key: value for key, value in settings.items() if key not in ("preset", "recipe")}
    spec = healthy()
    if "preset" in settings:
        spec = getattr(TrainSpec, str(settings["preset"]))()
    if "recipe" in settings:
        spec = read_spec(TrainSpec, ROOT / "recipes" / str(settings["recipe"]))
    return findings(diagnose(changed(spec, own)))


def module_outcomes(only: Sequence[str], cases: str = "module_faults") -> Iterable[Outcome]:
    """Outcomes of small networks or loops, each healthy and with its faults."""
    sys.path.insert(0, str(ROOT / "src"))
    importlib.import_module("rismusic.doctor.watch")  # Once for all: the processes share it.
    for case in importlib.import_module(cases).CASES:
        for name, names, work in case.trials():
            if not only or name in only or case.name in only:
                yield outcome_of(name, names, lambda: findings(work()))  # noqa: B023


OUTCOMES: dict[str, Callable[[Sequence[str]], Iterable[Outcome]]] = {
    "source": source_outcomes,
    "healthy": healthy_outcomes,
    "modules": module_outcomes,
    "loops": partial(module_outcomes, cases="loop_faults"),
}


def write(path: Path, rows: Sequence[Outcome]) -> None:
    """Write outcomes as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, Outcome.__dataclass_fields__, lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", choices=sorted(OUT), default="patched", dest="kind")
    parser.add_argument("--seeds", type=int, default=1, help="number of healthy trainings (patched)")
    parser.add_argument("--only", nargs="*", default=(), help="numbers or names of the cases")
    parser.add_argument(
        "--fast", action="store_true", help="only the checks that the edited file concerns (source)"
    )
    parser.add_argument("--out", type=Path, help="CSV file to write")
    given = parser.parse_args()
    torch.set_num_threads(1)
    out = given.out or OUT[given.kind]
    if given.kind == "patched":
        sys.path.insert(0, str(ROOT / "tests" / "doctor"))
        faults = importlib.import_module("faults.table")
        table = faults.fault_table(
            only=given.only, seeds=given.seeds, say=lambda line: print(line, flush=True)
        )
        table.write(out)
        print(table.summary)
        return int(bool(table.missed or table.alarms))
    rows: list[Outcome] = []
    for row in OUTCOMES[given.kind]([*given.only, *([FAST] if given.fast else [])]):
        rows.append(row)
        print(row, flush=True)
        write(out, rows)
    number = Counter(row.outcome for row in rows)
    seconds = sorted(row.seconds for row in rows)
    print(", ".join(f"{count} {name}" for name, count in number.items()), f"of {len(rows)};", end=" ")
    print(f"median {seconds[len(seconds) // 2]:.1f} s, longest {seconds[-1]:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
