"""Every probe, seen fine on a sound network and failing on a planted fault."""

from __future__ import annotations

import math
from dataclasses import asdict, replace

import pytest
import torch
from train_case import SPEC, log_of, trainer

from rismusic.covariance import Covariance
from rismusic.estimation.spectra import music, rap_music_sources
from rismusic.nn import monitors as probes
from rismusic.nn import validation
from rismusic.nn.checkpoint import State
from rismusic.nn.data import TrainingScenes
from rismusic.nn.learner import Learner
from rismusic.nn.losses import Targets
from rismusic.nn.monitors import Report, at_least, at_most
from rismusic.nn.validation import covariance_statistics, rank, report, validate, variety
from rismusic.sources import Sources
from validation_stub import nowhere

WEIGHTS = SPEC.loss.weights


@pytest.fixture(scope="module")
def scenes():
    return TrainingScenes(SPEC.replace(validation_scenes=8, scored_scenes=8))


@pytest.fixture(scope="module")
def validated(scenes):
    """A sound network, its sources found by MUSIC."""
    return validate(Learner(scenes.spec), scenes)


def wrong(found: Report) -> list[str]:
    return [finding.name for finding in found.wrong]


def findings_of(now, before=None):
    return wrong(report(now, before, SPEC))


def test_findings_say_what_they_mean():
    fine, bad = at_least("a", 2.0, 1.0, "m.", "t."), at_most("a", 2.0, 1.0, "It is large.", "Make it small.")
    assert (fine.fine, bad.fine) == (True, False)
    assert bad.sentence == "a = 2 (limit 1): It is large. Make it small."
    assert not at_least("a", math.nan, 1.0, "", "").fine
    assert not at_most("a", math.nan, 1.0, "", "").fine
    told = Report("LR", "text", {"a": 2.0}, (fine, bad))
    assert told.lines == ["[LR] text", "[LR] ! a = 2 (limit 1): It is large. Make it small."]
    assert told.record(3)["findings"] == [asdict(fine), asdict(bad)]


def test_learning_rate():
    learner = Learner(SPEC)
    found = probes.learning_rate(learner)
    assert wrong(found) == []
    assert found.values.keys() == {"backbone", "head"}
    still = Learner(SPEC.replace(head_learning_rate=0.0))
    assert wrong(probes.learning_rate(still)) == ["learning rate of head"]


def test_gradient_path_and_dead_parameters(scenes):
    learner = Learner(SPEC)
    path, dead = probes.gradients(learner, scenes.probe(), 0.3, WEIGHTS)
    assert wrong(path) == wrong(dead) == []
    assert all(weight.grad is None for weight in learner.weights.values())
    # All of R_blend from R_samp: no path to either factor.
    assert len(wrong(probes.gradients(learner, scenes.probe(), 1.0, WEIGHTS)[0])) == 2
    learner.network.count.requires_grad_(False)
    _, dead = probes.gradients(learner, scenes.probe(), 0.3, WEIGHTS)
    assert wrong(dead) == ["parameters without a gradient"]
    assert dead.values["without"] == 4
    forward = learner.network.forward
    learner.network.forward = lambda given: replace(p := forward(given), range_factor=p.range_factor.detach())
    path, _ = probes.gradients(learner, scenes.probe(), 0.3, WEIGHTS)
    assert wrong(path) == ["gradient of the R_blend loss with respect to range_factor over the larger one"]


def test_first_loss():
    assert wrong(probes.first_loss(1.0)) == []
    for bad in (1e4, math.nan, math.inf):
        assert wrong(probes.first_loss(bad)) == ["loss before the first step"]


def test_change_of_the_parameters(scenes):
    learner = Learner(SPEC)
    before, rates = probes.copy_parameters(learner), probes.learning_rate(learner).values
    still = probes.parameter_updates(learner, before, rates)
    assert wrong(still) == ["median parameter update over the learning rate"]
    assert still.values["unmoved"] == len(before)
    learner.step(scenes.step(0, 0), 0.1, WEIGHTS)
    moved = probes.parameter_updates(learner, before, rates)
    assert wrong(moved) == []
    expected = max(float((learner.weights[name] - old).detach().norm()) for name, old in before.items())
    assert moved.values["max"] == pytest.approx(expected)
    assert 0.3 < moved.values["median_over_rate"] < 1.5  # AdamW moves each number by about its rate
    with torch.no_grad():
        learner.weights["details.weight"] += 1.0
    assert wrong(probes.parameter_updates(learner, before, rates)) == [
        "largest parameter update over the learning rate"
    ]


def test_steps():
    sums = {"gradient": 8.0, "gradient_backbone": 4.0, "gradient_head": 6.0, "taken": 8.0}
    sound = probes.steps(State(step=8, clipped=4, sums=sums), 1.0)
    assert wrong(sound) == []
    assert (sound.values["gradient"], sound.values["gradient_head"]) == (1.0, 0.75)
    assert wrong(probes.steps(State(step=8, clipped=5, sums=sums), 1.0)) == [
        "share of steps with a clipped gradient"
    ]
    skipped = probes.steps(State(step=16, sums=sums), 1.0)
    assert wrong(skipped) == ["share of skipped steps"]
    assert skipped.values["skipped"] == 0.5


