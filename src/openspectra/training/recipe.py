"""Learning rate and weight decay as pure functions of the step (paper, training recipes).

FloatLM: cosine from the peak to `min_lr`. TriLM: a line from the peak to zero, not below `min_lr`, the peak lowered at
half of the steps, weight decay off after two thirds. Both after a linear warm-up. `step` counts finished updates, so
that a step which the loss scaler leaves out holds the schedule, as in DeepSpeed: the rate is that of the next update.
"""

import math

from openspectra.training.config import PretrainConfig


def learning_rate(config: PretrainConfig, step: int) -> float:
    """Return the learning rate of one update."""
    dropped = config.lr_drop_step is not None and step >= config.lr_drop_step
    peak = config.peak_lr_after_drop if dropped else config.peak_lr
    if step < config.warmup_steps:
        # ASSUME: the first update has a rate already; GPT-NeoX counts from 0, so that its first one changes nothing
        return peak * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    if config.schedule == "linear":
        # ASSUME: peak(t) * (T - t)/(T - w), w the warm-up: the drop scales the line; the paper prints no formula.
        # GPT-NeoX (megatron/learning_rates.py), with the same floor, loses 1/T of the peak a step in place of
        # 1/(T - w) and holds from T - w on: at most 2w/T of the peak above this line
        return max(peak * (1 - progress), config.min_lr)
    # ASSUME: the cosine ends at its lowest rate; GPT-NeoX's runs to zero, over T steps, and is cut off at that rate
    return config.min_lr + (peak - config.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def weight_decay(config: PretrainConfig, step: int) -> float:
    """Return the weight decay of one update."""
    stopped = config.weight_decay_stop_step is not None and step >= config.weight_decay_stop_step
    return 0.0 if stopped else config.weight_decay
