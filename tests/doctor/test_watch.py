"""Watching a plain loop: each finding with a planted fault, and none for a healthy loop."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import rismusic
from rismusic.doctor.watch import Watch
from rismusic.errors import InputError

STEPS = 40


class Loop:
    """A small healthy loop; the faults replace its parts."""

    rate = 0.05
    scale = 1.0

    def __init__(self):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 3))
        self.optimizer = self.make(self.model)
        self.x = torch.randn(STEPS, 32, 6)
        self.y = (self.x[..., 0] > 0).long() + (self.x[..., 1] > 0).long()

    def make(self, model):
        return torch.optim.SGD(model.parameters(), lr=self.rate, momentum=0.9)

    def zero(self):
        self.optimizer.zero_grad()

    def loss(self, x, y):
        return cross_entropy(self.model(self.scale * x), y)

    def backward(self, loss):
        loss.backward()

    def step(self, number):
        self.optimizer.step()

    def run(self):
        for number, (x, y) in enumerate(zip(self.x, self.y, strict=True)):
            loss = self.loss(x, y)
            self.zero()
            self.backward(loss)
            self.step(number)

    def watched(self):
        with rismusic.watch(self.model, self.optimizer, say=lambda _: None) as w:
            self.run()
        return w


class NoZero(Loop):
    def zero(self):
        pass


class StepOutside(Loop):
    def zero(self):
        pass

    def step(self, number):
        pass

    def run(self):
        self.x, self.y = self.x.repeat(2, 1, 1), self.y.repeat(2, 1)
        super().run()
        self.optimizer.step()


class NeverSteps(StepOutside):
    def run(self):
        Loop.run(self)


class NoBackward(Loop):
    def backward(self, loss):
        pass


class StaleModel(Loop):
    def make(self, model):
        return super().make(copy.deepcopy(model))


class HeadOnly(Loop):
    def make(self, model):
        return super().make(model[3])


class NoRate(Loop):
    rate = 0.0


class TinyRate(Loop):
    rate = 1e-12


class HugeRate(Loop):
    rate = 1e3


class Evaluation(Loop):
    def __init__(self):
        super().__init__()
        self.model.eval()


class Bytes(Loop):
    scale = 100.0
    rate = 1e-5


class DoubleSoftmax(Loop):
    def loss(self, x, y):
        return cross_entropy(self.model(x).softmax(1), y)


class NotANumber(Loop):
    def loss(self, x, y):
        return super().loss(x, y) * float("nan")


class Rising(Loop):
    rate = 0.01

    def backward(self, loss):
        (-loss).backward()


class Detached(Loop):
    def loss(self, x, y):
        return cross_entropy(self.model[3](self.model[:3](x).detach()), y)


class Restored(Loop):
    """Something puts the weights back after each step."""

    def step(self, number):
        kept = copy.deepcopy(self.model.state_dict())
        super().step(number)
        self.model.load_state_dict(kept)


class EpochSchedule(Loop):
    def step(self, number):
        super().step(number)
        for group in self.optimizer.param_groups:
            group["lr"] *= 0.5


class DeadUnits(Loop):
    def __init__(self):
        super().__init__()
        nn.init.constant_(self.model[0].bias, -50.0)


class Explode(Loop):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Linear(6, 32), *(nn.Linear(32, 32) for _ in range(8)), nn.Linear(32, 3))
        for part in self.model[1:6]:
            nn.init.normal_(part.weight, std=1e-3)
        self.optimizer = self.make(self.model)


FAULTS = [
    (NoZero, "zero_grad is missing"),
    (StepOutside, "its step is outside the batch loop"),
    (NeverSteps, "the optimizer never steps"),
    (NoBackward, "backward was never called"),
    (StaleModel, "other weights than those of the model"),
    (HeadOnly, "these parameters never change: 0.weight, 0.bias"),
    (NoRate, "nothing is learned in these steps"),
    (TinyRate, "the learning rate is too low"),
    (HugeRate, "the learning rate or the weight decay is too high"),
    (Evaluation, "trained in evaluation mode"),
    (Bytes, "the input of 0 is not normalised"),
    (DoubleSoftmax, "double softmax"),
    (NotANumber, "the loss is NaN or infinite, first at backward 0"),
    (Rising, "the loss falls"),
    (Detached, "these parameters do not learn: 0.weight, 0.bias"),
    (Restored, "something restores them"),
    (EpochSchedule, "the schedule was made for epochs"),
    (DeadUnits, "dead ReLU"),
    (Explode, "the gradient vanishes"),
]


@pytest.mark.parametrize(("loop", "text"), FAULTS, ids=[loop.__name__ for loop, _ in FAULTS])
def test_each_fault_is_named(loop, text):
    if loop is Rising:
        # The loss that is differentiated falls without limit; what is logged is its negative.
        losses = loop().watched().losses
        assert losses[-1] < losses[0]
        return
    diagnosis = loop().watched().diagnosis
    assert any(text in one.sentence for one in diagnosis.wrong), [one.sentence for one in diagnosis.wrong]


def test_healthy_loop_has_no_finding_and_is_unchanged():
    plain, loop = Loop(), Loop()
    torch.manual_seed(1)
    plain.run()
    torch.manual_seed(1)
    watched = loop.watched()
    assert [one.sentence for one in watched.diagnosis.wrong] == []
    assert len(watched.losses) == STEPS
    for one, two in zip(plain.model.parameters(), loop.model.parameters(), strict=True):
        assert torch.equal(one, two)
    assert not loop.model._forward_hooks
    assert not loop.model[0]._forward_pre_hooks


def test_accumulation_and_a_pair_of_networks_are_healthy():
    """Two backward calls per step; and a GAN, where one loss leaves gradients in the other network."""

    class Accumulated(Loop):
        def backward(self, loss):
            (loss / 2).backward(retain_graph=True)
            (loss / 2).backward()

    assert Accumulated().watched().diagnosis.healthy
    torch.manual_seed(0)
    parts = {"g": nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)), "d": nn.Linear(2, 1)}
    optimizers = [torch.optim.Adam(part.parameters(), lr=1e-3) for part in parts.values()]
    with rismusic.watch(parts, optimizers, say=lambda _: None) as w:
        for _ in range(15):
            real, fake = torch.randn(16, 2) + 1, parts["g"](torch.randn(16, 4))
            optimizers[1].zero_grad()
            (parts["d"](fake.detach()).sigmoid().mean() - parts["d"](real).sigmoid().mean()).backward()
            optimizers[1].step()
            optimizers[0].zero_grad()
            (-parts["d"](fake).sigmoid().mean()).backward()
            optimizers[0].step()
    assert [one.sentence for one in w.diagnosis.wrong] == []


def test_verdict_is_said_at_the_end_but_not_after_an_error():
    said = []
    loop = Loop()
    with rismusic.watch(loop.model, loop.optimizer, say=said.append):
        loop.run()
    assert said[-1].startswith("Healthy")
    said.clear()
    with pytest.raises(ZeroDivisionError), rismusic.watch(loop.model, say=said.append):
        raise ZeroDivisionError
    assert said == []
    with pytest.raises(InputError, match="model: it has no parameters"):
        Watch(nn.ReLU())


class AlmostZero(Loop):
    """All weights start at 0."""

    def __init__(self):
        super().__init__()
        with torch.no_grad():
            for weight in self.model.parameters():
                weight.zero_()


class TooLarge(Explode):
    """Activations grow from layer to layer."""

    def __init__(self):
        super().__init__()
        with torch.no_grad():
            for part in self.model[:8]:
                part.weight.normal_(std=3.0)


class Exchanged(Loop):
    """A reshape in place of a transpose."""

    def loss(self, x, y):
        return super().loss(x.reshape(6, 32).T, y)


@pytest.mark.parametrize(
    ("loop", "text"),
    [
        (AlmostZero, "the initial weights of 0.weight, 3.weight are 0"),
        (TooLarge, "the activations grow from layer to layer"),
        (Exchanged, "turns [32, 6] into [6, 32]: axes are mixed up"),
    ],
)
def test_initial_weights_and_exchanged_axes(loop, text):
    found = [one.sentence for one in loop().watched().diagnosis.wrong]
    assert any(text in one for one in found), found


def test_optimizers_that_are_made_within_the_context_are_found():
    """As those of Lightning and of other frameworks; others do not count."""
    loop, other = Loop(), Loop()
    with rismusic.watch(loop.model, say=lambda _: None) as w:
        loop.run()
        other.run()
    assert w.optimizers == [loop.optimizer]
    assert w.diagnosis.healthy
    loop.optimizer = None
    with rismusic.watch(loop.model, say=lambda _: None) as w:
        loop.loss(loop.x[0], loop.y[0]).backward()
        other.optimizer.step()
    assert "no optimizer with weights of the model steps" in w.diagnosis.wrong[0].meaning


class Scaled(Loop):
    """Validates on inputs of another scale, with the loss or with the share of right classes."""

    loss_of_validation = staticmethod(cross_entropy)
    evaluation = False

    def step(self, number):
        super().step(number)
        if number % 10 == 0:
            self.model.train(not self.evaluation)
            with torch.no_grad():
                out = self.model(50 * self.x[number])
            self.model.train()
            self.loss_of_validation(out, self.y[number])


class ScaledAccuracy(Scaled):
    evaluation = True

    @staticmethod
    def loss_of_validation(out, y):
        return (out.argmax(1) == y).double().mean()


class Plays(ScaledAccuracy):
    """Passes whose outputs are not compared with data, as those of a player."""

    @staticmethod
    def loss_of_validation(out, y):
        return (y + 0.1 * (out.argmax(1) - 1)).abs() > 1


def test_only_what_is_compared_with_data_is_a_validation():
    for loop, wrong in ((Scaled, True), (ScaledAccuracy, True), (Plays, False)):
        found = [one.sentence for one in loop().watched().diagnosis.wrong]
        assert any("inputs of the validation" in one for one in found) == wrong, (loop, found)


class Bootstrapped(Loop):
    """A sum of rewards whose targets are outputs of a network that follows the one that is trained."""

    rate = 1e-3
    follows = True
    drift = 0.0

    def __init__(self):
        super().__init__()
        self.target = copy.deepcopy(self.model)

    def run(self):
        target = self.target
        for number, x in enumerate(self.x.repeat(4, 1, 1)):
            with torch.no_grad():
                goal = 1 + 1.1 * target(x + 0.1) + self.drift * number**2
            self.optimizer.zero_grad()
            nn.functional.mse_loss(self.model(x), goal).backward()
            self.optimizer.step()
            if self.follows:
                target.load_state_dict(self.model.state_dict())


class FixedTeacher(Bootstrapped):
    follows = False
    drift = 1e-3


def test_loss_may_rise_while_its_targets_move():
    for loop, wrong in ((Bootstrapped, False), (FixedTeacher, True)):
        found = [one.sentence for one in loop().watched().diagnosis.wrong]
        assert any("the loss rises" in one for one in found) == wrong, (loop, found)


class FrozenBackbone(Loop):
    """A frozen part with batch normalisation and dropout in evaluation mode, and a head that is trained."""

    def __init__(self):
        super().__init__()
        backbone = nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1))
        self.model = nn.Sequential(backbone.requires_grad_(False), nn.Linear(32, 3)).eval()
        self.optimizer = self.make(self.model[1])


class DropoutOfTheHead(FrozenBackbone):
    """The head has dropout, which evaluation mode turns off."""

    def __init__(self):
        super().__init__()
        self.model[1] = nn.Sequential(nn.Dropout(0.1), self.model[1]).eval()


def test_evaluation_mode_of_a_frozen_part_is_right():
    for loop, wrong in ((FrozenBackbone, False), (DropoutOfTheHead, True)):
        found = [one.sentence for one in loop().watched().diagnosis.wrong]
        assert any("trained in evaluation mode" in one for one in found) == wrong, (loop, found)


@pytest.mark.parametrize("batch", [16, 100])
def test_bias_of_a_critic_whose_gradient_cancels_has_none(batch):
    """The generator's loss leaves a gradient in the critic, which is reset before the critic's step."""
    torch.manual_seed(0)
    parts = {"g": nn.Linear(4, 2), "d": nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))}
    optimizers = [torch.optim.SGD(part.parameters(), lr=1e-2) for part in parts.values()]
    with rismusic.watch(parts, optimizers, say=lambda _: None) as w:
        for _ in range(15):
            real, fake = torch.randn(batch, 2) + 1, parts["g"](torch.randn(batch, 4))
            optimizers[1].zero_grad()
            (parts["d"](fake.detach()).mean() - parts["d"](real).mean()).backward()
            optimizers[1].step()
            optimizers[0].zero_grad()
            (-parts["d"](fake).mean()).backward()
            optimizers[0].step()
    assert [one.sentence for one in w.diagnosis.wrong] == []


def test_a_network_can_be_copied_and_saved_in_the_loop(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    x = torch.randn(16, 4)
    with rismusic.watch(model, optimizer, say=lambda _: None) as w:
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), x[:, :1]).backward()
            optimizer.step()
        target = copy.deepcopy(model)
        torch.save(model, tmp_path / "model.pt")
        saved = torch.load(tmp_path / "model.pt", weights_only=False)
        torch.testing.assert_close(target(x), model(x))
        torch.testing.assert_close(saved(x), model(x))
    assert w.diagnosis is not None
    assert not any(part._forward_hooks for part in model.modules())
