"""Twelve further plain trainings of the usual kinds, with three faults each, made without seeing the doctor.

``python benchmarks/blind_module_faults_5.py NAME`` prints the doctor's report on the training NAME, and
``NAME:FAULT`` on one with a fault. ``--check`` trains each from three seeds without the doctor and prints the
score that the script's own validation ends with and the score on new data (0: as good as a guess, 1:
perfect): the healthy ones learn and validate truly, and a fault lowers the score or its validation is wrong.

The classes of the faults are about as frequent as in Humbatova et al. (ICSE 2020), Islam et al. (FSE 2019)
and Zhang et al. (ISSTA 2018): two in five are in the data, their preparation and labels; then come layers and
activations, the loss, settings, the use of the library, axes, and the validation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from blind_module_faults import cases_of
from blind_module_faults_2 import Training, Trainings, above_chance, explained, fixed, main

# Classifier: which of four goods does a customer of one of eight regions buy?

TASTES = fixed(8, 3, 4, seed=51)


def customers(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Age, income and size of the household, standardised, [count, 3]; region; what is bought."""
    facts, region = torch.randn(count, 3), torch.randint(8, (count,))
    liking = torch.einsum("bf,bfg->bg", facts, TASTES[region])
    return facts, region, (liking + 0.3 * torch.randn_like(liking)).argmax(-1)


