"""Ternarization against an independent NumPy implementation, with inputs away from rounding ties."""

import numpy as np
import pytest
import torch

from openspectra.model.families import FAMILIES
from openspectra.model.ternary import StraightThroughTernary, ternarize, ternary_weight


def numpy_ternary(weight: np.ndarray, scales_per_matrix: int, shard_dim: int) -> np.ndarray:
    parts = []
    for shard in np.split(weight, scales_per_matrix, axis=shard_dim):
        gamma = 1e-5 + np.abs(shard).mean()
        parts.append(gamma * np.sign(shard) * (np.abs(shard) > 0.5 * gamma))
    return np.concatenate(parts, axis=shard_dim)


@pytest.mark.parametrize("shard_dim", [0, 1])
@pytest.mark.parametrize("scales_per_matrix", [1, 2, 3, 6])
def test_ternary_weight_equals_numpy(scales_per_matrix, shard_dim):
    weight = np.random.default_rng(0).normal(size=(12, 24)) * 0.02
    ours = ternary_weight(torch.from_numpy(weight), scales_per_matrix, shard_dim).numpy()
    np.testing.assert_allclose(ours, numpy_ternary(weight, scales_per_matrix, shard_dim), rtol=1e-12)


def test_gradient_is_identity_through_states_and_scale():
    weight = torch.randn(6, 8, dtype=torch.float64, requires_grad=True)
    x, grad_y = torch.randn(3, 8, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    effective = StraightThroughTernary.apply(weight, 2, 0)
    (x @ effective.T).backward(grad_y)
    torch.testing.assert_close(weight.grad, grad_y.T @ x, rtol=1e-12, atol=0)


def test_gaussian_weights_start_with_31_percent_zeros():
    weight = torch.randn(1000, 1000, generator=torch.Generator().manual_seed(0))
    states, _ = ternarize(weight)
    assert (states == 0).double().mean().item() == pytest.approx(0.310, abs=0.005)  # P(|w| < mean|w| / 2)


def test_zero_matrix_stays_finite_and_zero():
    assert torch.equal(ternary_weight(torch.zeros(4, 4)), torch.zeros(4, 4))


def test_unequal_shards_are_refused_with_both_numbers():
    with pytest.raises(ValueError, match="must divide the sharded dimension; got 5 and 12"):
        ternarize(torch.randn(12, 24), 5, 0)


@pytest.mark.parametrize("family", FAMILIES.values())
def test_family_name_is_its_key(family):
    assert FAMILIES[family.name] is family
