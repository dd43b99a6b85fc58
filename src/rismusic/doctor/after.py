"""After the fact: what a run's log says went wrong, and when."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rismusic.doctor.case import told
from rismusic.doctor.diagnose import Diagnosis
from rismusic.errors import InputError
from rismusic.nn.monitors import Finding, Report, at_least, at_most
from rismusic.nn.run_folder import LOG, RunFolder
from rismusic.nn.spec import TrainSpec

# Findings of the trainer's probes that a young network may have: they count where a training ends with them.
_YOUNG = ("VAL", "LOSS")
# Share of the epochs in which the gradient may be clipped in most steps: the first ones usually are.
_OFTEN = 0.5


def diagnose_run(folder: str | Path, *, say: Callable[[str], None] = lambda _: None) -> Diagnosis:
    """Read a run's log and say what went wrong when; the twin of ``rismusic doctor RUN``.

    Args:
        folder: of the run; the training may still be at work in it.
        say: called with each line for the console.

    Raises:
        InputError: no training's folder, or a log that is damaged or empty.
    """
    run = RunFolder(Path(folder))
    spec = run.settings()
    held: list[list[dict[str, Any]]] = [run.records(kind) for kind in ("probe", "step", "epoch")]
    if not any(held):
        raise InputError(str(run.folder / LOG), "the log of a training", "nothing in it")
    probes, steps, epochs = held
    reports = [*_probes(probes), _steps(steps), _progress(spec, epochs), _validation(epochs)]
    for report in reports:
        for line in report.lines:
            say(line)
    return Diagnosis(tuple(reports))


def number(value: object) -> float:
    """A number of the log, in which those that are not finite are text."""
    return math.nan if value is None else float(str(value))


def epochs_in_words(epochs: Sequence[int]) -> str:
    """Such as ``1 to 4, 7``; epochs count from 0, as in the log."""
    parts: list[list[int]] = []
    for epoch in sorted(set(epochs)):
        if parts and epoch == parts[-1][1] + 1:
            parts[-1][1] = epoch
        else:
            parts.append([epoch, epoch])
    return ", ".join(f"{a}" if a == b else f"{a} to {b}" for a, b in parts)


def _probes(probes: list[dict[str, Any]]) -> list[Report]:
    """The findings that the trainer itself made, by probe: each with its worst value and its epochs."""
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
        for seen in names.values():
            bad = [epoch for epoch, one in seen if not one.fine]
            share = len(bad) / len(seen)
            counts = bool(bad)
            if tag in _YOUNG:
                counts = bool(bad) and last[tag] in bad and (len(seen) < 3 or seen[-2][1].fine is False)
            elif "clipped" in seen[0][1].name:
                counts = share > _OFTEN
            worst = next((one for _, one in reversed(seen) if not one.fine), seen[-1][1])
            name = f"{worst.name}, epochs {epochs_in_words(bad)}" if counts else worst.name
            shown = worst if counts else seen[-1][1]
            findings.append(
                Finding(name, shown.value, shown.threshold, not counts, shown.meaning, shown.advice)
            )
        reports.append(told(tag, f"{last[tag] + 1} epochs", findings))
    return reports


def _steps(steps: list[dict[str, Any]]) -> Report:
    """What the single steps say."""
    if not steps:
        finding = at_least(
            "optimizer steps in the log", 0.0, 1.0, "the training took no step.", "Look at its console."
        )
        return told("STEPS", "none", [finding])
    skipped = [line["epoch"] for line in steps if number(line["taken"]) != 1]
    factors = [number(line.get("learning_rate_factor", math.nan)) for line in steps]
    odd = [
        line["epoch"]
        for line in steps
        if number(line["taken"]) == 1 and not math.isfinite(number(line["loss"]))
    ]
    still = [line["epoch"] for line, f in zip(steps, factors, strict=True) if f <= 0]
    when = f", epochs {epochs_in_words(skipped)}" if skipped else ""
    findings = [
        at_most(
            f"share of the steps that were skipped{when}",
            len(skipped) / len(steps),
            0.01,
            "gradients that are not finite.",
            "Lower the learning rates, or use precision = 'float32'.",
        ),
        at_most(
            "steps taken with a loss that is not finite"
            + (f", epochs {epochs_in_words(odd)}" if odd else ""),
            float(len(odd)),
            0.0,
            "a loss that is not finite was learned from: non-finite numbers are not skipped.",
            "Skip such steps.",
        ),
        at_most(
            "steps at a learning rate of 0" + (f", epochs {epochs_in_words(still)}" if still else ""),
            float(len(still)),
            0.0,
            "nothing was learned in them.",
            "Look at schedule and learning rates.",
        ),
    ]
    return told("STEPS", f"{len(steps)} steps", findings)


def _progress(spec: TrainSpec, epochs: list[dict[str, Any]]) -> Report:
    """Did the training loss fall, and stay down?"""
    losses = [number(line["training"].get("loss", math.nan)) for line in epochs]
    if not losses:
        return told("PROGRESS", "no epoch is finished", [])
    first, last, best = losses[0], losses[-1], min(losses)
    where = losses.index(best) if math.isfinite(best) else 0
    jumps = [epoch for epoch in range(1, len(losses)) if not losses[epoch] <= 2 * min(losses[:epoch])]
    findings = [
        at_most(
            "training loss over the least before it, largest"
            + (f", epochs {epochs_in_words(jumps)}" if jumps else ""),
            max((losses[e] / min(losses[:e]) for e in range(1, len(losses))), default=1.0),
            2.0,
            "the training diverges.",
            "Lower the learning rates, and look at the steps before it.",
        ),
    ]
    if len(losses) >= 3:
        findings.append(
            at_least(
                "share of the training loss that has gone, first epoch to best",
                1 - best / first,
                0.02,
                "the training learns nothing: its loss does not move.",
                "Run rismusic doctor on its settings.",
            )
        )
    text = f"{len(losses)} of {spec.schedule.epochs} epochs; loss {first:.4f} -> {last:.4f}, "
    text += f"best in epoch {where}"
    return told("PROGRESS", text, findings)


def _validation(epochs: list[dict[str, Any]]) -> Report:
    """Does the validation move, and go with the training?"""
    seen = [number(line["validation"]["loss"]) for line in epochs]
    if len(seen) < 2:
        return told("VALIDATION", "fewer than two epochs", [])
    spread = (max(seen) - min(seen)) / max(abs(seen[-1]), 1e-9)
    findings = [
        at_least(
            "spread of the validation loss over the epochs, relative",
            spread,
            1e-6,
            "the validation loss is constant: stale weights, or another matrix than the training's.",
            "Run rismusic doctor on its settings: [VALIDATION].",
        )
    ]
    best = seen.index(min(seen)) if all(map(math.isfinite, seen)) else 0
    after = epochs[best:]
    ratio = seen[-1] / seen[best]
    fell = number(after[-1]["training"].get("loss", math.nan)) < number(
        after[0]["training"].get("loss", math.nan)
    )
    findings.append(
        at_most(
            f"last validation loss over its least, that of epoch {best}, while the training loss falls",
            ratio if fell else 1.0,
            1.1,
            "the network learns its scenes by heart (overfitting): validation gets worse while training "
            "gets better.",
            "More or fresh scenes, a smaller network, or stop at the best epoch (patience).",
        )
    )
    own, other = (
        number(
            epochs[-1][part].get("covariance")
            if part == "training"
            else epochs[-1][part]["terms"]["covariance"]
        )
        for part in ("training", "validation")
    )
    findings.append(
        at_most(
            "covariance loss of the validation over that of the training, last epoch",
            other / own if own else math.nan,
            2.0,
            "validation is far worse than training: overfitting, or another matrix.",
            "More or fresh scenes; or run rismusic doctor on its settings: [VALIDATION].",
        )
    )
    return told("VALIDATION", f"loss {seen[0]:.4f} -> {seen[-1]:.4f}, best in epoch {best}", findings)
