"""Fourteen more small trainings as users write them, with three faults each, made without seeing the doctor.

``python benchmarks/blind_module_faults_2.py NAME`` prints the doctor's report on the training NAME, and
``NAME:FAULT`` on one with a fault. ``--check`` trains each from three seeds without the doctor and prints the
score that the script's own validation ends with and the score on new data (0: as good as a guess, 1:
perfect): the healthy ones learn and validate truly, and a fault lowers the score, or its validation is wrong,
or it doubles a number that the training controls.

The faults are of the kinds in Humbatova et al. (ICSE 2020), Islam et al. (FSE 2019), Zhang et al. (ISSTA
2018), UMLAUT, DeepLocalize, AutoTrainer and DeepDiagnosis, and of questions that users ask.
"""

from __future__ import annotations

import argparse
import copy
import functools
import io
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, Dataset

from blind_module_faults import cases_of
from rismusic.doctor.watch import watch


@dataclass
class Training:
    """A training.

    Args:
        model: one network or several.
        optimizer: one or several.
        step: takes one optimizer step (of each network).
        validate: the script's own validation, as it reports it.
        test: the score on new data.
        steps: steps of the training.
        controlled: a number that the training is meant to bring about, besides the score.
    """

    model: Any
    optimizer: Any
    step: Callable[[], object]
    validate: Callable[[], float]
    test: Callable[[], float]
    steps: int = 300
    controlled: Callable[[], float] | None = None

    def run(self, steps: int) -> float:
        """Train with a validation after every 25 steps; the last one is returned."""
        score = math.nan
        for number in range(1, steps + 1):
            self.step()
            if number % 25 == 0:
                score = self.validate()
        return score


def explained(predicted: Tensor, true: Tensor, weight: Tensor | float = 1.0) -> float:
    """Share of the variance that a prediction explains, not below -1."""
    error, spread = (predicted - true).abs().square(), (true - true.mean(0)).abs().square()
    return max(-1.0, float(1 - (weight * error).mean() / (weight * spread).mean()))


def above_chance(logits: Tensor, labels: Tensor, classes: int) -> float:
    accuracy = float((logits.argmax(-1) == labels).double().mean())
    return (accuracy - 1 / classes) / (1 - 1 / classes)


def fixed(*shape: int, seed: int) -> Tensor:
    """Normal numbers that do not depend on the seed of the training."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Convolutional network on small pictures of characters; four characters and their mirror images.

STROKES = (fixed(4, 7, 7, seed=11) > 0.2).float()
CHARACTERS = torch.cat((STROKES, STROKES.flip(-1)))


def pictures(count: int) -> tuple[Tensor, Tensor]:
    """Colour pictures [count, 14, 14, 3] of bytes, and their classes."""
    labels = torch.randint(8, (count,))
    image = torch.zeros(count, 14, 14, 3)
    colour = 0.4 + 0.6 * torch.rand(count, 3)
    for one in range(count):
        top, left = torch.randint(8, (2,)).tolist()
        image[one, top : top + 7, left : left + 7] = CHARACTERS[labels[one]][..., None] * colour[one]
    image = image + 0.25 * torch.randn_like(image)
    return (255 * (0.2 + 0.6 * image).clamp(0, 1)).byte(), labels


def cnn(fault: str) -> Training:
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(32, 8)),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    images, labels = pictures(2048)
    held_out = pictures(256)

    def prepare(pixels: Tensor) -> Tensor:
        scaled = (pixels.float() / 255 - 0.3) / 0.2
        if fault == "reshape_in_place_of_permute":
            return scaled.reshape(-1, 3, 14, 14)
        return scaled.permute(0, 3, 1, 2)

    def step() -> None:
        rows = torch.randint(len(images), (48,))
        x = prepare(images[rows])
        if fault == "flips_change_the_class" and torch.rand(()) < 0.5:
            x = x.flip(-1)
        loss = F.cross_entropy(model(x), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def score(inputs: Tensor, classes: Tensor) -> float:
        model.eval()
        logits = model(inputs)
        model.train()
        return above_chance(logits, classes, 8)

    def validate() -> float:
        if fault == "validation_not_normalised":
            return score(held_out[0].permute(0, 3, 1, 2).float(), held_out[1])
        return score(prepare(held_out[0]), held_out[1])

    def test() -> float:
        new, classes = pictures(512)
        return score(prepare(new), classes)

    return Training(model, optimizer, step, validate, test)


# Regression on a table with unequal scales and some unreliable rows, which have a low weight.

SCALE = torch.tensor([1.0, 10.0, 0.1, 50.0, 2.0, 300.0, 0.5, 5.0])
MIX = fixed(8, 12, seed=12) / 8**0.5


def rows_of_table(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features [count, 8], target [count] and weight [count, 1]."""
    z = torch.randn(count, 8)
    deviation = torch.where(torch.rand(count) < 0.3, 4.0, 0.3)
    y = (z @ MIX).sin().sum(-1) / 2 + deviation * torch.randn(count)
    return SCALE * (z + 2), y, 0.09 / deviation.square()[:, None]


