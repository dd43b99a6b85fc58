"""Losses that are repeated with other data: findings of planted faults, and none of a healthy loop."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss, normalize

import rismusic
from rismusic.doctor.calls import CallRecorder
from rismusic.doctor.tape import LeftOutError, Replay, Tape, TapeRecorder, faithful
from rismusic.doctor.tape_checks import (
    bound_findings,
    linear_findings,
    mixing_findings,
    range_findings,
    target_findings,
    usage_findings,
    value_findings,
)

N, T = 16, 8


def taped(model, loss):
    """The tape of one loss."""
    recorder = TapeRecorder(model)
    handles = recorder.hooks()
    with CallRecorder(tape=recorder):
        tape = recorder.cut(loss(model))
    for handle in handles:
        handle.remove()
    return tape


def wrong(findings):
    return " ".join(f"{one.name}: {one.meaning}" for one in findings if not one.fine)


class Everything(nn.Module):
    """Dropout, batch normalisation, recurrence, attention and an output that is filled in place."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(20, 8), nn.BatchNorm1d(16)
        self.core = nn.LSTM(8, 16, batch_first=True, dropout=0.2, num_layers=2)
        self.attend = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 20)

    def forward(self, x):
        h = self.norm(self.attend(self.core(self.embed(x))[0]).transpose(1, 2)).transpose(1, 2)
        out = torch.zeros(*x.shape, 20)
        for t in range(x.shape[1]):
            out[:, t] = self.head(h[:, t])
        return out


def language(model, shift=1):
    torch.manual_seed(0)
    rows = torch.randint(0, 20, (64, T + 1))[torch.randperm(64)[:N]]
    x, y = rows[:, :-1], rows[:, 1:] if shift else rows[:, :-1]
    return cross_entropy(model(x).reshape(-1, 20), y.reshape(-1))


def test_tape_repeats_the_loss_with_its_random_numbers():
    torch.manual_seed(0)
    model = Everything()
    tape = taped(model, language)
    assert isinstance(tape, Tape)
    assert faithful(tape)
    assert len(tape.targets) == 1
    assert len(tape.inputs) == 1
    quiet = Replay(tape)
    assert quiet.loss == Replay(tape).loss  # Dropout is off.
    assert not math.isclose(quiet.loss, tape.value, rel_tol=1e-6)
    assert Replay(tape, double=True).loss == pytest.approx(quiet.loss, rel=1e-5)
    with torch.no_grad():
        model.head.bias[0] += 1.0
    assert not faithful(tape)


def test_tape_has_the_gradient_of_the_loss():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    x, y = torch.randn(N, 4), torch.randn(N, 2)
    tape = taped(model, lambda m: mse_loss(m(x), y))
    weights = {key: value.detach().clone().requires_grad_(True) for key, value in tape.weights.items()}
    Replay(tape).run(weights=weights)[tape.loss].backward()
    mse_loss(model(x), y).backward()
    for key, value in weights.items():
        torch.testing.assert_close(value.grad, tape.weights[key].grad)


def test_a_loss_that_torch_does_not_show_is_left_out():
    model = nn.Linear(4, 1)
    before = model(torch.randn(N, 4))
    assert "does not show" in taped(model, lambda _: before.mean())


class Recurrent(nn.Module):
    def __init__(self, *, batch_first=True, both=False, classes=20):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.core = nn.GRU(8, 8, batch_first=batch_first, bidirectional=both)
        self.head = nn.Linear(16 if both else 8, classes)

    def forward(self, x):
        return self.head(self.core(self.embed(x))[0])


def test_samples_that_affect_each_other():
    torch.manual_seed(0)
    assert wrong(mixing_findings(taped(Recurrent(), language))) == ""
    assert wrong(mixing_findings(taped(Everything(), language))) == ""
    found = mixing_findings(taped(Recurrent(batch_first=False), language))
    assert "first in core (GRU): batch_first does not fit" in wrong(found)

    def other_order(model):
        rows = torch.randint(0, 20, (N, T + 1))
        return cross_entropy(model(rows[:, :-1]).transpose(0, 1).reshape(-1, 20), rows[:, 1:].reshape(-1))

    assert "flattened or matched in different orders" in wrong(
        mixing_findings(taped(Recurrent(), other_order))
    )


