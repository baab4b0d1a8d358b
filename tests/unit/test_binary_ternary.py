"""Quantizers of arXiv 2306.01841 against an independent NumPy implementation and finite differences, in float64."""

import math

import numpy as np
import pytest
import torch

from openspectra.model.attention import FORMS
from openspectra.model.binary_ternary import (
    FLOOR,
    LearnedLevels,
    RoundedToBytes,
    first_scales,
    measure_levels,
    set_scales,
)
from openspectra.model.config import LlamaShape
from openspectra.model.families import FAMILY_NAMES, load_family
from openspectra.model.llama import Llama, QuantizedEmbedding
from openspectra.model.shards import by_row, row_parallel

LEARNED = [name for name in FAMILY_NAMES if name.endswith(("a1", "a2"))]
SHAPE = LlamaShape(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=32,
)


def numpy_weight(weight, bits):
    """Return the quantized weight and where its gradient passes (paper, equations 3 to 6)."""
    centred = weight - weight.mean()
    alpha = (4 / 3 if bits == 2 else 1) * np.abs(centred).mean()
    ratio = centred / alpha
    states = np.rint(np.clip(ratio, -1, 1)) if bits == 2 else np.where(ratio < 0, -1, 1)
    return alpha * states, np.abs(ratio) < 1


@pytest.mark.parametrize("bits", [1, 2])
def test_weights_equal_numpy(bits):
    rng = np.random.default_rng(0)
    weight, grad = rng.normal(size=(24, 40)) * 0.02 + 0.003, rng.normal(size=(24, 40))
    expected, inside = numpy_weight(weight, bits)
    latent = torch.from_numpy(weight).requires_grad_()
    effective = load_family(f"tbt_w{bits}a16").effective_weight(latent, row_parallel(24, 40, 1))
    effective.backward(torch.from_numpy(grad))
    assert np.abs(effective.detach().numpy() - expected).max() < 1e-12
    assert np.array_equal(latent.grad.numpy(), grad * inside) and 0.05 < 1 - inside.mean() < 0.6


@pytest.mark.parametrize("bits", [1, 2])
def test_a_quantized_embedding_equals_numpy_row_by_row(bits):
    """Forward, backward and states; a row that is looked up twice gets both gradients, a row of zeros the least scale."""
    rng = np.random.default_rng(4)
    table = rng.normal(size=(12, 40)) * rng.uniform(0.01, 1, size=(12, 1)) + 0.003
    table[5] = 0
    ids, grad = np.array([[3, 5, 3, 11], [0, 3, 7, 7]]), rng.normal(size=(2, 4, 40))
    rows = [numpy_weight(row, bits) for row in np.delete(table, 5, axis=0)]
    rows.insert(5, (np.full(40, FLOOR if bits == 1 else 0), np.full(40, True)))
    expected, inside = (np.stack(part) for part in zip(*rows, strict=True))

    family = load_family(f"tbt_w{bits}a16")
    embedding = QuantizedEmbedding(LlamaShape(**SHAPE.model_dump() | {"vocab_size": 12, "hidden_size": 40}), family)
    embedding.weight = torch.nn.Parameter(torch.from_numpy(table))
    found = embedding(torch.from_numpy(ids))
    found.backward(torch.from_numpy(grad))
    assert np.abs(found.detach().numpy() - expected[ids]).max() < 1e-12
    effective = embedding.effective_weight()
    assert np.abs(effective.detach().numpy() - expected).max() < 1e-12
    assert torch.equal(effective[torch.from_numpy(ids)], found)  # what a pass looks up is what is exported
    summed = np.zeros((12, 40))
    np.add.at(summed, ids, grad * inside[ids])
    assert np.abs(embedding.weight.grad.numpy() - summed).max() < 1e-12
    assert (embedding.weight.grad[[1, 2, 4, 6, 8, 9, 10]] == 0).all() and (summed[3] == 0).any()
    states, scales = family.states_and_scales(embedding.weight.detach(), by_row(12, 40))
    assert scales.shape == (12, 1) and np.array_equal(states.numpy() * scales.numpy(), effective.detach().numpy())
    assert set(states.unique().tolist()) == ({-1, 1} if bits == 1 else {-1, 0, 1})


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_a_quantized_embedding_is_rounded_from_its_masters(precision):
    """Under autocast, too: only what is rounded goes into half precision."""
    model = Llama(SHAPE.model_copy(update={"quantized_embedding": True}), "tbt_w2a16")
    model.reset_parameters(seed=3)
    text, read = torch.arange(24)[None], []
    model.model.layers[0].register_forward_pre_hook(lambda layer, inputs: read.append(inputs[0]))
    with torch.autocast("cpu", dtype=precision):
        model(text, text).backward()
    assert torch.equal(read[0][0], model.model.embed_tokens.effective_weight()[:24].to(precision))
    grad = model.model.embed_tokens.weight.grad
    assert grad.dtype == torch.float32 and grad[:24].any() and not grad[24:].any()


