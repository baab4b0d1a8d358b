"""Adapters and policies: whatever lies in the files, every row is counted and no reader crashes."""

import csv
import gzip
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import pyarrow
import pyarrow.parquet
import pytest
from data_study import DataStudy, corpus_of, study_of, texts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openspectra.data import formats
from openspectra.data.config import Problem, ReadConfig
from openspectra.data.local_files import list_files, matching_files, record_input
from openspectra.data.read import clean
from openspectra.data.rows import Row
from openspectra.data.sources import rows_of
from openspectra.errors import ConfigError, OpenSpectraError

MAX_BYTES = 5_000_000
EVERYTHING = dict.fromkeys(get_args(Problem), "skip")


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("OPENSPECTRA_DATA", str(folder))
    return folder


def config_of(**source) -> ReadConfig:
    source = {"adapter": "files", "files": ["**/*"]} | source
    limits = {"min_characters": 1, "max_document_bytes": MAX_BYTES, "num_parts": 1}
    return ReadConfig.model_validate({"name": "files", "source": source} | limits)


def rows(config: ReadConfig) -> Iterator[Row]:
    """Return the rows of one job."""
    return rows_of(config, list_files(config.name, config.source)[config.job :: config.source.num_jobs])


def read(**source) -> list[tuple[str, str, str | None]]:
    """Return place, text and problem of every row."""
    config = config_of(**source)
    return [(row.place, *clean(row, config)) for row in rows(config)]


def line(value) -> bytes:
    return json.dumps({"text": value}).encode() + b"\n"


def zstd(content: bytes) -> bytes:
    return pyarrow.compress(content, codec="zstd", asbytes=True)


def parquet(path: Path, column: pyarrow.Array, name: str = "text", **options) -> bytes:
    pyarrow.parquet.write_table(pyarrow.table({name: column}), path, **options)
    content = path.read_bytes()
    path.unlink()
    return content


