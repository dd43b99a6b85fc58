r"""Mirror symmetries of a panel and its search grid, which save work in products with all steering vectors.

If reflecting the panel across the vertical or horizontal axis maps it onto itself, the same holds for the
grid, and the steering vector of a reflected point is the reflected steering vector,
:math:`a_{s p} = J_s a_p`. Let s be one of the G = 1, 2 or 4 reflections and their products,
:math:`\chi_c(s) = \pm 1` their characters, and :math:`f_c` the component of :math:`a_p` of class c, which is
even or odd in each reflection. Then

.. math:: f_c(s p) = \chi_c(s)\, f_c(p).

The product of a row w with all points follows from the components :math:`w_c` of the row in each class and
one point o of each orbit, :math:`w^T a_{s o} = \sum_c \chi_c(s)\, w_c^T f_c(o)`. Each class has N / G
dimensions and P / G points, so that G products of this size, 1 / G of the work, replace one of N x P.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from jaxtyping import Complex, Float, Int64
from torch import Tensor

from rismusic.array import Panel
from rismusic.estimation.grid import SearchGrid
from rismusic.estimation.maximum_likelihood import compiled_fits

_SAME = 1e-6  # tolerance of the position of a mirrored element, in wavelengths
_MANY_ROWS = 16  # fewer rows take longer to reach oneDNN than they gain


@dataclass(frozen=True, eq=False)
class Symmetry:
    """Symmetry group of G = 2^m reflections s, the identity first, and its G classes c."""

    signs: Float[Tensor, "G G"]  # characters chi_c(s)
    pairs: Int64[Tensor, "G G"]  # class of the product of two characters, chi_a chi_b
    elements: Int64[Tensor, "G N"]  # index of the image of each element
    points: Int64[Tensor, "G O"]  # indices of the images of one point of each of O orbits
    share: Float[Tensor, "O"]  # 1 over the multiplicity of a point among its images
    back: Int64[Tensor, "P"]  # index of each of the P points in ``points``, flattened

    @classmethod
    def of(cls, grid: SearchGrid) -> Symmetry:
        """The symmetry of a grid and its panel."""
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
        """Components of vectors over the elements in each class; they sum to the vectors."""
        signs = self.signs.to(vectors.dtype)
        return (signs @ vectors[self.elements].flatten(1)).unflatten(1, vectors.shape) / len(self)

    def fold(self, values: Float[Tensor, "S P"]) -> Float[Tensor, "G S O"]:
        """Sums of point values over each orbit, with the signs of each class."""
        images = (values[:, self.points] * self.share).movedim(1, 0)
        return (self.signs @ images.flatten(1)).unflatten(1, images.shape[1:])

    def unfold(self, parts: Float[Tensor, "G *batch O"]) -> Float[Tensor, "G *batch O"]:
        """The inverse of :meth:`fold`: from class components at one point of each orbit to all its images."""
        return (self.signs @ parts.flatten(1)).unflatten(1, parts.shape[1:])

    def to_points(self, images: Float[Tensor, "G S O"]) -> Float[Tensor, "S P"]:
        """Reorder values at the images of each orbit to grid points."""
        return images.movedim(0, 1).flatten(1)[:, self.back]


def with_onednn(device: torch.device) -> bool:
    """Whether constant matrices are multiplied by oneDNN: on a CPU, beside the compiled fits.

    It uses the widest vectors of any processor. MKL, behind torch's matrix products, uses half their width on
    those of AMD. Training keeps torch's.
    """
    there = device.type == "cpu" and torch.backends.mkldnn.is_available()
    there = there and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # an internal operation of torch
    return there and torch.is_inference_mode_enabled() and compiled_fits() is not None


def onednn_linear(
    rows: Float[Tensor, "*batch K"], weight: Float[Tensor, "O K"], bias: Float[Tensor, "O"] | None = None
) -> Float[Tensor, "*batch O"]:
    """:func:`torch.nn.functional.linear` by oneDNN, without the copies that tensors of its own type need."""
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], ""))


class ConstantMatrices:
    """One matrix for each class, with which many rows are multiplied in single precision."""

    def __init__(self, matrices: Float[Tensor, "G K O"]) -> None:
        self.matrices = matrices

    @cached_property
    def _packed(self) -> list[Tensor]:
        return [torch.ops.mkldnn._reorder_linear_weight(matrix.mT.contiguous()) for matrix in self.matrices]

    def __call__(self, rows: Float[Tensor, "G R K"]) -> list[Float[Tensor, "R O"]]:
        """The products of each class."""
        if rows.shape[1] >= _MANY_ROWS and with_onednn(rows.device):
            return [onednn_linear(part, matrix) for part, matrix in zip(rows, self._packed, strict=True)]
        return list((rows @ self.matrices).unbind())


def _mirrored(panel: Panel, axis: int) -> Int64[Tensor, "N"] | None:
    """Index of the image of each element in the reflection along an axis; none if one has no image."""
    elements = panel.elements.double()
    image = elements.clone()
    image[:, axis] *= -1
    distance, nearest = torch.cdist(image, elements, compute_mode="donot_use_mm_for_euclid_dist").min(dim=-1)
    return nearest if bool((distance < _SAME * panel.wavelength).all()) else None
