"""Small training loops as users write them, healthy and with faults, for ``rismusic.watch``.

Their classes follow published studies of faults in deep learning (Islam et al. 2019, Humbatova et al. 2020)
and the symptoms that UMLAUT, AutoTrainer, DeepLocalize and DeepDiagnosis look for. A fault changes the job
before it runs; the loop is plain PyTorch.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from module_faults import Attending, Convolutional, Variational, mlp, vae_loss

N = 32


@dataclass
class Job:
    """A training: what the plain loop of :meth:`run` uses."""

    model: Any
    data: tuple[Tensor, ...]
    loss: Callable[..., Tensor]
    optimizer: Callable[[Any], torch.optim.Optimizer]
    epochs: int = 6
    batch: int = N
    shuffle: bool = True
    zero: bool = True
    accumulate: int = 1
    evaluates: bool = True
    trains: bool = True
    validates: bool = True
    index: Callable[[Tensor], Tensor] = lambda index: index
    prepare: Callable[..., Any] = lambda *batch: batch
    backward: Callable[[Tensor], None] = lambda loss: loss.backward()
    before_step: Callable[[Any, Any], None] = lambda model, optimizer: None
    after_step: Callable[[Any, Any], None] = lambda model, optimizer: None
    after_epoch: Callable[[Any, Any], None] = lambda model, optimizer: None
    loop: Callable[[Job], None] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def parts(self) -> list[nn.Module]:
        return list(self.model.values()) if isinstance(self.model, dict) else [self.model]

    def run(self) -> None:
        """Train."""
        if self.loop is not None:
            self.loop(self)
            return
        optimizer = self.extra["optimizer"]
        rows = len(self.data[0])
        for _ in range(self.epochs):
            for part in self.parts():
                part.train(self.trains)
            # The first batch is held out for validation.
            train = rows - self.batch if rows > 2 * self.batch else rows
            order = torch.randperm(train) if self.shuffle else torch.arange(train)
            order = order + (rows - train)
            for step, start in enumerate(range(0, train, self.batch)):
                index = order[start : start + self.batch]
                batch = self.prepare(self.data[0][index], *(one[self.index(index)] for one in self.data[1:]))
                loss = self.loss(self.model, *batch) / self.accumulate
                if self.zero and step % self.accumulate == 0:
                    optimizer.zero_grad()
                self.backward(loss)
                if (step + 1) % self.accumulate == 0:
                    self.before_step(self.model, optimizer)
                    optimizer.step()
                    self.after_step(self.model, optimizer)
            if self.evaluates:
                for part in self.parts():
                    part.train(not self.validates)
                with torch.no_grad():
                    self.loss(self.model, *self.prepare(*(one[: self.batch] for one in self.data)))
            self.after_epoch(self.model, optimizer)


@dataclass(frozen=True)
class LoopCase:
    """A loop and its faults: name, regular expression of the cause, and change of the job."""

    name: str
    make: Callable[[], Job]
    faults: tuple[tuple[str, str, Callable[[Job], object]], ...] = ()

    def trials(self) -> Iterator[tuple[str, str | None, Callable[[], Any]]]:
        """Name, regular expression and diagnosis: first of the healthy loop, then of each fault."""
        yield self.name, None, lambda: self._watched(lambda _: None)
        for name, names, change in self.faults:
            yield f"{self.name}: {name}", names, partial(self._watched, change)

    def _watched(self, change: Callable[[Job], object]) -> Any:
        from rismusic.doctor.watch import watch

        torch.set_num_threads(1)
        torch.manual_seed(0)
        job = self.make()
        change(job)
        parts = job.parts()
        optimizer = job.optimizer([p for part in parts for p in part.parameters() if p.requires_grad])
        job.extra["optimizer"] = optimizer
        optimizers = job.extra.get("optimizers", [optimizer])
        with watch(job.model, optimizers, say=lambda _: None) as w:
            job.run()
        return w.diagnosis


def adam(rate: float, **given: Any) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.Adam(parameters, lr=rate, **given)


def sgd(rate: float, **given: Any) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr=rate, **given)


def sets(**changes: Any) -> Callable[[Job], None]:
    def change(job: Job) -> None:
        for name, value in changes.items():
            setattr(job, name, value)

    return change


def with_loss(make: Callable[[Callable[..., Tensor]], Callable[..., Tensor]]) -> Callable[[Job], None]:
    def change(job: Job) -> None:
        job.loss = make(job.loss)

    return change


def points(rows: int = 512, width: int = 8) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, width)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def classifier() -> Job:
    model = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 3))
    return Job(model, points(), lambda m, x, y: F.cross_entropy(m(x), y), adam(3e-3))


def shuffled_labels(job: Job) -> None:
    job.data = (job.data[0], *(one[torch.randperm(len(one))] for one in job.data[1:]))
    job.epochs = 8


def sorted_data(job: Job) -> None:
    order = job.data[-1].argsort()
    job.data = tuple(one[order] for one in job.data)
    job.shuffle = False


def fresh_weights(model: Any, optimizer: Any) -> None:
    for part in model.modules():
        if isinstance(part, (nn.Linear, nn.Conv2d)):
            part.reset_parameters()


def fresh_optimizer(job: Job) -> None:
    def loop(own: Job) -> None:
        for _ in range(4):
            for start in range(0, len(own.data[0]), own.batch):
                optimizer = own.optimizer(own.model.parameters())
                loss = own.loss(own.model, *(one[start : start + own.batch] for one in own.data))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    job.loop = loop
    job.extra["optimizers"] = ()


def zero_after_backward(model: Any, optimizer: Any) -> None:
    optimizer.zero_grad()


def reversed_gradient(model: Any, optimizer: Any) -> None:
    for p in model.parameters():
        if p.grad is not None:
            p.grad.neg_()


def clipped(limit: float) -> Callable[[Any, Any], None]:
    def clip(model: Any, optimizer: Any) -> None:
        del optimizer
        nn.utils.clip_grad_norm_(model.parameters(), limit)

    return clip


def always_dropped(job: Job) -> None:
    job.model[3].forward = lambda x: F.dropout(x, 0.2)


def grown_rate(model: Any, optimizer: Any) -> None:
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
        group["lr"] *= 1.05


def one_batch(job: Job) -> None:
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*job.data), batch_size=N)

    def loop(own: Job) -> None:
        optimizer = own.extra["optimizer"]
        batches = loader
        for _ in range(60):
            batch = next(iter(batches))
            optimizer.zero_grad()
            own.loss(own.model, *batch).backward()
            optimizer.step()

    job.loop = loop


def regressor() -> Job:
    x = torch.randn(512, 6)
    y = x[:, :1].sin() + x[:, 1:2] * x[:, 2:3]
    return Job(
        mlp(6, 32, 32, 1, activation=nn.Tanh),
        (x, y),
        lambda m, x, y: F.mse_loss(m(x), y),
        sgd(0.05, momentum=0.9),
    )


class PlainList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = [nn.Linear(6, 32), nn.Linear(32, 32)]
        self.head = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            x = torch.tanh(layer(x))
        return self.head(x)


def plain_list(job: Job) -> None:
    job.model = PlainList()


def in_place(job: Job) -> None:
    def loop(own: Job) -> None:
        optimizer = own.extra["optimizer"]
        for _ in range(6):
            for start in range(0, len(own.data[0]), N):
                x, y = (one[start : start + N] for one in own.data)
                x *= 1.5
                optimizer.zero_grad()
                own.loss(own.model, x, y).backward()
                optimizer.step()

    job.loop = loop


def images() -> Job:
    x, y = torch.randn(384, 1, 8, 8), torch.arange(384) % 4
    x[torch.arange(384), 0, y, y] += 3
    return Job(Convolutional(norm=True), (x, y), lambda m, x, y: F.cross_entropy(m(x), y), adam(5e-3))


def flattened(job: Job) -> None:
    head = nn.Linear(16 * 16, 4)
    model = job.model
    model.head = head
    model.forward = lambda x: head(
        F.relu(model.b(F.relu(model.norm(model.a(x))))).transpose(0, 1).reshape(len(x), -1)
    )


class Recurrent(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, batch_first: bool = True, last: bool = True) -> None:
        super().__init__()
        self.core, self.head = nn.LSTM(inputs, 24, batch_first=batch_first), nn.Linear(24, outputs)
        self.last, self.length = last, 10**6

    def forward(self, x: Tensor) -> Tensor:
        h = self.core(x[:, : self.length])[0]
        return self.head(h[:, -1] if self.last else h)


def sequence() -> Job:
    x = torch.randn(384, 10, 4)
    y = x[:, :, :1].mean(1) * 3
    return Job(Recurrent(4, 1), (x, y), lambda m, x, y: F.mse_loss(m(x), y), adam(1e-2))


def tokens(rows: int = 384, length: int = 12) -> Tensor:
    return (
        torch.arange(length)[None] * torch.randint(1, 4, (rows, 1)) + torch.randint(0, 20, (rows, 1))
    ) % 20


class Language(nn.Module):
    def __init__(self, *, batch_first: bool = True, both: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.core = nn.GRU(16, 32, batch_first=batch_first, bidirectional=both)
        self.head = nn.Linear(64 if both else 32, 20)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.core(self.embed(x))[0])


def language() -> Job:
    return Job(
        Language(),
        (tokens(),),
        lambda m, t: F.cross_entropy(m(t[:, :-1]).reshape(-1, 20), t[:, 1:].reshape(-1)),
        adam(1e-2),
    )


def time_major() -> Job:
    """Sequences first: the transposed batch goes into a recurrent layer without batch_first."""
    return Job(
        Language(batch_first=False),
        (tokens(),),
        lambda m, t: F.cross_entropy(m(t.T[:-1]).reshape(-1, 20), t.T[1:].reshape(-1)),
        adam(1e-2),
    )


class Reader(nn.Module):
    """A transformer on padded tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16, padding_idx=0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.core, self.head = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(16, 3)
        self.inverted = False

    def forward(self, x: Tensor) -> Tensor:
        pad = x != 0 if self.inverted else x == 0
        h = self.core(self.embed(x), src_key_padding_mask=pad)
        kept = (~pad).float()[:, :, None]
        return self.head((h * kept).sum(1) / kept.sum(1).clamp_min(1))


