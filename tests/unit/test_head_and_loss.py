"""Head and loss in chunks against torch's cross entropy on all logits at once."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from openspectra.model.head_and_loss import ROWS, mean_loss, mean_losses, token_losses


def tensors(count: int, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 24, generator=generator, dtype=dtype, requires_grad=True)
    head = torch.randn(50, 24, generator=generator, dtype=dtype, requires_grad=True)
    return x, head, torch.randint(0, 50, (count,), generator=generator)


@pytest.mark.parametrize("count", [1, ROWS, 2 * ROWS + 7])
def test_loss_and_gradients_equal_torchs(count):
    x, head, targets = tensors(count, torch.float64)
    ours = 3 * mean_loss(x, head, targets)
    gradients = torch.autograd.grad(ours, (x, head))
    theirs = 3 * F.cross_entropy(x @ head.t(), targets)
    expected = torch.autograd.grad(theirs, (x, head))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    for gradient, reference in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-9, atol=1e-15)
    each = F.cross_entropy(x @ head.t(), targets, reduction="none")
    torch.testing.assert_close(token_losses(x, head, targets), each.detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_multiplies_in_half_precision_and_keeps_float32_gradients(dtype):
    x, head, targets = tensors(ROWS + 3, torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        ours = mean_loss(x, head, targets)
        theirs = F.cross_entropy(F.linear(x, head).float(), targets)
    gradients, expected = torch.autograd.grad(ours, (x, head)), torch.autograd.grad(theirs, (x, head))
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    for gradient, reference in zip(gradients, expected, strict=True):
        assert gradient.dtype == torch.float32
        scale = reference.abs().max()
        torch.testing.assert_close(gradient / scale, reference / scale, rtol=0, atol=0.01)


def test_one_large_feature_and_equal_targets_stay_finite_in_float16():
    x, head, _ = tensors(ROWS, torch.float32)
    with torch.no_grad():
        x[:, 0] = 140.0  # summed over the rows of a chunk: 71,680, more than float16 holds
        head[:, 0] = 0.0
    targets = torch.full((ROWS,), 7)
    with torch.autocast("cpu", dtype=torch.float16):
        ours = mean_loss(x, head, targets)
        theirs = F.cross_entropy(F.linear(x, head).float(), targets)
    (gradient,), (expected,) = torch.autograd.grad(ours, head), torch.autograd.grad(theirs, head)
    assert expected[7, 0] < -130
    torch.testing.assert_close(gradient, expected, rtol=2e-3, atol=0.01)


def reference_losses(x, head, targets, teacher_x, teacher_head) -> tuple[float, float]:
    """Mean cross entropy and KL(teacher || student) in nats, by the formulas, on all logits at once."""

    def probabilities(logits):
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    own, taught = probabilities(x @ head.T), probabilities(teacher_x @ teacher_head.T)
    divergence = (taught * np.log(taught / own)).sum(axis=1).mean()
    return -np.log(own[np.arange(len(x)), targets]).mean(), divergence


@pytest.mark.parametrize("count", [1, ROWS, ROWS + 1, 2 * ROWS + 7])
def test_soft_targets_equal_the_formula_and_gradients_its_finite_differences(count):
    x, head, targets = tensors(count, torch.float64)
    generator = torch.Generator().manual_seed(1)
    # of another width, for only the vocabulary is shared
    teacher = [torch.randn(rows, 20, generator=generator, dtype=torch.float64) for rows in (count, 50)]
    loss, cross_entropy, divergence = mean_losses(x, head, targets, teacher)
    arrays = [tensor.detach().numpy() for tensor in (x, head, targets, *teacher)]
    expected = reference_losses(*arrays)
    assert (cross_entropy.item(), divergence.item()) == pytest.approx(expected, rel=1e-12)
    assert loss.item() == pytest.approx(sum(expected), rel=1e-12)
    assert not cross_entropy.requires_grad and not divergence.requires_grad
    gradients = torch.autograd.grad(3 * loss, (x, head))
    rng, step = np.random.default_rng(2), 1e-5
    for place, gradient in enumerate(gradients):
        for _ in range(3):
            direction = rng.standard_normal(arrays[place].shape)
            ends = []
            for sign in (1, -1):
                moved = list(arrays)
                moved[place] = moved[place] + sign * step * direction
                ends.append(3 * sum(reference_losses(*moved)))
            slope = (ends[0] - ends[1]) / (2 * step)
            assert (gradient.numpy() * direction).sum() == pytest.approx(slope, rel=1e-7, abs=1e-8)


@pytest.mark.parametrize("half", [None, torch.bfloat16, torch.float16])
def test_a_teacher_that_is_the_student_adds_nothing(half):
    x, head, targets = tensors(ROWS + 3, torch.float32)
    with torch.autocast("cpu", dtype=half, enabled=half is not None):
        plain = mean_loss(x, head, targets)
        loss, cross_entropy, divergence = mean_losses(x, head, targets, (x.detach(), head.detach()))
    assert divergence.item() == 0 and torch.equal(loss, plain) and torch.equal(cross_entropy, plain.detach())
    for ours, theirs in zip(torch.autograd.grad(loss, (x, head)), torch.autograd.grad(plain, (x, head)), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_soft_targets_under_autocast_are_those_of_float32(dtype):
    x, head, targets = tensors(ROWS + 3, torch.float32)
    teacher = (0.5 * x.detach(), head.detach().flip(0).contiguous())
    _, _, expected = mean_losses(x, head, targets, teacher)
    reference = torch.autograd.grad(mean_losses(x, head, targets, teacher)[0], (x, head))
    with torch.autocast("cpu", dtype=dtype):
        loss, _, divergence = mean_losses(x, head, targets, teacher)
    torch.testing.assert_close(divergence, expected, rtol=0.02, atol=0)
    for ours, theirs in zip(torch.autograd.grad(loss, (x, head)), reference, strict=True):
        torch.testing.assert_close(ours / theirs.abs().max(), theirs / theirs.abs().max(), rtol=0, atol=0.03)
