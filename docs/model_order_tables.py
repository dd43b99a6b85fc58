"""Tables of the pages on the number of sources and on checks, from ``docs/measured``."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path

from markdown_table import table
from rismusic.checks import CHECKS
from rismusic.checks.conventions import CHANGES

MEASURED = Path(__file__).parent / "measured"
COUNTS = range(6)
Row = dict[str, str]


def number_scenes() -> str:
    """Number of scenes of each cell."""
    counts = sorted({int(row["scenes"]) for row in _rows("model_order.csv")})
    return f"{' to '.join(map(str, counts))} scenes a cell.\n"


def number_right() -> str:
    """Share of scenes with the right number of sources, with its interval, over K and SNR."""
    shown: dict[str, Row] = {_cell(row): {} for row in _rows("model_order.csv")}
    for row in _rows("model_order.csv"):
        limits = f"{100 * float(row['right_low']):.0f} to {100 * float(row['right_high']):.0f}"
        shown[_cell(row)][row["criterion"]] = f"{100 * float(row['right']):.0f} ({limits})"
    criteria = list(next(iter(shown.values())))
    return table(
        ["sources, SNR", *criteria],
        [[cell, *(row[name] for name in criteria)] for cell, row in shown.items()],
    )


def departures() -> str:
    """What becomes of recordings that depart from their model."""
    return _departures("departures.csv")


def departures_sbl() -> str:
    """The same for the method without a network."""
    return _departures("departures_sbl.csv")


def departures_wideband() -> str:
    """The same for hardware impairments on several subcarriers."""
    return _departures("departures_wideband.csv")


def _departures(file: str) -> str:
    heads = ("F1", "F1 of ok", "right number", "wrong", "wrong, scene ok", "not ok")
    names = ("f1", "f1_ok", "count_right", "wrong", "silent_wrong", "doubtful")
    return table(
        ["departure", *heads, "flagged of those with an error"],
        [
            [row["name"], *(_with_interval(row, name) for name in names), row["bad_flagged"]]
            for row in _rows(file)
        ],
    )


def _with_interval(row: Row, name: str) -> str:
    """A share in percent, with its interval where the table has it; none of no scene."""
    low, high = float(row.get(f"{name}_low", "nan")), float(row.get(f"{name}_high", "nan"))
    if (name == "f1_ok" and float(row["doubtful"]) == 1) or (low, high) == (0, 1):
        return "-"
    interval = "" if math.isnan(low) else f" ({100 * low:.0f} to {100 * high:.0f})"
    digits = 1 if name in ("f1", "f1_ok", "silent_wrong") else 0
    return f"{100 * float(row[name]):.{digits}f}{interval}"


def departures_constant() -> str:
    """The same for constant symbols, with 16 antennas and with one."""
    files = [f"departures_constant_{name}.csv" for name in ("16_antennas", "1_antenna")]
    pairs = zip(*map(_rows, files), strict=True)
    columns = ["F1", "right number", "wrong, scene ok", "not ok"]
    return table(
        ["departure", *(f"{name}, {antennas}" for antennas in ("M = 16", "M = 1") for name in columns)],
        [
            [
                one["name"],
                *(
                    cell
                    for row in (one, other)
                    for cell in (
                        f"{float(row['f1']):.3f}",
                        f"{100 * float(row['count_right']):.0f} %",
                        f"{100 * float(row['silent_wrong']):.1f} %",
                        f"{100 * float(row['doubtful']):.0f} %",
                    )
                ),
            ]
            for one, other in pairs
        ],
    )


def calibration_errors() -> str:
    """Expected calibration error of each set of scenes."""
    shown: dict[str, Row] = {}
    for row in _rows("probabilities.csv"):
        shown.setdefault(row["set"], {})[row["quantity"]] = f"{float(row['ece']):.3f}"
    quantities = ["existence of a source", "number of sources", "error bars"]
    return table(
        ["scenes", *(f"ECE, {name}" for name in quantities)],
        [[name, *(row.get(quantity, "-") for quantity in quantities)] for name, row in shown.items()],
    )


def number_confusion() -> str:
    """Estimated against true number of sources at 10 dB, for each criterion."""
    rows = [row for row in _rows("model_order.csv") if row["sources"] == "0" or row["snr_db"] == "10.0"]
    text = ""
    for criterion in dict.fromkeys(row["criterion"] for row in rows):
        lines = [
            [row["sources"], *(_share(row, name) for name in [f"named_{k}" for k in COUNTS] + ["named_more"])]
            for row in rows
            if row["criterion"] == criterion
        ]
        text += (
            f"**{criterion}**\n\n"
            + table(["true", *(f"{k} estimated" for k in COUNTS), "more"], lines)
            + "\n"
        )
    return text


def number_reliability() -> str:
    """Probability given to the estimated number, and how often it is right."""
    lines = [
        [
            f"{float(row['above']):g} to {float(row['to']):g}",
            row["scenes"],
            f"{float(row['stated']):.3f}",
            f"{float(row['right']):.3f} ({float(row['right_low']):.3f} to {float(row['right_high']):.3f})",
        ]
        for row in _rows("reliability.csv")
    ]
    return table(["stated", "scenes", "stated, mean", "right"], lines)


def goodness_of_fit() -> str:
    """Share of scenes whose p-value lies below a level, with the noise variance known and not known."""
    shown: dict[str, dict[str, Row]] = {}
    for row in _rows("goodness_of_fit.csv"):
        shown.setdefault(row["case"], {})[row["noise"]] = row
    levels = ("below_0.05", "below_0.01", "below_0.001")
    lines = []
    for case, pair in shown.items():
        cells = [case]
        for noise in ("known", "not known"):
            measured = pair.get(noise, {})
            cells += [f"{100 * float(measured[level]):.1f}" if measured else "" for level in levels]
        lines.append(cells)
    heads = [f"{noise}: p < {level.split('_')[1]}" for noise in ("known", "not known") for level in levels]
    return table(["case", *heads], lines)


def goodness_uniform() -> str:
    """Kolmogorov-Smirnov test of uniformity for the p-values of correct fits."""
    lines = [
        [row["case"], row["noise"], row["scenes"], f"{float(row['uniform_p']):.2f}"]
        for row in _rows("goodness_of_fit.csv")
        if row["case"].startswith("sound")
    ]
    return table(["case", "noise variance", "correct fits", "p-value of uniformity"], lines)


def wrong_conventions() -> str:
    """How often each mistake is identified."""
    lines = [
        [
            "yes" if row["truth"] == "truth" else "no",
            "none (correct)" if row["mistake"] == "sound" else f"`{row['mistake']}`",
            *(row[name] for name in ("recordings", "named", "alike", "other")),
        ]
        for row in sorted(
            _rows("wrong_conventions.csv"),
            key=lambda row: (row["truth"] != "truth", row["mistake"] != "sound"),
        )
    ]
    return table(
        [
            "truth in the file",
            "mistake",
            "recordings",
            "identified",
            "listed as equivalent",
            "another identified",
        ],
        lines,
    )


def convention_names() -> str:
    """Every mistake that is searched for, and whether this needs the truth."""
    lines = [[f"`{change.name}`", change.meaning, "yes" if change.blind else ""] for change in CHANGES]
    return table(["name", "meaning", "without truth"], lines)


def finding_names() -> str:
    """All other checks."""
    lines = [
        [f"`{name}`", meaning.replace("|", "\\|"), f"{threshold:g}", remedy]
        for name, (threshold, meaning, remedy) in CHECKS.items()
    ]
    return table(["name", "meaning", "limit", "advice"], lines)


TABLES: tuple[Callable[[], str], ...] = (
    departures,
    departures_sbl,
    departures_constant,
    departures_wideband,
    calibration_errors,
    number_scenes,
    number_right,
    number_confusion,
    number_reliability,
    goodness_of_fit,
    goodness_uniform,
    wrong_conventions,
    convention_names,
    finding_names,
)


def _rows(name: str) -> list[Row]:
    with (MEASURED / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _cell(row: Row) -> str:
    return f"{row['sources']}, {float(row['snr_db']):g} dB" if row["snr_db"] else "0, noise alone"


def _share(row: Row, name: str) -> str:
    share = 100 * int(row[name]) / int(row["scenes"])
    return f"{share:.0f}" if share else ""