def test_losses():
    terms = {"covariance": 0.3, "subspace": 0.2, "heat_map": 1.0, "loss": 0.5}
    weights = {"covariance": 1.0, "subspace": 0.05, "heat_map": 0.1}
    assert wrong(probes.losses(terms, weights)) == []
    assert wrong(probes.losses(terms | {"subspace": 0.0}, weights)) == ["loss subspace"]
    drowned = probes.losses(terms | {"heat_map": 1000.0}, weights)
    assert wrong(drowned) == ["share of the covariance in the total loss"]
    assert "heat_map" in drowned.wrong[0].advice
    assert drowned.values["weight_heat_map"] == 0.1


def test_beta():
    assert wrong(probes.beta(0.3)) == []
    assert wrong(probes.beta(1.0)) == ["beta"]


def test_validation_of_a_sound_network(validated):
    """By MUSIC on both covariances; the findings are fine, and each of them can fail."""
    assert findings_of(validated, before=2.0) == []
    for scored in validated.scores.values():
        assert scored.scenes == 8
        assert 0 < scored.recall <= 1
    assert validated.oracle["covariance"] < validated.terms["covariance"]
    sound = validated.covariance

    def planted(**change):
        return replace(validated, covariance=sound | change)

    for change, name in (
        ({"rank_predicted": 1.0}, "rank of R_pred over the number of sources"),
        ({"rank_predicted": 9.0}, "rank of R_pred"),
        ({"rank_blend": 13.0}, "rank of R_blend"),
        ({"error_predicted": 0.6}, "error of R_pred against R_true"),
        ({"error_predicted": math.nan}, "error of R_pred against R_true"),
        ({"variety": 0.1}, "variety of the predictions over that of the truth"),
        ({"count_variety": 0.0}, "spread of the predicted number of sources over that of the truth"),
    ):
        assert findings_of(planted(**change), before=2.0) == [name]
    assert findings_of(validated, before=validated.loss) == [
        "change of the validation loss since the last epoch"
    ]
    assert findings_of(replace(validated, loss=math.nan), before=2.0)[0] == "validation loss"
    assert findings_of(replace(validated, first_batch=6 * validated.loss), before=2.0) == [
        "loss of the first validation batch over the loss of all"
    ]


def test_a_constant_prediction_is_caught(scenes):
    """The same factors for every scene: no variety, whatever its error."""
    recording, _ = scenes.scored()
    targets = Targets.of(recording, Learner(SPEC).grid)
    F = targets.true.factor
    same = Covariance(F[:1].expand_as(F).contiguous(), targets.true.loading)
    blended = same  # its rank alone is looked at
    trapped = covariance_statistics(same, blended, targets, torch.full((8,), 2))
    assert trapped["variety"] < 1e-4
    assert trapped["count_variety"] == 0
    honest = covariance_statistics(targets.true, blended, targets, targets.count)
    assert honest["variety"] == pytest.approx(1, rel=1e-4)
    assert honest["count_variety"] == pytest.approx(1)
    assert honest["error_predicted"] < 1e-5
    assert honest["rank_predicted"] == pytest.approx(honest["sources"])


def test_rank_and_variety_against_dense_matrices(generator):
    F = torch.randn(5, 6, 3, generator=generator, dtype=torch.complex128)
    F[2, :, 2] = F[2, :, 0] + F[2, :, 1]
    covariance = Covariance(F, torch.zeros(5, dtype=torch.float64))
    assert rank(covariance).tolist() == [3, 3, 2, 3, 3]
    R = covariance.normalised().dense()
    expected = 1 - R.mean(0).abs().square().sum() / R.abs().square().sum((1, 2)).mean()
    assert variety(covariance) == pytest.approx(float(expected))


def test_sources_of_exact_covariances(scenes):
    """R_true and the true numbers: all sources where they are."""
    recording, _ = scenes.scored()
    learner = Learner(SPEC)
    targets = Targets.of(recording, learner.grid)
    found, _ = rap_music_sources(music(targets.true, targets.count.clamp_min(1)), learner.grid, targets.count)
    assert isinstance(found, Sources)
    assert torch.equal(found.active.sum(-1), targets.count)
    score = validation.score(validation.match(recording.truth, found))
    assert score.recall > 0.9
    nothing = torch.zeros(8, dtype=torch.int64)
    none, _ = rap_music_sources(music(targets.true, nothing + 1), learner.grid, nothing)
    assert not none.active.any()


def test_all_of_them_are_in_the_log(tmp_path, monkeypatch):
    """On by default: each in every epoch, the norms of the gradient in every step."""
    monkeypatch.setattr(validation, "rap_music_sources", nowhere)
    trainer(tmp_path / "run").train()
    for epoch in range(2):
        tags = [line["tag"] for line in log_of(tmp_path / "run", "probe") if line["epoch"] == epoch]
        assert set(tags) == {"LR", "GRADPATH", "GRAD", "OPT", "STEP", "VAL", "LOSS", "BETA"}
    steps = log_of(tmp_path / "run", "step")
    for line in steps:
        both = math.hypot(line["gradient_backbone"], line["gradient_head"])
        assert line["gradient"] == pytest.approx(both, rel=1e-5)
        assert line["taken"] == 1
    for epoch, line in enumerate(log_of(tmp_path / "run", "epoch")):
        for name, mean in line["training"].items():
            values = [step[name] for step in steps if step["epoch"] == epoch]
            assert mean == pytest.approx(sum(values) / len(values))
