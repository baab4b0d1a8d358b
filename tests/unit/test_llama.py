"""The model against the unmodified Llama of transformers: same names, same logits."""

import pytest
import torch

from openspectra.config import LlamaShape
from openspectra.model.hugging_face import hugging_face_config
from openspectra.model.llama import Llama

SHAPE = LlamaShape(
    vocab_size=128,
    hidden_size=48,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=3,
    max_position_embeddings=64,
    scales_per_matrix=3,
    rope_theta=5000.0,
)


def hugging_face(shape: LlamaShape):
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**hugging_face_config(shape, "float32", 0))).eval()


@pytest.mark.parametrize("family", ["floatlm", "trilm"])
def test_logits_equal_transformers(family):
    ours, theirs = Llama(SHAPE, family), hugging_face(SHAPE)
    ours.reset_parameters(seed=1)
    for parameter in ours.parameters():
        parameter.data.mul_(2)  # away from the nearly linear start, so that softmax and silu matter
    theirs.load_state_dict(ours.export_state_dict(), strict=True)
    ids = torch.randint(0, 128, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=0, atol=1e-5)


def test_twins_start_from_the_same_latents_but_differ_in_effective_weights():
    float_model, tri_model = Llama(SHAPE, "floatlm"), Llama(SHAPE, "trilm")
    for model in (float_model, tri_model):
        model.reset_parameters(seed=7)
    for mine, other in zip(float_model.parameters(), tri_model.parameters(), strict=True):
        assert torch.equal(mine, other)
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(float_model.export_state_dict()[name], tri_model.export_state_dict()[name])


def test_exported_ternary_matrix_has_one_magnitude_per_scale():
    model = Llama(SHAPE, "trilm")
    model.reset_parameters(seed=0)
    state = model.export_state_dict()
    for name in model.linear_layers():
        magnitudes = state[f"{name}.weight"].abs().unique()
        assert 0 < (magnitudes > 0).sum() <= SHAPE.scales_per_matrix


def test_loss_is_the_cross_entropy_of_the_next_token():
    model = Llama(SHAPE, "floatlm")
    model.reset_parameters(seed=0)
    ids = torch.randint(0, 128, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        log_probs = model(ids[:, :-1]).log_softmax(-1)
        expected = -log_probs.gather(-1, ids[:, 1:, None]).mean()
        torch.testing.assert_close(model.loss(ids), expected)


def test_counts_equal_the_built_model():
    model = Llama(SHAPE, "trilm")
    assert sum(parameter.numel() for parameter in model.parameters()) == SHAPE.num_parameters
    linear = sum(layer.weight.numel() for layer in model.linear_layers().values())
    assert linear == SHAPE.num_linear_parameters
