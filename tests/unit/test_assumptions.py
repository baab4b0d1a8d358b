"""Every marked assumption of a study, of its base and of the library is found, with file and line."""

from pathlib import Path

import openspectra
from openspectra.assumptions import collect, package_files, study_files

ROOT = Path(__file__).parents[2]
STUDY = """\
# `# ASSUME` marks what the paper does not state: this line speaks of marks.
base: below
title: "a # ASSUME: in a value is none"
seed: 1  # ASSUME: not stated
# ASSUME: said over
# two lines
training:
  adam_eps: 1.0e-8  # paper: 1M. ASSUME: the exact number
  # billions of tokens (ASSUME)
"""
BASE = """\
seed: 2  # ASSUME: hidden, for the study sets it anew
tokenizer:
  vocab_size: 512  # ASSUME: of the base
"""


def test_a_study_and_its_base_give_every_mark_with_file_and_line(tmp_path):
    folder = tmp_path / "studies"
    folder.mkdir()
    (folder / "above.yaml").write_text(STUDY, encoding="utf-8")
    (folder / "below.yaml").write_text(BASE, encoding="utf-8")
    files = study_files(folder / "above.yaml")
    assert files == [folder / "above.yaml", folder / "below.yaml"]
    found = [(each.file, each.line, each.text, each.code) for each in collect(files) if each.file.endswith(".yaml")]
    assert found == [
        ("studies/above.yaml", 4, "not stated", "seed: 1"),
        ("studies/above.yaml", 5, "said over two lines", ""),
        ("studies/above.yaml", 8, "the exact number", "adam_eps: 1.0e-8"),
        ("studies/above.yaml", 9, "billions of tokens", ""),
        ("studies/below.yaml", 3, "of the base", "vocab_size: 512"),
    ]


def test_no_mark_of_the_shipped_studies_is_lost():
    for path in sorted((ROOT / "studies").glob("*.yaml")):
        lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        marked = [number for number, line in lines if "ASSUME" in line and "`# ASSUME`" not in line]
        found = [each.line for each in collect([path]) if each.file == f"studies/{path.name}"]
        assert found == marked, path.name


def test_the_library_gives_its_own_marks_and_none_without_sources(tmp_path, monkeypatch):
    assert "openspectra/model/families/trilm.py" in {each.file for each in collect([])}
    assert all(each.text for each in collect([]))
    monkeypatch.setattr(openspectra, "__file__", str(tmp_path / "openspectra" / "__init__.pyc"))
    assert package_files() == [] and collect([]) == []
