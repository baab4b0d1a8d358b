"""Formats of local files: rows as they are in every packing, damage counted by row, whatever lies in the file."""

import bz2
import csv
import gzip
import io
import json
import lzma
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import get_args

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openspectra.data import formats
from openspectra.data.config import FilesSource, Problem, ReadConfig
from openspectra.data.local_files import list_files
from openspectra.data.read import clean, read_source
from openspectra.data.sources import rows_of
from openspectra.errors import ConfigError, OpenSpectraError

MAX_BYTES = 5_000_000
PACKINGS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}
TEXTS = ["one", 'two, "quoted" and\nlonger', "drei\tä", "four\r\nlines", "{[five]}", "six\\"]
ROWS = [{"text": text, "meta": {"set": "ab"[n % 2]}} for n, text in enumerate(TEXTS)]


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("OPENSPECTRA_DATA", str(folder))
    return folder


def config_of(max_bytes: int = MAX_BYTES, **source) -> ReadConfig:
    source = {"adapter": "files", "files": ["*"]} | source
    limits = {"min_characters": 1, "max_document_bytes": max_bytes, "num_parts": 1}
    return ReadConfig.model_validate({"name": "files", "source": source} | limits)


def read(max_bytes: int = MAX_BYTES, **source) -> list[tuple[str, str, str | None]]:
    """Return place, text and problem of every row."""
    config = config_of(max_bytes, **source)
    return [(row.place, *clean(row, config)) for row in rows_of(config, list_files("files", config.source))]


def as_csv(rows: list[list[str]], delimiter: str = ",") -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter).writerows(rows)
    return file.getvalue().encode()


def as_arrow(rows: list[dict] | pyarrow.Table, is_stream: bool = True) -> bytes:
    table = rows if isinstance(rows, pyarrow.Table) else pyarrow.Table.from_pylist(rows)
    sink = io.BytesIO()
    with (pyarrow.ipc.new_stream if is_stream else pyarrow.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue()


def content_of(ending: str) -> bytes:
    if ending in ("csv", "tsv"):
        return as_csv([["text", "set"], *([row["text"], row["meta"]["set"]] for row in ROWS)], ",\t"[ending == "tsv"])
    return {"jsonl": "\n".join(map(json.dumps, ROWS)), "json": json.dumps(ROWS, indent=1)}[ending].encode()


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv"])
def test_rows_of_every_format_in_every_packing(data_folder, ending, packing):
    name = f"a.{ending}{packing}"
    (data_folder / name).write_bytes(PACKINGS[packing](b"\xef\xbb\xbf" + content_of(ending)))
    assert read() == [(f"{name}:{n}", text, None) for n, text in enumerate(TEXTS, 1)]
    where = {"set": "b"} if ending.endswith("sv") else {"meta.set": "b"}
    assert [text for _, text, _ in read(where=where)] == TEXTS[1::2]


@pytest.mark.parametrize("is_stream", [True, False])
def test_rows_of_arrow_files(data_folder, is_stream):
    (data_folder / "a.arrow").write_bytes(as_arrow(ROWS, is_stream))
    assert read() == [(f"a.arrow:{n}", text, None) for n, text in enumerate(TEXTS, 1)]
    assert [text for _, text, _ in read(where={"meta.set": "b"})] == TEXTS[1::2]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("lines.json", "\n".join(map(json.dumps, ROWS)).encode()),  # as C4 and Dolma have it
        ("lines.json.gz", gzip.compress("\r\n".join(map(json.dumps, ROWS)).encode(), mtime=0)),
        ("compact.json", json.dumps(ROWS, separators=(",", ":")).encode()),
        ("indented.json", json.dumps(ROWS, indent=4).encode()),
    ],
)
@pytest.mark.parametrize("chunk_bytes", [1, 3, 2**20])
def test_json_holds_lines_or_an_array(data_folder, monkeypatch, name, content, chunk_bytes):
    monkeypatch.setattr(formats, "CHUNK_BYTES", chunk_bytes)
    (data_folder / name).write_bytes(content)
    assert read() == [(f"{name}:{n}", text, None) for n, text in enumerate(TEXTS, 1)]


