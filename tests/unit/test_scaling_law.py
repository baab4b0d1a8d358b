"""Fits of made-up losses: the constants come back, intervals cover as they say, and too little is refused."""

import numpy as np
import pytest
import yaml
from conftest import ROOT

from openspectra.reporting.scaling_law import LEVEL, PAPER_LAWS, ScalingLaw, fit, predict

SIZES = np.array([99.74e6, 190e6, 392.4e6, 569.2e6, 834e6, 1.149e9, 1.515e9, 2.461e9, 3.989e9])


def test_printed_constants_are_those_of_the_paper():
    facts = yaml.safe_load((ROOT / "resources/paper/scaling_laws.yaml").read_text())["spectra_fixed_data_300B"]
    for family, name in (("floatlm", "float_lm"), ("trilm", "tri_lm")):
        constants = facts[name]
        assert PAPER_LAWS[family] == ScalingLaw(constants["A"], constants["alpha"], constants["eps"])


@pytest.mark.parametrize("family", ["floatlm", "trilm"])
def test_losses_of_the_printed_constants_give_the_constants_back(family):
    law = PAPER_LAWS[family]
    found = fit(SIZES, law.loss(SIZES))
    assert found.law.amplitude == pytest.approx(law.amplitude, rel=1e-6)
    assert found.law.alpha == pytest.approx(law.alpha, rel=1e-7)
    assert found.law.epsilon == pytest.approx(law.epsilon, rel=1e-7)
    assert found.alpha.low <= law.alpha * (1 + 1e-6) and found.alpha.high >= law.alpha * (1 - 1e-6)
    held_out = predict(SIZES[:-1], law.loss(SIZES[:-1]), SIZES[-1])
    assert held_out.value == pytest.approx(law.loss(SIZES[-1]), rel=1e-7)


def test_intervals_cover_what_they_say():
    law, generator, num_repetitions = PAPER_LAWS["floatlm"], np.random.default_rng(0), 500
    covered = np.zeros(4)
    for _ in range(num_repetitions):
        losses = law.loss(SIZES) + 0.01 * generator.standard_normal(len(SIZES))
        found, held_out = fit(SIZES, losses), predict(SIZES[:-1], losses[:-1], SIZES[-1])
        estimates = (found.amplitude, found.alpha, found.epsilon, held_out)
        truths = (law.amplitude, law.alpha, law.epsilon, losses[-1])
        covered += [
            each.low is None or each.low <= truth <= each.high for each, truth in zip(estimates, truths, strict=True)
        ]
    assert LEVEL == 0.9
    assert (covered / num_repetitions >= 0.85).all() and (covered / num_repetitions <= 0.95).all(), covered


def test_no_better_fit_is_found_from_other_starts():
    from scipy.optimize import least_squares

    generator = np.random.default_rng(1)
    losses = PAPER_LAWS["trilm"].loss(SIZES) + 0.02 * generator.standard_normal(len(SIZES))
    found = fit(SIZES, losses)
    own = ((found.law.loss(SIZES) - losses) ** 2).sum()
    for alpha in (0.05, 0.2, 0.5, 1.0):
        other = least_squares(
            lambda x: np.exp(x[0]) * (SIZES / 1e9) ** -x[1] + x[2] - losses, [-0.5, alpha, 2.0], xtol=1e-12, ftol=1e-12
        )
        assert own <= 2 * other.cost * (1 + 1e-6)


def test_losses_without_a_bend_bound_nothing():
    found = fit(SIZES[:5], np.array([3.0, 3.1, 2.9, 3.05, 2.95]))
    assert found.alpha.low is None and found.epsilon.high is None


def test_four_sizes_are_too_few():
    with pytest.raises(ValueError, match="needs 5 sizes; got 4"):
        fit(SIZES[:4], PAPER_LAWS["trilm"].loss(SIZES[:4]))
