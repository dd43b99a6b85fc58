"""A NaN or an infinity in data, outputs or losses: the step is skipped, and the cause named at last."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from train_case import SPEC, log_of, trainer

from rismusic.errors import InputError
from rismusic.nn import learner as guard
from rismusic.nn import monitors as probes
from rismusic.nn.data import TrainingScenes
from rismusic.nn.learner import Learner
from rismusic.nn.network import Network

WEIGHTS = SPEC.loss.weights


pytestmark = pytest.mark.usefixtures("quick_validation")


def planted(monkeypatch, value, field="snapshots", steps=(1,)):
    """In the first scene of some steps."""
    made = TrainingScenes.step

    def faulty(self, epoch, step):
        for recording in made(self, epoch, step):
            if epoch == 0 and step in steps:
                getattr(recording, field).view(-1)[0] = value
            yield recording

    monkeypatch.setattr(TrainingScenes, "step", faulty)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("field", ["snapshots", "channel", "noise_variance"])
def test_bad_data_change_nothing(monkeypatch, field, value):
    planted(monkeypatch, value, field)
    learner, scenes = Learner(SPEC), TrainingScenes(SPEC)
    learner.step(scenes.step(0, 0), 0.1, WEIGHTS)
    before = {name: held.clone() for name, held in learner.tensors().items()}
    numbers = learner.step(scenes.step(0, 1), 0.1, WEIGHTS)
    assert numbers["taken"] == 0
    assert numbers["loss"].isnan()
    assert all(torch.equal(before[name], held) for name, held in learner.tensors().items())
    assert learner.step(scenes.step(0, 2), 0.1, WEIGHTS)["taken"] == 1


def test_one_bad_batch_is_skipped_and_said(monkeypatch, tmp_path):
    planted(monkeypatch, torch.nan)
    one = trainer(tmp_path / "run")
    said = []
    one._log = said.append
    one.train()
    assert [line["taken"] for line in log_of(tmp_path / "run", "step")] == [1, 0, *[1] * 6]
    assert log_of(tmp_path / "run", "step")[1]["loss"] == "nan"
    assert one.state.skipped == 1
    assert log_of(tmp_path / "run", "epoch")[0]["training"]["loss"] > 0
    assert any("share of skipped steps = 0.25 (limit 0.01)" in line for line in said)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_bad_data_are_named(monkeypatch, tmp_path, value):
    planted(monkeypatch, value, steps=(1, 2))
    one = trainer(tmp_path / "run", skipped_max=1)
    with pytest.raises(InputError, match=r"2 steps were skipped .* Not finite: snapshots of the scenes$"):
        one.train()
    planted(monkeypatch, value, steps=(0,))
    with pytest.raises(InputError, match=r"is nan; not finite: snapshots of the scenes$"):
        trainer(tmp_path / "other").train()


def test_bad_outputs_are_named(monkeypatch, tmp_path):
    """As after an overflow in low precision: the search for peaks and the eigenvalues see no NaN."""
    forward = Network.forward
    one = trainer(tmp_path / "run", skipped_max=0)
    one._check_start()
    monkeypatch.setattr(
        Network,
        "forward",
        lambda self, given: replace(p := forward(self, given), range_factor=p.range_factor * torch.inf),
    )
    path, _ = probes.gradients(one.learner, one.scenes.probe(), 0.3, WEIGHTS)
    assert path.wrong
    with pytest.raises(InputError, match=r"Not finite: range_factor of the network$"):
        one.train()


def test_weights_that_overflow_reach_the_guard():
    learner, scenes = Learner(SPEC), TrainingScenes(SPEC)
    with torch.no_grad():
        learner.weights["stages.0.write.weight"].fill_(torch.inf)
    assert learner.step(scenes.step(0, 0), 0.1, WEIGHTS)["taken"] == 0


def test_nothing_is_put_aside_without_need():
    recording = next(TrainingScenes(SPEC).step(0, 0))
    prediction = Learner(SPEC).network(recording)
    for held in (recording, prediction):
        assert guard.all_finite(held)
        same = guard.replace_nonfinite(held, torch.tensor(True))
        other = guard.replace_nonfinite(held, torch.tensor(False))
        for name in guard.finite(held):
            assert torch.equal(getattr(same, name), getattr(held, name))
            assert (getattr(other, name) == 1).all()
    assert torch.equal(same.azimuth, prediction.azimuth)
