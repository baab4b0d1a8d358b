"""Sentences about what the numbers say, as found: the sign of a difference is reported, never expected."""

from collections.abc import Iterable

from openspectra.identity import kind_label
from openspectra.reporting.formats import interval_text, signed
from openspectra.reporting.load import ROUGE, Results
from openspectra.reporting.statistics import LEVEL_TEXT, DocumentLosses, main_scores
from openspectra.reporting.tables import Gap

CLEAR = 2
"""Standard errors above chance at which a score is called clear."""
MANY_SIZES = 4
"""With more sizes than this one sentence stands for the gaps of a family."""


def findings(results: Results, losses: DocumentLosses, gaps: list[Gap]) -> list[str]:
    """Return the statements that the test losses and scores allow; none where nothing was evaluated."""
    gaps = [gap for gap in gaps if gap.model.id.calibration is None]  # the mean of the sets stands for them
    gaps = [gap for gap in gaps if gap.model.id == gap.model.id.first_seed]  # the others stand in their own section
    return [
        *_larger_is_better(results, losses),
        *_twin_sentences(gaps),
        *_quantized_sentences(gaps),
        *_frontier(results, losses),
        *_above_chance(results),
    ]


def _larger_is_better(results: Results, losses: DocumentLosses) -> list[str]:
    """Return one sentence per verdict, naming the kinds of models it holds for."""
    verdicts: dict[str, list[str]] = {}
    for kind in results.kinds:
        models = [model for model in results.study_models if model.id.kind == kind]
        found = [loss.value for model in models if (loss := losses.loss(str(model.id)))]
        if len(found) > 1:
            verdicts.setdefault(_verdict(found), []).append(kind_label(kind))
    return [f"Test loss {verdict} for {', '.join(kinds)}." for verdict, kinds in verdicts.items()]


def _verdict(values: list[float]) -> str:
    """Return in words how losses change from the smallest size to the largest."""
    steps = list(zip(values, values[1:], strict=False))
    if all(later < earlier for earlier, later in steps):
        return "falls with every step in size"
    if all(later >= earlier for earlier, later in steps):
        return "falls with no step in size"
    return "falls with some steps in size and not with others"


def _twin_sentences(gaps: list[Gap]) -> list[str]:
    """Return one sentence per gap between twins; one per family where it has many sizes."""
    sentences = []
    for kind, found in _by_kind(gap for gap in gaps if gap.interval and not gap.model.id.bits).items():
        many = len(found) > MANY_SIZES and all(gap.interval.low is not None for gap in found)
        sentences += [_sizes_sentence(kind, found)] if many else map(_gap_sentence, found)
    return sentences


def _sizes_sentence(kind: str, gaps: list[Gap]) -> str:
    """Return at which sizes a family lies above its FloatLM twins, at which below, and where that is not clear."""
    clear = [gap for gap in gaps if gap.interval.excludes_zero]
    places = {
        "above": [gap for gap in clear if gap.interval.value > 0],
        "below": [gap for gap in clear if gap.interval.value < 0],
    }
    said = [f"{place} at {_labels(found)}" for place, found in places.items() if found]
    if unclear := [gap for gap in gaps if gap not in clear]:
        said.append(f"the {LEVEL_TEXT} interval includes zero at {_labels(unclear)}")
    return f"{kind_label(kind)}: test loss against its FloatLM twin, nats/token: {'; '.join(said)}."


def _labels(gaps: list[Gap]) -> str:
    return ", ".join(f"{_label(gap)} ({signed(gap.interval.value)})" for gap in gaps)


def _gap_sentence(gap: Gap) -> str:
    interval = gap.interval
    side = "above" if interval.value > 0 else "below" if interval.value < 0 else "equal to"
    verdict = "excludes zero" if interval.excludes_zero else "includes zero"
    return (
        f"{kind_label(gap.model.id.kind)} {_label(gap)}: test loss {side} its FloatLM twin, {signed(interval.value)} nats/token"
        f" ({LEVEL_TEXT}: {interval_text(interval, 4, with_sign=True)}; {verdict})."
    )


def _quantized_sentences(gaps: list[Gap]) -> list[str]:
    """Return one sentence per width: the range of its differences over the sizes."""
    found = _by_kind(gap for gap in gaps if gap.interval and gap.model.id.bits)
    return [_range_sentence(kind, rows) for kind, rows in found.items()]


def _by_kind(gaps: Iterable[Gap]) -> dict[str, list[Gap]]:
    by_kind: dict[str, list[Gap]] = {}
    for gap in gaps:
        by_kind.setdefault(gap.model.id.kind, []).append(gap)
    return by_kind


def _range_sentence(kind: str, gaps: list[Gap]) -> str:
    values = [gap.interval.value for gap in gaps]
    clear = sum(gap.interval.excludes_zero for gap in gaps)
    low, high = signed(min(values)), signed(max(values))
    span = low if low == high else f"{low} to {high}"
    return (
        f"{kind_label(kind)}: test loss differs from that of its FloatLM by {span} nats/token; "
        f"the {LEVEL_TEXT} interval excludes zero for {clear} of {len(gaps)} models."
    )


def _frontier(results: Results, losses: DocumentLosses) -> list[str]:
    """Return which models no other beats in both size in bits and test loss."""
    points = [
        (model.metric("model_size_bits"), loss.value, str(model.id))
        for model in results.study_models
        if (loss := losses.loss(str(model.id))) and model.metric("model_size_bits")
    ]
    best, frontier = float("inf"), []
    for _, value, name in sorted(points):
        if value < best:
            best = value
            frontier.append(name)
    if len(points) < 2:
        return []
    return [
        f"No other model is both smaller in bits and lower in test loss than these, smallest first: {', '.join(frontier)}."
    ]


def _above_chance(results: Results) -> list[str]:
    main = main_scores(results.scores, results.main_metrics).dropna(subset=["value", "stderr", "chance"])
    main = main[~main["model_id"].isin({str(model.id) for model in results.single_sets})]
    clear = main["value"] > main["chance"] + CLEAR * main["stderr"]
    counts: dict[str, list[str]] = {}
    for task, rows in main.groupby("task", sort=True):
        what = (
            "ROUGE-1 more than {} standard errors above that of the best constant line"
            if results.main_metrics[task] == ROUGE
            else "Accuracy more than {} standard errors above chance"
        )
        counts.setdefault(what.format(CLEAR), []).append(f"{task} {clear[rows.index].sum()} of {len(rows)} models")
    return [f"{what}: {', '.join(found)}." for what, found in counts.items()]


def _label(gap: Gap) -> str:
    return str(gap.model.id).partition("/")[2]
