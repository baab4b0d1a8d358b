"""The order of text is a permutation per pass, and a pure function of seed and position."""

import numpy as np
import pytest

from openspectra.data.order import sequence_at


@pytest.mark.parametrize("num_sequences", [1, 2, 3, 7, 64, 1000, 4097])
def test_every_pass_reads_each_sequence_once(num_sequences):
    order = sequence_at(range(3 * num_sequences), num_sequences, seed=5).reshape(3, num_sequences)
    for one_pass in order:
        assert sorted(one_pass) == list(range(num_sequences))


def test_passes_and_seeds_differ():
    first, second = sequence_at(range(2000), 1000, seed=5).reshape(2, 1000)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, sequence_at(range(1000), 1000, seed=6))


def test_order_does_not_depend_on_how_it_is_asked_for():
    whole = sequence_at(range(100), 37, seed=1)
    parts = np.concatenate([sequence_at(range(start, start + 5), 37, seed=1) for start in range(0, 100, 5)])
    assert np.array_equal(whole, parts)


def test_order_looks_random():
    order = sequence_at(range(10_000), 10_000, seed=3)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(np.arange(10_000), order)[0, 1]) < 0.05


def test_paper_size_is_within_bounds():
    order = sequence_at([0, 1, 146_484_374], 146_484_375, seed=0)
    assert order.min() >= 0
    assert order.max() < 146_484_375
