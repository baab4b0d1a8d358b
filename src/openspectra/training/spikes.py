"""Loss spikes: steps whose loss stands out from those just before."""

import math

WINDOW = 100
"""Steps that a loss is compared with."""
DEVIATIONS = 5.0
"""Standard deviations of the window above its mean from which on a loss counts as a spike."""


class Spikes:
    """Compares every step's loss with the window before it. A spike is recorded and changes nothing."""

    def __init__(self, window: list[float] | None = None):
        self.window = window or []

    def observe(self, loss: float) -> dict[str, float] | None:
        """Take one step's loss; return mean and deviation (nats) of the window it stands out from, else None."""
        before, self.window = self.window, [*self.window, loss][-WINDOW:]
        if len(before) < WINDOW:
            return None
        mean = sum(before) / WINDOW
        deviation = math.sqrt(sum((value - mean) ** 2 for value in before) / WINDOW)
        return {"window_mean": mean, "window_deviation": deviation} if loss > mean + DEVIATIONS * deviation else None
