"""Head and loss in chunks against torch's cross entropy on all logits at once."""

import pytest
import torch
import torch.nn.functional as F

from openspectra.model.head_and_loss import ROWS, mean_loss, token_losses


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
