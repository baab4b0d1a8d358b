"""What low-bit activations cost, next to low-bit weights: models of a size that differ in one of the two.

With TBT's ternary weights, W2A16 minus FloatLM is what the weights cost, W2A2 minus W2A16 what the activations cost on
top; the two add up to W2A2 minus FloatLM. Binary weights likewise.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from openspectra.identity import kind_label
from openspectra.model.binary_ternary import BinaryTernary
from openspectra.model.families import FAMILY_NAMES, load_family
from openspectra.model_ids import DISTILLED, ModelId
from openspectra.reporting import activation_figures, duels, levels, views
from openspectra.reporting.conformance import COLUMNS, NOT_COMPARABLE, read_published
from openspectra.reporting.formats import Cell, interval_text, missing, scaled, signed, size_unit
from openspectra.reporting.load import Model, Results
from openspectra.reporting.provenance import SHORT_HASH
from openspectra.reporting.section import FigureGroup, Row, Section, View
from openspectra.reporting.statistics import LEVEL_TEXT, DocumentLosses
from openspectra.reporting.tables import Gap, gap_between, missing_loss, rounded

WEIGHTS, ACTIVATIONS, TEACHER = "low-bit weights alone", "low-bit activations on top", "distillation"
PUBLISHED_KEYS = "architecture ({name}, an encoder and decoder of {size}), start (pretrained)"


@dataclass(frozen=True)
class Parts:
    """A model of the comparison and what its difference to FloatLM is made of; None where a part is none of its own."""

    model: Model
    to_floatlm: Gap | None
    of_weights: Gap | None = None
    of_activations: Gap | None = None
    of_teacher: Gap | None = None

    @property
    def weight_bits(self) -> float:
        return load_family(self.model.id.family).bits_per_weight

    @property
    def activation_bits(self) -> int:
        return load_family(self.model.id.family).activation_bits

    @property
    def tbt_width(self) -> int | None:
        """Bits of the weights by the name of their paper, 1 or 2; None in a family of another."""
        family = low_bit(self.model.id.family)
        return family.weight_bits if family else None

    @property
    def name(self) -> str:
        return f"{kind_label(self.model.id.kind)} {self.model.id.size}" + f", {DISTILLED}" * bool(self.model.id.variant)


def activations_section(results: Results, losses: DocumentLosses, paper: Path | None) -> Section:
    """Return the comparison; empty where no family of the study has low-bit activations and its twin in weights.

    `paper` is the table of the numbers that the families' own paper prints.
    """
    section = Section("activations", "What low-bit activations cost, next to low-bit weights", "Activations")
    found = parts_of(results, losses)
    if not any(low_bit(each.model.id.family) for each in found):
        return section
    pairs = steps_of(found, results)
    scored = duels.duel_table(results, pairs)
    of_levels = levels.levels_table(results)
    figures = FigureGroup(
        "Loss by bits of the activations",
        "Left: test loss. Right: the same minus FloatLM, the same documents drawn for both: from the line down or up to the mark at "
        "16 bits is what low-bit weights cost, from there to the left what low-bit activations cost on top. Bars: "
        f"{LEVEL_TEXT} interval. Marks of one width stand side by side. Hollow: distilled.",
        activation_figures.loss_panels(found, losses, results.sizes),
        pairs=True,
    )
    shown = [parts_view(found, losses), *([figures] if figures.drawings else []), *_duel_views(pairs, scored)]
    tables = {"activations.csv": parts_table(found, losses), "activation_duels.csv": scored, "levels.csv": of_levels}
    if len(of_levels):
        shown += [levels.levels_figure(results, of_levels), levels.levels_view(of_levels)]
    if paper:
        tables["activations_published.csv"] = published_table(paper, results)
        view = views.conformance_view(tables["activations_published.csv"])
        shown.append(replace(view, title="The numbers of arXiv 2306.01841"))
    return replace(
        section,
        lead="Ternary (W2) and binary (W1) weights, each with activations as they are (A16), of 8 bits, and ternary (A2) or binary "
        "(A1): the quantizers of arXiv 2306.01841, trained from scratch. W2A16 minus FloatLM is what the weights cost alone, "
        "W2A2 minus W2A16 what the activations cost on top, on the same documents; the two add up. Families differ in their "
        "recipes too, which stand under Settings. BitNet b1.58 has other norms, so its activations are not taken apart.",
        notes=[*sentences(found), *levels.sentences(of_levels)],
        parts=shown,
        tables={name: table for name, table in tables.items() if len(table)},
    )


def low_bit(family: str) -> type[BinaryTernary] | None:
    """Return the family of this name where its activations are among those that are taken apart."""
    found = load_family(family) if family in FAMILY_NAMES else None
    return found if found and issubclass(found, BinaryTernary) else None


def with_full_activations(family: type[BinaryTernary]) -> str:
    """Return the name of the family with the same weights whose activations stay as they are."""
    others = {name: low_bit(name) for name in FAMILY_NAMES if low_bit(name)}
    return next(
        name for name, each in others.items() if (each.weight_bits, each.activation_bits) == (family.weight_bits, 16)
    )


def parts_of(results: Results, losses: DocumentLosses) -> list[Parts]:
    """Return every trained model without a variant, and the distilled ones: by size, what is taken apart last, by its bits."""
    plain = {model.id for model in results.study_models if not model.id.bits and model.id.family in FAMILY_NAMES}
    chosen = [model for model in results.models if model.id.undistilled in plain and _is_shown(model.id)]
    found = [_parts(model, results, losses) for model in chosen]
    return sorted(found, key=lambda each: (results.sizes.index(each.model.id.size), *_bits_rank(each)))


def steps_of(found: list[Parts], results: Results) -> list[duels.Duel]:
    """Return the pairs of evaluated models that differ in one thing: weights, activations, or the teacher."""
    pairs = []
    for each in found:
        named = {ACTIVATIONS: each.of_activations, TEACHER: each.of_teacher}
        named |= {WEIGHTS: each.of_weights} if each.of_activations is None else {}
        for basis, gap in named.items():
            opponent = results.by_id.get(str(gap.baseline_id)) if gap else None
            if opponent and opponent.evaluations and each.model.evaluations:
                pairs.append(duels.Duel(basis, each.model, opponent))
    return pairs


def parts_table(found: list[Parts], losses: DocumentLosses) -> pd.DataFrame:
    """Return one row per model: its bits, its test loss, and the parts of its difference, in nats per token."""
    return pd.DataFrame(
        [
            {
                "model_id": str(each.model.id),
                "weight_bits": each.weight_bits,
                "activation_bits": each.activation_bits,
                "model_size_bits": each.model.metric("model_size_bits"),
                **rounded("test_loss", losses.loss(str(each.model.id))),
                **rounded("minus_floatlm", each.to_floatlm and each.to_floatlm.interval),
                **rounded("of_weights", each.of_weights and each.of_weights.interval),
                **rounded("of_activations", each.of_activations and each.of_activations.interval),
                **rounded("minus_undistilled", each.of_teacher and each.of_teacher.interval),
            }
            for each in found
        ]
    )


def parts_view(found: list[Parts], losses: DocumentLosses) -> View:
    """Return the same as a table of the page."""
    unit, divisor = size_unit(max((each.model.metric("model_size_bits") or 0 for each in found), default=0))
    interval = f"nats/token\n{LEVEL_TEXT} interval"
    has_teacher = any(each.of_teacher for each in found)
    columns = [
        ("Bits", "weights | activations"),
        ("Size", unit),
        ("Test loss", interval),
        ("Minus FloatLM", interval),
        ("of it weights", interval),
        ("of it activations", interval),
        *([("Minus undistilled", interval)] if has_teacher else []),
    ]
    rows = []
    for each in found:
        model, loss = each.model, losses.loss(str(each.model.id))
        size = model.metric("model_size_bits")
        gaps = [each.to_floatlm, each.of_weights, each.of_activations, *([each.of_teacher] if has_teacher else [])]
        cells = [
            Cell(f"{each.weight_bits:g} | {each.activation_bits}", 100 * each.weight_bits + each.activation_bits),
            Cell(f"{size / divisor:.2f}", size)
            if size
            else missing("; ".join(model.missing) or "not in the model's manifest"),
            Cell(f"{loss.value:.3f}", loss.value, interval_text(loss))
            if loss
            else missing(missing_loss(model, losses)),
            *map(_gap_cell, gaps),
        ]
        anchor = model.artifact.sha256[:SHORT_HASH] if model.artifact else None
        rows.append(Row(str(model.id), model.id.kind, model.id.size, cells, anchor))
    reasons = {f"{row.name}: {cell.missing}.": None for row in rows for cell in row.cells if cell.missing}
    return View(columns, rows, list(reasons), title="By family")


def sentences(found: list[Parts]) -> list[str]:
    """Return what the two parts are, which is the larger, and what a teacher changes: as the numbers fall."""
    said, larger = [], {"weights": [], "activations": []}
    for each in found:
        weights, activations = each.of_weights, each.of_activations
        if weights and activations and weights.interval and activations.interval and each.to_floatlm.interval:
            said.append(
                f"{each.name}: test loss differs from FloatLM's by {signed(each.to_floatlm.interval.value)} nats/token: "
                f"{_told(weights)} by its weights and {_told(activations)} by its activations."
            )
            is_weights = weights.interval.value > activations.interval.value
            larger["weights" if is_weights else "activations"].append(each.name)
    said += [
        f"Of the two the {part} cost more in {', '.join(names)} (estimates, not their intervals)."
        for part, names in larger.items()
        if names
    ]
    return said + [
        f"{each.name}: test loss differs from that of the same model without a teacher by {_told(each.of_teacher)}."
        for each in found
        if each.of_teacher and each.of_teacher.interval
    ]


def published_table(path: Path, results: Results) -> pd.DataFrame:
    """Return every number that the paper of these families prints, in the columns of `conformance.csv`; none is comparable."""
    rows = []
    for cell in read_published(path).to_dict("records"):
        name = "BART-base" if cell["params"] < 500e6 else "mBART-large"
        keys = [PUBLISHED_KEYS.format(name=name, size=scaled(cell["params"]))]
        keys += [] if cell["task"] == "model_size" else [f"task ({cell['task']})"]
        rows.append(
            {
                "paper_model": f"{cell['model']}, {cell['bits']}" if cell["bits"] else cell["model"],
                "task": cell["task"],
                "metric": cell["metric"],
                "paper": cell["printed"],
                "paper_stderr": cell["stderr"],
                "our_model": _nearest(cell["bits"], results),
                "verdict": NOT_COMPARABLE,
                "differs_in": ", ".join(keys),
                "note": "",
                "source": cell["source"],
            }
        )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _nearest(bits: str, results: Results) -> str:
    """Return the largest model here of the bits that the paper writes as `E2 W2 A8`; nothing where there is none."""
    widths = {part[0]: part[1:] for part in bits.split()}
    family = f"tbt_w{widths.get('W')}a{widths.get('A')}"
    family = {"tbt_w32a32": "floatlm"}.get(family, family)
    same = [model for model in results.study_models if model.id.family == family]
    return str(same[-1].id) if same else ""


def _is_shown(model_id: ModelId) -> bool:
    return model_id.variant in (None, DISTILLED) and not model_id.bits


def _bits_rank(each: Parts) -> tuple[int, int]:
    """Return a sort key: many bits first, other families before all."""
    return (-each.tbt_width, -each.activation_bits) if each.tbt_width else (-100, 0)


def _parts(model: Model, results: Results, losses: DocumentLosses) -> Parts:
    plain = model.id.undistilled
    floatlm = plain.float_parent
    if plain == floatlm:
        return Parts(model, None)

    def gap(of: ModelId, to: ModelId) -> Gap | None:
        return gap_between(results.by_id[str(of)], to, results, losses) if str(of) in results.by_id else None

    whole = gap(model.id, floatlm)
    if model.id.variant:
        return Parts(model, whole, of_teacher=gap(model.id, plain))
    family = low_bit(model.id.family)
    if not family:
        return Parts(model, whole)
    full = replace(plain, family=with_full_activations(family))
    if plain == full:
        return Parts(model, whole, of_weights=whole)
    return Parts(model, whole, gap(full, floatlm), gap(plain, full))


def _duel_views(pairs: list[duels.Duel], table: pd.DataFrame) -> list[View]:
    """Return the same steps on every task, one table for each of what was changed."""
    shown = []
    for basis in dict.fromkeys(pair.basis for pair in pairs):
        own = [pair for pair in pairs if pair.basis == basis]
        bits = {str(m.id): duels.bits_of(m, duels.TOTAL_BITS) for pair in own for m in (pair.model, pair.opponent)}
        view = views.duel_view(own, table, basis, bits)
        title = f"On every task: {basis} (errors and p-values as under Duels)"
        shown.append(replace(view, title=title, is_folded=True))
    return shown


def _gap_cell(gap: Gap | None) -> Cell:
    if gap is None:
        return Cell(views.NO_REASON)
    if gap.interval is None:
        return missing(gap.missing)
    return Cell(signed(gap.interval.value), gap.interval.value, interval_text(gap.interval, 4, with_sign=True))


def _told(gap: Gap) -> str:
    """Return a difference with its interval, in words."""
    verdict = "excludes zero" if gap.interval.excludes_zero else "includes zero"
    bounds = interval_text(gap.interval, 4, with_sign=True)
    return f"{signed(gap.interval.value)} ({LEVEL_TEXT}: {bounds}; {verdict})"