def hostile_files(scratch: Path) -> dict[str, tuple[bytes, dict[str, int]]]:
    """Return the content of 40 files and what must be found in each: documents kept (`kept`) and problems by name."""
    good = b"".join(map(line, ["one", "two", "three"]))
    bad_text = pyarrow.Array.from_buffers(
        pyarrow.string(), 2, [None, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0\4\0\0\0"), pyarrow.py_buffer(b"ok\xff\xfe")]
    )
    rows = parquet(scratch / "p", pyarrow.array([f"row {n} " * 50 for n in range(500)]), compression="none")
    long = b"x" * (MAX_BYTES + 1)
    packed, squeezed = gzip.compress(good, mtime=0), zstd(good)
    return {
        "plain.txt": (b"a text\n", {"kept": 1}),
        "crlf.txt": (b"a\r\nb\r\n", {"kept": 1}),
        "bom.txt": (b"\xef\xbb\xbfwith a mark", {"kept": 1}),
        "nul.txt": (b"a\0b", {"kept": 1}),
        "empty.txt": (b"", {"empty": 1}),
        "blank.txt": (b" \r\n\t\n", {"empty": 1}),
        "only_bom.txt": (b"\xef\xbb\xbf", {"empty": 1}),
        "latin1.txt": (b"caf\xe9", {"invalid_utf8": 1}),
        "utf16.txt": ("text".encode("utf-16"), {"invalid_utf8": 1}),
        "surrogate.txt": (b"\xed\xa0\x80", {"invalid_utf8": 1}),
        "overlong.txt": (b"\xc0\xaf", {"invalid_utf8": 1}),
        "long.txt": (long, {"too_long": 1}),
        "text.txt.gz": (gzip.compress(b"packed", mtime=0), {"kept": 1}),
        "text.txt.zst": (zstd(b"packed too"), {"kept": 1}),
        "bomb.txt.gz": (gzip.compress(b"0" * 60_000_000, mtime=0), {"too_long": 1}),
        "no_gzip.txt.gz": (b"<html>404 Not Found</html>", {"damaged_file": 1}),
        "no_zstd.txt.zst": (b"<html>404 Not Found</html>", {"damaged_file": 1}),
        "good.jsonl": (good, {"kept": 3}),
        "no_newline.jsonl": (good[:-1], {"kept": 3}),
        "crlf.jsonl": (good.replace(b"\n", b"\r\n"), {"kept": 3}),
        "bom.jsonl": (b"\xef\xbb\xbf" + good, {"kept": 3}),
        "blank_line.jsonl": (good + b"\n" + line("four"), {"kept": 4, "empty": 1}),
        "empty.jsonl": (b"", {}),
        "no_bytes.jsonl.gz": (b"", {"damaged_file": 1}),
        "no_bytes.jsonl.zst": (b"", {"damaged_file": 1}),
        "nothing.jsonl.gz": (gzip.compress(b"", mtime=0), {}),
        "values.jsonl": (
            b"".join(map(line, [None, 3, 1.5, True, ["a"], {"a": 1}, "", "  ", "text"])),
            {"null": 1, "wrong_type": 5, "empty": 2, "kept": 1},
        ),
        "surrogates.jsonl": (
            rb'{"text": "\ud800"}' + b"\n" + rb'{"text": "\ud83d\ude00"}' + b"\n",
            {"lone_surrogate": 1, "kept": 1},
        ),
        "no_field.jsonl": (b'{"txt": "a"}\n[]\n"text"\n3\n', {"missing_field": 1, "wrong_type": 3}),
        "no_json.jsonl": (b"{'text': 'a'}\n{\n}\n{\"text\": \"a\"\n", {"invalid_json": 4}),
        "deep.jsonl": (b"[" * 200_000 + b"\n" + line("after"), {"invalid_json": 1, "kept": 1}),
        "bytes.jsonl": (b'{"text": "\xff"}\n' + line("after"), {"invalid_utf8": 1, "kept": 1}),
        "duplicate_key.jsonl": (b'{"text": "a", "text": "b"}\n', {"kept": 1}),
        "long_line.jsonl": (line("y" * 50_000_000) + line("after"), {"too_long": 1, "kept": 1}),
        "truncated.jsonl": (good[:-4], {"kept": 2, "invalid_json": 1}),
        "packed.jsonl.gz": (packed, {"kept": 3}),
        "two_members.jsonl.gz": (packed + packed, {"kept": 6}),
        "truncated.jsonl.gz": (packed[:-6], {"kept": 3, "damaged_file": 1}),
        "two_frames.jsonl.zst": (squeezed + squeezed, {"kept": 6}),
        "truncated.jsonl.zst": (squeezed[:-3], {"damaged_file": 1}),
        "values.parquet": (
            parquet(scratch / "p", pyarrow.array(["a", None, "", "b"])),
            {"kept": 2, "null": 1, "empty": 1},
        ),
        "numbers.parquet": (parquet(scratch / "p", pyarrow.array([1, 2])), {"wrong_type": 2}),
        "words.parquet": (
            parquet(scratch / "p", pyarrow.array(["a", "b", "a", None]).dictionary_encode()),
            {"kept": 3, "null": 1},
        ),
        "bytes.parquet": (parquet(scratch / "p", bad_text), {"kept": 1, "invalid_utf8": 1}),
        "truncated.parquet": (rows[:-100], {"damaged_file": 1}),
        "html.parquet": (b"<html>404 Not Found</html>", {"damaged_file": 1}),
    }


def test_hostile_files_are_read_to_the_end_and_counted(tmp_path, data_folder):
    """No crash, one count per row, every place that is left out listed; kept + skipped + duplicates = read."""
    files = hostile_files(tmp_path)
    assert len(files) >= 40
    for name, (content, _) in files.items():
        (data_folder / name).write_bytes(content)
    found = {name: Counter() for name in files}
    for place, _, problem in read(dirty=EVERYTHING):
        found[place.split(":")[0]][problem or "kept"] += 1
    assert found == {name: Counter(expected) for name, (_, expected) in files.items()}

    (data_folder / "more.jsonl").write_bytes(b"".join(map(line, texts(60))))  # so that every split has some
    corpus = corpus_of(
        sources={"files": {"adapter": "files", "files": ["*"], "dirty": EVERYTHING}}, max_document_bytes=MAX_BYTES
    )
    counts = DataStudy(study_of(corpus=corpus), tmp_path / "made").corpus().manifest.metrics["counts"]
    problems = sum((Counter(expected) for _, expected in files.values()), Counter())
    kept = problems.pop("kept")
    assert counts["skipped"] == dict(problems)
    assert counts["read"] == counts["kept"] + counts["duplicates"] + sum(problems.values())
    assert counts["kept"] + counts["duplicates"] == kept + 60
    with (tmp_path / "made/sources/parts/files/0/skipped.csv").open() as file:
        listed = list(csv.DictReader(file))
    assert Counter(row["problem"] for row in listed) == problems
    assert {"place": "long_line.jsonl:1", "problem": "too_long", "cause": ""} in listed


@pytest.mark.parametrize(
    ("name", "content", "place", "what", "key"),
    [
        ("a.jsonl", line("ok") + b"{\n", "a.jsonl:2", "not JSON", "invalid_json"),
        ("a.txt", b"\xff", "a.txt", "not UTF-8", "invalid_utf8"),
        ("a.jsonl", line(None), "a.jsonl:1", "the text is null", "null"),
        ("a.jsonl", b'{"txt": "a"}', "a.jsonl:1", "the field is missing (text)", "missing_field"),
        ("a.jsonl.gz", gzip.compress(line("ok"), mtime=0)[:-5], "a.jsonl.gz", "truncated or damaged", "damaged_file"),
        ("a.jsonl", b"\n", "a.jsonl:1", "the text is empty", "empty"),
    ],
)
def test_dirty_document_fails_by_default_with_place_and_remedy(tmp_path, data_folder, name, content, place, what, key):
    (data_folder / name).write_bytes(content)
    with pytest.raises(OpenSpectraError) as caught:
        DataStudy(
            study_of(corpus=corpus_of(sources={"s": {"adapter": "files", "files": ["*"]}})), tmp_path / "m"
        ).read()
    message = str(caught.value)
    assert message.startswith(f"{place}: ") and what in message and f"corpus.sources.s.dirty.{key}: skip" in message
    assert "\n" not in message
    assert not list((tmp_path / "m").rglob("*.arrow"))


def test_damage_inside_a_parquet_file_is_found(data_folder, tmp_path):
    column = pyarrow.array([f"row {n} " * 50 for n in range(500)])
    content = bytearray(parquet(tmp_path / "p", column, compression="zstd", write_page_checksum=False))
    content[2000:2100] = bytes(100)
    (data_folder / "a.parquet").write_bytes(content)
    assert read()[-1][2] == "damaged_file"


def test_texts_are_what_the_files_hold(data_folder):
    (data_folder / "a.jsonl").write_bytes("\n".join(['{"text": "ä\\r\\nb"}', '{"text": " x "}']).encode())
    (data_folder / "b.txt").write_bytes(b"one\r\ntwo\r\n")
    (data_folder / "c").mkdir()
    (data_folder / "c/d.parquet").write_bytes(parquet(data_folder / "p", pyarrow.array(["é\r\n"])))
    assert [(place, text) for place, text, _ in read()] == [
        ("a.jsonl:1", "ä\r\nb"),
        ("a.jsonl:2", " x "),
        ("b.txt", "one\ntwo\n"),
        ("c/d.parquet:1", "é\r\n"),
    ]


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf" + b"x" * 98, b"line\r\n" * 17, b"y" * 101])
@pytest.mark.parametrize("separator", [None, "<|end|>"])
def test_text_just_above_the_limit_is_never_cut_to_fit(data_folder, content, separator):
    (data_folder / "a.txt").write_bytes(content)
    for limit, problem in ((100, "too_long"), (len(content), None)):
        config = config_of(files=["a.txt"], separator=separator).model_copy(update={"max_document_bytes": limit})
        (row,) = rows(config)
        text, found = clean(row, config)
        fits = separator and not content.startswith(b"y")  # a piece counts without mark and carriage returns
        assert found == (None if fits else problem)
        assert found or text == content.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").decode()


def test_hidden_files_are_no_text_and_line_ends_of_a_separator_are_those_of_the_text(data_folder):
    (data_folder / ".DS_Store").write_bytes(b"\0\0")
    (data_folder / "a.txt").write_bytes(b"a\r\n\r\nb")
    assert [text for _, text, _ in read(files=["*"], separator="\r\n\r\n")] == ["a", "b"]


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 7, 2**20])
def test_text_file_is_divided_at_its_separator(data_folder, monkeypatch, chunk_bytes):
    monkeypatch.setattr(formats, "CHUNK_BYTES", chunk_bytes)
    (data_folder / "a.txt").write_bytes(
        b"\xef\xbb\xbfone\r\n<|end|>\r\r\ntwo<|end|><|end|>caf\xe9<|end|>" + b"x" * 50 + b"<|end|>last\r"
    )
    config = config_of(files=["a.txt"], separator="<|end|>").model_copy(update={"max_document_bytes": 40})
    assert [(row.place, *clean(row, config)) for row in rows(config)] == [
        ("a.txt:1", "one\n", None),
        ("a.txt:2", "\r\ntwo", None),
        ("a.txt:3", "", "empty"),
        ("a.txt:4", "", "invalid_utf8"),
        ("a.txt:5", "", "too_long"),
        ("a.txt:6", "last\r", None),
    ]


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.text("ab\r\n", max_size=6), min_size=1), st.integers(1, 5))
def test_divided_text_is_the_text(data_folder, monkeypatch, texts, chunk_bytes):
    content = "\n\n".join(texts)
    (data_folder / "a.txt").write_bytes(content.encode())
    monkeypatch.setattr(formats, "CHUNK_BYTES", chunk_bytes)
    found = [row.content.decode() for row in rows(config_of(files=["a.txt"], separator="\n\n"))]
    expected = content.replace("\r\n", "\n").split("\n\n")
    assert found == expected[: len(expected) - (not expected[-1].strip())]


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text(st.characters(exclude_categories=[])))
def test_any_text_is_kept_as_it_is_or_named_as_a_problem(text):
    found, problem = clean(Row("a:1", text), config_of())
    if problem is None:
        assert found == text and text.strip() and not any(0xD800 <= ord(c) < 0xE000 for c in text)
    else:
        assert problem == ("lone_surrogate" if any(0xD800 <= ord(c) < 0xE000 for c in text) else "empty")