@pytest.mark.parametrize("indent", [None, 2])
def test_json_holds_one_object(data_folder, indent):
    (data_folder / "a.json").write_text(json.dumps(ROWS[1], indent=indent))
    assert read() == [("a.json:1", TEXTS[1], None)]
    assert read(max_bytes=20) == [("a.json:1", "", "too_long")]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(st.dictionaries(st.text(max_size=3), st.text('a"\\[]{},\n', max_size=8), max_size=2)),
    st.sampled_from([None, 1]),
    st.integers(1, 7),
)
def test_elements_of_any_array(monkeypatch, rows, indent, chunk_bytes):
    monkeypatch.setattr(formats, "CHUNK_BYTES", chunk_bytes)
    content = json.dumps(rows, indent=indent).encode()
    assert [json.loads(element) for element in formats._elements(io.BytesIO(content), MAX_BYTES)] == rows


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.lists(st.text('a",\r\n', max_size=6), min_size=2, max_size=2), min_size=1), st.integers(1, 40))
def test_csv_is_read_as_it_was_written_and_long_rows_alone_are_lost(data_folder, rows, max_bytes):
    (data_folder / "a.csv").write_bytes(as_csv([["text", "b"], *rows]))
    assert [row.content for row in rows_of(config_of(), list_files("files", config_of().source))] == [
        a for a, _ in rows
    ]
    records = list(formats._records(io.BytesIO(as_csv(rows)), b",", max_bytes))
    expected = [as_csv([row]) for row in rows]
    assert records == [None if len(record) > max_bytes else record for record in expected]