def regressor(fault: str) -> Training:
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    x, y, weight = rows_of_table(1000)
    train = 700
    mean, deviation = x[:train].mean(0), x[:train].std(0)

    def standardised(features: Tensor) -> Tensor:
        if fault == "statistics_per_row":
            return (features - features.mean(1, keepdim=True)) / features.std(1, keepdim=True)
        return (features - mean) / deviation

    def step() -> None:
        count = len(x) if fault == "trains_on_the_validation_rows" else train
        rows = torch.randint(count, (64,))
        error = (model(standardised(x[rows])).squeeze(1) - y[rows]).square()
        if fault == "weights_broadcast":
            loss = (weight[rows] * error).mean()
        else:
            loss = (weight[rows, 0] * error).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def score(features: Tensor, target: Tensor, trust: Tensor) -> float:
        return explained(model(standardised(features)).squeeze(1), target, trust.squeeze(1))

    return Training(
        *(model, optimizer, step),
        lambda: score(x[train:], y[train:], weight[train:]),
        lambda: score(*rows_of_table(4000)),
        1000,
    )


# Recurrent network in both directions on frames of speech, time first; each frame has a label.

SOUNDS = fixed(4, 6, seed=13)


def utterances(count: int) -> tuple[Tensor, Tensor]:
    """Frames [count, 24, 6], with zeros after the end, and labels [count, 24], -100 after the end.

    The label tells whether the sounds before and after a frame are among the first two.
    """
    sound = torch.randint(4, (count, 26))
    frames = SOUNDS[sound[:, 1:-1]] + 0.3 * torch.randn(count, 24, 6)
    labels = 2 * (sound[:, :-2] // 2) + sound[:, 2:] // 2
    ended = torch.arange(24) >= torch.randint(12, 25, (count, 1))
    labels[:, 0] = labels[:, -1] = -100  # the sounds outside are not heard
    last = torch.arange(24) == ended.long().argmax(1, keepdim=True) - 1
    return frames.masked_fill(ended[..., None], 0), labels.masked_fill(ended | last, -100)


class Utterances(Dataset[tuple[Tensor, Tensor]]):
    """A dataset that adds noise to what it returns."""

    def __init__(self, count: int, *, in_place: bool) -> None:
        self.frames, self.labels = utterances(count)
        self.in_place = in_place

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        frames = self.frames[number]
        noise = 0.6 * torch.randn_like(frames)
        if self.in_place:
            frames += noise
        else:
            frames = frames + noise
        return frames, self.labels[number]


class Tagger(nn.Module):
    def __init__(self, *, flip_back: bool) -> None:
        super().__init__()
        self.forwards, self.backwards = nn.GRU(6, 32), nn.GRU(6, 32)
        self.out = nn.Linear(64, 4)
        self.flip_back = flip_back

    def forward(self, frames: Tensor) -> Tensor:
        """From frames [T, B, 6] to logits [T, B, 4]."""
        ahead, _ = self.forwards(frames)
        behind, _ = self.backwards(frames.flip(0))
        if self.flip_back:
            behind = behind.flip(0)
        return self.out(torch.cat((ahead, behind), dim=-1))


def speech(fault: str) -> Training:
    data = Utterances(240, in_place=fault == "noise_added_in_place")
    loader = DataLoader[tuple[Tensor, Tensor]](data, batch_size=24, shuffle=True)
    model = Tagger(flip_back=fault != "backward_not_flipped_back")
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    held_out = utterances(128)

    def step() -> None:
        frames, labels = next(batches)
        logits = model(frames.transpose(0, 1))
        if fault == "labels_in_another_order":
            loss = F.cross_entropy(logits.reshape(-1, 4), labels.reshape(-1))
        else:
            loss = F.cross_entropy(logits.transpose(0, 1).reshape(-1, 4), labels.reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()

    @torch.no_grad()
    def score(frames: Tensor, labels: Tensor) -> float:
        heard = labels >= 0
        return above_chance(model(frames.transpose(0, 1)).transpose(0, 1)[heard], labels[heard], 4)

    return Training(model, optimizer, step, lambda: score(*held_out), lambda: score(*utterances(512)))


# Language model with a hand-written attention; the text repeats itself after six tokens.


def songs(count: int) -> Tensor:
    verse = torch.randint(12, (count, 6))
    text = verse.repeat(1, 4)
    wrong = torch.rand(text.shape) < 0.05
    return torch.where(wrong, torch.randint(12, text.shape), text)


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, over: int) -> None:
        super().__init__()
        self.heads, self.over = heads, over
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ask, self.answer = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        B, T, E = x.shape
        q, k, v = self.ask(self.before(x)).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / (E // self.heads) ** 0.5
        scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
        mixed = scores.softmax(self.over) @ v
        x = x + self.drop(self.answer(mixed.transpose(1, 2).reshape(B, T, E)))
        return x + self.drop(self.mlp(self.between(x)))


class Songwriter(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.token = nn.Embedding(12, 48)
        self.position = nn.Parameter(0.5 * torch.randn(512, 1, 48))
        self.layers = nn.Sequential(
            *(Layer(48, 2, -2 if fault == "softmax_over_queries" else -1) for _ in "12")
        )
        self.out = nn.Linear(48, 12)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens)
        if self.fault == "position_of_the_batch":
            x = x + self.position[: x.size(0)]
        else:
            x = x + self.position[: x.size(1)].transpose(0, 1)
        return self.out(self.layers(x))


def songwriter(fault: str) -> Training:
    model = Songwriter(fault)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    warmup, steps = (4000 if fault == "warm_up_longer_than_training" else 40), 400

    def rate(step: int) -> float:
        return min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / steps)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    held_out = songs(128)

    def step() -> None:
        text = songs(32)
        loss = F.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()

    @torch.no_grad()
    def score(text: Tensor) -> float:
        """From the entropy of what can be foretold."""
        model.eval()
        logits = model(text[:, :-1])[:, 5:]
        model.train()
        return 1 - float(F.cross_entropy(logits.flatten(0, 1), text[:, 6:].flatten())) / math.log(12)

    @torch.no_grad()
    def test() -> float:
        """Token by token, as a text is continued."""
        model.eval()
        text = songs(256)
        entropy = [F.cross_entropy(model(text[:, :end])[:, -1], text[:, end]) for end in range(6, 24)]
        return 1 - float(torch.stack(entropy).mean()) / math.log(12)

    return Training(model, optimizer, step, lambda: score(held_out), test, steps)


# Variational autoencoder of binary pictures of rectangles.


def rectangles(count: int) -> Tensor:
    low, size = torch.randint(0, 6, (count, 2, 1)), torch.randint(2, 5, (count, 2, 1))
    inside = (torch.arange(10) >= low) & (torch.arange(10) < low + size)
    return (inside[:, 0, :, None] & inside[:, 1, None]).float().flatten(1)


class RectangleVae(nn.Module):
    def __init__(self, *, sigmoid: bool) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Linear(100, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.4), nn.Linear(128, 16))
        )
        layers = [nn.Linear(8, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 100)]
        self.decoder = nn.Sequential(*layers, *([nn.Sigmoid()] if sigmoid else []))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, dim=-1)
        z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        return self.decoder(z), mean, log_variance


