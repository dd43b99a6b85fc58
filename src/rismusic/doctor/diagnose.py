"""All checks in their order, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from rismusic.doctor import (
    covariances,
    data,
    geometry,
    loop,
    losses,
    moving,
    network,
    slopes,
    stepping,
    validating,
)
from rismusic.doctor.case import Case, MakeTrainer, opened
from rismusic.doctor.overfit import overfit as learn_by_heart
from rismusic.errors import InputError
from rismusic.nn.monitors import Finding, Report
from rismusic.nn.spec import TrainSpec
from rismusic.nn.train import Trainer

Check = Callable[[Case], Report | list[Report]]

CHECKS: tuple[tuple[str, Check], ...] = (
    ("PANEL", geometry.panel),
    ("WAVE", geometry.steering_copies),
    ("TRUTH", geometry.truth_explains),
    ("POSITIONS", data.positions),
    ("SIGNAL", data.signal),
    ("LINK", data.link),
    ("LEAK", data.leakage),
    ("R_SAMP", covariances.sample),
    ("CEILING", covariances.ceiling),
    ("BLEND", covariances.blended),
    ("ORACLE", losses.oracle),
    ("GAP", losses.gap),
    ("SLOPE", slopes.slopes),
    ("SYMMETRY", losses.symmetry),
    ("PRECISION", losses.precision),
    ("LOSS", losses.balance),
    ("LITMUS", stepping.first_steps),
    ("GRADPATH", network.paths),
    ("OPTIMIZER", network.trained),
    ("INPUT", network.invariance),
    ("CONSTANT", network.constant),
    ("SCHEDULE", loop.replay),
    ("STEP", stepping.step),
    ("DECAY", moving.decay),
    ("FINITE", moving.non_finite),
    ("DRIFT", moving.drift),
    ("VALIDATION", validating.sensitivity),
    ("SCORES", validating.scores),
    ("LOOP", loop.short_run),
)
"""In the order in which they are run: what the later ones stand on comes first."""


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor found.

    Args:
        reports: of each check.
    """

    reports: tuple[Report, ...]

    @property
    def wrong(self) -> list[Finding]:
        """Findings that are not fine, in the order of the checks."""
        return [finding for report in self.reports for finding in report.wrong]

    @property
    def healthy(self) -> bool:
        """Whether there are none."""
        return not self.wrong

    @property
    def verdict(self) -> str:
        """In one sentence."""
        looked = sum(len(report.findings) for report in self.reports)
        if self.healthy:
            return f"Healthy: nothing wrong in {looked} findings."
        first = next(report for report in self.reports if report.wrong)
        return (
            f"{len(self.wrong)} of {looked} findings are wrong. Begin with the first one: "
            f"[{first.tag}] {first.wrong[0].meaning}"
        )

    def record(self) -> dict[str, object]:
        """As JSON has it."""
        return {
            "healthy": self.healthy,
            "verdict": self.verdict,
            "reports": [
                {"tag": one.tag, "text": one.text, "findings": [_plain(f) for f in one.findings]}
                for one in self.reports
            ],
        }


def _plain(finding: Finding) -> dict[str, object]:
    """As JSON has it: numbers that are not finite become text."""
    held = asdict(finding)
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in held.items()}


def diagnose(
    spec: TrainSpec | None = None,
    *,
    overfit: bool = False,
    say: Callable[[str], None] = lambda _: None,
    begun: Callable[[str], None] = lambda _: None,
    trainer: MakeTrainer = Trainer,
    **settings: object,
) -> Diagnosis:
    """Look for the reason why a training would not learn; the twin of ``rismusic doctor``.

    Args:
        spec: the settings of the training; the default ones if none.
        overfit: whether to see too whether 512 scenes can be learned by heart (minutes).
        say: called with each line for the console, as it comes.
        begun: called with the name of each check before it is run.
        trainer: what makes the loop, its learner and its scenes, from settings and a folder: a subclass of
            :class:`~rismusic.nn.train.Trainer` for a training of one's own.
        settings: fields of :class:`~rismusic.nn.spec.TrainSpec` to change.

    Raises:
        InputError: an unknown or impossible setting.
    """
    chosen = (spec or TrainSpec()).replace(**settings)
    checks = (*CHECKS, ("OVERFIT", learn_by_heart)) if overfit else CHECKS
    reports = []
    with opened(chosen, trainer) as case:
        for tag, check in checks:
            begun(tag)
            for report in examine(tag, check, case):
                reports.append(report)
                for line in report.lines:
                    say(line)
    return Diagnosis(tuple(reports))


def examine(tag: str, check: Check, case: Case) -> Iterator[Report]:
    """The reports of a check; where the code under test fails, that is what was found."""
    try:
        found = check(case)
    except (
        InputError,
        RuntimeError,
        ValueError,
        TypeError,
        IndexError,
        KeyError,
        ArithmeticError,
        AttributeError,
    ) as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
        failed = Finding(
            f"{tag.lower()} cannot be looked at",
            1.0,
            0.0,
            False,
            f"the code under test fails: {said}.",
            "Mend this first.",
        )
        yield Report(tag, "failed", {}, (failed,))
        return
    yield from found if isinstance(found, list) else [found]
