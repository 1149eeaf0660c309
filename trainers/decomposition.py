"""The best low-rank factors of a matrix, and how many of them are worth keeping. Pure functions of tensors."""
from dataclasses import dataclass

import torch
from torch import Tensor

DEPTH = 4
"""Applications of the matrix; with more the sketch grows, with less the residual rises above half a percent of the best."""
EXACT_UP_TO = 768
"""Short side up to which a matrix is decomposed exactly: sketching would save nothing."""


@dataclass(frozen=True)
class Factors:
    """left [m, r] · diag(values [r]) · right [r, n], values falling; `energy` is the squared Frobenius norm of the whole
    matrix, so what is left out is known even when only the first values are."""

    left: Tensor
    values: Tensor
    right: Tensor
    energy: float

    def first(self, rank: int) -> "Factors":
        return Factors(self.left[:, :rank], self.values[:rank], self.right[:rank], self.energy)

    @property
    def kept(self) -> float:
        """Share of the energy that the factors hold."""
        return float((self.values.double() ** 2).sum()) / self.energy if self.energy else 1.0


def decompose(matrix: Tensor, rank: int, exact: bool = False, seed: int = 0) -> Factors:
    """The first `rank` singular triplets of a float32 matrix [m, n].

    Large ones by randomised block Krylov iteration (Musco & Musco 2015, arXiv:1504.05477, algorithm 2): the matrix is
    applied `DEPTH` times to three quarters of `rank` random vectors, and the best factors within all that they span are
    taken.
    """
    rank = min(rank, *matrix.shape)
    energy = squared_norm(matrix)
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    block = max(8, -(-3 * rank // 4))
    if exact or tall.shape[1] <= max(EXACT_UP_TO, 2 * DEPTH * block):
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        return Factors(left[:, :rank], values[:rank], right[:rank], energy)
    start = torch.randn((tall.shape[1], block), generator=torch.Generator().manual_seed(seed)).to(tall)
    blocks = [torch.linalg.qr(tall @ start).Q]
    while len(blocks) < DEPTH:
        blocks.append(torch.linalg.qr(tall @ (tall.T @ blocks[-1])).Q)
    basis = torch.linalg.qr(torch.cat(blocks, dim=1)).Q
    inner = basis.T @ tall
    # The Gram matrix is small; in float64 its square roots are as exact as float32 singular values.
    vectors = torch.linalg.eigh(inner.double() @ inner.double().T).eigenvectors.flip(1)[:, :rank].to(tall)
    left = basis @ vectors
    right = vectors.T @ inner
    values = right.norm(dim=1)
    right = right / values.clamp(min=torch.finfo(values.dtype).tiny)[:, None]
    return Factors(left, values, right, energy) if tall is matrix else Factors(right.T, values, left.T, energy)


def squared_norm(matrix: Tensor, rows: int = 256) -> float:
    """Squared Frobenius norm, summed in float64 without a copy of the matrix in it."""
    return sum(float((piece.double() ** 2).sum()) for piece in matrix.split(rows))


def rank_by_energy(factors: Factors, share: float) -> int:
    """The smallest rank that keeps `share` of the squared Frobenius norm."""
    kept = torch.cumsum(factors.values.double() ** 2, dim=0)
    enough = torch.nonzero(kept >= share * factors.energy * (1 - 1e-9))
    return int(enough[0]) + 1 if len(enough) else len(factors.values)


def rank_by_ratio(factors: Factors, ratio: float) -> int:
    """The number of singular values that are at least 1 / `ratio` of the largest."""
    return max(1, int((factors.values >= factors.values[0] / ratio).sum()))


def rank_by_knee(factors: Factors) -> int:
    """Where the curve of singular values bends most: the point farthest below the line from its first to its last
    (Satopää et al. 2011, "Finding a Kneedle in a Haystack")."""
    values = factors.values.double()
    if len(values) < 3 or values[0] <= 0:
        return len(values)
    height = (values - values[-1]) / max(float(values[0] - values[-1]), 1e-300)
    line = 1 - torch.arange(len(values), dtype=torch.float64) / (len(values) - 1)
    return max(1, int(torch.argmax(line - height)))