def rectangle_vae(fault: str) -> Training:
    model = RectangleVae(sigmoid=fault == "sigmoid_twice")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    x = rectangles(2000)
    held_out = rectangles(200)
    done, steps = 0, 400

    def bounds(batch: Tensor, beta: float) -> Tensor:
        """The negative evidence lower bound, nats per picture."""
        logits, mean, log_variance = model(batch)
        missed = F.binary_cross_entropy_with_logits(logits, batch, reduction="none").sum(-1)
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1) / 2
        return (missed + beta * divergence).mean()

    def step() -> None:
        nonlocal done
        beta = min(1.0, done // steps if fault == "annealing_rounds_to_zero" else done / 100)
        loss = bounds(x[torch.randint(len(x), (64,))], beta)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        done += 1

    p = x.mean(0).clamp(1e-3, 1 - 1e-3)

    def shared(batch: Tensor) -> float:
        """Of a model of independent pixels."""
        return float(-(batch * p.log() + (1 - batch) * (1 - p).log()).sum(-1).mean())

    @torch.no_grad()
    def score(batch: Tensor) -> float:
        return max(-1.0, 1 - float(bounds(batch, 1.0)) / shared(batch))

    def validate() -> float:
        if fault == "validated_in_training_mode":
            return score(held_out)
        model.eval()
        found = score(held_out)
        model.train()
        return found

    def test() -> float:
        model.eval()
        return score(rectangles(1000))

    return Training(model, optimizer, step, validate, test, steps)


# Wasserstein GAN with gradient penalty on points of a spiral.


def spiral(count: int) -> Tensor:
    turn = 3 * math.pi * torch.rand(count, 1).sqrt()
    return torch.cat((turn * turn.cos(), turn * turn.sin()), 1) / 5 + 0.05 * torch.randn(count, 2)


def sliced_distance(one: Tensor, other: Tensor) -> float:
    """Wasserstein distance, mean over directions."""
    angle = torch.linspace(0, math.pi, 33)[:-1]
    along = torch.stack((angle.cos(), angle.sin()))
    return float(((one @ along).sort(0).values - (other @ along).sort(0).values).abs().mean())


def wgan(fault: str) -> Training:
    def network(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            *(nn.Linear(inputs, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2)),
            nn.Linear(64, outputs),
        )

    generator, critic = network(4, 2), network(2, 1)
    if fault == "tanh_cannot_reach_the_data":
        generator.append(nn.Tanh())
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.0, 0.9))
    optimizer_c = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.0, 0.9))
    x = spiral(4000)

    def penalty(real: Tensor, fake: Tensor) -> Tensor:
        share = torch.rand(len(real), 1)
        between = (share * real + (1 - share) * fake).requires_grad_()
        graph = fault != "penalty_without_graph"
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=graph)
        return (slope.norm(dim=1) - 1).square().mean()

    def step() -> None:
        for _ in range(5):
            real = x[torch.randint(len(x), (128,))]
            fake = generator(torch.randn(128, 4)).detach()
            loss = critic(fake).mean() - critic(real).mean() + penalty(real, fake)
            if fault != "critic_keeps_gradients":
                optimizer_c.zero_grad()
            loss.backward()
            optimizer_c.step()
        optimizer_g.zero_grad()
        (-critic(generator(torch.randn(128, 4))).mean()).backward()
        optimizer_g.step()

    @torch.no_grad()
    def score(real: Tensor) -> float:
        one_point = sliced_distance(real.mean(0).expand_as(real), real)
        return max(-1.0, 1 - sliced_distance(generator(torch.randn(len(real), 4)), real) / one_point)

    def slope() -> float:
        """Mean slope of the critic; the penalty wants 1."""
        points = spiral(1000).requires_grad_()
        (by,) = torch.autograd.grad(critic(points).sum(), points)
        return float(by.norm(dim=1).mean())

    held_out = spiral(1000)
    return Training(
        *((generator, critic), (optimizer_g, optimizer_c), step),
        lambda: score(held_out),
        lambda: score(spiral(4000)),
        250,
        slope,
    )


