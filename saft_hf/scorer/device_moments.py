"""The pool's mean and scatter, summed on a CUDA device: at d = 4,096 a CPU takes minutes for what takes it a second."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saft_hf.score import Moments


@dataclass(frozen=True, slots=True, eq=False)
class DeviceMoments:
    """`Moments` whose sums stay on the device: d x d numbers a shard would take longer to copy than to add.

    Merging gives the same bits in every process: what another one has summed is brought to the device first.

    Attributes:
        count: number of rows, each with its multiplicity.
        mean: mean row, float64 [d].
        scatter: sum of the outer products of the centred rows, float64 [d, d], exactly symmetric.
    """

    count: float
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, rows: Tensor, times: NDArray[np.int64]) -> Self:
        """Moments of finite rows, float64 [n, d], of which each counts so many times, [n]."""
        d, count = rows.shape[1], float(times.sum())
        if count == 0:
            return cls(0.0, rows.new_zeros(d), rows.new_zeros((d, d)))
        weights = torch.from_numpy(times.astype(np.float64)).to(rows.device)
        # Measured from the first row, as in `Moments.of`: a mean far from zero costs no digits.
        centred = rows - rows[0]
        shift = weights @ centred / count
        centred = (centred - shift) * weights.sqrt()[:, None]
        half = (centred.T @ centred).triu_()
        # A library's product may differ in the last bit across the diagonal.
        return cls(count, rows[0] + shift, half + half.triu(1).T)

    def merge(self, other: Self) -> Self:
        """Moments of both sets of rows together (Chan, Golub and LeVeque 1983, equation 2.1)."""
        count = self.count + other.count
        if count == 0:
            return self
        delta = other.mean - self.mean
        scatter = torch.outer(delta, delta).mul_(self.count * other.count / count)
        scatter.add_(self.scatter).add_(other.scatter)
        return type(self)(count, self.mean + delta * (other.count / count), scatter)

    def to_host(self) -> Moments:
        """The same for numpy."""
        return Moments(self.count, self.mean.cpu().numpy(), self.scatter.cpu().numpy())

    def __reduce__(self) -> tuple[Any, ...]:
        # To another process through memory of the host, and there onto its own device.
        return _from_host, (self.to_host(), self.mean.device.type)


def _from_host(moments: Moments, device_type: str) -> DeviceMoments:
    sums = (torch.from_numpy(array).to(device_type) for array in (moments.mean, moments.scatter))
    return DeviceMoments(moments.count, *sums)
