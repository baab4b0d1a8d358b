"""Linear layers of every family against an independent NumPy implementation, forward and backward, in float64.

Inputs are kept away from rounding ties, so that both sides agree on every state.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import openspectra
from openspectra.model.families import FAMILY_NAMES, load_family
from openspectra.model.llama import LinearGroup
from openspectra.model.shards import column_parallel, row_parallel

ROOT = Path(__file__).parents[2]
EPS = 1e-5
TIE = 1e-3
"""Distance, in units of the scale, that every latent and activation keeps from the next rounding border."""


def numpy_parts(shape, scales, layout):
    """Return the index sets that share one scale, written down from the definition, matrix by matrix."""
    index = np.arange(np.prod(shape)).reshape(shape)
    if layout == "row":
        return np.split(index, scales, axis=1)
    matrices = np.split(index, 3, axis=0) if layout == "qkv" else [index]
    slices = [np.split(matrix, scales, axis=0) for matrix in matrices]
    return [np.concatenate([matrix[rank] for matrix in slices]) for rank in range(scales)]


def numpy_weight(family, weight, scales, layout):
    effective = np.empty(weight.size)
    for part in numpy_parts(weight.shape, scales, layout):
        latent = weight.flat[part]
        if family == "floatlm":
            effective[part] = latent
        elif family == "bilm":
            effective[part] = np.abs(latent).mean() * np.where(latent - latent.mean() < 0, -1, 1)
        else:
            gamma = EPS + np.abs(latent).mean()
            effective[part] = gamma * np.rint(np.clip(latent / gamma, -1, 1))
    return effective.reshape(weight.shape)


def numpy_layer(family, x, weight, grad_y, scales, layout):
    """Return y, dL/dx and dL/dW of one layer for dL/dy = `grad_y`."""
    effective = numpy_weight(family, weight, scales, layout)
    if family != "bitnet":
        return x @ effective.T, grad_y @ effective, grad_y.T @ x
    mean_square = (x**2).mean(axis=-1, keepdims=True) + EPS
    normed = x / np.sqrt(mean_square)
    step = np.abs(normed).max(axis=-1, keepdims=True) / 127
    rounded = np.rint(normed / step) * step
    grad_normed = grad_y @ effective
    inner = (grad_normed * x).mean(axis=-1, keepdims=True)
    grad_x = (grad_normed - x * inner / mean_square) / np.sqrt(mean_square)
    return rounded @ effective.T, grad_x, grad_y.T @ rounded


def away_from_ties(family, x, weight, scales, layout):
    for part in numpy_parts(weight.shape, scales, layout):
        latent = weight.flat[part]
        if family == "bilm":
            distance = np.abs(latent - latent.mean()) / np.abs(latent).mean()
        else:
            distance = np.abs(np.abs(latent) / (EPS + np.abs(latent).mean()) - 0.5)
        weight.flat[part] = np.where(distance < TIE, latent * 1.05 + 1e-3, latent)
    if family == "bitnet":
        normed = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + EPS)
        scaled = normed * 127 / np.abs(normed).max(axis=-1, keepdims=True)
        x = np.where(
            np.abs(scaled - np.floor(scaled) - 0.5) < 4 * TIE, x * (1 + 2e-2 / np.maximum(np.abs(scaled), 1)), x
        )
    return x, weight


def group_of(family, weight, scales, layout):
    out_features, in_features = weight.shape
    parts = 3 if layout == "qkv" else 1
    layers = {str(i): torch.nn.Linear(in_features, out_features // parts, bias=False) for i in range(parts)}
    for layer, part in zip(layers.values(), torch.from_numpy(weight).split(out_features // parts), strict=True):
        layer.weight = torch.nn.Parameter(part.clone())
    shards = (
        row_parallel(out_features, in_features, scales)
        if layout == "row"
        else column_parallel(out_features, in_features, scales, shared_by=parts)
    )
    return LinearGroup(load_family(family), layers, shards, EPS)


def relative(ours, reference):
    return np.abs(ours - reference).max() / np.abs(reference).max()


@pytest.mark.parametrize("layout", ["column", "row", "qkv"])
@pytest.mark.parametrize("scales", [1, 2, 3, 6])
@pytest.mark.parametrize("family", [name for name in FAMILY_NAMES if not name.startswith("tbt")])  # test_binary_ternary
def test_layer_equals_numpy(family, scales, layout):
    rng = np.random.default_rng(scales)
    x, weight = rng.normal(size=(5, 48)), rng.normal(size=(36, 48)) * 0.02 + 0.001
    for _ in range(20):
        x, weight = away_from_ties(family, x, weight, scales, layout)
    grad_y = rng.normal(size=(5, 36))
    reference = numpy_layer(family, x, weight, grad_y, scales, layout)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
        group = group_of(family, weight, scales, layout)
        for layer in group.layers.values():
            layer.to(dtype)
        inputs = torch.from_numpy(x).to(dtype).requires_grad_()
        y = torch.cat(group(inputs), dim=-1)
        y.backward(torch.from_numpy(grad_y).to(dtype))
        grad_w = torch.cat([layer.weight.grad for layer in group.layers.values()])
        for ours, expected in zip((y.detach(), inputs.grad, grad_w), reference, strict=True):
            assert relative(ours.double().numpy(), expected) < tolerance
        if family != "floatlm":
            states, _ = group.family.states_and_scales(group.latent_weight().detach(), group.shards)
            expected = np.sign(numpy_weight(family, weight, scales, layout))
            assert np.array_equal(states.reshape(36, 48).numpy(), expected)


def test_gaussian_weights_start_with_31_percent_zeros():
    weight = torch.randn(1000, 1000, generator=torch.Generator().manual_seed(0))
    states, _ = load_family("trilm").states_and_scales(weight, row_parallel(1000, 1000, 1))
    assert (states == 0).double().mean().item() == pytest.approx(0.310, abs=0.005)  # P(|w| < mean|w| / 2)


def test_zero_matrix_stays_finite_and_zero():
    weight = torch.zeros(4, 4)
    assert torch.equal(load_family("trilm").effective_weight(weight, row_parallel(4, 4, 1)), weight)


def test_eight_bit_activations_have_at_most_256_values_a_token():
    x = torch.randn(3, 4096, generator=torch.Generator().manual_seed(0))
    rounded = load_family("bitnet").activation("input", EPS)(x)
    for token in rounded:
        assert 128 < len(token.unique()) <= 256


def test_unequal_shards_are_refused_with_both_numbers():
    with pytest.raises(ValueError, match="cut `out_features` into equal shards; got 12 for 5 parts"):
        column_parallel(12, 24, 5)


USES = """
import torch
from matplotlib.figure import Figure
from openspectra.identity import kind_label, kind_rank
from openspectra.model.config import LlamaShape
from openspectra.model.llama import Llama
from openspectra.model.size import parameters_of
from openspectra.reporting.drawing import colour_of, looks, marker_of, to_drawing
from openspectra.training.config import FamilyName