# Contrastive learning: two views of an item, each with a disturbance of its own.

APPEARANCE, DISTURBANCE = fixed(4, 24, seed=14), fixed(6, 24, seed=15)


def views(count: int) -> tuple[Tensor, Tensor]:
    item = torch.randn(count, 4)

    def view() -> Tensor:
        return (
            0.5 * item @ APPEARANCE + 0.4 * torch.randn(count, 6) @ DISTURBANCE
        ).tanh() + 0.1 * torch.randn(count, 24)

    return view(), view()


def contrastive(fault: str) -> Training:
    model = nn.Sequential(nn.Linear(24, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 16))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def step() -> None:
        one, other = views(64)
        if fault == "same_view_twice":
            other = one.clone()
        z = model(torch.cat((one, other)))
        z = F.normalize(z, dim=0 if fault == "normalised_over_the_batch" else -1)
        similarity = z @ z.T
        logits = similarity * 0.2 if fault == "temperature_multiplied" else similarity / 0.2
        logits = logits.masked_fill(torch.eye(128).bool(), -torch.inf)
        partner = torch.arange(128).roll(64)
        loss = F.cross_entropy(logits, partner)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def score(one: Tensor, other: Tensor) -> float:
        """Share of the views whose nearest of 64 others is their partner."""
        similarity = F.normalize(model(one), dim=-1) @ F.normalize(model(other), dim=-1).T
        near = similarity.unflatten(0, (-1, 64)).unflatten(-1, (-1, 64)).diagonal(dim1=0, dim2=2)
        logits = near.permute(2, 0, 1)
        return above_chance(logits, torch.arange(64).expand(len(logits), 64), 64)

    held_out = views(256)
    return Training(model, optimizer, step, lambda: score(*held_out), lambda: score(*views(1024)), 400)


# Complex-valued network: frequency response of a channel from a received pilot.

PILOT = torch.polar(torch.ones(16), 6.28 * torch.rand(16, generator=torch.Generator().manual_seed(16)))


def pilots(count: int) -> tuple[Tensor, Tensor]:
    """Received samples in time and the response at 16 frequencies, complex."""
    taps = torch.randn(count, 3, dtype=torch.complex64) * torch.tensor([1.0, 0.7, 0.5])
    response = torch.fft.fft(taps, n=16)
    received = response * PILOT + 0.7 * torch.randn(count, 16, dtype=torch.complex64)
    return torch.fft.ifft(received), response


class Equaliser(nn.Module):
    def __init__(self, *, both_axes: bool) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(16, 64, dtype=torch.complex64) / 4)
        self.bias = nn.Parameter(0.1 * torch.randn(64))
        self.second = nn.Parameter(torch.randn(64, 16, dtype=torch.complex64) / 8)
        self.both_axes = both_axes

    def forward(self, received: Tensor) -> Tensor:
        spectrum = torch.fft.fft2(received) if self.both_axes else torch.fft.fft(received)
        hidden = spectrum.to(torch.complex64) @ self.first
        size = hidden.abs() + 1e-6
        return (hidden * ((size + self.bias).relu() / size)) @ self.second


def equaliser(fault: str) -> Training:
    model = Equaliser(both_axes=fault == "transformed_over_the_batch_too")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    received, response = pilots(4000)
    if fault == "imaginary_part_dropped":
        received = received.real.clone()

    def step() -> None:
        rows = torch.randint(len(received), (64,))
        predicted = model(received[rows])
        if fault == "compared_by_magnitude":
            loss = (predicted.abs() - response[rows].abs()).square().mean()
        else:
            loss = (predicted - response[rows]).abs().square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def score(samples: Tensor, true: Tensor) -> float:
        if fault == "imaginary_part_dropped":
            samples = samples.real
        return explained(model(samples), true)

    held_out = pilots(64)
    return Training(*(model, optimizer, step), lambda: score(*held_out), lambda: score(*pilots(64)), 400)


# Graph network with a dense adjacency; a value for each node from its neighbours.


