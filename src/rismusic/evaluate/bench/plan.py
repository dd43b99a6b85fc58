"""The parts of a benchmark: one method on one block of scenes of one cell. Does not import torch."""

from __future__ import annotations

import random
from dataclasses import dataclass

from rismusic.errors import InputError
from rismusic.evaluate.bench.methods import with_starts
from rismusic.evaluate.bench.spec import BenchSpec
from rismusic.evaluate.bench.sweeps import Cell

# Stands among the methods for the truth and the bound of the scenes themselves.
SCENES = "scenes"


@dataclass(frozen=True)
class Unit:
    """What is done at a time: scenes ``start`` to ``stop - 1`` of a cell, by one method (or ``scenes``)."""

    cell: Cell
    method: str
    start: int
    stop: int

    def __str__(self) -> str:
        return f"{self.method} in {self.cell.name}, scenes {self.start} to {self.stop - 1}"


def blocks(spec: BenchSpec) -> list[tuple[int, int]]:
    """First scene and the one behind the last of each block."""
    return [(start, min(start + spec.block, spec.scenes)) for start in range(0, spec.scenes, spec.block)]


def all_units(spec: BenchSpec) -> list[Unit]:
    """Everything that is to be done, in an order that mixes cheap and dear.

    Any stretch of it is like any other, so that shares are even and the time left can be told; and it is the
    same on every machine.
    """
    methods = (SCENES, *(name for name in with_starts(spec.rows) if not name.startswith("oracle:best")))
    units = [
        Unit(cell, method, start, stop)
        for cell in spec.cells()
        for method in methods
        for start, stop in blocks(spec)
    ]
    random.Random(0).shuffle(units)
    return units


def parse_shard(text: str) -> tuple[int, int]:
    """``i/n``: share i, counted from 0, of n.

    Raises:
        InputError: anything else.
    """
    share, slash, shares = text.partition("/")
    if not (slash and share.isdecimal() and shares.isdecimal() and int(share) < int(shares)):
        raise InputError("shard", "a share of all, such as 0/4, 1/4, 2/4 or 3/4", repr(text))
    return int(share), int(shares)