def test_sequences_first_and_relations_of_samples_are_no_fault():
    def sequences_first(model):
        rows = torch.randint(0, 20, (T + 1, N))
        return cross_entropy(model(rows[:-1]).reshape(-1, 20), rows[1:].reshape(-1))

    with pytest.raises(LeftOutError, match="second axis"):
        mixing_findings(taped(Recurrent(batch_first=False), sequences_first))
    near = (torch.rand(N, N) < 0.3).float()
    with pytest.raises(LeftOutError, match="relates samples"):
        mixing_findings(taped(nn.Linear(4, 2), lambda m: (near @ m(torch.randn(N, 4))).square().mean()))

    def contrastive(model):
        x = torch.randn(N, 4)
        one, two = normalize(model(x)), normalize(model(x + 0.1 * torch.randn(N, 4)))
        return cross_entropy(one @ two.T, torch.arange(N))

    assert wrong(mixing_findings(taped(nn.Linear(4, 8), contrastive))) == ""

    def views_in_one_batch(model, partner):
        x = torch.randn(N, 4)
        z = normalize(model(torch.cat((x, x + 0.1 * torch.randn(N, 4)))))
        similarity = (z @ z.T).masked_fill(torch.eye(2 * N).bool(), -torch.inf)
        return cross_entropy(similarity, partner)

    def views_matched_by_place(model):
        x = torch.randn(N, 4)
        one, two = model(torch.cat((x, x + 0.1 * torch.randn(N, 4)))).chunk(2)
        return mse_loss(one, two)

    torch.manual_seed(0)
    partner = torch.arange(2 * N).roll(N)
    assert wrong(mixing_findings(taped(nn.Linear(4, 8), lambda m: views_in_one_batch(m, partner)))) == ""
    assert wrong(mixing_findings(taped(nn.Linear(4, 8), views_matched_by_place))) == ""
    mask = torch.ones(N, N).tril()
    with pytest.raises(LeftOutError, match="relates samples"):
        mixing_findings(taped(nn.Linear(4, 2), lambda m: (mask @ m(torch.randn(N, 4))).square().mean()))


def test_inputs_without_effect():
    class First(nn.Module):
        def __init__(self, length):
            super().__init__()
            self.core, self.length = Recurrent(classes=3), length

        def forward(self, x):
            return self.core(x[:, : self.length])[:, -1]

    def loss(model):
        return cross_entropy(model(torch.randint(0, 20, (N, T))), torch.arange(N) % 3)

    assert wrong(usage_findings(taped(First(T), loss), [])) == ""
    assert "no effect on the output" in wrong(usage_findings(taped(First(3), loss), []))


def test_targets_that_the_network_sees():
    assert wrong(target_findings(taped(Recurrent(), language))) == ""
    both = target_findings(taped(Recurrent(both=True), language))
    assert "sees the very target" in wrong(both)
    copied = target_findings(taped(Recurrent(), lambda m: language(m, shift=0)))
    assert "targets are not shifted" in wrong(copied)


def test_losses_without_bound_and_targets_out_of_reach():
    torch.manual_seed(0)
    x, y = torch.randn(N, 4), torch.randn(N, 2)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    assert wrong(bound_findings(taped(model, lambda m: mse_loss(m(x), y)))) == ""
    assert "falls ever faster" in wrong(bound_findings(taped(model, lambda m: -mse_loss(m(x), y))))
    reached = nn.Sequential(model, nn.Sigmoid())
    assert "ends with sigmoid" in wrong(range_findings(taped(reached, lambda m: mse_loss(m(x), y))))
    assert wrong(range_findings(taped(reached, lambda m: mse_loss(m(x), y.sigmoid())))) == ""


