from __future__ import annotations

import math

import pytest
import torch

from rismusic.errors import InputError
from rismusic.simulation.random_numbers import SPLITS, Draws, Stream, threefry


def word(value: int) -> torch.Tensor:
    return torch.tensor([value - (1 << 32) if value >= 1 << 31 else value], dtype=torch.int32)


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0), (0, 0), (0x9D1C5EC6, 0x8BD50731)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0xFD36D048, 0x2D17272C)),
        ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xBA3E4725, 0xF27D669E)),
    ],
)
def test_threefry_known_answers(counter, key, answer):
    """Random123, kat_vectors, threefry2x32 with 13 rounds."""
    drawn = threefry(word(key[0]), word(key[1]), word(counter[0]), word(counter[1]))
    assert [int(x) & 0xFFFFFFFF for x in drawn] == list(answer)


def test_a_scene_does_not_depend_on_its_company():
    together = Draws(3, "train", torch.arange(100)).complex_normal(Stream.NOISE, 7, 5)
    shuffled = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    assert torch.equal(Draws(3, "train", shuffled).complex_normal(Stream.NOISE, 7, 5), together[shuffled])
    assert torch.equal(
        Draws(3, "train", torch.tensor([42])).complex_normal(Stream.NOISE, 7, 5)[0], together[42]
    )
    assert torch.equal(
        Draws(3, "train", torch.arange(100))[shuffled].complex_normal(Stream.NOISE, 7, 5), together[shuffled]
    )


def test_more_numbers_leave_the_first_scene_numbers_alone():
    """Another scene number, seed, split or stream gives other numbers; numbers above 2**32 count too."""
    reference = Draws(0, "train", torch.tensor([5])).words(Stream.NOISE, 64)
    for seed, split, scene, stream in [
        (1, "train", 5, Stream.NOISE),
        (2**32, "train", 5, Stream.NOISE),
        (0, "validation", 5, Stream.NOISE),
        (0, "train", 6, Stream.NOISE),
        (0, "train", 5 + 2**32, Stream.NOISE),
        (0, "train", 5, Stream.SCATTER),
    ]:
        other = Draws(seed, split, torch.tensor([scene])).words(stream, 64)
        assert not (other == reference).any()


def test_splits_of_a_seed_share_no_scene_in_a_million():
    """64 bits of each of a million scenes of each split, all different."""
    marks = []
    for split in SPLITS:
        low, high = Draws(7, split, torch.arange(1_000_000)).words(Stream.POSITIONS, 2).unbind(1)
        marks.append((low.long() << 32) ^ (high.long() & 0xFFFFFFFF))
    marks = torch.cat(marks)
    assert len(torch.unique(marks)) == len(marks)


def test_skip_passes_over_pairs():
    draws = Draws(0, "train", torch.arange(3))
    whole, rest = draws.words(Stream.POSITIONS, 20), draws.words(Stream.POSITIONS, 10, skip=5)
    assert torch.equal(whole[:, 5:10], rest[:, :5])
    assert torch.equal(whole[:, 15:20], rest[:, 5:])


def test_uniform_is_uniform_and_never_0_or_1():
    value = Draws(0, "test", torch.arange(1000)).uniform(Stream.GAIN, 1000, dtype=torch.float64)
    assert 0 < value.min() < 1e-5
    assert 1 - 1e-5 < value.max() < 1
    counts = torch.histc(value, 100, 0, 1)
    chi_squared = ((counts - 1e4).square() / 1e4).sum()
    assert abs(chi_squared - 99) < 5 * math.sqrt(2 * 99)
    assert torch.equal(value.float().double(), value), "the same numbers in float32"


def test_moments_of_the_normal():
    z = Draws(0, "test", torch.arange(500)).complex_normal(Stream.NOISE, 2000, dtype=torch.complex128)
    n = z.numel()
    assert abs(z.mean()) < 5 / math.sqrt(n)
    assert abs(z.abs().square().mean() - 1) < 5 / math.sqrt(n)
    assert abs(z.square().mean()) < 5 * math.sqrt(2 / n), "circular"
    assert abs(z.abs().pow(4).mean() - 2) < 5 * math.sqrt(20 / n)
    neighbours = (z[:, 1:] * z[:, :-1].conj()).mean().abs(), (z[1:] * z[:-1].conj()).mean().abs()
    assert max(neighbours) < 5 / math.sqrt(n)


def test_moments_of_the_real_normal():
    x = Draws(0, "test", torch.arange(500)).normal(Stream.STATIC_PHASE, 1000, dtype=torch.float64)
    assert abs(x.mean()) < 5 / math.sqrt(x.numel())
    assert abs(x.square().mean() - 1) < 5 * math.sqrt(2 / x.numel())


@pytest.mark.parametrize("levels", [2, 8, 256])
def test_octets_are_uniform(levels):
    value = Draws(0, "test", torch.arange(300)).octets(Stream.CODES, levels, 7, 111)
    counts = torch.bincount(value.flatten(), minlength=levels).double()
    expected = value.numel() / levels
    assert len(counts) == levels
    assert abs(((counts - expected).square() / expected).sum() - (levels - 1)) < 5 * math.sqrt(2 * levels)


def test_integers_are_uniform():
    value = Draws(0, "test", torch.arange(100_000)).integers(Stream.COUNT, 5)
    counts = torch.bincount(value).double()
    assert len(counts) == 5
    assert (counts - 20_000).abs().max() < 5 * math.sqrt(20_000)


def test_bad_seed_and_split():
    for seed, split, field in [(-1, "train", "seed"), (2**64, "train", "seed"), (0, "dev", "split")]:
        with pytest.raises(InputError, match=f"^{field}: must be"):
            Draws(seed, split, torch.arange(1))
