"""Single functions by their definitions, with planted mistakes.

That a healthy training has no finding is tested in test_faults.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from faults.plant import healthy

from rismusic.covariance import Conditioning
from rismusic.doctor.case import open_case
from rismusic.doctor.function_checks import check_functions
from rismusic.doctor.replay_checks import check_validation_set
from rismusic.nn import learner, losses
from rismusic.nn.learner import Learner
from rismusic.nn.train import Trainer
from rismusic.simulation import scene
from rismusic.spec import SceneSpec

pytestmark = pytest.mark.usefixtures("_type_checks_compiled")


def wrong(check, trainer=Trainer, spec=None):
    with open_case(spec or healthy(), trainer) as case:
        return {one.name: one.meaning + one.where for one in check(case).wrong}


def exchanged(monkeypatch):
    own = losses.covariance_error
    monkeypatch.setattr(losses, "covariance_error", lambda covariance, target: own(target, covariance))
    return ("with `covariance` and `target` exchanged",)


def half_precision(monkeypatch):
    own = Learner.tensors
    monkeypatch.setattr(Learner, "tensors", lambda self: {n: v.half() for n, v in own(self).items()})
    return ("tensors", "rounded to half precision")


def without_averages(monkeypatch):
    own = Learner.tensors
    kept = {"weights", "taken"}
    monkeypatch.setattr(
        Learner,
        "tensors",
        lambda self: {n: v for n, v in own(self).items() if n.partition("/")[0] in kept},
    )
    return ("tensors", "number of missing tensors")


def one_side(monkeypatch):
    own = scene._positions

    def _positions(spec: SceneSpec, active, draws, dtype):
        found = own(spec, active, draws, dtype)
        return torch.cat((found[..., :1].abs(), found[..., 1:]), -1)

    monkeypatch.setattr(scene, "_positions", _positions)
    return ("_positions",)


def other_optimizer(monkeypatch):
    Adam = torch.optim.Adam
    monkeypatch.setattr(learner.torch.optim, "AdamW", lambda groups, fused: Adam(groups, fused=fused))
    return ("it is Adam)", "Learner.__init__")


def loading_of_the_shrinkage(monkeypatch):
    own = Conditioning.identity.fget
    monkeypatch.setattr(
        Conditioning,
        "identity",
        property(lambda self: own(replace(self, shrinkage=self.loading, loading=self.shrinkage))),
    )
    return ("`self.loading` and `self.shrinkage` exchanged",)


@pytest.mark.parametrize(
    "plant",
    [exchanged, half_precision, without_averages, one_side, other_optimizer, loading_of_the_shrinkage],
)
def test_the_innermost_wrong_function_is_named(monkeypatch, plant):
    words = plant(monkeypatch)
    found = wrong(check_functions)
    assert len(found) == 1
    text = " ".join([*found, *found.values()])
    assert all(word in text for word in words), text


class KeepsItsSums(Trainer):
    """Forgets to clear the sums of an epoch."""

    def _end_epoch(self, beta, weights):
        kept = dict(self.state.sums)
        super()._end_epoch(beta, weights)
        self.state.sums = kept


def test_logged_training_losses_are_those_of_the_epoch():
    name = "relative difference of the logged training losses of an epoch from the means over its steps"
    found = wrong(check_validation_set, KeepsItsSums)
    assert "it is the mean since the start" in found[name]


def test_a_step_without_a_term_counts_as_0_of_it():
    """A curriculum begins without some of the losses."""
    spec = healthy()
    assert (
        wrong(check_validation_set, spec=spec.replace(schedule=spec.schedule.replace(curriculum=True))) == {}
    )
