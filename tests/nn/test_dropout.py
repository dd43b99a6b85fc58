"""Dropout: channels left out in the training alone, by numbers that nothing but seed and place tells."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch
from train_case import NETWORK, SPEC, assert_same_run, finished, resumed, trainer

from rismusic.errors import InputError
from rismusic.nn import validation
from rismusic.nn.checkpoint import load_network, read_tensors, save_network
from rismusic.nn.data import TrainingScenes, channel_dropout
from rismusic.nn.distributed import ProcessGroup
from rismusic.nn.learner import Learner
from rismusic.nn.run_folder import STATE
from rismusic.simulation.random_numbers import Draws
from validation_stub import nowhere

WEIGHTS = SPEC.loss.weights
SHARE = 0.3


def with_dropout(share=SHARE, **settings):
    schedule = SPEC.schedule.replace(epochs=1)
    return SPEC.replace(network=NETWORK.replace(dropout=share), schedule=schedule, **settings)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(validation, "rap_music_sources", nowhere)


def draws(first, stop, seed=0):
    return Draws(seed, "train", torch.arange(first, stop))


def test_the_share_that_is_left_out():
    """Channels are 0 or 1 / 0.7, 0 in three of ten, others in each scene, block and seed."""
    wide = NETWORK.replace(dropout=SHARE, depth=2, width=96)
    kept = channel_dropout(wide, draws(0, 50))
    assert kept.shape == (50, 2, 2, 2, 96)
    torch.testing.assert_close(kept.unique(), torch.tensor([0.0, 1 / 0.7]))
    torch.testing.assert_close(kept.mean(), torch.tensor(1.0), atol=0.02, rtol=0)
    rows = kept.flatten(0, 3)
    assert len(rows.unique(dim=0)) == len(rows)
    assert torch.equal(kept[20:30], channel_dropout(wide, draws(20, 30)))
    assert not torch.equal(kept, channel_dropout(wide, draws(0, 50, seed=1)))


def test_whole_channels_of_what_a_block_adds():
    network = Learner(with_dropout()).network
    block = network.stages[0].blocks[0]
    x = torch.randn(3, 8, 5, 4, generator=torch.Generator().manual_seed(0))
    nothing, all_of_it = torch.zeros(3, 2, 8), torch.ones(3, 2, 8)
    assert torch.equal(block(x, nothing), x)
    assert torch.equal(block(x, all_of_it), block(x))
    some = nothing.clone()
    some[:, 0, 2] = 2.0
    added = block(x, some) - x
    assert added[:, 2].abs().min() > 0
    assert not added[:, [0, 1, 3, 4, 5, 6, 7]].any()


def test_in_a_step_of_the_training_and_nowhere_else():
    plain, thinned = Learner(SPEC), Learner(with_dropout())
    recordings = list(TrainingScenes(SPEC).step(0, 0))
    for look in (
        lambda one: one.losses(recordings[0], 0.1, WEIGHTS).total,
        lambda one: one.predict(recordings[0], averaged=False).grid_logits,
        lambda one: one.network(recordings[0]).grid_logits,
    ):
        assert torch.equal(look(plain), look(thinned))
    losses = [one.step(recordings, 0.1, WEIGHTS)["loss"] for one in (plain, thinned)]
    assert losses[0] != losses[1]
    # The same scenes at the next step: other channels.
    again = [Learner(with_dropout(backbone_learning_rate=0.0, head_learning_rate=0.0)) for _ in range(2)]
    first = [one.step(recordings, 0.1, WEIGHTS)["loss"] for one in again]
    assert first[0] == first[1]
    assert again[0].step(recordings, 0.1, WEIGHTS)["loss"] != first[0]


def test_the_shared_generator_has_no_part(tmp_path):
    learner, scenes = Learner(with_dropout()), TrainingScenes(with_dropout())
    state = torch.get_rng_state()
    learner.step(scenes.step(0, 0), 0.1, WEIGHTS)
    assert torch.equal(torch.get_rng_state(), state)
    finished(tmp_path / "one", with_dropout())
    with torch.random.fork_rng():
        torch.manual_seed(5)
        finished(tmp_path / "two", with_dropout())
    assert_same_run(tmp_path / "one", tmp_path / "two")
    finished(tmp_path / "other", with_dropout(), seed=1)
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "one", tmp_path / "other")


def test_interrupted_and_resumed(tmp_path):
    spec = with_dropout(save_steps=3)
    finished(tmp_path / "whole", spec)
    one = trainer(tmp_path / "run", spec)
    one._progress = lambda done, _: done == 8 and os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        one.train()
    resumed(tmp_path / "run").train()
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_two_processes_leave_out_the_same(monkeypatch):
    """Losses of two processes' shares of accumulated batches, put together, are those of one process."""
    spec = with_dropout(accumulation=2)
    asked = []
    monkeypatch.setattr(ProcessGroup, "average_gradients", lambda self, parameters, numbers: numbers)
    monkeypatch.setattr(
        "rismusic.nn.learner.channel_dropout",
        lambda network, given: asked.append(channel_dropout(network, given)) or asked[-1],
    )
    losses = []
    for rank, world in ((0, 1), (0, 2), (1, 2)):
        group = ProcessGroup(rank, world)
        numbers = Learner(spec, group).step(TrainingScenes(spec, group).step(0, 0), 0.1, WEIGHTS)
        losses.append(float(numbers["loss"]))
    whole, first, second = asked[:2], asked[2:4], asked[4:]
    for part in range(2):
        assert torch.equal(torch.cat((first[part], second[part])), whole[part])
    assert not torch.equal(whole[0], whole[1])
    assert losses[0] == pytest.approx((losses[1] + losses[2]) / 2, rel=1e-5)


def test_weights_are_the_same_with_and_without(tmp_path):
    """A file from before there was dropout has none; the weights have the same names either way."""
    before = NETWORK.model_dump(exclude={"dropout"})
    assert type(NETWORK)(**before) == NETWORK
    learners = {share: Learner(with_dropout(share)) for share in (0.0, SHARE)}
    for share, learner in learners.items():
        save_network(tmp_path / f"{share}.safetensors", learner.network)
    tensors = [read_tensors(tmp_path / f"{share}.safetensors")[0] for share in learners]
    assert tensors[0].keys() == tensors[1].keys()
    recording = next(TrainingScenes(SPEC).step(0, 0))
    loaded = load_network(tmp_path / f"{SHARE}.safetensors")
    assert loaded.spec.dropout == SHARE
    assert torch.equal(loaded(recording).count_logits, learners[0.0].network(recording).count_logits)


def test_a_training_from_before_there_was_dropout_goes_on(tmp_path):
    one = trainer(tmp_path / "run", save_steps=3)
    one._progress = lambda done, _: done == 8 and os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        one.train()
    path = tmp_path / "run" / STATE
    record = json.loads(path.read_text())
    del record["settings"]["network"]["dropout"]
    path.write_text(json.dumps(record))
    assert resumed(tmp_path / "run").state.step == 2
    record["settings"]["network"]["dropout"] = 0.1
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"network\.dropout was 0\.1 when the .* and is now 0"):
        resumed(tmp_path / "run")


@pytest.mark.parametrize("share", [-0.1, 0.6])
def test_an_impossible_share_is_refused(share):
    with pytest.raises(InputError, match=r"network\.dropout: expected (at least 0|at most 0.5)"):
        NETWORK.replace(dropout=share)