def level(x, alpha, bits, is_signed):
    """Return the level of one value, from the definition."""
    if is_signed and bits == 1:
        return alpha if x >= 0 else -alpha
    low, high = (-1, 1) if is_signed else (0, 2 if bits == 2 else 1)
    return alpha * min(max(np.rint(x / alpha), low), high)


@pytest.mark.parametrize("is_signed", [True, False])
@pytest.mark.parametrize("bits", [1, 2])
def test_activations_equal_numpy_also_at_the_borders(bits, is_signed):
    alpha, rng = 0.7, np.random.default_rng(1)
    borders = alpha * np.array([0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 2.5])
    x = np.concatenate([borders, -borders, rng.normal(size=30), [-0.0, 1e9]]).reshape(2, 25)
    x = x if is_signed else np.abs(x)
    grad = rng.normal(size=x.shape)
    module = LearnedLevels(bits, is_signed).double()
    module.alpha.data.fill_(alpha)
    inputs = torch.from_numpy(x).requires_grad_()
    outputs = module(inputs)
    outputs.backward(torch.from_numpy(grad))
    assert np.array_equal(outputs.detach().numpy(), np.vectorize(level)(x, alpha, bits, is_signed))

    largest = 1 if is_signed or bits == 1 else 2
    ratio = x / alpha
    inside = (np.abs(ratio) <= 1) if is_signed else (ratio >= 0) & (ratio <= largest)
    assert np.array_equal(inputs.grad.numpy(), grad * inside)
    states = np.vectorize(level)(x, alpha, bits, is_signed) / alpha
    slope = states if is_signed and bits == 1 else np.where(inside, states - ratio, states)
    expected = (grad * slope).sum() / math.sqrt(25 * largest)
    assert module.alpha.grad.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("is_signed", [True, False])
@pytest.mark.parametrize("bits", [1, 2])
def test_gradient_of_the_scale_is_that_of_the_surrogate(bits, is_signed):
    """Of alpha (clip(x / alpha) + the rounding error as it stands); of a sign, alpha times it."""
    rng = np.random.default_rng(2)
    x, grad, alpha, change = rng.normal(size=(1, 200)), rng.normal(size=(1, 200)), 0.6, 1e-6
    x = x if is_signed else np.abs(x)
    largest = 1 if is_signed or bits == 1 else 2

    def clipped(ratio):
        return np.clip(ratio, -1 if is_signed else 0, largest)

    error = np.vectorize(level)(x, alpha, bits, is_signed) / alpha - clipped(x / alpha)

    def surrogate(scale):
        if is_signed and bits == 1:
            return (grad * scale * np.where(x >= 0, 1, -1)).sum()
        return (grad * scale * (clipped(x / scale) + error)).sum()

    module = LearnedLevels(bits, is_signed).double()
    module.alpha.data.fill_(alpha)
    module(torch.from_numpy(x)).backward(torch.from_numpy(grad))
    measured = (surrogate(alpha + change) - surrogate(alpha - change)) / (2 * change)
    assert module.alpha.grad.item() == pytest.approx(measured / math.sqrt(200 * largest), rel=1e-5)


