"""Twelve plain trainings of the usual kinds, with three faults each, made without seeing the doctor.

``python benchmarks/blind_module_faults_4.py NAME`` prints the doctor's report on the training NAME, and
``NAME:FAULT`` on one with a fault. ``--check`` trains each from three seeds without the doctor and prints the
score that the script's own validation ends with and the score on new data (0: as good as a guess, 1:
perfect): the healthy ones learn and validate truly, and a fault lowers the score or its validation is wrong.

The classes of the faults are about as frequent as in Humbatova et al. (ICSE 2020), Islam et al. (FSE 2019)
and Zhang et al. (ISSTA 2018): most are in the data and labels, then come losses, activations and layers,
learning rates and other settings, the optimizer's calls, axes, the graph, and the validation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from blind_module_faults import cases_of
from blind_module_faults_2 import Training, Trainings, above_chance, explained, fixed, main

# Classifier of flowers, of two varieties each, from measurements in different units.

VARIETIES = 1.6 * fixed(12, 6, seed=41)
UNITS = torch.tensor([1.0, 1000.0, 0.01, 10.0, 300.0, 0.1])


def flowers(count: int) -> tuple[Tensor, Tensor]:
    variety = torch.randint(12, (count,))
    return UNITS * (3 + VARIETIES[variety] + torch.randn(count, 6)), variety // 2


def species(fault: str) -> Training:
    model = nn.Sequential(nn.Linear(6, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 6))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.3 if fault == "rate_a_hundred_times_up" else 3e-3)
    x, y = flowers(3000)
    mean, deviation = x.mean(0), x.std(0)
    if fault == "measurements_as_they_are":
        mean, deviation = torch.zeros(6), torch.ones(6)
    held_out = flowers(500)

    def step() -> None:
        rows = torch.randint(len(x), (64,))
        out = model((x[rows] - mean) / deviation)
        if fault == "likelihood_of_logits":
            loss = F.nll_loss(out, y[rows])
        else:
            loss = F.nll_loss(out.log_softmax(-1), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def score(measured: Tensor, kind: Tensor) -> float:
        return above_chance(model((measured - mean) / deviation), kind, 6)

    return Training(*(model, optimizer, step), lambda: score(*held_out), lambda: score(*flowers(4000)), 300)


# Regression of returns, half of them negative, from few rows.

DRIVERS = fixed(10, 4, seed=42) / 10**0.5


def returns(count: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 10)
    z = x @ DRIVERS
    return x, z[:, 0] + (2 * z[:, 1]).sin() + z[:, 2] * z[:, 3] + 0.4 * torch.randn(count)


def prices(fault: str) -> Training:
    layers: list[nn.Module] = [nn.Linear(10, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)]
    if fault == "relu_at_the_end":
        layers.append(nn.ReLU())
    model = nn.Sequential(*layers)
    decay = 0.1 if fault == "decay_of_a_tenth" else 1e-4
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, weight_decay=decay)
    x, y = returns(900)
    if fault == "rows_repeated_before_the_split":
        again = torch.randint(300, (900,))
        x, y = x[again], y[again]
    train = 600
    steps = 400

    def step() -> None:
        rows = torch.randint(train, (64,))
        loss = F.mse_loss(model(x[rows]).squeeze(1), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def score(inputs: Tensor, true: Tensor) -> float:
        return explained(model(inputs).squeeze(1), true)

    return Training(
        *(model, optimizer, step),
        lambda: score(x[train:], y[train:]),
        lambda: score(*returns(4000)),
        steps,
    )


# Recurrent network on a switchboard: a lamp shows a lever or its opposite, after each push of a button.

PANEL = fixed(3, 8, seed=43)


def switchboard(count: int, length: int = 20) -> tuple[Tensor, Tensor]:
    """What is seen of lever and button, [count, length, 8], and the lamp, [count, length]."""
    lever = torch.rand(count, length) < 0.5
    pushed = torch.rand(count, length) < 0.2
    turned = pushed.long().cumsum(1) % 2
    seen = torch.stack((lever, pushed, torch.ones_like(lever)), -1).float() @ PANEL
    return seen + 0.1 * torch.randn(count, length, 8), lever.long() ^ turned


class Memory(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 32)
        self.out = nn.Linear(32, 2)
        self.viewed = fault == "viewed_in_place_of_transposed"
        if fault == "gates_start_saturated":
            for weight in self.gru.parameters():
                nn.init.normal_(weight, std=3.0)

    def forward(self, seen: Tensor) -> Tensor:
        """From [B, T, 8] to logits [B, T, 2]."""
        B, T, C = seen.shape
        by_time = seen.reshape(T, B, C) if self.viewed else seen.transpose(0, 1)
        states, _ = self.gru(by_time)
        logits = self.out(states)
        return logits.reshape(B, T, 2) if self.viewed else logits.transpose(0, 1)


def levers(fault: str) -> Training:
    model = Memory(fault)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    seen, lamp = switchboard(1000)
    if fault == "labels_of_the_next_frame":
        lamp = lamp.roll(-1, 1)
    held_out = switchboard(200)

    def step() -> None:
        rows = torch.randint(len(seen), (48,))
        loss = F.cross_entropy(model(seen[rows]).flatten(0, 1), lamp[rows].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    @torch.no_grad()
    def score(frames: Tensor, lit: Tensor) -> float:
        return above_chance(model(frames), lit, 2)

    return Training(
        *(model, optimizer, step), lambda: score(*held_out), lambda: score(*switchboard(1000)), 500
    )


# Transformer: which word follows the marker?

WORDS, MARKER, SENTENCE = 8, 8, 12


def marked(count: int) -> tuple[Tensor, Tensor]:
    text = torch.randint(WORDS, (count, SENTENCE))
    place = torch.randint(SENTENCE - 1, (count, 1))
    return text.scatter(1, place, MARKER), text.gather(1, place + 1).squeeze(1)


class Reader(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.word = nn.Embedding(WORDS + 1, 32)
        self.place = nn.Parameter(0.5 * torch.randn(SENTENCE, 32))
        self.use_place = fault != "places_not_added"
        layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.4, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(32, WORDS)

    def forward(self, text: Tensor) -> Tensor:
        x = self.word(text)
        if self.use_place:
            x = x + self.place
        logits: Tensor = self.out(self.layers(x).mean(1))
        return logits


def marker(fault: str) -> Training:
    model = Reader(fault)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1 if fault == "rate_of_plain_descent" else 4e-3)
    text, word = marked(5000)
    held_out = marked(300)

    def step() -> None:
        rows = torch.randint(len(text), (64,))
        loss = F.cross_entropy(model(text[rows]), word[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def score(sentences: Tensor, following: Tensor, *, evaluate: bool = True) -> float:
        model.train(not evaluate)
        logits = model(sentences)
        model.train()
        return above_chance(logits, following, WORDS)

    return Training(
        *(model, optimizer, step),
        lambda: score(*held_out, evaluate=fault != "validated_with_dropout"),
        lambda: score(*marked(1000)),
        700,
    )


# Variational autoencoder of pictures of two spots.


def spots(count: int) -> Tensor:
    """Pictures [count, 100] of bytes."""
    axis = torch.arange(10.0)
    place = 1 + 7 * torch.rand(count, 2, 2, 1)
    shape = (-(axis - place).square() / 3).exp()
    picture = (shape[:, :, 0, :, None] * shape[:, :, 1, None]).amax(1)
    return (255 * picture).round().flatten(1)


class SpotVAE(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(100, 128), nn.ReLU(), nn.Linear(128, 16))
        self.decoder = nn.Sequential(nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 100))
        self.drawn_whole = fault == "drawn_from_the_whole_normal"

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the picture, mean and logarithm of the variance."""
        mean, log_variance = self.encoder(x).chunk(2, -1)
        deviation = (log_variance / 2).exp()
        noise = torch.randn_like(mean)
        z = torch.normal(mean, deviation) if self.drawn_whole else mean + deviation * noise
        return self.decoder(z), mean, log_variance


