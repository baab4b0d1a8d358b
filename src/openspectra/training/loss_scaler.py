"""The dynamic loss scale of half precision, by DeepSpeed's rule: what GPT-NeoX, the authors' code base, trains with.

Rule: `DynamicLossScaler` of DeepSpeed (runtime/fp16/loss_scaler.py). Numbers: GPT-NeoX's configs/1-3B.yml
(loss_scale_window 1000, hysteresis 2, min_loss_scale 1). torch's own scaler halves at every overflow and doubles after
2,000 steps.
"""

from typing import Any

import torch

WINDOW = 1000
"""Finite steps between two doublings."""
HYSTERESIS = 2
"""The overflow since the last doubling, counted from 1, from which on each halves the scale."""
# ASSUME: runs start at 2^16, DeepSpeed's default; the paper states only the lowest scale of each run
INITIAL_SCALE = 2.0**16


class LossScaler(torch.amp.GradScaler):
    """torch's scaler, which scales losses and leaves out steps whose gradients are not finite, with DeepSpeed's rule.

    The first overflow after a doubling only leaves its step out, further ones halve the scale too. It doubles at the
    1,001st finite step in a row, and again after every 1,000.
    """

    def __init__(self, device: str, initial_scale: float = INITIAL_SCALE):
        super().__init__(device, initial_scale)
        self.has_skipped = False
        """Whether the last step was left out."""
        self.overflows_left = HYSTERESIS
        self.finite_steps = 0  # since the last overflow

    def update(self, new_scale: float | None = None) -> None:
        """Take what `step` found in the gradients, and set the scale of the next step."""
        states = self._per_optimizer_states.values()
        self.has_skipped = any(found.item() for state in states for found in state["found_inf_per_device"].values())
        super().update(self.get_scale() * self._factor() if new_scale is None else new_scale)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"overflows_left": self.overflows_left, "finite_steps": self.finite_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.overflows_left, self.finite_steps = state_dict["overflows_left"], state_dict["finite_steps"]

    def _factor(self) -> float:
        """Count the step just taken or left out; return what the scale is to be multiplied with."""
        if self.has_skipped:
            self.finite_steps = 0
            if self.overflows_left == 1:
                return 0.5
            self.overflows_left -= 1
            return 1.0
        grows = self.finite_steps > 0 and self.finite_steps % WINDOW == 0
        self.finite_steps += 1
        if grows:
            self.overflows_left = HYSTERESIS
        return 2.0 if grows else 1.0