def test_jobs_share_the_files_and_read_each_once(data_folder):
    for number in range(7):
        (data_folder / f"{number}.txt").write_text(f"text {number}")
    config = config_of(num_jobs=3)
    jobs = [[row.place for row in rows(config.model_copy(update={"job": job}))] for job in range(3)]
    assert [len(job) for job in jobs] == [3, 2, 2]
    assert sorted(sum(jobs, [])) == [f"{number}.txt" for number in range(7)]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["b.jsonl"], "corpus.sources.files.files: no file matches 'b.jsonl'"),
        (["a.pdf"], "a.pdf: unknown ending; give .txt, .jsonl, .json, .csv"),
        ({"train": ["a.txt"], "test": ["*.txt"]}, "a.txt is in two splits; keep one of them"),
        ({"train": ["a.txt"], "test": ["link.txt"]}, "link.txt is in two splits; keep one of them"),
        (["**.jsonl"], "no file matches '**.jsonl'"),
        (["."], "no file matches '.'"),
        (["?.md"], "the name is not UTF-8; rename it"),
    ],
)
def test_wrong_files_are_refused(data_folder, files, message):
    (data_folder / "a.pdf").write_text("x")
    (data_folder / "a.txt").write_text("x")
    (data_folder / "link.txt").symlink_to("a.txt")
    (data_folder / "\udcff.md").write_text("x")
    with pytest.raises(ConfigError) as caught:
        read(files=files)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("**/*.txt", ["a/x.txt", "chunk/deep/x.txt", "top.txt"]),
        ("**", ["a/n.md", "a/x.txt", "chunk/deep/x.txt", "top.txt"]),
        ("a/**", ["a/n.md", "a/x.txt", "chunk/deep/x.txt", "top.txt"]),  # by a/circle
        ("*/*.txt", ["a/x.txt"]),
        ("*/*/*.txt", ["a/circle/top.txt", "chunk/deep/x.txt", "z/deep/x.txt"]),
        ("z/*/*.txt", ["z/deep/x.txt"]),
        ("**/z/**/x.txt", ["z/deep/x.txt"]),
        ("chunk/**/deep/*.txt", ["chunk/deep/x.txt"]),
        ("[ac]/x.txt", ["a/x.txt"]),
        ("./a/x.txt", ["a/x.txt"]),
        ("a/x.txt/", ["a/x.txt"]),
        ("a/x.txt/*", []),
        ("nowhere/*", []),
        (".cache/x.txt", [".cache/x.txt"]),
        ("top.txt", ["top.txt"]),
        ("odd[1].txt", ["odd[1].txt"]),
    ],
)
def test_patterns_enter_linked_folders_and_nothing_hidden(data_folder, tmp_path, pattern, found):
    for folder in ("data/a", "data/.cache", "disk/deep"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "x.txt").write_text(folder)
    (data_folder / "a/n.md").write_text("x")
    (data_folder / "top.txt").write_text("x")
    for link, target in (
        ("chunk", tmp_path / "disk"),
        ("z", "chunk"),
        ("a/circle", data_folder),
        ("a/y.txt", "x.txt"),
    ):
        (data_folder / link).symlink_to(target)
    if "odd" in pattern:
        (data_folder / "odd[1].txt").write_text("x")
    names = [path.relative_to(data_folder).as_posix() for path in matching_files(pattern)]
    real = {(data_folder / name).resolve() for name in found}
    assert {(data_folder / name).resolve() for name in names} == real and len(names) == len(real)
    assert names == sorted(names)
    if pattern.startswith("**"):
        assert names == found  # top.txt, and not a/circle/top.txt, the same file


