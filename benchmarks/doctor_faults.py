"""Plant known mistakes into small trainings, and write which finding names each as CSV.

Run ``python benchmarks/doctor_faults.py --seeds 20`` for the table of the docs. The faults are those of
``tests/doctor/faults``.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
OUT = ROOT / "docs" / "measured" / "doctor_faults.csv"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=1, help="number of healthy trainings (default: 1)")
    parser.add_argument("--only", nargs="*", default=(), help="numbers or names of the faults to plant")
    parser.add_argument("--out", type=Path, default=OUT, help="CSV file to write")
    given = parser.parse_args()
    torch.set_num_threads(1)
    sys.path.insert(0, str(ROOT / "tests" / "doctor"))
    faults = importlib.import_module("faults.table")
    table = faults.fault_table(only=given.only, seeds=given.seeds, say=lambda line: print(line, flush=True))
    table.write(given.out)
    print(table.summary)
    return int(bool(table.missed or table.alarms))


if __name__ == "__main__":
    sys.exit(main())
