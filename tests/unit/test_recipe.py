"""Schedules with values that can be worked out in the head."""

import pytest

from openspectra.model.config import LlamaShape
from openspectra.training.config import PretrainConfig
from openspectra.training.recipe import learning_rate, weight_decay

SHAPE = LlamaShape(vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)


def config(**changes) -> PretrainConfig:
    settings = {
        "model_id": "trilm/x",
        "family": "trilm",
        "shape": SHAPE,
        "seed": 0,
        "precision": "32-true",
        "sequence_length": 16,
        "global_batch_size": 4,
        "max_steps": 1000,
        "warmup_steps": 100,
        "schedule": "linear",
        "peak_lr": 0.8,
        "min_lr": 0.0,
        "weight_decay": 0.1,
        "adam_betas": [0.9, 0.95],
        "adam_eps": 1e-8,
        "gradient_clip_norm": 1.0,
        "checkpoint_every_steps": 10,
        "valid_every_steps": 10,
        "valid_sequences": 4,
        "log_every_steps": 1,
        "export_dtype": "float32",
    }
    return PretrainConfig(**settings | changes)


def test_warm_up_is_linear_and_reaches_the_peak_with_its_last_step():
    assert learning_rate(config(), 49) == pytest.approx(0.4)
    assert learning_rate(config(), 99) == pytest.approx(0.8)


def test_linear_schedule_drops_its_peak_at_half():
    tri = config(lr_drop_step=500, peak_lr_after_drop=0.4)
    assert learning_rate(tri, 499) == pytest.approx(0.8 * 501 / 900)
    assert learning_rate(tri, 500) == pytest.approx(0.4 * 500 / 900)
    assert learning_rate(tri, 999) == pytest.approx(0.4 * 1 / 900)


def test_line_begins_at_the_peak_and_ends_on_its_floor():
    assert learning_rate(config(), 100) == pytest.approx(0.8)
    assert learning_rate(config(), 101) == pytest.approx(0.8 * 899 / 900)
    assert learning_rate(config(), 1000) == 0
    floored = config(min_lr=0.08)
    assert learning_rate(floored, 0) == pytest.approx(0.008)  # a warm-up begins below it
    assert learning_rate(floored, 900) == pytest.approx(0.8 * 100 / 900)
    assert learning_rate(floored, 911) == learning_rate(floored, 1000) == 0.08
    assert learning_rate(config(warmup_steps=1000), 1000) == pytest.approx(0.8)  # nothing but warm-up


def test_cosine_is_half_way_between_peak_and_minimum_in_the_middle():
    cosine = config(schedule="cosine", min_lr=0.08)
    assert learning_rate(cosine, 100) == pytest.approx(0.8)
    assert learning_rate(cosine, 550) == pytest.approx(0.44)
    assert learning_rate(cosine, 1000) == pytest.approx(0.08)


def test_weight_decay_stops_at_its_step():
    tri = config(weight_decay_stop_step=667)
    assert weight_decay(tri, 666) == 0.1
    assert weight_decay(tri, 667) == 0.0
    assert weight_decay(config(), 999) == 0.1


def test_drop_step_without_rate_is_refused():
    with pytest.raises(ValueError, match="go together"):
        config(lr_drop_step=500)


def test_drop_inside_the_warm_up_is_refused():
    assert config(lr_drop_step=100, peak_lr_after_drop=0.4).lr_drop_step == 100
    with pytest.raises(ValueError, match="must not fall into the warm-up; got 99 and 100 steps"):
        config(lr_drop_step=99, peak_lr_after_drop=0.4)