def test_what_may_hold_text_and_cannot_be_read_is_refused(data_folder):
    (data_folder / "a").mkdir()
    (data_folder / "a/x.txt").write_text("x")
    (data_folder / "gone").symlink_to("nowhere")
    for pattern in ("*/*.txt", "**/*.txt", "gone/*.txt", "g*"):
        with pytest.raises(OpenSpectraError, match=r"gone: a link to nothing; mend or remove it"):
            read(files=[pattern])
    (data_folder / "gone").unlink()
    (data_folder / "b.txt").write_text("b")
    with as_nobody(data_folder):
        for pattern in ("*/*.txt", "**/*.txt", "a/x.txt"):
            with pytest.raises(OpenSpectraError, match=r"data/a.*: cannot be read \(Permission denied\)"):
                read(files=[pattern])
        assert [place for place, *_ in read(files=["b*.txt"])] == ["b.txt"]  # beside it, as lost+found on a disk


@contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """Take the rights to the folders in `folder`, also where root runs the tests."""
    for path in folder.iterdir():
        if path.is_dir():
            path.chmod(0)
    was, entered = os.geteuid(), []
    if was == 0:
        entered = [parent for parent in (folder, *folder.parents) if not parent.stat().st_mode & 1]
        for parent in entered:
            parent.chmod(parent.stat().st_mode | 0o055)
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(was)
        for parent in entered:
            parent.chmod(parent.stat().st_mode & ~0o055)
        for path in folder.iterdir():
            if path.is_dir():
                path.chmod(0o700)


