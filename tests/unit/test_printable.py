"""Names and titles of others: one line each, wherever they are shown; what cannot be shown is refused or escaped."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from data_study import ROOT, study_of

from openspectra.config import validate
from openspectra.errors import ConfigError, DamagedArtifactError, OpenSpectraError
from openspectra.logs import log_to
from openspectra.printable import escaped
from openspectra.strict_yaml import read_yaml
from openspectra.study import Study, load_study

FORGED = "a\n2026-11-26 ERROR openspectra: forged\r\x1b[2J\x9b1m\u2028\u202e\ud800"
PLAIN = "a\\n2026-11-26 ERROR openspectra: forged\\r\\x1b[2J\\x9b1m\\u2028\\u202e\\ud800"


def test_escaped_text_is_one_plain_line():
    assert escaped(FORGED) == PLAIN == escaped(PLAIN)
    assert escaped("ä \u3000 界 👩\u200d👩 é\\") == "ä \u3000 界 👩\u200d👩 é\\"
    assert escaped("a\n\tb\x1b", keep="\n\t") == "a\n\tb\\x1b"


def test_a_message_is_one_line_for_each_problem():
    assert str(OpenSpectraError(f"{FORGED}: no")) == f"{PLAIN}: no"
    assert str(ConfigError([FORGED, "b"])) == f"{PLAIN}\nb"
    assert str(DamagedArtifactError(FORGED, "b")).splitlines() == [PLAIN, "b"]


def test_a_name_forges_no_line_of_a_log(tmp_path, capsys):
    with pytest.raises(OpenSpectraError, match="ValueError: first"), log_to(tmp_path / "log"):
        logging.getLogger("openspectra.test").warning("%s: gone", FORGED)
        raise ValueError(f"first\x1b[2J\n{FORGED}")
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[0].endswith(f"WARNING openspectra.test: {PLAIN}: gone")
    assert lines[1].endswith("ERROR traceback: failed") and not any("\x1b" in line for line in lines)
    assert capsys.readouterr().err == f"{PLAIN}: gone\n"


def test_the_command_line_shows_names_of_files_in_one_line(tmp_path):
    study = tmp_path / "a\nforged: valid\x1b[2J.yaml"
    results = []
    for content in (None, "title: [", (ROOT / "studies/tiny.yaml").read_text()):
        if content:
            study.write_text(content)
        command = [sys.executable, "-m", "openspectra.cli", "check", study]
        results.append(subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False))
    assert [finished.returncode for finished in results] == [2, 2, 0]
    for finished in results:
        shown = finished.stdout + finished.stderr
        assert r"a\nforged: valid\x1b[2J.yaml" in shown and "\x1b" not in shown
        assert not any(line.startswith("forged") for line in shown.splitlines())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("title: 2026-13-45", "line 1: '2026-13-45' is no timestamp"),
        ("title: !!int abc", "line 1: 'abc' is no int"),
        ('title: !!int ""', "line 1: '' is no int"),
        ("title: !!float abc", "line 1: 'abc' is no float"),
        ("title: !!bool abc", "line 1: 'abc' is no bool"),
        ("title: !!timestamp abc", "line 1: 'abc' is no timestamp"),
        ("title: a\nseed: [{x: !!int abc}]", "line 2: 'abc' is no int"),
        (f"seed: {'1' * 5000}", "is no int"),
        (r'title: "\ud800"', r"line 1: '\ud800' holds half of a surrogate pair"),
        (r'"\ud800": 1', r"line 1: '\ud800' holds half of a surrogate pair"),
        (r'base: "a\0b"', r"base: must be the name of a study, `a-z`, `0-9`, `-` and `_`; got 'a\x00b'"),
        ("base: ../tiny", "base: must be the name of a study"),
        ("base: 3", "base: must be the name of a study"),
        (f"base: {'a' * 5000}", "base: must be the name of a study"),
    ],
)
def test_yaml_that_is_no_value_is_refused_in_one_line(tmp_path, line, message):
    (tmp_path / "s.yaml").write_text(line)
    with pytest.raises(ConfigError) as caught:
        load_study(tmp_path / "s.yaml")
    (problem,) = caught.value.problems
    assert message in problem and problem.startswith(str(tmp_path / "s.yaml")) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", " ", "a\nb", "a\x1b[31m", "a\x00", "\ud800", "\u202eb", "x" * 1001])
@pytest.mark.parametrize("place", ["title", "license", "task", "suite", "file", "text_field"])
def test_one_rule_for_what_is_shown(tmp_path, place, text):
    content = read_yaml(ROOT / "studies/tiny.yaml")
    sources = {"web": {"adapter": "files", "files": ["a"], "license": "MIT"}}
    suites = {"own": {"tasks": ["arc_easy"], "batch_size": 1, "dtype": "float32"}}
    content["corpus"] = {"sources": sources, "valid_fraction": 0.1, "test_fraction": 0.1}
    content["evaluation"] = {"suites": suites}
    validate(Study, content, "s.yaml")
    if place == "title":
        content["title"] = text
    elif place == "license":
        sources["web"]["license"] = text
    elif place == "file":
        sources["web"]["files"] = [text]
    elif place == "text_field":
        sources["web"]["text_field"] = text
    elif place == "task":
        suites["own"]["tasks"] = [text]
    else:
        suites[text] = suites["own"]
    with pytest.raises(ConfigError) as caught:
        validate(Study, content, "s.yaml")
    assert len(caught.value.problems) == 1 and "\n" not in str(caught.value) and "\x1b" not in str(caught.value)
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"files": [3]}, "corpus.sources.web.files.0: input should be a valid string; got 3."),
        ({"files": "x"}, "corpus.sources.web.files: input should be a valid list or a valid dictionary; got 'x'."),
        ({"files": ["../x"]}, "corpus.sources.web.files.0: must be a path below the data folder, without `..`; got '../x'."),
        ({"files": {"tran": ["x"]}}, "corpus.sources.web.files.tran: input should be 'train', 'valid' or 'test'; got 'tran'."),
        ({"wher": 1}, "corpus.sources.web.wher: unknown key; did you mean `where`?"),
        ({"where": {"a": 1.5}}, "corpus.sources.web.where.a: input should be a valid string or a valid integer; got 1.5."),
        ({"adapter": "file"}, "corpus.sources.web.adapter: must be one of 'python_stdlib', 'files', 'hub'; got 'file'."),
        ({"adapter": "hub"}, "corpus.sources.web.path: required key is missing; add it."),
        ({"dirty": {"empty": "ski"}}, "corpus.sources.web.dirty.empty: input should be 'fail' or 'skip'; got 'ski'."),
    ],
)  # fmt: skip
def test_a_message_names_the_key_that_stands_in_the_study(source, message):
    content = read_yaml(ROOT / "studies/tiny.yaml")
    web = {"adapter": "files", "files": ["x"]} | source
    content["corpus"] = {"sources": {"web": web}, "valid_fraction": 0.1, "test_fraction": 0.1}
    with pytest.raises(ConfigError) as caught:
        validate(Study, content, "s.yaml")
    assert f"s.yaml: {message}" in caught.value.problems


def test_adapter_that_is_missing_is_named():
    content = read_yaml(ROOT / "studies/tiny.yaml")
    content["corpus"]["sources"] = {"web": {"files": ["x"]}}
    with pytest.raises(
        ConfigError, match=r"^s\.yaml: corpus\.sources\.web\.adapter: required key is missing; add it\.$"
    ):
        validate(Study, content, "s.yaml")


def test_texts_of_shipped_studies_are_plain():
    for path in sorted(Path(ROOT, "studies").glob("*.yaml")):
        title = (yaml.safe_load(path.read_text()) or {}).get("title")
        assert title is None or escaped(title) == title
    assert study_of(title="Größe 界\u3000x").title == "Größe 界\u3000x"
