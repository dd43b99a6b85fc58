"""The result of a diagnosis: findings by check, the verdict, a table for the console and an HTML page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from rismusic.doctor.causes import EFFECTS
from rismusic.doctor.hypotheses import explanation
from rismusic.files import read_small
from rismusic.nn.monitors import Finding, Report, at_least, at_most
from rismusic.nn.run_folder import CURVES, json_value
from rismusic.nn.spec import TrainSpec
from rismusic.report.page import LIMIT, check_report, png_address, setting_rows, write_page

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Cause:
    """A finding outside its limit, with those (check and finding) that may follow from it."""

    tag: str
    finding: Finding
    consequences: tuple[tuple[str, Finding], ...] = ()


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """The result of all checks. Printed, it shows the causes and the verdict.

    Args:
        reports: one or more for each check, in the order in which the checks ran.
    """

    reports: tuple[Report, ...]

    def __repr__(self) -> str:
        return "\n".join((*self.lines, self.verdict))

    @property
    def wrong(self) -> list[Finding]:
        """Findings outside their limits, in the order of the checks."""
        return [finding for report in self.reports for finding in report.wrong]

    @property
    def causes(self) -> list[Cause]:
        """Findings outside their limits, ordered and merged by cause.

        Findings with the same meaning or advice, and those of checks that depend on that of a finding, are
        its consequences.
        """
        left = [(report.tag, one) for report in self.reports for one in report.wrong]
        # Checks without effects come last.
        order = list(EFFECTS)
        left.sort(key=lambda pair: order.index(pair[0]) if pair[0] in EFFECTS else len(order))
        causes = []
        while left:
            (tag, first), *left = left
            effects = EFFECTS.get(tag, frozenset())
            follow = [
                other.meaning == first.meaning or (other_tag in effects or "" != other.advice == first.advice)
                for other_tag, other in left
            ]
            found = tuple(pair for pair, follows in zip(left, follow, strict=True) if follows)
            causes.append(Cause(tag, first, found))
            left = [pair for pair, follows in zip(left, follow, strict=True) if not follows]
        return causes

    @property
    def lines(self) -> list[str]:
        """The causes with their consequences, for the console."""
        lines = []
        for number, cause in enumerate(self.causes, 1):
            lines.append(f"{number}. [{cause.tag}] {cause.finding.sentence}")
            lines += [
                f"   follows: [{tag}] {one.name} = {one.value:.3g}: {one.meaning}"
                for tag, one in cause.consequences
            ]
        return lines

    @property
    def healthy(self) -> bool:
        """Whether all findings are within their limits."""
        return not self.wrong

    @property
    def verdict(self) -> str:
        """The result in one or two sentences."""
        total = sum(len(report.findings) for report in self.reports)
        if self.healthy:
            return f"Healthy: all {total} findings are within their limits."
        causes = self.causes
        first = causes[0]
        where = f" Look at {first.finding.where}." if first.finding.where else ""
        number = "one possible cause" if len(causes) == 1 else f"{len(causes)} possible causes"
        return (
            f"{len(self.wrong)} of {total} findings outside their limits, with {number}. Start here: "
            + f"[{first.tag}] {first.finding.meaning} {first.finding.advice}".rstrip()
            + where
        )

    def record(self) -> dict[str, object]:
        """The diagnosis as plain types for JSON; non-finite numbers become text."""
        return {
            "healthy": self.healthy,
            "verdict": self.verdict,
            "causes": [
                {
                    "tag": cause.tag,
                    **_plain(cause.finding),
                    "consequences": [{"tag": tag, **_plain(one)} for tag, one in cause.consequences],
                }
                for cause in self.causes
            ],
            "reports": [
                {"tag": one.tag, "text": one.text, "findings": [_plain(f) for f in one.findings]}
                for one in self.reports
            ],
        }


def _plain(finding: Finding) -> dict[str, object]:
    return {name: json_value(value) for name, value in asdict(finding).items()}


def report_of(tag: str, text: str, findings: Sequence[Finding] = ()) -> Report:
    """A report whose values are those of its findings."""
    return Report(tag, text, {one.name: one.value for one in findings}, tuple(findings))


def must_be_zero(name: str, value: float | int, meaning: str, advice: str = "", where: str = "") -> Finding:
    """A finding whose limit is 0, such as the number of things that are wrong."""
    return at_most(name, float(value), 0.0, meaning, advice, where)


class Findings(list[Finding]):
    """The findings of a check; each method adds one."""

    def at_least(
        self, name: str, value: float, limit: float, meaning: str, advice: str = "", where: str = ""
    ) -> None:
        """Add one that is fine at the limit and above."""
        self.append(at_least(name, value, limit, meaning, advice, where))

    def at_most(
        self, name: str, value: float, limit: float, meaning: str, advice: str = "", where: str = ""
    ) -> None:
        """Add one that is fine at the limit and below."""
        self.append(at_most(name, value, limit, meaning, advice, where))

    def must_be_zero(
        self, name: str, value: float | int, meaning: str, advice: str = "", where: str = ""
    ) -> None:
        """Add one whose limit is 0, such as the number of things that are wrong."""
        self.append(must_be_zero(name, value, meaning, advice, where))


def same(
    what: str, found: Tensor, expected: Tensor | Callable[[], Tensor], meaning: str, limit: float = 2e-3
) -> Finding:
    """A finding of two tensors that must be equal, up to single precision.

    If a function calculates the expected one, the meaning says which change of it gives ``found``.
    """
    right = (expected() if callable(expected) else expected).detach().cpu()
    found = found.detach().cpu()
    value = math.inf
    if found.shape == right.shape:
        value = float((found.to(right.dtype) - right).norm() / right.norm().clamp_min(1e-12))
    if value > limit and callable(expected):
        meaning = meaning.rstrip(".") + explanation([found], [expected], limit) + "."
    advice = "Compare it with the formula in the documentation."
    return at_most(f"relative distance of {what} from its definition", value, limit, meaning, advice)


def listed(names: Sequence[str], most: int = 6) -> str:
    """The first few names, separated by commas, with an ellipsis for the rest."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def findings_table(diagnosis: Diagnosis) -> Table:
    """A table for the console with one row for each cause; its consequences are in the last column."""
    from rich.table import Table

    table = Table(show_lines=True)
    for head in ("check", "measured", "value", "limit", "meaning and advice"):
        table.add_column(head, justify="right" if head in ("value", "limit") else "left")
    for cause in diagnosis.causes:
        one = cause.finding
        text = f"{one.meaning} {one.advice}".rstrip() + (f" Look at {one.where}." if one.where else "")
        if cause.consequences:
            follow = dict.fromkeys(f"[{tag}] {other.meaning}" for tag, other in cause.consequences)
            text += "\nMay follow from it: " + " ".join(follow)
        table.add_row(cause.tag, one.name, f"{one.value:.3g}", f"{one.threshold:.3g}", text)
    return table


def write_diagnosis(
    path: str | Path,
    diagnosis: Diagnosis,
    *,
    settings: TrainSpec | None = None,
    run: str | Path | None = None,
    command: str = "",
    overwrite: bool = False,
) -> None:
    """Write a diagnosis as one self-contained HTML file below 1 MB.

    Args:
        path: an ``.html`` file.
        diagnosis: the diagnosis to write.
        settings: settings of the training, shown at the end of the page.
        run: folder of the run, whose curves are shown beside the findings.
        command: command line that made the report.
        overwrite: whether to replace an existing file.

    Raises:
        InputError: the packages for reports are not installed, or the file cannot be written.
    """
    check_report(Path(path), overwrite=overwrite)
    curves = None if run is None else Path(run) / CURVES
    image = png_address(read_small(curves, limit=LIMIT)) if curves is not None and curves.is_file() else ""
    write_page(
        Path(path),
        "doctor.html.j2",
        overwrite=overwrite,
        command=command,
        diagnosis=diagnosis,
        looked=sum(len(report.findings) for report in diagnosis.reports),
        run="" if run is None else str(run),
        image=image,
        settings=[] if settings is None else setting_rows(settings),
    )
