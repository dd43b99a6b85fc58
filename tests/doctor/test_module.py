"""Diagnosis of any module: each finding with a planted fault, and none for a healthy module."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rismusic.doctor.module import diagnose_module
from rismusic.errors import InputError

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(32, 6, generator=GENERATOR)
BATCH = {"x": X, "y": X[:, :2].sin() + 0.5 * X[:, 2:4]}


class Net(nn.Module):
    """A small healthy network; the faults replace parts of it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 32), nn.Tanh())
        self.head = nn.Linear(32, 2)

    def forward(self, x):
        return self.head(self.body(x))


def loss(module, batch):
    return (module(batch["x"]) - batch["y"]).square().mean()


def adam(parameters):
    return torch.optim.AdamW(parameters, lr=1e-2)


def diagnosed(module=None, of=loss, batch=BATCH, **settings):
    return diagnose_module(module or Net(), of, batch, **{"optimizer": adam, **settings})


def names(diagnosis):
    return [finding.name for finding in diagnosis.wrong]


def test_healthy_network_has_no_finding_and_stays_unchanged():
    module = Net()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    said = []
    diagnosis = diagnosed(module, say=said.append)
    assert names(diagnosis) == []
    assert diagnosis.healthy
    assert [line.split("]")[0] for line in said] == [
        "[FINITE",
        "[INPUT",
        "[CALLS",
        "[LOOP",
        "[OPTIMIZER",
        "[LAYERS",
        "[UPDATES",
        "[BATCH",
        "[USAGE",
        "[TARGET",
        "[BOUND",
        "[RANGE",
        "[LINEAR",
        "[VALUES",
        "[EXCHANGE",
        "[MODES",
        "[PRECISION",
        "[SLOPE",
        "[LITMUS",
        "[CONSTANT",
    ]
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(weight.grad is None for weight in module.parameters())


class Detached(Net):
    def forward(self, x):
        return super().forward(x).detach()


class Half(Net):
    """A part of the network is detached."""

    def forward(self, x):
        return self.head(self.body(x).detach() + self.body(x))


class Dead(Net):
    def __init__(self):
        super().__init__()
        self.extra = nn.Linear(3, 3)


class Noisy(Net):
    def forward(self, x):
        return super().forward(nn.functional.dropout(x, 0.5, training=True))


class Batched(Net):
    """A different network in evaluation mode."""

    def forward(self, x):
        return super().forward(x) * (1.0 if self.training else 10.0)


class Constant(Net):
    """A head that is a free parameter."""

    def __init__(self):
        super().__init__()
        self.free = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return self.free + 0 * super().forward(x)


class Rooted(Net):
    """A square root at 0: a finite loss without a derivative."""

    def forward(self, x):
        return super().forward(x) + (0 * self.head.bias).sqrt()


class Cancelling(Net):
    def forward(self, x):
        return (super().forward(x) + 1e6) - 1e6


def frozen(*parts):
    module = Net()
    for part in parts:
        getattr(module, part).requires_grad_(False)
    return module


def reversed_steps(parameters):
    return torch.optim.SGD(parameters, lr=0.01, maximize=True)


def some(parameters):
    return torch.optim.AdamW(list(parameters)[:2], lr=1e-2)


FAULTS = [
    ({"of": lambda net, held: loss(net, held) * torch.nan}, "loss that is not finite"),
    ({"module": Detached()}, "loss with a gradient"),
    ({"module": Rooted()}, "gradient that is not finite"),
    ({"module": Dead()}, "parameters without a gradient"),
    ({"module": frozen("body", "head")}, "loss with a gradient"),
    ({"optimizer": some}, "parameters missing from the optimizer"),
    ({"module": Noisy()}, "relative change of the loss between two evaluations in evaluation mode"),
    ({"module": Batched()}, "relative difference of the loss between training and evaluation mode"),
    ({"module": Cancelling()}, "relative error of the loss against double precision"),
    ({"module": Half()}, "relative error of the gradient against finite differences"),
    ({"optimizer": lambda p: torch.optim.AdamW(p, lr=1e-7)}, "relative decrease of the loss in 20 steps"),
    (
        {"optimizer": lambda p: torch.optim.AdamW(p, lr=0.0)},
        "parameters that have a gradient but do not change",
    ),
    ({"optimizer": reversed_steps}, "cosine between the first steps and the gradient"),
    (
        {"optimizer": lambda p: torch.optim.AdamW(p, lr=10.0)},
        "relative change of a weight matrix by",
    ),
    ({"module": Constant()}, "spread of the outputs over the samples"),
]


@pytest.mark.parametrize(("fault", "name"), FAULTS, ids=[name for _, name in FAULTS])
def test_each_finding_can_fail(fault, name):
    assert any(found.startswith(name) for found in names(diagnosed(**fault))), names(diagnosed(**fault))


def test_bad_arguments_are_one_sentence():
    with pytest.raises(InputError, match="module: it has no parameters"):
        diagnose_module(nn.Tanh(), lambda net, x: net(x).mean(), X)
    with pytest.raises(InputError, match=r"loss: it must return a scalar tensor; .* shape \[32, 2\]"):
        diagnose_module(Net(), lambda net, x: net(x), X)
    with pytest.raises(InputError, match="scalar tensor; the result has type float"):
        diagnose_module(Net(), lambda net, x: float(net(x).mean().detach()), X)


def test_nested_batches():
    """Tensors in tuples and lists, with integers and complex numbers."""
    wide = (X.to(torch.complex64), [torch.arange(32) % 2])

    def complex_loss(module, batch):
        signal, (label,) = batch
        return nn.functional.cross_entropy(module(signal.real), label)

    diagnosis = diagnose_module(Net(), complex_loss, wide, optimizer=adam, steps=200)
    assert names(diagnosis) == []


def test_global_random_state_is_unchanged():
    module = Net()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    diagnosed(module)
    assert torch.equal(torch.rand(3), expected)
