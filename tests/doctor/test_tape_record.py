"""What a watched loop keeps: bounded memory, and no findings on losses that compare within the network."""

from __future__ import annotations

import tracemalloc

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import rismusic
from rismusic.doctor import tape as tapes


class Loop:
    """A loop over 512 rows; ``between`` is called after each twentieth step."""

    steps = 100
    rate = 3e-3
    between_steps = 20
    batch = 32

    def __init__(self):
        torch.manual_seed(0)
        self.x = torch.randn(512, 8) @ torch.randn(8, 8)
        self.model = self.network()

    def network(self):
        return nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.Linear(32, 8))

    def loss(self, x):
        return mse_loss(self.model(x + torch.randn_like(x)), x)

    def between(self):
        pass

    def watched(self):
        optimizer = torch.optim.Adam(self.model.parameters(), lr=self.rate)
        self.said = []
        with rismusic.watch(self.model, optimizer, say=self.said.append) as w:
            for number in range(self.steps):
                loss = self.loss(self.x[torch.randint(512, (self.batch,))])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if number % self.between_steps == 3:
                    self.between()
        return w


class Sampler(Loop):
    """Feeds its outputs back with noise of their shape, as the sampler of a diffusion model."""

    rows, repeats = 64, 18

    def __init__(self):
        super().__init__()
        self.held = []

    @torch.no_grad()
    def between(self):
        before = tracemalloc.get_traced_memory()[0]
        points = torch.randn(self.rows, 8)
        for _ in range(self.repeats):
            points = 0.9 * points - 0.1 * self.model(points)
            points = points + 0.1 * torch.randn_like(points)
        (points.square().mean() - self.x.square().mean()).abs()
        self.held.append(tracemalloc.get_traced_memory()[0] - before)


def test_a_sampler_between_the_steps_takes_no_memory_of_its_own():
    """Before, each repeat doubled a list: 2^18 entries for each tensor of the last one."""
    loop = Sampler()
    loop.steps = 4
    tracemalloc.start()
    try:
        loop.watched()
    finally:
        tracemalloc.stop()
    assert max(loop.held) < 2**20, loop.held


class Recorded(Sampler):
    """The sampler makes far more tensors than a step."""

    rows, repeats = 2048, 100

    def watched(self):
        seen, count = [], tapes.TapeRecorder._count
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tapes, "_GRANTED", 2**20)
            patch.setattr(
                tapes.TapeRecorder,
                "_count",
                lambda own, *given: (count(own, *given), seen.append(own._made))[0],
            )
            found = super().watched()
        self.most = max(seen)
        return found


def test_what_is_recorded_of_a_step_stays_within_its_budget():
    """The step that follows is left out, and the others are checked."""
    loop = Recorded()
    found = loop.watched()
    # The last call may exceed the budget, by the largest tensor of the sampler.
    assert loop.most <= 2**20 + 2048 * 32 * 4
    assert "too many tensors to be recorded" in loop.said[-1]
    assert any("repeated with the last weights" in report.text for report in found.diagnosis.reports)
    loop.rows, loop.repeats = 64, 3
    loop.watched()
    assert "too many" not in loop.said[-1]


@pytest.mark.parametrize(("granted", "text"), [(2**18, ""), (2**18 - 2**14, "too large to be kept")])
def test_what_is_kept_of_a_loop_stays_within_its_budget(monkeypatch, granted, text):
    """Fewer batches are kept, or none at all, and the report says so."""
    monkeypatch.setattr(tapes, "_GRANTED", granted)
    monkeypatch.setattr(tapes, "_TIMES", 0)
    loop = Loop()
    loop.batch = 256
    found = loop.watched()
    kept = [*found._tapes.early, *found._tapes.late, *found._tapes.first.values()]
    assert sum(one.nbytes for one in kept) <= granted
    assert text in loop.said[-1]
    assert bool(text) == ("Some losses" in loop.said[-1])
    assert 8 < len(kept) < 24 or (text and not kept)


class Coupling(nn.Module):
    """Two layers of a normalising flow."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 32), nn.SiLU(), nn.Linear(32, 8)) for _ in range(2)
        )

    def forward(self, x):
        volume = 0.0
        for part in self.parts:
            given, moved = x.chunk(2, -1)
            scale, shift = part(given).chunk(2, -1)
            volume = volume + scale.tanh().sum(-1)
            x = torch.cat((moved * scale.tanh().exp() + shift, given), -1)
        return x, volume


class Flow(Loop):
    def network(self):
        return Coupling()

    def loss(self, x):
        z, volume = self.model(x)
        return (z.square().sum(-1) / 2 - volume).mean()


class LinearFlow(Loop):
    """A matrix with its determinant: no data meet the outputs within the network."""

    def network(self):
        class Whitening(nn.Module):
            def __init__(self):
                super().__init__()
                self.matrix = nn.Parameter(torch.eye(8) + 0.1 * torch.randn(8, 8))

            def forward(self, x):
                return x @ self.matrix, torch.linalg.slogdet(self.matrix).logabsdet.expand(len(x))

        return Whitening()

    loss = Flow.loss


class Quantiser(nn.Module):
    """Its codes follow the detached output of the encoder."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(8, 4), nn.Linear(4, 8)
        self.codes = nn.Parameter(torch.randn(16, 4) / 2)

    def forward(self, x):
        z = self.encoder(x)
        code = self.codes[(z.unsqueeze(1) - self.codes).square().sum(-1).argmin(1)]
        return self.decoder(z + (code - z).detach()), mse_loss(code, z.detach()) + mse_loss(
            z, code.detach()
        ) / 4


class Quantised(Loop):
    def network(self):
        return Quantiser()

    def loss(self, x):
        rebuilt, further = self.model(x)
        return mse_loss(rebuilt, x) + further


class Prior(Loop):
    """A prior that is learned from a part of the input, and meets the posterior in a divergence only."""

    def network(self):
        return nn.ModuleDict({name: nn.Linear(8, 8) for name in ("mean", "prior", "decoder")})

    def loss(self, x):
        mean, prior = self.model["mean"](x).tanh(), self.model["prior"](x * (torch.arange(8) < 4))
        return mse_loss(self.model["decoder"](mean), x) + 0.1 * (mean - prior).square().mean()


@pytest.mark.parametrize("loop", [Flow, LinearFlow, Quantised, Prior])
def test_terms_that_compare_within_the_network(loop):
    assert [one.sentence for one in loop().watched().diagnosis.wrong] == []


class Centred(nn.Module):
    """Takes its input to mean 0 and spread 1 itself, or not."""

    def __init__(self, centres):
        super().__init__()
        self.centres, self.core = centres, nn.Linear(8, 8)

    def forward(self, x):
        return self.core((x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True) if self.centres else x)


@pytest.mark.parametrize("centres", [True, False])
def test_the_scale_of_a_validation_is_that_at_the_first_layer(centres):
    class Validated(Loop):
        def network(self):
            return Centred(centres)

        @torch.no_grad()
        def between(self):
            mse_loss(self.model(20 + 10 * self.x[:64]), self.x[:64])

    found = " ".join(one.sentence for one in Validated().watched().diagnosis.wrong)
    assert ("inputs of the validation" in found) != centres
