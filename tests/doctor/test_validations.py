"""What a watched loop gives to its validation, and what it learns by heart."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import rismusic

AXIS = torch.linspace(-1, 1, 12)
PICTURE = torch.sin(3 * AXIS)[:, None] + AXIS.square()


def watched(loop, model):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with rismusic.watch(model, optimizer, say=lambda _: None) as w:
        loop(optimizer)
    return " ".join(f"{one.meaning}" for one in w.diagnosis.wrong)


def field(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))


def fit(model, optimizer):
    for _ in range(100):
        place = 2 * torch.rand(128, 2) - 1
        height = torch.sin(3 * place[:, 0]) + place[:, 1].square()
        loss = F.mse_loss(model(place).squeeze(-1), height)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize(("indexing", "words"), [("ij", ""), ("xy", "axes of a grid of 12 x 12 exchanged")])
def test_validation_in_another_order_is_named(indexing, words):
    model = field()

    def loop(optimizer):
        fit(model, optimizer)
        with torch.no_grad():
            grid = torch.stack(torch.meshgrid(AXIS, AXIS, indexing=indexing), -1).flatten(0, 1)
            (model(grid).squeeze(-1) - PICTURE.flatten()).square().mean()

    found = watched(loop, model)
    assert words in found
    assert bool(found) == bool(words)


@pytest.mark.parametrize("wrong", [False, True])
def test_validation_that_computes_something_else_is_noticed(wrong):
    model = field()

    def loop(optimizer):
        fit(model, optimizer)
        with torch.no_grad():
            place = 2 * torch.rand(200, 2) - 1
            height = torch.sin(3 * place[:, 0]) + place[:, 1].square()
            (model(-place.flip(1) if wrong else place).squeeze(-1) - height).square().mean()

    assert ("but not in validation" in watched(loop, model)) == wrong


class Tags:
    """Words, and tags of which several may hold: each word suggests some."""

    def __init__(self):
        torch.manual_seed(0)
        self.suggests = torch.randn(40, 8)
        self.model = nn.Sequential(nn.EmbeddingBag(40, 32), nn.Linear(32, 8))
        self.words, self.tags = self.texts(2000)

    def texts(self, count):
        words = torch.randint(40, (count, 6))
        return words, (self.suggests[words].sum(1) / 6**0.5 > 1.3).float()

    def found(self, validate):
        def loop(optimizer):
            for _ in range(150):
                rows = torch.randint(len(self.words), (64,))
                value = F.binary_cross_entropy_with_logits(self.model(self.words[rows]), self.tags[rows])
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
            with torch.no_grad():
                validate(*self.texts(400))

        return watched(loop, self.model)

    def f1(self, words, tags):
        """The harmonic mean of precision and recall."""
        found = (self.model(words) > 0).float()
        return 2 * (found * tags).sum() / (found.sum() + tags.sum())


@pytest.mark.usefixtures("repeated_trainings")
@pytest.mark.parametrize("wrong", [False, True])
def test_a_validation_with_words_of_another_vocabulary_is_named(wrong):
    tags = Tags()
    other = torch.randperm(40)
    found = tags.found(lambda words, true: tags.f1(other[words] if wrong else words, true))
    assert ("coded otherwise (vocabulary" in found) == wrong
    assert bool(found) == wrong


@pytest.mark.parametrize("count", [60, 4000])
def test_few_rows_that_are_learned_by_heart_are_named(count):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 128), nn.ReLU(), nn.Linear(128, 3))
    x = torch.randn(count, 12)
    y = (x[:, :3] * x[:, 3:6]).argmax(1)

    def loop(optimizer):
        for _ in range(150):
            rows = torch.randint(count, (64,))
            loss = F.cross_entropy(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    assert ("only memorises the training data (60 different rows)" in watched(loop, model)) == (count == 60)
