"""Where GPTQ and evaluation compute. Imports torch: import this module where a model is needed, not at the top."""

import torch


def device() -> str:
    """Return `cuda` where there is a GPU, else `cpu`; a job is given one GPU, and takes the first."""
    return "cuda" if torch.cuda.is_available() else "cpu"
