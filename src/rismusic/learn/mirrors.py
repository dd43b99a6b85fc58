r"""Mirrors that a panel and a grid share, by which products with the steering vectors fall into small parts.

Where the panel looks the same in a mirror across the vertical or the horizontal axis, so does the box of
:class:`~rismusic.estimate.grid.SearchGrid`, and the steering vector of a mirrored point is the mirrored
steering vector, :math:`a_{s p} = J_s a_p`. Let G be the mirrors and their products (1, 2 or 4 of them), with
the characters :math:`\chi_c(s) = \pm 1`, and :math:`f_c` the part of :math:`a_p` that is even or odd in each
mirror as c says:

.. math:: f_c(s p) = \chi_c(s)\, f_c(p), \qquad
    \sum_p \gamma_p f_a(p) f_b(p)^H = \sum_o f_a(o) f_b(o)^H \sum_s \chi_{ab}(s)\, \gamma_{s o},

the right side with one point o of each set of mirror images. A sum over P points of D x D numbers becomes
:math:`G^2` sums of P / G points and :math:`(D / G)^2` numbers, of G mirrors: 1 / G of the work.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int64
from torch import Tensor

from rismusic.estimate.grid import SearchGrid
from rismusic.panel import Panel

# Distance at which an element counts as the mirror image of another, in wavelengths.
_SAME = 1e-6


@dataclass(frozen=True, eq=False)
class Mirrors:
    """G = 2^m mirrors s, the identity first, and as many classes c of what is even or odd in them.

    Args:
        signs: chi_c(s), [G, G].
        pairs: number of the class of the product of two, chi_a chi_b, [G, G].
        elements: number of each element's mirror image, [G, N].
        points: number of the mirror images of one point of each set, [G, O].
        share: of a point among its images, less than 1 where it is an image of itself, [O].
        back: for each of the P points its place among ``points``, flattened, [P].
    """

    signs: Float[Tensor, "G G"]
    pairs: Int64[Tensor, "G G"]
    elements: Int64[Tensor, "G N"]
    points: Int64[Tensor, "G O"]
    share: Float[Tensor, "O"]
    back: Int64[Tensor, "P"]

    @classmethod
    def of(cls, grid: SearchGrid) -> Mirrors:
        """Those of a grid and its panel: across the vertical axis, the horizontal one, both, or none."""
        device = grid.inside.device
        X, Y, Z = grid.shape
        elements = torch.arange(grid.panel.size, device=device)[None]
        numbers = torch.arange(len(grid), device=device).view(1, X, Y, Z)
        signs = torch.ones(1, 1, device=device)
        for axis in (0, 1):
            image = _mirrored(grid.panel, axis)
            if image is not None:
                elements = torch.cat((elements, image[elements]))
                numbers = torch.cat((numbers, numbers.flip(axis + 1)))
                signs = torch.cat((torch.cat((signs, signs), 1), torch.cat((signs, -signs), 1)))
        numbers = numbers.flatten(1)
        points = numbers[:, numbers[0] == numbers.amin(0)]
        G = len(signs)
        back = torch.empty(len(grid), dtype=torch.int64, device=device)
        back[points.flatten()] = torch.arange(points.numel(), device=device)
        share = 1 / (points == points[0]).sum(0).float()
        number = torch.arange(G, device=device)
        return cls(signs, number[:, None] ^ number, elements, points, share, back)

    def __len__(self) -> int:
        return len(self.signs)

    def parts(self, vectors: Complex[Tensor, "N B"]) -> Complex[Tensor, "G N B"]:
        """What of vectors over the elements belongs to each class; they are the sum of their parts."""
        signs = self.signs.to(vectors.dtype)
        return (signs @ vectors[self.elements].flatten(1)).unflatten(1, vectors.shape) / len(self)

    def fold(self, values: Float[Tensor, "S P"]) -> Float[Tensor, "G S O"]:
        """Sums of a value of the points over mirror images, with the signs of each class."""
        images = (values[:, self.points] * self.share).movedim(1, 0)
        return (self.signs @ images.flatten(1)).unflatten(1, images.shape[1:])

    def unfold(self, parts: Float[Tensor, "G *batch O"]) -> Float[Tensor, "G *batch O"]:
        """Of the classes' parts at one point of each set, the sum at all its mirror images."""
        return (self.signs @ parts.flatten(1)).unflatten(1, parts.shape[1:])

    def spread(self, images: Float[Tensor, "G S O"]) -> Float[Tensor, "S P"]:
        """Values at mirror images as values of the points."""
        return images.movedim(0, 1).flatten(1)[:, self.back]


def _mirrored(panel: Panel, axis: int) -> Int64[Tensor, "N"] | None:
    """The number of each element's image in the mirror across an axis, if all have one."""
    there = panel.elements.double()
    image = there.clone()
    image[:, axis] *= -1
    distance, nearest = torch.cdist(image, there, compute_mode="donot_use_mm_for_euclid_dist").min(dim=-1)
    return nearest if bool((distance < _SAME * panel.wavelength).all()) else None
