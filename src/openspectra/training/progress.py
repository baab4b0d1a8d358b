"""What a person sees while a model trains: a bar on a terminal, else a line every ten seconds."""

import json
import logging
import time
from pathlib import Path

import lightning.pytorch as L
from tqdm import tqdm

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0


class Progress(L.Callback):
    """Shows step, loss, tokens/s and time left; appends the same to `speed.jsonl`, which is outside every hash.

    Without a `speed_path`, on all ranks but the first, it is silent.
    """

    def __init__(self, speed_path: Path | None, show_bar: bool):
        self.speed_path, self.show_bar = speed_path, show_bar

    def on_train_start(self, trainer, module) -> None:
        self.started = self.shown = time.monotonic()
        self.first_step = module.step
        self.bar = tqdm(
            desc=module.config.model_id,
            total=module.config.max_steps,
            initial=module.step,
            unit="step",
            disable=not self.show_bar,
        )

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        now = time.monotonic()
        speed = (module.step - self.first_step) * module.config.tokens_per_step / (now - self.started)
        self.bar.update(module.step - self.bar.n)
        self.bar.set_postfix_str(f"loss {module.step_loss:.3f}, {speed:,.0f} tokens/s", refresh=False)
        if now - self.shown < SECONDS_BETWEEN_LINES or not self.speed_path:
            return
        self.shown = now
        with self.speed_path.open("a") as file:
            file.write(json.dumps({"step": module.step, "tokens_per_second": round(speed, 1)}) + "\n")
        if not self.show_bar:
            self._line(module, module.step_loss, speed)

    def on_train_end(self, trainer, module) -> None:
        self.bar.close()

    def _line(self, module, loss: float, speed: float) -> None:
        config = module.config
        left = int((config.max_steps - module.step) * config.tokens_per_step / max(speed, 1e-9))
        logger.info(
            "%s  step %d/%d  loss %.3f  %s tokens/s  %d:%02d left",
            config.model_id,
            module.step,
            config.max_steps,
            loss,
            f"{speed:,.0f}",
            left // 60,
            left % 60,
        )