def networks(count: int, *, one_way: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Features [count, 14, 4], adjacency [count, 14, 14] and values [count, 14]."""
    x = torch.randn(count, 14, 4)
    popular = 0.5 * torch.rand(count, 14).square()
    edges = (torch.rand(count, 14, 14) < popular[:, None] + popular[..., None]).triu(1).float()
    adjacency = edges + edges.mT
    mean = adjacency @ x / adjacency.sum(-1, keepdim=True).clamp_min(1)
    y = (2 * mean[..., 0]).tanh() + x[..., 1] * mean[..., 2] + 0.5 * x[..., 3]
    return x, edges if one_way else adjacency, y


class GraphNet(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        sizes = [(4, 48), (48, 48)]
        self.own = nn.ModuleList(nn.Linear(*size) for size in sizes)
        self.of_neighbours = nn.ModuleList(nn.Linear(*size) for size in sizes)
        self.out = nn.Linear(48, 1)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        degree = adjacency.sum(-1).clamp_min(1)
        if self.fault == "degree_of_the_other_node":
            spread = adjacency / degree[:, None]
        else:
            spread = adjacency / degree[..., None]
        for own, of_neighbours in zip(self.own, self.of_neighbours, strict=True):
            x = F.relu(own(x) + of_neighbours(spread @ x))
            if self.fault == "dropout_always_on":
                x = F.dropout(x, 0.2)
            else:
                x = F.dropout(x, 0.2, training=self.training)
        return self.out(x).squeeze(-1)


def graph_net(fault: str) -> Training:
    model = GraphNet(fault)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    x, adjacency, y = networks(1500, one_way=fault == "edges_one_way")
    held_out = networks(200)

    def step() -> None:
        model.train()
        rows = torch.randint(len(x), (32,))
        loss = F.mse_loss(model(x[rows], adjacency[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def score(features: Tensor, links: Tensor, true: Tensor) -> float:
        model.eval()
        return explained(model(features, links), true)

    return Training(*(model, optimizer, step), lambda: score(*held_out), lambda: score(*networks(1000)), 400)


# Two tasks on one trunk: a position and a rare class.

CAUSES = fixed(12, 6, seed=17) / 12**0.5


def readings(count: int) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(count, 12)
    h = 2 * x @ CAUSES
    position = torch.stack((h[:, 0].sin() + h[:, 1], (h[:, 2] * h[:, 3]).tanh()), 1)
    level = h[:, 4] + h[:, 5].abs() + 0.3 * torch.randn(count)
    label = (level > 3.2).long() + (level > 4.6).long()
    return x, position + 0.1 * torch.randn(count, 2), label


class TwoTasks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(12, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU())
        self.position, self.kind = nn.Linear(96, 2), nn.Linear(96, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return self.position(h), self.kind(h)


def two_tasks(fault: str) -> Training:
    model = TwoTasks()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    x, position, label = readings(3000)
    share = label.bincount(minlength=3) / len(label)
    weight = share * 3 if fault == "class_weights_inverted" else 1 / (3 * share)

    def step() -> None:
        rows = torch.randint(len(x), (128,))
        where, which = model(x[rows])
        first = F.mse_loss(where, position[rows])
        second = F.cross_entropy(which, label[rows], weight)
        optimizer.zero_grad()
        if fault == "gradients_zeroed_between":
            first.backward(retain_graph=True)
            optimizer.zero_grad()
            (0.5 * second).backward()
        elif fault == "second_loss_as_number":
            (first + 0.5 * second.item()).backward()
        else:
            (first + 0.5 * second).backward()
        optimizer.step()

    @torch.no_grad()
    def score(inputs: Tensor, true: Tensor, kinds: Tensor) -> float:
        """Mean of the explained variance and the accuracy, each class with the same weight."""
        where, which = model(inputs)
        hit = (which.argmax(-1) == kinds).float()
        recall = sum(float(hit[kinds == k].mean()) for k in range(3)) / 3
        return (explained(where, true) + (recall - 1 / 3) * 1.5) / 2

    held_out = readings(1000)
    return Training(*(model, optimizer, step), lambda: score(*held_out), lambda: score(*readings(4000)), 400)


# Fine-tuning of a head on few samples, on a backbone trained for another task.

INSTRUMENT, TEACHER = fixed(20, 20, seed=18) / 20**0.5, fixed(20, 10, seed=19) / 20**0.5
FAMILIES, SPECIES = fixed(10, 10, seed=20), fixed(10, 4, seed=21)


def specimens(count: int, kinds: Tensor) -> tuple[Tensor, Tensor]:
    """Raw measurements, with offsets and scales, and classes."""
    z = torch.randn(count, 20)
    label = ((z @ TEACHER).sin() @ kinds).argmax(-1)
    return 40 + 15 * z @ INSTRUMENT, label


class Classifier(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            *(nn.Linear(20, 128), nn.BatchNorm1d(128), nn.ReLU()),
            *(nn.Linear(128, 64), nn.BatchNorm1d(64), nn.ReLU()),
        )
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


def pretrained() -> bytes:
    """A checkpoint with the names that DataParallel gives."""
    model = Classifier(10)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    x, label = specimens(6000, FAMILIES)
    for _ in range(600):
        rows = torch.randint(len(x), (128,))
        loss = F.cross_entropy(model((x[rows] - 40) / 15), label[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    file = io.BytesIO()
    torch.save({f"module.{name}": value for name, value in model.state_dict().items()}, file)
    return file.getvalue()


def fine_tuning(fault: str) -> Training:
    stored = torch.load(io.BytesIO(pretrained()))
    if fault != "checkpoint_keys_do_not_match":
        stored = {name.removeprefix("module."): value for name, value in stored.items()}
    model = Classifier(10)
    model.load_state_dict(stored, strict=False)
    for parameter in model.backbone.parameters():
        parameter.requires_grad_(False)
    if fault == "head_replaced_after_the_optimizer":
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.05)
        model.head = nn.Linear(64, 4)
    else:
        model.head = nn.Linear(64, 4)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.05)
    model.eval()  # frozen statistics
    x, label = specimens(160, SPECIES)
    low, high = x.amin(0), x.amax(0)

    def scaled(raw: Tensor) -> Tensor:
        if fault == "scaled_unlike_pretraining":
            return (raw - low) / (high - low)
        return (raw - 40) / 15

    def step() -> None:
        rows = torch.randint(len(x), (32,))
        loss = F.cross_entropy(model(scaled(x[rows])), label[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def score(raw: Tensor, classes: Tensor) -> float:
        return above_chance(model(scaled(raw)), classes, 4)

    held_out = specimens(500, SPECIES)
    return Training(
        *(model, optimizer, step), lambda: score(*held_out), lambda: score(*specimens(4000, SPECIES)), 200
    )


# Deep Q-learning with a replay buffer and a target network: balance a stick for as long as possible.


class Sticks:
    """Sixteen sticks; ``state`` holds angle and speed and is moved in place."""

    def __init__(self) -> None:
        self.state = torch.zeros(16, 2)
        self.reset(torch.ones(16).bool())

    def reset(self, which: Tensor) -> None:
        self.state[which] = 0.6 * torch.rand(int(which.sum()), 2) - 0.3

    def push(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Reward, 1 while it stands, and whether it has fallen."""
        angle, speed = self.state.unbind(-1)
        speed += 0.4 * angle + 0.3 * (action - 1) + 0.1 * torch.randn(16)
        angle += 0.3 * speed
        return torch.ones(16), angle.abs() > 1


def dqn(fault: str) -> Training:
    model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    target = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    sticks = Sticks()
    memory: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = []
    done = 0

    def play() -> None:
        with torch.no_grad():
            best = model(sticks.state).argmax(-1)
        action = torch.where(torch.rand(16) < 0.3, torch.randint(3, (16,)), best)
        if fault == "memory_holds_references":
            before = sticks.state
            reward, fallen = sticks.push(action)
            memory.append((before, action, reward, sticks.state, fallen))
        else:
            before = sticks.state.clone()
            reward, fallen = sticks.push(action)
            memory.append((before, action, reward, sticks.state.clone(), fallen))
        sticks.reset(fallen)

    def step() -> None:
        nonlocal done
        play()
        chosen = torch.randint(len(memory), (8,)).tolist()
        state, action, reward, following, fallen = (
            torch.cat(part) for part in zip(*(memory[one] for one in chosen), strict=True)
        )
        with torch.no_grad():
            values = target(following)
            value = values.max(1)[1] if fault == "index_in_place_of_value" else values.max(1)[0]
        wanted = reward + 0.95 * (value if fault == "goes_on_after_the_fall" else value * ~fallen)
        q = model(state).gather(1, action[:, None]).squeeze(1)
        loss = F.smooth_l1_loss(q, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        done += 1
        if done % 10 == 0:
            target.load_state_dict(model.state_dict())

    @torch.no_grad()
    def score(repeats: int) -> float:
        """Share of 60 steps that a stick stands."""
        stood = torch.zeros(())
        for _ in range(repeats):
            test, standing = Sticks(), torch.ones(16).bool()
            for _ in range(60):
                _, fallen = test.push(model(test.state).argmax(-1))
                standing &= ~fallen
                stood += standing.float().mean()
        return float(stood) / (60 * repeats)

    return Training(model, optimizer, step, lambda: score(2), lambda: score(8), 600)


# U-Net that finds discs among squares.


def scans(count: int) -> tuple[Tensor, Tensor]:
    """Pictures and masks, [count, 1, 24, 24]."""
    axis = torch.arange(24.0)
    x, y = torch.meshgrid(axis, axis, indexing="ij")
    image, mask = torch.zeros(count, 24, 24), torch.zeros(count, 24, 24)
    for number in range(3):
        centre = 3 + 18 * torch.rand(count, 2, 1, 1)
        near = (x - centre[:, 0]).square() + (y - centre[:, 1]).square()
        if number < 2:
            shape = ((near < 9) & (near > 2.5)).float()
            mask = torch.maximum(mask, shape)
        else:
            shape = (torch.maximum((x - centre[:, 0]).abs(), (y - centre[:, 1]).abs()) < 2.5).float()
            shape = shape * (1 - mask)
        image = torch.maximum(image, shape)
    return (image + 0.3 * torch.randn_like(image))[:, None], mask[:, None]


def double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(4, outputs), nn.ReLU()),
        *(nn.Conv2d(outputs, outputs, 3, padding=1), nn.GroupNorm(4, outputs), nn.ReLU()),
    )


