"""One step: what is counted, skipped and averaged; and what the trainer says of planted faults."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from train_case import NETWORK, SPEC, SYSTEM, finished, log_of, resumed, trainer

from rismusic.errors import InputError
from rismusic.estimation.calibration import whitened
from rismusic.estimation.noise import guess_noise
from rismusic.nn import losses as total
from rismusic.nn.data import TrainingScenes, beta_at, learning_rate_factor, weights_at, with_estimated_noise
from rismusic.nn.learner import Learner, is_head, precision_on
from rismusic.nn.monitors import MIN_DECREASE, overfit_one_batch
from rismusic.nn.network import Network
from rismusic.nn.spec import NetworkSpec, TrainSpec
from rismusic.simulation.simulator import Simulator
from rismusic.spec import SystemSpec

WEIGHTS = SPEC.loss.weights


pytestmark = pytest.mark.usefixtures("quick_validation")


def stepped(learner, scenes, step=0):
    return learner.step(scenes.step(0, step), 0.1, WEIGHTS)


def rates(learner):
    return {group["name"]: float(group["lr"]) for group in learner.optimizer.param_groups}


def test_the_learning_rate_counts_optimizer_steps():
    """With accumulation too: 4 steps of 2 batches, the schedule of 4 steps, the first not at 0."""
    spec = SPEC.replace(accumulation=2, batch=2, schedule=SPEC.schedule.replace(epochs=1, warm_up=0.5))
    learner, scenes = Learner(spec), TrainingScenes(spec)
    for step in range(4):
        factor = learning_rate_factor(spec.schedule, step, 4)
        assert factor > 0
        expected = {"backbone": 2e-4 * factor, "head": 8e-4 * factor}
        assert rates(learner) == pytest.approx(expected, rel=1e-6)
        assert float(stepped(learner, scenes, step)["learning_rate_factor"]) == pytest.approx(factor)


def test_accumulation_is_one_larger_batch():
    parts = SPEC.replace(accumulation=4, batch=2, scenes_per_epoch=8, hidden_noise=0.0)
    whole = parts.replace(accumulation=1, batch=8)
    first, second = (stepped(Learner(spec), TrainingScenes(spec)) for spec in (parts, whole))
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-4, atol=1e-5)


def test_the_average_follows():
    """Against the recursion written out; quickly at first, by its decay at last."""
    learner, scenes = Learner(SPEC), TrainingScenes(SPEC)
    expected = {name: weight.detach().double() for name, weight in learner.weights.items()}
    for step in range(3):
        stepped(learner, scenes, step)
        decay = min(0.9, (2 + step) / (11 + step))
        for name, weight in learner.weights.items():
            expected[name] = decay * expected[name] + (1 - decay) * weight.detach().double()
    for name, value in learner.average.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-7)
    recording = next(scenes.validation())
    own, averaged = (learner.predict(recording, averaged=flag).count_logits for flag in (False, True))
    assert not torch.equal(own, averaged)


@pytest.mark.parametrize("planted", [torch.nan, torch.inf])
def test_a_gradient_that_is_not_finite_is_skipped(planted):
    learner, scenes = Learner(SPEC), TrainingScenes(SPEC)
    stepped(learner, scenes, 0)
    before = {name: value.clone() for name, value in learner.tensors().items()}
    hook = learner.network.details.weight.register_hook(lambda gradient: gradient * planted)
    numbers = stepped(learner, scenes, 1)
    assert numbers["taken"] == 0
    assert not numbers["gradient"].isfinite()
    after = learner.tensors()
    assert all(torch.equal(before[name], after[name]) for name in before)
    hook.remove()
    assert stepped(learner, scenes, 1)["taken"] == 1
    assert not torch.equal(before["weights/count.0.bias"], learner.weights["count.0.bias"])


def test_skipped_steps_are_counted_and_stop_the_run_at_last(tmp_path, monkeypatch):
    """A loss of finite value whose gradient is not: the sentence names it."""
    leakage = total.subspace_leakage
    monkeypatch.setattr(
        total, "subspace_leakage", lambda *given: (loss := leakage(*given)) + (0 * loss).sqrt()
    )
    one = trainer(tmp_path / "run", skipped_max=2)
    monkeypatch.setattr("rismusic.nn.train.check_start", lambda *_: None)
    with pytest.raises(
        InputError, match=r"3 steps were skipped.* more than skipped_max = 2;.* Not finite: subspace$"
    ):
        one.train()
    steps = log_of(tmp_path / "run", "step")
    assert [step["taken"] for step in steps] == [0.0] * 3
    assert steps[0]["gradient"] == "nan"
    assert steps[0]["loss"] > 0


def test_a_loss_that_is_not_finite_is_named(tmp_path, monkeypatch):
    error = total.covariance_error
    monkeypatch.setattr(total, "covariance_error", lambda *given: error(*given) * torch.inf)
    one = trainer(tmp_path / "run")
    with pytest.raises(InputError, match=r"is inf; not finite: covariance, covariance_predicted$"):
        one.train()
    one.state.begun = True
    one.spec = one.spec.replace(skipped_max=0)
    with pytest.raises(InputError, match=r"Not finite: covariance, covariance_predicted$"):
        one.train()


def test_a_training_that_diverged_says_so(tmp_path, monkeypatch):
    one = trainer(tmp_path / "run")

    def diverged(*_):
        raise torch.linalg.LinAlgError("the algorithm failed to converge")

    one.train()  # the first validation succeeds
    monkeypatch.setattr("rismusic.nn.train.validate", diverged)
    with pytest.raises(InputError, match=r"training: has diverged.*lower the learning rates"):
        one._end_epoch(0.1, WEIGHTS)


def test_a_detached_factor_is_refused(tmp_path, monkeypatch):
    forward = Network.forward
    monkeypatch.setattr(
        Network,
        "forward",
        lambda self, given: replace(p := forward(self, given), range_factor=p.range_factor.detach()),
    )
    with pytest.raises(InputError, match=r"prediction.range_factor: the output is constant"):
        trainer(tmp_path / "run").train()


def test_a_frozen_head_is_said(tmp_path):
    one = trainer(tmp_path / "run", schedule=SPEC.schedule.replace(epochs=1))
    said = []
    one._log = said.append
    one.learner.network.count.requires_grad_(False)
    one.train()
    assert any("do not learn: count.0.weight, count.0.bias, count.2.weight" in line for line in said)


def test_nothing_to_learn_is_refused_in_training_alone():
    learner, scenes = Learner(SPEC), TrainingScenes(SPEC)
    learner.network.requires_grad_(False)
    with pytest.raises(InputError, match="there is nothing to train"):
        stepped(learner, scenes)
    learner.predict(next(scenes.validation()))  # an evaluation needs no gradient


def test_groups():
    names = {name for name in Learner(SPEC).weights if is_head(name)}
    assert {name.rsplit(".", 1)[0] for name in names} == {
        "details", "count.0", "count.2", "stages.0.write", "stages.1.write",
    }  # fmt: skip
    groups = Learner(SPEC).optimizer.param_groups
    assert {(group["name"], group["weight_decay"]) for group in groups} == {
        (name, decay) for name in ("backbone", "head") for decay in (0.0, 0.01)
    }
    held = [weight for group in groups for weight in group["params"]]
    assert len({id(weight) for weight in held}) == len(held) == len(Learner(SPEC).weights)


def test_low_precision_stays_within_the_stages():
    spec = SPEC.replace(precision="bfloat16")
    learner, plain = Learner(spec), Learner(SPEC)
    recording = next(TrainingScenes(spec).step(0, 0))
    rough, fine = learner.network(recording), plain.network(recording)
    assert rough.grid_logits.dtype == rough.count_logits.dtype == torch.float32
    gap = (rough.grid_logits - fine.grid_logits).abs().max()
    assert 0 < gap < 0.1
    # Validation is in single precision whatever the training is in.
    validated = learner.predict(recording)
    assert torch.equal(validated.grid_logits, fine.grid_logits)
    assert stepped(learner, TrainingScenes(spec))["taken"] == 1
    assert precision_on(torch.device("cpu"), "auto") == torch.float32


def test_float16_is_scaled_and_unscaled(tmp_path):
    """The gradient that is clipped and logged is that of the loss; a skipped step halves the scale."""
    rough, fine = Learner(SPEC.replace(precision="float16")), Learner(SPEC)
    first, second = (stepped(learner, TrainingScenes(SPEC)) for learner in (rough, fine))
    assert first["taken"] == 1
    torch.testing.assert_close(first["gradient"], second["gradient"], rtol=0.05, atol=0)
    scale = rough.scaler.get_scale()
    rough.network.details.weight.register_hook(lambda gradient: gradient * torch.inf)
    assert stepped(rough, TrainingScenes(SPEC), 1)["taken"] == 0
    assert rough.scaler.get_scale() == scale / 2
    one = trainer(tmp_path / "run", precision="float16")
    stepped(one.learner, one.scenes)
    one.learner.scaler.update(8.0)
    one._checkpoint()
    assert resumed(tmp_path / "run").learner.scaler.get_scale() == 8


def test_clipping_bounds_the_gradient_that_is_used():
    """The optimizer's memory after one step is (1 - 0.9) times the clipped gradient."""
    learner = Learner(SPEC.replace(clip_norm=0.01))
    assert stepped(learner, TrainingScenes(SPEC))["clipped"] == 1
    means = [value for name, value in learner.tensors().items() if name.endswith(".exp_avg")]
    norm = torch.stack([value.norm() for value in means]).norm()
    torch.testing.assert_close(norm, torch.tensor(0.001), rtol=1e-3, atol=0)
    # The gradient of a step is its own, not the sum of all so far.
    first, again = Learner(SPEC.replace(backbone_learning_rate=0.0, head_learning_rate=0.0)), []
    for _ in range(2):
        again.append(stepped(first, TrainingScenes(SPEC))["gradient"])
    torch.testing.assert_close(*again)


