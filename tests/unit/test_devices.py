"""What a training computes stays on the device of its tensors, seen without a GPU: `meta` refuses to be mixed with the CPU.

On 2026-11-26 every TriLM failed on a GPU at its first step, by a constant of `pack_states` that was always on the CPU.
"""

from contextlib import nullcontext

import pytest
import torch
from test_binary_ternary import SHAPE

from openspectra.model.binary_ternary import first_scales, set_scales
from openspectra.model.distillation import Teacher
from openspectra.model.families import FAMILY_NAMES
from openspectra.model.llama import Llama
from openspectra.model.packing import FIVE_TRITS, ONE_BIT, TWO_BITS, pack_states

META = torch.device("meta")


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch):
    """Take autocast away, which torch has not on `meta`."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    monkeypatch.setattr(torch, "autocast", lambda device, **options: nullcontext())


@pytest.mark.parametrize("packing", [TWO_BITS, FIVE_TRITS, ONE_BIT])
def test_states_are_packed_on_the_device_they_lie_on(packing):
    packed = pack_states(torch.ones(6, 7, device=META), packing)
    assert packed.device == META and packed.shape == (-(-42 // packing.per_byte),)


@pytest.mark.parametrize("form", ["fused", "products"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_pass_forward_and_backward_makes_nothing_on_another_device(family, form):
    model = Llama(SHAPE, family, form).to(META)
    tokens = torch.zeros(2, 17, dtype=torch.long, device=META)
    with torch.no_grad():
        set_scales(model, first_scales(model, tokens[:, :-1]))
    model(tokens[:, :-1], tokens[:, 1:]).backward()
    assert all(parameter.grad.device == META for parameter in model.parameters())


def test_a_lesson_makes_nothing_on_another_device():
    teacher = Teacher(Llama(SHAPE, "floatlm").to(META), gives_streams=True)
    student = Llama(SHAPE, "trilm").to(META)
    tokens = torch.zeros(2, 17, dtype=torch.long, device=META)
    losses = student(tokens[:, :-1], tokens[:, 1:], lesson=teacher(tokens[:, :-1]))
    losses[0].backward()
    assert all(loss.device == META for loss in losses)
