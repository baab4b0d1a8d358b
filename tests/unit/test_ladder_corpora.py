"""The ladder's corpora as read: the rows and tokens that their documentation states, where the files are at hand."""

from collections import Counter
from pathlib import Path

import pytest

from openspectra.data.local_files import data_folder, list_files
from openspectra.data.read import clean
from openspectra.data.sources import rows_of
from openspectra.study import load_study

ROOT = Path(__file__).parents[2]
ROWS_AND_TOKENS = {
    ("books", "train"): (3332, 14_018_297), ("books", "valid"): (150, 556_326), ("books", "test"): (135, 597_194),
    ("textbooks", "train"): (2541, 7_201_332), ("textbooks", "valid"): (38, 119_215), ("textbooks", "test"): (51, 113_230),
    ("techdocs", "train"): (5001, 13_378_765), ("techdocs", "valid"): (268, 505_672), ("techdocs", "test"): (260, 456_587),
    ("latex", "train"): (581, 1_484_103), ("latex", "valid"): (34, 49_492), ("latex", "test"): (31, 46_670),
    ("web_ewt", "train"): (502, 175_923), ("web_ewt", "valid"): (270, 22_798), ("web_ewt", "test"): (266, 22_649),
    ("c4_sample", "train"): (30, 11_811),
    ("tinyshakespeare", "train"): (1, 304_141), ("tinyshakespeare", "valid"): (1, 18_031),
    ("tinyshakespeare", "test"): (1, 18_070),
    ("wikitext2", "valid"): (3760, 258_258), ("wikitext2", "test"): (4358, 295_371),
}  # fmt: skip
"""Rows as read and GPT-NeoX tokens in them, end-of-text not counted, as the corpora's documentation states them."""


@pytest.mark.slow
@pytest.mark.skipif(
    not (data_folder() / "corpora").is_dir(),
    reason="the ladder's corpora are not in the data folder (OPENSPECTRA_DATA)",
)
def test_rows_and_tokens_as_read_are_the_documented_ones(monkeypatch):
    from tokenizers import Tokenizer

    monkeypatch.setenv("OPENSPECTRA_DATA", str(data_folder().resolve()))
    study = load_study(ROOT / "studies" / "ladder.yaml")
    tokenizer = Tokenizer.from_file(str(data_folder() / study.tokenizer.file))
    tokenizer.encode_special_tokens = True
    rows, tokens, problems = Counter(), Counter(), Counter()
    for name in study.corpus.sources:
        config = study.data_configs[f"sources/parts/{name}"]
        for row in rows_of(config, list_files(name, config.source)):
            text, problem = clean(row, config)
            rows[name, row.split] += 1
            problems[problem] += 1
            # a row of white space alone is left out of the corpus, but is tokens as read
            tokens[name, row.split] += len(
                tokenizer.encode_batch_fast([text or row.content.decode()], add_special_tokens=False)[0]
            )
    assert {key: (rows[key], tokens[key]) for key in rows} == ROWS_AND_TOKENS
    assert set(problems) == {None, "empty"}
