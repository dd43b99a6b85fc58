"""Twelve more small trainings of other kinds, with three faults each, made without seeing the doctor.

``python benchmarks/blind_module_faults_3.py NAME`` prints the doctor's report on the training NAME, and
``NAME:FAULT`` on one with a fault. ``--check`` trains each from three seeds without the doctor and prints the
score that the script's own validation ends with and the score on new data (0: as good as a guess, 1:
perfect): the healthy ones learn and validate truly, and a fault lowers the score or its validation is wrong.

About half of the faults leave a trace in the curve of the loss, which stays where it was, ends too early,
or falls without bound; the others have a curve like that of a healthy training.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from blind_module_faults import cases_of
from blind_module_faults_2 import Training, Trainings, above_chance, explained, fixed, main


def mlp(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


# Diffusion model of points in five clusters on a ring.

TURN = torch.arange(5) * (2 * math.pi / 5)
CLUSTERS = 1.4 * torch.stack((TURN.cos(), TURN.sin()), 1)
RARITY = torch.tensor([0.3, 0.25, 0.2, 0.15, 0.1])


def clustered(count: int) -> Tensor:
    return CLUSTERS[RARITY.multinomial(count, replacement=True)] + 0.2 * torch.randn(count, 2)


def cluster_shares(points: Tensor) -> Tensor:
    """Shares of the points in each cluster, and elsewhere."""
    distance, nearest = torch.cdist(points, CLUSTERS).min(1)
    which = torch.where(distance < 0.5, nearest, 5)
    return which.bincount(minlength=6) / len(points)


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(2 + 16, 128, 128, 2)
        self.register_buffer("rates", torch.linspace(1, 8, 8), persistent=False)
        self.rates: Tensor

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """The noise in x [B, 2] at time [B], 0 to 1."""
        phase = time[:, None] * self.rates
        return self.net(torch.cat((x, phase.cos(), phase.sin()), 1))


def diffusion(fault: str) -> Training:
    model = Denoiser()
    optimizer = torch.optim.Adam(model.parameters(), lr=8e-3)
    steps = 40
    rate = torch.linspace(1e-3, 0.3, steps)
    kept = (1 - rate).cumprod(0)
    x = clustered(4000)

    def step() -> None:
        clean = x[torch.randint(len(x), (256,))]
        time = torch.randint(steps, (256,))
        noise = torch.randn_like(clean)
        share = kept[time, None]
        if fault == "amplitudes_without_root":
            noisy = share * clean + (1 - share) * noise
        else:
            noisy = share.sqrt() * clean + (1 - share).sqrt() * noise
        predicted = model(noisy, time / steps)
        if fault == "target_is_other_noise":
            loss = F.mse_loss(predicted, torch.randn_like(noise))
        else:
            loss = F.mse_loss(predicted, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def samples(count: int) -> Tensor:
        points = torch.randn(count, 2)
        for number in reversed(range(steps)):
            time = number if fault == "time_in_steps_when_sampling" else number / steps
            noise = model(points, torch.full((count,), float(time)))
            points = (points - rate[number] / (1 - kept[number]).sqrt() * noise) / (1 - rate[number]).sqrt()
            if number:
                points = points + rate[number].sqrt() * torch.randn_like(points)
        return points

    held_out = cluster_shares(clustered(1000))

    def score(count: int, true: Tensor) -> float:
        """Overlap of the shares of the clusters; points elsewhere count against it."""
        found = cluster_shares(samples(count))
        return float(1 - (found - true).abs().sum() / 2)

    return Training(
        *(model, optimizer, step),
        lambda: score(500, held_out),
        lambda: score(2000, cluster_shares(clustered(4000))),
        800,
    )


# Normalising flow: density of points in four dimensions whose entropy is known.

TURNED = torch.linalg.qr(fixed(4, 4, seed=30)).Q
SPREAD = 0.2


def bent(count: int) -> Tensor:
    """Points [count, 4]: two bent bands, turned together."""
    a = torch.randn(count, 2)
    b = (2 * a).sin() + 0.5 * a.flip(1) + SPREAD * torch.randn(count, 2)
    return torch.cat((a, b), 1) @ TURNED


ENTROPY = 2 * math.log(2 * math.pi * math.e) + 2 * math.log(SPREAD)


class Flow(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.parts = nn.ModuleList(mlp(2, 48, 48, 4) for _ in range(6))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The latent point and the logarithm of the determinant."""
        total = x.new_zeros(x.shape[:-1])
        for number, part in enumerate(self.parts):
            first, second = x.chunk(2, -1)
            turn = self.fault != "same_half_in_each_layer" and number % 2 == 1
            given, moved = (second, first) if turn else (first, second)
            scale, shift = part(given).chunk(2, -1)
            scale = 2 * (scale / 2).tanh()
            moved = moved * scale.exp() + shift
            total = total + (scale.mean(-1) if self.fault == "determinant_of_means" else scale.sum(-1))
            x = torch.cat((moved, given) if turn else (given, moved), -1)
        return x, total