def test_each_step_has_its_own_scenes_beta_and_weights(tmp_path, monkeypatch):
    """In the order of epochs and steps, as schedules and scenes have them."""
    spec = SPEC.replace(schedule=SPEC.schedule.replace(epochs=3))
    one = trainer(tmp_path / "run", spec)
    whole, made, seen, begun = Learner.step, TrainingScenes.step, [], []
    monkeypatch.setattr(TrainingScenes, "step", lambda self, *at: begun.append(at) or made(self, *at))
    monkeypatch.setattr(
        Learner, "step", lambda self, given, *now: seen.append((begun[-1], *now)) or whole(self, given, *now)
    )
    one.train()
    assert [at for at, *_ in seen] == [(epoch, step) for epoch in range(3) for step in range(4)]
    for (epoch, _), beta, weights in seen:
        assert beta == beta_at(spec.schedule, epoch, spec.seed)
        assert weights == weights_at(spec.loss, spec.schedule, epoch, beta)
    assert len({weights["subspace"] for *_, weights in seen}) == 2
    assert [line["beta"] for line in log_of(tmp_path / "run", "epoch")] == [beta for _, beta, _ in seen[::4]]


def test_litmus():
    """Five steps with beta from 0 to 0.3 take a fifth off the loss; without a learning rate nothing goes."""
    spec = SPEC.replace(network=NETWORK.replace(width=32), batch=8)
    result = overfit_one_batch(spec)
    assert result.passed
    assert result.decrease >= MIN_DECREASE
    still = overfit_one_batch(spec.replace(backbone_learning_rate=0.0, head_learning_rate=0.0))
    assert not still.passed
    assert still.decrease == pytest.approx(0, abs=1e-6)