def test_targets_that_are_lost_and_linear_networks():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    x = torch.randn(64, 4)
    label = torch.arange(64) % 3
    healthy = taped(model, lambda m: cross_entropy(m(x), label % 2))
    for check in (value_findings, linear_findings):
        assert wrong(check(healthy)) == ""
    lost = taped(model, lambda m: cross_entropy(m(x), (label > 7).long()))
    assert "lose their values" in wrong(value_findings(lost))
    straight = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    assert "activations are missing" in wrong(
        linear_findings(taped(straight, lambda m: cross_entropy(m(x), label % 2)))
    )


class Loop:
    """A small healthy loop over indexed data; the faults replace its parts."""

    rate = 3e-3
    epochs = 6

    def __init__(self):
        torch.manual_seed(0)
        self.x = torch.randn(256, 6)
        self.y = (self.x[:, 0] > 0).long() + (self.x[:, 1] > 0).long()
        self.model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))

    def order(self):
        return torch.randperm(256)

    def loss(self, x, y):
        return cross_entropy(self.model(x), y)

    def before_step(self):
        pass

    def after_epoch(self):
        pass

    def watched(self):
        optimizer = torch.optim.Adam(self.model.parameters(), lr=self.rate)
        self.optimizer = optimizer
        with rismusic.watch(self.model, optimizer, say=lambda _: None) as w:
            for _ in range(self.epochs):
                for index in self.order().split(N):
                    loss = self.loss(self.x[index], self.y[index])
                    optimizer.zero_grad()
                    loss.backward()
                    self.before_step()
                    optimizer.step()
                self.after_epoch()
        return w.diagnosis


class OtherRows(Loop):
    epochs = 10

    def __init__(self):
        super().__init__()
        self.y = self.y[torch.randperm(256)]


class Sorted(Loop):
    def order(self):
        return self.y.argsort()


class Reset(Loop):
    def after_epoch(self):
        for part in self.model[::2]:
            part.reset_parameters()


class Emptied(Loop):
    def before_step(self):
        self.optimizer.zero_grad()


class Reversed(Loop):
    def before_step(self):
        for p in self.model.parameters():
            p.grad.neg_()


class Outweighed(Loop):
    def loss(self, x, y):
        out = self.model(x)
        return cross_entropy(out, y) + 1e4 * mse_loss(out.sum(1), 3 * x[:, 2])


class TooSlow(Loop):
    rate = 3e-7


class WithoutTargets(Loop):
    def loss(self, x, y):
        return self.model(x).square().mean()


class Growing(Loop):
    def before_step(self):
        for group in self.optimizer.param_groups:
            group["lr"] *= 1.1


class Foreign(Loop):
    def loss(self, x, y):
        return cross_entropy(self.model(x) + self.extra(x), y)

    def __init__(self):
        super().__init__()
        self.extra = copy.deepcopy(self.model)


class InPlace(Loop):
    def order(self):
        return torch.arange(256)

    def loss(self, x, y):
        view = self.x[:N]
        view += 0.1
        return super().loss(x, y)


@pytest.mark.parametrize(
    ("loop", "text"),
    [
        (InPlace, "the data are changed in place in the loop"),
        (OtherRows, "does not hold for others"),
        (Sorted, "sorted and not shuffled"),
        (Reset, "something other than the optimizer changes 0.weight"),
        (Emptied, "zero_grad is called between backward and step"),
        (Reversed, "its sign is reversed"),
        (Outweighed, "outweighs it"),
        (TooSlow, "the learning rate is too low"),
        (WithoutTargets, "The targets are missing"),
        (Growing, "the learning rate grows out of bounds"),
        (Foreign, "weights that neither the model nor an optimizer has"),
    ],
)
def test_each_fault_of_a_loop_is_named(loop, text):
    found = [one.sentence for one in loop().watched().wrong]
    assert any(text in one for one in found), found


class DrawsValidation(Loop):
    """Makes other data in the loop, in place."""

    def after_epoch(self):
        x = torch.zeros(32, 6)
        for row in x:
            row += torch.randn(6)
        with torch.no_grad():
            self.model(x)


def test_healthy_loop():
    assert [one.sentence for one in DrawsValidation().watched().wrong] == []
    assert [one.sentence for one in Loop().watched().wrong] == []
