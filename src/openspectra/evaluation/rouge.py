"""ROUGE of what a model wrote (Lin 2004, F1, without stemming), by Google's `rouge_score` as lm-eval's own tasks use it.

It counts words of ASCII letters and digits, in lower case. rouge_score imports nltk, so it is imported where it is needed.
"""

from functools import cache
from typing import Any

METRICS = ("rouge1", "rouge2", "rougeL")
"""Words in common, pairs of neighbouring words in common, longest common subsequence of words."""


def scores(item: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Return the scores of one item, from what the model wrote: lm-eval calls this as the task's `process_results`."""
    return rouge(item["target"], results[0])


def rouge(target: str, written: str) -> dict[str, float]:
    """Return each metric of `written`, from 0 to 1."""
    return {metric: float(score.fmeasure) for metric, score in _scorer(METRICS).score(target, written).items()}


def words(text: str) -> list[str]:
    """Return the words of a text that ROUGE compares."""
    from rouge_score.tokenize import tokenize

    return tokenize(text, None)


def best_constant_line(targets: list[str]) -> str:
    """Return the one of `targets` that has the highest mean ROUGE-1 over all of them, the first of equals.

    As its own target is among them, no model can do better by always writing the same of these lines.
    """
    scorer = _scorer(METRICS[:1])

    def total(line: str) -> float:
        return sum(scorer.score(target, line)["rouge1"].fmeasure for target in targets)

    return max(dict.fromkeys(targets), key=total)


@cache
def _scorer(metrics: tuple[str, ...]):
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(metrics), use_stemmer=False)
