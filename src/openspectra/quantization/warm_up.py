"""Compile gptqmodel's packing extension, once per machine: 30 to 60 s that no user should meet in a first run."""

import os
import sys

from openspectra.quantization.gptq import SETTINGS


def main() -> None:
    """Build the extension into the user's cache, where every later process finds it. Ends non-zero where it cannot."""
    os.environ.update(SETTINGS)
    from gptqmodel.utils.cpp import load_pack_block_extension

    if not load_pack_block_extension():
        sys.exit("gptqmodel's packing extension could not be built; see above for the compiler's message.")


if __name__ == "__main__":
    main()