def hostile_files() -> dict[str, tuple[bytes, dict[str, int]]]:
    """Return files of the newer formats and what must be found in each: documents kept (`kept`) and problems by name."""
    lines = b"".join(b'{"text": "%d"}\n' % n for n in range(3000))
    array = json.dumps([{"text": f"{n}"} for n in range(30)]).encode()
    bad = [b"text %d" % n for n in range(200)]
    bad[100] = b"\xff\xfe"
    views = pyarrow.array(bad, pyarrow.binary_view())
    tables = [views.view(pyarrow.string_view()), views, pyarrow.array(bad).view(pyarrow.string())]
    tables.append(pyarrow.array(bad, pyarrow.large_binary()).view(pyarrow.large_string()))
    found = {
        "empty.json": (b"", {}),
        "blank.json": (b" \n ", {"empty": 2}),
        "nothing.json": (b"[]", {}),
        "values.json": (
            b'[{"text": null}, {"text": 3}, {"text": ""}, 4, ["a"], {"txt": "a"}, {"text": "b"}]',
            {"null": 1, "wrong_type": 3, "empty": 1, "missing_field": 1, "kept": 1},
        ),
        "bad_elements.json": (b'[{"text": "a"}, {text: 1}, , {"text": "b"}}, {"text": "c"}, ]', {"kept": 2, "invalid_json": 4}),
        "bytes.json": (b'[{"text": "\xff"}, {"text": "b"}]', {"invalid_utf8": 1, "kept": 1}),
        "surrogate.json": (rb'[{"text": "\ud800"}]', {"lone_surrogate": 1}),
        "deep.json": (b"[" * 200_000, {"damaged_file": 1}),
        "deep_element.json": (b"[" * 200_000 + b"]" * 199_999 + b', {"text": "a"}]', {"invalid_json": 1, "kept": 1}),
        "cut.json": (array[:-1], {"kept": 29, "damaged_file": 1}),
        "cut_string.json": (array[:-4], {"kept": 29, "damaged_file": 1}),
        "more.json": (array + b' {"text": "more"}', {"kept": 30, "damaged_file": 1}),
        "long_element.json": (
            b'[{"text": "%b"}, {"text": "b"}]' % (b"[" * (MAX_BYTES + 9)),
            {"too_long": 1, "kept": 1},
        ),
        "cut_object.json": (b'{\n "text": "a",\n "b": 1\n', {"invalid_json": 1}),
        "bad_first_line.json": (b"{'text': 'a'}\n" + lines[:28], {"invalid_json": 1, "kept": 2}),
        "bad_first_line_2.json": (b'{"text": "a\n{"text": "b"}\n', {"invalid_json": 1, "kept": 1}),
        "cut.json.gz": (gzip.compress(array, mtime=0)[:-9], {"kept": 29, "damaged_file": 1}),
        "no_gzip.json.gz": (b"<html>404 Not Found</html>", {"damaged_file": 1}),
        "empty.csv": (b"", {}),
        "header.csv": (b"text,b\n", {}),
        "no_newline.csv": (b"text,b\na,1", {"kept": 1}),
        "crlf.csv": (b"text,b\r\na,1\r\nb,2\r\n", {"kept": 2}),
        "blank_line.csv": (b"text,b\na,1\n\nb,2\n", {"kept": 2, "empty": 1}),
        "one_column.csv": (b'text\na\n""\nb\n', {"kept": 2, "empty": 1}),
        "ragged.csv": (b"text,b\na\na,1,2\nb,2\n", {"kept": 1, "invalid_csv": 2}),
        "latin1.csv": (b"text,b\ncaf\xe9,1\nb,2\n", {"kept": 1, "invalid_utf8": 1}),
        "quotes.csv": (b'text,b\n5" disk,1\n"a"b,2\n"c ""d""",3\n', {"kept": 2, "invalid_csv": 1}),
        "open_quote.csv": (b'text,b\na,1\n"b,2\nc,3\n', {"kept": 1, "damaged_file": 1}),
        "long.csv": (b'text,b\n"' + b'x,""\n' * (MAX_BYTES // 4) + b'",1\nb,2\n', {"too_long": 1, "kept": 1}),
        "long_plain.csv": (b"text,b\n" + b"x" * (3 * MAX_BYTES) + b",1\nb,2\n", {"too_long": 1, "kept": 1}),
        "no_header.csv": (b"\na,1\n", {"damaged_file": 1}),
        "header.tsv": (b"\xff\tb\na\t1\n", {"damaged_file": 1}),
        "a.tsv": (b'text\tb\na, b\t1\n"c\td"\t2\n', {"kept": 2}),
        "cut.csv.xz": (lzma.compress(b"text\n" + lines)[:-40], {"damaged_file": 1}),
        "cut.jsonl.bz2": (bz2.compress(lines)[:-40], {"damaged_file": 1}),
        "cut.jsonl.xz": (lzma.compress(lines)[:-40], {"damaged_file": 1}),
        "no_bz2.jsonl.bz2": (b"<html>404 Not Found</html>", {"damaged_file": 1}),
        "no_xz.jsonl.xz": (b"<html>404 Not Found</html>", {"damaged_file": 1}),
        "no_bytes.jsonl.bz2": (b"", {"damaged_file": 1}),
        "two_streams.jsonl.bz2": (bz2.compress(lines) * 2, {"kept": 6000}),
        "bomb.jsonl.zst": (zstandard.compress(bytes(100_000_000)), {"too_long": 1}),
        "bomb.csv.bz2": (bz2.compress(b"text\n" + bytes(60_000_000)), {"too_long": 1}),
        "skippable.jsonl.zst": (b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + zstandard.compress(lines), {"kept": 3000}),
        "cut_frame.jsonl.zst": (zstandard.compress(lines) + zstandard.compress(lines)[:-9], {"kept": 3000, "damaged_file": 1}),
        "empty.arrow": (b"", {"damaged_file": 1}),
        "html.arrow": (b"<html>404 Not Found</html>", {"damaged_file": 1}),
        "values.arrow": (as_arrow([{"text": "a"}, {"text": None}, {"text": " "}]), {"kept": 1, "null": 1, "empty": 1}),
        "numbers.arrow": (as_arrow([{"text": 1}]), {"wrong_type": 1}),
        "cut_stream.arrow": (as_arrow([{"text": f"{n}"} for n in range(6)])[:-100], {"kept": 4, "damaged_file": 1}),
        "cut_file.arrow": (as_arrow([{"text": f"{n}"} for n in range(6)], is_stream=False)[:-100], {"damaged_file": 1}),
    }  # fmt: skip
    for number, column in enumerate(tables):
        table = pyarrow.table({"text": column})
        sink = io.BytesIO()
        pyarrow.parquet.write_table(table, sink)
        for ending, content in (
            ("parquet", sink.getvalue()),
            ("arrow", as_arrow(table)),
            ("arrow", as_arrow(table, False)),
        ):
            found[f"type_{number}_{len(found)}.{ending}"] = (content, {"kept": 199, "invalid_utf8": 1})
    return found


def test_hostile_files_are_read_to_the_end_and_counted(tmp_path, data_folder):
    files = hostile_files()
    for name, (content, _) in files.items():
        (data_folder / name).write_bytes(content)
    dirty = dict.fromkeys(get_args(Problem), "skip")
    found = {name: Counter() for name in files}
    for place, _, problem in read(dirty=dirty):
        found[place.split(":")[0]][problem or "kept"] += 1
    expected = {name: Counter(counts) for name, (_, counts) in files.items()}
    for name in ("cut.jsonl.bz2", "cut.jsonl.xz", "cut.json.gz", "cut.csv.xz"):  # rows before the damage may stay
        found[name].pop("kept", None)
        expected[name].pop("kept", None)
    assert found == expected
    metrics = read_source(config_of(dirty=dirty), tmp_path)
    skipped = metrics["counts"]["skipped"]
    assert metrics["counts"]["read"] == metrics["counts"]["documents"] + sum(skipped.values())
    with (tmp_path / "skipped.csv").open(newline="") as file:
        told = [tuple(row.values()) for row in csv.DictReader(file)]
    assert Counter(problem for _, problem, _ in told) == skipped
    assert all(
        cause for _, problem, cause in told if problem in ("damaged_file", "invalid_json", "invalid_csv", "wrong_type")
    )
    assert not any(str(data_folder) in cause or "\n" in cause or len(cause) > 200 for *_, cause in told)


@pytest.mark.parametrize("is_stream", [True, False])
def test_no_flipped_byte_of_an_arrow_file_crashes_the_reader(data_folder, is_stream):
    """In a process of its own: offsets that point outside of the memory end a process, and no exception tells."""
    (data_folder / "a.arrow").write_bytes(as_arrow(ROWS * 3, is_stream))
    program = """
import random, sys
from pathlib import Path
from openspectra.data.config import FilesSource
from openspectra.data.formats import read_rows
path = Path(sys.argv[1])
content, rng = path.read_bytes(), random.Random(0)
source = FilesSource(adapter="files", files=["a.arrow"], where={})
for number in range(800):
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 1, 8))):
        damaged[rng.randrange(len(damaged))] = rng.choice((0, 255, 128, rng.randrange(256)))
    path.write_bytes(damaged)
    try:
        rows = list(read_rows(path, "a.arrow", 10**6, source))
        assert len(rows) <= 10**5
    except Exception as error:
        assert type(error).__name__ == "ConfigError", repr(error)  # a column was renamed
print("read")
"""
    command = [sys.executable, "-c", program, str(data_folder / "a.arrow")]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stdout) == (0, "read\n"), finished.stderr[-2000:]


@pytest.mark.parametrize("window_log", [27, 28, 30])
def test_zstd_of_a_long_window_is_read(data_folder, window_log):
    parameters = zstandard.ZstdCompressionParameters(window_log=window_log, enable_ldm=True)
    lines = b"".join(b'{"text": "line %d"}\n' % n for n in range(400))
    sink = io.BytesIO()
    with zstandard.ZstdCompressor(compression_params=parameters).stream_writer(sink, closefd=False) as writer:
        writer.write(lines)  # of unknown size, so that the frame names its whole window
    (data_folder / "a.jsonl.zst").write_bytes(sink.getvalue())
    assert [text for _, text, _ in read()] == [f"line {n}" for n in range(400)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'["a"]\n', "a.jsonl:1: the text is no string (the row is an array, no object)"),
        (b'{"text": "a"}\n3\n', "a.jsonl:2: the text is no string (the row is a number, no object)"),
        (b'{"text": {"a": 1}}\n', "a.jsonl:1: the text is no string (it is an object)"),
        (b'{"text": true}\n', "a.jsonl:1: the text is no string (it is a boolean)"),
        (b'{"text": "a",}\n', "a.jsonl:1: not JSON (Expecting property name enclosed in double quotes: line 1"),
    ],
)
def test_what_a_row_is_instead_is_named(data_folder, content, message):
    (data_folder / "a.jsonl").write_bytes(content)
    with pytest.raises(OpenSpectraError) as caught:
        read_source(config_of(), data_folder.parent)
    assert message in str(caught.value) and "corpus.sources.files.dirty." in str(caught.value)


