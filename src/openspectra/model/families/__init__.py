"""Model families: what the forward pass makes of a latent weight matrix. One file each; its name is the family's.

Architecture, initial draw and order of text are shared by all families of a size, so that they are twins and the
difference between them is the family. To add one: a file here that defines a `Family` and names it `FAMILY`.
"""

import pkgutil
from importlib import import_module

FAMILY_NAMES = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "family"))
"""Names as in model ids, read from the file names: a study can be checked without importing torch."""


def load_family(name: str):
    """Return the `Family` called `name`."""
    return import_module(f"{__name__}.{name}").FAMILY
