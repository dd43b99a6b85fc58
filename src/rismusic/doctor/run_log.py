"""Diagnosis of a run from its log: what went wrong, and in which epochs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rismusic.doctor.report import Diagnosis, Findings, report_of
from rismusic.errors import InputError
from rismusic.nn.monitors import Finding, Report, at_least
from rismusic.nn.run_folder import LOG, RunFolder
from rismusic.nn.spec import TrainSpec
from rismusic.text import counted, runs

Lines = list[dict[str, Any]]

# Probes whose findings an untrained network may have: they count only if the training ends with them.
_EARLY_PROBES = ("VAL", "LOSS")
# Share of the epochs with mostly clipped steps that is acceptable: the first epochs usually have them.
_CLIPPED_EPOCHS = 0.5


def diagnose_run(folder: str | Path, *, say: Callable[[str], None] = lambda _: None) -> Diagnosis:
    """Diagnose a run from its log, as ``rismusic doctor RUN`` does.

    Args:
        folder: folder of the run, which may still be in progress.
        say: called with each line for the console.

    Raises:
        InputError: not the folder of a training run, or a damaged or empty log.
    """
    run = RunFolder(Path(folder))
    spec = run.settings()
    probes, steps, epochs = (run.records(kind) for kind in ("probe", "step", "epoch"))
    if not (probes or steps or epochs):
        raise InputError(
            str(run.folder / LOG), "the log is empty; wait for the training's first step, or check the folder"
        )
    reports = [*_probes(probes), _steps(steps), _progress(spec, epochs), _validation(epochs)]
    for report in reports:
        for line in report.lines:
            say(line)
    return Diagnosis(tuple(reports))


def number(value: object) -> float:
    """A number of the log, which stores non-finite numbers as text."""
    return math.nan if value is None else float(str(value))


def epoch_ranges(epochs: Sequence[int]) -> str:
    """Epochs as text, such as ``1 to 4, 7``; counted from 0, as in the log."""
    parts = runs(sorted(set(epochs)))
    return ", ".join(f"{one[0]}" if len(one) == 1 else f"{one[0]} to {one[-1]}" for one in parts)


def _when(epochs: Sequence[int]) -> str:
    """The end of a finding's name: the epochs in which it is outside its limit, if any."""
    return f", epochs {epoch_ranges(epochs)}" if epochs else ""


def _probes(probes: Lines) -> list[Report]:
    """The findings of the training loop's own probes, each with the epochs in which it was wrong."""
    held: dict[str, dict[str, list[tuple[int, Finding]]]] = {}
    last: dict[str, int] = {}
    for line in probes:
        tag = line["tag"]
        last[tag] = max(last.get(tag, 0), line["epoch"])
        for one in line["findings"]:
            values = {**one, "value": number(one["value"]), "threshold": number(one["threshold"])}
            held.setdefault(tag, {}).setdefault(one["name"], []).append((line["epoch"], Finding(**values)))
    reports = []
    for tag, names in held.items():
        findings = []
        for history in names.values():
            bad = [epoch for epoch, one in history if not one.fine]
            counts = bool(bad)
            if tag in _EARLY_PROBES:
                # The validation before the first step is of epoch 0 too.
                counts = not history[-1][1].fine and (len(history) < 3 or not history[-2][1].fine)
            elif "clipped" in history[0][1].name:
                counts = len(bad) / len(history) > _CLIPPED_EPOCHS
            shown = history[-1][1]
            if counts:
                shown = next(one for _, one in reversed(history) if not one.fine)
            name = shown.name + (_when(bad) if counts else "")
            findings.append(replace(shown, name=name, fine=not counts))
        reports.append(report_of(tag, counted(last[tag] + 1, "epoch"), findings))
    return reports


