"""The model against the unmodified Llama of transformers: same names, same logits."""

import pytest
import torch
from safetensors.torch import save_file

import openspectra.model.spectra_llama  # noqa: F401  registers BitNet's folder with the Auto classes
from openspectra.artifacts import write_json
from openspectra.model.attention import FORMS
from openspectra.model.binary_ternary import first_scales, set_scales
from openspectra.model.config import LlamaShape
from openspectra.model.families import FAMILY_NAMES, load_family
from openspectra.model.hugging_face import WEIGHTS, exported_weights, hugging_face_config
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


def initialized(family: str, factor: float = 2, shape: LlamaShape = SHAPE) -> Llama:
    model = Llama(shape, family)
    model.reset_parameters(seed=1)
    for parameter in model.parameters():
        parameter.data.mul_(factor)  # 2: away from the nearly linear start, so that softmax and silu matter
    set_scales(model, first_scales(model, torch.arange(64).view(2, 32)))
    return model


def saved_and_loaded(model: Llama, family: str, folder, dtype: str):
    """Return what the Auto classes make of the model's saved folder."""
    from transformers import AutoModelForCausalLM

    save_file(exported_weights(model, dtype), folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / "config.json", hugging_face_config(model.shape, family, dtype, 0))
    loaded, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values())  # nothing missing, left over or of another shape
    return loaded.eval()


