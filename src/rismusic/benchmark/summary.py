r"""The results of a benchmark on disk, and their tables: one row for each method and cell, with intervals.

Each share has a 95 % interval from :func:`share_interval`. A share is :math:`p = \sum_i x_i / \sum_i n_i`
over the scenes i, where x_i of n_i sources were missed. Scenes are independent; sources of one scene are not.
The variance of the ratio exceeds that of independent sources by the design effect

.. math:: d = \frac{\sum_i (x_i - p\, n_i)^2}{p (1 - p) \sum_i n_i},

so the effective number of sources is :math:`n / \max(d, 1)`, where n is their number (Kish, "Survey
sampling", 1965; Korn and Graubard, "Confidence intervals for proportions with small expected number of
positive counts estimated from survey data", Survey Methodology 24 (1998)). With that number, Wilson's
interval ("Probable inference, the law of succession, and statistical inference", JASA 22 (1927)) stays within
0 .. 1. Unlike bootstrap percentiles it keeps a positive width when nothing was missed.

Few misses carry little information on the dependence. Two pseudo-scenes are therefore added for d only: one
with all sources missed and one with none missed. With one source in each scene d is 1, and the result is
Wilson's own interval.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple, get_type_hints

import numpy as np
import tomlkit
import torch
from jaxtyping import Float

from rismusic.batch import same_width
from rismusic.benchmark.spec import (
    NONE,
    RESULTS,
    SCENES,
    STARTS,
    TIMINGS,
    BenchSpec,
    Cell,
    Method,
    Unit,
    axis_label,
    blocks,
    parse_method,
)
from rismusic.crb import Bound
from rismusic.errors import InputError
from rismusic.files import (
    TABLE_ENDINGS,
    check_output,
    is_vacant,
    read_small,
    read_text,
    replace_file,
    write_text,
    writing,
)
from rismusic.metrics import match, score
from rismusic.sources import Sources
from rismusic.spec import flat_settings, read_toml
from rismusic.text import csv_text, json_text
from rismusic.version import __version__

SETTINGS = "settings.toml"

# Largest size of one stored unit: some hundred scenes have some hundred kilobytes.
_LARGEST_PART = 2**26

Arrays = dict[str, np.ndarray]


class Store:
    """Results of a benchmark on disk. Files are written atomically.

    The folder has ``settings.toml``, and ``parts/CELL/METHOD/SCENE.npz``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, spec: BenchSpec, *, resume: bool) -> None:
        """Create the folder, or continue in it."""
        if (self.folder / SETTINGS).exists():
            if not resume:
                raise InputError(
                    str(self.folder),
                    "already holds a benchmark; choose another, or continue with resume=True (--resume)",
                )
            kept = flat_settings(load_settings(self.folder).model_dump(mode="json"))
            given = flat_settings(spec.model_dump(mode="json"))
            for name in kept:
                if given[name] != kept[name]:
                    held = f"must be {kept[name]!r} as in {self.folder / SETTINGS}"
                    raise InputError(name, f"{held}; got {given[name]!r}")
            for name in (RESULTS, TIMINGS):  # before parts that are damaged are made again
                check_output(self.folder / name, overwrite=True)
            return
        if not is_vacant(self.folder):
            raise InputError(str(self.folder), "not an empty folder; choose a new one for the benchmark")
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        values = spec.model_dump(mode="json", exclude_none=True)
        text = tomlkit.dumps({"version": __version__, **values})
        write_text(self.folder / SETTINGS, text, overwrite=True)

    def path(self, unit: Unit) -> Path:
        """Path of the results of a unit."""
        return (
            self.folder / "parts" / unit.cell.name / unit.method.replace(":", "-") / f"{unit.start:07d}.npz"
        )

    def read(self, unit: Unit) -> Arrays | None:
        """The results of a unit; none if they are missing or the file is damaged: the unit is run again."""
        path = self.path(unit)
        if not path.exists():
            return None
        content = read_small(path, limit=_LARGEST_PART)
        try:
            return _part(content, unit)
        except Exception:  # zipfile and NumPy raise nearly everything on damaged files
            return None

    def write(self, unit: Unit, arrays: Arrays) -> None:
        """Store the results of a unit."""
        path = self.path(unit)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path, overwrite=True) as temporary:
            np.savez(temporary, allow_pickle=False, **arrays, digest=_digest(unit, arrays))

    def clear(self) -> None:
        """Remove partial files of killed runs."""
        for path in (self.folder / "parts").glob("*/*/.*.part.npz"):
            path.unlink(missing_ok=True)


def _part(content: bytes, unit: Unit) -> Arrays:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(one.file_size for one in archive.infolist()) > _LARGEST_PART:
            raise ValueError("the arrays are too large")
    with np.load(io.BytesIO(content), allow_pickle=False) as held:
        arrays = dict(held)
    digest = arrays.pop("digest")
    if not np.array_equal(digest, _digest(unit, arrays)):
        raise ValueError("the checksum is another one")
    return arrays