def _steps(steps: Lines) -> Report:
    """[STEPS]: skipped steps, non-finite losses, and learning rates of 0."""
    if not steps:
        finding = at_least("optimizer steps in the log", 0.0, 1.0, "the training took no step.")
        return report_of("STEPS", "none", [finding])
    skipped = [line["epoch"] for line in steps if number(line["taken"]) != 1]
    taken = [line for line in steps if number(line["taken"]) == 1]
    non_finite = [line["epoch"] for line in taken if not math.isfinite(number(line["loss"]))]
    idle = [line["epoch"] for line in steps if number(line.get("learning_rate_factor", math.nan)) <= 0]
    findings = Findings()
    meaning = "steps were skipped because gradients were not finite."
    advice = "Lower the learning rates, or use precision = 'float32'."
    findings.at_most(
        f"share of skipped steps{_when(skipped)}", len(skipped) / len(steps), 0.01, meaning, advice
    )
    findings.must_be_zero(
        f"steps taken with a loss that is not finite{_when(non_finite)}",
        len(non_finite),
        "the weights were updated from a loss that is NaN or infinite.",
    )
    meaning = "nothing was learned in these steps."
    findings.must_be_zero(f"steps at a learning rate of 0{_when(idle)}", len(idle), meaning)
    return report_of("STEPS", f"{len(steps)} steps", findings)


def _progress(spec: TrainSpec, epochs: Lines) -> Report:
    """[PROGRESS]: does the training loss fall, without jumps?"""
    losses = [number(line["training"].get("loss", math.nan)) for line in epochs]
    if not losses:
        return report_of("PROGRESS", "no epoch is finished")
    first, last, best = losses[0], losses[-1], min(losses)
    where = losses.index(best) if math.isfinite(best) else 0
    jumps = [epoch for epoch in range(1, len(losses)) if not losses[epoch] <= 2 * min(losses[:epoch])]
    findings = Findings()
    findings.at_most(
        f"largest ratio of the training loss to its earlier minimum{_when(jumps)}",
        max((losses[e] / min(losses[:e]) for e in range(1, len(losses))), default=1.0),
        2.0,
        "the training diverges.",
        "Lower the learning rates, and see the steps before the jump.",
    )
    if len(losses) >= 3:
        findings.at_least(
            "relative decrease of the training loss from the first to the best epoch",
            1 - best / first,
            0.02,
            "the training loss does not decrease.",
            "Run rismusic doctor on the settings of the run.",
        )
    text = f"{len(losses)} of {spec.schedule.epochs} epochs; loss {first:.4f} -> {last:.4f}, "
    return report_of("PROGRESS", f"{text}best in epoch {where}", findings)


def _validation(epochs: Lines) -> Report:
    """[VALIDATION]: does the validation loss change, and improve together with the training loss?"""
    losses = [number(line["validation"]["loss"]) for line in epochs]
    if len(losses) < 2:
        return report_of("VALIDATION", "fewer than two epochs")
    best = losses.index(min(losses)) if all(map(math.isfinite, losses)) else 0
    training = [number(line["training"].get("loss", math.nan)) for line in epochs]
    own = number(epochs[-1]["training"].get("covariance"))
    other = number(epochs[-1]["validation"]["terms"]["covariance"])
    findings = Findings()
    findings.at_least(
        "relative range of the validation loss over the epochs",
        (max(losses) - min(losses)) / max(abs(losses[-1]), 1e-9),
        1e-6,
        "the validation loss is constant: stale weights, or another matrix than in training?",
        "Run rismusic doctor on the settings of the run, and see [VALIDATION].",
    )
    findings.at_most(
        f"last validation loss over its minimum (epoch {best}) while the training loss falls",
        losses[-1] / losses[best] if training[-1] < training[best] else 1.0,
        1.1,
        "the network overfits: the validation loss rises while the training loss falls.",
        "Use more or fresh scenes, a smaller network, or stop at the best epoch (patience).",
    )
    findings.at_most(
        "covariance loss of the validation over that of the training, last epoch",
        other / own if own else math.nan,
        2.0,
        "validation is far worse than training: overfitting, or another matrix?",
        "Use more or fresh scenes, or run rismusic doctor on the settings and see [VALIDATION].",
    )
    text = f"loss {losses[0]:.4f} -> {losses[-1]:.4f}, best in epoch {best}"
    return report_of("VALIDATION", text, findings)
