"""Scaling laws: L(N) = A / N^alpha + epsilon, fitted to the losses of a family by least squares (paper, eq. 1).

For a given alpha the law is a line in A and epsilon, so every start on a grid of alphas has its best fit in closed form:
the best of all starts is refined, and no local minimum can be taken for it. An interval holds every value that some alpha
of the grid makes plausible (profile likelihood, F distribution); its coverage is measured in the tests.

Legend: N sizes, G alphas of the grid.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

MIN_SIZES = 5
"""Sizes that a fit needs; one more where the largest is held out."""
LEVEL = 0.90
"""Coverage of an interval."""
STARTS = np.geomspace(0.004, 4, 700)
NUM_CONSTANTS = 3


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; a bound is None where the grid of alphas ends before the interval does."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class ScalingLaw:
    """The constants of L(N) = A / N^alpha + epsilon, N in parameters, L in nats per token."""

    amplitude: float
    alpha: float
    epsilon: float

    def loss(self, parameters: np.ndarray | float) -> np.ndarray | float:
        return self.amplitude * np.power(parameters, -self.alpha) + self.epsilon


PAPER_LAWS = {"floatlm": ScalingLaw(159, 0.26, 1.67), "trilm": ScalingLaw(185, 0.26, 1.76)}
"""As the paper prints them (eq. 1)."""


@dataclass(frozen=True)
class Fit:
    """A law fitted to several sizes, with intervals."""

    law: ScalingLaw
    amplitude: Estimate
    alpha: Estimate
    epsilon: Estimate
    residual: float
    """Root of the mean squared residual with the degrees of freedom that are left, in nats per token."""


def fit(parameters: np.ndarray, losses: np.ndarray) -> Fit:
    """Return the least-squares fit to at least `MIN_SIZES` sizes. Raises `ValueError` with fewer."""
    grid = _Grid(parameters, losses)
    amplitude, epsilon = grid.best_constants
    law = ScalingLaw(float(amplitude), float(grid.best_alpha), float(epsilon))
    inside = grid.alphas_G[grid.is_plausible_G]
    zeros_G, ones_G = np.zeros_like(grid.alphas_G), np.ones_like(grid.alphas_G)
    return Fit(
        law,
        amplitude=Estimate(law.amplitude, *grid.interval(grid.unit**grid.alphas_G, zeros_G)),
        alpha=Estimate(law.alpha, *grid.bounds(inside.min(), inside.max())),
        epsilon=Estimate(law.epsilon, *grid.interval(zeros_G, ones_G)),
        residual=float(np.sqrt(grid.best_rss / grid.degrees)),
    )


def predict(parameters: np.ndarray, losses: np.ndarray, at: float) -> Estimate:
    """Return the loss that the fit to these sizes predicts for one more model of `at` parameters, noise included."""
    grid = _Grid(parameters, losses)
    amplitude, epsilon = grid.best_constants
    value = amplitude * at**-grid.best_alpha + epsilon
    powers_G = (at / grid.unit) ** -grid.alphas_G
    return Estimate(float(value), *grid.interval(powers_G, np.ones_like(powers_G), noise=1.0))


class _Grid:
    """Least squares in A and epsilon for every alpha, with sizes in units of their geometric mean."""

    def __init__(self, parameters: np.ndarray, losses: np.ndarray):
        if len(parameters) < MIN_SIZES:
            raise ValueError(f"a scaling law needs {MIN_SIZES} sizes; got {len(parameters)}.")
        self.sizes_N, self.losses_N = np.asarray(parameters, float), np.asarray(losses, float)
        self.unit = float(np.exp(np.log(self.sizes_N).mean()))
        self.degrees = len(self.sizes_N) - NUM_CONSTANTS
        self.best_alpha = self._refined()
        self.alphas_G = np.append(STARTS, self.best_alpha)
        self.rss_G, self.constants_G2, self.inverse_G22 = self._solve(self.alphas_G)
        self.best_rss = float(self.rss_G[-1])
        amplitude, epsilon = self.constants_G2[-1]
        self.best_constants = amplitude * self.unit**self.best_alpha, epsilon
        self.threshold = self.best_rss * (1 + _f_quantile(self.degrees) / self.degrees)
        self.is_plausible_G = self.rss_G <= self.threshold

    def interval(self, along_A_G: np.ndarray, along_epsilon_G: np.ndarray, noise: float = 0.0) -> tuple:
        """Return the bounds of a linear function of A (in units) and epsilon over all plausible alphas.

        `noise` is the variance of one more observation, in units of that of the residuals.
        """
        direction_G2 = np.stack([along_A_G, along_epsilon_G], axis=1)
        value_G = (direction_G2 * self.constants_G2).sum(axis=1)
        spread_G = np.einsum("gi,gij,gj->g", direction_G2, self.inverse_G22, direction_G2) + noise
        room_G = np.sqrt(spread_G * np.maximum(self.threshold - self.rss_G, 0))
        inside = self.is_plausible_G
        return self.bounds((value_G - room_G)[inside].min(), (value_G + room_G)[inside].max())

    def bounds(self, low: float, high: float) -> tuple[float | None, float | None]:
        """Return the bounds, None where a plausible alpha lies at an end of the grid: nothing bounds the constants there."""
        is_open = self.is_plausible_G[0] or self.is_plausible_G[len(STARTS) - 1]
        return (None, None) if is_open else (float(low), float(high))

    def _solve(self, alphas: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return squared residuals, (A in units, epsilon), and the inverse of the normal matrix, for each alpha."""
        powers_GN = np.exp(-alphas[:, None] * np.log(self.sizes_N / self.unit))
        mean_G, mean_loss = powers_GN.mean(axis=1), self.losses_N.mean()
        centred_GN = powers_GN - mean_G[:, None]
        square_G = (centred_GN**2).sum(axis=1)
        amplitude_G = centred_GN @ self.losses_N / square_G
        residuals_GN = self.losses_N - mean_loss - amplitude_G[:, None] * centred_GN
        cross_G, last_G = -mean_G / square_G, 1 / len(self.sizes_N) + mean_G**2 / square_G
        inverse_G22 = np.stack([1 / square_G, cross_G, cross_G, last_G], axis=1).reshape(-1, 2, 2)
        constants_G2 = np.stack([amplitude_G, mean_loss - amplitude_G * mean_G], axis=1)
        return (residuals_GN**2).sum(axis=1), constants_G2, inverse_G22

    def _refined(self) -> float:
        from scipy.optimize import minimize_scalar

        best = int(self._solve(STARTS)[0].argmin())
        borders = STARTS[max(0, best - 1)], STARTS[min(len(STARTS) - 1, best + 1)]
        found = minimize_scalar(
            lambda alpha: self._solve(np.array([alpha]))[0][0],
            bounds=borders,
            method="bounded",
            options={"xatol": 1e-9},
        )
        return float(found.x)


@cache
def _f_quantile(degrees: int) -> float:
    from scipy.stats import f

    return float(f.ppf(LEVEL, 1, degrees))