class UNet(nn.Module):
    def __init__(self, *, skip: bool) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = double(1, 8), double(8, 16), double(16, 32)
        self.up2, self.up1 = nn.ConvTranspose2d(32, 16, 2, stride=2), nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.join2, self.join1 = double(32, 16), double(16, 8)
        self.out = nn.Conv2d(8, 1, 1)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        up = self.up2(self.bottom(F.max_pool2d(second, 2)))
        up = self.up1(self.join2(torch.cat((up, second if self.skip else up), 1)))
        return self.out(self.join1(torch.cat((up, first if self.skip else up), 1)))


def overlap(share: Tensor, mask: Tensor) -> Tensor:
    """The Dice coefficient of each picture."""
    both = (share * mask).sum((1, 2, 3))
    return (2 * both + 1) / (share.sum((1, 2, 3)) + mask.sum((1, 2, 3)) + 1)


def unet(fault: str) -> Training:
    model = UNet(skip=fault != "skip_not_used")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    images, masks = scans(400)
    held_out = scans(64)

    def step() -> None:
        rows = torch.randint(len(images), (12,))
        x, mask = images[rows], masks[rows]
        if torch.rand(()) < 0.5:
            x = x.flip(-1)
            mask = mask if fault == "image_flipped_without_mask" else mask.flip(-1)
        logits = model(x)
        entropy = F.binary_cross_entropy_with_logits(logits, mask)
        dice = overlap(logits.sigmoid(), mask).mean()
        loss = entropy + dice if fault == "overlap_minimised" else entropy + 1 - dice
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def score(x: Tensor, mask: Tensor) -> float:
        return float(overlap((model(x) > 0).float(), mask).mean())

    return Training(*(model, optimizer, step), lambda: score(*held_out), lambda: score(*scans(200)), 250)


