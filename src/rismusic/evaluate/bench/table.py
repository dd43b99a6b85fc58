"""Rows of the benchmark's table, and the files that they are written to and read from."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple, get_type_hints

from rismusic.files import TABLE_ENDINGS, check_output, replace_file


class Share(NamedTuple):
    """A share with its 95 % confidence interval; see :mod:`~rismusic.evaluate.bench.interval`."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """One method in one cell: metrics of :class:`~rismusic.evaluate.metrics.Score`, shares with intervals.

    ``misses`` is the sum of three shares of the true sources: missed though the fit from the truth is
    likelier than the answer (``search_failures``: a better search would have found them), missed though it is
    not (``ambiguities``: only another likelihood would), and missed in scenes where another number of sources
    was found than there is (``wrong_counts``). Rows that are ``peeked`` have been told the truth.
    """

    sweep: str
    point: str
    sources: int
    snr_db: float
    method: str
    peeked: bool
    scenes: int
    misses: Share
    search_failures: Share
    ambiguities: Share
    wrong_counts: Share
    false_alarms: Share
    precision: Share
    recall: Share
    f1: Share
    count_right: Share
    gospa_m: float
    azimuth_error_deg: float
    elevation_error_deg: float
    range_error_m: float
    azimuth_over_bound: float
    elevation_over_bound: float
    inverse_range_over_bound: float

    @property
    def worst_over_bound(self) -> float:
        """The largest of the three ratios of the median error of hits to the bound; NaN without a hit."""
        return max(self.azimuth_over_bound, self.elevation_over_bound, self.inverse_range_over_bound)


@dataclass(frozen=True, kw_only=True)
class TimingRow:
    """Processor time that a method took in one cell, and scenes in a second of it (on one core)."""

    sweep: str
    point: str
    sources: int
    snr_db: float
    method: str
    scenes: int
    seconds: float
    scenes_per_s: float


Row = BenchRow | TimingRow


def record(row: Row) -> dict[str, object]:
    """The row as flat columns: a share becomes ``misses``, ``misses_low`` and ``misses_high``."""
    flat: dict[str, object] = {}
    for field in fields(row):
        value = getattr(row, field.name)
        if isinstance(value, Share):
            flat |= {
                field.name: value.value,
                f"{field.name}_low": value.low,
                f"{field.name}_high": value.high,
            }
        else:
            flat[field.name] = value
    return flat


def write_table(path: Path, rows: Sequence[Row], *, overwrite: bool) -> None:
    """Write rows as .csv or .json, every number in full; what is not a number is empty, or null.

    Raises:
        InputError: another ending; the file exists and ``overwrite`` is off; it cannot be written.
    """
    check_output(path, overwrite=overwrite, endings=TABLE_ENDINGS)
    records = [
        {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in flat.items()
        }
        for flat in map(record, rows)
    ]
    if path.suffix == ".json":
        text = json.dumps(records, indent=1, allow_nan=False) + "\n"
    else:
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        text = buffer.getvalue()
    with replace_file(path, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_table(path: Path) -> list[BenchRow]:
    """The rows of a ``results.csv``, equal to those that were written."""
    with path.open(newline="", encoding="utf-8") as file:
        return [_row(record) for record in csv.DictReader(file)]


def _row(record: Mapping[str, str]) -> BenchRow:
    values: dict[str, object] = {}
    for name, kind in get_type_hints(BenchRow).items():
        if kind is Share:
            values[name] = Share(*(_number(record[name + end]) for end in ("", "_low", "_high")))
        elif kind is bool:
            values[name] = record[name] == "True"
        else:
            values[name] = _number(record[name]) if kind is float else kind(record[name])
    return BenchRow(**values)  # type: ignore[arg-type]


def _number(text: str) -> float:
    return float(text) if text else math.nan
