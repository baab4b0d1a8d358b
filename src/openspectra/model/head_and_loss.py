"""Head and cross entropy without ever holding the logits of all tokens: at a vocabulary of 50,000 they are the peak.

Shapes: N tokens, D hidden, V vocabulary, R rows of one chunk.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 512
"""Tokens whose logits exist at a time."""


def mean_loss(x_ND: Tensor, head_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Return the mean cross entropy in nats of the logits x head' against the targets; gradients are made at once."""
    return SummedLoss.apply(x_ND, head_VD, targets_N, None, None)[0] / len(targets_N)


def mean_losses(
    x_ND: Tensor, head_VD: Tensor, targets_N: Tensor, teacher: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return means in nats: cross entropy plus divergence from the teacher, and without gradients each of the two.

    The divergence of a token is KL(teacher || student). `teacher`: what its head reads [N, D'], and the head [V, D'].
    """
    loss, cross_entropy, divergence = SummedLoss.apply(x_ND, head_VD, targets_N, *teacher)
    return loss / len(targets_N), cross_entropy / len(targets_N), divergence / len(targets_N)


@torch.no_grad()
def token_losses(x_ND: Tensor, head_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Return each token's cross entropy in nats [N], without gradients."""
    chunks = _chunks(x_ND, head_VD, targets_N)
    return torch.cat([-logs_RV.gather(1, targets_R1).squeeze(1) for _, _, logs_RV, targets_R1 in chunks])


class SummedLoss(torch.autograd.Function):
    """Summed cross entropy plus divergence [], with the gradients of x and head computed chunk by chunk in the forward pass.

    They are those of the sum, so that half precision does not lose them to the division by N; the factor of the
    backward pass (1 / N, loss scale) multiplies them afterwards. The two terms follow, without gradients; without a
    teacher the divergence is 0. With respect to the logits the gradient is 2 s - t - (1 at the target).
    """

    @staticmethod
    def forward(
        ctx, x_ND: Tensor, head_VD: Tensor, targets_N: Tensor, teacher_ND: Tensor | None, teacher_VD: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        total, divergence = (torch.zeros((), device=x_ND.device, dtype=head_VD.dtype) for _ in range(2))
        grad_x_ND, grad_head_VD = torch.empty_like(x_ND), torch.zeros_like(head_VD)
        head = head_VD.to(_compute_dtype(x_ND))
        for rows, x_RD, logs_RV, targets_R1 in _chunks(x_ND, head, targets_N):
            total -= logs_RV.gather(1, targets_R1).sum()
            if teacher_ND is not None:
                taught_RV = _log_probabilities(teacher_ND[rows], teacher_VD)
                divergence += F.kl_div(logs_RV, taught_RV, reduction="sum", log_target=True)
            if any(ctx.needs_input_grad):
                ones_R1, grad_RV = logs_RV.new_ones(targets_R1.shape), logs_RV.exp_()
                if teacher_ND is not None:
                    grad_RV.mul_(2).sub_(taught_RV.exp_())
                grad_RV = grad_RV.scatter_add_(1, targets_R1, -ones_R1).to(head.dtype)
                with torch.autocast(x_ND.device.type, enabled=False):
                    grad_x_ND[rows] = grad_RV @ head
                    grad_head_VD += _product_of_range(grad_RV.t(), x_RD)
        ctx.save_for_backward(grad_x_ND, grad_head_VD)
        ctx.mark_non_differentiable(total, divergence)
        return total + divergence, total, divergence

    @staticmethod
    def backward(ctx, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_x_ND, grad_head_VD = ctx.saved_tensors
        return grad_x_ND * grad, grad_head_VD * grad, None, None, None


def _chunks(x_ND: Tensor, head_VD: Tensor, targets_N: Tensor) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Yield rows, their x [R, D], log-probabilities [R, V] (at least float32) and targets [R, 1]."""
    x_ND = x_ND.to(_compute_dtype(x_ND))
    for start in range(0, len(targets_N), ROWS):
        rows = slice(start, start + ROWS)
        yield rows, x_ND[rows], _log_probabilities(x_ND[rows], head_VD), targets_N[rows, None]


def _log_probabilities(x_RD: Tensor, head_VD: Tensor) -> Tensor:
    """Return log-probabilities [R, V] in float32 or better."""
    logits_RV = F.linear(x_RD, head_VD)
    return logits_RV.log_softmax(dim=1, dtype=torch.promote_types(logits_RV.dtype, torch.float32))


def _product_of_range(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b for a sum over many tokens: float16 ends at 65,504 and would be infinite at any loss scale."""
    if a.dtype != torch.float16:
        return a @ b
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float()


def _compute_dtype(x: Tensor) -> torch.dtype:
    """Return the precision of matrix products here: autocast's where it is on."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
