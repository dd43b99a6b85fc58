"""Thirty small networks of the usual kinds, healthy and with three faults each, for ``diagnose_module``.

Every network is written as users write them: closures with their own tensors, several networks, frozen parts,
complex parameters, random outputs. A fault is a change of the arguments of the diagnosis.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Arguments = dict[str, Any]
N = 32


@dataclass(frozen=True)
class ModuleCase:
    """A network and its faults.

    Args:
        name: kind of network.
        make: makes the healthy arguments of ``diagnose_module``.
        faults: name, regular expression of the cause, and change of the arguments.
    """

    name: str
    make: Callable[[], Arguments]
    faults: tuple[tuple[str, str, Callable[[Arguments], object]], ...]

    def trials(self) -> Iterator[tuple[str, str | None, Callable[[], Any]]]:
        """Name, regular expression and diagnosis: first of the healthy network, then of each fault."""
        yield self.name, None, lambda: self._diagnosed(lambda _: None)
        for name, names, change in self.faults:
            yield f"{self.name}: {name}", names, partial(self._diagnosed, change)

    def _diagnosed(self, change: Callable[[Arguments], object]) -> Any:
        from rismusic.doctor.module import diagnose_module

        torch.set_num_threads(1)
        torch.manual_seed(0)
        given = self.make()
        change(given)
        return diagnose_module(given.pop("module"), given.pop("loss"), given.pop("batch"), **given)


def adam(rate: float) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.Adam([p for p in parameters if p.requires_grad], lr=rate)


def mlp(*sizes: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for one, two in itertools.pairwise(sizes):
        layers += [nn.Linear(one, two), activation()]
    return nn.Sequential(*layers[:-1])


# Changes shared by several networks.


def scaled_input(factor: float) -> Callable[[Arguments], None]:
    def change(given: Arguments) -> None:
        batch = given["batch"]
        if isinstance(batch, Tensor):
            given["batch"] = batch * factor
        elif isinstance(batch, dict):
            given["batch"] = {k: v * factor if k == "x" else v for k, v in batch.items()}
        else:
            given["batch"] = (batch[0] * factor, *batch[1:])

    return change


def rate(value: float) -> Callable[[Arguments], None]:
    return lambda given: given.update(optimizer=adam(value))


def only_some(count: int) -> Callable[[Arguments], None]:
    return lambda given: given.update(optimizer=lambda p: torch.optim.Adam(list(p)[:count], lr=1e-2))


def not_a_number(given: Arguments) -> None:
    batch = given["batch"]
    (batch if isinstance(batch, Tensor) else batch["x"] if isinstance(batch, dict) else batch[0])[0, 0] = (
        torch.nan
    )


def ascent(given: Arguments) -> None:
    given["optimizer"] = lambda p: torch.optim.SGD([w for w in p if w.requires_grad], lr=0.1, maximize=True)


def weights_times(factor: float) -> Callable[[Arguments], None]:
    def change(given: Arguments) -> None:
        with torch.no_grad():
            for weight in given["module"].parameters():
                if weight.ndim > 1:
                    weight.mul_(factor)

    return change


def hooked(kind: type[nn.Module], result: Callable[[Any], Any], last: bool = False) -> Callable[..., None]:
    """Change the output of the first or last layer of a kind."""

    def change(given: Arguments) -> None:
        layers = [part for part in given["module"].modules() if isinstance(part, kind)]
        layers[-1 if last else 0].register_forward_hook(lambda part, args, out: result(out))

    return change


DETACH = "detach|do not learn"
RATE_LOW, RATE_HIGH = "learning rate is too low", "learning rate is too high|initial weights are lost"
SCALE = "not normalised|nearly 0|logits are too large"
BATCH = "samples of a batch affect"
RANDOM = "random in evaluation mode"
SATURATED, DEAD = "saturated", "dead ReLU|0 for every sample"
HELD = "never change"


def classifier() -> Arguments:
    x = torch.randn(N, 8)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    return {
        "module": mlp(8, 32, 32, 3),
        "loss": lambda m, b: F.cross_entropy(m(b[0]), b[1]),
        "batch": (x, y),
        "optimizer": adam(1e-2),
    }


def double_softmax(given: Arguments) -> None:
    given["module"].append(nn.Softmax(1))


def relu_at_end(given: Arguments) -> None:
    given["module"].append(nn.ReLU())


def regressor() -> Arguments:
    x = torch.randn(N, 6)
    return {
        "module": mlp(6, 32, 1, activation=nn.Tanh),
        "loss": lambda m, b: (m(b[0]).squeeze(1) - b[1]).square().mean(),
        "batch": (x, x[:, 0].sin() + x[:, 1]),
        "optimizer": adam(1e-2),
    }


def broadcast(given: Arguments) -> None:
    given["loss"] = lambda m, b: (m(b[0]) - b[1]).square().mean()


def detached_hidden(given: Arguments) -> None:
    net = given["module"]
    given["loss"] = lambda m, b: (net[2](net[1](net[0](b[0])).detach()).squeeze(1) - b[1]).square().mean()


class Convolutional(nn.Module):
    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1, stride=2)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.head = nn.Linear(16, 4)
        self.drop = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.a(x)))
        return self.head(self.drop(F.relu(self.b(x)).mean((2, 3))))


def images() -> Arguments:
    x = torch.randn(N, 1, 8, 8)
    y = torch.arange(N) % 4
    x[torch.arange(N), 0, y, y] += 3
    return {
        "module": Convolutional(),
        "loss": lambda m, b: F.cross_entropy(m(b["x"]), b["y"]),
        "batch": {"x": x, "y": y},
        "optimizer": adam(3e-3),
    }


def always_dropout(given: Arguments) -> None:
    given["module"].drop.forward = lambda x: F.dropout(x, 0.2, training=True)


def dead_bias(given: Arguments) -> None:
    nn.init.constant_(given["module"].b.bias, -50.0)


def normed_images() -> Arguments:
    return images() | {"module": Convolutional(norm=True)}


class Recurrent(nn.Module):
    def __init__(self, batch_first: bool = True, kind: type[nn.Module] = nn.LSTM) -> None:
        super().__init__()
        self.core, self.head = kind(4, 16, batch_first=batch_first), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.core(x)[0][:, -1])


def sequence() -> Arguments:
    x = torch.randn(N, 10, 4)
    return {
        "module": Recurrent(),
        "loss": lambda m, b: F.mse_loss(m(b[0]), b[1]),
        "batch": (x, x[:, :, 0].mean(1, keepdim=True) * 3),
        "optimizer": adam(1e-2),
    }


def not_batch_first(given: Arguments) -> None:
    given["module"] = Recurrent(batch_first=False)


def gru() -> Arguments:
    return sequence() | {"module": Recurrent(kind=nn.GRU)}


class Attending(nn.Module):
    def __init__(self, axis: int = 1) -> None:
        super().__init__()
        self.read = nn.Linear(4, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=axis == 1)
        self.core, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.core(self.read(x)).mean(1))


def transformer() -> Arguments:
    x = torch.randn(N, 6, 4)
    return {
        "module": Attending(),
        "loss": lambda m, b: F.cross_entropy(m(b[0]), b[1]),
        "batch": (x, torch.arange(N) % 3),
        "optimizer": adam(1e-3),
    }


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.core = nn.Embedding(20, 16), nn.LSTM(16, 32, batch_first=True)
        self.head = nn.Linear(32, 20)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.core(self.embed(tokens))[0])


def language() -> Arguments:
    tokens = (torch.arange(12)[None] * torch.randint(1, 4, (N, 1)) + torch.randint(0, 20, (N, 1))) % 20
    return {
        "module": Language(),
        "loss": lambda m, b: F.cross_entropy(m(b[:, :-1]).flatten(0, 1), b[:, 1:].flatten()),
        "batch": tokens,
        "optimizer": adam(5e-3),
    }


def softmax_before(given: Arguments) -> None:
    given["loss"] = lambda m, b: F.cross_entropy(m(b[:, :-1]).softmax(-1).flatten(0, 1), b[:, 1:].flatten())


def axes_mixed(given: Arguments) -> None:
    given["loss"] = lambda m, b: F.cross_entropy(
        m(b[:, :-1].reshape(11, N)).reshape(N * 11, 20), b[:, 1:].flatten()
    )


class Causal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(20, 16), nn.Parameter(0.02 * torch.randn(11, 16))
        self.ask, self.out, self.norm = nn.Linear(16, 48), nn.Linear(16, 16), nn.LayerNorm(16)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.place[: tokens.shape[1]]
        q, k, v = self.ask(self.norm(x)).chunk(3, -1)
        return self.head(x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))) / 4


def causal() -> Arguments:
    return language() | {"module": Causal(), "optimizer": adam(1e-2)}


class Variational(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = mlp(8, 32, 8), mlp(4, 32, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encode(x).chunk(2, 1)
        z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        return self.decode(z), mean, log_variance


def vae_loss(module: nn.Module, x: Tensor) -> Tensor:
    y, mean, log_variance = module(x)
    divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean() / 2
    return (y - x).square().sum(1).mean() + 0.1 * divergence


def vae() -> Arguments:
    x = torch.randn(N, 2) @ torch.randn(2, 8)
    return {"module": Variational(), "loss": vae_loss, "batch": x, "optimizer": adam(1e-2)}


def no_reparametrisation(given: Arguments) -> None:
    def loss(module: Any, x: Tensor) -> Tensor:
        mean, log_variance = module.encode(x).chunk(2, 1)
        with torch.no_grad():
            z = torch.distributions.Normal(mean, (log_variance / 2).exp()).sample()
        return (module.decode(z) - x).square().sum(1).mean()

    given["loss"] = loss


def autoencoder() -> Arguments:
    x = torch.randn(N, 2) @ torch.randn(2, 10)
    return {
        "module": mlp(10, 16, 2, 16, 10, activation=nn.GELU),
        "loss": lambda m, b: F.mse_loss(m(b), b),
        "batch": x,
        "optimizer": adam(1e-2),
    }


def generator() -> Arguments:
    """The generator of a GAN; the discriminator is frozen in the closure, and noise is drawn in the loss."""
    discriminator = mlp(2, 16, 1, activation=nn.LeakyReLU).requires_grad_(False)
    return {
        "module": mlp(4, 16, 2),
        "loss": lambda m, z: F.softplus(-discriminator(m(z))).mean(),
        "batch": torch.randn(N, 4),
        "optimizer": adam(1e-3),
    }


def discriminator() -> Arguments:
    """A GAN pair; the loss is that of the discriminator, and the generator is not trained by it."""
    g, d = mlp(4, 16, 2), mlp(2, 16, 1, activation=nn.LeakyReLU)

    def loss(module: Any, x: Tensor) -> Tensor:
        fake = g(torch.randn(len(x), 4)).detach()
        return F.softplus(-module(x)).mean() + F.softplus(module(fake)).mean()

    return {"module": d, "loss": loss, "batch": torch.randn(N, 2) + 2, "optimizer": adam(1e-3)}


def pair() -> Arguments:
    """Two networks in a dictionary: encoder and decoder, trained together."""
    parts = {"encoder": mlp(8, 16, 3), "decoder": mlp(3, 16, 8)}
    return {
        "module": parts,
        "loss": lambda m, x: F.mse_loss(m["decoder"](m["encoder"](x)), x),
        "batch": torch.randn(N, 8),
        "optimizer": adam(1e-2),
    }


def first_only(given: Arguments) -> None:
    encoder = given["module"]["encoder"]
    given["optimizer"] = lambda _: torch.optim.Adam(encoder.parameters(), lr=1e-2)


def detached_code(given: Arguments) -> None:
    given["loss"] = lambda m, x: F.mse_loss(m["decoder"](m["encoder"](x).detach()), x)


def wrong_copy(given: Arguments) -> None:
    stale = copy.deepcopy(given["module"]["decoder"])
    parts = given["module"]
    given["optimizer"] = lambda _: torch.optim.Adam(
        [*parts["encoder"].parameters(), *stale.parameters()], lr=1e-2
    )


class ComplexNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(6, 16, dtype=torch.complex64) / 6**0.5)
        self.b = nn.Parameter(torch.randn(16, 2, dtype=torch.complex64) / 4)

    def forward(self, x: Tensor) -> Tensor:
        h = x @ self.a
        return torch.polar(torch.tanh(h.abs()), h.angle()) @ self.b


def complex_valued() -> Arguments:
    x = torch.randn(N, 6, dtype=torch.complex64)
    return {
        "module": ComplexNet(),
        "loss": lambda m, b: (m(b[0]) - b[1]).abs().square().mean(),
        "batch": (x, x[:, :2] * x[:, 2:3].conj()),
        "optimizer": adam(1e-2),
    }


def real_layer(given: Arguments) -> None:
    given["loss"] = lambda m, b: (m(b[0]).real.detach() - b[1].real).square().mean() + 0 * m.a.abs().sum()


def complex_input() -> Arguments:
    """Complex inputs as pairs of real numbers."""
    return complex_valued() | {
        "module": mlp(12, 32, 4),
        "loss": lambda m, b: (
            (torch.view_as_complex(m(torch.view_as_real(b[0]).flatten(1)).view(-1, 2, 2)) - b[1])
            .abs()
            .square()
            .mean()
        ),
    }


def siamese() -> Arguments:
    """Contrastive loss: the samples of a batch belong together in the loss, not in the output."""
    x = torch.randn(N, 8)

    def loss(m: Any, b: Any) -> Tensor:
        one, two = (F.normalize(m(part), dim=1) for part in b)
        return F.cross_entropy(one @ two.T / 0.2, torch.arange(len(one)))

    return {
        "module": mlp(8, 32, 8),
        "loss": loss,
        "batch": (x, x + 0.3 * torch.randn(N, 8)),
        "optimizer": adam(3e-3),
    }


def triplet() -> Arguments:
    x = torch.randn(N, 8)
    return {
        "module": mlp(8, 32, 4),
        "loss": lambda m, b: F.triplet_margin_loss(m(b[0]), m(b[1]), m(b[2])),
        "batch": (x, x + 0.1 * torch.randn(N, 8), torch.randn(N, 8)),
        "optimizer": adam(1e-3),
    }


def negative_likelihood() -> Arguments:
    """The loss is a negative log likelihood, below zero from the start."""
    x = torch.randn(N, 4)

    def loss(m: Any, b: Any) -> Tensor:
        mean, log_scale = m(b[0]).chunk(2, 1)
        return (((b[1] - mean) / log_scale.exp()).square() / 2 + log_scale).mean() - 3

    return {
        "module": mlp(4, 32, 2, activation=nn.Tanh),
        "loss": loss,
        "batch": (x, 0.3 * x[:, :1]),
        "optimizer": adam(1e-2),
    }


def fine_tuned() -> Arguments:
    """A frozen backbone in evaluation mode, and a trained head that starts at zero."""
    backbone = mlp(8, 32, 32).requires_grad_(False)
    head = nn.Linear(32, 3)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    x = torch.randn(N, 8)
    return {
        "module": nn.Sequential(backbone, nn.ReLU(), head),
        "loss": lambda m, b: F.cross_entropy(m(b[0]), b[1]),
        "batch": (x, (x[:, 0] > 0).long()),
        "optimizer": adam(1e-2),
    }


class LowRank(nn.Module):
    """A frozen layer with a low-rank update, one factor of which starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(8, 16).requires_grad_(False)
        self.down, self.up = nn.Linear(8, 2, bias=False), nn.Linear(2, 16, bias=False)
        nn.init.zeros_(self.up.weight)
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.base(x) + self.up(self.down(x))))


