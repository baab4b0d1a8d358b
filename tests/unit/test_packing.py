"""Packed discrete weights: exact both ways, scale read from the weights."""

import pytest
import torch

from openspectra.model.families import load_family
from openspectra.model.packing import pack, pack_states, unpack, unpack_states
from openspectra.model.shards import column_parallel, row_parallel

LAYOUTS = [column_parallel(36, 30, 3, shared_by=3), column_parallel(36, 30, 6), row_parallel(36, 30, 2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shards", LAYOUTS, ids=["qkv", "column", "row"])
@pytest.mark.parametrize("family", ["trilm", "bilm", "bitnet"])
def test_packing_is_exact_and_stable(family, shards, dtype):
    latent = torch.randn(36, 30, generator=torch.Generator().manual_seed(0)) * 0.02
    weight = load_family(family).effective_weight(latent, shards).to(dtype)
    packed, scales = pack(weight, shards)
    unpacked = unpack(packed, scales, shards, (36, 30))
    assert torch.equal(unpacked, weight)
    again, scales_again = pack(unpacked, shards)
    assert torch.equal(again, packed)
    assert torch.equal(scales_again, scales)
    assert packed.numel() == 36 * 30 // 4


def test_states_of_any_shape_survive():
    states = torch.randint(-1, 2, (7, 11), generator=torch.Generator().manual_seed(0))
    assert torch.equal(unpack_states(pack_states(states), (7, 11)), states.to(torch.int8))


def test_all_zero_shard_has_scale_zero():
    packed, scales = pack(torch.zeros(4, 8), row_parallel(4, 8, 2))
    assert torch.equal(unpack(packed, scales, row_parallel(4, 8, 2), (4, 8)), torch.zeros(4, 8))


def test_latent_weights_are_refused():
    with pytest.raises(ValueError, match="more than one magnitude"):
        pack(torch.randn(4, 8), row_parallel(4, 8, 2))