assert "clip" in FamilyName.__args__
assert kind_label("clip") == "ClipLM" and marker_of("clip") == "D" and "clip" in looks()
assert sorted(["clip", "trilm", "quantlm-4bit", "floatlm"], key=kind_rank) == ["floatlm", "trilm", "clip", "quantlm-4bit"]
figure = Figure()
figure.add_subplot().plot([0, 1], color=colour_of("clip"))
assert "var(--clip, #335577)" in to_drawing(figure, "x", "").svg
shape = LlamaShape(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
model = Llama(shape, "clip")
model.reset_parameters(1)
assert len(model.export_state_dict()) == 12 + 4
assert sum(parameter.numel() for parameter in model.parameters()) == parameters_of(shape, "clip")
model(torch.arange(8)[None], torch.arange(8)[None]).backward()
assert model.model.layers[0].mlp.activations["down"].bound.grad is not None
"""


def test_a_family_is_added_with_the_one_file_that_the_docs_show(tmp_path):
    package = Path(openspectra.__file__).parent
    (added,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/training.md").read_text(), re.DOTALL)
    shutil.copytree(package, tmp_path / "openspectra", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "openspectra" / "model" / "families" / "clip.py").write_text(added)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", USES], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_family_has_a_place_and_a_look_of_its_own():
    families = [load_family(name) for name in FAMILY_NAMES]
    for part in ("colour", "dark_colour", "marker"):
        assert len({getattr(family.look, part) for family in families}) == len(families)
    assert len({family.legend_order for family in families}) == len(families)
