"""What the nodes of a cluster are: the one thing that resources are computed from and that no study says.

`site.yaml` of a cluster is a handful of numbers (docs/site.md). Nothing here changes what is computed, only where, how
long, and with which rounding (see `Layout`).
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from openspectra.config import Config, validate
from openspectra.errors import ConfigError
from openspectra.strict_yaml import read_yaml

Strategy = Literal["ddp", "fsdp2"]
Recompute = Literal["none", "blocks"]
Count = Annotated[int, Field(ge=1, le=100_000)]
Amount = Annotated[float, Field(gt=0, le=1e6)]


class LayoutWish(Config):
    """What of a training's layout is not to follow from its size: the keys given hold, the others are computed."""

    nodes: Count | None = None
    devices: Count | None = None
    """Ranks on each node: one per GPU."""
    strategy: Strategy | None = None
    micro_batch: Annotated[int, Field(ge=0)] | None = None
    """Sequences per pass; 0: the most that divide a rank's share of a step, up to 8."""
    recompute: Recompute | None = None


class Site(Config):
    """The nodes of a cluster, all of one kind. The defaults are the assumption where no site file is given."""

    gpus: Annotated[int, Field(ge=0, le=64)] = 8
    """GPUs of a node; 0: it has none."""
    gpu_memory_gb: Amount = 80.0
    """Memory of one GPU, in GB (1e9 bytes)."""
    gpu_teraflops: Amount = 989.0
    """Rate of half-precision matrix products of one GPU, dense, as its maker states it: 989 is an H100."""
    memory_gb: Amount = 1000.0
    """Memory of a node that jobs may ask for, in GB."""
    cores: Count = 96
    """Processor cores of a node."""
    hours: Amount = 24.0
    """Longest time limit of a job."""
    nodes: Count = 4
    """Most nodes of one job."""
    days_per_training: Amount = 14.0
    """A training takes more GPUs, up to those of `nodes`, until it ends within so many days."""
    layouts: dict[str, LayoutWish] = {}
    """Layouts that are not to follow from the size, by size (`3.9B`) or by model (`trilm/3.9B`, which goes first)."""

    @property
    def summary(self) -> str:
        """The node in one line."""
        gpus = (
            f"{self.gpus} GPUs of {self.gpu_memory_gb:g} GB and {self.gpu_teraflops:g} TFLOP/s, " if self.gpus else ""
        )
        return (
            f"{gpus}{self.cores} cores and {self.memory_gb:,g} GB a node; a job has at most "
            f"{self.nodes} nodes and {self.hours:g} h; a training is to end within {self.days_per_training:g} days"
        )


def load_site(path: Path) -> Site:
    """Return the site in a YAML file. Raises `ConfigError` with all problems, each naming file, key and value."""
    content = read_yaml(path)
    if content is None:
        raise ConfigError([f"{path}: empty; give the numbers of a node, such as `gpus: 4` (docs/site.md)."])
    return validate(Site, content, str(path))
