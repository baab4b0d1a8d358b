"""A training that goes on from a state whose file is cut off as soon as training begins. Argument: its folder."""

import os
import sys
from pathlib import Path

from test_training import At, config, train

FOLDER = Path(sys.argv[1])


def cut_off(module) -> None:
    assert module.step == 10
    for state in FOLDER.glob("checkpoints/*/step-*.pt"):
        os.truncate(state, 0)
        state.unlink()


if __name__ == "__main__":
    train(config(), FOLDER, At(10, cut_off))
