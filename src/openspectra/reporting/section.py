"""What a section of the page is made of: tables, figures and notes, and the data behind them as CSV."""

from dataclasses import dataclass, field
from typing import ClassVar

import pandas as pd

from openspectra.reporting.drawing import Drawing
from openspectra.reporting.formats import Cell


@dataclass(frozen=True)
class Row:
    """A row of a table: the kind colours its mark, the anchor leads to the artifact."""

    name: str
    kind: str
    group: str
    """Size, or what else keeps rows together; a line stands where it changes."""
    cells: list[Cell]
    anchor: str | None = None


@dataclass(frozen=True)
class View:
    """A table of the page: column titles with a second line of units, its rows, and why anything is missing."""

    macro: ClassVar = "view"
    columns: list[tuple[str, str]]
    rows: list[Row]
    reasons: list[str] = field(default_factory=list)
    title: str = ""
    """Stands above it, where a section has several."""
    is_folded: bool = False
    """Whether the reader must open it: for what is too long to scroll past."""
    ends_in_words: bool = False
    """Whether the last column holds sentences, which may take several lines."""


@dataclass(frozen=True)
class FigureGroup:
    """Figures that share a heading, a caption and notes below. In `pairs` they stand two by two, else as many as fit."""

    macro: ClassVar = "figure"
    title: str
    caption: str
    drawings: list[Drawing]
    pairs: bool = False
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Section:
    """One section of the page, as its template shows it from top to bottom."""

    id: str
    title: str
    short: str
    """Its name in the list of sections."""
    lead: str = ""
    notes: list[str] = field(default_factory=list)
    parts: list = field(default_factory=list)
    """Views, figure groups and what else names a macro of `report.html` that shows it."""
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    """The numbers of the section by file name, written as CSV beside the page."""

    @property
    def drawings(self) -> list[Drawing]:
        return [drawing for part in self.parts if isinstance(part, FigureGroup) for drawing in part.drawings]