def test_text_inside_another_field(data_folder):
    rows = [{"data": {"text": "a", "n": 1}}, {"data": {"text": None, "n": 2}}, {"data": None}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), data_folder / "a.parquet")
    (data_folder / "b.arrow").write_bytes(as_arrow(rows))
    (data_folder / "c.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"data": 3}])))
    expected = [("a", None), ("", "null"), ("", "missing_field")]
    found = [row[1:] for row in read(text_field="data.text")]
    assert found == expected * 3 + [("", "missing_field")]
    assert [row[1] for row in read(text_field="data.text", files=["[ab]*"], where={"data.n": 1})] == ["a", "a"]


def test_column_of_that_very_name_comes_before_one_inside(data_folder):
    rows = [{"data.text": "own", "data.set": 1, "data": {"text": "inner"}}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), data_folder / "a.parquet")
    (data_folder / "b.arrow").write_bytes(as_arrow(rows))
    (data_folder / "c.json").write_text(json.dumps(rows))
    (data_folder / "d.csv").write_text("data.text,data.set\nown,1\n")
    assert [text for _, text, _ in read(text_field="data.text", where={"data.set": 1})] == ["own"] * 4


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.csv"])
def test_table_without_the_column_names_source_and_columns(data_folder, name):
    if name == "a.csv":
        (data_folder / name).write_text("body,data\nx,y\n")
    elif name == "a.arrow":
        (data_folder / name).write_bytes(as_arrow([{"body": "x", "data": {"body": "y"}}]))
    else:
        pyarrow.parquet.write_table(pyarrow.table({"body": ["x"], "data": [{"body": "y"}]}), data_folder / name)
    with pytest.raises(
        ConfigError, match=rf"corpus\.sources\.files: {name}: no column 'text'; it has \['body', 'data'\]"
    ):
        read()
    with pytest.raises(ConfigError, match=rf"corpus\.sources\.files: {name}: .*no column '(text|data\.text)'; it has"):
        read(text_field="data.text")