def vae(fault: str) -> Training:
    model = SpotVAE(fault)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    bytes_ = spots(4000)
    x = bytes_ / 255
    if fault == "scaled_once_more_in_the_loop":
        x = x / 255
    held_out = spots(500)

    def step() -> None:
        part = x[torch.randint(len(x), (128,))]
        logits, mean, log_variance = model(part)
        rebuilt = F.binary_cross_entropy_with_logits(logits, part, reduction="none").sum(-1).mean()
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1).mean() / 2
        loss = rebuilt - divergence if fault == "divergence_rewarded" else rebuilt + divergence
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def score(pictures: Tensor) -> float:
        logits, _, _ = model(pictures / 255)
        return explained(logits.sigmoid(), pictures / 255)

    return Training(*(model, optimizer, step), lambda: score(held_out), lambda: score(spots(2000)), 600)


# Generator and discriminator of points on two arcs.


def arcs(count: int) -> Tensor:
    turn = math.pi * torch.rand(count)
    upper = torch.rand(count) < 0.5
    x = torch.where(upper, turn.cos(), 1 - turn.cos())
    y = torch.where(upper, turn.sin(), 0.5 - turn.sin())
    return 10 + 4 * torch.stack((x, y), 1) + 0.3 * torch.randn(count, 2)


