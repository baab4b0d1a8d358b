"""One of two ranks that load a state of three: shows what it allocated, and whether every bit is there.

Arguments: folder, rank. Prints JSON.
"""

import json
import sys
from pathlib import Path

import torch
from test_training import config
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from openspectra.model.llama import Llama
from openspectra.training.checkpoint import CheckpointFolder
from openspectra.training.sharding import parts_of, put_back, put_weights
from openspectra.training.world import World

CONFIG = config()
STEP_TO_GO_ON = 10


def whole_state(step: int) -> dict[str, dict[str, torch.Tensor]]:
    """Return weights and moments of a step, drawn by seed: by parameter name, `weight`, `exp_avg`, `exp_avg_sq`."""
    draw = torch.Generator().manual_seed(step)
    shapes = {name: p.shape for name, p in Llama(CONFIG.shape, CONFIG.family).named_parameters()}
    keys = ("weight", "exp_avg", "exp_avg_sq")
    return {name: {key: torch.rand(shape, generator=draw) for key in keys} for name, shape in shapes.items()}


class Allocations(TorchDispatchMode):
    """Knows the largest memory, in bytes, that an operation has made a tensor in."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        known = {_memory(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, torch.Tensor)}
        made = {_memory(tensor) for tensor in tree_leaves(result) if isinstance(tensor, torch.Tensor)} - known
        self.largest = max([self.largest, *(size for _, size in made)])
        return result


def _memory(tensor: torch.Tensor) -> tuple[int, int]:
    storage = (tensor._local_tensor if isinstance(tensor, DTensor) else tensor).untyped_storage()
    return (0, 0) if storage.device.type == "meta" else (storage.data_ptr(), storage.nbytes())


def main() -> None:
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    world = World(rank, 2, "fsdp2", local_rank=rank, local_size=2)
    world.start()
    checkpoints = CheckpointFolder(folder, CONFIG, {})
    llama = Llama(CONFIG.shape, CONFIG.family)
    is_finished = not list(checkpoints.folder.glob(f"step-{STEP_TO_GO_ON:08d}.pt"))
    step = CONFIG.max_steps if is_finished else STEP_TO_GO_ON
    if not is_finished:
        fully_shard(llama)
    optimizer = torch.optim.AdamW(llama.parameters())
    with Allocations() as allocations:
        state = checkpoints.load_newest(world)
        assert state["step"] == step
        held = sorted(state["held"])
        if not is_finished:
            put_back(parts_of(state), llama, optimizer)
        elif rank == 0:
            put_weights(parts_of(state), llama)
    expected = whole_state(step)
    found = {(name, "weight"): parameter for name, parameter in llama.named_parameters()}
    if not is_finished:
        moments = get_optimizer_state_dict(llama, optimizer)["state"]
        found |= {(name, key): moments[name][key] for name in expected for key in ("exp_avg", "exp_avg_sq")}
        assert all(entry["step"] == step for entry in moments.values())
        found = {key: tensor.full_tensor() for key, tensor in found.items()}
    is_exact = all(torch.equal(tensor, expected[name][key]) for (name, key), tensor in found.items())
    print(json.dumps({"largest": allocations.largest, "held": held, "is_exact": is_exact}))
    world.barrier()


if __name__ == "__main__":
    main()