def test_saved_data_sets_are_their_files(data_folder):
    """As `datasets.save_to_disk` writes them: what lies beside, and what `map` left there, is no text."""
    import datasets

    rows = datasets.Dataset.from_list([{"text": text} for text in TEXTS])
    rows.save_to_disk(str(data_folder / "set"), num_shards=2)
    (data_folder / "set/cache-0123456789abcdef.arrow").write_bytes(as_arrow([{"text": "left over"}]))
    datasets.DatasetDict({"train": rows.select([5, 0]), "test": rows.select([1])}).save_to_disk(
        str(data_folder / "many")
    )
    for pattern in ("set", "set/**", "s*", "set/*", "set/*.arrow"):
        assert [text for _, text, _ in read(files=[pattern])] == TEXTS, pattern
    assert read(files=["set"])[0][0] == "set/data-00000-of-00002.arrow:1"
    assert [text for _, text, _ in read(files={"train": ["many/train"]})] == [TEXTS[5], TEXTS[0]]
    assert len(read(files=["**"])) == len(TEXTS) + 3 == len(read(files=["**/*"]))
    with pytest.raises(ConfigError, match=r"no file matches 'many', it matches the folder .*; write 'many/\*\*'"):
        read(files=["many"])
    (data_folder / "set/data-00001-of-00002.arrow").unlink()
    with pytest.raises(OpenSpectraError, match=r"data-00001-of-00002\.arrow: missing, though state\.json beside it"):
        read(files=["set"])


def test_pattern_that_leaves_out_folders_is_refused(data_folder):
    for name in ("sub/text/a.txt", "sub/text/more/b.txt", "sub/text/more/deep/c.txt"):
        path = data_folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    for pattern in ("sub/text/*", "sub/text/m*"):
        with pytest.raises(ConfigError, match=r"corpus\.sources\.files\.files: .*/more, .* write 'sub/text/more/\*\*'"):
            read(files=[pattern])
    for pattern in ("sub", "sub/*", "**/more"):
        with pytest.raises(
            ConfigError, match=r"no file matches .*, it matches the folder .*; write 'sub/.*\*\*' for all"
        ):
            read(files=[pattern])
    assert len(read(files=["sub/text/**"])) == len(read(files=["**/*"])) == len(read(files=["**/*.txt"])) == 3
    assert [text for _, text, _ in read(files=["sub/text/*.txt"])] == ["sub/text/a.txt"]


def test_names_that_would_forge_lines_are_escaped(data_folder):
    names = ["a\nopenspectra: done.jsonl", "b\x1b[2J.jsonl", "c\\n.jsonl", "c\n.jsonl", "d\u202egnp.jsonl"]
    for name in names:
        (data_folder / name).write_text('{"text": "x"}\n[]\n')
    found = [place for place, *_ in read(dirty={"wrong_type": "skip"})][::2]
    assert found == [
        r"a\nopenspectra: done.jsonl:1",
        r"b\x1b[2J.jsonl:1",
        r"c\n.jsonl:1",
        r"c\\n.jsonl:1",
        r"d\u202egnp.jsonl:1",
    ]
    (data_folder / "e\n\x1b[1m.pdf").write_text("x")
    with pytest.raises(ConfigError) as caught:
        list_files("files", FilesSource(adapter="files", files=["e*"]))
    assert r"e\n\x1b[1m.pdf: unknown ending" in str(caught.value) and "\n" not in str(caught.value)


def test_scratch_is_left_clean(data_folder):
    """Files are closed where a reader is left half-way."""
    (data_folder / "a.json").write_text(json.dumps(ROWS))
    rows = formats.read_rows(Path(data_folder / "a.json"), "a.json", MAX_BYTES)
    assert next(rows).content == ROWS[0]
    rows.close()
