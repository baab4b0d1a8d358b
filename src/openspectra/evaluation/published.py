"""The tasks of the paper as lm-eval names them, which split is scored, how many items it has; and what stands in for it."""

from typing import NamedTuple

SPLITS = ("validation", "test", "train", "dev")
"""Names of splits; where the one that is scored is absent, the first of these that is there stands in for it."""
NOTE, WITHOUT = "openspectra mirror: ", ", without "
"""Begin and part the description of a data set that was laid out of files: the split whose items are scored, and those
that no file was given for."""


def describe(source: str, absent: list[str]) -> str:
    """Return the description of a data set that was laid out of files."""
    return NOTE + source + (WITHOUT + ", ".join(absent) if absent else "")


def source_split(description: str) -> str | None:
    """Return the split whose items are scored, of a data set that was laid out of files; else None."""
    return description.removeprefix(NOTE).partition(WITHOUT)[0] if description.startswith(NOTE) else None


class PublishedTask(NamedTuple):
    """What lm-eval calls a task of the paper, its split, and how many items that split has."""

    name: str
    split: str
    num_items: int


TASKS = {
    "arc_challenge": PublishedTask("arc_challenge", "test", 1172),
    "arc_easy": PublishedTask("arc_easy", "test", 2376),
    "boolq": PublishedTask("boolq", "validation", 3270),
    "hellaswag": PublishedTask("hellaswag", "validation", 10042),
    "piqa": PublishedTask("piqa", "validation", 1838),
    "winogrande": PublishedTask("winogrande", "validation", 1267),
    "lambada_openai": PublishedTask("lambada_openai", "test", 5153),
    "sciq": PublishedTask("sciq", "test", 1000),
    "logiqa": PublishedTask("logiqa", "test", 651),
    "triviaqa": PublishedTask("triviaqa", "validation", 17944),
    "truthfulqa": PublishedTask("truthfulqa_mc1", "validation", 817),
    "crows_pairs_english": PublishedTask("crows_pairs_english", "test", 1677),
    "bigbench_bbq_lite": PublishedTask("bigbench_bbq_lite_json_multiple_choice", "default", 16076),
    "mmlu": PublishedTask("mmlu_continuation", "test", 14042),
    "mmlu_stem": PublishedTask("mmlu_continuation::stem", "test", 3153),
    "mmlu_humanities": PublishedTask("mmlu_continuation::humanities", "test", 4705),
    "mmlu_social_sciences": PublishedTask("mmlu_continuation::social sciences", "test", 3077),
    "mmlu_other": PublishedTask("mmlu_continuation::other", "test", 3107),
}
"""By the names that the table of the paper's numbers uses."""