def test_scenes_are_never_shared():
    """All numbers of all steps and processes once; training and validation differ in every scene."""
    from rismusic.nn.distributed import ProcessGroup

    spec = SPEC.replace(accumulation=2, batch=4)
    seen = [
        number
        for epoch in range(2)
        for step in range(spec.steps_per_epoch)
        for rank in range(2)
        for numbers in TrainingScenes(spec, ProcessGroup(rank, 2)).scene_ranges(epoch, step)
        for number in numbers
    ]
    assert sorted(seen) == list(range(2 * spec.scenes_per_epoch))
    alone = TrainingScenes(spec).scene_ranges(1, 1)
    shared = [TrainingScenes(spec, ProcessGroup(rank, 2)).scene_ranges(1, 1) for rank in range(2)]
    assert [sorted([*first, *second]) for first, second in zip(*shared, strict=True)] == list(
        map(list, alone)
    )
    again = spec.replace(fresh=False)
    assert TrainingScenes(again).scene_ranges(0, 1) == TrainingScenes(again).scene_ranges(1, 1)
    same = again.replace(validation_scenes=again.scenes_per_epoch)
    learned = [
        r.truth.azimuth[:, 0]
        for step in range(again.steps_per_epoch)
        for r in TrainingScenes(same).step(1, step)
    ]
    judged = [r.truth.azimuth[:, 0] for r in TrainingScenes(same).validation()]
    assert torch.equal(torch.cat(learned), torch.cat(judged))

    scenes = TrainingScenes(SPEC)
    drawn = [r.truth.azimuth[:, 0] for step in range(4) for r in scenes.step(0, step)]
    kept = [r.truth.azimuth[:, 0] for r in scenes.validation()]
    assert not torch.isin(torch.cat(drawn), torch.cat(kept)).any()
    assert torch.isin(torch.cat(drawn), torch.cat(drawn)).all()