def test_file_that_changes_while_it_is_read_is_refused(data_folder):
    (data_folder / "a.txt").write_text("before")
    (file,) = list_files("files", config_of(files=["a.txt"]).source)
    assert record_input(file)["bytes"] == 6
    (data_folder / "a.txt").write_text("after!")
    with pytest.raises(OpenSpectraError, match=r"a\.txt: changed while it was read; run the same command again"):
        record_input(file)
    (data_folder / "a.txt").unlink()
    with pytest.raises(OpenSpectraError, match=r"a\.txt: changed while it was read"):
        record_input(file)


def test_where_needs_fields_and_takes_numbers(data_folder):
    (data_folder / "a.jsonl").write_text('{"text": "one", "label": 1}\n{"text": "two", "label": "1"}\n')
    assert [text for _, text, _ in read(files=["a.jsonl"], where={"label": 1})] == ["one"]
    (data_folder / "a.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"a\.txt: `where` chooses rows by their fields, and text has none"):
        read(files=["*"], where={"label": 1})


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_where_takes_the_rows_of_one_subset(data_folder, ending):
    rows = [{"text": f"text {n}", "meta": {"set": "abc"[n % 3]}} for n in range(9)]
    if ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), data_folder / "a.parquet")
    else:
        (data_folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [text for _, text, _ in read(where={"meta.set": "b"})] == ["text 1", "text 4", "text 7"]
    assert read(where={"meta.set": "b"})[1][0] == f"a.{ending}:5"


def test_parquet_without_the_column_names_those_it_has(data_folder):
    (data_folder / "a.parquet").write_bytes(parquet(data_folder / "p", pyarrow.array(["x"]), name="content"))
    with pytest.raises(ConfigError, match=r"a\.parquet: no column 'text'; it has \['content'\]\. Set `text_field`"):
        read()


def test_parquet_with_two_such_columns_is_refused(data_folder):
    table = pyarrow.table([pyarrow.array(["x"]), pyarrow.array(["y"])], names=["text", "text"])
    pyarrow.parquet.write_table(table, data_folder / "a.parquet")
    with pytest.raises(ConfigError, match=r"a\.parquet: 2 columns 'text'"):
        read()


def test_stdlib_has_no_tests_and_no_build_paths():
    places = {row.place for row in rows(stdlib())}
    assert "argparse.py" in places
    assert not [p for p in places if "/test/" in f"/{p}" or "/tests/" in f"/{p}" or "_sysconfigdata" in p]


def stdlib() -> ReadConfig:
    limits = {"min_characters": 1, "max_document_bytes": MAX_BYTES, "num_parts": 1}
    return ReadConfig.model_validate({"name": "stdlib", "source": {"adapter": "python_stdlib"}} | limits)