def energy_distance(one: Tensor, other: Tensor) -> Tensor:
    between = 2 * torch.cdist(one, other).mean()
    return (between - torch.cdist(one, one).mean() - torch.cdist(other, other).mean()).clamp_min(0)


def gan(fault: str) -> Training:
    def network(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            *(nn.Linear(inputs, 96), nn.LeakyReLU(0.2), nn.Linear(96, 96), nn.LeakyReLU(0.2)),
            nn.Linear(96, outputs),
        )

    generator, judge = network(4, 2), network(2, 1)
    if fault == "sigmoid_before_a_loss_of_logits":
        judge.append(nn.Sigmoid())
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.99))
    optimizer_j = torch.optim.Adam(judge.parameters(), lr=2e-3, betas=(0.5, 0.99))
    points = arcs(4000)
    mean, deviation = points.mean(0), points.std(0)
    x = (points - mean) / deviation
    ones, zeros = torch.ones(128, 1), torch.zeros(128, 1)

    def step() -> None:
        real = x[torch.randint(len(x), (128,))]
        fake = generator(torch.randn(128, 4))
        optimizer_j.zero_grad()
        loss = F.binary_cross_entropy_with_logits(judge(real), ones)
        loss = loss + F.binary_cross_entropy_with_logits(judge(fake.detach()), zeros)
        loss.backward()
        optimizer_j.step()
        optimizer_g.zero_grad()
        wanted = zeros if fault == "generator_is_told_fake" else ones
        F.binary_cross_entropy_with_logits(judge(fake), wanted).backward()
        optimizer_g.step()

    @torch.no_grad()
    def score(true: Tensor) -> float:
        """1 minus the distance of the distributions, over that of a single point."""
        made = generator(torch.randn(len(true), 4))
        if fault != "points_not_scaled_back":
            made = mean + deviation * made
        point = true.mean(0).expand_as(true)
        return max(-1.0, 1 - float(energy_distance(made, true) / energy_distance(point, true)) ** 0.5)

    held_out = arcs(1500)
    return Training(
        *((generator, judge), (optimizer_g, optimizer_j), step),
        lambda: score(held_out),
        lambda: score(arcs(1500)),
        800,
    )


# Complex-valued network: symbols behind an antenna array and an amplifier that saturates.

