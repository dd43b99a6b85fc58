from __future__ import annotations

import numpy as np
import pytest
import torch

from rismusic.errors import InputError
from rismusic.operator import Link

S, L, M, N, K = 3, 4, 5, 7, 2


def noise(generator, *shape):
    return torch.randn(*shape, dtype=torch.complex128, generator=generator)


def make(kind, generator):
    channel, codes = noise(generator, S, M, N), noise(generator, S, L, N)
    return {
        "per scene": Link(channel, codes),
        "one for all": Link(channel[0], codes[0]),
        "channel per scene": Link(channel, codes[0]),
        "codes per scene": Link(channel[0], codes),
        "direct": Link(),
        "direct with element errors": Link(None, codes[:, :1]),
        "no codes": Link(channel, None),
    }[kind]


KINDS = [
    "per scene",
    "one for all",
    "channel per scene",
    "codes per scene",
    "direct",
    "direct with element errors",
    "no codes",
]


def matrices(link):
    """G_l, [S, L, M, N], written out entry by entry."""
    channel = torch.eye(N, dtype=torch.complex128) if link.channel is None else link.channel
    codes = torch.ones(1, N, dtype=torch.complex128) if link.codes is None else link.codes
    G = torch.einsum("...mn,...ln->...lmn", channel.expand(S, -1, N), codes.expand(S, -1, N))
    return G.expand(S, L, -1, N)


@pytest.mark.parametrize("kind", KINDS)
def test_against_the_matrices(kind, generator):
    link = make(kind, generator)
    G = matrices(link)
    field, A = noise(generator, S, L, N), noise(generator, S, N, K)
    y = noise(generator, S, L, G.shape[-2])
    torch.testing.assert_close(link.apply(field), torch.einsum("slmn,sln->slm", G, field))
    torch.testing.assert_close(link.adjoint(y), torch.einsum("slmn,slm->sln", G.conj(), y))
    torch.testing.assert_close(link.matmul(A).expand(S, L, -1, K), G @ A[:, None])
    if kind != "direct":
        torch.testing.assert_close(link.dense().expand(S, L, -1, N), G)


@pytest.mark.parametrize("kind", KINDS)
def test_many_columns_take_another_path_to_the_same_product(kind, generator, monkeypatch):
    """Also in blocks of scenes, and for columns that the scenes share or that have more axes."""
    monkeypatch.setattr("rismusic.operator._BLOCK", 2)
    link = make(kind, generator)
    for axes in ((S,), (), (4, S)):
        A = noise(generator, *axes, N, 9)
        torch.testing.assert_close(link.matmul(A)[..., :1], link.matmul(A[..., :1]))
        expected = matrices(link) @ A.unsqueeze(-3)
        torch.testing.assert_close(link.matmul(A).expand_as(expected), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_adjoint_and_slices(kind, generator):
    link = make(kind, generator)
    field = noise(generator, S, L, N)
    y = noise(generator, *link.apply(field).shape)
    torch.testing.assert_close((y.conj() * link.apply(field)).sum(), (link.adjoint(y).conj() * field).sum())
    torch.testing.assert_close(link[1:].apply(field[1:]), link.apply(field)[1:])


def test_leading_axes_of_the_field(generator):
    """One link, many scenes: the link broadcasts."""
    link = make("one for all", generator)
    A = noise(generator, 6, 2, N, K)
    torch.testing.assert_close(link.matmul(A)[4, 1], link.matmul(A[4, 1]))
    assert not link.per_scene
    assert make("codes per scene", generator).per_scene


def test_precision(generator):
    link = make("per scene", generator).to(torch.complex64)
    assert link.channel.dtype == link.codes.dtype == torch.complex64


@pytest.mark.parametrize(
    ("channel", "codes", "sentence"),
    [
        (torch.zeros(5, 7), None, "channel: must hold complex numbers; got float32"),
        (torch.zeros(7, dtype=torch.complex64), None, r"channel: must have shape \[M, N\], .*got \[7\]"),
        (None, torch.zeros(4, 7), "codes: must hold complex numbers"),
        (
            torch.zeros(5, 7, dtype=torch.complex64),
            torch.zeros(4, 6, dtype=torch.complex64),
            r"codes: must have as many elements N \(last axis\) as channel, 7; got 6",
        ),
    ],
)
def test_bad_links(channel, codes, sentence, untyped):
    with pytest.raises(InputError, match=sentence):
        Link(channel, codes)


def test_direct_sampling_has_no_size():
    with pytest.raises(InputError, match=r"link: direct sampling .* has no dense matrix"):
        Link().dense()


def test_numpy_arrays_and_repr():
    link = Link(np.ones((4, 9), complex), np.ones((11, 9), np.complex64))
    assert link.channel.dtype == torch.complex128
    assert link.codes.dtype == torch.complex64
    assert repr(link) == "Link(channel [4, 9], codes [11, 9])"
    assert repr(Link()) == "Link(direct sampling)"
