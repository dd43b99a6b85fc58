"""What a watched loop gives to its losses, its validation, its schedule and its distributions."""

import pytest
import torch
from torch import nn
from torch.distributions import Categorical
from torch.nn import functional as F  # noqa: N812
from torch.optim.lr_scheduler import ReduceLROnPlateau

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


def fit(model, optimizer, steps=100, after=lambda _: None):
    for _ in range(steps):
        place = 2 * torch.rand(128, 2) - 1
        height = torch.sin(3 * place[:, 0]) + place[:, 1].square()
        loss = F.mse_loss(model(place).squeeze(-1), height)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        after(loss)


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


@pytest.mark.parametrize(("mode", "words"), [("min", ""), ("max", "mode='max'")])
def test_a_plateau_schedule_that_waits_for_the_wrong_direction_is_named(mode, words):
    model = field()

    def loop(optimizer):
        schedule, losses = ReduceLROnPlateau(optimizer, mode=mode, patience=5), []

        def after(loss):
            losses.append(float(loss.detach()))
            if len(losses) % 15 == 0:
                schedule.step(sum(losses[-15:]) / 15)

        fit(model, optimizer, after=after)

    found = watched(loop, model)
    assert words in found
    assert bool(found) == bool(words)


@pytest.mark.parametrize("wrong", [False, True])
def test_the_probability_of_another_sample_is_named(wrong):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 4))

    def loop(optimizer):
        for _ in range(60):
            x = torch.randn(64, 4)
            chances = Categorical(logits=model(x))
            action = chances.sample()
            gain = (action == x.argmax(-1)).float() - 0.25
            asked = chances.sample() if wrong else action
            loss = -(gain * chances.log_prob(asked)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    assert ("log_prob is that of a later sample" in watched(loop, model)) == wrong


@pytest.mark.parametrize("wrong", [False, True])
def test_an_argument_in_another_unit_is_named(wrong):
    class Timed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = field()

        def forward(self, x, time):
            return self.net(torch.stack((x, time), -1)).squeeze(-1)

    torch.manual_seed(0)
    model = Timed()

    def loop(optimizer):
        for _ in range(60):
            x, time = torch.randn(64), torch.randint(40, (64,)) / 40
            loss = F.mse_loss(model(x, time), x * time)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            for n in range(40):
                model(torch.randn(8), torch.full((8,), n if wrong else n / 40, dtype=torch.float32))

    assert ("argument 2 of the network" in watched(loop, model)) == wrong


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

    def found(self, validate, loss=F.binary_cross_entropy_with_logits):
        def loop(optimizer):
            for _ in range(150):
                rows = torch.randint(len(self.words), (64,))
                value = loss(self.model(self.words[rows]), self.tags[rows])
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


@pytest.mark.parametrize("balanced", [False, True])
def test_a_score_that_one_answer_reaches_is_named(balanced):
    tags = Tags()

    def right(words, true):
        hits = (tags.model(words) > 0) == (true > 0.5)
        return [hits[true == one].float().mean() for one in (0, 1)] if balanced else hits.float().mean()

    assert ("one answer is the right one" in tags.found(right)) != balanced


def test_outputs_that_exclude_each_other_for_labels_that_do_not_are_named():
    tags = Tags()
    assert "one class excludes the others" in tags.found(tags.f1, F.cross_entropy)
    tags = Tags()
    softmax = lambda out, true: F.binary_cross_entropy(out.softmax(-1), true)  # noqa: E731
    assert "one class excludes the others" in tags.found(tags.f1, softmax)


@pytest.mark.parametrize("masked", [False, True])
def test_a_validation_that_counts_the_padding_is_named(masked):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(6, 16), nn.Linear(16, 6))

    def texts(count):
        tokens = torch.randint(1, 6, (count, 9))
        return tokens.masked_fill(torch.arange(9) >= torch.randint(3, 9, (count, 1)), 0)

    def loop(optimizer):
        for _ in range(60):
            x = texts(32)
            y = (x + 2) % 5 * (x > 0)
            loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            x = texts(100)
            y = (x + 2) % 5 * (x > 0)
            hits = model(x).argmax(-1) == y
            (hits[y > 0] if masked else hits).float().mean()

    assert ("its mask is missing" in watched(loop, model)) != masked


@pytest.mark.parametrize("undone", [False, True])
def test_outputs_that_are_not_scaled_back_are_named(undone):
    model = field()

    def loop(optimizer):
        fit(model, optimizer)
        with torch.no_grad():
            place = 2 * torch.rand(200, 2) - 1
            height = 40 + 7 * (torch.sin(3 * place[:, 0]) + place[:, 1].square())
            made = model(place).squeeze(-1)
            F.mse_loss(40 + 7 * made if undone else made, height)

    assert ("the outputs are not scaled back" in watched(loop, model)) != undone


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


@pytest.mark.parametrize("share", [0.3, 0.98])
def test_rare_classes_are_named(share):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))

    def loop(optimizer):
        for _ in range(60):
            y = (torch.rand(64) < share).long()
            loss = F.cross_entropy(model(torch.randn(64, 4) + y[:, None]), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    assert ("nearly all targets" in watched(loop, model)) == (share > 0.9)


@pytest.mark.parametrize("wrong", [False, True])
def test_a_generator_that_helps_its_judge_is_named(wrong):
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(3, 32), nn.LeakyReLU(0.2), nn.Linear(32, 2))
    judge = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
    one, two = (torch.optim.Adam(net.parameters(), lr=1e-3) for net in (generator, judge))
    real, made = torch.ones(64, 1), torch.zeros(64, 1)
    with rismusic.watch([generator, judge], [one, two], say=lambda _: None) as w:
        for _ in range(60):
            fake = generator(torch.randn(64, 3))
            loss = F.binary_cross_entropy_with_logits(judge(torch.randn(64, 2).sin()), real)
            loss = loss + F.binary_cross_entropy_with_logits(judge(fake.detach()), made)
            two.zero_grad()
            loss.backward()
            two.step()
            one.zero_grad()
            F.binary_cross_entropy_with_logits(judge(fake), made if wrong else real).backward()
            one.step()
    assert ("they do not compete" in " ".join(o.meaning for o in w.diagnosis.wrong)) == wrong
    assert w.diagnosis.healthy != wrong


@pytest.mark.parametrize("ahead", [1, 2])
def test_targets_that_skip_a_token_are_named(ahead):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(6, 16), nn.Linear(16, 6))

    def loop(optimizer):
        for _ in range(60):
            text = (torch.arange(10) * torch.randint(1, 6, (32, 1)) + torch.randint(6, (32, 1))) % 6
            loss = F.cross_entropy(model(text[:, :-ahead]).flatten(0, 1), text[:, ahead:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    assert ("2 places ahead of the input" in watched(loop, model)) == (ahead == 2)


@pytest.mark.parametrize("angles", [False, True])
def test_a_loss_of_angles_is_named(angles):
    torch.manual_seed(0)
    model = nn.Linear(3, 3, dtype=torch.complex64)
    data = torch.randn(500, 3, dtype=torch.complex64)

    def loop(optimizer):
        for _ in range(60):
            x = data[torch.randint(500, (64,))]
            y = x.flip(1)
            error = model(x).angle() - y.angle() if angles else torch.view_as_real(model(x) - y)
            loss = error.square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    assert ("compares angles alone" in watched(loop, model)) == angles
