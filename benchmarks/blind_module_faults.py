"""Twelve small trainings as users write them, and three faults in each, made without seeing the doctor.

``python benchmarks/blind_module_faults.py NAME`` prints the doctor's report on the training NAME, and
``NAME:FAULT`` on one with a fault. ``--learn`` trains each and prints its score on new data instead, which
shows that the healthy ones learn and what each fault costs (0: as good as a guess, 1: perfect).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from rismusic.doctor.module import diagnose_module
from rismusic.doctor.watch import watch


@dataclass
class Training:
    """A training: ``step`` takes one optimizer step, ``score`` measures on new data.

    ``loss`` and ``batch``, where given, are what :func:`rismusic.diagnose_module` is called with; the others
    are watched for some steps.
    """

    model: Any
    optimizer: Any
    step: Callable[[], object]
    score: Callable[[], float]
    steps: int = 300
    loss: Callable[[Any, Any], Tensor] | None = None
    batch: Any = None
    make_optimizer: Any = None


def of_loss(
    model: nn.Module,
    make_optimizer: Callable[[Any], torch.optim.Optimizer],
    loss: Callable[[Any, Any], Tensor],
    draw: Callable[[], Any],
    score: Callable[[], float],
    steps: int = 300,
) -> Training:
    """The plain loop around a loss."""
    optimizer = make_optimizer(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        loss(model, draw()).backward()
        optimizer.step()

    return Training(model, optimizer, step, score, steps, loss, draw(), make_optimizer)


def explained(predicted: Tensor, true: Tensor) -> float:
    """Share of the variance that a prediction explains, not below -1."""
    spread = (true - true.mean(0)).abs().square().mean()
    return max(-1.0, float(1 - (predicted - true).abs().square().mean() / spread))


def above_chance(logits: Tensor, labels: Tensor, classes: int) -> float:
    accuracy = float((logits.argmax(-1) == labels).double().mean())
    return (accuracy - 1 / classes) / (1 - 1 / classes)


# Classifier of points.

CENTRES = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 2.0], [0.0, -2.0], [3.0, 3.0], [-3.0, -3.0]])


def points(count: int) -> tuple[Tensor, Tensor]:
    labels = torch.randint(6, (count,))
    return CENTRES[labels] + 0.5 * torch.randn(count, 2), labels


def classifier(fault: str) -> Training:
    model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 6))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    x, y = points(2048)
    done = 0

    def step() -> None:
        nonlocal done
        rows = torch.randint(len(x), (64,))
        labels = y[torch.randint(len(x), (64,))] if fault == "labels_of_other_rows" else y[rows]
        out = model(x[rows])
        if fault == "softmax_before_cross_entropy":
            out = out.softmax(-1)
        loss = F.cross_entropy(out, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        done += 1
        if fault == "schedule_steps_per_batch" or done % 32 == 0:
            schedule.step()

    def score() -> float:
        new, labels = points(1000)
        return above_chance(model(new), labels, 6)

    return Training(model, optimizer, step, score, 200)


# Convolutional network on images of stripes.


def stripes(count: int) -> tuple[Tensor, Tensor]:
    labels = torch.randint(4, (count,))
    angle = labels * math.pi / 4
    phase = 2 * math.pi * torch.rand(count)
    axis = torch.arange(16.0)
    along = angle.cos()[:, None, None] * axis[:, None] + angle.sin()[:, None, None] * axis
    # As bytes, about.
    return (128 + 60 * (along + phase[:, None, None]).sin() + 30 * torch.randn(count, 16, 16))[
        :, None
    ], labels


class ConvNet(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
        )
        self.head = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.features(x)
        crossed = self.fault == "flattened_across_batch"
        h = h.transpose(0, 1).reshape(len(x), -1) if crossed else h.flatten(1)
        logits = self.head(h)
        return logits.relu() if self.fault == "activation_after_logits" else logits


def cnn(fault: str) -> Training:
    model = ConvNet(fault)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    x, y = stripes(1024)
    done = 0

    def score() -> float:
        model.eval()
        new, labels = stripes(512)
        with torch.no_grad():
            return above_chance(model(new), labels, 4)

    def step() -> None:
        nonlocal done
        if fault != "left_in_eval_mode":
            model.train()
        rows = torch.randint(len(x), (32,))
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        done += 1
        if done % 10 == 0 or (fault == "left_in_eval_mode" and done == 1):
            score()

    return Training(model, optimizer, step, score, 150)


# LSTM that predicts a damped sum over a sequence.


def sequences(count: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 12, 3)
    decay = 0.8 ** torch.arange(11.0, -1.0, -1.0)
    return x, (x[..., 0] * x[..., 1] * decay[:, None].T).sum(1, keepdim=True)


class Recurrent(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.lstm = nn.LSTM(3, 48, batch_first=fault != "batch_first_forgotten")
        self.head = nn.Linear(48, 1)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        return self.head(out[:, 0] if self.fault == "first_step_read" else out[:, -1])


def lstm(fault: str) -> Training:
    model = Recurrent(fault)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def step() -> None:
        x, y = sequences(64)
        loss = F.mse_loss(model(x), y.squeeze(1) if fault == "target_broadcast" else y)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    def score() -> float:
        x, y = sequences(1024)
        with torch.no_grad():
            return explained(model(x), y)

    return Training(model, optimizer, step, score, 500)


# Transformer: does the first marked token come before the second?


def tokens(count: int) -> tuple[Tensor, Tensor, Tensor]:
    ids = torch.randint(3, 12, (count, 10))
    length = torch.randint(6, 11, (count,))
    places = torch.stack([torch.randperm(int(n))[:2] for n in length])
    rows = torch.arange(count)
    ids[rows, places[:, 0]], ids[rows, places[:, 1]] = 1, 2
    padding = torch.arange(10) >= length[:, None]
    ids[padding] = 0
    return ids, padding, (places[:, 0] < places[:, 1]).long()


class Encoder(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.embed = nn.Embedding(12, 32)
        self.position = nn.Parameter(0.1 * torch.randn(10, 32))
        layer = nn.TransformerEncoderLayer(
            32, 4, 64, dropout=0.0, batch_first=fault != "batch_first_forgotten"
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 2)

    def forward(self, ids: Tensor, padding: Tensor) -> Tensor:
        x = self.embed(ids) + self.position
        if self.fault == "batch_first_forgotten":
            h = self.encoder(x)
        else:
            h = self.encoder(
                x, src_key_padding_mask=~padding if self.fault == "padding_mask_inverted" else padding
            )
        return self.head(h[:, 0])


def transformer(fault: str) -> Training:
    model = Encoder(fault)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    warm = 50

    def rate(step: int) -> float:
        return step // 1000 if fault == "warm_up_by_integers" else min(1.0, (step + 1) / warm)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)

    def step() -> None:
        ids, padding, y = tokens(64)
        if fault == "padding_mask_inverted":
            padding[:, -1] = True
        optimizer.zero_grad()
        F.cross_entropy(model(ids, padding), y).backward()
        optimizer.step()
        schedule.step()

    def score() -> float:
        ids, padding, y = tokens(512)
        if fault == "padding_mask_inverted":
            padding[:, -1] = True
        with torch.no_grad():
            return above_chance(model(ids, padding), y, 2)

    return Training(model, optimizer, step, score, 500)


# Variational autoencoder of curves.


def curves(count: int) -> Tensor:
    place, width = torch.rand(count, 1) * 20 + 6, torch.rand(count, 1) * 3 + 1.5
    return 0.05 + 0.9 * (-((torch.arange(32.0) - place) ** 2) / (2 * width**2)).exp()


class Vae(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.encoder = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))
        self.decoder = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 32))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, -1)
        deviation = (log_variance / 2).exp()
        if self.fault == "sample_ignores_mean":
            z = deviation * torch.randn_like(mean)
        else:
            z = mean + deviation * torch.randn_like(mean)
        logits = self.decoder(z)
        return (logits.sigmoid() if self.fault == "sigmoid_twice" else logits), mean, log_variance


def vae(fault: str) -> Training:
    model = Vae(fault)

    def loss(model: Any, x: Tensor) -> Tensor:
        logits, mean, log_variance = model(x)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1).mean()
        if fault == "divergence_outweighs":
            return F.binary_cross_entropy_with_logits(logits, x) + divergence
        return F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / len(x) + 0.1 * divergence

    def score() -> float:
        x = curves(512)
        with torch.no_grad():
            return explained(model(x)[0].sigmoid(), x)

    return of_loss(model, lambda p: torch.optim.Adam(p, lr=3e-3), loss, lambda: curves(64), score, 600)


# Generator and discriminator of points on a ring.


def ring(count: int) -> Tensor:
    turn = 2 * math.pi * torch.rand(count)
    return torch.stack((turn.cos(), turn.sin()), -1) * 2 + 0.1 * torch.randn(count, 2)


def gan(fault: str) -> Training:
    generator = nn.Sequential(nn.Linear(4, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2))
    generator.append(nn.Linear(64, 2))
    critic = nn.Sequential(nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2))
    critic.append(nn.Linear(64, 1))
    own = critic if fault == "generator_optimizer_has_critic" else generator
    of_generator = torch.optim.Adam(own.parameters(), lr=1e-3, betas=(0.5, 0.999))
    of_critic = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.5, 0.999))

    def step() -> None:
        fake = generator(torch.randn(64, 4))
        real_out, fake_out = critic(ring(64)), critic(fake.detach())
        loss = F.softplus(-real_out).mean() + F.softplus(fake_out).mean()
        if fault != "critic_gradients_not_cleared":
            of_critic.zero_grad()
        loss.backward()
        of_critic.step()
        out = critic(fake.detach() if fault == "fake_detached_for_generator" else fake)
        of_generator.zero_grad()
        F.softplus(-out).mean().backward()
        of_generator.step()

    def score() -> float:
        with torch.no_grad():
            radius = generator(torch.randn(1024, 4)).norm(dim=-1)
        return float(((radius - 2).abs() < 0.5).double().mean())

    models = {"generator": generator, "critic": critic}
    return Training(models, [of_generator, of_critic], step, score, 800)


# Complex-valued network that removes a channel.

CHANNEL = torch.polar(torch.rand(8, 8, generator=torch.Generator().manual_seed(5)), 6 * torch.eye(8)) / 2


def signals(count: int) -> tuple[Tensor, Tensor]:
    sent = torch.randn(count, 8, dtype=torch.complex64)
    return sent @ CHANNEL + 2 * sent + 0.05 * torch.randn(count, 8, dtype=torch.complex64), sent


class ComplexNet(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.first = nn.Linear(8, 32, dtype=torch.complex64)
        self.last = nn.Linear(32, 8, dtype=torch.complex64)
        if fault == "weights_start_at_zero":
            nn.init.zeros_(self.first.weight)
            nn.init.zeros_(self.first.bias)
            nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor) -> Tensor:
        if self.fault == "imaginary_part_dropped":
            x = x.real.to(torch.complex64)
        h = self.first(x)
        return self.last(h * torch.sigmoid(h.abs()))


def complex_valued(fault: str) -> Training:
    model = ComplexNet(fault)

    def loss(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        received, sent = batch
        error = model(received) - sent
        if fault == "squared_without_modulus":
            return (error**2).real.mean()
        return error.abs().square().mean()

    def score() -> float:
        received, sent = signals(512)
        with torch.no_grad():
            return explained(model(received), sent)

    return of_loss(model, lambda p: torch.optim.Adam(p, lr=5e-3), loss, lambda: signals(64), score, 300)


# Siamese network: are two noisy views of the same pattern?

PATTERNS = torch.randn(20, 16, generator=torch.Generator().manual_seed(3))


def pairs(count: int) -> tuple[Tensor, Tensor, Tensor]:
    same = torch.arange(count) % 2 == 0
    first = torch.randint(20, (count,))
    second = torch.where(same, first, (first + torch.randint(1, 20, (count,))) % 20)
    views = [
        (PATTERNS[i] + 0.5 * torch.randn(count, 16)) * (1 + 0.5 * torch.rand(count, 1))
        for i in (first, second)
    ]
    return views[0], views[1], same.float()


class Siamese(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.body = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        second = self.body(a if self.fault == "same_view_twice" else b)
        return (self.body(a) - second).square().sum(-1).add(1e-6).sqrt()


def siamese(fault: str) -> Training:
    model = Siamese(fault)

    def loss(model: Any, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        a, b, same = batch
        if fault == "labels_inverted":
            same = 1 - same
        distance = model(a, b)
        apart = (distance - 2).relu() if fault == "margin_sign" else (2 - distance).relu()
        return (same * distance.square() + (1 - same) * apart.square()).mean()

    def score() -> float:
        a, b, same = pairs(1024)
        with torch.no_grad():
            close = model(a, b) < 1
        return 2 * float((close == same.bool()).double().mean()) - 1

    return of_loss(model, lambda p: torch.optim.AdamW(p, lr=3e-3), loss, lambda: pairs(64), score, 400)


# Language model: sequences that repeat with a period of 3.


def text(count: int) -> Tensor:
    start = torch.randint(10, (count, 3))
    return torch.cat([start, (start + 1) % 10, (start + 2) % 10, (start + 3) % 10], 1)


class Language(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.embed, self.position = nn.Embedding(10, 32), nn.Embedding(12, 32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.norm, self.mix = nn.LayerNorm(32), nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.head = nn.Linear(32, 10)

    def forward(self, ids: Tensor) -> Tensor:
        T = ids.shape[1]
        x = self.embed(ids) + self.position(torch.arange(T))
        mask = None
        if self.fault != "no_causal_mask":
            mask = torch.ones(T, T, dtype=torch.bool).triu(1)
        x = x + self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]
        return self.head(x + self.mix(self.norm(x)))


def language_model(fault: str) -> Training:
    model = Language(fault)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def step() -> None:
        ids = text(32)
        inputs, targets = (ids, ids) if fault == "targets_not_shifted" else (ids[:, :-1], ids[:, 1:])
        logits = model(inputs)
        if fault == "logits_reshaped_across_batch":
            logits = logits.transpose(0, 1).reshape(-1, 10)
        else:
            logits = logits.reshape(-1, 10)
        optimizer.zero_grad()
        F.cross_entropy(logits, targets.reshape(-1)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    def score() -> float:
        ids = text(256)
        right = []
        with torch.no_grad():
            for t in range(3, 12):
                right.append((model(ids[:, :t])[:, -1].argmax(-1) == ids[:, t]).double().mean())
        return (float(torch.stack(right).mean()) - 0.1) / 0.9

    return Training(model, optimizer, step, score, 400)


# Convolutional autoencoder of blobs.


def blobs(count: int) -> Tensor:
    centre = 4 + 8 * torch.rand(count, 2, 1, 1)
    axis = torch.arange(16.0)
    away = (axis[:, None] - centre[:, 0]) ** 2 + (axis - centre[:, 1]) ** 2
    return (-away / 8).exp()[:, None]


class Autoencoder(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.down = nn.Sequential(nn.Conv2d(1, 8, 4, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 4, 2, 1), nn.ReLU())
        self.code = nn.Linear(256, 16)
        self.wide = nn.Linear(16, 256)
        self.up = nn.Sequential(
            nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 1, 4, 2, 1), nn.Sigmoid()
        )
        if fault == "dead_units":
            nn.init.constant_(self.wide.bias, -10.0)

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.fault != "encoder_without_gradient"):
            code = self.code(self.down(x).flatten(1))
        return self.up(self.wide(code).relu().unflatten(1, (16, 4, 4)))


def autoencoder(fault: str) -> Training:
    model = Autoencoder(fault)
    scale = 255.0 if fault == "pixels_up_to_255" else 1.0

    def loss(model: Any, x: Tensor) -> Tensor:
        return F.mse_loss(model(x), x)

    def score() -> float:
        x = scale * blobs(256)
        with torch.no_grad():
            return explained(model(x), x)

    def draw() -> Tensor:
        return scale * blobs(32)

    return of_loss(model, lambda p: torch.optim.Adam(p, lr=1e-3), loss, draw, score, 400)


# Graph network: two rounds of messages on directed graphs.


def graphs(count: int) -> dict[str, Tensor]:
    adjacency = (torch.rand(count, 10, 10) < 0.3).float()
    features = torch.randn(count, 10, 4)
    mean = adjacency / adjacency.sum(-1, keepdim=True).clamp_min(1)
    target = mean @ (mean @ features[..., :1]) + features[..., 1:2]
    return {"x": features, "adjacency": adjacency, "y": target, "known": torch.rand(count, 10, 1) < 0.7}


class Graph(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.read = nn.Linear(4, 32)
        self.layers = nn.ModuleList(nn.Linear(64, 32) for _ in range(2))
        self.write = nn.Linear(32, 1)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        if self.fault == "edges_transposed":
            adjacency = adjacency.mT
        weight = adjacency / adjacency.sum(-1, keepdim=True).clamp_min(1)
        if self.fault == "normalised_over_batch":
            weight = adjacency.softmax(0)
        h = self.read(x)
        for layer in self.layers:
            h = h + F.silu(layer(torch.cat((h, weight @ h), -1)))
        return self.write(h)


def graph(fault: str) -> Training:
    model = Graph(fault)

    def loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
        known = batch["known"]
        error = (model(batch["x"], batch["adjacency"]) - batch["y"]).square()
        if fault == "mask_after_mean":
            return (error.mean((1, 2), keepdim=True) * 0 + error.detach()).mul(known).sum() / known.sum()
        return (error * known).sum() / known.sum()

    def score() -> float:
        new = graphs(256)
        with torch.no_grad():
            return explained(model(new["x"], new["adjacency"]), new["y"])

    return of_loss(model, lambda p: torch.optim.Adam(p, lr=3e-3), loss, lambda: graphs(32), score, 400)


# Two tasks on one trunk.


def tasks(count: int) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(count, 8)
    return x, (x[:, :1] * x[:, 1:2] + x[:, 2:3]), (x[:, 3] * x[:, 4] + x[:, 5] > 0).long()


def multi_task(fault: str) -> Training:
    trunk = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    value, kind = nn.Linear(64, 1), nn.Linear(64, 2)
    model = nn.ModuleDict({"trunk": trunk, "value": value, "kind": kind})
    parts = [trunk, value] if fault == "head_not_in_optimizer" else [trunk, value, kind]
    optimizer = torch.optim.Adam((p for part in parts for p in part.parameters()), lr=3e-3)
    unit = 1000.0 if fault == "target_in_millimetres" else 1.0

    def step() -> None:
        x, y, label = tasks(64)
        h = trunk(x)
        of_value = F.mse_loss(value(h), unit * y)
        of_kind = F.cross_entropy(kind(h), label)
        optimizer.zero_grad()
        if fault == "second_loss_overwritten":
            of_kind = 0 * of_kind
        (of_value + of_kind).backward()
        optimizer.step()

    def score() -> float:
        x, y, label = tasks(1024)
        with torch.no_grad():
            h = trunk(x)
            one, other = explained(value(h) / unit, y), above_chance(kind(h), label, 2)
        return min(one, other)

    return Training(model, optimizer, step, score, 500)


TRAININGS: dict[str, tuple[Callable[[str], Training], dict[str, str]]] = {
    "classifier": (
        classifier,
        {
            "softmax_before_cross_entropy": "cross_entropy is given probabilities in place of logits.",
            "labels_of_other_rows": "The labels are those of other rows than the inputs.",
            "schedule_steps_per_batch": "A schedule meant for epochs is stepped in each batch; the rate is 0 "
            "after a hundred steps.",
        },
    ),
    "cnn": (
        cnn,
        {
            "left_in_eval_mode": "After the first validation the model stays in eval mode; BatchNorm keeps "
            "its "
            "first statistics.",
            "flattened_across_batch": "Channels and samples are exchanged before the features are flattened.",
            "activation_after_logits": "The logits pass a ReLU, so no class can get less than 0.",
        },
    ),
    "lstm": (
        lstm,
        {
            "batch_first_forgotten": "batch_first is missing, so the LSTM runs over the samples.",
            "first_step_read": "The output of the first time step is used in place of the last.",
            "target_broadcast": "[64, 1] minus [64] broadcasts to [64, 64]; the network learns the mean.",
        },
    ),
    "transformer": (
        transformer,
        {
            "batch_first_forgotten": "batch_first is missing, so attention runs over the samples.",
            "padding_mask_inverted": "The padding mask is inverted: attention sees padding only.",
            "warm_up_by_integers": "The warm-up divides integers; the learning rate is 0 for 1000 steps.",
        },
    ),
    "vae": (
        vae,
        {
            "sample_ignores_mean": "z is drawn around 0, not around the mean of the encoder.",
            "sigmoid_twice": "The decoder's output passes a sigmoid before a loss that has its own.",
            "divergence_outweighs": "The reconstruction is a mean over pixels, the divergence a sum: it "
            "outweighs it, and the posterior collapses.",
        },
    ),
    "gan": (
        gan,
        {
            "generator_optimizer_has_critic": "The generator's optimizer has the critic's parameters.",
            "critic_gradients_not_cleared": "The critic's gradients are never cleared and contain those of "
            "the generator's loss.",
            "fake_detached_for_generator": "The samples are detached in the generator's loss too; it gets no "
            ""
            ""
            "gradient.",
        },
    ),
    "complex_valued": (
        complex_valued,
        {
            "imaginary_part_dropped": "The imaginary part of the input is dropped.",
            "squared_without_modulus": "The loss is the real part of the square, not the squared modulus; it "
            "has "
            ""
            "no lower bound.",
            "weights_start_at_zero": "Both layers start at 0, so neither weight matrix ever gets a gradient.",
        },
    ),
    "siamese": (
        siamese,
        {
            "same_view_twice": "Both branches get the first view, so the distance is 0.",
            "labels_inverted": "Same and different are exchanged.",
            "margin_sign": "The hinge has the wrong sign; embeddings collapse to a point.",
        },
    ),
    "language_model": (
        language_model,
        {
            "targets_not_shifted": "The targets are the inputs, not the next tokens.",
            "no_causal_mask": "Without a causal mask each position sees the token that it must predict.",
            "logits_reshaped_across_batch": "Logits are flattened by time, targets by sample.",
        },
    ),
    "autoencoder": (
        autoencoder,
        {
            "pixels_up_to_255": "Pixels are not scaled to 0 .. 1, but the output is a sigmoid.",
            "dead_units": "A bias of -10 before the ReLU leaves every unit of the layer dead.",
            "encoder_without_gradient": "The encoder runs without gradient and is never trained.",
        },
    ),
    "graph": (
        graph,
        {
            "edges_transposed": "Messages run against the direction of the edges.",
            "normalised_over_batch": "The softmax of the edges runs over the batch in place of the "
            "neighbours.",
            "mask_after_mean": "The error is detached, and what keeps the graph connected is multiplied by "
            "0.",
        },
    ),
    "multi_task": (
        multi_task,
        {
            "head_not_in_optimizer": "The head of the second task is not in the optimizer.",
            "target_in_millimetres": "One target is 1000 times larger; its loss drowns the other.",
            "second_loss_overwritten": "The second loss is multiplied by 0.",
        },
    ),
}


def cases_of(trainings: Mapping[str, tuple[object, Mapping[str, str]]]) -> dict[str, str]:
    """What is wrong in each case: nothing in a training, the cause in ``training:fault``."""
    faulty = {
        f"{name}:{fault}": cause for name, (_, faults) in trainings.items() for fault, cause in faults.items()
    }
    return {**dict.fromkeys(trainings, ""), **faulty}


CASES = cases_of(TRAININGS)

# Steps that are watched; every loop shows its fault within them.
WATCHED = 100


def report(name: str) -> None:
    """Print the doctor's report on a training."""
    case, _, fault = name.partition(":")
    training = TRAININGS[case][0](fault)
    if training.loss is not None:
        diagnose_module(
            training.model, training.loss, training.batch, optimizer=training.make_optimizer, say=print
        )
        return
    with watch(training.model, training.optimizer):
        for _ in range(WATCHED):
            training.step()


def learn(name: str) -> None:
    """Train and print the score."""
    case, _, fault = name.partition(":")
    training = TRAININGS[case][0](fault)
    for _ in range(training.steps):
        training.step()
    print(f"{name}: {training.score():.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--learn", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.names or CASES:
        torch.manual_seed(0)
        (learn if options.learn else report)(name)


if __name__ == "__main__":
    main()
