"""What a student learns from its full-precision twin beside the text: soft targets, and hidden states as an option.

arXiv 2306.01841 trains its low-bit models on cross entropy, the teacher's probabilities and the mean squared error of hidden
states, summed. Here, means over the N tokens of a pass, in nats per token:

    loss = -1/N sum_n log s_n(y_n) + 1/N sum_n KL(t_n || s_n) + sum_l mean((h_l - g_l)^2)

y_n is the token that follows, t_n and s_n the probabilities of teacher and student over the vocabulary, g_l and h_l their
residual streams after block l. KL(t || s) = sum_v t(v) log(t(v) / s(v)) is the cross entropy with soft targets less the
teacher's entropy, which has no gradient. The paper's term on attention maps is not here: a fused kernel makes none.
"""

# ASSUME: no temperature and a weight of 1 for each term, where the paper gives no numbers; and the student begins with the
# draw of its twins, where the paper's begins with the teacher's weights

from dataclasses import dataclass

import torch
from torch import Tensor

from openspectra.model.head_and_loss import mean_losses
from openspectra.model.llama import Llama


@dataclass(frozen=True)
class Lesson:
    """What a teacher makes of a batch."""

    x_ND: Tensor
    """What its head reads."""
    head_VD: Tensor
    streams: list[Tensor] | None
    """Its residual stream [B, T, D] after each block; None where the student's need not follow it."""

    def losses(
        self, x_ND: Tensor, head_VD: Tensor, targets_N: Tensor, streams: list[Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the student's loss, and without gradients its cross entropy and the rest of it, the distance to the teacher."""
        loss, cross_entropy, distance = mean_losses(x_ND, head_VD, targets_N, (self.x_ND, self.head_VD))
        for own, taught in zip(streams or (), self.streams or (), strict=True):
            wide = torch.promote_types(own.dtype, torch.float32)
            error = (own.to(wide) - taught.to(wide)).square().mean()
            loss, distance = loss + error, distance + error.detach()
        return loss, cross_entropy, distance


class Teacher:
    """A finished model that reads what the student reads.

    It is no module: the student's parameters, states, gradients and shards know nothing of it. Every rank holds it whole.
    """

    def __init__(self, llama: Llama, gives_streams: bool):
        self.llama = llama.eval().requires_grad_(False)
        self.gives_streams = gives_streams

    @torch.no_grad()
    def __call__(self, input_ids_BT: Tensor) -> Lesson:
        """Return the lesson on a batch, in the precision of autocast where it is on."""
        streams = [] if self.gives_streams else None
        x_BTD = self.llama.model(input_ids_BT, streams)
        return Lesson(x_BTD.flatten(0, 1), self.llama.lm_head.weight, streams)