# Physics-informed network: u'' = f on [0, 1] with given values at the ends.


def solution(x: Tensor) -> Tensor:
    return (math.pi * x).sin() + 0.5 * (3 * math.pi * x).sin() + x


def source(x: Tensor) -> Tensor:
    pi2 = math.pi**2
    return -pi2 * (math.pi * x).sin() - 4.5 * pi2 * (3 * math.pi * x).sin()


def physics(fault: str) -> Training:
    act: Callable[[], nn.Module] = nn.ReLU if fault == "activation_without_curvature" else nn.Tanh
    model = nn.Sequential(nn.Linear(1, 32), act(), nn.Linear(32, 32), act(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    ends, values = torch.tensor([[0.0], [1.0]]), solution(torch.tensor([0.0, 1.0]))

    def step() -> None:
        x = torch.rand(64, 1, requires_grad=True)
        u = model(x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        graph = fault != "curvature_without_graph"
        (curvature,) = torch.autograd.grad(slope.sum(), x, create_graph=graph)
        inside = (curvature - source(x)).square().mean() / 100
        if fault == "ends_broadcast":
            at_ends = (model(ends) - values).square().mean()
        else:
            at_ends = (model(ends).squeeze(1) - values).square().mean()
        optimizer.zero_grad()
        (inside + 10 * at_ends).backward()
        optimizer.step()

    @torch.no_grad()
    def score(count: int) -> float:
        x = torch.linspace(0, 1, count)[:, None]
        return explained(model(x), solution(x))

    return Training(model, optimizer, step, lambda: score(41), lambda: score(400), 1000)


Trainings = dict[str, tuple[Callable[[str], Training], dict[str, str]]]

TRAININGS: Trainings = {
    "cnn": (
        cnn,
        {
            "flips_change_the_class": "Pictures are flipped at random, but four classes are mirror images of "
            "the other four.",
            "reshape_in_place_of_permute": "Pictures with the channels last are reshaped, not permuted, to "
            "channels first, which scrambles them.",
            "validation_not_normalised": "Validation gives the model bytes from 0 to 255, training "
            "normalised values.",
        },
    ),
    "regressor": (
        regressor,
        {
            "weights_broadcast": "Weights [B, 1] times errors [B] give a [B, B] table; each error gets the "
            "mean weight.",
            "statistics_per_row": "Features are standardised over the features of a row, not over the rows.",
            "trains_on_the_validation_rows": "Batches are drawn from all rows, so the validation rows are "
            "trained on.",
        },
    ),
    "speech": (
        speech,
        {
            "labels_in_another_order": "Logits are flattened time first, labels batch first.",
            "backward_not_flipped_back": "The output of the GRU that runs backwards is not flipped back.",
            "noise_added_in_place": "The augmentation adds its noise to the stored frames, so that it grows "
            "from epoch to epoch.",
        },
    ),
    "songwriter": (
        songwriter,
        {
            "position_of_the_batch": "The position embedding is indexed by row of the batch, not by time.",
            "warm_up_longer_than_training": "The learning rate rises over 4000 steps, the training has 400.",
            "softmax_over_queries": "The attention weights are normalised over the queries, not the keys, "
            "so that what comes later changes what is said of the present.",
        },
    ),
    "rectangle_vae": (
        rectangle_vae,
        {
            "annealing_rounds_to_zero": "The weight of the divergence is an integer division, 0 throughout.",
            "sigmoid_twice": "The decoder ends with a sigmoid, and the loss takes logits.",
            "validated_in_training_mode": "Validation runs with dropout and batch statistics, and changes "
            "the running ones.",
        },
    ),
    "wgan": (
        wgan,
        {
            "penalty_without_graph": "The gradient of the penalty is taken without create_graph; the penalty "
            "has no effect.",
            "tanh_cannot_reach_the_data": "The generator ends with a tanh, the data reach to -1.9 and 1.9.",
            "critic_keeps_gradients": "The critic's gradients are never zeroed; those of all steps and of "
            "the generator's loss add up.",
        },
    ),
    "contrastive": (
        contrastive,
        {
            "same_view_twice": "Both views are the same one, so that nothing teaches invariance.",
            "temperature_multiplied": "Similarities are multiplied by the temperature, not divided by it.",
            "normalised_over_the_batch": "Features are scaled to unit norm over the batch, not over the "
            "features of a view.",
        },
    ),
    "equaliser": (
        equaliser,
        {
            "imaginary_part_dropped": "The received samples are stored as real numbers.",
            "compared_by_magnitude": "The loss compares magnitudes, so that the phase is not learnt.",
            "transformed_over_the_batch_too": "fft2 transforms over the batch as well as over time.",
        },
    ),
    "graph_net": (
        graph_net,
        {
            "degree_of_the_other_node": "The adjacency is divided by the degree of the neighbour, not of the "
            "node, by broadcasting along the wrong axis.",
            "edges_one_way": "Edges are stored in one direction only; half of the neighbours are missing.",
            "dropout_always_on": "F.dropout is called without training=self.training and stays on in "
            "validation.",
        },
    ),
    "two_tasks": (
        two_tasks,
        {
            "gradients_zeroed_between": "Gradients are zeroed between the two backward passes; the first "
            "loss has no effect.",
            "second_loss_as_number": "The second loss enters the total as a number, without a gradient.",
            "class_weights_inverted": "Rare classes get a low weight, frequent ones a high one.",
        },
    ),
    "fine_tuning": (
        fine_tuning,
        {
            "checkpoint_keys_do_not_match": "The names in the checkpoint start with 'module.', and strict is "
            "off; the frozen backbone keeps its random weights.",
            "head_replaced_after_the_optimizer": "The new head is made after the optimizer, which keeps the "
            "old one.",
            "scaled_unlike_pretraining": "Inputs are scaled to 0..1, in pretraining they were standardised.",
        },
    ),
    "dqn": (
        dqn,
        {
            "goes_on_after_the_fall": "The value of the state after a fall is added, as if the game went on.",
            "index_in_place_of_value": "max(1)[1], the number of the best action, is taken as its value.",
            "memory_holds_references": "The memory holds the tensor that is moved in place, not copies.",
        },
    ),
    "unet": (
        unet,
        {
            "image_flipped_without_mask": "The augmentation flips images but not their masks.",
            "overlap_minimised": "The Dice coefficient is added to the loss, not subtracted.",
            "skip_not_used": "The decoder concatenates its own features twice, not those of the encoder.",
        },
    ),
    "physics": (
        physics,
        {
            "activation_without_curvature": "The second derivative of a network of ReLU is 0.",
            "curvature_without_graph": "The second derivative is taken without create_graph; the equation "
            "has no gradient.",
            "ends_broadcast": "Predictions [2, 1] minus values [2] give a [2, 2] table.",
        },
    ),
}

CASES = cases_of(TRAININGS)

# Steps that are watched; every loop shows its fault within them.
WATCHED = 100
# Of --check. A fault lowers the score, or its validation is off, by at least the margin.
SEEDS, MARGIN = 3, 0.05


def report(trainings: Trainings, name: str) -> None:
    """Print the doctor's report on a training."""
    case, _, fault = name.partition(":")
    torch.manual_seed(0)
    training = trainings[case][0](fault)
    with watch(training.model, training.optimizer):
        training.run(WATCHED)


def check(trainings: Trainings, name: str) -> None:
    """Print the scores of a training and what is wrong with it."""
    case, _, fault = name.partition(":")
    make = trainings[case][0]
    validated, healthy, controlled = scores(make, "")
    if not fault:
        learns = healthy > 0.5 and abs(validated - healthy) < MARGIN
        print(
            f"{name}: {healthy:.2f}, validation {validated:.2f}{'' if learns else ' UNHEALTHY'}", flush=True
        )
        return
    reported, score, found = scores(make, fault)
    harms = [f"score lower by {healthy - score:.2f}"] if healthy - score >= MARGIN else []
    if abs(reported - score) >= MARGIN:
        harms.append(f"validation off by {reported - score:+.2f}")
    if found > 2 * controlled:
        harms.append(f"{found:.2f} where {controlled:.2f} is healthy")
    words = f"{score:.2f}, validation {reported:.2f}: {', '.join(harms) or 'HARMLESS'}"
    print(f"{name}: {words}", flush=True)


@functools.cache
def scores(make: Callable[[str], Training], fault: str) -> tuple[float, float, float]:
    """Score of the script's own validation, score on new data, what is controlled; means over the seeds."""
    found = []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        training = make(fault)
        validated = training.run(training.steps)
        found.append((validated, training.test(), training.controlled() if training.controlled else 0.0))
    return tuple(torch.tensor(found).mean(0).tolist())


def main(trainings: Trainings, description: str | None) -> None:
    """Report on some trainings or all, or check them."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.names or cases_of(trainings):
        (check if options.check else report)(trainings, name)


if __name__ == "__main__":
    main(TRAININGS, __doc__)