def test_the_noise_is_hidden_in_a_half_of_the_validation():
    """The second half of what the losses see, and every second scene of what is located."""
    scenes = TrainingScenes(SPEC)
    true = Simulator(SPEC.system, seed=SPEC.seed, split="validation").scenes(0, 4)
    seen = torch.cat([recording.noise_variance for recording in scenes.validation()])
    assert (seen == true.noise_variance).tolist() == [True, True, False, False]
    whole, told = scenes.scored()
    assert torch.equal(whole.noise_variance, true.noise_variance)
    assert (told.noise_variance == true.noise_variance).tolist() == [True, False, True, False]
    guessed = with_estimated_noise(true).noise_variance
    torch.testing.assert_close(seen[2:], guessed[2:])
    torch.testing.assert_close(told.noise_variance[1::2], guessed[1::2])


def test_the_noise_is_hidden_in_a_share_of_the_batches():
    """There it is the estimate that inference would take, elsewhere the true one."""
    scenes = TrainingScenes(SPEC.replace(hidden_noise=0.3))
    hidden = [scenes.noise_hidden(epoch, step)[0] for epoch in range(40) for step in range(4)]
    assert 0.2 < sum(hidden) / len(hidden) < 0.4
    for hide in (True, False):
        step = hidden.index(hide)
        (given,), (true,) = scenes.step(0, step), TrainingScenes(SPEC.replace(hidden_noise=0.0)).step(0, step)
        assert torch.equal(given.snapshots, true.snapshots)
        estimate = guess_noise(replace(true, noise_variance=None)).float()
        assert torch.equal(given.noise_variance, estimate if hide else true.noise_variance)


def test_contradictions_are_refused():
    for wrong, field in (
        ({"scenes_per_epoch": 18}, "scenes_per_epoch"),
        ({"network": NetworkSpec(sources_max=1)}, "network.sources_max"),
        ({"batch": 0}, "batch"),
        ({"scored_scenes": 5}, "scored_scenes"),
        ({"unknown": 1}, "unknown"),
        ({"network": {"widht": 3}}, "network.widht"),
        ({"system": SystemSpec(sources=(1, 7))}, "network.sources_max"),
    ):
        with pytest.raises(InputError) as caught:
            SPEC.replace(**wrong)
        assert caught.value.field == field
    assert 80 <= TrainSpec.final().schedule.epochs <= 120
    assert SPEC.system == SYSTEM


def test_early_stopping(tmp_path):
    """Without learning no epoch is better than the first."""
    one = finished(
        tmp_path / "run", patience=1, backbone_learning_rate=0.0, head_learning_rate=0.0,
        schedule=SPEC.schedule.replace(epochs=5),
    )  # fmt: skip
    assert (one.state.epoch, one.state.best_epoch, one.state.stopped) == (2, 0, True)


def test_scenes_of_panels_that_err_are_whitened_as_in_inference():
    hardware = {"dead_fraction": 0.05, "static_phase_rad": 0.1}
    spec = SPEC.replace(system=SYSTEM.replace(hardware=hardware, snr_db=20.0), hidden_noise=0.0)
    scenes = TrainingScenes(spec)
    plain = Simulator(spec.system, seed=spec.seed, split="train").scenes(0, spec.batch)
    expected = whitened(plain, spec.system.hardware.response_error)
    given = next(scenes.step(0, 0))
    assert torch.equal(given.snapshots, expected.snapshots)
    assert torch.equal(given.channel, expected.channel)
    assert not torch.allclose(given.channel, plain.channel)
    for whole in (scenes.probe(), scenes.scored()[1], next(scenes.validation())):
        assert whole.channel.ndim == 3
        raw = Simulator(spec.system, seed=spec.seed, split="validation").scenes(0, len(whole))
        assert not torch.allclose(whole.snapshots, raw.snapshots)
