"""Our training beside a short loop in plain torch, written from the description of the recipe and not from our code.

What it shares with ours is the model and the order of text. It imports neither Lightning nor anything of ours that
decides a step: schedule, decay, accumulation, clipping, loss scale are its own.
"""

import math
from collections.abc import Iterator

import pytest
import torch
from test_training import RandomTokens, config, half_precision_trainer, train

from openspectra.data.order import sequence_at
from openspectra.model.llama import Llama
from openspectra.training import loss_scaler

STEPS, WARM_UP, BATCH, MICRO, LENGTH, SEED = 200, 20, 4, 2, 16, 3
PEAK, LOWER_PEAK, FLOOR, DROP_AT, DECAY_STOPS_AT = 8e-3, 5e-3, 4e-4, 100, 133
WINDOW = 30  # of the loss scale: short, for doublings within 200 steps


def rate(family: str, step: int) -> float:
    """Return the learning rate after `step` updates: up in a line, then down in a line or half a cosine."""
    peak = LOWER_PEAK if family == "trilm" and step >= DROP_AT else PEAK
    if step < WARM_UP:
        return peak * (step + 1) / WARM_UP
    if family == "trilm":
        return max(FLOOR, peak * (STEPS - step) / (STEPS - WARM_UP))
    return FLOOR + (peak - FLOOR) * (1 + math.cos(math.pi * (step - WARM_UP) / (STEPS - WARM_UP))) / 2


def reference(family: str, half: bool, scale: float) -> Iterator[tuple[float, float]]:
    """Train; yield the loss of each step in nats, and the loss scale after it."""
    form = config(precision="16-mixed" if half else "32-true").attention_form("cpu")  # rounds in a way of its own
    model, tokens = Llama(config().shape, family, form), RandomTokens(0)
    model.reset_parameters(SEED)
    decayed = [weight for weight in model.parameters() if weight.ndim == 2]
    others = [weight for weight in model.parameters() if weight.ndim != 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        eps=1e-8,
        fused=not half,
        foreach=half,
    )
    updates, last_overflow, patience = 0, -1, 2
    for step in range(STEPS):
        loss = 0.0
        for first in range(step * BATCH, (step + 1) * BATCH, MICRO):
            numbers = sequence_at(range(first, first + MICRO), tokens.num_sequences(LENGTH), SEED)
            text = torch.from_numpy(tokens.sequences(numbers, LENGTH))
            with torch.autocast("cpu", dtype=torch.float16, enabled=half):
                part = model(text[:, :-1], text[:, 1:]) / (BATCH // MICRO)
            (part * scale).backward()
            loss += part.item()
        for weight in model.parameters():
            weight.grad *= 1 / scale
        overflow = not all(weight.grad.isfinite().all() for weight in model.parameters())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate(family, updates)
        stopped = family == "trilm" and updates >= DECAY_STOPS_AT
        optimizer.param_groups[0]["weight_decay"] = 0.0 if stopped else 0.1
        if not overflow:
            optimizer.step()
            updates += 1
        optimizer.zero_grad()
        if half and overflow:
            scale, patience = (scale / 2, patience) if patience == 1 else (scale, patience - 1)
            last_overflow = step
        elif half and (since := step - last_overflow - 1) > 0 and since % WINDOW == 0:
            scale, patience = scale * 2, 2
        yield loss, scale


@pytest.mark.parametrize("half", [False, True], ids=["float32", "16-mixed"])
@pytest.mark.parametrize("family", ["floatlm", "trilm"])
def test_training_equals_the_reference(tmp_path, monkeypatch, family, half):
    tri = {"lr_drop_step": DROP_AT, "peak_lr_after_drop": LOWER_PEAK, "weight_decay_stop_step": DECAY_STOPS_AT}
    settings = config(
        model_id=f"{family}/x",
        family=family,
        precision="16-mixed" if half else "32-true",
        max_steps=STEPS,
        warmup_steps=WARM_UP,
        schedule="linear" if family == "trilm" else "cosine",
        peak_lr=PEAK,
        min_lr=FLOOR,
        checkpoint_every_steps=STEPS,
        valid_every_steps=STEPS,
        log_every_steps=1,
        **(tri if family == "trilm" else {}),
    )
    monkeypatch.setattr(loss_scaler, "WINDOW", WINDOW)
    scale = 2.0**22 if half else 1.0
    trainer = half_precision_trainer(STEPS, loss_scaler.LossScaler("cpu", scale)) if half else None
    rows = train(settings, tmp_path, trainer=trainer).records.tables["train"]
    losses, scales = zip(*reference(family, half, scale), strict=True)
    ours = [row["train_loss"] for row in rows]
    assert ours == pytest.approx(losses, rel=1e-6)
    assert losses[-1] < losses[0] - 0.5
    if half:
        assert [row["loss_scale"] for row in rows] == list(scales)
        changes = [after / before for before, after in zip(scales, scales[1:], strict=False)]
        assert {0.5, 1.0, 2.0} == set(changes)
        assert rows[-1]["skipped_steps"] > changes.count(0.5)  # some were forgiven
