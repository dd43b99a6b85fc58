"""Fifteen further plain trainings of the usual kinds, with three faults each, made without seeing the doctor.

``python benchmarks/blind_module_faults_6.py NAME`` prints the doctor's report on the training NAME, and
``NAME:FAULT`` on one with a fault. ``--check`` trains each from three seeds without the doctor and prints the
score that the script's own validation ends with and the score on new data (0: as good as a guess, 1:
perfect): the healthy ones learn and validate truly, and a fault lowers the score or its validation is wrong.

The classes of the faults were drawn at random before any was written, three different ones for each training
(``random.Random(6)``, the first draw), by shares in the manner of Humbatova et al. (ICSE 2020), Islam et al.
(FSE 2019), Zhang et al. (ISSTA 2018), DeepLocalize, AutoTrainer, DeepDiagnosis and UMLAUT: preprocessing 16,
loss 12, activation 12, shapes and axes 11, calls and modes 10, layers 10, labels and data 9, rate, batch and
schedule 9, optimizer 6, evaluation 5 in a hundred. The class comes first in the words about a fault.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.rnn import pack_padded_sequence
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau, StepLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from blind_module_faults import cases_of
from blind_module_faults_2 import Training, Trainings, above_chance, explained, fixed, main


def epochs(*data: Tensor, batch: int) -> Iterator[tuple[int, list[Tensor]]]:
    """Batches of epochs without end, each with its number within the epoch."""
    loader = DataLoader(TensorDataset(*data), batch, shuffle=True, drop_last=True)
    while True:
        yield from enumerate(loader)


# Classifier: which of five diseases, in two forms each, do six concentrations in blood point to?

FORMS = fixed(5, 2, 6, seed=61)


def patients(count: int) -> tuple[Tensor, Tensor]:
    """Concentrations [count, 6], over several decades, and the disease."""
    disease, form = torch.randint(5, (count,)), torch.randint(2, (count,))
    return 10 ** (FORMS[disease, form] + 0.35 * torch.randn(count, 6)), disease


def diagnosis(fault: str) -> Training:
    model = nn.Sequential(
        *(nn.Linear(6, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.1)),
        *(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5)),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    level, disease = patients(3000)
    held_out = patients(600)
    if fault == "file_of_one_disease_missing":
        level, disease = level[disease != 3], disease[disease != 3]

    def transformed(level: Tensor) -> Tensor:
        return level if fault == "no_logarithm" else level.log10()

    x = transformed(level)
    mean, deviation = x.mean(0), x.std(0)
    batches = epochs((x - mean) / deviation, disease, batch=64)

    def step() -> None:
        number, (inputs, labels) = next(batches)
        if number == 0 or fault != "zeroed_once_in_an_epoch":
            optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def score(level: Tensor, disease: Tensor) -> float:
        model.eval()
        logits = model((transformed(level) - mean) / deviation)
        model.train()
        return above_chance(logits, disease, 5)

    return Training(*(model, optimizer, step), lambda: score(*held_out), lambda: score(*patients(4000)), 400)


# Regression of the minutes that a delivery takes; some were never recorded.


def deliveries(count: int) -> tuple[Tensor, Tensor]:
    """Distance (km), hour, rain (mm) and parcels [count, 4]; minutes, not a number where not recorded."""
    distance, hour = 1 + 19 * torch.rand(count), 7 + 13 * torch.rand(count)
    rain, parcels = F.relu(4 * torch.randn(count)), torch.randint(1, 12, (count,)).float()
    traffic = 1 + (-(hour - 8.5).square() / 2).exp() + 0.8 * (-(hour - 17.5).square() / 3).exp()
    minutes = 2.2 * distance * traffic * (1 + 0.04 * rain) + 3 * parcels + 4 * torch.randn(count)
    minutes = torch.where(torch.rand(count) < 0.25, torch.nan, minutes)
    return torch.stack((distance, hour, rain, parcels), 1), minutes


def delivery(fault: str) -> Training:
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    rate = 0.3 if fault == "rate_of_three_tenths" else 3e-3
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)

    def recorded(count: int) -> tuple[Tensor, Tensor]:
        table, minutes = deliveries(count)
        known = ~minutes.isnan()
        return table[known], minutes[known]

    table, minutes = recorded(4000)
    if fault == "unrecorded_times_are_zero":
        table, minutes = deliveries(4000)
        minutes = minutes.nan_to_num()
    held_out = recorded(800)
    mean, deviation = table.mean(0), table.std(0)
    level, spread = minutes.mean(), minutes.std()
    batches = epochs((table - mean) / deviation, (minutes - level) / spread, batch=64)

    def step() -> None:
        _, (inputs, targets) = next(batches)
        error = model(inputs).squeeze(1) - targets
        if fault == "relative_error_of_standardised_times":
            error = error / targets
        loss = error.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def score(table: Tensor, minutes: Tensor) -> float:
        return explained(level + spread * model((table - mean) / deviation).squeeze(1), minutes)

    return Training(*(model, optimizer, step), lambda: score(*held_out), lambda: score(*recorded(4000)), 500)


# LSTM: which of six appliances draws this power?

LONGEST = 32
LEVELS, PERIODS = torch.tensor([150.0, 700.0, 2000.0]), torch.tensor([4, 9])


def appliances(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Watts [count, 32], padded with zeros; the length; the appliance."""
    kind, length = torch.randint(6, (count,)), torch.randint(14, LONGEST + 1, (count,))
    time = torch.arange(LONGEST)
    period = PERIODS[kind % 2, None]
    on = (time + torch.randint(36, (count, 1))) % period < period / 2
    watts = LEVELS[kind // 2, None] * (0.7 + 0.6 * torch.rand(count, 1)) * torch.where(on, 1, 0.2)
    watts = watts * (1 + 0.1 * torch.randn(count, LONGEST))
    return torch.where(time < length[:, None], watts, 0).clamp_min(0), length, kind


class ApplianceReader(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 32, batch_first=True)
        self.out = nn.Linear(32, 6)
        self.restores_order = fault != "not_sorted_back"

    def forward(self, x: Tensor, length: Tensor) -> Tensor:
        length, order = length.sort(descending=True)
        _, (last, _) = self.lstm(pack_padded_sequence(x[order], length, batch_first=True))
        logits: Tensor = self.out(last[-1])
        return logits[order.argsort()] if self.restores_order else logits


def appliance(fault: str) -> Training:
    model = ApplianceReader(fault)
    optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    if fault == "adadelta_at_the_rate_of_another_library":
        optimizer = torch.optim.Adadelta(model.parameters(), lr=1e-3)

    def stored(watts: Tensor) -> Tensor:
        return watts.long().to(torch.uint8).float() if fault == "stored_as_bytes" else watts

    watts, length, kind = appliances(2500)
    watts = stored(watts)
    held_out = appliances(400)
    there = watts > 0
    mean, deviation = watts[there].log().mean(), watts[there].log().std()

    def inputs(watts: Tensor) -> Tensor:
        return torch.where(watts > 0, (watts.log() - mean) / deviation, 0)[..., None]

    def step() -> None:
        rows = torch.randint(len(kind), (48,))
        loss = F.cross_entropy(model(inputs(watts[rows]), length[rows]), kind[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    @torch.no_grad()
    def score(watts: Tensor, length: Tensor, kind: Tensor) -> float:
        return above_chance(model(inputs(stored(watts)), length), kind, 6)

    return Training(
        *(model, optimizer, step), lambda: score(*held_out), lambda: score(*appliances(2000)), 450
    )


# Transformer on a log of visits: is each of them the first one of that visitor?

VISITORS, VISITS = 14, 16


def logs(count: int) -> tuple[Tensor, Tensor]:
    """Visitors [count, 16], oldest visit first, and whether each has not come before, 1 or 0."""
    visitor = torch.randint(VISITORS, (count, VISITS))
    same = visitor[:, :, None] == visitor[:, None, :]
    return visitor, (same.tril(-1).sum(-1) == 0).long()


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, fault: str) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.fault = fault

    def split(self, x: Tensor) -> Tensor:
        """Heads of features [B, T, W], as [B, H, T, W / H]."""
        size, time, width = x.shape
        if self.fault == "heads_viewed_across_time":
            return x.reshape(size, self.heads, time, width // self.heads)
        return x.reshape(size, time, self.heads, width // self.heads).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (self.split(layer(x)) for layer in (self.query, self.key, self.value))
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        if self.fault == "heads_viewed_across_time":
            return self.out(attended.reshape(x.shape))
        return self.out(attended.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width: int, fault: str) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, 4, fault)
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_1(x))
        return x + self.feed(self.norm_2(x))


class VisitReader(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.visitor, self.place = nn.Embedding(VISITORS, 48), nn.Embedding(VISITS, 48)
        self.blocks = nn.Sequential(Block(48, fault), Block(48, fault))
        self.norm, self.out = nn.LayerNorm(48), nn.Linear(48, 2)

    def forward(self, visitor: Tensor) -> Tensor:
        x = self.visitor(visitor) + self.place(torch.arange(visitor.shape[1]))
        logits: Tensor = self.out(self.norm(self.blocks(x)))
        return logits


def visits(fault: str) -> Training:
    model = VisitReader(fault)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    highest = math.inf if fault == "warm_up_without_an_end" else 1.0
    schedule = LambdaLR(optimizer, lambda step: min((step + 1) / 20, highest))
    visitor, first = logs(4000)
    if fault == "labelled_in_a_file_with_the_newest_first":
        same = visitor[:, :, None] == visitor[:, None, :]
        first = (same.triu(1).sum(-1) == 0).long()
    held_out = logs(400)

    def step() -> None:
        rows = torch.randint(len(visitor), (48,))
        loss = F.cross_entropy(model(visitor[rows]).flatten(0, 1), first[rows].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

    @torch.no_grad()
    def score(visitor: Tensor, first: Tensor) -> float:
        return above_chance(model(visitor), first, 2)

    return Training(*(model, optimizer, step), lambda: score(*held_out), lambda: score(*logs(2000)), 300)


# Variational autoencoder of the power that a household draws over a day.


def days(count: int) -> Tensor:
    """Power [count, 24] in kilowatts."""
    hour = torch.arange(24.0)
    rise, night = 7 + 1.2 * torch.randn(count, 1), 0.3 + 0.1 * torch.rand(count, 1)
    morning, evening = 0.5 + torch.rand(2, count, 1)
    peaks = morning * (-((hour - rise) / 1.5).square()).exp()
    peaks = peaks + evening * (-((hour - rise - 12) / 2.5).square()).exp()
    return night + peaks + 0.05 * torch.randn(count, 24)


def distance(one: Tensor, other: Tensor) -> Tensor:
    """Energy distance of two samples."""
    between = 2 * torch.cdist(one, other).mean()
    return (between - torch.cdist(one, one).mean() - torch.cdist(other, other).mean()).clamp_min(0)


class DayVAE(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(24, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU())
        self.mean, self.log_variance = nn.Linear(96, 4), nn.Sequential(nn.Linear(96, 4))
        self.decoder = nn.Sequential(
            *(nn.Linear(4, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 24)),
        )
        if fault == "relu_on_the_logarithm_of_the_variance":
            self.log_variance.append(nn.ReLU())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.body(x)
        mean, log_variance = self.mean(features), self.log_variance(features)
        z = mean
        if self.training:
            z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        return self.decoder(z), mean, log_variance


def household(fault: str) -> Training:
    model = DayVAE(fault)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    days_seen = days(4000)
    mean_day, deviation = days_seen.mean(0), days_seen.std()
    x = (days_seen - mean_day) / deviation
    held_out = days(600)
    noise = 0.3

    def step() -> None:
        if fault != "left_in_eval_mode_by_the_validation":
            model.train()
        part = x[torch.randint(len(x), (128,))]
        rebuilt, mean, log_variance = model(part)
        likelihood = (rebuilt - part).square().sum(-1).mean() / (2 * noise**2)
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance) / 2
        if fault == "divergence_summed_over_the_batch":
            loss = likelihood + divergence.sum(0).mean()
        else:
            loss = likelihood + divergence.sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def score(power: Tensor) -> float:
        """Mean of what is explained and of how close new days are to those that were seen."""
        model.eval()
        given = (power - mean_day) / deviation
        made = model.decoder(torch.randn(len(power), 4))
        apart = distance(made, given) / distance(given.mean(0).expand_as(given), given)
        return explained(model(given)[0], given) / 2 + max(-1.0, 1 - float(apart) ** 0.5) / 2

    return Training(*(model, optimizer, step), lambda: score(held_out), lambda: score(days(1000)), 600)


# Generator and discriminator of the sizes of leaves of three species.


def leaves(count: int) -> Tensor:
    """Length in millimetres and ratio of width to length, [count, 2]."""
    species = torch.randint(3, (count,))
    length = torch.tensor([40.0, 90.0, 120.0])[species] * (0.12 * torch.randn(count)).exp()
    ratio = torch.tensor([0.8, 0.5, 0.85])[species] - 0.002 * (length - 80) + 0.03 * torch.randn(count)
    return torch.stack((length, ratio), 1)


def leaf(fault: str) -> Training:
    def network(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            *(nn.Linear(inputs, 96), nn.LeakyReLU(0.2), nn.Linear(96, 96), nn.LeakyReLU(0.2)),
            nn.Linear(96, outputs),
        )

    generator, judge = network(4, 2), network(2, 1)
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.99))
    optimizer_j = torch.optim.Adam(judge.parameters(), lr=1e-3, betas=(0.5, 0.99))
    average = None if fault == "average_of_all_steps" else get_ema_multi_avg_fn(0.98)
    averaged = AveragedModel(generator, multi_avg_fn=average)
    measured = leaves(4000)
    mean, deviation = measured.mean(0), measured.std(0)
    if fault == "millimetres_and_ratios":
        mean, deviation = torch.zeros(2), torch.ones(2)
    x = (measured - mean) / deviation
    size = 2 if fault == "batches_of_two" else 128

    def step() -> None:
        real, fake = x[torch.randint(len(x), (size,))], generator(torch.randn(size, 4))
        optimizer_j.zero_grad()
        (F.softplus(-judge(real)).mean() + F.softplus(judge(fake.detach())).mean()).backward()
        optimizer_j.step()
        optimizer_g.zero_grad()
        F.softplus(-judge(fake)).mean().backward()
        optimizer_g.step()
        averaged.update_parameters(generator)

    held_out = leaves(1500)

    @torch.no_grad()
    def score(true: Tensor) -> float:
        """1 minus the distance of the distributions, over that of a single leaf."""
        made = mean + deviation * averaged(torch.randn(len(true), 4))
        made, true = ((part - held_out.mean(0)) / held_out.std(0) for part in (made, true))
        apart = distance(made, true) / distance(true.mean(0).expand_as(true), true)
        return max(-1.0, 1 - float(apart) ** 0.5)

    return Training(
        *((generator, judge), (optimizer_g, optimizer_j), step),
        lambda: score(held_out),
        lambda: score(leaves(1500)),
        900,
    )


# Complex-valued network: amplitude of a wave from an unknown direction on eight antennas.


def waves(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Samples [count, 8] in the phase of the receiver, a pilot in the same phase, and the amplitude."""
    direction = 2 * torch.rand(count, 1) - 1
    amplitude = torch.randn(count, dtype=torch.complex64)
    steering = torch.exp(1j * math.pi / 2 * direction * torch.arange(8))
    samples = amplitude[:, None] * steering + 0.3 * torch.randn(count, 8, dtype=torch.complex64)
    turn = torch.exp(2j * math.pi * torch.rand(count))
    return samples * turn[:, None], turn, amplitude


class ComplexLinear(nn.Module):
    def __init__(self, inputs: int, outputs: int, fault: str) -> None:
        super().__init__()
        weight = torch.randn(outputs, inputs, dtype=torch.complex64) / inputs**0.5
        if fault == "weights_transposed_after_they_are_parameters":
            self.weight = nn.Parameter(weight).T
        else:
            self.weight = nn.Parameter(weight.T)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class ModReLU(nn.Module):
    """A ReLU of the modulus, less a threshold; the phase stays."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        modulus = x.abs() + 1e-6
        return x * F.relu(modulus + self.bias) / modulus


def amplitude(fault: str) -> Training:
    model = nn.Sequential(
        *(ComplexLinear(8, 48, fault), ModReLU(48), ComplexLinear(48, 48, fault), ModReLU(48)),
        ComplexLinear(48, 1, fault),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def inputs(samples: Tensor, pilot: Tensor) -> Tensor:
        return samples if fault == "phase_of_the_receiver_left" else samples * pilot.conj()[:, None]

    samples, pilot, true = waves(6000)
    held_out = waves(600)

    def step() -> None:
        rows = torch.randint(len(true), (96,))
        error = model(inputs(samples[rows], pilot[rows])).squeeze(1) - true[rows]
        if fault == "square_of_the_mean_error":
            loss = error.mean().abs().square()
        else:
            loss = error.abs().square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def score(samples: Tensor, pilot: Tensor, true: Tensor) -> float:
        return explained(model(inputs(samples, pilot)).squeeze(1), true)

    return Training(*(model, optimizer, step), lambda: score(*held_out), lambda: score(*waves(3000)), 500)


# Siamese network: are two recordings of a gait of the same person?

STEPS = fixed(6, 4, 3, seed=68)


def gaits(person: Tensor) -> Tensor:
    """Accelerations [count, 3, 24] of a walk of each person [count, 6], from any moment on."""
    phase = 2 * math.pi * (torch.arange(24) / 12 + torch.rand(len(person), 1))
    parts = torch.stack((phase.sin(), phase.cos(), (2 * phase).sin(), (2 * phase).cos()), 1)
    moves = torch.einsum("bp,pwa,bwt->bat", person, STEPS, parts)
    return moves / 2 + 0.3 * torch.randn_like(moves)


def walks(persons: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of gaits and whether they are of the same one of some persons, which holds for half of them."""
    known = torch.randn(persons, 6)
    one, shift = torch.randint(persons, (count,)), torch.randint(1, persons, (count,))
    same = torch.rand(count) < 0.5
    return gaits(known[one]), gaits(known[torch.where(same, one, (one + shift) % persons)]), same


class GaitEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv1d(3, 32, 5, padding=2), nn.ReLU(), nn.Conv1d(32, 64, 5, padding=2), nn.ReLU()),
        )
        self.out = nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        embedding: Tensor = self.out(self.features(x).mean(-1))
        return embedding


def gait(fault: str) -> Training:
    model = GaitEncoder()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    one, other, same = walks(6 if fault == "pairs_of_six_persons" else 400, 6000)
    held_out = walks(200, 800)

    def batch() -> Tensor:
        if fault == "seed_set_for_each_batch":
            torch.manual_seed(0)
        return torch.randint(len(same), (64,))

    def step() -> None:
        rows = batch()
        target = same[rows].float() if fault == "labels_0_and_1" else 2 * same[rows].float() - 1
        loss = F.cosine_embedding_loss(model(one[rows]), model(other[rows]), target, margin=0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def score(one: Tensor, other: Tensor, same: Tensor) -> float:
        alike = F.cosine_similarity(model(one), model(other)) > 0.75
        return 2 * float((alike == same).double().mean()) - 1

    return Training(
        *(model, optimizer, step), lambda: score(*held_out), lambda: score(*walks(400, 4000)), 400
    )


# Language model of simple sentences.

WORDS = (
    ("the", "a", "my", "every"),
    ("red", "old", "tiny", "quick", "lazy"),
    ("fox", "dog", "farmer", "bird", "horse"),
    ("sees", "finds", "follows", "likes"),
)
LETTERS = {letter: number for number, letter in enumerate(" .abcdefghijklmnopqrstuvwxyz")}
WINDOW = 40


def sentences(count: int) -> str:
    """Sentences such as "the old fox sees a bird."."""

    def word(kind: int) -> str:
        return WORDS[kind][int(torch.randint(len(WORDS[kind]), ()))]

    def noun() -> str:
        return " ".join((word(0), word(1), word(2)) if torch.rand(()) < 0.5 else (word(0), word(2)))

    return " ".join(f"{noun()} {word(3)} {noun()}." for _ in range(count))


def windows(text: str) -> Tensor:
    """Consecutive pieces [count, 41] of a text."""
    numbers = torch.tensor([LETTERS[letter] for letter in text])
    return numbers.unfold(0, WINDOW + 1, WINDOW)


class LetterModel(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.letter = nn.Embedding(len(LETTERS), 24)
        self.gru = nn.GRU(24, 96, batch_first=True)
        self.out = nn.Sequential(nn.Linear(96, len(LETTERS)))
        if fault == "tanh_on_the_logits":
            self.out.append(nn.Tanh())

    def forward(self, text: Tensor) -> Tensor:
        logits: Tensor = self.out(self.gru(self.letter(text))[0])
        return logits


def letters(fault: str) -> Training:
    model = LetterModel(fault)
    optimizer = torch.optim.SGD(model.parameters(), lr=5.0)
    longest = 0.0025 if fault == "gradient_clipped_to_nothing" else 0.25
    text = sentences(3000)
    if fault == "spaces_removed_from_the_training_text":
        text = text.replace(" ", "")
    x, held_out, new = windows(text), windows(sentences(150)), windows(sentences(400))
    shares = torch.bincount(windows(sentences(400)).flatten(), minlength=len(LETTERS)).clamp_min(1)
    guess = (shares / shares.sum()).log()

    def step() -> None:
        part = x[torch.randint(len(x), (32,))]
        loss = F.cross_entropy(model(part[:, :-1]).flatten(0, 1), part[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), longest)
        optimizer.step()

    @torch.no_grad()
    def score(whole: Tensor) -> float:
        """Share of the entropy of the letters that is explained."""
        wanted = whole[:, 1:].flatten()
        found = F.cross_entropy(model(whole[:, :-1]).flatten(0, 1), wanted)
        return max(-1.0, 1 - float(found / -guess[wanted].mean()))

    return Training(*(model, optimizer, step), lambda: score(held_out), lambda: score(new), 500)


# Autoencoder of the readings of six sensors of a machine.

SENSITIVITY = fixed(3, 6, seed=70)
RANGES = torch.tensor([0.02, 0.3, 1.0, 4.0, 25.0, 300.0])


def readings(count: int) -> Tensor:
    """Readings [count, 16, 6] in the unit of each sensor, over 16 minutes."""
    time = torch.linspace(0, 1, 16)[:, None]
    load, slope, shock = torch.randn(3, count, 1, 1).unbind()
    state = torch.cat((load.expand(-1, 16, -1), slope * (2 * time - 1), shock * (-5 * time).exp()), -1)
    return RANGES * (2 + (state @ SENSITIVITY).tanh() + 0.25 * torch.randn(count, 16, 6))


def machine(fault: str) -> Training:
    def activation() -> nn.Module:
        return nn.Softmax(-1) if fault == "softmax_between_layers" else nn.ReLU()

    encoder = nn.Sequential(nn.Flatten(), nn.Linear(96, 64), activation(), nn.Linear(64, 3))
    decoder = nn.Sequential(nn.Linear(3, 64), activation(), nn.Linear(64, 96), nn.Unflatten(1, (16, 6)))
    model = nn.Sequential(encoder, decoder)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    read = readings(3000)
    axes = (0, 2) if fault == "standardised_over_sensors" else (0, 1)
    mean, deviation = read.mean(axes, keepdim=True), read.std(axes, keepdim=True)
    batches = epochs((read - mean) / deviation, batch=64)
    held_out = readings(512)

    def step() -> None:
        _, (part,) = next(batches)
        loss = F.mse_loss(model(part), part)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def score(read: Tensor, *, counted: str = "batches") -> float:
        """Share of the variance of each sensor that is explained."""
        spread, total = read.var((0, 1)), 0.0
        parts = read.split(64)
        for part in parts:
            rebuilt = mean + deviation * model((part - mean) / deviation)
            total += float(((rebuilt - part).square() / spread).mean())
        return max(-1.0, 1 - total / (len(read) if counted == "readings" else len(parts)))

    counted = "readings" if fault == "mean_errors_divided_by_the_readings" else "batches"
    return Training(
        *(model, optimizer, step),
        lambda: score(held_out, counted=counted),
        lambda: score(readings(2048)),
        500,
    )


# Convolutional network with batch norm on colour pictures of signs.

SHAPES = torch.tensor(
    [
        [[1.0, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 0, 0, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]],
        [[0.0, 1, 1, 1, 0], [0, 1, 1, 1, 0], [1, 1, 1, 1, 1], [0, 1, 1, 1, 0], [0, 1, 1, 1, 0]],
        [[1.0, 1, 0, 1, 1], [1, 1, 0, 1, 1], [0, 0, 0, 0, 0], [1, 1, 0, 1, 1], [1, 1, 0, 1, 1]],
    ]
)
COLOURS = torch.tensor([[0.9, 0.2, 0.3], [0.3, 0.2, 0.9]])


def signs(count: int) -> tuple[Tensor, Tensor]:
    """Pictures [count, 3, 14, 14], red, green and blue from 0 to 1; which of six signs they show."""
    kind = torch.randint(6, (count,))
    picture = 0.4 + 0.2 * torch.rand(count, 3, 1, 1) + 0.22 * torch.randn(count, 3, 14, 14)
    for one, (row, column) in enumerate(torch.randint(10, (count, 2)).tolist()):
        shape, colour = SHAPES[kind[one] // 2], COLOURS[kind[one] % 2, :, None, None]
        area = picture[one, :, row : row + 5, column : column + 5]
        area += shape * (colour - 0.5)
    return picture.clamp(0, 1), kind


class SignReader(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        kernel, edge = (1, 0) if fault == "kernels_of_one_pixel" else (3, 1)
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 24, kernel, padding=edge, bias=False), nn.BatchNorm2d(24), nn.ReLU()),
            *(nn.Conv2d(24, 24, kernel, padding=edge, bias=False), nn.BatchNorm2d(24), nn.ReLU()),
            *(nn.Conv2d(24, 32, kernel, padding=edge), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten()),
        )
        self.out = nn.Linear(32, 6)

    def forward(self, picture: Tensor) -> Tensor:
        logits: Tensor = self.out(self.features(picture))
        return logits


def sign(fault: str) -> Training:
    model = SignReader(fault)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    decay = 0.1 if fault == "rate_divided_by_ten_in_each_epoch" else 0.9
    schedule = StepLR(optimizer, step_size=1, gamma=decay)
    picture, kind = signs(1600)
    if fault == "blue_first_in_training":
        picture = picture.flip(1)
    held_out = signs(300)
    mean, deviation = picture.mean((0, 2, 3), keepdim=True), picture.std((0, 2, 3), keepdim=True)
    batches = epochs((picture - mean) / deviation, kind, batch=64)

    def step() -> None:
        number, (shown, labels) = next(batches)
        loss = F.cross_entropy(model(shown), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if number == len(kind) // 64 - 1:
            schedule.step()

    @torch.no_grad()
    def score(shown: Tensor, kind: Tensor) -> float:
        model.eval()
        logits = model((shown - mean) / deviation)
        model.train()
        return above_chance(logits, kind, 6)

    return Training(*(model, optimizer, step), lambda: score(*held_out), lambda: score(*signs(1000)), 300)


# Segmentation: fields and roads in pictures from above.


def maps(count: int) -> tuple[Tensor, Tensor]:
    """Pictures [count, 1, 16, 16]; of each pixel whether it is meadow (0), field (1) or road (2)."""
    row = torch.arange(16.0)[:, None]
    column = torch.arange(16.0)
    corner, size = torch.randint(8, (2, count, 1, 1)), torch.randint(5, 9, (2, count, 1, 1))
    field = (row >= corner[0]) & (row < corner[0] + size[0])
    field = field & (column >= corner[1]) & (column < corner[1] + size[1])
    start, slope = 4 + 8 * torch.rand(count, 1, 1), torch.rand(count, 1, 1) - 0.5
    road = (row - start - slope * (column - 8)).abs() < 1
    kind = torch.where(road, 2, field.long())
    shade = torch.tensor([0.0, 1.0, -1.0])[kind] + 0.9 * torch.randn(count, 16, 16)
    return shade[:, None], kind


def convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class MapReader(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(8 if fault == "pooled_to_two_by_two_pixels" else 2)
        self.skips = fault != "pooled_to_two_by_two_pixels"
        self.first, self.deep = convolution(1, 12), convolution(12, 24)
        self.last = convolution(36 if self.skips else 24, 16)
        self.out = nn.Conv2d(16, 3, 1)

    def forward(self, shade: Tensor) -> Tensor:
        fine = self.first(shade)
        coarse = F.interpolate(self.deep(self.pool(fine)), size=(16, 16), mode="bilinear")
        logits: Tensor = self.out(self.last(torch.cat((fine, coarse), 1) if self.skips else coarse))
        return logits


def landscape(fault: str) -> Training:
    model = MapReader(fault)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    schedule = ReduceLROnPlateau(optimizer, patience=2)
    shade, kind = maps(1280)
    batches = epochs(shade, F.one_hot(kind, 3).movedim(-1, 1), batch=32)
    held_out = maps(150)
    losses: list[float] = []

    def step() -> None:
        number, (shown, wanted) = next(batches)
        share = model(shown).softmax(-1 if fault == "softmax_over_columns" else 1)
        overlap = 2 * (share * wanted).sum((0, 2, 3)) / (share + wanted).sum((0, 2, 3))
        loss = 1 - overlap.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if fault == "plateaus_looked_for_in_batches":
            schedule.step(losses[-1])
        elif number == 39:
            schedule.step(sum(losses[-40:]) / 40)

    @torch.no_grad()
    def score(shade: Tensor, kind: Tensor) -> float:
        """Overlap of each kind, less that of a guess."""
        model.eval()
        found, wanted = F.one_hot(model(shade).argmax(1), 3), F.one_hot(kind, 3)
        model.train()
        overlap = 2 * (found * wanted).sum((0, 1, 2)) / (found + wanted).sum((0, 1, 2))
        return (float(overlap.mean()) - 1 / 3) / (2 / 3)

    return Training(*(model, optimizer, step), lambda: score(*held_out), lambda: score(*maps(600)), 300)


# Distillation: a small network learns from a large one, without labels.

BLEND = fixed(12, 12, seed=73) / 12**0.5


def articles(count: int) -> tuple[Tensor, Tensor]:
    """Features [count, 12] and which of four topics people see in them, who do not always agree."""
    x = torch.randn(count, 12)
    views = (x @ BLEND).reshape(count, 4, 3)
    worth = views[..., 0] + 1.5 * (1.5 * views[..., 1]).sin() * views[..., 2]
    return x, (worth + 0.5 * torch.randn(count, 4)).argmax(-1)


def large() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Linear(12, 192), nn.ReLU(), nn.Dropout(0.1), nn.Linear(192, 192), nn.ReLU(), nn.Dropout(0.1)),
        nn.Linear(192, 4),
    )


@functools.cache
def trained() -> dict[str, Tensor]:
    """The weights of the large network."""
    with torch.random.fork_rng():
        torch.manual_seed(73)
        teacher = large()
        optimizer = torch.optim.Adam(teacher.parameters(), lr=2e-3)
        batches = epochs(*articles(20000), batch=128)
        for _ in range(1200):
            _, (x, topic) = next(batches)
            loss = F.cross_entropy(teacher(x), topic)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return teacher.state_dict()


def distillation(fault: str) -> Training:
    teacher = large()
    model = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    momentum = 0.999 if fault == "momentum_near_one" else 0.9
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
    temperature = 2.0
    x, _ = articles(8000)

    @torch.no_grad()
    def softened() -> Tensor:
        teacher.eval()
        return (teacher(x) / temperature).softmax(-1)

    if fault == "asked_before_its_weights_are_loaded":
        soft = softened()
        teacher.load_state_dict(trained())
    else:
        teacher.load_state_dict(trained())
        soft = softened()
    held_out = articles(1000)
    batches = epochs(x, soft, batch=64)

    def step() -> None:
        _, (inputs, wanted) = next(batches)
        logarithm = (model(inputs) / temperature).log_softmax(-1)
        loss = temperature**2 * F.kl_div(logarithm, wanted, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def score(inputs: Tensor, topic: Tensor) -> float:
        return above_chance(model(inputs), topic, 4)

    def validate() -> float:
        inputs, topic = held_out
        if fault == "compared_with_the_teacher":
            with torch.no_grad():
                topic = teacher(inputs).argmax(-1)
        return score(inputs, topic)

    return Training(*(model, optimizer, step), validate, lambda: score(*articles(5000)), 600)


# Regression with its uncertainty: power of a wind turbine.


def winds(count: int) -> tuple[Tensor, Tensor]:
    """Wind (m/s), turbulence, pressure (Pa) and density (kg/m^3) [count, 4]; power in kilowatts."""
    wind, turbulence = 3 + 12 * torch.rand(count), 0.02 + 0.2 * torch.rand(count)
    pressure, density = 1e5 + 1200 * torch.randn(count), 1.2 + 0.05 * torch.randn(count)
    power = 2000 * ((wind - 8.5) / 2).sigmoid() * density / 1.2 + 0.05 * (pressure - 1e5)
    power = power + 60 * wind * turbulence * torch.randn(count) + 20 * torch.randn(count)
    return torch.stack((wind, turbulence, pressure, density), 1), power


def turbine(fault: str) -> Training:
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    table, power = winds(6000)
    held_out = winds(800)
    mean, deviation = table.mean(0), table.std(0)
    if fault == "divided_by_the_variance":
        deviation = table.var(0)
    level, spread = power.mean(), power.std()
    batches = epochs((table - mean) / deviation, (power - level) / spread, batch=64)
    passes = 6
    total = passes * (len(power) // 64)
    if fault == "decay_over_passes_not_batches":
        total = 10 * passes
    schedule = LambdaLR(optimizer, lambda step: 1 - step / total)

    def step() -> None:
        _, (inputs, wanted) = next(batches)
        found, log_variance = model(inputs).unbind(-1)
        loss = ((found - wanted).square() * (-log_variance).exp()).mean() / 2
        if fault != "no_price_for_uncertainty":
            loss = loss + log_variance.mean() / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

    @torch.no_grad()
    def score(table: Tensor, power: Tensor) -> float:
        """1 minus the (geometric) mean of the deviations that the likelihood tells, over that of a guess."""
        found, log_variance = model((table - mean) / deviation).unbind(-1)
        wanted = (power - level) / spread
        likelihood = ((found - wanted).square() * (-log_variance).exp() + log_variance).mean() / 2 - 0.5
        return max(-1.0, 1 - float(likelihood.exp() * spread / power.std()))

    return Training(*(model, optimizer, step), lambda: score(*held_out), lambda: score(*winds(4000)), 500)


# Strings of letters in a signal, without a mark where each of them is (CTC).

ALPHABET, BLANK = 6, 0
FORMS_OF_LETTERS = fixed(ALPHABET, 4, 5, seed=75)
FRAMES = 40


def writings(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Signals [count, 40, 5]; letters [count, 5] from 0 on; how many of them there are."""
    length, letter = torch.randint(2, 6, (count,)), torch.randint(ALPHABET, (count, 5))
    signal = 0.3 * torch.randn(count, FRAMES, 5)
    wide = torch.randint(4, 7, (count, 5)).tolist()
    for one, (number, letters) in enumerate(zip(length.tolist(), letter.tolist(), strict=True)):
        place = 1
        for form, width in zip(letters[:number], wide[one], strict=False):
            stretched = F.interpolate(FORMS_OF_LETTERS[form].T[None], size=width, mode="linear")
            signal[one, place : place + width] += stretched[0].T
            place += width + 1
    return signal, letter, length


def edits(one: list[int], other: list[int]) -> int:
    """Insertions, deletions and exchanges between two strings."""
    row = list(range(len(other) + 1))
    for first, letter in enumerate(one, 1):
        diagonal, row[0] = row[0], first
        for place, another in enumerate(other, 1):
            best = min(row[place] + 1, row[place - 1] + 1, diagonal + (letter != another))
            diagonal, row[place] = row[place], best
    return row[-1]


class WritingReader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(5, 48, batch_first=True, bidirectional=True)
        self.out = nn.Linear(96, ALPHABET + 1)

    def forward(self, signal: Tensor) -> Tensor:
        logits: Tensor = self.out(self.gru(signal)[0])
        return logits


def writing(fault: str) -> Training:
    model = WritingReader()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    signal, letter, length = writings(1500)
    first = 0 if fault == "first_letter_has_the_number_of_the_blank" else 1
    held_out, new = writings(150), writings(500)
    duration = torch.full((32,), FRAMES)

    def step() -> None:
        rows = torch.randint(len(signal), (32,))
        logits = model(signal[rows])
        if fault == "likelihoods_not_logarithms":
            scores = logits.softmax(-1)
        else:
            scores = logits.log_softmax(1 if fault == "normalised_over_time" else -1)
        loss = F.ctc_loss(scores.transpose(0, 1), letter[rows] + first, duration, length[rows], BLANK)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    @torch.no_grad()
    def score(signal: Tensor, letter: Tensor, length: Tensor) -> float:
        """1 minus the edits for each letter."""
        wrong = 0
        for best, true, number in zip(model(signal).argmax(-1), letter, length.tolist(), strict=True):
            found = [one - first for one in best.unique_consecutive().tolist() if one != BLANK]
            wrong += edits(found, true[:number].tolist())
        return max(-1.0, 1 - wrong / int(length.sum()))

    return Training(*(model, optimizer, step), lambda: score(*held_out), lambda: score(*new), 250)


TRAININGS: Trainings = {
    "diagnosis": (
        diagnosis,
        {
            "zeroed_once_in_an_epoch": "Calls: gradients are zeroed at the beginning of an epoch only and "
            "add up over its batches.",
            "file_of_one_disease_missing": "Data: the training set has no patient with one of the diseases.",
            "no_logarithm": "Preprocessing: concentrations over decades are standardised without a "
            "logarithm; a few large ones outweigh all others.",
        },
    ),
    "delivery": (
        delivery,
        {
            "relative_error_of_standardised_times": "Loss: the error is divided by the standardised time, "
            "which can be near 0.",
            "rate_of_three_tenths": "Rate: the learning rate is a hundred times too high.",
            "unrecorded_times_are_zero": "Labels: times that were not recorded are taken for 0 minutes.",
        },
    ),
    "appliance": (
        appliance,
        {
            "not_sorted_back": "Calls: sequences are sorted by length for packing, the results are not "
            "sorted back, so that they belong to other labels.",
            "stored_as_bytes": "Preprocessing: watts are stored as bytes and wrap around at 256.",
            "adadelta_at_the_rate_of_another_library": "Optimizer: Adadelta with a rate of 0.001, where this "
            "library needs 1.",
        },
    ),
    "visits": (
        visits,
        {
            "labelled_in_a_file_with_the_newest_first": "Labels: the training labels were made from a file "
            "with the newest visit first, and mark last visits.",
            "heads_viewed_across_time": "Axes: features are reshaped to [B, H, T, W / H] without a "
            "transposition; the heads mix times.",
            "warm_up_without_an_end": "Schedule: the warm-up has no upper limit; the learning rate rises "
            "throughout.",
        },
    ),
    "household": (
        household,
        {
            "relu_on_the_logarithm_of_the_variance": "Activation: a ReLU keeps the variance of the code from "
            "falling below 1.",
            "divergence_summed_over_the_batch": "Axes: the divergence is summed over the batch and averaged "
            "over the code, not the other way round, and weighs far too much.",
            "left_in_eval_mode_by_the_validation": "Modes: the model stays in eval mode after the first "
            "validation, so that codes are no longer drawn.",
        },
    ),
    "leaf": (
        leaf,
        {
            "millimetres_and_ratios": "Preprocessing: lengths in millimetres and ratios below 1 are not "
            "standardised.",
            "average_of_all_steps": "Calls: AveragedModel is made without a function of the average, so that "
            "all steps from the first on count alike.",
            "batches_of_two": "Batch: each batch has two leaves.",
        },
    ),
    "amplitude": (
        amplitude,
        {
            "weights_transposed_after_they_are_parameters": "Calls: weights are transposed after they were "
            "made parameters; the results are plain tensors, which the optimizer does not get.",
            "phase_of_the_receiver_left": "Preprocessing: the phase of the receiver, known from the pilot, "
            "is not removed.",
            "square_of_the_mean_error": "Loss: the error is averaged over the batch before it is squared, so "
            "that errors cancel.",
        },
    ),
    "gait": (
        gait,
        {
            "seed_set_for_each_batch": "Calls: the seed is set before each batch is drawn, so that all "
            "batches are the same.",
            "pairs_of_six_persons": "Data: all training pairs are of six persons.",
            "labels_0_and_1": "Loss: cosine_embedding_loss is given 0 for different persons, where it needs "
            "-1; nothing keeps them apart.",
        },
    ),
    "letters": (
        letters,
        {
            "tanh_on_the_logits": "Activation: the logits pass through a tanh; no letter can get a high "
            "probability.",
            "gradient_clipped_to_nothing": "Rate: gradients are clipped to a norm a hundred times too small.",
            "spaces_removed_from_the_training_text": "Preprocessing: spaces are removed from the training "
            "text only.",
        },
    ),
    "machine": (
        machine,
        {
            "mean_errors_divided_by_the_readings": "Evaluation: the mean errors of batches are added and "
            "divided by the number of readings, not of batches.",
            "standardised_over_sensors": "Axes: mean and deviation are those of a minute over all sensors, "
            "not of a sensor; that with the largest unit outweighs all others.",
            "softmax_between_layers": "Activation: hidden layers are followed by a softmax, not a ReLU.",
        },
    ),
    "sign": (
        sign,
        {
            "rate_divided_by_ten_in_each_epoch": "Schedule: the learning rate is divided by 10 after each "
            "epoch.",
            "blue_first_in_training": "Preprocessing: the training pictures have blue first, later ones red.",
            "kernels_of_one_pixel": "Layers: the kernels have one pixel and cannot see a shape.",
        },
    ),
    "landscape": (
        landscape,
        {
            "pooled_to_two_by_two_pixels": "Layers: all features pass through 2 x 2 pixels.",
            "softmax_over_columns": "Axes: the softmax runs over columns of the picture, not over kinds.",
            "plateaus_looked_for_in_batches": "Schedule: a schedule for the loss of an epoch is given that "
            "of each batch and soon takes noise for a plateau.",
        },
    ),
    "distillation": (
        distillation,
        {
            "momentum_near_one": "Optimizer: the momentum is 0.999.",
            "asked_before_its_weights_are_loaded": "Calls: the large network is asked before its weights are "
            "loaded.",
            "compared_with_the_teacher": "Evaluation: validation compares with the large network, not with "
            "the labels.",
        },
    ),
    "turbine": (
        turbine,
        {
            "no_price_for_uncertainty": "Loss: the logarithm of the variance is missing, so that a large "
            "variance costs nothing.",
            "divided_by_the_variance": "Preprocessing: inputs are divided by their variance, not by their "
            "deviation; pressure vanishes and turbulence is huge.",
            "decay_over_passes_not_batches": "Schedule: the linear decay ends after a few batches, and the "
            "learning rate is negative from then on.",
        },
    ),
    "writing": (
        writing,
        {
            "first_letter_has_the_number_of_the_blank": "Preprocessing: letters are numbered from 0, which "
            "is the blank.",
            "normalised_over_time": "Axes: the softmax runs over time, not over letters.",
            "likelihoods_not_logarithms": "Loss: ctc_loss is given probabilities in place of their "
            "logarithms.",
        },
    ),
}

CASES = cases_of(TRAININGS)


if __name__ == "__main__":
    main(TRAININGS, __doc__)
