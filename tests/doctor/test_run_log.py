"""Diagnosis of a run from its log: what went wrong, and in which epochs."""

from __future__ import annotations

import json
import math

import pytest
from faults.plant import healthy

from rismusic.doctor.run_log import diagnose_run, epoch_ranges
from rismusic.errors import InputError
from rismusic.nn import monitors as probes
from rismusic.nn.checkpoint import State
from rismusic.nn.monitors import Report, at_least, at_most
from rismusic.nn.run_folder import LOG, RunFolder

EPOCHS, STEPS = 8, 4


def fine(name="rank", value=1.0):
    return at_least(name, value, 0.5, "it is too small.", "Look.")


def run_of(folder, *, losses=None, validation=None, step=None, probe=None, terms=None):
    """A run with a log as the trainer writes it, a change of it, and no training."""
    run = RunFolder(folder / "run")
    run.create(healthy())
    losses = losses or [1.0 - 0.08 * e for e in range(EPOCHS)]
    validation = validation or [1.1 - 0.08 * e for e in range(EPOCHS)]
    lines = []
    for epoch, (own, other) in enumerate(zip(losses, validation, strict=True)):
        lines.append(probes.beta(0.3).record(epoch))
        for number in range(STEPS):
            values = {"loss": own, "taken": 1.0, "clipped": 0.0, "learning_rate_factor": 0.5}
            lines.append(
                {"kind": "step", "epoch": epoch, "step": number, **values, **(step or (lambda _: {}))(epoch)}
            )
        found = (probe or (lambda _: Report("VAL", "", {}, (fine(),))))(epoch)
        lines.append(found.record(epoch))
        seen = {"loss": other, "terms": {"covariance": (terms or (lambda _: 0.4))(epoch)}}
        training = {"loss": own, "covariance": 0.4}
        lines.append({"kind": "epoch", "epoch": epoch, "beta": 0.3, "training": training, "validation": seen})
    run.log(lines)
    return run.folder


def names(folder):
    return [finding.name for finding in diagnose_run(folder).wrong]


def test_healthy_run_has_no_finding(tmp_path):
    said = []
    diagnosis = diagnose_run(run_of(tmp_path), say=said.append)
    assert diagnosis.healthy
    assert any("[PROGRESS] 8 of 4 epochs; loss 1.0000 -> 0.4400, best in epoch 7" in line for line in said)
    json.dumps(diagnosis.record(), allow_nan=False)


def test_epoch_ranges():
    assert epoch_ranges([3, 1, 2, 7]) == "1 to 3, 7"
    assert epoch_ranges([0]) == "0"


FAULTS = [
    (
        {"step": lambda e: {"taken": 0.0, "loss": math.nan} if e in (2, 3) else {}},
        "share of skipped steps, epochs 2 to 3",
    ),
    (
        {"step": lambda e: {"loss": math.nan} if e == 4 else {}},
        "steps taken with a loss that is not finite, epochs 4",
    ),
    (
        {"step": lambda e: {"learning_rate_factor": 0.0} if e == 0 else {}},
        "steps at a learning rate of 0, epochs 0",
    ),
    ({"losses": [1.0] * 8}, "relative decrease of the training loss"),
    (
        {"losses": [1, 0.9, 0.8, 0.7, 0.6, 1.5, 2.0, 3.0]},
        "largest ratio of the training loss to its earlier minimum, epochs 5 to 7",
    ),
    ({"validation": [1.0] * 8}, "relative range of the validation loss over the epochs"),
    (
        {"validation": [1, 0.9, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3]},
        "last validation loss over its minimum (epoch 2)",
    ),
    ({"terms": lambda _: 1.2}, "covariance loss of the validation over that of the training"),
    # The trainer's own findings: those of a young network count at the end alone.
    ({"probe": lambda e: Report("VAL", "", {}, (fine(value=0.1 if e > 3 else 1.0),))}, "rank, epochs 4 to 7"),
    (
        {"probe": lambda e: Report("LR", "", {}, (fine("learning rate of head", 0.0 if e == 2 else 1.0),))},
        "learning rate of head, epochs 2",
    ),
    (
        {"probe": lambda e: probes.dead_report({"head.weight": 0.0 if e > 5 else 1.0})},
        "parameters without a gradient, epochs 6 to 7",
    ),
    (
        {
            "probe": lambda _: probes.steps(
                State(step=4, clipped=4, sums={"taken": 4.0, "gradient": 9.0}), 0.1
            )
        },
        "share of steps with a clipped gradient, epochs 0 to 7",
    ),
]


@pytest.mark.parametrize(("change", "name"), FAULTS, ids=[name for _, name in FAULTS])
def test_each_finding_can_fail(tmp_path, change, name):
    found = names(run_of(tmp_path, **change))
    assert any(one.startswith(name) for one in found), found


def test_early_findings_of_some_probes_do_not_count(tmp_path):
    young = {"probe": lambda e: Report("VAL", "", {}, (fine(value=0.1 if e < 4 else 1.0),))}
    assert names(run_of(tmp_path, **young)) == []


def test_first_steps_may_be_clipped(tmp_path):
    def probe(epoch):
        clipped = 4 if epoch < 2 else 0
        return probes.steps(State(step=4, clipped=clipped, sums={"taken": 4.0, "gradient": 9.0}), 0.1)

    assert names(run_of(tmp_path, probe=probe)) == []


def test_values_that_are_not_finite_are_read(tmp_path):
    bad = at_most("validation loss", math.nan, 100.0, "not finite.", "See the terms.")
    assert "validation loss, epochs 0 to 7" in names(
        run_of(tmp_path, probe=lambda _: Report("VAL", "", {}, (bad,)))
    )


def test_a_training_without_a_step(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.create(healthy())
    run.log([probes.beta(0.0).record(0)])
    assert names(run.folder) == ["optimizer steps in the log"]


def test_half_a_line_at_the_end_is_left_out(tmp_path):
    folder = run_of(tmp_path)
    with (folder / LOG).open("a") as file:
        file.write('{"kind": "st')
    assert diagnose_run(folder).healthy


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("", "the log is empty"), ('{"kind": "step"}\nnonsense\n{"kind": "step"}\n', "line 2")],
)
def test_a_damaged_log_is_one_sentence(tmp_path, text, sentence):
    folder = run_of(tmp_path)
    (folder / LOG).write_text(text)
    with pytest.raises(InputError, match=sentence):
        diagnose_run(folder)


def test_no_run_is_one_sentence(tmp_path):
    with pytest.raises(InputError):
        diagnose_run(tmp_path)
    run = RunFolder(tmp_path / "run")
    run.create(healthy())
    with pytest.raises(InputError, match="the log is empty"):
        diagnose_run(run.folder)