def latent_entropy(z: Tensor) -> Tensor:
    return z.square().sum(-1) / 2 + 2 * math.log(2 * math.pi)


def flow(fault: str) -> Training:
    model = Flow(fault)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    x = bent(4000)
    normal = 2 * math.log(2 * math.pi * math.e) + float(torch.linalg.slogdet(x.T.cov()).logabsdet) / 2

    def step() -> None:
        z, volume = model(x[torch.randint(len(x), (256,))])
        if fault == "determinant_of_the_inverse":
            loss = (latent_entropy(z) + volume).mean()
        else:
            loss = (latent_entropy(z) - volume).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()

    def relative(entropy: Tensor) -> float:
        """0 for a normal distribution, 1 for the true one."""
        return max(-1.0, (normal - float(entropy)) / (normal - ENTROPY))

    held_out = bent(3000)

    @torch.no_grad()
    def validate() -> float:
        z, volume = model(held_out)
        return relative((latent_entropy(z) - volume).mean())

    def test() -> float:
        """With the determinant of the Jacobian itself."""
        points = bent(3000)
        jacobian = torch.func.vmap(torch.func.jacrev(lambda point: model(point)[0]))(points)
        volume = torch.linalg.slogdet(jacobian).logabsdet
        return relative((latent_entropy(model(points)[0]) - volume).mean().detach())

    return Training(model, optimizer, step, validate, test, 400)


# Actor and critic: a paddle catches a ball that falls seven rows and is blown aside.

WIDTH, FALL = 7, 6


class Catch:
    """Many games at once."""

    def __init__(self, count: int) -> None:
        self.ball, self.paddle = torch.randint(WIDTH, (2, count)).unbind()
        self.wind = torch.randint(-1, 2, (count,))

    def seen(self, row: int) -> Tensor:
        ball, paddle = F.one_hot(self.ball, WIDTH), F.one_hot(self.paddle, WIDTH)
        wind = torch.stack((self.wind, torch.full_like(self.wind, row - 3)), 1)
        return torch.cat((ball, paddle, wind), 1).float()

    def move(self, action: Tensor) -> None:
        self.paddle = (self.paddle + action - 1).clamp(0, WIDTH - 1)
        blown = torch.rand(len(self.ball)) < 0.3
        self.ball = (self.ball + self.wind * blown).clamp(0, WIDTH - 1)

    def caught(self) -> Tensor:
        return (self.ball == self.paddle).float()


class ActorCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(2 * WIDTH + 2, 64), nn.Tanh())
        self.policy, self.value = nn.Linear(64, 3), nn.Linear(64, 1)

    def forward(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(seen)
        return self.policy(h), self.value(h).squeeze(-1)


def actor_critic(fault: str) -> Training:
    model = ActorCritic()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def step() -> None:
        game = Catch(64)
        log_shares, values, entropies, rewards = [], [], [], []
        for row in range(FALL):
            logits, value = model(game.seen(row))
            chances = torch.distributions.Categorical(logits=logits)
            action = chances.sample()
            game.move(action)
            done = chances.sample() if fault == "probability_of_another_action" else action
            log_shares.append(chances.log_prob(done))
            entropies.append(chances.entropy())
            values.append(value)
            rewards.append(game.caught() if row == FALL - 1 else torch.zeros(64))
        gained, gains = torch.zeros(64), []
        order = rewards if fault == "rewards_of_the_past" else rewards[::-1]
        for reward in order:
            gained = reward + 0.97 * gained
            gains.append(gained)
        gain = torch.stack(gains if fault == "rewards_of_the_past" else gains[::-1])
        value = torch.stack(values)
        advantage = (gain - value).detach()
        over = 0 if fault == "advantage_standardised_over_time" else (0, 1)
        advantage = advantage - advantage.mean(over, keepdim=True)
        advantage = advantage / (advantage.std(over, keepdim=True) + 1e-6)
        actor = -(advantage * torch.stack(log_shares)).mean()
        loss = actor + 0.5 * F.mse_loss(value, gain) - 0.01 * torch.stack(entropies).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def score(count: int) -> float:
        """Share of the balls that are caught, above that of a paddle that stands still."""
        game = Catch(count)
        for row in range(FALL):
            game.move(model(game.seen(row))[0].argmax(-1))
        return (float(game.caught().mean()) - 1 / WIDTH) / (1 - 1 / WIDTH)

    return Training(model, optimizer, step, lambda: score(1000), lambda: score(4000), 300)


# Translator: encoder, attention and decoder turn a string of letters round and exchange some letters.

LETTERS, LENGTH = 10, 6
CIPHER = torch.randperm(LETTERS, generator=torch.Generator().manual_seed(31))


def sentences(count: int) -> tuple[Tensor, Tensor]:
    source = torch.randint(LETTERS, (count, LENGTH))
    return source, CIPHER[source.flip(1)]


class Translator(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.source, self.target = nn.Embedding(LETTERS, 32), nn.Embedding(LETTERS + 1, 32)
        self.place = nn.Parameter(0.3 * torch.randn(LENGTH, 32))
        self.encoder = nn.GRU(32, 48, batch_first=True)
        self.decoder = nn.GRU(32, 48, batch_first=True)
        self.ask = nn.Linear(48, 48)
        self.out = nn.Linear(96, LETTERS)

    def encode(self, source: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder(self.source(source) + self.place)

    def decode(self, before: Tensor, memory: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, T, letters] after the letters before, and the state after them."""
        h, state = self.decoder(self.target(before), state)
        match = self.ask(h) @ memory.mT / 48**0.5
        weight = match.softmax(0 if self.fault == "attention_over_the_batch" else -1)
        return self.out(torch.cat((h, weight @ memory), -1)), state


def translator(fault: str) -> Training:
    model = Translator(fault)
    optimizer = torch.optim.Adam(model.parameters(), lr=6e-3)
    held_out = sentences(200)
    begin = LETTERS

    def step() -> None:
        source, target = sentences(64)
        memory, state = model.encode(source)
        if fault == "decoder_is_given_its_target":
            before = target
        else:
            before = torch.cat((torch.full_like(target[:, :1], begin), target[:, :-1]), 1)
        logits, _ = model.decode(before, memory, state)
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    @torch.no_grad()
    def score(source: Tensor, target: Tensor, *, restart: bool = False) -> float:
        """Letter by letter, each after the model's own ones."""
        memory, state = model.encode(source)
        start, letter, found = state, torch.full_like(source[:, :1], begin), []
        for _ in range(LENGTH):
            logits, state = model.decode(letter, memory, start if restart else state)
            letter = logits.argmax(-1)
            found.append(logits)
        return above_chance(torch.cat(found, 1).flatten(0, 1), target.flatten(), LETTERS)

    return Training(
        *(model, optimizer, step),
        lambda: score(*held_out, restart=fault == "state_not_carried_in_validation"),
        lambda: score(*sentences(500)),
        400,
    )


# Recommender: ratings as products of factors of users and items.

USERS, ITEMS = 300, 200


def recommender(fault: str) -> Training:
    class Factors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.items = 40 if fault == "items_share_rows" else ITEMS
            self.user, self.item = nn.Embedding(USERS, 8), nn.Embedding(self.items, 8)
            self.user_level, self.item_level = nn.Embedding(USERS, 1), nn.Embedding(self.items, 1)
            for table in (self.user, self.item, self.user_level, self.item_level):
                nn.init.normal_(table.weight, std=0.3)

        def forward(self, user: Tensor, item: Tensor) -> Tensor:
            item = item % self.items
            factor = self.item.weight.data[item] if fault == "item_table_read_as_data" else self.item(item)
            both = (self.user(user) * factor).sum(-1)
            level = self.user_level(user) + self.item_level(item)
            rating = 3 + both + level.squeeze(-1)
            return rating.sigmoid() if fault == "ratings_from_a_sigmoid" else rating

    model = Factors()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    taste, kind = torch.randn(USERS, 3), torch.randn(ITEMS, 3)
    mean = 3 + taste @ kind.T / 2 + 0.5 * torch.randn(USERS, 1) + 0.5 * torch.randn(ITEMS)
    pair = torch.randperm(USERS * ITEMS)
    rating = mean.flatten()[pair] + 0.3 * torch.randn(len(pair))
    train, rest = 15000, 17000

    def step() -> None:
        rows = torch.randint(train, (1024,))
        user, item = pair[rows] // ITEMS, pair[rows] % ITEMS
        loss = F.mse_loss(model(user, item), rating[rows])
        loss = loss + 0.02 * (model.user(user).square().mean() + model.item.weight.square().mean())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def score(first: int, last: int) -> float:
        user, item = pair[first:last] // ITEMS, pair[first:last] % ITEMS
        return explained(model(user, item), rating[first:last])

    return Training(
        *(model, optimizer, step), lambda: score(train, rest), lambda: score(rest, len(pair)), 400
    )


# Detector: the box around a filled rectangle, among hollow ones, from a grid of cells.

SIDE, CELL = 24, 4


def photographs(count: int) -> tuple[Tensor, Tensor]:
    """Pictures [count, 1, 24, 24] and boxes [count, 4]: row and column of the centre, height, width."""
    axis = torch.arange(SIDE)
    image = torch.zeros(count, SIDE, SIDE)
    box = torch.zeros(count, 4)
    for number in range(2):
        size = torch.randint(4, 10, (count, 2))
        low = (torch.rand(count, 2) * (SIDE - size + 1)).long()

        def inside(margin: int, low: Tensor = low, size: Tensor = size) -> Tensor:
            start, end = low[..., None] + margin, (low + size)[..., None] - margin
            within = (axis >= start) & (axis < end)
            return within[:, 0, :, None] & within[:, 1, None]

        if number == 0:
            image[inside(0) & ~inside(1)] = 1.0
        else:
            image[inside(0)] = 1.0
            box = torch.cat((low + size / 2, size), 1).float()
    return (image + 0.3 * torch.randn_like(image))[:, None], box


def common_share(one: Tensor, other: Tensor, *, of_smaller: bool = False) -> Tensor:
    """Intersection of boxes over their union, or over the smaller one."""
    low = torch.maximum(one[:, :2] - one[:, 2:] / 2, other[:, :2] - other[:, 2:] / 2)
    high = torch.minimum(one[:, :2] + one[:, 2:] / 2, other[:, :2] + other[:, 2:] / 2)
    both = (high - low).clamp_min(0).prod(1)
    first, second = one[:, 2:].clamp_min(0).prod(1), other[:, 2:].prod(1)
    whole = torch.minimum(first, second) if of_smaller else first + second - both
    return both / whole.clamp_min(1e-6)


def detector(fault: str) -> Training:
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU(), nn.Conv2d(32, 5, 1)),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    images, boxes = photographs(1500)
    cells = SIDE // CELL

    def cell_of(box: Tensor) -> Tensor:
        row, column = (box[:, :2] / CELL).long().clamp_max(cells - 1).unbind(1)
        if fault == "rows_and_columns_exchanged":
            return column * cells + row
        return row * cells + column

    def step() -> None:
        rows = torch.randint(len(images), (32,))
        box, cell = boxes[rows], cell_of(boxes[rows])
        predicted = model(images[rows]).flatten(2)
        here = predicted.gather(2, cell[:, None, None].expand(-1, 5, 1)).squeeze(2)
        offset = box[:, :2] / CELL % 1
        loss = F.cross_entropy(predicted[:, 0], cell)
        loss = loss + 5 * F.smooth_l1_loss(here[:, 1:3], offset)
        loss = loss + 5 * F.smooth_l1_loss(here[:, 3:], (box[:, 2:] / CELL).sqrt())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def found(x: Tensor) -> Tensor:
        """The box of the cell with the highest score."""
        predicted = model(x).flatten(2)
        cell = predicted[:, 0].argmax(1)
        here = predicted.gather(2, cell[:, None, None].expand(-1, 5, 1)).squeeze(2)
        corner = torch.stack((cell // cells, cell % cells), 1)
        size = here[:, 3:] if fault == "root_of_the_size_not_undone" else here[:, 3:].square()
        return CELL * torch.cat((corner + here[:, 1:3], size), 1)

    held_out = photographs(200)

    def validate() -> float:
        share = common_share(found(held_out[0]), held_out[1], of_smaller=fault == "overlap_over_the_smaller")
        return float(share.mean())

    def test() -> float:
        x, box = photographs(500)
        return float(common_share(found(x), box).mean())

    return Training(model, optimizer, step, validate, test, 300)


# Forecaster: causal convolutions over a chaotic series with noise.


def series(count: int, length: int = 40) -> Tensor:
    """Series [count, length] of the map of Henon."""
    before, now = 0.2 * torch.rand(2, count)
    values = []
    for number in range(length + 20):
        before, now = now, 1 - 1.4 * now.square() + 0.3 * before
        if number >= 20:
            values.append(now)
    return torch.stack(values, 1) + 0.02 * torch.randn(count, length)


class Forecaster(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv1d(1 if i == 0 else 32, 32, 3, dilation=2**i, bias=True) for i in range(3)
        )
        self.out = nn.Conv1d(32, 1, 1)
        self.centred = fault == "padded_on_both_sides"

    def forward(self, x: Tensor) -> Tensor:
        """From values [B, T] to the values after the next, [B, T]."""
        h = x[:, None]
        for number, layer in enumerate(self.layers):
            reach = 2 * 2**number
            h = F.pad(h, (reach // 2, reach // 2) if self.centred else (reach, 0))
            h = F.gelu(layer(h))
        return self.out(h)[:, 0]


def forecaster(fault: str) -> Training:
    model = Forecaster(fault)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    mode: Literal["min", "max"] = "max" if fault == "plateau_of_a_score" else "min"
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode, factor=0.5, patience=8)
    x = series(500)
    held_out = series(100)
    losses: list[float] = []

    def step() -> None:
        part = x[torch.randint(len(x), (32,))]
        predicted, true = model(part[:, :-2]), part[:, 2:]
        if fault == "means_are_compared":
            loss = (predicted.mean(1) - true.mean(1)).square().mean()
        else:
            loss = (predicted - true).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if len(losses) == 5:
            schedule.step(sum(losses) / 5)
            losses.clear()

    @torch.no_grad()
    def score(whole: Tensor) -> float:
        return explained(model(whole[:, :-2])[:, 8:].flatten(), whole[:, 10:].flatten())

    @torch.no_grad()
    def test() -> float:
        """Of a value that is not there yet."""
        whole = series(1000)
        return explained(model(whole[:, :-2])[:, -1], whole[:, -1])

    return Training(model, optimizer, step, lambda: score(held_out), test, 500)


# Mixture density network: three branches, one of which is taken.

BRANCHES = torch.tensor([0.5, 0.3, 0.2])


def centres(x: Tensor) -> Tensor:
    return torch.stack(((3 * x).sin() + 1, -(2 * x).cos() - 1, x * 0.8), -1)


def branching(count: int) -> tuple[Tensor, Tensor]:
    x = 4 * torch.rand(count) - 2
    which = BRANCHES.multinomial(count, replacement=True)
    return x, centres(x).gather(1, which[:, None]).squeeze(1) + 0.1 * torch.randn(count)


def log_density(y: Tensor, mean: Tensor, deviation: Tensor, log_share: Tensor) -> Tensor:
    one = -((y[..., None] - mean) / deviation).square() / 2 - deviation.log() - math.log(2 * math.pi) / 2
    return (one + log_share).logsumexp(-1)


def mixture(fault: str) -> Training:
    model = mlp(1, 64, 64, 15)
    if fault == "last_layer_starts_at_zero":
        last = model[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    x, y = branching(4000)

    def density(inputs: Tensor, outputs: Tensor, wrong: str = "") -> Tensor:
        mean, log_deviation, logits = model(inputs[:, None]).chunk(3, -1)
        log_deviation = log_deviation.clamp_min(-4)
        log_share = logits if wrong == "shares_not_normalised" else logits.log_softmax(-1)
        if wrong == "deviation_taken_for_variance":
            one = -(outputs[:, None] - mean).square() / (2 * log_deviation.exp()) - log_deviation
            return (one - math.log(2 * math.pi) / 2 + log_share).logsumexp(-1)
        return log_density(outputs, mean, log_deviation.exp(), log_share)

    def step() -> None:
        rows = torch.randint(len(x), (256,))
        loss = -density(x[rows], y[rows], fault).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()

    @torch.no_grad()
    def score(inputs: Tensor, outputs: Tensor, wrong: str = "") -> float:
        """0 for a normal distribution that does not depend on x, 1 for the true one."""
        true = log_density(outputs, centres(inputs), torch.full((3,), 0.1), BRANCHES.log()).mean()
        normal = -math.log(float(outputs.std())) - math.log(2 * math.pi * math.e) / 2
        return max(-1.0, float((density(inputs, outputs, wrong).mean() - normal) / (true - normal)))

    held_out = branching(1000)
    return Training(
        *(model, optimizer, step),
        lambda: score(*held_out, fault),
        lambda: score(*branching(4000)),
        500,
    )


# Few-shot learning: prototypes of five classes from three examples each.

LOOK, DISTRACT = fixed(6, 32, seed=32), fixed(8, 32, seed=33)


def kinds(count: int) -> Tensor:
    return torch.randn(count, 6)


def examples(kind: Tensor, count: int) -> Tensor:
    """Examples [kinds, count, 32] of each kind."""
    of_kind = kind[:, None] + 0.25 * torch.randn(len(kind), count, 6)
    return (0.5 * of_kind @ LOOK + 0.7 * torch.randn(len(kind), count, 8) @ DISTRACT).tanh()


def few_shot(fault: str) -> Training:
    model = nn.Sequential(nn.Linear(32, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 16))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    known, unknown = kinds(200), kinds(40)

    def episode(pool: Tensor) -> tuple[Tensor, Tensor]:
        fixed_kinds = fault == "same_kinds_in_each_episode"
        chosen = pool[:5] if fixed_kinds else pool[torch.randperm(len(pool))[:5]]
        shown = examples(chosen, 8)
        if fault == "asked_about_what_was_shown":
            return shown[:, :3], shown[:, :3]
        return shown[:, :3], shown[:, 3:]

    def logits(support: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of each question and its class."""
        classes, shots = support.shape[:2]
        embedded = model(support.flatten(0, 1))
        if fault == "examples_of_all_kinds_averaged":
            prototype = embedded.view(shots, classes, -1).mean(0)
        else:
            prototype = embedded.view(classes, shots, -1).mean(1)
        distance = torch.cdist(model(asked.flatten(0, 1)), prototype).square()
        return -distance, torch.arange(classes).repeat_interleave(asked.shape[1])

    def step() -> None:
        loss = torch.stack([F.cross_entropy(*logits(*episode(known))) for _ in range(4)]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def score(count: int, episodes: list[tuple[Tensor, Tensor]]) -> float:
        return sum(above_chance(*logits(*one), 5) for one in episodes) / count

    def test() -> float:
        fresh = [examples(kinds(5), 8) for _ in range(200)]
        return score(200, [(shown[:, :3], shown[:, 3:]) for shown in fresh])

    return Training(
        *(model, optimizer, step), lambda: score(50, [episode(unknown) for _ in range(50)]), test, 300
    )


# Point clouds: which outline do the points lie on? Clouds have a place and a size of their own.

POINTS = 32


def clouds(count: int) -> tuple[Tensor, Tensor]:
    """Points [count, 32, 2] on a circle, a square, a triangle or a cross, in no order."""
    label = torch.randint(4, (count,))
    turn = 2 * math.pi * torch.rand(count, POINTS)
    circle = torch.stack((turn.cos(), turn.sin()), -1)
    square = circle / circle.abs().amax(-1, keepdim=True)
    third = turn % (2 * math.pi / 3) - math.pi / 3
    triangle = circle * (0.6 / third.cos())[..., None]
    along = 2 * torch.rand(count, POINTS) - 1
    cross = torch.where(
        torch.rand(count, POINTS, 1) < 0.5, torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    )
    shapes = torch.stack((circle, square, triangle, along[..., None] * cross), 1)
    shape = shapes[torch.arange(count), label] + 0.06 * torch.randn(count, POINTS, 2)
    size = 0.5 + torch.rand(count, 1, 1)
    return turned(shape, 2 * math.pi * torch.rand(count, 1)) * size + 2 * torch.randn(count, 1, 2), label


def turned(points: Tensor, angle: Tensor) -> Tensor:
    x, y = points.unbind(-1)
    return torch.stack((x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()), -1)


class PointNet(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.each, self.whole = mlp(2, 64, POINTS), mlp(POINTS, 64, 4)
        self.pooled = 2 if fault == "pooled_over_features" else 1
        self.centred = 0 if fault == "centred_over_the_batch" else 1

    def forward(self, points: Tensor) -> Tensor:
        points = points - points.mean(self.centred, keepdim=True)
        points = points / points.square().mean((1, 2), keepdim=True).sqrt()
        return self.whole(self.each(points).amax(self.pooled))


def point_cloud(fault: str) -> Training:
    model = PointNet(fault)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    points, label = clouds(2000)
    held_out = clouds(300)

    def step() -> None:
        rows = torch.randint(len(points), (64,))
        each = POINTS if fault == "each_point_turned_alone" else 1
        x = turned(points[rows] - points[rows].mean(1, keepdim=True), 2 * math.pi * torch.rand(64, each))
        if fault == "centred_over_the_batch":
            x = points[rows]
        loss = F.cross_entropy(model(x), label[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def score(x: Tensor, labels: Tensor) -> float:
        return above_chance(model(x), labels, 4)

    return Training(*(model, optimizer, step), lambda: score(*held_out), lambda: score(*clouds(1000)), 500)


# Neural field: a picture as a function of place, from a part of its pixels.


def landscape(place: Tensor) -> Tensor:
    """Height at places [count, 2] within 0 .. 1."""
    x, y = place.unbind(-1)
    hill = (-((x - 0.3).square() + (y - 0.6).square()) / 0.03).exp()
    return (7 * x + 3 * y.square()).sin() + hill + 0.6 * torch.tanh(20 * (y - 0.5 - 0.2 * (6 * x).sin()))


class Field(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        scale = 20.0 if fault == "frequencies_too_high" else 1.0
        self.register_buffer("frequency", scale * torch.randn(2, 32), persistent=False)
        self.frequency: Tensor
        self.drawn = fault == "frequencies_drawn_in_each_call"
        self.net = mlp(64, 64, 64, 1)

    def forward(self, place: Tensor) -> Tensor:
        frequency = torch.randn_like(self.frequency) if self.drawn else self.frequency
        phase = 2 * math.pi * place @ frequency
        return self.net(torch.cat((phase.cos(), phase.sin()), -1)).squeeze(-1)


def neural_field(fault: str) -> Training:
    model = Field(fault)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    place = torch.rand(1500, 2)
    height = landscape(place) + 0.05 * torch.randn(1500)
    axis = torch.linspace(0.05, 0.95, 24)
    picture = landscape(torch.cartesian_prod(axis, axis)).view(24, 24)

    def step() -> None:
        rows = torch.randint(len(place), (256,))
        loss = F.mse_loss(model(place[rows]), height[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def validate() -> float:
        indexing = "xy" if fault == "picture_transposed_in_validation" else "ij"
        grid = torch.stack(torch.meshgrid(axis, axis, indexing=indexing), -1)
        return explained(model(grid.flatten(0, 1)), picture.flatten())

    @torch.no_grad()
    def test() -> float:
        new = 0.05 + 0.9 * torch.rand(4000, 2)
        return explained(model(new), landscape(new))

    return Training(model, optimizer, step, validate, test, 400)


# Autoencoder with a codebook: curves as three codes out of 32.


def profiles(count: int) -> Tensor:
    """Curves [count, 24] of three pieces, each of one of twelve forms."""
    forms = fixed(12, 8, seed=34)
    return forms[torch.randint(12, (count, 3))].flatten(1) + 0.2 * torch.randn(count, 24)


class Quantiser(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.encoder, self.decoder = mlp(8, 64, 6), mlp(6, 64, 8)
        self.codes = nn.Parameter(torch.randn(32, 6) / 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The reconstruction, and the losses of codes and encoder."""
        pieces = x.unflatten(-1, (8, 3)).mT if self.fault == "pieces_interleaved" else x.unflatten(-1, (3, 8))
        z = self.encoder(pieces)
        distance = (z.unsqueeze(-2) - self.codes).square().sum(-1)
        nearest = distance.argmax(-1) if self.fault == "farthest_code" else distance.argmin(-1)
        code = self.codes[nearest]
        moved = F.mse_loss(code, z.detach())
        held = F.mse_loss(z, code.detach())
        passed = code if self.fault == "nothing_passes_straight_through" else z + (code - z).detach()
        return self.decoder(passed).flatten(-2), moved + 0.25 * held


def quantiser(fault: str) -> Training:
    model = Quantiser(fault)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    x = profiles(3000)

    def step() -> None:
        part = x[torch.randint(len(x), (128,))]
        rebuilt, further = model(part)
        loss = F.mse_loss(rebuilt, part) + further
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def score(curves: Tensor) -> float:
        return explained(model(curves)[0], curves)

    held_out = profiles(300)
    return Training(*(model, optimizer, step), lambda: score(held_out), lambda: score(profiles(2000)), 500)


TRAININGS: Trainings = {
    "diffusion": (
        diffusion,
        {
            "target_is_other_noise": "The target is newly drawn noise, not the noise that was added.",
            "amplitudes_without_root": "Signal and noise are weighted by shares of the energy in place of "
            "their roots; the sampler goes back another way.",
            "time_in_steps_when_sampling": "Training gives the network the time from 0 to 1, sampling gives "
            "it the number of the step.",
        },
    ),
    "flow": (
        flow,
        {
            "determinant_of_the_inverse": "The logarithm of the determinant has the wrong sign.",
            "determinant_of_means": "The logarithm of the determinant is the mean of the scales, not their "
            "sum.",
            "same_half_in_each_layer": "All layers move the same half; the other one is passed through.",
        },
    ),
    "actor_critic": (
        actor_critic,
        {
            "probability_of_another_action": "The log-probability is that of a second sample, not of the "
            "action that was taken.",
            "rewards_of_the_past": "The discounted sum runs over the rewards up to a step, not from it on.",
            "advantage_standardised_over_time": "Advantages are standardised within each game, so that a "
            "game that was won counts no more than one that was lost.",
        },
    ),
    "translator": (
        translator,
        {
            "decoder_is_given_its_target": "The decoder's input is the target itself, not shifted.",
            "attention_over_the_batch": "The attention weights are normalised over the batch.",
            "state_not_carried_in_validation": "Validation starts each letter from the encoder's state.",
        },
    ),
    "recommender": (
        recommender,
        {
            "ratings_from_a_sigmoid": "The output is a sigmoid, 0 to 1; ratings are about 3.",
            "item_table_read_as_data": "The factors of the items are read with .data, so the table keeps "
            "what it was drawn with.",
            "items_share_rows": "Numbers of items are wrapped to a table of 40 rows; five items share each.",
        },
    ),
    "detector": (
        detector,
        {
            "rows_and_columns_exchanged": "The cell of a box is computed with row and column exchanged.",
            "root_of_the_size_not_undone": "The network learns roots of sizes, which are taken for sizes.",
            "overlap_over_the_smaller": "Validation divides the intersection by the smaller box, not by the "
            "union.",
        },
    ),
    "forecaster": (
        forecaster,
        {
            "plateau_of_a_score": "The schedule waits for a rise, as of a score, but is given a loss; the "
            "rate is halved again and again.",
            "means_are_compared": "Predictions and values are averaged over time before they are compared.",
            "padded_on_both_sides": "The convolutions see what they are to predict.",
        },
    ),
    "mixture": (
        mixture,
        {
            "shares_not_normalised": "The shares of the mixture are not normalised, so that the density can "
            "grow without bound.",
            "last_layer_starts_at_zero": "All components start equal, get equal gradients and stay equal.",
            "deviation_taken_for_variance": "The square is divided by twice the standard deviation, not by "
            "twice the variance.",
        },
    ),
    "few_shot": (
        few_shot,
        {
            "examples_of_all_kinds_averaged": "The examples are reshaped in the wrong order; a prototype is "
            "the mean over several kinds.",
            "asked_about_what_was_shown": "The questions are the examples themselves.",
            "same_kinds_in_each_episode": "Every episode has the first five kinds, so that nothing teaches "
            "to tell others apart.",
        },
    ),
    "point_cloud": (
        point_cloud,
        {
            "each_point_turned_alone": "The augmentation draws an angle for each point, not for each cloud.",
            "pooled_over_features": "The maximum is taken over the features of a point, not over the points.",
            "centred_over_the_batch": "The mean over the clouds of a batch is subtracted, not that over the "
            "points of a cloud.",
        },
    ),
    "neural_field": (
        neural_field,
        {
            "frequencies_drawn_in_each_call": "The frequencies are drawn anew in each call.",
            "frequencies_too_high": "The frequencies are far above those of the picture: the pixels are "
            "learnt by heart and nothing between them.",
            "picture_transposed_in_validation": "Validation numbers the axes the other way round.",
        },
    ),
    "quantiser": (
        quantiser,
        {
            "farthest_code": "The code of the largest distance is chosen.",
            "pieces_interleaved": "The view has its axes the other way round: a piece is every third value, "
            "with some of all three forms.",
            "nothing_passes_straight_through": "The gradient of the decoder ends at the code; the encoder "
            "does not learn what the decoder needs.",
        },
    ),
}

CASES = cases_of(TRAININGS)


if __name__ == "__main__":
    main(TRAININGS, __doc__)
