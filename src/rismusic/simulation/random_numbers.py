"""Counter-based random numbers of a scene, a function of (seed, split, scene, stream) alone.

With a stateful generator, a scene would depend on the batch size, the process and the device. Here every
number is a hash of its address by the counter-based generator Threefry-2x32 with 13 rounds (Salmon et al.,
"Parallel random numbers: as easy as 1, 2, 3", SC 2011; JAX uses the version with 20 rounds, and 13 rounds
pass the BigCrush tests). Any scene can be drawn alone, in any order, on any device. The integers are
identical everywhere; functions of them (logarithms, cosines) agree to rounding.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Literal

import torch
from jaxtyping import Complex, Float, Int32, Int64
from torch import Tensor

from rismusic.errors import InputError

Split = Literal["train", "validation", "test"]

# Each split has its own key; "link" is for the link that all scenes of a system share.
SPLITS = {"train": 0, "validation": 1, "test": 2, "link": 3}

_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_PARITY = 0x1BD11BDA


class Stream(IntEnum):
    """Purpose of a random number. Streams are independent: the channel of a scene does not depend on K."""

    POSITIONS = 0
    COUNT = 1
    POWERS = 2
    SYMBOLS = 3
    NOISE = 4
    SNR = 5
    STATION = 6
    RICIAN_FACTOR = 7
    SCATTER = 8
    CODES = 9
    STATIC_PHASE = 10
    CODE_PHASE = 11
    GAIN = 12
    DEAD = 13
    DISPLACEMENT = 14
    BETA = 15
    HIDDEN_NOISE = 16
    DROPOUT = 17
    PILOTS = 18
    IMPULSE_SAMPLES = 19
    IMPULSES = 20
    COMMON_SYMBOLS = 21


class Draws:
    """Random numbers of a batch of scenes; each row is a function of (seed, split, scene number) alone.

    Args:
        seed: integer from 0 to 2**64 - 1.
        split: ``train``, ``validation`` or ``test`` (or ``link``); the splits of a seed share no scene.
        scenes: scene numbers, [S] int64, from 0 to 2**63 - 1, on the device of the random numbers.
    """

    def __init__(self, seed: int, split: str, scenes: Int64[Tensor, "S"]) -> None:
        if not 0 <= seed < 2**64:
            raise InputError("seed", f"must be an integer from 0 to 2**64 - 1; got {seed}")
        if split not in SPLITS:
            raise InputError("split", f"must be train, validation or test; got {split!r}")
        self.scenes = scenes
        whole = scenes.new_zeros(1)
        low, high = _word(whole + (seed & 0xFFFFFFFF)), _word(whole + (seed >> 32))
        key = threefry(low, high, _word(whole), _word(whole + SPLITS[split]))
        self._key = threefry(*key, _word(scenes), _word(scenes >> 32))

    def __getitem__(self, rows: Int64[Tensor, "R"]) -> Draws:
        """Random numbers of a subset of the scenes."""
        part = object.__new__(Draws)
        part.scenes, part._key = self.scenes[rows], (self._key[0][rows], self._key[1][rows])
        return part

    def words(self, stream: Stream, count: int, skip: int = 0) -> Int32[Tensor, "S count"]:
        """[S, count] independent words of 32 random bits; ``skip`` is the number of pairs to skip."""
        pairs = (count + 1) // 2
        zero = self._key[0].new_zeros(1)
        key0, key1 = threefry(*self._key, zero, zero + int(stream))
        counter = torch.arange(skip, skip + pairs, dtype=torch.int32, device=zero.device)[None]
        first, second = threefry(key0[:, None], key1[:, None], counter, torch.zeros_like(counter))
        return torch.cat((first, second), dim=1)[:, :count]

    def uniform(
        self, stream: Stream, *shape: int, dtype: torch.dtype = torch.float32, skip: int = 0
    ) -> Float[Tensor, "S ..."]:
        """[S, *shape] uniform on the open interval (0, 1), a multiple of 2**-24 in either precision."""
        return _unit(self.words(stream, math.prod(shape), skip), dtype).reshape(-1, *shape)

    def integers(self, stream: Stream, high: int, *shape: int) -> Int64[Tensor, "S ..."]:
        """[S, *shape] uniform on 0 .. high - 1 (for high up to 2**16 the bias is below 2**-15)."""
        words = self.words(stream, math.prod(shape)).reshape(-1, *shape)
        return ((words.long() & 0xFFFFFFFF) * high) >> 32

    def octets(self, stream: Stream, levels: int, *shape: int) -> Int32[Tensor, "S ..."]:
        """[S, *shape] uniform on 0 .. levels - 1, four to a word; levels is a power of two up to 256."""
        count = math.prod(shape)
        words = self.words(stream, (count + 3) // 4).contiguous()
        octets = torch.bitwise_and(words.view(torch.uint8)[:, :count], levels - 1)
        return octets.to(torch.int32).reshape(-1, *shape)

    def complex_normal(
        self, stream: Stream, *shape: int, dtype: torch.dtype = torch.complex64
    ) -> Complex[Tensor, "S ..."]:
        """[S, *shape] circular complex normal of unit variance, E|z|^2 = 1, by the Box-Muller transform."""
        count = math.prod(shape)
        words = self.words(stream, 2 * count)
        real = dtype.to_real()
        radius = _unit(words[:, :count], real).log_().neg_().sqrt_()
        angle = _unit(words[:, count:], real).mul_(2 * math.pi)
        return torch.complex(radius * angle.cos(), radius * angle.sin()).reshape(-1, *shape)

    def normal(
        self, stream: Stream, *shape: int, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "S ..."]:
        """[S, *shape] real standard normal."""
        return self.complex_normal(stream, *shape, dtype=dtype.to_complex()).real * math.sqrt(2.0)


def threefry(
    key0: Int32[Tensor, "..."], key1: Int32[Tensor, "..."], x0: Int32[Tensor, "..."], x1: Int32[Tensor, "..."]
) -> tuple[Int32[Tensor, "..."], Int32[Tensor, "..."]]:
    """Threefry-2x32 with 13 rounds: for each key a bijection of the 64-bit counter (x0, x1).

    Keys and counters broadcast. Equal to the published known answers of Random123 (``threefry2x32 13``).
    """
    keys = (key0, key1, key0 ^ key1 ^ _PARITY)
    x0, x1 = torch.broadcast_tensors(x0 + key0, x1 + key1)
    x0, x1 = x0.clone(memory_format=torch.contiguous_format), x1.clone(memory_format=torch.contiguous_format)
    low = torch.empty_like(x1)
    for turn in range(13):
        left = _ROTATIONS[turn % 8]
        x0 += x1
        # Rotate x1 left; the mask removes the sign bits of the arithmetic right shift.
        torch.bitwise_right_shift(x1, 32 - left, out=low)
        low &= (1 << left) - 1
        x1 <<= left
        x1 |= low
        x1 ^= x0
        if turn % 4 == 3:
            block = turn // 4 + 1
            x0 += keys[block % 3]
            x1 += keys[(block + 1) % 3] + block
    return x0, x1


def _word(value: Int64[Tensor, "..."]) -> Int32[Tensor, "..."]:
    """The low 32 bits as int32."""
    value = value & 0xFFFFFFFF
    return torch.where(value >= 1 << 31, value - (1 << 32), value).to(torch.int32)


def _unit(words: Int32[Tensor, "..."], dtype: torch.dtype) -> Float[Tensor, "..."]:
    """Words to midpoints of 2**23 cells of (0, 1), exact in float32 and never 0."""
    return (words & 0x7FFFFF).to(dtype).add_(0.5).mul_(2.0**-23)
