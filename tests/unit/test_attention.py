"""Attention in both forms, and what half precision computes: against float32, against each other, compiled or not."""

import pytest
import torch

from openspectra.model.attention import FORMS
from openspectra.model.config import LlamaShape
from openspectra.model.families import FAMILY_NAMES, load_family
from openspectra.model.llama import Llama

SHAPE = LlamaShape(
    vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, rope_theta=5000.0
)
HALVES = [torch.bfloat16, torch.float16]


def results(form: str, dtype: torch.dtype, length: int) -> list[torch.Tensor]:
    """Return output and the gradients of q, k and v, all in float64."""
    generator = torch.Generator().manual_seed(length)
    q, k, v, grad = (torch.randn(2, 3, length, 16, generator=generator).to(dtype) for _ in range(4))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    out = FORMS[form](*inputs)
    assert out.dtype == dtype and out.shape == q.shape
    return [x.double() for x in (out.detach(), *torch.autograd.grad(out, inputs, grad))]


@pytest.mark.parametrize("length", [1, 7, 64])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
def test_both_forms_equal_within_rounding_forward_and_backward(dtype, length):
    exact = results("fused", torch.float64, length)
    for form in FORMS:
        rounded = results(form, dtype, length)
        for ours, reference in zip(rounded, exact, strict=True):
            # float64 by its own rounding; else inputs are rounded too, a softmax sums errors of both signs
            assert (ours - reference).abs().max() < 12 * torch.finfo(dtype).eps * max(1, reference.abs().max())


def loss_and_gradients(family: str, attention: str, dtype: torch.dtype | None, compile: bool = False):
    """Return mean loss and the gradient of every parameter, as one vector, under autocast to `dtype`."""
    model = Llama(SHAPE, family, attention)
    model.reset_parameters(seed=1)
    if compile:
        for layer in model.model.layers:
            layer.compile()
    ids = torch.randint(0, 128, (2, 33), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        loss = model(ids[:, :-1], ids[:, 1:])
    loss.backward()
    return loss.item(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def distance(ours: torch.Tensor, reference: torch.Tensor) -> float:
    return ((ours - reference).norm() / reference.norm()).item()


@pytest.mark.parametrize("attention", FORMS)
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_half_precision_gives_the_gradients_of_float32_within_its_rounding(family, attention):
    loss, gradients = loss_and_gradients(family, "fused", None)
    for dtype in HALVES:
        # a rounded stream moves activations across the borders of their steps, 1 / 127 wide or wider
        rounds = load_family(family).activation("input", 1e-5)
        bound = 4 / 127 if rounds else 4 * torch.finfo(dtype).eps
        half_loss, half_gradients = loss_and_gradients(family, attention, dtype)
        assert half_loss == pytest.approx(loss, abs=torch.finfo(dtype).eps)
        assert 0 < distance(half_gradients, gradients) < bound


@pytest.mark.parametrize("attention", FORMS)
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_residual_stream_norms_and_rotary_tables_are_in_the_precision_of_products(family, attention):
    model = Llama(SHAPE, family, attention)
    model.reset_parameters(seed=1)
    seen = {}

    def record(name):
        return lambda module, inputs, output: seen.update({name: {x.dtype for x in (*inputs, output)}})

    for name, module in model.model.named_modules():
        if name.startswith("layers.") and name.count(".") == 1 or name == "norm" or name.endswith("layernorm"):
            module.register_forward_hook(record(name))
    ids = torch.randint(0, 128, (1, 9), generator=torch.Generator().manual_seed(0))
    for dtype in HALVES:
        seen.clear()
        with torch.autocast("cpu", dtype=dtype):
            assert model(ids).dtype == dtype
            assert model(ids[:, :-1], ids[:, 1:]).dtype == torch.float32
        assert len(seen) == 7 and set.union(*seen.values()) == {dtype}
    seen.clear()
    model(ids)
    assert set.union(*seen.values()) == {torch.float32}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_norm_of_large_half_precision_values_does_not_overflow():
    norm = Llama(SHAPE, "floatlm").model.norm.half()
    x = torch.full((1, 64), 60_000.0, dtype=torch.float16)  # whose square is far above the largest fp16 value
    assert torch.equal(norm(x), torch.ones_like(x))


@pytest.mark.parametrize("dtype", HALVES)
def test_bitnet_rounds_half_precision_inputs_as_float32_ones(dtype):
    layer_input = load_family("bitnet").activation("input", 1e-5)
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(layer_input(x), layer_input(x.float()).to(dtype))


@pytest.mark.slow
@pytest.mark.parametrize("attention", FORMS)
@pytest.mark.parametrize("dtype", [None, *HALVES])
def test_compiled_blocks_equal_plain_ones_and_keep_their_form(dtype, attention):
    plain = loss_and_gradients("trilm", attention, dtype)
    with torch.profiler.profile() as profile:
        compiled = loss_and_gradients("trilm", attention, dtype, compile=True)
    eps = torch.finfo(dtype or torch.float32).eps
    assert compiled[0] == pytest.approx(plain[0], abs=eps)
    assert distance(compiled[1], plain[1]) < 4 * eps
    # the compiler knows many spellings of attention and puts torch's kernel in their place
    uses_kernel = any("scaled_dot_product" in event.key for event in profile.key_averages())
    assert uses_kernel == (attention == "fused")
