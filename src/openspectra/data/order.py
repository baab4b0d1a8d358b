"""The order of training text: the n-th sequence is a pure function of (seed, n).

A keyed permutation computed in constant time and memory, so that no shuffled list of all sequences ever exists and
the loader has no state but the step. Equal for every family, world size and micro batch.
"""

import numpy as np

ROUNDS = 4


def sequence_at(n: np.ndarray, num_sequences: int, seed: int) -> np.ndarray:
    """Return the indices, in [0, num_sequences), of the `n`-th training sequences (integers of any shape).

    Each pass over the text is a permutation of its own: pass e uses the key (seed, e).
    """
    epochs, positions = np.divmod(np.asarray(n, dtype=np.uint64), np.uint64(num_sequences))
    keys = mix(np.uint64(seed) ^ mix(epochs + np.uint64(1)))
    half = np.uint64(max(1, ((num_sequences - 1).bit_length() + 1) // 2))
    result = _feistel(positions, keys, half)
    while (outside := result >= num_sequences).any():  # cycle walking: the block is at most four times too large
        result[outside] = _feistel(result[outside], np.broadcast_to(keys, result.shape)[outside], half)
    return result.astype(np.int64)


def _feistel(value: np.ndarray, key: np.ndarray, half: np.uint64) -> np.ndarray:
    """A permutation of [0, 4^half), one for each key."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = value >> half, value & mask
    for number in range(ROUNDS):
        left, right = right, left ^ (mix(right ^ mix(key + np.uint64(number))) & mask)
    return (left << half) | right


def mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64: every input bit reaches every output bit."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x ^= x >> np.uint64(30)
        x *= np.uint64(0xBF58476D1CE4E5B9)
        x ^= x >> np.uint64(27)
        x *= np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
        return x
