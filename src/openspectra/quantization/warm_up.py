"""Compile gptqmodel's packing extension, once per machine: 30 to 60 s that no user should meet in a first run."""

import logging
import os
import shlex
import sys

from openspectra.quantization.gptq import SETTINGS


def main() -> None:
    """Build the extension into the user's cache, where every later process finds it. Ends non-zero where it cannot.

    Prints the compiler's own lines and the cause, which gptqmodel keeps to itself. Quantizing works without it.
    """
    os.environ.update(SETTINGS)
    causes = logging.getLogger("gptqmodel.utils.cpp")
    causes.setLevel(logging.DEBUG)
    causes.addHandler(logging.StreamHandler())
    from gptqmodel.utils.cpp import load_pack_block_extension
    from torch.utils import cpp_extension

    # torch quotes the folders it hands to the compiler, this one it does not: a path with a space would fall apart
    cpp_extension.TORCH_LIB_PATH = shlex.quote(cpp_extension.TORCH_LIB_PATH)
    if not load_pack_block_extension(verbose=True):
        sys.exit("gptqmodel's packing extension could not be built; the cause stands above.")


if __name__ == "__main__":
    main()
