"""Sums that stay on a device are those of numpy."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saft_hf.score import Moments
from saft_hf.scorer.device_moments import DeviceMoments

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def parts_of(seed: int, sizes: list[int], device: str) -> list[tuple[Moments, DeviceMoments]]:
    draw, parts = np.random.default_rng(seed), []
    for size in sizes:
        rows, times = draw.normal(300, 2, (size, 12)).astype(np.float32), draw.integers(1, 4, size)
        on_device = torch.from_numpy(rows).to(device).double()
        parts.append((Moments.of(rows, times), DeviceMoments.of(on_device, times)))
    return parts


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.lists(st.integers(0, 40), min_size=1, max_size=4))
def test_sums_on_a_device_are_those_of_numpy_in_every_part(device: str, seed: int, sizes: list[int]) -> None:
    plain, summed = Moments.zeros(12), None
    for part, on_device in parts_of(seed, sizes, device):
        plain = plain.merge(part)
        summed = on_device if summed is None else summed.merge(on_device)
    assert summed is not None
    found = summed.to_host()
    assert found.count == plain.count
    np.testing.assert_allclose(found.mean, plain.mean, rtol=1e-12)
    np.testing.assert_allclose(found.scatter, plain.scatter, rtol=1e-9, atol=1e-9)
    assert np.array_equal(found.scatter, found.scatter.T)


@pytest.mark.parametrize("device", DEVICES)
def test_sums_of_another_process_merge_to_the_same_bits(device: str) -> None:
    (_, one), (_, other) = parts_of(0, [30, 20], device)
    here, travelled = one.merge(other), one.merge(pickle.loads(pickle.dumps(other)))
    assert here.count == travelled.count
    assert torch.equal(here.mean, travelled.mean)
    assert torch.equal(here.scatter, travelled.scatter)
