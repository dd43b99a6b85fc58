"""Diagnosis of a training before it starts: all checks in their order."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from rismusic.doctor import (
    data_checks,
    function_checks,
    loss_checks,
    network_checks,
    replay_checks,
    training_checks,
)
from rismusic.doctor.case import Case, MakeTrainer, open_case
from rismusic.doctor.causes import suspected
from rismusic.doctor.report import Diagnosis
from rismusic.doctor.state import ERRORS
from rismusic.nn.monitors import Finding, Report
from rismusic.nn.spec import TrainSpec
from rismusic.nn.train import Trainer

Check = Callable[[Case], Report | list[Report]]

CHECKS: tuple[tuple[str, Check], ...] = (
    ("PANEL", data_checks.check_panel),
    ("FUNCTIONS", function_checks.check_functions),
    ("WAVE", data_checks.check_steering),
    ("TRUTH", data_checks.check_labels),
    ("POSITIONS", data_checks.check_positions),
    ("LINK", data_checks.check_link),
    ("DRAWS", data_checks.check_draws),
    ("LEAK", data_checks.check_splits),
    ("R_SAMP", loss_checks.check_sample_covariance),
    ("STAGES", network_checks.check_stages),
    ("SLOPE", loss_checks.check_gradients),
    ("SYMMETRY", loss_checks.check_symmetry),
    ("LOSS", loss_checks.check_loss_sizes),
    ("LITMUS", training_checks.check_first_steps),
    ("GRADPATH", network_checks.check_gradient_paths),
    ("BACKWARD", network_checks.check_backward),
    ("OPTIMIZER", network_checks.check_optimizer),
    ("INSIDE", network_checks.check_inside),
    ("INPUT", network_checks.check_invariance),
    ("CONSTANT", network_checks.check_constant_output),
    ("SCHEDULE", training_checks.check_schedule),
    ("STEP", training_checks.check_step),
    ("DECAY", training_checks.check_weight_decay),
    ("FINITE", training_checks.check_non_finite_gradient),
    ("REPLAY", replay_checks.check_replay),
    ("HELDOUT", replay_checks.check_validation_set),
    ("FILES", replay_checks.check_files),
)
"""Checks by tag, in the order in which they run: later checks assume that earlier ones pass."""


def diagnose(
    spec: TrainSpec | None = None,
    *,
    say: Callable[[str], None] = lambda _: None,
    begun: Callable[[str], None] = lambda _: None,
    trainer: MakeTrainer = Trainer,
    **settings: object,
) -> Diagnosis:
    """Find out why a training would not learn, as ``rismusic doctor`` does.

    Args:
        spec: settings of the training; the default ones if not given.
        say: called with each line for the console.
        begun: called with the tag of each check before it runs.
        trainer: creates the training loop, its learner and its scenes from settings and a run folder. Pass a
            subclass of :class:`~rismusic.nn.train.Trainer` to check a training loop of your own.
        settings: fields of :class:`~rismusic.nn.spec.TrainSpec` to change.

    Raises:
        InputError: an unknown or impossible setting.
    """
    chosen = (spec or TrainSpec()).replace(**settings)
    reports = []
    with open_case(chosen, trainer) as case:
        for tag, check in CHECKS:
            begun(tag)
            for report in run_check(tag, check, case):
                reports.append(report)
                for line in report.lines:
                    say(line)
    return Diagnosis(tuple(reports))


def run_check(tag: str, check: Check, case: Case) -> Iterator[Report]:
    """The reports of a check. An exception in the code under test becomes a finding."""
    try:
        found = check(case)
    except ERRORS as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{frame.name} ({Path(frame.filename).name}:{frame.lineno})"
        problem = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}".rstrip(".")
        if Path(frame.filename).parent == Path(__file__).parent:
            meaning = f"the check stopped with {problem}."
            advice = "Values that are not finite may be the cause: see the other findings."
        else:
            meaning, advice = f"the code under test raised {problem}.", "Fix this error first."
        failed = Finding(f"check {tag} could not run", 1.0, 0.0, False, meaning, advice, where)
        yield Report(tag, "failed", {}, (failed,))
        return
    for report in found if isinstance(found, list) else [found]:
        yield suspected(report, case)