def shop(fault: str) -> Training:
    model = nn.Sequential(nn.Linear(11, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 4))
    rate = 1e-5 if fault == "rate_left_from_fine_tuning" else 3e-3
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    facts, region, good = customers(6000)
    if fault == "orders_in_another_order":
        by_age = facts[:, 0].argsort()
        facts, region = facts[by_age], region[by_age]
    held_out = customers(600)

    def inputs(facts: Tensor, region: Tensor) -> Tensor:
        code = F.one_hot(region, 8).float()
        if fault == "regions_as_numbers":
            code = F.pad(region[:, None].float(), (0, 7))
        return torch.cat((facts, code), 1)

    def step() -> None:
        rows = torch.randint(len(good), (64,))
        loss = F.cross_entropy(model(inputs(facts[rows], region[rows])), good[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def score(facts: Tensor, region: Tensor, good: Tensor) -> float:
        return above_chance(model(inputs(facts, region)), good, 4)

    return Training(*(model, optimizer, step), lambda: score(*held_out), lambda: score(*customers(4000)), 600)


# Regression of the bicycles that are rented in an hour.

MISSING = -999.0


def rentals(count: int) -> tuple[Tensor, Tensor]:
    """Hour, weekday, temperature and humidity [count, 4], some of them missing; number of bicycles."""
    hour, day = 24 * torch.rand(count), torch.randint(7, (count,))
    warmth, damp = 15 + 8 * torch.randn(count), 20 + 60 * torch.rand(count)
    commute = (-(hour - 8).square() / 4).exp() + (-(hour - 18).square() / 6).exp()
    leisure = (-(hour - 14).square() / 18).exp()
    demand = torch.where(day < 5, 500 * commute, 350 * leisure) + 60
    demand = demand * ((warmth - 15) / 12).tanh().add(1.4) * (1 - 0.004 * damp)
    table = torch.stack((hour, day.float(), warmth, damp), 1)
    table[:, 2:] = torch.where(torch.rand(count, 2) < 0.08, MISSING, table[:, 2:])
    return table, demand + 15 * torch.randn(count)


def bikes(fault: str) -> Training:
    model = nn.Sequential(nn.Linear(11, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    table, count = rentals(6000)
    known = table != MISSING
    mean = torch.where(known, table, 0).sum(0) / known.sum(0)
    deviation = torch.where(known, table - mean, 0).square().sum(0).div(known.sum(0)).sqrt()
    if fault == "missing_values_are_numbers":
        mean, deviation = table.mean(0), table.std(0)
    level, spread = count.mean(), count.std()
    if fault == "rentals_as_they_are":
        level, spread = torch.tensor(0.0), torch.tensor(1.0)
    held_out = rentals(500)

    def inputs(rows: Tensor) -> Tensor:
        scaled = (rows - mean) / deviation
        if fault != "missing_values_are_numbers":
            scaled = torch.where(rows == MISSING, 0, scaled)
        turn = 2 * math.pi * rows[:, :1] / 24
        clock = torch.cat((turn.sin(), turn.cos(), (2 * turn).sin(), (2 * turn).cos()), 1)
        return torch.cat((clock, F.one_hot(rows[:, 1].long(), 7)[:, 2:], scaled[:, 2:]), 1)

    def step() -> None:
        chosen = torch.randint(len(table), (64,))
        wanted = (count[chosen] - level) / spread
        found = model(inputs(table[chosen]))
        error = found - wanted if fault == "column_minus_row" else found.squeeze(1) - wanted
        loss = error.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def score(rows: Tensor, true: Tensor) -> float:
        return explained(level + spread * model(inputs(rows)).squeeze(1), true)

    return Training(*(model, optimizer, step), lambda: score(*held_out), lambda: score(*rentals(4000)), 600)


# Recurrent network on gestures of different lengths.

GESTURES, FRAMES = 5, 30
PATHS = fixed(GESTURES, 3, 4, seed=53)


def gestures(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Accelerations [count, 30, 3], padded with zeros; the number of frames; the gesture."""
    kind, length = torch.randint(GESTURES, (count,)), torch.randint(12, FRAMES + 1, (count,))
    frame = torch.arange(FRAMES)
    # The tempo is that of the hand, not of the length: a longer recording shows more of the gesture.
    phase = 0.5 * frame * (0.9 + 0.2 * torch.rand(count, 1)) + 0.5 * torch.randn(count, 1)
    waves = torch.stack((phase.sin(), phase.cos(), (1.5 * phase).sin(), (1.5 * phase).cos()), -1)
    moved = torch.einsum("btw,baw->bta", waves, PATHS[kind])
    moved = moved + 0.8 * torch.randn_like(moved)
    return torch.where((frame < length[:, None])[..., None], moved, 0), length, kind


class GestureReader(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        width = 2 if fault == "two_units" else 32
        self.gru = nn.GRU(3, width, batch_first=fault != "batch_first_forgotten")
        self.out = nn.Linear(width, GESTURES)

    def forward(self, moved: Tensor, length: Tensor) -> Tensor:
        states, _ = self.gru(moved)
        last = states[torch.arange(len(moved)), length - 1]
        logits: Tensor = self.out(last)
        return logits


def gesture(fault: str) -> Training:
    model = GestureReader(fault)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    moved, length, kind = gestures(2000)
    if fault == "every_second_frame":
        moved, length = F.pad(moved[:, ::2], (0, 0, 0, FRAMES // 2)), (length + 1) // 2
    held_out = gestures(300)

    def step() -> None:
        rows = torch.randint(len(kind), (48,))
        loss = F.cross_entropy(model(moved[rows], length[rows]), kind[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    @torch.no_grad()
    def score(moved: Tensor, length: Tensor, kind: Tensor) -> float:
        return above_chance(model(moved, length), kind, GESTURES)

    return Training(*(model, optimizer, step), lambda: score(*held_out), lambda: score(*gestures(1500)), 300)


# Transformer that looks up a word in a list of pairs.

KEYS, VALUES, LONGEST = 10, 6, 9


def lists(count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys and values [count, 9], the first of which is asked for; where there is something; the answer.

    The value of the question is one more than the largest. Behind the end there is what was there before.
    """
    key = torch.rand(count, KEYS).argsort(-1)[:, : LONGEST - 1]
    value = torch.randint(VALUES, key.shape)
    number = torch.randint(3, LONGEST, (count, 1))
    asked = (torch.rand(count, 1) * number).long()
    there = torch.arange(LONGEST - 1) < number
    # Old entries have keys of their own choice, which may be those that are asked for.
    key = torch.where(there, key, torch.randint(KEYS, key.shape))
    key_of_all = torch.cat((key.gather(1, asked), key), 1)
    value_of_all = torch.cat((torch.full_like(asked, VALUES), value), 1)
    there = torch.cat((torch.ones(count, 1, dtype=torch.bool), there), 1)
    return key_of_all, value_of_all, there, value.gather(1, asked).squeeze(1)


class Lookup(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.key, self.value = nn.Embedding(KEYS, 48), nn.Embedding(VALUES + 1, 48)
        layer = nn.TransformerEncoderLayer(48, 4, 96, dropout=0.05, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(48, VALUES)
        self.inverted = fault == "mask_of_what_is_there"

    def forward(self, key: Tensor, value: Tensor, there: Tensor) -> Tensor:
        mask = there if self.inverted else ~there
        if self.inverted:
            mask = mask.clone()
            mask[:, 0] = False  # or there would be nothing to attend to
        x = self.layers(self.key(key) + self.value(value), src_key_padding_mask=mask)
        logits: Tensor = self.out(x[:, 0])
        return logits


def lookup(fault: str) -> Training:
    model = Lookup(fault)
    rate = 0.1 if fault == "rate_thirty_times_up" else 3e-3
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    *given, answer = lists(8000)
    if fault == "answers_one_line_late":
        answer = answer.roll(1)
    held_out = lists(500)

    def step() -> None:
        rows = torch.randint(len(answer), (64,))
        loss = F.cross_entropy(model(*(part[rows] for part in given)), answer[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def score(key: Tensor, value: Tensor, there: Tensor, answer: Tensor) -> float:
        model.eval()
        logits = model(key, value, there)
        model.train()
        return above_chance(logits, answer, VALUES)

    return Training(*(model, optimizer, step), lambda: score(*held_out), lambda: score(*lists(2000)), 250)


# Variational autoencoder of displays of seven segments.


def segment(rows: slice, columns: slice) -> Tensor:
    picture = torch.zeros(9, 7)
    picture[rows, columns] = 1
    return picture


UPPER, LOWER, LEFT, MIDDLE, RIGHT = slice(2, 4), slice(5, 7), slice(1, 2), slice(2, 5), slice(5, 6)
# From the top one clockwise, and that in the middle.
SEGMENTS = torch.stack(
    (
        *(segment(slice(1, 2), MIDDLE), segment(UPPER, RIGHT), segment(LOWER, RIGHT)),
        *(segment(slice(7, 8), MIDDLE), segment(LOWER, LEFT), segment(UPPER, LEFT)),
        segment(slice(4, 5), MIDDLE),
    )
)
LIT = torch.tensor(
    [[int(b) for b in f"{code:07b}"] for code in (126, 48, 109, 121, 51, 91, 95, 112, 127, 123)]
)


def displays(count: int, *, in_order: bool = False) -> Tensor:
    """Pictures [count, 63] of digits, of different brightness of each segment."""
    digit = torch.arange(count) * 10 // count if in_order else torch.randint(10, (count,))
    bright = LIT[digit] * (0.4 + 0.6 * torch.rand(count, 7))
    return torch.einsum("bs,syx->byx", bright, SEGMENTS).flatten(1)


class DisplayVAE(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(63, 128), nn.ReLU(), nn.Linear(128, 16))
        self.decoder = nn.Sequential(nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 63))
        if fault == "decoder_ends_with_relu":
            self.decoder.append(nn.ReLU())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the picture, mean and logarithm of the variance."""
        mean, log_variance = self.encoder(x).chunk(2, -1)
        z = mean
        if self.training:
            z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        return self.decoder(z), mean, log_variance


def display(fault: str) -> Training:
    model = DisplayVAE(fault)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    x = displays(4000, in_order=True)
    x = x[:800] if fault == "first_rows_of_a_sorted_file" else x[torch.randperm(len(x))]
    held_out = displays(400)

    def step() -> None:
        part = x[torch.randint(len(x), (128,))]
        logits, mean, log_variance = model(part)
        rebuilt = F.binary_cross_entropy_with_logits(logits, part, reduction="none")
        # The mean over pixels, in place of their sum, weighs the divergence 63 times too much.
        rebuilt = rebuilt.mean() if fault == "mean_against_sum" else rebuilt.sum(-1).mean()
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1).mean() / 2
        loss = rebuilt + divergence
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def score(pictures: Tensor) -> float:
        model.eval()
        rebuilt = model(pictures)[0].sigmoid()
        model.train()
        return explained(rebuilt, pictures)

    return Training(*(model, optimizer, step), lambda: score(held_out), lambda: score(displays(2000)), 600)


# Generator and discriminator of points on a ring with a gap.


def ring(count: int) -> Tensor:
    turn = 0.5 + 5 * torch.rand(count)
    return torch.stack((turn.cos(), turn.sin()), 1) * (1 + 0.06 * torch.randn(count, 1))


def distance(one: Tensor, other: Tensor) -> Tensor:
    between = 2 * torch.cdist(one, other).mean()
    return (between - torch.cdist(one, one).mean() - torch.cdist(other, other).mean()).clamp_min(0)


def gap(fault: str) -> Training:
    def network(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            *(nn.Linear(inputs, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2)),
            nn.Linear(64, outputs),
        )

    generator, judge = network(3, 2), network(2, 1)
    given = judge if fault == "parameters_of_the_judge_twice" else generator
    optimizer_g = torch.optim.Adam(given.parameters(), lr=1e-3, betas=(0.5, 0.99))
    rate = 1e-6 if fault == "judge_hardly_learns" else 2e-3
    optimizer_j = torch.optim.Adam(judge.parameters(), lr=rate, betas=(0.5, 0.99))
    x = ring(4000)
    first = torch.randn(16, 3)

    def noise() -> Tensor:
        return first.repeat(8, 1) if fault == "noise_drawn_once" else torch.randn(128, 3)

    def step() -> None:
        real, fake = x[torch.randint(len(x), (128,))], generator(noise())
        optimizer_j.zero_grad()
        (F.softplus(-judge(real)).mean() + F.softplus(judge(fake.detach())).mean()).backward()
        optimizer_j.step()
        optimizer_g.zero_grad()
        F.softplus(-judge(fake)).mean().backward()
        optimizer_g.step()

    @torch.no_grad()
    def score(true: Tensor) -> float:
        """1 minus the distance of the distributions, over that of a single point."""
        made, point = generator(torch.randn(len(true), 3)), true.mean(0).expand_as(true)
        return max(-1.0, 1 - float(distance(made, true) / distance(point, true)) ** 0.5)

    held_out = ring(1500)
    return Training(
        *((generator, judge), (optimizer_g, optimizer_j), step),
        lambda: score(held_out),
        lambda: score(ring(1500)),
        800,
    )


# Complex-valued network: which of eight channels, at positive and negative frequencies, is in use?


def tones(count: int) -> tuple[Tensor, Tensor]:
    """Samples [count, 24] of a tone with a drifting frequency, of any phase, and the channel."""
    channel = torch.randint(8, (count,))
    rate = (channel - 3.5 + 0.7 * (torch.rand(count) - 0.5))[:, None] * 0.3
    time = torch.arange(24.0)
    drift = 0.006 * torch.randn(count, 1)
    phase = 2 * math.pi * torch.rand(count, 1) + rate * time + drift * time.square()
    return torch.polar(torch.ones_like(phase), phase) + 0.7 * torch.randn_like(phase + 0j), channel


class Mixing(nn.Module):
    """A complex layer."""

    def __init__(self, inputs: int, outputs: int, deviation: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(deviation * torch.randn(inputs, outputs, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class ToneReader(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        scale = 30.0 if fault == "weights_start_large" else 1.0
        self.first, self.second = Mixing(24, 48, scale / 24**0.5), Mixing(48, 48, scale / 48**0.5)
        self.out = nn.Linear(48, 8)

    def forward(self, samples: Tensor) -> Tensor:
        x = self.first(samples)
        x = self.second(x * x.abs().tanh())
        logits: Tensor = self.out(torch.view_as_real(x).square().sum(-1))
        return logits


def tone(fault: str) -> Training:
    model = ToneReader(fault)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    samples, channel = tones(5000)
    if fault == "magnitudes_only":
        samples = samples.abs().to(samples.dtype)
    if fault == "real_and_imaginary_exchanged":
        samples = torch.complex(samples.imag, samples.real)
    held_out = tones(500)

    def step() -> None:
        rows = torch.randint(len(channel), (96,))
        loss = F.cross_entropy(model(samples[rows]), channel[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def score(samples: Tensor, channel: Tensor) -> float:
        if fault == "magnitudes_only":
            samples = samples.abs().to(samples.dtype)
        return above_chance(model(samples), channel, 8)

    return Training(*(model, optimizer, step), lambda: score(*held_out), lambda: score(*tones(3000)), 400)


# Siamese network with a contrastive loss: do two voices belong to the same speaker?

TIMBRE, SPEECH = fixed(4, 30, seed=57), fixed(6, 30, seed=58)


def voices(speaker: Tensor) -> Tensor:
    """Recordings [count, 30] at any volume, of what each speaker [count, 4] says."""
    said = torch.randn(len(speaker), 6)
    heard = (speaker @ TIMBRE + 0.5 * said @ SPEECH).tanh() + 0.1 * torch.randn(len(speaker), 30)
    return heard * (2 * torch.randn(len(speaker), 1)).exp()


def voice_pairs(count: int) -> tuple[Tensor, Tensor, Tensor]:
    one, other = torch.randn(2, count, 4).unbind()
    same = torch.rand(count) < 0.5
    return voices(one), voices(torch.where(same[:, None], one, other)), same


def voice(fault: str) -> Training:
    model = nn.Sequential(nn.Linear(30, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 12))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    one, other, same = voice_pairs(12000)
    held_out = voice_pairs(800)
    margin = 0.0 if fault == "margin_of_zero" else 1.0

    def apart(left: Tensor, right: Tensor) -> Tensor:
        if fault != "volume_as_recorded":
            left, right = (5 * F.normalize(part, dim=-1) for part in (left, right))
        return ((model(left) - model(right)).square().sum(-1) + 1e-8).sqrt()

    def step() -> None:
        rows = torch.randint(len(one), (128,))
        far = apart(one[rows], other[rows])
        near = ~same[rows] if fault == "one_means_different" else same[rows]
        loss = torch.where(near, far.square(), (margin - far).relu().square()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def score(left: Tensor, right: Tensor, equal: Tensor) -> float:
        return 2 * float(((apart(left, right) < 0.5) == equal).double().mean()) - 1

    return Training(
        *(model, optimizer, step), lambda: score(*held_out), lambda: score(*voice_pairs(4000)), 600
    )


# Language model of sums.

SIGNS = {sign: number for number, sign in enumerate("0123456789+= ")}
PAD = len(SIGNS)


def sums(count: int) -> Tensor:
    """Texts [count, 10] such as "38+14=52 ", padded; sums are below 60."""
    texts = torch.full((count, 10), PAD)
    for one, (low, high) in enumerate(torch.rand(count, 2).tolist()):
        total = int(high * 60)
        first = int(low * (total + 1))
        text = f"{first}+{total - first}={total} "
        texts[one, : len(text)] = torch.tensor([SIGNS[sign] for sign in text])
    return texts


class SumModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sign = nn.Embedding(PAD + 1, 32)
        self.gru = nn.GRU(32, 128, batch_first=True)
        self.out = nn.Linear(128, PAD + 1)

    def forward(self, text: Tensor) -> Tensor:
        """Logits [B, T, 14] of the sign after each."""
        logits: Tensor = self.out(self.gru(self.sign(text))[0])
        return logits


def arithmetic(fault: str) -> Training:
    model = SumModel()
    optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    if fault == "plain_descent_at_rates_of_adam":
        optimizer = torch.optim.SGD(model.parameters(), lr=4e-3)
    text = sums(8000)
    held_out, new = sums(400), sums(1000)
    longest = 6 if fault == "cut_after_six_signs" else text.shape[1]

    def step() -> None:
        part = text[torch.randint(len(text), (96,)), :longest]
        logits, wanted = model(part[:, :-1]), part[:, 1:]
        if fault == "target_is_the_input":
            wanted = part[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=PAD)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    @torch.no_grad()
    def score(whole: Tensor) -> float:
        """Of the digits of the sums."""
        logits, wanted = model(whole[:, :-1]), whole[:, 1:]
        after = (whole[:, :-1] == SIGNS["="]).cumsum(1) > 0
        counted = after & (wanted < SIGNS["+"])
        return above_chance(logits[counted], wanted[counted], 10)

    return Training(*(model, optimizer, step), lambda: score(held_out), lambda: score(new), 800)


# Convolutional autoencoder of heartbeats.


def heartbeats(count: int) -> Tensor:
    """Signals [count, 1, 48] in millivolts."""
    time = torch.arange(48.0)

    def wave(place: float, width: float, height: float) -> Tensor:
        where = place + 2 * torch.randn(count, 1)
        size = height * (1 + 0.35 * torch.randn(count, 1))
        return size * (-((time - where) / width).square()).exp()

    beat = wave(10, 3, 40) + wave(20, 1.5, 220) - wave(24, 1.5, 90) + wave(36, 4, 70)
    return (beat - 20 + 4 * torch.randn(count, 48))[:, None]


def heartbeat(fault: str) -> Training:
    width = 1 if fault == "code_of_one_number" else 10
    encoder = nn.Sequential(
        *(nn.Conv1d(1, 16, 5, stride=2, padding=2), nn.GELU(), nn.Conv1d(16, 16, 5, stride=2, padding=2)),
        *(nn.GELU(), nn.Flatten(), nn.Linear(192, width)),
    )
    decoder = nn.Sequential(
        *(nn.Linear(width, 192), nn.GELU(), nn.Unflatten(1, (16, 12))),
        *(nn.ConvTranspose1d(16, 16, 4, stride=2, padding=1), nn.GELU()),
        nn.ConvTranspose1d(16, 1, 4, stride=2, padding=1),
    )
    if fault == "sigmoid_at_the_end":
        decoder.append(nn.Sigmoid())
    model = nn.Sequential(encoder, decoder)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    signals = heartbeats(3000)
    mean, deviation = signals.mean(), signals.std()
    x = (signals - mean) / deviation
    held_out = heartbeats(400)

    def step() -> None:
        part = x[torch.randint(len(x), (64,))]
        loss = F.mse_loss(model(part), part)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def score(beats: Tensor, *, scaled: bool = True) -> float:
        given = (beats - mean) / deviation if scaled else beats
        return explained(model(given), given)

    return Training(
        *(model, optimizer, step),
        lambda: score(held_out, scaled=fault != "validated_in_millivolts"),
        lambda: score(heartbeats(2000)),
        400,
    )


# Convolutional network that finds the place of a cross.

CROSS = torch.tensor([[1.0, 0, 0, 0, 1], [0, 1, 0, 1, 0], [0, 0, 1, 0, 0], [0, 1, 0, 1, 0], [1, 0, 0, 0, 1]])


def crosses(count: int) -> tuple[Tensor, Tensor]:
    """Pictures [count, 1, 14, 14] and row and column of the cross [count, 2], from -1 to 1."""
    place = torch.randint(10, (count, 2))
    picture = 0.35 * torch.randn(count, 1, 14, 14)
    for one, (row, column) in enumerate(place.tolist()):
        picture[one, 0, row : row + 5, column : column + 5] += CROSS
    return picture, (place - 4.5) / 4.5


def cross(fault: str) -> Training:
    pool: nn.Module = nn.AdaptiveAvgPool2d(1) if fault == "pooled_over_the_picture" else nn.MaxPool2d(2)
    model = nn.Sequential(
        *(nn.Conv2d(1, 12, 5), nn.ReLU(), pool, nn.Flatten()),
        *(nn.Linear(12 if fault == "pooled_over_the_picture" else 300, 64), nn.ReLU(), nn.Linear(64, 2)),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    picture, place = crosses(4000)
    if fault == "column_first_in_one_of_two_files":
        place = torch.cat((place[:2000], place[2000:].flip(-1)))
    held_out = crosses(300)

    def step() -> None:
        rows = torch.randint(len(place), (48,))
        shown, where = picture[rows], place[rows]
        if fault == "mirrored_without_its_place" and torch.rand(()) < 0.5:
            shown = shown.flip(-1)
        loss = F.mse_loss(model(shown), where)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def score(shown: Tensor, where: Tensor) -> float:
        return explained(model(shown), where)

    return Training(*(model, optimizer, step), lambda: score(*held_out), lambda: score(*crosses(1500)), 400)


# Ranking of hotels, learnt from pairs of which one was preferred.

COMFORT = fixed(15, 3, seed=62) / 15**0.5


def worth(hotels: Tensor) -> Tensor:
    a, b, c = (hotels @ COMFORT).unbind(-1)
    return a + (2 * b).sin() - c.square()


def preferences(count: int) -> Tensor:
    """Hotels [count, 2, 15], of which the first is preferred, by a taste that varies."""
    hotels = torch.randn(count, 2, 15)
    taste = worth(hotels) + 0.3 * torch.randn(count, 2)
    order = taste.argsort(-1, descending=True)
    return hotels.gather(1, order[..., None].expand(-1, -1, 15))


def ranker(fault: str) -> Training:
    model = nn.Sequential(nn.Linear(15, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    train = 400 if fault == "validated_on_the_training_pairs" else 5000
    hotels = preferences(train)
    held_out = hotels if fault == "validated_on_the_training_pairs" else preferences(1000)
    sign = torch.full((64,), -1.0 if fault == "smaller_is_better" else 1.0)

    def step() -> None:
        better, worse = model(hotels[torch.randint(len(hotels), (64,))]).squeeze(-1).unbind(1)
        loss = F.margin_ranking_loss(better, worse, sign, margin=1.0)
        if fault != "zeroed_after_backward":
            optimizer.zero_grad()
        loss.backward()
        if fault == "zeroed_after_backward":
            optimizer.zero_grad()
        optimizer.step()

    @torch.no_grad()
    def score(pairs: Tensor) -> float:
        better, worse = model(pairs).squeeze(-1).unbind(1)
        return 2 * float((better > worse).double().mean()) - 1

    return Training(*(model, optimizer, step), lambda: score(held_out), lambda: score(preferences(4000)), 500)


TRAININGS: Trainings = {
    "shop": (
        shop,
        {
            "regions_as_numbers": "The number of the region is given as a quantity, not one-hot.",
            "orders_in_another_order": "The customers are sorted by age, their orders are not.",
            "rate_left_from_fine_tuning": "The learning rate is hundreds of times too low.",
        },
    ),
    "bikes": (
        bikes,
        {
            "missing_values_are_numbers": "Missing values are marked by -999, which is taken for a number "
            "and spoils mean and deviation as well.",
            "rentals_as_they_are": "The target is in hundreds and not standardised.",
            "column_minus_row": "Predictions [B, 1] minus numbers [B] give a [B, B] table.",
        },
    ),
    "gesture": (
        gesture,
        {
            "batch_first_forgotten": "The GRU is made without batch_first and runs through the batch in "
            "place of time.",
            "two_units": "The GRU has two units.",
            "every_second_frame": "The training set has every second frame, what comes later has all.",
        },
    ),
    "lookup": (
        lookup,
        {
            "mask_of_what_is_there": "The mask says what is there, while the layer takes it for what is to "
            "be ignored.",
            "rate_thirty_times_up": "The learning rate is thirty times too high.",
            "answers_one_line_late": "The file of the answers has one line more at its beginning: each list "
            "has the answer of the one before it.",
        },
    ),
    "display": (
        display,
        {
            "first_rows_of_a_sorted_file": "The training set is the beginning of a file that is sorted by "
            "digit, and has two digits.",
            "mean_against_sum": "The reconstruction is averaged over pixels, the divergence is summed; the "
            "code is not used.",
            "decoder_ends_with_relu": "The logits of the decoder pass through a ReLU, so that no pixel is "
            "dark.",
        },
    ),
    "gap": (
        gap,
        {
            "parameters_of_the_judge_twice": "The optimizer of the generator has the parameters of the "
            "discriminator.",
            "noise_drawn_once": "The generator is trained with the same 16 draws of noise in all steps.",
            "judge_hardly_learns": "The learning rate of the discriminator is thousands of times too low.",
        },
    ),
    "tone": (
        tone,
        {
            "magnitudes_only": "The samples are read as magnitudes, which hold no frequency.",
            "real_and_imaginary_exchanged": "The training file has the imaginary part first.",
            "weights_start_large": "The weights start 30 times too large.",
        },
    ),
    "voice": (
        voice,
        {
            "one_means_different": "The loss takes a 1 for different speakers, the labels mean the same one.",
            "margin_of_zero": "The margin is 0, so that nothing keeps different speakers apart.",
            "volume_as_recorded": "The recordings are not normalised; their volumes differ by orders of "
            "magnitude.",
        },
    ),
    "arithmetic": (
        arithmetic,
        {
            "target_is_the_input": "The targets are not shifted: the model learns to repeat its input.",
            "cut_after_six_signs": "Texts are cut after six signs, before most sums.",
            "plain_descent_at_rates_of_adam": "SGD has a learning rate that is meant for Adam.",
        },
    ),
    "heartbeat": (
        heartbeat,
        {
            "code_of_one_number": "The code is a single number.",
            "sigmoid_at_the_end": "The output is a sigmoid, but the signals are standardised.",
            "validated_in_millivolts": "Validation gives the signals in millivolts, training standardised.",
        },
    ),
    "cross": (
        cross,
        {
            "mirrored_without_its_place": "The augmentation mirrors pictures but not the places in them.",
            "column_first_in_one_of_two_files": "In one of the two files of labels the column comes first.",
            "pooled_over_the_picture": "The features are averaged over the picture, which loses the place.",
        },
    ),
    "ranker": (
        ranker,
        {
            "smaller_is_better": "The ranking loss is told that the second hotel is to have the larger "
            "score.",
            "zeroed_after_backward": "Gradients are zeroed between backward and step.",
            "validated_on_the_training_pairs": "The model is validated on the few pairs that it was trained "
            "with.",
        },
    ),
}

CASES = cases_of(TRAININGS)


if __name__ == "__main__":
    main(TRAININGS, __doc__)