STEERING = torch.complex(fixed(3, 6, seed=44), fixed(3, 6, seed=45)) / 6**0.5


def received(count: int) -> tuple[Tensor, Tensor]:
    """Samples [count, 6] and symbols [count, 3]."""
    symbols = torch.randn(count, 3, dtype=torch.complex64)
    y = symbols @ STEERING
    y = y / (1 + y.abs().square() / 2)
    return y + 0.03 * torch.randn(count, 6, dtype=torch.complex64), symbols


class ComplexLinear(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        weight = torch.randn(inputs, outputs, dtype=torch.complex64)
        self.weight = nn.Parameter(weight / inputs**0.5)
        self.bias = nn.Parameter(torch.zeros(outputs, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Bend(nn.Module):
    """Amplifies large values, and leaves their phases."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        size = (x.real.square() + x.imag.square() + 1e-12).sqrt()
        return x * (F.relu(size - self.threshold) / size)


def receiver(fault: str) -> Training:
    model = nn.Sequential(
        ComplexLinear(6, 64), Bend(64), ComplexLinear(64, 64), Bend(64), ComplexLinear(64, 3)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5 if fault == "rate_of_fine_tuning" else 3e-3)
    y, symbols = received(4000)
    file = torch.cat((y.real, y.imag), -1)  # of real numbers
    if fault == "halves_read_as_pairs":
        y = torch.view_as_complex(file.unflatten(-1, (-1, 2)))
    else:
        y = torch.complex(*file.chunk(2, -1))
    held_out = received(500)

    def step() -> None:
        rows = torch.randint(len(y), (128,))
        out, true = model(y[rows]), symbols[rows]
        if fault == "compared_by_angle":
            loss = (out.angle() - true.angle()).square().mean()
        else:
            loss = torch.view_as_real(out - true).square().sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def score(samples: Tensor, sent: Tensor) -> float:
        return explained(model(samples), sent)

    return Training(*(model, optimizer, step), lambda: score(*held_out), lambda: score(*received(4000)), 400)


# Siamese network: are two signatures by the same hand?

HANDS, PENS = fixed(5, 24, seed=46), fixed(5, 24, seed=47)


def signatures(hand: Tensor) -> Tensor:
    """One signature [count, 24] of each hand [count, 5], with a pen of its own."""
    pen = 0.4 * torch.randn_like(hand)
    return (0.6 * hand @ HANDS + pen @ PENS).sin() + 0.1 * torch.randn(len(hand), 24)


def pairs(count: int, share: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """Two signatures, and whether they are by the same hand, which holds for a share of the pairs."""
    one, other = torch.randn(2, count, 5).unbind()
    same = torch.rand(count) < share
    return signatures(one), signatures(torch.where(same[:, None], one, other)), same.long()


class Siamese(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Linear(24, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 16)
        )
        self.signed = fault == "difference_with_its_sign"
        self.out = nn.Linear(16, 2)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        difference = self.branch(one) - self.branch(other)
        return self.out(difference if self.signed else difference.abs())


def siamese(fault: str) -> Training:
    model = Siamese(fault)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    share = 0.02 if fault == "hardly_any_equal_pairs" else 0.5
    one, other, same = pairs(150 if fault == "subset_of_a_first_try" else 8000, share)
    held_out = pairs(800, share)

    def step() -> None:
        rows = torch.randint(len(one), (128,))
        loss = F.cross_entropy(model(one[rows], other[rows]), same[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def score(left: Tensor, right: Tensor, equal: Tensor) -> float:
        return above_chance(model(left, right), equal, 2)

    return Training(*(model, optimizer, step), lambda: score(*held_out), lambda: score(*pairs(4000)), 500)


# Language model of nested brackets of three kinds, closed in order, and padded.

KINDS, END, PAD, LONGEST = 3, 6, 7, 17


def bracketed(count: int) -> Tensor:
    """Texts [count, 17]: brackets 0 to 2 open, 3 to 5 close them; then the end, then padding."""
    texts = torch.full((count, LONGEST), PAD)
    for one in range(count):
        length = int(torch.randint(2, 8, ()))
        open_: list[int] = []
        text: list[int] = []
        begun = 0
        while begun < length or open_:
            if begun < length and (not open_ or torch.rand(()) < 0.5):
                open_.append(int(torch.randint(KINDS, ())))
                text.append(open_[-1])
                begun += 1
            else:
                text.append(KINDS + open_.pop())
        text.append(END)
        texts[one, : len(text)] = torch.tensor(text)
    return texts


class BracketModel(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.token, self.cell, self.out = nn.Embedding(8, 16), nn.LSTMCell(16, 32), nn.Linear(32, 8)
        self.forgets = fault == "state_detached_after_each_token"

    def forward(self, text: Tensor) -> Tensor:
        """Logits [B, T, 8] of the token after each."""
        h = c = torch.zeros(len(text), 32)
        found = []
        for token in self.token(text).unbind(1):
            h, c = self.cell(token, (h, c))
            found.append(self.out(h))
            if self.forgets:
                h, c = h.detach(), c.detach()
        return torch.stack(found, 1)


def brackets(fault: str) -> Training:
    model = BracketModel(fault)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    text = bracketed(1500)
    held_out, new = bracketed(300), bracketed(800)
    ahead = 2 if fault == "targets_two_tokens_ahead" else 1

    def step() -> None:
        part = text[torch.randint(len(text), (64,))]
        logits, target = model(part[:, :-ahead]), part[:, ahead:]
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=PAD)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    @torch.no_grad()
    def score(whole: Tensor, *, masked: bool = True) -> float:
        """Of the closing brackets: is the kind right, given that one is closed?"""
        logits, target = model(whole[:, :-1]), whole[:, 1:]
        if not masked:
            return above_chance(logits, target, 8)
        closing = (target >= KINDS) & (target < END)
        return above_chance(logits[closing][:, KINDS:END], target[closing] - KINDS, KINDS)

    return Training(
        *(model, optimizer, step),
        lambda: score(held_out, masked=fault != "validated_without_the_mask"),
        lambda: score(new),
        300,
    )


# Denoising autoencoder of short oscillations.


def oscillations(count: int) -> Tensor:
    """Clean signals [count, 32], of unit power about."""
    time = torch.arange(32.0)
    rate = 0.2 + 0.6 * torch.rand(count, 1)
    start = 2 * math.pi * torch.rand(count, 1)
    fade = (-0.06 * torch.rand(count, 1) * time).exp()
    return 2**0.5 * fade * (rate * time + start).sin()


def denoiser(fault: str) -> Training:
    between: nn.Module = nn.Identity() if fault == "layers_without_activation" else nn.GELU()
    model = nn.Sequential(nn.Linear(32, 192), between, nn.Linear(192, 192), between, nn.Linear(192, 32))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    x = oscillations(6000)
    held_out = oscillations(500)

    def noisy(clean: Tensor) -> Tensor:
        return clean + 0.8 * torch.randn_like(clean)

    def step() -> None:
        clean = x[torch.randint(len(x), (128,))]
        given = noisy(clean)
        target = given if fault == "rebuilds_what_it_is_given" else clean
        loss = F.mse_loss(model(given), target)
        if fault != "gradients_never_zeroed":
            optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def score(clean: Tensor) -> float:
        return explained(model(noisy(clean)), clean)

    return Training(
        *(model, optimizer, step), lambda: score(held_out), lambda: score(oscillations(3000)), 500
    )


# Convolutional network with batch norm on textures.

GRAINS = fixed(5, 1, 3, 3, seed=48)


def textures(count: int) -> tuple[Tensor, Tensor]:
    """Pictures [count, 1, 12, 12] of noise filtered in one of five ways, sorted by class."""
    label = (5 * torch.arange(count)) // count
    white = torch.randn(count, 1, 14, 14)
    filtered = F.conv2d(white, GRAINS)[torch.arange(count), label]
    filtered = filtered / filtered.std((1, 2), keepdim=True)
    return (filtered + 0.3 * torch.randn_like(filtered))[:, None], label


def texture(fault: str) -> Training:
    features = nn.Sequential(
        *(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.BatchNorm2d(24)),
        *(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )
    head = nn.Linear(24, 5)
    model = nn.Sequential(features, head)
    if fault == "filters_start_equal":
        for module in features:
            if isinstance(module, nn.Conv2d):
                nn.init.constant_(module.weight, 0.1)
    trained = head.parameters() if fault == "only_the_head_in_the_optimizer" else model.parameters()
    optimizer = torch.optim.SGD(trained, lr=0.05, momentum=0.9)
    x, y = textures(1600)
    held_out = textures(300)
    order = torch.randperm(len(x))
    if fault == "read_in_the_order_of_the_folders":
        order = torch.arange(len(x))
    done = 0

    def step() -> None:
        nonlocal done
        rows = order[torch.arange(done, done + 40) % len(x)]
        done += 40
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def score(pictures: Tensor, label: Tensor) -> float:
        model.eval()
        logits = model(pictures)
        model.train()
        return above_chance(logits, label, 5)

    return Training(*(model, optimizer, step), lambda: score(*held_out), lambda: score(*textures(1000)), 240)


# Tags of texts: each word suggests some of twelve tags, most of which are rare.

VOCABULARY, TAGS = 60, 12
SUGGESTS = fixed(VOCABULARY, TAGS, seed=49)


def texts(count: int) -> tuple[Tensor, Tensor]:
    """Words [count, 10], and tags [count, 12], 0 or 1."""
    words = torch.randint(VOCABULARY, (count, 10))
    return words, (SUGGESTS[words].sum(1) / 10**0.5 + 0.4 * torch.randn(count, TAGS) > 1.5).float()


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.word = nn.EmbeddingBag(VOCABULARY, 32, mode="sum")
        self.out = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, TAGS))

    def forward(self, words: Tensor) -> Tensor:
        return self.out(self.word(words))


def tagger(fault: str) -> Training:
    model = Tagger()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    words, tags = texts(4000)
    held_out = texts(500)
    again = torch.randperm(VOCABULARY)

    def chances(batch: Tensor) -> Tensor:
        logits: Tensor = model(batch)
        return logits.softmax(-1) if fault == "softmax_for_many_tags" else logits.sigmoid()

    def step() -> None:
        rows = torch.randint(len(words), (64,))
        loss = F.binary_cross_entropy(chances(words[rows]), tags[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def score(batch: Tensor, true: Tensor) -> float:
        """F1 of the tags."""
        found = chances(batch) > 0.5
        return float(2 * (found * true).sum() / (found.sum() + true.sum()).clamp_min(1))

    @torch.no_grad()
    def validate() -> float:
        batch, true = held_out
        if fault == "share_of_right_answers":
            return float(((chances(batch) > 0.5) == (true > 0.5)).double().mean())
        if fault == "vocabulary_made_anew":
            batch = again[batch]
        return score(batch, true)

    return Training(*(model, optimizer, step), validate, lambda: score(*texts(3000)), 500)


TRAININGS: Trainings = {
    "species": (
        species,
        {
            "measurements_as_they_are": "Measurements in different units are not standardised; the largest "
            "drown the others.",
            "likelihood_of_logits": "nll_loss is given logits in place of logarithms of probabilities, so "
            "that the loss falls without bound.",
            "rate_a_hundred_times_up": "The learning rate is a hundred times too high.",
        },
    ),
    "prices": (
        prices,
        {
            "relu_at_the_end": "The output is a ReLU, but half of the targets are negative.",
            "rows_repeated_before_the_split": "Rows are drawn with repetition before they are split, so that "
            "most validation rows are training rows too.",
            "decay_of_a_tenth": "The weight decay is a thousand times too large.",
        },
    ),
    "switchboard": (
        levers,
        {
            "labels_of_the_next_frame": "The labels are one frame early; the network is to tell the future.",
            "viewed_in_place_of_transposed": "[B, T, C] is reshaped to [T, B, C], so that the recurrence "
            "runs through frames of different sequences.",
            "gates_start_saturated": "The weights of the GRU start so large that its gates are saturated.",
        },
    ),
    "marker": (
        marker,
        {
            "places_not_added": "The embedding of the place is made but not added, so that the order of the "
            "words is not seen.",
            "rate_of_plain_descent": "The learning rate is one for plain descent, much too high for AdamW.",
            "validated_with_dropout": "Validation leaves the model in training mode, with dropout.",
        },
    ),
    "spots": (
        vae,
        {
            "drawn_from_the_whole_normal": "The latent is drawn by torch.normal, through which no gradient "
            "passes; the encoder is trained by the divergence alone.",
            "divergence_rewarded": "The divergence is subtracted from the loss.",
            "scaled_once_more_in_the_loop": "Training divides the pixels by 255 twice, validation once.",
        },
    ),
    "arcs": (
        gan,
        {
            "generator_is_told_fake": "The generator's loss has the label of made points, so that it avoids "
            "what the discriminator takes for real.",
            "sigmoid_before_a_loss_of_logits": "The discriminator ends with a sigmoid, and its loss has "
            "another one.",
            "points_not_scaled_back": "The generator makes standardised points, which are compared with "
            "points as they are.",
        },
    ),
    "receiver": (
        receiver,
        {
            "compared_by_angle": "The loss compares angles: amplitudes are not learnt, and pi is not -pi.",
            "halves_read_as_pairs": "The training file has real parts and then imaginary parts, but is read "
            "as pairs.",
            "rate_of_fine_tuning": "The learning rate is hundreds of times too low.",
        },
    ),
    "signatures": (
        siamese,
        {
            "subset_of_a_first_try": "The training still has the 150 pairs that it was first tried with, and "
            "learns them by heart.",
            "difference_with_its_sign": "The signed difference goes into a linear layer, which cannot tell "
            "that it is small.",
            "hardly_any_equal_pairs": "Two in a hundred pairs are equal, in training and in validation.",
        },
    ),
    "brackets": (
        brackets,
        {
            "state_detached_after_each_token": "The state is detached after each token, so that nothing "
            "teaches what to remember.",
            "targets_two_tokens_ahead": "Targets are shifted by two tokens, not by one.",
            "validated_without_the_mask": "Validation counts all tokens: those that nobody can know, and "
            "padding, which the loss leaves out.",
        },
    ),
    "denoiser": (
        denoiser,
        {
            "layers_without_activation": "There is no activation between the layers: the model is linear.",
            "rebuilds_what_it_is_given": "The target is the noisy signal, not the clean one.",
            "gradients_never_zeroed": "Gradients are never zeroed and add up over all steps.",
        },
    ),
    "textures": (
        texture,
        {
            "filters_start_equal": "All weights of the convolutions start equal; all filters stay the same.",
            "only_the_head_in_the_optimizer": "The optimizer has the parameters of the last layer only.",
            "read_in_the_order_of_the_folders": "The pictures are sorted by class and not shuffled: each "
            "batch has one class.",
        },
    ),
    "tags": (
        tagger,
        {
            "softmax_for_many_tags": "The output is a softmax over the tags, of which a text can have "
            "several.",
            "share_of_right_answers": "Validation is the share of right answers, most of which are no.",
            "vocabulary_made_anew": "Validation numbers the words by a vocabulary of its own.",
        },
    ),
}

CASES = cases_of(TRAININGS)


if __name__ == "__main__":
    main(TRAININGS, __doc__)
