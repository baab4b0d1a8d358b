"""A student and its teacher: what is learned, what is recorded, and that the teacher is no part of the student."""

import math

import numpy as np
import pytest
import torch
from test_training import SHAPE, TAUGHT, At, config, train, weights

from openspectra.model.distillation import Teacher
from openspectra.model.llama import Llama
from openspectra.training.config import Distillation
from openspectra.training.world import World


def llama(seed: int, family: str = "floatlm") -> Llama:
    model = Llama(SHAPE, family)
    model.reset_parameters(seed)
    return model.double()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(0, SHAPE.vocab_size, (3, 17), generator=torch.Generator().manual_seed(0))
    return tokens[:, :-1], tokens[:, 1:]


def test_hidden_states_add_the_squared_error_of_each_block():
    input_ids, targets = batch()
    student, teacher = llama(1, "trilm"), llama(2)
    found = {name: student(input_ids, targets, lesson=Teacher(teacher, name)(input_ids)) for name in (False, True)}
    streams = []
    for model in (student, teacher):
        kept: list[torch.Tensor] = []
        hooks = [
            layer.register_forward_hook(lambda *call, kept=kept: kept.append(call[-1])) for layer in model.model.layers
        ]
        model(input_ids)
        for hook in hooks:
            hook.remove()
        streams.append([stream.detach().numpy() for stream in kept])
    assert len(streams[0]) == SHAPE.num_hidden_layers
    error = sum(np.mean((own - taught) ** 2) for own, taught in zip(*streams, strict=True))
    for place in (0, 2):  # the loss, and of its parts the distance to the teacher
        assert (found[True][place] - found[False][place]).item() == pytest.approx(error, rel=1e-9)
    assert torch.equal(found[True][1], student(input_ids, targets).detach())
    found[True][0].backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_student_that_is_its_teacher_has_the_plain_loss_and_gradient():
    input_ids, targets = batch()
    gradients = []
    for is_taught in (False, True):
        student = llama(1)
        if is_taught:
            loss, cross_entropy, distance = student(input_ids, targets, lesson=Teacher(llama(1), True)(input_ids))
            assert distance.item() == pytest.approx(0, abs=1e-12)
            torch.testing.assert_close(loss.detach(), cross_entropy, rtol=1e-12, atol=0)
        else:
            loss = student(input_ids, targets)
        loss.backward()
        gradients.append([parameter.grad for parameter in student.parameters()])
    for plain, taught in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, taught, rtol=1e-8, atol=1e-12)


def test_a_teacher_draws_its_student_near_and_stays_as_it_is(tmp_path):
    length = {"max_steps": 40, "log_every_steps": 1}
    learned = train(config(**length, family="floatlm", model_id="floatlm/x"), tmp_path / "teacher").llama
    before = {name: value.clone() for name, value in learned.state_dict().items()}
    teacher = Teacher(learned, gives_streams=True)
    module = train(config(**TAUGHT, **length), tmp_path / "taught", teacher=teacher)
    plain = train(config(**length), tmp_path / "plain")
    rows, others = module.records.tables["train"], plain.records.tables["train"]
    assert "distillation_loss" not in others[0]
    assert rows[-1]["distillation_loss"] < 0.5 * rows[0]["distillation_loss"]
    # the cross entropy stands by itself: of the first step, before anything was learned, it is the twin's
    assert rows[0]["train_loss"] == others[0]["train_loss"] != rows[-1]["train_loss"]
    assert all(math.isfinite(row["train_loss"]) for row in rows)
    assert all(torch.equal(value, before[name]) for name, value in learned.state_dict().items())
    assert not any(parameter.requires_grad for parameter in learned.parameters())
    held = {name for name, _ in module.named_parameters()} | set(module.state_dict())
    assert held == {f"llama.{name}" for name in weights(plain)}
    assert sum(len(group["params"]) for group in module.optimizers().param_groups) == len(weights(plain))


def test_micro_batches_of_a_taught_step_give_the_same_means(tmp_path):
    rows = [
        train(
            config(**TAUGHT, max_steps=1, log_every_steps=1), tmp_path / str(micro), world=World(micro_batch=micro)
        ).records.tables["train"][0]
        for micro in (4, 1)
    ]
    for name in ("train_loss", "distillation_loss", "gradient_norm"):
        assert rows[0][name] == pytest.approx(rows[1][name], rel=1e-5)


def test_half_precision_holds_the_teacher_in_half_and_computes_the_same(tmp_path):
    """Products cast their weights anyway: a teacher kept in half precision gives every bit that one in float32 gives."""
    input_ids, _ = batch()
    wide, narrow = Llama(SHAPE, "floatlm"), Llama(SHAPE, "floatlm")
    for model in (wide, narrow):
        model.reset_parameters(2)
    narrow.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        lessons = [Teacher(model, True)(input_ids) for model in (wide, narrow)]
        logits = [torch.nn.functional.linear(lesson.x_ND, lesson.head_VD) for lesson in lessons]
    assert torch.equal(*(lesson.x_ND for lesson in lessons)) and torch.equal(*logits)
    assert all(torch.equal(*pair) for pair in zip(*(lesson.streams for lesson in lessons), strict=True))
    settings = config(distillation=Distillation(teacher="floatlm/x", hidden_states=False), precision="bf16-mixed")
    dtypes = []
    train(settings, tmp_path, At(0, lambda module: dtypes.append(module.teacher.llama.lm_head.weight.dtype)))
    assert dtypes[0] == torch.bfloat16