@pytest.mark.parametrize(
    ("family", "dtype", "factor", "tolerance"),
    # 8 bits: at one of 128 positions a value at a rounding border falls on the other side
    [(family, "float32", 2, 1e-3 if family.endswith("a8") else 1e-5) for family in FAMILY_NAMES]
    # not BitNet: half-precision embeddings move some activations across a rounding border
    + [(family, "float16", 1, 1e-3) for family in ("floatlm", "trilm", "bilm")],
)
def test_logits_equal_those_of_the_saved_folder(family, dtype, factor, tolerance, tmp_path):
    ours = initialized(family, factor)
    theirs = saved_and_loaded(ours, family, tmp_path, dtype)
    stock = load_family(family).is_stock_llama
    assert type(theirs).__name__ == ("LlamaForCausalLM" if stock else "SpectraForCausalLM")
    assert {name for name, _ in ours.named_parameters()} == {name for name, _ in theirs.named_parameters()}
    ids = torch.randint(0, 128, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, reference = ours(ids), theirs(ids).logits
    torch.testing.assert_close(logits, reference, rtol=0, atol=tolerance)
    if dtype == "float32":
        assert torch.equal(logits.argmax(-1), reference.argmax(-1))


@pytest.mark.parametrize("family", ["tbt_w2a16", "tbt_w1a16", "tbt_w2a2"])
def test_a_folder_with_a_quantized_embedding_computes_the_same(family, tmp_path):
    """In unmodified transformers where the family does: what is written is the rounded embedding."""
    ours = initialized(family, shape=SHAPE.model_copy(update={"quantized_embedding": True}))
    theirs = saved_and_loaded(ours, family, tmp_path, "float32")
    assert type(theirs).__name__ == ("SpectraForCausalLM" if family == "tbt_w2a2" else "LlamaForCausalLM")
    assert all(len(row.abs().unique()) <= 2 for row in theirs.get_input_embeddings().weight)  # 0 and the row's scale
    assert torch.equal(theirs.get_output_embeddings().weight, ours.lm_head.weight)
    ids = torch.randint(0, 128, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, reference = ours(ids), theirs(ids).logits
    torch.testing.assert_close(logits, reference, rtol=0, atol=1e-5)
    assert torch.equal(logits.argmax(-1), reference.argmax(-1))


@pytest.mark.parametrize("attention", FORMS)
def test_both_forms_of_attention_equal_transformers(attention, tmp_path):
    ours = initialized("floatlm")
    theirs = saved_and_loaded(ours, "floatlm", tmp_path, "float32")
    ids = torch.randint(0, 128, (2, 64), generator=torch.Generator().manual_seed(0))
    model = Llama(SHAPE, "floatlm", attention)
    model.load_latent_weights(ours.state_dict())
    with torch.no_grad():
        reference = theirs(ids).logits
        torch.testing.assert_close(model(ids), reference, rtol=0, atol=1e-5)
        for dtype in (torch.bfloat16, torch.float16):
            with torch.autocast("cpu", dtype=dtype):
                half = model(ids).float()
            # their half precision is the yardstick: every weight and activation of theirs is rounded to it
            error = (theirs.to(dtype)(ids).logits.float() - reference).abs().max()
            assert (half - reference).abs().max() < 2 * error
            theirs.float().load_state_dict(ours.state_dict())


def test_families_that_need_this_package():
    own = [name for name in FAMILY_NAMES if not load_family(name).is_stock_llama]
    assert own == ["bitnet", "tbt_w1a1", "tbt_w1a8", "tbt_w2a2", "tbt_w2a8"]


def test_exported_weights_are_refused_as_latent_ones():
    for family in ("trilm", "bilm", "bitnet"):
        model = initialized(family)
        exported, latent = model.export_state_dict(), model.state_dict()
        with pytest.raises(ValueError, match="exported weights, with their scales applied; give latent ones"):
            Llama(SHAPE, family).load_latent_weights(exported)
        Llama(SHAPE, family).load_latent_weights(latent)


def test_twins_start_from_the_same_latents_but_differ_in_effective_weights():
    float_model, tri_model = Llama(SHAPE, "floatlm"), Llama(SHAPE, "trilm")
    embedded = Llama(SHAPE.model_copy(update={"quantized_embedding": True}), "tbt_w2a16")
    for model in (float_model, tri_model, embedded):
        model.reset_parameters(seed=7)
    for mine, *others in zip(*(model.named_parameters() for model in (float_model, tri_model, embedded)), strict=True):
        assert all(mine[0] == other[0] and torch.equal(mine[1], other[1]) for other in others)
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(float_model.export_state_dict()[name], tri_model.export_state_dict()[name])


def test_exported_ternary_matrix_has_one_magnitude_per_scale():
    model = initialized("trilm")
    state = model.export_state_dict()
    for names, _ in model.groups():
        for name in names:
            magnitudes = state[f"{name}.weight"].abs().unique()
            assert 0 < (magnitudes > 0).sum() <= SHAPE.scales_per_matrix


def test_q_k_and_v_share_the_scales_of_their_shards():
    state = initialized("trilm").export_state_dict()
    q, k, v = (state[f"model.layers.0.self_attn.{name}_proj.weight"].abs().unique() for name in "qkv")
    gate, up = (state[f"model.layers.0.mlp.{name}_proj.weight"].abs().unique() for name in ("gate", "up"))
    assert torch.equal(q, k) and torch.equal(q, v)
    assert not torch.equal(gate, up)


def test_loss_is_the_cross_entropy_of_the_next_token():
    model = Llama(SHAPE, "floatlm")
    model.reset_parameters(seed=0)
    ids = torch.randint(0, 128, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        log_probs = model(ids[:, :-1]).log_softmax(-1)
        expected = -log_probs.gather(-1, ids[:, 1:, None]).mean()
        torch.testing.assert_close(model(ids[:, :-1], ids[:, 1:]), expected)
        each = model(ids[:, :-1], ids[:, 1:], reduction="none")
        assert each.shape == (2, 8)
        torch.testing.assert_close(each.mean(), expected)


def test_counts_equal_the_built_model():
    model = Llama(SHAPE, "trilm")
    assert sum(parameter.numel() for parameter in model.parameters()) == SHAPE.num_parameters
    assert sum(group.latent_weight().numel() for _, group in model.groups()) == SHAPE.num_linear_parameters


@pytest.mark.parametrize(
    ("initialization", "inner", "output"),
    [
        ("normal", 0.02, 0.02),
        ("scaled_normal", 0.02, 0.005),  # 0.02 / sqrt(2 * 8)
        ("small_init", 0.0395285, 0.015625),  # sqrt(2 / (5 * 256)), 2 / (8 * 16)
    ],
)
def test_initial_weights_have_the_deviations_of_their_names(initialization, inner, output):
    """As GPT-NeoX draws them: small_init sqrt(2 / 5D) with wang_init 2 / (L sqrt(D)); scaled_normal by sqrt(2L)."""
    shape = LlamaShape(
        vocab_size=256, hidden_size=256, intermediate_size=512, num_hidden_layers=8, num_attention_heads=4,
        initialization=initialization,
    )  # fmt: skip
    models = [Llama(shape, family) for family in ("floatlm", "trilm")]
    for model in models:
        model.reset_parameters(seed=1)
    for (name, first), (_, second) in zip(*(model.named_parameters() for model in models), strict=True):
        assert torch.equal(first, second), name  # twins
        if first.dim() == 2:
            expected = output if name.endswith(("o_proj.weight", "down_proj.weight")) else inner
            assert first.std().item() == pytest.approx(expected, rel=0.02), name
            assert abs(first.mean().item()) < 0.02 * expected
    assert "initialization" not in hugging_face_config(shape, "floatlm", "float16", 0)