def test_shares_of_levels_for_gaussian_weights_are_the_closed_form():
    weight = torch.randn(1000, 1000, generator=torch.Generator().manual_seed(0))
    mean = math.sqrt(2 / math.pi)  # of |z|
    zeros = math.erf(4 / 3 * mean / 2 / math.sqrt(2))  # P(|z| < alpha / 2)
    states, _ = load_family("tbt_w2a16").states_and_scales(weight, row_parallel(1000, 1000, 1))
    assert (states == 0).double().mean().item() == pytest.approx(zeros, abs=0.005)
    assert (states == 1).double().mean().item() == pytest.approx((1 - zeros) / 2, abs=0.005)
    states, _ = load_family("tbt_w1a16").states_and_scales(weight, row_parallel(1000, 1000, 1))
    assert (states == 1).double().mean().item() == pytest.approx(0.5, abs=0.005)


def test_zeros_have_a_scale_too():
    zeros = torch.zeros(4, 4)
    for bits in (1, 2):
        weight = load_family(f"tbt_w{bits}a16").effective_weight(zeros, row_parallel(4, 4, 1))
        assert weight.abs().max() == (FLOOR if bits == 1 else 0)
        assert torch.isfinite(LearnedLevels(bits, True)(zeros)).all()
    for is_signed in (True, False):
        assert torch.equal(RoundedToBytes(is_signed)(zeros), zeros)


def model_of(family, attention="fused"):
    model = Llama(SHAPE, family, attention)
    model.reset_parameters(seed=3)
    return model


@pytest.mark.parametrize("family", LEARNED)
def test_first_scales_are_measured_place_by_place(family):
    model, text = model_of(family), torch.arange(48).view(2, 24)
    assert len([name for name, _ in model.named_parameters() if name.endswith(".alpha")]) == 8 * 2
    values = first_scales(model, text)
    assert len(values) == 16 and all(value > 0 for value in values.values())
    set_scales(model, values)
    assert first_scales(model, text) == values  # what is set already changes nothing
    first = "model.layers.0.self_attn.activations.qkv"
    read = model.model.layers[0].input_layernorm(model.model.embed_tokens(text))
    assert values[first].item() == pytest.approx(2 * read.abs().mean().item(), rel=1e-6)


def test_shares_of_levels_and_their_entropy():
    model, text = model_of("tbt_w2a2"), torch.arange(48).view(2, 24)
    set_scales(model, first_scales(model, text))
    rows = {row["place"]: row for row in measure_levels(model, text)}
    assert len(rows) == 16 and len(measure_levels(model_of("trilm"), text)) == 0
    row = rows["model.layers.0.self_attn.qkv"]
    layer = model.model.layers[0]
    read = layer.input_layernorm(model.model.embed_tokens(text)).detach()
    alpha = layer.self_attn.activations["qkv"].alpha.item()
    assert row["scale"] == alpha and row["share_of_2"] == 0
    shares = [row[f"share_of_{level}"] for level in (-1, 0, 1)]
    assert shares[1] == pytest.approx((read.abs() <= alpha / 2).double().mean().item(), abs=1e-3)
    assert sum(shares) == pytest.approx(1) and 0 < row["entropy_bits"] <= math.log2(3)
    probabilities = rows["model.layers.0.self_attn.probabilities"]
    assert probabilities["share_of_-1"] == 0 and probabilities["share_of_0"] < 1


@pytest.mark.parametrize("family", [name for name in FAMILY_NAMES if name.startswith("tbt")])
def test_a_token_depends_on_nothing_that_follows_or_stands_beside(family):
    model, text = model_of(family), torch.randint(0, 64, (3, 24), generator=torch.Generator().manual_seed(1))
    set_scales(model, first_scales(model, text))
    with torch.no_grad():
        together, alone, shorter = model(text), model(text[1:2]), model(text[1:2, :15])
    assert torch.allclose(together[1], alone[0], rtol=0, atol=1e-5)
    assert torch.allclose(alone[0, :15], shorter[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("attention", FORMS)
def test_rounded_attention_has_one_form(attention):
    model, text = model_of("tbt_w2a2", attention), torch.arange(24)[None]
    set_scales(model, first_scales(model, text))
    reference = model_of("tbt_w2a2")
    reference.load_latent_weights(model.state_dict())
    assert torch.equal(model(text), reference(text))
