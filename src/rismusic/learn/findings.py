"""What was found while a network learned, and what it means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Finding:
    """A number and what to make of it.

    Args:
        name: what was measured.
        value: what came of it.
        threshold: what it should not pass.
        fine: whether it did not.
        meaning: what it means where it did: a sentence.
        advice: what to try then: a sentence.
    """

    name: str
    value: float
    threshold: float
    fine: bool
    meaning: str
    advice: str

    @property
    def sentence(self) -> str:
        """For people."""
        return f"{self.name} = {self.value:.3g} (limit {self.threshold:.3g}): {self.meaning} {self.advice}"


@dataclass(frozen=True)
class Report:
    """The findings of one probe.

    Args:
        tag: LR, GRADPATH, GRAD, OPT, STEP, VAL, LOSS or BETA.
        text: a short line.
        values: all numbers, by name.
        findings: what some of them mean.
    """

    tag: str
    text: str
    values: Mapping[str, float]
    findings: tuple[Finding, ...] = ()

    @property
    def wrong(self) -> list[Finding]:
        """Findings that are not fine."""
        return [finding for finding in self.findings if not finding.fine]

    @property
    def lines(self) -> list[str]:
        """What is said on the console."""
        return [f"[{self.tag}] {self.text}", *(f"[{self.tag}] ! {one.sentence}" for one in self.wrong)]

    def record(self, epoch: int) -> dict[str, object]:
        """The line of the log."""
        findings = [asdict(finding) for finding in self.findings]
        return {"kind": "probe", "tag": self.tag, "epoch": epoch, **self.values, "findings": findings}


def at_least(name: str, value: float, threshold: float, meaning: str, advice: str) -> Finding:
    """Fine at the threshold and above; NaN is not."""
    return Finding(name, value, threshold, value >= threshold, meaning, advice)


def at_most(name: str, value: float, threshold: float, meaning: str, advice: str) -> Finding:
    """Fine at the threshold and below; NaN is not."""
    return Finding(name, value, threshold, value <= threshold, meaning, advice)
