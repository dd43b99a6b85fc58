"""What changes while training: beta, the learning rate, the weights; and settings that are refused."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import pairwise

import pytest
import torch

from rismusic.errors import InputError
from rismusic.nn.data import beta_at, learning_rate_factor, weights_at
from rismusic.nn.spec import LossSpec, ScheduleSpec

SPEC = ScheduleSpec(epochs=40)


def test_beta_rises_in_a_straight_line_and_then_stays_near():
    betas = [beta_at(SPEC, epoch, seed=3) for epoch in range(40)]
    assert betas[0] == 0
    assert betas[:8] == pytest.approx([0.30 * epoch / 7 for epoch in range(8)])
    held = torch.tensor(betas[8:])
    assert ((held - 0.30).abs() <= 0.05).all()
    assert held.std() > 0.02
    assert (held > 0.30).any()
    assert (held < 0.30).any()


def test_jitter_is_less_in_the_search():
    held = [beta_at(ScheduleSpec.search(), epoch, seed=3) for epoch in range(8, 40)]
    assert 0.01 < max(abs(beta - 0.30) for beta in held) <= 0.02


@pytest.mark.parametrize(("epochs", "ramp"), [(1, 2), (2, 2), (5, 2), (10, 2), (11, 3), (100, 20)])
def test_the_ramp_takes_a_fifth_of_the_epochs_and_at_least_two(epochs, ramp):
    spec = ScheduleSpec(epochs=epochs, beta_jitter=0.0)
    betas = [beta_at(spec, epoch, seed=0) for epoch in range(epochs)]
    assert betas == pytest.approx([min(0.30, 0.30 * e / (ramp - 1)) for e in range(epochs)])


def test_beta_is_a_function_of_seed_and_epoch_alone():
    """Asked for in any order, after a resumption or beside other draws, it is the same."""
    forward = [beta_at(SPEC, epoch, seed=3) for epoch in range(40)]
    torch.manual_seed(1)
    assert [beta_at(SPEC, epoch, seed=3) for epoch in reversed(range(40))] == forward[::-1]
    assert beta_at(SPEC, 20, seed=4) != forward[20]
    assert len(set(forward[8:])) == 32


def test_beta_stays_within_its_limits():
    spec = ScheduleSpec(epochs=60, beta=1.0, beta_jitter=0.3)
    betas = [beta_at(spec, epoch, seed=0) for epoch in range(60)]
    assert max(betas) == 1.0
    spec = spec.replace(beta=0.0)
    assert min(beta_at(spec, epoch, seed=0) for epoch in range(60)) == 0.0


def test_learning_rate_counts_optimizer_steps():
    """Mistake 10: never 0 at the first step; the whole of the cosine within the steps there are."""
    spec = ScheduleSpec(warm_up=0.1, learning_rate_floor=0.01)
    factors = [learning_rate_factor(spec, step, 200) for step in range(200)]
    assert factors[0] == pytest.approx(1 / 20)
    assert factors[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    assert factors[-1] == pytest.approx(0.01)
    assert all(a > b for a, b in pairwise(factors[19:]))
    # Half-way through the cosine: the mean of the top and the floor.
    assert factors[109] == pytest.approx(0.505)
    assert learning_rate_factor(spec, 250, 200) == pytest.approx(0.01)


@pytest.mark.parametrize("warm_up", [0.0, 0.05, 0.99])
@pytest.mark.parametrize("steps", [1, 2, 3, 17])
def test_learning_rate_of_short_trainings_is_positive(steps, warm_up):
    spec = ScheduleSpec(warm_up=warm_up)
    factors = [learning_rate_factor(spec, step, steps) for step in range(steps + 1)]
    assert all(0 < factor <= 1 for factor in factors)
    assert max(factors) == 1


def test_learning_rate_drives_an_optimizer_step_by_step():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: learning_rate_factor(SPEC, i, 60))
    rates = []
    for _ in range(60):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.5 * learning_rate_factor(SPEC, i, 60) for i in range(60)])


def test_weights_follow_the_phases():
    loss = LossSpec()
    weights = [weights_at(loss, SPEC, epoch, 0.3) for epoch in range(40)]
    assert {w["subspace"] for w in weights[:8]} == {0.02}
    assert {w["subspace"] for w in weights[8:28]} == {0.05}
    assert weights[28]["subspace"] == pytest.approx(0.10)
    assert weights[39]["subspace"] == pytest.approx(0.20)
    assert {w["peak_contrast"] for w in weights[:28]} == {0.0}
    assert [weights[e]["peak_contrast"] for e in (28, 39)] == pytest.approx([0.05, 0.10])
    rising = [w["subspace"] for w in weights]
    assert rising == sorted(rising)
    assert {w["covariance"] for w in weights} == {1.0}
    assert {w["covariance_predicted"] for w in weights} == {0.05}
    assert {w["eigengap"] for w in weights} == {0.012}


def test_weights_of_the_search_stay():
    weights = [weights_at(LossSpec.search(), SPEC, epoch, 0.3) for epoch in range(8, 40)]
    assert all(w == LossSpec.search().weights for w in weights)
    assert LossSpec.search().weights["peak_contrast"] == 0


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_short_trainings_have_weights(epochs):
    spec = ScheduleSpec(epochs=epochs)
    for epoch in range(epochs):
        assert weights_at(LossSpec(), spec, epoch, 0.1)["covariance"] == 1.0


def test_a_blend_that_is_all_sample_needs_the_loss_of_the_prediction():
    loss = LossSpec(covariance=2.0)
    assert weights_at(loss, SPEC, 20, 0.998)["covariance_predicted"] == 0.05
    assert weights_at(loss, SPEC, 20, 0.999)["covariance_predicted"] == pytest.approx(0.4)
    strong = loss.replace(covariance_predicted=0.7)
    assert weights_at(strong, SPEC, 20, 1.0)["covariance_predicted"] == 0.7


def test_curriculum_takes_angles_then_range_then_both():
    spec = SPEC.replace(curriculum=True)
    stages = [weights_at(LossSpec(), spec, epoch, 0.3) for epoch in range(40)]
    assert [(w["angle"] > 0.01, w["log_range"] > 0) for w in stages[:8]] == [(True, False)] * 8
    assert [(w["angle"] > 0.01, w["log_range"] > 0) for w in stages[8:16]] == [(False, True)] * 8
    assert [(w["angle"] > 0.01, w["log_range"] > 0) for w in stages[16:]] == [(True, True)] * 24
    assert all(w["covariance"] == 1.0 and w["angle"] > 0 for w in stages)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"covariance": 0.0}, "loss.covariance: expected at least 0.1, found 0.0"),
        ({"covariance": 50.0}, "loss.covariance: expected at most 10, found 50.0"),
        ({"subspace": -0.1}, "loss.subspace: expected at least 0, found -0.1"),
        ({"eigengap": 0.5}, "loss.eigengap: expected at most 0.1, found 0.5"),
        ({"count": math.nan}, "loss.count"),
        ({"angle": math.inf}, "loss.angle"),
        ({"subspace_last": (0.1, 3.0)}, "loss.subspace_last"),
        ({"angle_scale_deg": 5.0}, "loss.angle_scale_deg: was removed"),
        ({"peak": 0.1}, "loss.peak: unknown setting"),
    ],
)
def test_weights_beyond_their_limits_are_refused(settings, said):
    with pytest.raises(InputError) as error:
        LossSpec(**settings)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_impossible_schedules_are_refused():
    with pytest.raises(InputError, match=r"schedule\.epochs: expected at least 1"):
        ScheduleSpec(epochs=0)
    with pytest.raises(InputError, match=r"schedule\.curriculum_ends: the range stage must not end"):
        ScheduleSpec(curriculum_ends=(0.5, 0.2))
    with pytest.raises(InputError, match=r"schedule\.curriculum: the angle stage .* leaves none of 1 "):
        ScheduleSpec(curriculum=True, epochs=1)
    with pytest.raises(InputError, match="epoch: must be 0 to 39; got 40"):
        beta_at(SPEC, 40, seed=0)
    with pytest.raises(InputError, match="epoch: must be 0 to 39; got -1"):
        weights_at(LossSpec(), SPEC, -1, 0.3)
    with pytest.raises(InputError, match="step"):
        learning_rate_factor(SPEC, -1, 10)


def test_settings_do_not_wait_for_torch():
    code = "import sys, rismusic.nn.spec\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