def low_rank() -> Arguments:
    x = torch.randn(N, 8)
    return {
        "module": LowRank(),
        "loss": lambda m, b: F.cross_entropy(m(b[0]), b[1]),
        "batch": (x, (x[:, 0] > 0).long()),
        "optimizer": adam(1e-2),
    }


class Quantised(nn.Module):
    """Straight-through rounding of the code."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = mlp(8, 16, 4), mlp(4, 16, 8)

    def forward(self, x: Tensor) -> Tensor:
        z = self.encode(x) * 4
        return self.decode((z + (z.round() - z).detach()) / 4)


def quantised() -> Arguments:
    return {
        "module": Quantised(),
        "loss": lambda m, b: F.mse_loss(m(b), b),
        "batch": torch.randn(N, 8),
        "optimizer": adam(1e-2),
    }


def rounded_away(given: Arguments) -> None:
    given["loss"] = lambda m, b: F.mse_loss(m.decode(m.encode(b).round()), b)


def graph() -> Arguments:
    """Nodes of one graph: samples depend on each other on purpose, through the matrix in the closure."""
    adjacency = (torch.rand(N, N) < 0.1).float() + torch.eye(N)
    adjacency = adjacency / adjacency.sum(1, keepdim=True)
    a, b = nn.Linear(8, 16), nn.Linear(16, 3)
    x = torch.randn(N, 8)
    return {
        "module": nn.ModuleList([a, b]),
        "loss": lambda m, d: F.cross_entropy(adjacency @ m[1](F.relu(adjacency @ m[0](d[0]))), d[1]),
        "batch": (x, torch.arange(N) % 3),
        "optimizer": adam(1e-2),
    }


def ignores_input(given: Arguments) -> None:
    given["loss"] = lambda m, d: F.cross_entropy(m[1](F.relu(m[0](torch.ones_like(d[0])))), d[1])


def policy() -> Arguments:
    """Policy gradient: the value of the loss is no measure, and may be negative."""
    x, reward = torch.randn(N, 4), torch.randn(N)
    action = torch.randint(0, 3, (N,))
    return {
        "module": mlp(4, 32, 3, activation=nn.Tanh),
        "loss": lambda m, b: -(m(b[0]).log_softmax(1).gather(1, b[1][:, None])[:, 0] * b[2]).mean(),
        "batch": (x, action, reward),
        "optimizer": adam(3e-3),
    }


def q_learning() -> Arguments:
    """A target network in the closure."""
    net = mlp(4, 32, 2)
    target = copy.deepcopy(net).requires_grad_(False)
    x, y = torch.randn(N, 4), torch.randn(N, 4)
    action, reward = torch.randint(0, 2, (N,)), torch.randn(N)

    def loss(m: Any, b: Any) -> Tensor:
        value = m(b[0]).gather(1, b[2][:, None])[:, 0]
        return F.smooth_l1_loss(value, b[3] + 0.9 * target(b[1]).amax(1))

    return {"module": net, "loss": loss, "batch": (x, y, action, reward), "optimizer": adam(1e-3)}


def segmentation() -> Arguments:
    x = torch.randn(N, 1, 8, 8)
    return {
        "module": nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1)),
        "loss": lambda m, b: F.binary_cross_entropy_with_logits(m(b[0]), b[1]),
        "batch": (x, (x > 0.5).float()),
        "optimizer": adam(1e-2),
    }


def double_sigmoid(given: Arguments) -> None:
    given["module"].append(nn.Sigmoid())


def binary() -> Arguments:
    x = torch.randn(N, 5)
    return {
        "module": nn.Sequential(mlp(5, 16, 1), nn.Sigmoid()),
        "loss": lambda m, b: F.binary_cross_entropy(m(b[0])[:, 0], b[1]),
        "batch": (x, (x[:, 0] > 0).float()),
        "optimizer": lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9),
    }


def residual() -> Arguments:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read = nn.Linear(8, 32)
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32))
                for _ in range(8)
            )
            for block in self.blocks:
                nn.init.zeros_(block[-1].weight)  # type: ignore[index]
            self.head = nn.Linear(32, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.read(x)
            for block in self.blocks:
                x = x + block(x)
            return self.head(x)

    x = torch.randn(N, 8)
    return {
        "module": Residual(),
        "loss": lambda m, b: F.mse_loss(m(b[0]), b[1]),
        "batch": (x, x[:, :1] * x[:, 1:2]),
        "optimizer": adam(1e-3),
    }


def deep() -> Arguments:
    """Twelve layers with ReLU and He initialisation."""
    module = mlp(8, *[32] * 12, 1)
    for part in module:
        if isinstance(part, nn.Linear):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
    x = torch.randn(N, 8)
    return {
        "module": module,
        "loss": lambda m, b: F.mse_loss(m(b[0]), b[1]),
        "batch": (x, x[:, :1]),
        "optimizer": adam(1e-3),
    }


def sigmoids(given: Arguments) -> None:
    torch.manual_seed(0)
    given["module"] = mlp(8, *[32] * 12, 1, activation=nn.Sigmoid)


def embedding_sum() -> Arguments:
    tokens = torch.randint(1, 50, (N, 7))
    return {
        "module": nn.Sequential(nn.EmbeddingBag(50, 16, padding_idx=0), nn.Linear(16, 2)),
        "loss": lambda m, b: F.cross_entropy(m(b[0]), b[1]),
        "batch": (tokens, (tokens[:, 0] > 25).long()),
        "optimizer": adam(1e-2),
    }


def penalised() -> Arguments:
    """Physics-informed: the loss differentiates the network by its input."""

    def loss(m: Any, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_(True)
        y = m(x)
        slope = torch.autograd.grad(y.sum(), x, create_graph=True)[0]
        return (slope + y).square().mean() + (m(torch.zeros(1, 1)) - 1).square().mean()

    return {
        "module": mlp(1, 32, 1, activation=nn.Tanh),
        "loss": loss,
        "batch": torch.rand(N, 1),
        "optimizer": adam(1e-2),
    }


def graph_not_kept(given: Arguments) -> None:
    def loss(m: Any, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_(True)
        y = m(x)
        slope = torch.autograd.grad(y.sum(), x, retain_graph=True)[0]
        return (slope + y).square().mean()

    given["loss"] = loss


def multitask() -> Arguments:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.kind, self.size = mlp(8, 32, 32), nn.Linear(32, 3), nn.Linear(32, 1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            h = F.relu(self.body(x))
            return {"kind": self.kind(h), "size": self.size(h)}

    def loss(m: Any, b: Any) -> Tensor:
        out = m(b["x"])
        return F.cross_entropy(out["kind"], b["kind"]) + F.mse_loss(out["size"], b["size"])

    x = torch.randn(N, 8)
    batch = {"x": x, "kind": torch.arange(N) % 3, "size": x[:, :1]}
    return {"module": Two(), "loss": loss, "batch": batch, "optimizer": adam(1e-2)}


def one_head(given: Arguments) -> None:
    given["loss"] = lambda m, b: F.cross_entropy(m(b["x"])["kind"], b["kind"])


def untrained_eval() -> Arguments:
    """Weight decay, weight norm and a scheduler that scales the rate."""
    module = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(6, 16)), nn.SiLU(), nn.Linear(16, 1)
    )
    x = torch.randn(N, 6)
    return {
        "module": module,
        "loss": lambda m, b: F.l1_loss(m(b[0]), b[1]),
        "batch": (x, x[:, :1]),
        "optimizer": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    }


def in_closure() -> Arguments:
    """The loss uses the network of the enclosing scope, and ignores its argument."""
    net = mlp(6, 16, 1)
    x = torch.randn(N, 6)
    target = x[:, :1].abs()
    return {
        "module": net,
        "loss": lambda _, b: F.mse_loss(net(b), target),
        "batch": x,
        "optimizer": torch.optim.SGD(net.parameters(), lr=0.05),
    }


def noise_everywhere(given: Arguments) -> None:
    given["loss"] = lambda m, b: F.mse_loss(m(F.dropout(b[0], 0.5, training=True)), b[1])


CASES = (
    ModuleCase(
        "classifier",
        classifier,
        (
            ("double softmax", "double softmax", double_softmax),
            ("inputs of 0 to 255", SCALE, scaled_input(200.0)),
            ("learning rate too low", RATE_LOW, rate(1e-7)),
        ),
    ),
    ModuleCase(
        "regressor",
        regressor,
        (
            ("broadcast target", "broadcast", broadcast),
            ("hidden layer detached", DETACH, detached_hidden),
            ("saturated", SATURATED, weights_times(200.0)),
        ),
    ),
    ModuleCase(
        "images",
        images,
        (
            ("dropout always on", RANDOM, always_dropout),
            ("dead units", DEAD, dead_bias),
            ("head missing from the optimizer", HELD, only_some(4)),
        ),
    ),
    ModuleCase(
        "images with batch norm",
        normed_images,
        (
            ("NaN in the data", "batch contains NaN", not_a_number),
            ("gradient ascent", "increases the loss", ascent),
            (
                "softmax over the batch",
                "normalises over the samples|" + BATCH,
                hooked(nn.Linear, lambda o: o.softmax(0)),
            ),
        ),
    ),
    ModuleCase(
        "LSTM",
        sequence,
        (
            ("batch first forgotten", BATCH, not_batch_first),
            ("learning rate too high", RATE_HIGH, rate(30.0)),
            ("inputs divided twice", SCALE, scaled_input(1e-5)),
        ),
    ),
    ModuleCase(
        "GRU",
        gru,
        (
            ("batch first forgotten", BATCH, lambda g: g.update(module=Recurrent(False, nn.GRU))),
            ("head detached", DETACH, hooked(nn.GRU, lambda o: (o[0].detach(), o[1]))),
            ("output constant", "same for every sample", hooked(nn.Linear, lambda o: o * 0 + o.mean(0))),
        ),
    ),
    ModuleCase(
        "transformer",
        transformer,
        (
            ("batch first forgotten", BATCH, lambda g: g.update(module=Attending(axis=0))),
            ("learning rate too high", RATE_HIGH, rate(10.0)),
            ("read detached", DETACH, hooked(nn.Linear, torch.Tensor.detach)),
        ),
    ),
    ModuleCase(
        "language model",
        language,
        (
            ("double softmax", "double softmax", softmax_before),
            ("axes mixed", BATCH, axes_mixed),
            (
                "embedding missing from the optimizer",
                HELD,
                lambda g: g.update(optimizer=lambda p: torch.optim.Adam(list(p)[1:], lr=5e-3)),
            ),
        ),
    ),
    ModuleCase(
        "causal transformer",
        causal,
        (
            ("initial weights too large", "logits are too large", weights_times(30.0)),
            ("learning rate too low", RATE_LOW, rate(1e-8)),
            ("double softmax", "double softmax", softmax_before),
        ),
    ),
    ModuleCase(
        "VAE",
        vae,
        (
            ("no reparametrisation", DETACH, no_reparametrisation),
            ("inputs not normalised", SCALE, scaled_input(1e3)),
            (
                "decoder only",
                HELD,
                lambda g: g.update(
                    optimizer=lambda _, m=g["module"]: torch.optim.Adam(m.decode.parameters(), lr=1e-2)
                ),
            ),
        ),
    ),
    ModuleCase(
        "autoencoder",
        autoencoder,
        (
            ("code detached", DETACH, hooked(nn.GELU, torch.Tensor.detach)),
            ("gradient ascent", "increases the loss", ascent),
            ("NaN in the data", "batch contains NaN", not_a_number),
        ),
    ),
    ModuleCase(
        "generator",
        generator,
        (
            (
                "generator detached",
                DETACH,
                lambda g: g.update(
                    loss=lambda m, z, old=g["loss"]: old(lambda x: m(x).detach(), z) + 0 * m(z).sum()
                ),
            ),
            ("learning rate 0", "learning rate is 0", rate(0.0)),
            ("output constant", "same for every sample", hooked(nn.Linear, lambda o: o.mean(0).expand_as(o))),
        ),
    ),
    ModuleCase(
        "discriminator",
        discriminator,
        (
            ("wrong sign", "increases the loss", ascent),
            ("inputs not normalised", SCALE, scaled_input(1e3)),
            ("last layer missing from the optimizer", HELD, only_some(2)),
        ),
    ),
    ModuleCase(
        "two networks",
        pair,
        (
            ("one network in the optimizer", HELD, first_only),
            ("code detached", DETACH, detached_code),
            ("optimizer of a stale copy", "another network", wrong_copy),
        ),
    ),
    ModuleCase(
        "complex-valued",
        complex_valued,
        (
            ("output detached", DETACH, real_layer),
            ("learning rate too high", RATE_HIGH, rate(100.0)),
            ("NaN in the data", "batch contains NaN", not_a_number),
        ),
    ),
    ModuleCase(
        "complex as pairs",
        complex_input,
        (
            ("inputs in microvolt", SCALE, scaled_input(1e-6)),
            ("learning rate too low", RATE_LOW, rate(1e-8)),
            ("dead units", DEAD, lambda g: nn.init.constant_(g["module"][0].bias, -50.0)),
        ),
    ),
    ModuleCase(
        "Siamese",
        siamese,
        (
            ("normalised over the batch", BATCH, hooked(nn.Linear, lambda o: o - o.mean(0), last=True)),
            (
                "second branch detached",
                DETACH,
                lambda g: g.update(
                    loss=lambda m, b: F.cross_entropy(
                        F.normalize(m(b[0])) @ F.normalize(m(b[1])).detach().T / 0.2, torch.arange(N)
                    )
                ),
            ),
            ("collapsed", "same for every sample", hooked(nn.Linear, lambda o: 0 * o + o.mean(), last=True)),
        ),
    ),
    ModuleCase(
        "triplet",
        triplet,
        (
            (
                "positive detached",
                DETACH,
                lambda g: g.update(
                    loss=lambda m, b: F.triplet_margin_loss(m(b[0]), m(b[1]).detach(), m(b[2]))
                ),
            ),
            ("inputs not normalised", SCALE, scaled_input(1e4)),
            ("gradient ascent", "increases the loss", ascent),
        ),
    ),
    ModuleCase(
        "likelihood below zero",
        negative_likelihood,
        (
            (
                "square root of zero",
                "gradient is NaN",
                lambda g: g.update(loss=lambda m, b, old=g["loss"]: old(m, b) + (0 * m(b[0])).sqrt().sum()),
            ),
            ("learning rate too high", RATE_HIGH, rate(10.0)),
            (
                "scale detached",
                DETACH,
                lambda g: g.update(
                    loss=lambda m, b: (
                        (b[1] - m(b[0])[:, :1]).square() / m(b[0])[:, 1:].detach().exp().square()
                        + m(b[0])[:, 1:].detach()
                    ).mean()
                ),
            ),
        ),
    ),
    ModuleCase(
        "fine-tuning",
        fine_tuned,
        (
            ("everything frozen", "all parameters are frozen", lambda g: g["module"].requires_grad_(False)),
            ("double softmax", "double softmax", double_softmax),
            ("inputs of 0 to 255", SCALE, scaled_input(200.0)),
        ),
    ),
    ModuleCase(
        "low-rank update",
        low_rank,
        (
            ("both factors zero", "do not learn", lambda g: nn.init.zeros_(g["module"].down.weight)),
            (
                "head missing from the optimizer",
                HELD,
                lambda g: g.update(
                    optimizer=lambda _, m=g["module"]: torch.optim.Adam([m.down.weight, m.up.weight], lr=1e-2)
                ),
            ),
            ("learning rate too low", RATE_LOW, rate(1e-9)),
        ),
    ),
    ModuleCase(
        "straight-through",
        quantised,
        (
            ("rounded without it", "do not learn", rounded_away),
            ("learning rate too high", RATE_HIGH, rate(100.0)),
            ("inputs not normalised", SCALE, scaled_input(1e3)),
        ),
    ),
    ModuleCase(
        "graph network",
        graph,
        (
            ("input ignored", "same for every sample", ignores_input),
            (
                "dead units",
                "0 for every sample|do not learn",
                lambda g: nn.init.constant_(g["module"][0].bias, -50.0),
            ),
            ("gradient ascent", "increases the loss", ascent),
        ),
    ),
    ModuleCase(
        "policy gradient",
        policy,
        (
            (
                "softmax over the batch",
                "normalises over the samples|" + BATCH,
                lambda g: g.update(
                    loss=lambda m, b: -(m(b[0]).log_softmax(0).gather(1, b[1][:, None])[:, 0] * b[2]).mean()
                ),
            ),
            (
                "probabilities detached",
                DETACH,
                lambda g: g.update(
                    loss=lambda m, b: (
                        -(m(b[0]).log_softmax(1).detach().gather(1, b[1][:, None])[:, 0] * b[2]).mean()
                    )
                ),
            ),
            ("learning rate 0", "learning rate is 0", rate(0.0)),
        ),
    ),
    ModuleCase(
        "Q learning",
        q_learning,
        (
            (
                "optimizer of the target network",
                "another network|never change",
                lambda g: g.update(
                    optimizer=torch.optim.Adam(copy.deepcopy(g["module"]).parameters(), lr=1e-3)
                ),
            ),
            ("states not normalised", SCALE, scaled_input(1e3)),
            (
                "value detached",
                DETACH,
                lambda g: g.update(loss=lambda m, b: F.mse_loss(m(b[0]).detach().amax(1), b[3])),
            ),
        ),
    ),
    ModuleCase(
        "segmentation",
        segmentation,
        (
            ("double sigmoid", "double sigmoid", double_sigmoid),
            ("initial weights zero", "do not learn", weights_times(0.0)),
            ("images of 0 to 255", SCALE, scaled_input(100.0)),
        ),
    ),
    ModuleCase(
        "binary classifier",
        binary,
        (
            (
                "target of another shape",
                "broadcast",
                lambda g: g.update(loss=lambda m, b: F.mse_loss(m(b[0]), b[1])),
            ),
            (
                "learning rate too low",
                RATE_LOW,
                lambda g: g.update(optimizer=lambda p: torch.optim.SGD(p, lr=1e-7)),
            ),
            ("saturated", SATURATED, weights_times(300.0)),
        ),
    ),
    ModuleCase(
        "residual",
        residual,
        (
            ("branches detached", DETACH, hooked(nn.GELU, torch.Tensor.detach)),
            ("noise in evaluation", RANDOM, noise_everywhere),
            (
                "features of different scale",
                "different scales",
                lambda g: g.update(
                    batch=(g["batch"][0] * torch.tensor([1e4, *[1.0] * 6, 1e-2]), g["batch"][1])
                ),
            ),
        ),
    ),
    ModuleCase(
        "deep ReLU",
        deep,
        (
            ("sigmoid in every layer", "vanishes", sigmoids),
            (
                "initial weights too large",
                "explodes|initial weights|too large|not normalised",
                weights_times(10.0),
            ),
            ("initial weights too small", "vanishes|do not learn|does not learn", weights_times(0.05)),
        ),
    ),
    ModuleCase(
        "bag of embeddings",
        embedding_sum,
        (
            (
                "log of probabilities missing",
                "not logarithms",
                lambda g: g.update(loss=lambda m, b: F.nll_loss(m(b[0]).softmax(1), b[1])),
            ),
            ("ReLU at the end", "ends with a ReLU", relu_at_end),
            ("learning rate too high", RATE_HIGH, rate(1000.0)),
        ),
    ),
    ModuleCase(
        "physics-informed",
        penalised,
        (
            ("graph of the derivative not kept", "detached|gradient is not that", graph_not_kept),
            ("gradient ascent", "increases the loss", ascent),
            ("coordinates in millimetres", SCALE, scaled_input(1e3)),
        ),
    ),
    ModuleCase(
        "two tasks",
        multitask,
        (
            ("a head without a loss", "do not learn", one_head),
            ("inputs not normalised", SCALE, scaled_input(1e3)),
            ("NaN in the data", "batch contains NaN", not_a_number),
        ),
    ),
    ModuleCase(
        "weight norm",
        untrained_eval,
        (
            ("noise in evaluation", RANDOM, noise_everywhere),
            ("broadcast target", "broadcast", lambda g: g.update(batch=(g["batch"][0], g["batch"][1][:, 0]))),
            ("learning rate too low", RATE_LOW, rate(1e-9)),
        ),
    ),
    ModuleCase(
        "network in the closure",
        in_closure,
        (
            (
                "loss detached",
                "detached from the network",
                lambda g: g.update(
                    loss=lambda m, b, old=g["loss"]: torch.tensor(float(old(m, b)), requires_grad=True)
                ),
            ),
            ("inputs not normalised", SCALE, scaled_input(1e3)),
            ("initial weights zero", "do not learn", weights_times(0.0)),
        ),
    ),
)