def _digest(unit: Unit, arrays: Arrays) -> np.ndarray:
    """SHA-256 of what a unit is and of its results."""
    total = hashlib.sha256(f"{unit.cell.name} {unit.method} {unit.start} {unit.stop}".encode())
    for name, value in sorted(arrays.items()):
        value = np.asarray(value, order="C")
        total.update(f"{name} {value.dtype.str} {list(value.shape)}\n".encode() + value.tobytes())
    return np.frombuffer(total.digest(), np.uint8)


def load_settings(folder: Path) -> BenchSpec:
    """The settings of the benchmark in a folder."""
    path = folder / SETTINGS
    if not path.exists():
        raise InputError(str(folder), f"is not the folder of a benchmark: it has no {SETTINGS}")
    values = read_toml(path)
    version = values.pop("version", None)
    if version != __version__:
        raise InputError(
            str(path), f"results of rismusic {version} cannot be continued with version {__version__}"
        )
    try:
        return BenchSpec(**values)
    except InputError as error:
        raise InputError(str(path), str(error)) from None


class Share(NamedTuple):
    """A share with its 95 % confidence interval; see :mod:`~rismusic.benchmark.summary`."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """One method in one cell: metrics of :class:`~rismusic.metrics.Score`, shares with intervals.

    ``misses`` is the sum of three shares of the true sources. ``search_failures``: the maximum-likelihood fit
    started at the truth has a higher likelihood than the estimate, so a better search would hit the sources.
    ``ambiguities``: it has not, so only another likelihood would. ``wrong_counts``: the estimated number of
    sources is wrong. ``uses_truth`` marks the rows of oracles.
    """

    sweep: str
    point: str
    sources: int
    snr_db: float
    method: str
    uses_truth: bool
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
        """Largest of the three ratios of median error to bound; NaN without a hit."""
        return max(self.azimuth_over_bound, self.elevation_over_bound, self.inverse_range_over_bound)


@dataclass(frozen=True, kw_only=True)
class TimingRow:
    """Processor time of a method in one cell, and scenes per second on one core."""

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
    """Write rows as .csv or .json in full precision; NaN becomes an empty field or null."""
    check_output(path, overwrite=overwrite, endings=TABLE_ENDINGS)
    records = [
        {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in flat.items()
        }
        for flat in map(record, rows)
    ]
    text = json_text(records) if path.suffix == ".json" else csv_text(list(records[0]), records)
    write_text(path, text, overwrite=overwrite)


def read_table(path: Path) -> list[BenchRow]:
    """Read the rows of a ``results.csv``."""
    return [_parse_row(record) for record in csv.DictReader(io.StringIO(read_text(path), newline=""))]


def _parse_row(record: Mapping[str, str]) -> BenchRow:
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


# Log-likelihoods closer than this count as equal: both fits stop within a fraction of it of the maximum.
TIE_NATS = 0.01


def cell_rows(spec: BenchSpec, cell: Cell, store: Store) -> tuple[list[BenchRow], list[TimingRow]]:
    """Rows of all methods in one cell. All of its units must be complete."""
    kept: dict[str, Arrays] = {}

    def answer(name: str) -> Arrays:
        if name not in kept:
            method = parse_method(name) if name != SCENES else None
            if method is not None and (method.uses_truth, method.base) == (True, "best"):
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
        if "seconds" in result and not method.uses_truth:
            seconds = float(result["seconds"])
            rate = row.scenes / seconds
            timings.append(
                TimingRow(**_about(cell), method=name, scenes=row.scenes, seconds=seconds, scenes_per_s=rate)
            )
    return rows, timings


def _joined(spec: BenchSpec, cell: Cell, name: str, store: Store) -> Arrays:
    """All blocks of a method in a cell, padded to the same number of sources; times are added."""
    parts = []
    for start, stop in blocks(spec):
        part = store.read(Unit(cell, name, start, stop))
        assert part is not None, "only complete benchmarks are summarised"
        parts.append(part)
    joined = {}
    for key in parts[0]:
        values = [part[key] for part in parts]
        if key in ("azimuth", "elevation", "range"):
            values = [value.numpy() for value in same_width(*map(torch.from_numpy, values))]
        if key == "seconds":
            joined[key] = np.sum(values)
        elif key == "samples":
            joined[key] = values[0]
        else:
            joined[key] = np.concatenate(values)
    return joined


def neg_log_likelihood(method: Method, answer: Arrays, scenes: Arrays) -> np.ndarray:
    r"""Negative log-likelihood that a method minimises, up to a constant of the scene, [S] nats.

    Unconditional: as stored. Conditional: :math:`L M \log f` of the cost f with the noise variance fitted.
    (With a known noise variance it is :math:`f / \sigma^2`, which has the same order.)
    """
    if method.criterion == "unconditional":
        return answer["likelihood"]
    return scenes["samples"] * np.log(answer["cost"])


def _likeliest(answers: list[Arrays], method: Method, scenes: Arrays) -> Arrays:
    """The estimate with the highest likelihood in each scene; the first one in case of a tie."""
    chosen = np.stack([neg_log_likelihood(method, one, scenes) for one in answers]).argmin(0)
    everyone = np.arange(len(chosen))
    names = ("azimuth", "elevation", "range", "cost", "likelihood")
    return {name: np.stack([one[name] for one in answers])[chosen, everyone] for name in names}


def _sources(arrays: Arrays) -> Sources:
    azimuth, elevation, distance = (
        torch.from_numpy(arrays[name]) for name in ("azimuth", "elevation", "range")
    )
    return Sources(azimuth=azimuth, elevation=elevation, range=distance)


def _row(cell: Cell, method: Method, answer: Arrays, from_truth: Arrays, scenes: Arrays) -> BenchRow:
    truth, found = _sources(scenes), _sources(answer)
    matched = match(truth, found)
    result = asdict(
        score(matched, Bound.from_covariance(torch.from_numpy(scenes["covariance"]), truth.range))
    )
    hits = matched.hit.sum(-1).double().numpy()
    true, seen = (count.double().numpy() for count in (matched.true_count, matched.found_count))
    missed = true - hits
    counted = true == seen
    search = counted & (
        neg_log_likelihood(method, from_truth, scenes) < neg_log_likelihood(method, answer, scenes) - TIE_NATS
    )
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
    return BenchRow(**_about(cell), method=method.name, uses_truth=method.uses_truth, **shares, **result)


def _about(cell: Cell) -> dict[str, Any]:
    return {name: getattr(cell, name) for name in ("sweep", "point", "sources", "snr_db")}


def share_interval(
    part: Float[np.ndarray, "*batch S"], whole: Float[np.ndarray, "*batch S"]
) -> tuple[Float[np.ndarray, "*batch"], Float[np.ndarray, "*batch"]]:
    """Limits of the 95 % interval of sum(part) / sum(whole) over scenes; 0 and 1 where both are 0."""
    trials = whole.sum(-1)
    empty = trials == 0
    n = np.where(empty, 1, trials)
    p = part.sum(-1) / n
    n = n / np.maximum(_design_effect(part, whole), 1)
    z2 = NormalDist().inv_cdf(0.975) ** 2
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n**2))) / (1 + z2 / n)
    # Rounding may push a limit past a share of exactly 0 or 1.
    low, high = np.clip(middle - half, 0, p), np.clip(middle + half, p, 1)
    return np.where(empty, 0.0, low), np.where(empty, 1.0, high)


def _design_effect(part: np.ndarray, whole: np.ndarray) -> np.ndarray | np.float64:
    """The design effect d, [...]; see the head of this module."""
    mean = whole.sum(-1) / np.maximum((whole > 0).sum(-1), 1)
    mean = np.where(mean > 0, mean, 1)[..., None]
    x = np.concatenate((part, mean, np.zeros_like(mean)), axis=-1)
    n = np.concatenate((whole, mean, mean), axis=-1)
    p = x.sum(-1) / n.sum(-1)
    return np.square(x - p[..., None] * n).sum(-1) / (p * (1 - p) * n.sum(-1))


@dataclass(frozen=True)
class Group:
    """Rows of one K over SNR, or of one K and SNR over the values of a sweep.

    ``title`` is what they have in common, ``axis`` and the C ``heads`` are what is across, and each method
    has C rows.
    """

    sweep: str
    title: str
    axis: str
    heads: tuple[str, ...]
    rows: dict[str, tuple[BenchRow, ...]]


def groups(rows: Sequence[BenchRow]) -> list[Group]:
    """All groups, in the order of the rows."""
    kept: dict[tuple[str, int, float | None], list[BenchRow]] = {}
    for row in rows:
        key = (row.sweep, row.sources, None if row.sweep == NONE else row.snr_db)
        kept.setdefault(key, []).append(row)
    result = []
    for (sweep, sources, snr_db), some in kept.items():
        methods: dict[str, list[BenchRow]] = {}
        for row in some:
            methods.setdefault(row.method, []).append(row)
        first = next(iter(methods.values()))
        grid = snr_db is None
        result.append(
            Group(
                sweep=sweep,
                title=f"K = {sources}" if snr_db is None else f"K = {sources}, {snr_db:g} dB",
                axis="SNR / dB" if grid else axis_label(sweep),
                heads=tuple(f"{row.snr_db:g} dB" if grid else row.point for row in first),
                rows={name: tuple(line) for name, line in methods.items()},
            )
        )
    return result