def padded() -> Job:
    x = torch.randint(1, 20, (384, 10))
    y = (x[:, 0] < 7).long() + (x[:, 1] < 10).long()
    x[torch.arange(10)[None] >= torch.randint(3, 9, (384, 1))] = 0
    return Job(Reader(), (x, y), lambda m, x, y: F.cross_entropy(m(x), y), adam(5e-3))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(20, 16), nn.Parameter(0.02 * torch.randn(12, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.core, self.head = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(16, 20)
        self.causal = True

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length) if self.causal else None
        return self.head(self.core(self.embed(x) + self.place[:length], mask=mask))


def decoder() -> Job:
    return language_of(Decoder())


def language_of(model: nn.Module) -> Job:
    job = language()
    job.model = model
    job.optimizer = adam(5e-3)
    return job


def not_shifted(job: Job) -> None:
    job.loss = lambda m, t: F.cross_entropy(m(t[:, :-1]).reshape(-1, 20), t[:, :-1].reshape(-1))


def vae() -> Job:
    x = torch.randn(512, 2) @ torch.randn(2, 8)
    return Job(Variational(), (x,), vae_loss, adam(5e-3))


def heavy_divergence(job: Job) -> None:
    def loss(m: Any, x: Tensor) -> Tensor:
        y, mean, log_variance = m(x)
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean() / 2
        return (y - x).square().mean() + 50 * divergence

    job.loss = loss


def mean_ignored(job: Job) -> None:
    def forward(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = job.model.mean(x), job.model.spread(x)
        return job.model.decode((log_variance / 2).exp() * torch.randn_like(mean)), mean, log_variance

    job.model.mean, job.model.spread = mlp(8, 32, 4), mlp(8, 32, 4)
    del job.model.encode
    job.model.forward = forward


def adversarial() -> Job:
    parts = {"g": mlp(4, 16, 2), "d": mlp(2, 16, 1, activation=nn.LeakyReLU)}
    optimizers = [torch.optim.Adam(part.parameters(), lr=1e-3) for part in parts.values()]

    def loop(job: Job) -> None:
        for _ in range(120):
            real, fake = torch.randn(N, 2) * 0.3 + 1, parts["g"](torch.randn(N, 4))
            loss = F.softplus(-parts["d"](real)).mean() + F.softplus(parts["d"](fake.detach())).mean()
            optimizers[1].zero_grad()
            loss.backward()
            optimizers[1].step()
            optimizers[0].zero_grad()
            F.softplus(-parts["d"](parts["g"](torch.randn(N, 4)))).mean().backward()
            optimizers[0].step()

    return Job(parts, (), lambda: torch.zeros(()), adam(1e-3), loop=loop, extra={"optimizers": optimizers})


def contrastive() -> Job:
    x = torch.randn(512, 8)

    def loss(m: Any, a: Tensor, b: Tensor) -> Tensor:
        one, two = F.normalize(m(a), dim=1), F.normalize(m(b), dim=1)
        return F.cross_entropy(one @ two.T / 0.2, torch.arange(len(one)))

    return Job(mlp(8, 32, 8), (x, x + 0.2 * torch.randn(512, 8)), loss, adam(3e-3))


def siamese() -> Job:
    a, same = torch.randn(512, 8), torch.randint(0, 2, (512,)).float()
    b = torch.where(same[:, None] > 0, a + 0.1 * torch.randn(512, 8), torch.randn(512, 8))

    def loss(m: Any, a: Tensor, b: Tensor, same: Tensor) -> Tensor:
        d = (m(a) - m(b)).norm(dim=1)
        return (same * d.square() + (1 - same) * F.relu(2 - d).square()).mean()

    return Job(mlp(8, 32, 4), (a, b, same), loss, adam(3e-3))


class ComplexLinear(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs, dtype=torch.complex64) / inputs**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class ComplexNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = ComplexLinear(6, 24), ComplexLinear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(torch.polar(torch.tanh(h.abs()), h.angle()))


def complex_valued() -> Job:
    x = torch.randn(512, 6, dtype=torch.complex64)
    y = x[:, :2] * 0.7j + x[:, 2:4]
    return Job(ComplexNet(), (x, y), lambda m, x, y: (m(x) - y).abs().square().mean(), adam(1e-2))


def fine_tuned() -> Job:
    backbone = mlp(8, 32, 32).requires_grad_(False)
    model = nn.Sequential(backbone, nn.ReLU(), nn.Linear(32, 3))
    return Job(model, points(), lambda m, x, y: F.cross_entropy(m(x), y), adam(1e-2))


def accumulated() -> Job:
    job = classifier()
    job.batch, job.accumulate, job.epochs = 16, 2, 8
    return job


def mixed_precision() -> Job:
    def loss(m: Any, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return F.cross_entropy(m(x), y)

    return Job(mlp(8, 32, 32, 3), points(), loss, adam(3e-3))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.kind, self.size = mlp(8, 32, 32), nn.Linear(32, 3), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.relu(self.body(x))
        return self.kind(h), self.size(h)


def two_tasks() -> Job:
    def loss(m: Any, x: Tensor, kind: Tensor, size: Tensor) -> Tensor:
        one, two = m(x)
        return F.cross_entropy(one, kind) + F.mse_loss(two, size)

    x, y = points()
    return Job(Two(), (x, y, x[:, 2:3] + x[:, 3:4]), loss, adam(5e-3))


def millimetres(job: Job) -> None:
    job.data = (*job.data[:2], job.data[2] * 1000)


def one_detached(job: Job) -> None:
    def loss(m: Any, x: Tensor, kind: Tensor, size: Tensor) -> Tensor:
        one, two = m(x)
        return F.cross_entropy(one, kind) + F.mse_loss(two, size).detach()

    job.loss = loss


def q_learning() -> Job:
    net = mlp(4, 32, 2)
    target = copy.deepcopy(net).requires_grad_(False)
    x, action = torch.randn(512, 4), torch.randint(0, 2, (512,))
    reward = torch.where(action == 0, x[:, 0], -x[:, 0])
    count = itertools.count()

    def loss(m: Any, x: Tensor, after: Tensor, action: Tensor, reward: Tensor) -> Tensor:
        with torch.no_grad():
            goal = reward + 0.5 * target(after).amax(1)
        return F.smooth_l1_loss(m(x).gather(1, action[:, None])[:, 0], goal)

    def sync(model: Any, optimizer: Any) -> None:
        if next(count) % 20 == 0:
            target.load_state_dict(model.state_dict())

    return Job(net, (x, torch.randn(512, 4), action, reward), loss, adam(3e-3), after_step=sync)


def policy() -> Job:
    net = mlp(4, 32, 2, activation=nn.Tanh)

    def loop(job: Job) -> None:
        optimizer = job.extra["optimizer"]
        for _ in range(100):
            x = torch.randn(N, 4)
            choice = torch.distributions.Categorical(logits=net(x))
            action = choice.sample()
            reward = torch.where((action == 1) == (x[:, 0] > 0), 1.0, -1.0)
            loss = (
                -(choice.log_prob(action) * (reward - reward.mean())).mean() - 0.01 * choice.entropy().mean()
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return Job(net, (), lambda: torch.zeros(()), adam(3e-3), loop=loop)


def segmentation() -> Job:
    x = torch.randn(256, 1, 8, 8)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))
    return Job(
        model, (x, (x > 0.5).float()), lambda m, x, y: F.binary_cross_entropy_with_logits(m(x), y), adam(1e-2)
    )


def denoiser() -> Job:
    x = torch.randn(512, 2) @ torch.randn(2, 10)
    return Job(
        mlp(10, 32, 4, 32, 10, activation=nn.GELU),
        (x,),
        lambda m, x: F.mse_loss(m(x + 0.3 * torch.randn_like(x)), x),
        adam(5e-3),
    )


def graph() -> Job:
    """One graph in every step: nodes depend on each other through a matrix."""
    adjacency = (torch.rand(64, 64) < 0.1).float() + torch.eye(64)
    adjacency = adjacency / adjacency.sum(1, keepdim=True)
    x = torch.randn(64, 8)
    y = ((adjacency @ x)[:, 0] > 0).long()
    one, two = nn.Linear(8, 16), nn.Linear(16, 2)
    model = nn.ModuleDict({"one": one, "two": two})
    job = Job(
        model,
        (x, y),
        lambda m, x, y: F.cross_entropy(adjacency @ two(F.relu(adjacency @ one(x))), y),
        adam(1e-2),
    )
    job.batch, job.epochs, job.shuffle = 64, 60, False
    return job


def curriculum() -> Job:
    """Easy samples first, in the same order in each epoch."""
    job = classifier()
    x, y = job.data
    order = x[:, :2].abs().amin(1).argsort(descending=True)
    job.data, job.shuffle = (x[order], y[order]), False
    return job


def likelihood() -> Job:
    """A negative log likelihood, below zero."""

    def loss(m: Any, x: Tensor, y: Tensor) -> Tensor:
        mean, log_scale = m(x).chunk(2, 1)
        return (((y - mean) / log_scale.exp()).square() / 2 + log_scale).mean()

    x = torch.randn(512, 4)
    return Job(
        mlp(4, 32, 2, activation=nn.Tanh), (x, 0.1 * x[:, :1] + 0.01 * torch.randn(512, 1)), loss, adam(5e-3)
    )


def physics() -> Job:
    def loss(m: Any, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_(True)
        y = m(x)
        slope = torch.autograd.grad(y.sum(), x, create_graph=True)[0]
        return (slope + y).square().mean() + (m(torch.zeros(1, 1)) - 1).square().mean()

    return Job(mlp(1, 32, 1, activation=nn.Tanh), (torch.rand(256, 1),), loss, adam(1e-2), evaluates=False)


def forecast() -> Job:
    """The next value of a wave."""
    t = torch.arange(16)[None] * (0.3 + 0.5 * torch.rand(384, 1)) + 6 * torch.rand(384, 1)
    wave = t.sin()[:, :, None]
    model = Recurrent(1, 1, last=False)
    return Job(model, (wave,), lambda m, w: F.mse_loss(m(w[:, :-1]), w[:, 1:]), adam(1e-2))


class Factors(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(40, 8), nn.Embedding(30, 8)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return (self.users(user) * self.items(item)).sum(1)


def recommender() -> Job:
    user, item = torch.randint(0, 40, (1024,)), torch.randint(0, 30, (1024,))
    rating = torch.randn(40, 2)[user].mul(torch.randn(30, 2)[item]).sum(1)
    return Job(Factors(), (user, item, rating), lambda m, u, i, r: F.mse_loss(m(u, i), r), adam(2e-2))


def teacher() -> Job:
    """Mean teacher: a moving average of the network gives targets for a second term."""
    model = mlp(8, 32, 3)
    average = copy.deepcopy(model).requires_grad_(False)

    def loss(m: Any, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            goal = average(x + 0.1 * torch.randn_like(x)).softmax(1)
        return F.cross_entropy(m(x), y) + 0.1 * F.mse_loss(m(x).softmax(1), goal)

    def follow(model: Any, optimizer: Any) -> None:
        with torch.no_grad():
            for one, two in zip(average.parameters(), model.parameters(), strict=True):
                one.lerp_(two, 0.05)

    return Job(model, points(), loss, adam(3e-3), after_step=follow)


def with_loader() -> Job:
    x, y = points()
    job = classifier()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=N, shuffle=True)

    def loop(own: Job) -> None:
        optimizer = own.extra["optimizer"]
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=5 * len(loader))
        for _ in range(5):
            own.model.train()
            for batch in loader:
                optimizer.zero_grad()
                own.loss(own.model, *batch).backward()
                nn.utils.clip_grad_norm_(own.model.parameters(), 1.0)
                optimizer.step()
                schedule.step()

    job.loop = loop
    return job


def diffusion() -> Job:
    """The network predicts the noise that was added."""
    model = mlp(3, 64, 64, 2, activation=nn.SiLU)
    x = torch.randn(512, 2) * torch.tensor([1.0, 0.2])

    def loss(m: Any, x: Tensor) -> Tensor:
        t = torch.rand(len(x), 1)
        noise = torch.randn_like(x)
        noisy = (t * math.pi / 2).cos() * x + (t * math.pi / 2).sin() * noise
        return F.mse_loss(m(torch.cat([noisy, t], 1)), noise)

    return Job(model, (x,), loss, adam(3e-3), epochs=8)


def attention_over_batch(job: Job) -> None:
    job.model = Attending(axis=0)


def transformer() -> Job:
    x = torch.randn(384, 6, 4)
    y = (x[:, :, 0].mean(1) > 0).long()
    return Job(Attending(), (x, y), lambda m, x, y: F.cross_entropy(m(x), y), adam(3e-3))


def characters() -> Job:
    """The state of a recurrent network is carried from batch to batch, and detached."""
    text = torch.arange(2400).mul(7).remainder(23).view(8, 300)
    model = nn.ModuleDict(
        {"embed": nn.Embedding(23, 12), "core": nn.GRU(12, 24, batch_first=True), "head": nn.Linear(24, 23)}
    )

    def loop(job: Job) -> None:
        optimizer, state = job.extra["optimizer"], None
        for _ in range(4):
            for start in range(0, 280, 14):
                x, y = text[:, start : start + 14], text[:, start + 1 : start + 15]
                out, state = model["core"](model["embed"](x), None if state is None else state.detach())
                loss = F.cross_entropy(model["head"](out).transpose(1, 2), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    return Job(model, (), lambda: torch.zeros(()), adam(1e-2), loop=loop)


def closure() -> Job:
    """LBFGS, which calls a closure."""
    job = regressor()

    def loop(own: Job) -> None:
        optimizer = own.extra["optimizer"]
        x, y = own.data

        def step() -> Tensor:
            optimizer.zero_grad()
            loss = own.loss(own.model, x, y)
            loss.backward()
            return loss

        for _ in range(6):
            optimizer.step(step)

    job.loop, job.optimizer = loop, lambda p: torch.optim.LBFGS(p, max_iter=8)
    return job


class Combined(nn.Module):
    """The loss is calculated in the forward pass, as in Hugging Face models."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(8, 32, 3)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.body(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def loss_inside() -> Job:
    return Job(Combined(), points(), lambda m, x, y: m(x, labels=y)["loss"], adam(5e-3))


def critic() -> Job:
    """A Wasserstein critic whose weights are clipped after each step."""
    parts = {"g": mlp(4, 16, 2), "d": mlp(2, 16, 1)}
    optimizers = [torch.optim.RMSprop(part.parameters(), lr=1e-3) for part in parts.values()]

    def loop(job: Job) -> None:
        for step in range(100):
            real = torch.randn(N, 2) * 0.3 + 1
            with torch.no_grad():
                fake = parts["g"](torch.randn(N, 4))
            optimizers[1].zero_grad()
            (parts["d"](fake).mean() - parts["d"](real).mean()).backward()
            optimizers[1].step()
            with torch.no_grad():
                for p in parts["d"].parameters():
                    p.clamp_(-0.1, 0.1)
            if step % 5 == 0:
                optimizers[0].zero_grad()
                (-parts["d"](parts["g"](torch.randn(N, 4))).mean()).backward()
                optimizers[0].step()

    return Job(parts, (), lambda: torch.zeros(()), adam(1e-3), loop=loop, extra={"optimizers": optimizers})


class Patches(nn.Module):
    """A transformer on patches of images, cut with reshapes."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.place = nn.Linear(16, 24), nn.Parameter(0.02 * torch.randn(5, 24))
        self.token = nn.Parameter(torch.zeros(1, 1, 24))
        layer = nn.TransformerEncoderLayer(24, 2, 48, dropout=0.1, batch_first=True)
        self.core, self.head = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(len(x), 2, 4, 2, 4).permute(0, 1, 3, 2, 4).reshape(len(x), 4, 16)
        x = torch.cat([self.token.expand(len(x), -1, -1), self.read(x)], 1) + self.place
        return self.head(self.core(x)[:, 0])


def patches() -> Job:
    job = images()
    job.model, job.optimizer = Patches(), adam(3e-3)
    return job


def replayed() -> Job:
    """Deep Q learning with an environment in plain Python and a replay buffer."""
    net = mlp(3, 32, 2)
    target = copy.deepcopy(net)

    def loop(job: Job) -> None:
        optimizer, memory, state = job.extra["optimizer"], [], torch.randn(3)
        for step in range(220):
            if torch.rand(()) < 0.3:
                action = int(torch.randint(0, 2, ()))
            else:
                with torch.no_grad():
                    action = int(net(state[None]).argmax())
            reward = float(state[0] if action else -state[0])
            after = torch.randn(3)
            memory.append((state, action, reward, after))
            state = after
            if len(memory) < 64:
                continue
            rows = [memory[int(k)] for k in torch.randint(0, len(memory), (N,))]
            s, n = torch.stack([r[0] for r in rows]), torch.stack([r[3] for r in rows])
            a, r = torch.tensor([r[1] for r in rows]), torch.tensor([r[2] for r in rows])
            with torch.no_grad():
                goal = r + 0.5 * target(n).amax(1)
            optimizer.zero_grad()
            F.mse_loss(net(s).gather(1, a[:, None])[:, 0], goal).backward()
            optimizer.step()
            if step % 25 == 0 and job.extra.get("sync", True):
                target.load_state_dict(net.state_dict())

    return Job(net, (), lambda: torch.zeros(()), adam(5e-3), loop=loop)


def never_synced(job: Job) -> None:
    job.extra["sync"] = False


class DeepSets(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.each, self.all = mlp(2, 24, 16), mlp(16, 24, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.all((self.each(x) * mask[..., None]).sum(1))[:, 0]


def sets_of_points() -> Job:
    x, mask = torch.randn(384, 6, 2), (torch.rand(384, 6) < 0.7).float()
    y = (x[..., 0] * mask).sum(1)
    return Job(DeepSets(), (x, mask, y), lambda m, x, k, y: F.smooth_l1_loss(m(x, k), y), adam(5e-3))


def masked_words() -> Job:
    """Tokens are hidden, and only those are predicted (ignore_index)."""
    model = nn.Sequential(nn.Embedding(21, 24), Rows(), nn.Linear(24, 20))

    def loss(m: Any, t: Tensor) -> Tensor:
        hidden = torch.rand(t.shape) < 0.3
        return F.cross_entropy(
            m(t.masked_fill(hidden, 20)).transpose(1, 2), t.masked_fill(~hidden, -100), ignore_index=-100
        )

    return Job(model, (tokens(),), loss, adam(1e-2))


class Rows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.core = nn.TransformerEncoderLayer(24, 2, 48, dropout=0.0, batch_first=True)
        self.place = nn.Parameter(0.1 * torch.randn(12, 24))

    def forward(self, x: Tensor) -> Tensor:
        return self.core(x + self.place)


def numpy_data() -> Job:
    """Data drawn in each step, sample weights, and two groups of parameters."""
    model = mlp(4, 32, 1)

    def loop(job: Job) -> None:
        head = [{"params": model[-1].parameters(), "lr": 1e-2}, {"params": model[0].parameters(), "lr": 2e-3}]
        optimizer = torch.optim.AdamW(head, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 120)
        for _ in range(120):
            x = torch.tensor(torch.randn(N, 4).numpy())
            weight = torch.rand(N, 1)
            loss = (weight * (model(x) - x[:, :1].abs()).square()).sum() / weight.sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()

    return Job(model, (), lambda: torch.zeros(()), adam(1e-3), loop=loop, extra={"optimizers": ()})


def flow() -> Job:
    """An affine coupling flow: the loss is a negative log likelihood without targets."""
    parts = nn.ModuleList([mlp(1, 32, 2, activation=nn.Tanh), mlp(1, 32, 2, activation=nn.Tanh)])

    def loss(m: Any, x: Tensor) -> Tensor:
        a, b = x[:, :1], x[:, 1:]
        shift, scale = m[0](a).chunk(2, 1)
        b = (b - shift) * (-scale.tanh()).exp()
        other, width = m[1](b).chunk(2, 1)
        a = (a - other) * (-width.tanh()).exp()
        return (a.square() / 2 + b.square() / 2).mean() + scale.tanh().mean() + width.tanh().mean()

    x = torch.randn(512, 1)
    return Job(parts, (torch.cat([x, x.square() + 0.3 * torch.randn(512, 1)], 1),), loss, adam(5e-3))


MIXED = "samples of a batch affect"
CASES = (
    LoopCase(
        "classifier",
        classifier,
        (
            ("labels of other rows", "other rows|do not belong together", shuffled_labels),
            ("labels shifted by the index", "different rows", sets(index=lambda i: i.roll(1))),
            ("data sorted by label", "not shuffled", sorted_data),
            ("weights initialised again in each epoch", "initialised again", sets(after_epoch=fresh_weights)),
            ("optimizer made anew in each step", "made anew", fresh_optimizer),
            ("zero_grad after backward", "between backward and step", sets(before_step=zero_after_backward)),
            ("gradient reversed", "sign is reversed|wrong sign", sets(before_step=reversed_gradient)),
            ("the same batch in every step", "same batch", one_batch),
            ("evaluation mode", "evaluation mode", sets(trains=False)),
            ("validation in training mode", "validated in training mode", sets(validates=False)),
            (
                "activation missing",
                "activations are missing",
                lambda job: job.model.__setitem__(2, nn.Identity()),
            ),
            ("dropout always on", "dropout stays on", always_dropped),
            (
                "dropout on the output",
                "dropout is applied to the output",
                lambda job: job.model.append(nn.Dropout(0.3)),
            ),
            ("nearly everything dropped", "probability to keep", lambda job: setattr(job.model[3], "p", 0.9)),
            (
                "constant initial weights",
                "the same for all units",
                lambda job: nn.init.constant_(job.model[0].weight, 0.1),
            ),
            (
                "loss of the first sample",
                "part of the samples",
                with_loss(lambda old: lambda m, x, y: F.cross_entropy(m(x)[:1], y[:1])),
            ),
            (
                "labels compared after a wrong test",
                "lose their values",
                with_loss(lambda old: lambda m, x, y: old(m, x, (y > 7).long())),
            ),
            (
                "rate grows",
                "learning rate grows|rate is too high|loss rises",
                sets(after_step=grown_rate, epochs=10),
            ),
            (
                "features minus their mean over the batch, by hand",
                MIXED,
                with_loss(lambda old: lambda m, x, y: F.cross_entropy(m(x) - m(x).mean(0), y)),
            ),
        ),
    ),
    LoopCase(
        "regressor",
        regressor,
        (
            ("data scaled in place", "in place", in_place),
            ("clipped far too low", "clipping is too low", sets(before_step=clipped(1e-4))),
            ("weight decay too high", "weight decay", sets(optimizer=sgd(0.05, weight_decay=5.0))),
            ("maximised", "wrong sign|maximi|away from", sets(optimizer=sgd(0.001, maximize=True))),
            (
                "negative loss",
                "wrong sign|away from|no lower bound",
                with_loss(lambda old: lambda m, x, y: -old(m, x, y)),
            ),
            (
                "one layer for all",
                "one and the same layer",
                lambda job: setattr(
                    job,
                    "model",
                    nn.Sequential(nn.Linear(6, 32), *[nn.Linear(32, 32), nn.Tanh()] * 3, nn.Linear(32, 1)),
                ),
            ),
            ("layers in a plain list", "plain list", plain_list),
            ("sigmoid at the end", "cannot reach", lambda job: job.model.append(nn.Sigmoid())),
            (
                "targets not in the loss",
                "no better|not depend|compares with no",
                with_loss(lambda old: lambda m, x, y: m(x).square().mean()),
            ),
            ("rate far too low", "rate is too low|at fault", sets(optimizer=sgd(1e-7))),
        ),
    ),
    LoopCase(
        "images",
        images,
        (
            ("flattened across the batch", MIXED, flattened),
            (
                "softmax before cross_entropy",
                "double softmax",
                with_loss(lambda old: lambda m, x, y: F.cross_entropy(m(x).softmax(1), y)),
            ),
            (
                "first class only in the loss",
                "lose their values",
                with_loss(lambda old: lambda m, x, y: F.cross_entropy(m(x), y * 0)),
            ),
        ),
    ),
    LoopCase(
        "LSTM",
        sequence,
        (
            (
                "batch_first forgotten",
                MIXED,
                lambda job: setattr(job, "model", Recurrent(4, 1, batch_first=False)),
            ),
            (
                "only the first half is read",
                "no effect",
                lambda job: setattr(job.model, "length", 5),
            ),
            (
                "target of [N] against [N, 1]",
                "broadcast",
                with_loss(lambda old: lambda m, x, y: F.mse_loss(m(x), y[:, 0])),
            ),
        ),
    ),
    LoopCase("sequences first", time_major),
    LoopCase(
        "language model",
        language,
        (
            ("batch_first forgotten", MIXED, lambda job: setattr(job, "model", Language(batch_first=False))),
            (
                "targets flattened in another order",
                "flattened or matched",
                with_loss(
                    lambda old: (
                        lambda m, t: F.cross_entropy(
                            m(t[:, :-1]).transpose(0, 1).reshape(-1, 20), t[:, 1:].reshape(-1)
                        )
                    )
                ),
            ),
            ("targets not shifted", "not shifted", not_shifted),
            (
                "reads in both directions",
                "sees the very target",
                lambda job: setattr(job, "model", Language(both=True)),
            ),
        ),
    ),
    LoopCase(
        "causal transformer",
        decoder,
        (
            ("no causal mask", "sees the very target", lambda job: setattr(job.model, "causal", False)),
            ("targets not shifted", "not shifted", not_shifted),
        ),
    ),
    LoopCase(
        "padded tokens",
        padded,
        (("inverted mask", "mask is inverted", lambda job: setattr(job.model, "inverted", True)),),
    ),
    LoopCase("transformer", transformer, (("batch_first forgotten", MIXED, attention_over_batch),)),
    LoopCase(
        "VAE",
        vae,
        (
            ("divergence too heavy", "outweighs", heavy_divergence),
            ("mean not used", "no term of the loss", mean_ignored),
        ),
    ),
    LoopCase("adversarial", adversarial),
    LoopCase(
        "contrastive",
        contrastive,
        (
            (
                "softmax over the batch",
                "over the samples",
                with_loss(
                    lambda old: lambda m, a, b: old(lambda v: F.normalize(m(v), dim=0).softmax(0), a, b)
                ),
            ),
        ),
    ),
    LoopCase(
        "Siamese",
        siamese,
        (("label reversed", "away|inverted|reversed", sets(prepare=lambda a, b, s: (a, b, 1 - s))),),
    ),
    LoopCase(
        "complex-valued",
        complex_valued,
        (
            (
                "imaginary part dropped",
                "imaginary",
                with_loss(lambda old: lambda m, x, y: (m(x.real + 0j) - y).abs().square().mean()),
            ),
            (
                "square without modulus",
                "no lower bound",
                with_loss(lambda old: lambda m, x, y: (m(x) - y).square().mean().real),
            ),
        ),
    ),
    LoopCase(
        "fine-tuning",
        fine_tuned,
        (("labels of other rows", "other rows|do not belong together", shuffled_labels),),
    ),
    LoopCase("accumulation", accumulated),
    LoopCase("mixed precision", mixed_precision),
    LoopCase(
        "two tasks",
        two_tasks,
        (
            ("a target in millimetres", "outweighs", millimetres),
            ("a term detached", "no gradient|do not learn", one_detached),
        ),
    ),
    LoopCase("Q learning", q_learning),
    LoopCase("policy gradient", policy),
    LoopCase(
        "segmentation",
        segmentation,
        (
            (
                "labels inverted",
                "away from|inverted",
                with_loss(lambda old: lambda m, x, y: old(m, x, 1 - y)),
            ),
        ),
    ),
    LoopCase("denoiser", denoiser),
    LoopCase("graph", graph),
    LoopCase("curriculum", curriculum),
    LoopCase("likelihood", likelihood),
    LoopCase("physics-informed", physics),
    LoopCase(
        "forecast",
        forecast,
        (
            (
                "targets not shifted",
                "not shifted",
                with_loss(lambda old: lambda m, w: F.mse_loss(m(w[:, :-1]), w[:, :-1])),
            ),
        ),
    ),
    LoopCase("recommender", recommender),
    LoopCase("mean teacher", teacher),
    LoopCase("loader", with_loader),
    LoopCase("diffusion", diffusion),
    LoopCase("characters", characters),
    LoopCase("LBFGS", closure),
    LoopCase("loss in the forward pass", loss_inside),
    LoopCase("critic", critic),
    LoopCase("patches", patches),
    LoopCase("replay buffer", replayed, (("target network never updated", "never changes", never_synced),)),
    LoopCase("sets of points", sets_of_points),
    LoopCase("masked words", masked_words),
    LoopCase("data drawn in each step", numpy_data),
    LoopCase("flow", flow),
)
