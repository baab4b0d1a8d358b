"""Generation tasks: items checked against their documents, ROUGE against values worked out by hand, and a real run."""

import ast
import json
from random import Random
from statistics import stdev

import pytest
import yaml
from test_build_tasks import content_of, documents_of, items_of, make_corpus, module_text

from openspectra.artifacts import open_artifact, write_artifact
from openspectra.errors import ConfigError
from openspectra.evaluation.build_tasks import build_tasks
from openspectra.evaluation.config import BUILT_TASKS, EvaluateConfig, TasksConfig
from openspectra.evaluation.generation import docstrings, last_sentences
from openspectra.evaluation.rouge import best_constant_line, rouge
from openspectra.work import evaluated

FOLDER = "results/some/tasks"
CONFIG = TasksConfig(seed=3, num_documents=5, document_characters=300, num_items=12, tasks=["docstring"])

ODD = r'''
import os

class Shelf:
    """A class is no function, and its line is not asked for."""

    @property
    def width(self):
        # of the board
        """Return the width in full centimetres.

        Rounded down.
        """
        return int(self._width)

    async def fetch(
        self, place, *,
        count=1,
    ) -> list:
        'Bring some books from a place.'
        def near(book):
            """Tell whether the book is near."""
            return book.place == place
        return [book for book in self.books if near(book)][:count]

def only_words():
    """Nothing but this line of words."""

def no_words():
    return 1

def late():
    """
    Begin below the opening quotes of it."""
    return 2

def on_one_line(): "Everything on one single line here."; return 3

def shares_a_line():
    "Followed by code on its line."; x = 1
    return x

def escaped():
    """Split the text at \\t and join it."""
    return 4

def raw():
    r"""Split the text at \t and join it."""
    return 5

def quoted():
    """Return the sum of all."""
    return "Return the sum of all."

def short():
    """Too short."""
    return 6

def wide():
    """Hold a text that no dedent may change."""
    return """first
        second"""

def inner_text():
    if os:
        def deep():
            """Hold a text that dedent would change."""
            return """
            second"""

def long():
    """Return more than fits into a prompt."""
    return [%s]

def accents():
    """Größe des größten Ölfässchens überprüfen."""
    return "é"
''' % ("1, " * 200)


def python(text: str) -> dict[str, str]:
    """Return the prompts of a module's functions by their target."""
    (document,) = documents_of([text])
    return {item["target"]: item["context"] for item in docstrings(document, Random(0))}


def test_docstring_prompt_is_the_function_without_it_and_its_head_with_one_opened():
    prompts = python(ODD)
    assert prompts["Return the width in full centimetres."] == (
        "def width(self):\n    # of the board\n    return int(self._width)\n\n"
        'def width(self):\n    # of the board\n    """'
    )
    assert prompts["Bring some books from a place."] == (
        "async def fetch(\n    self, place, *,\n    count=1,\n) -> list:\n    def near(book):\n"
        '        """Tell whether the book is near."""\n        return book.place == place\n'
        "    return [book for book in self.books if near(book)][:count]\n\n"
        'async def fetch(\n    self, place, *,\n    count=1,\n) -> list:\n    """'
    )


def test_docstring_leaves_out_what_no_model_could_be_asked_for():
    assert set(python(ODD)) == {
        "Return the width in full centimetres.",
        "Bring some books from a place.",
        "Tell whether the book is near.",
        r"Split the text at \t and join it.",  # the raw one
        "Hold a text that no dedent may change.",
        "Größe des größten Ölfässchens überprüfen.",
    }
    assert python(ODD)[r"Split the text at \t and join it."].startswith("def raw")


@pytest.mark.parametrize(
    "text",
    [
        "def broken(:\n    '''A line of some words.'''\n    return 1\n",
        "Prose is no Python at all. Nothing to see here.",
        "def null():\n    '''A line of some words.'''\n    return '\0'\n",
        "def unclosed():\n    '''A line of some words.\n    return 1\n",
        "def nothing():\n    return '''A line of some words.'''\n",
        "",
    ],
)
def test_docstring_finds_nothing_in_what_is_no_python_or_has_none(text):
    assert python(text) == {}


def test_docstring_reads_files_with_other_line_ends_and_tabs():
    assert python("def f(x):\r\n\t'''Return twice the number.'''\r\n\treturn 2 * x\r\n") == {
        "Return twice the number.": 'def f(x):\r\n\treturn 2 * x\n\ndef f(x):\r\n    """'
    }
    assert (
        python("def f(x):\r\t'''Return twice the number.'''\r\treturn 2 * x\r") == {}
    )  # one line to us, three to Python


PROSE = """The heading stands alone

It rained for three days on end. Nobody in the valley had seen
such a river before. "When will it stop?" she asked. He did not know!

A paragraph of one sentence only, which is long enough to be a context by itself.

Short. It has too little before it.

It rained for three days on end, and the river rose to the bridge. He said so. A list of what he said then is

The clerk wrote it down in the large book of the town, as ever. And then?

A paragraph whose last sentence says twice the same thing. Twice the same thing. Twice the same thing.
"""


def test_last_sentence_is_what_ends_a_paragraph():
    (document,) = documents_of([PROSE])
    assert list(last_sentences(document, Random(0))) == [
        {
            "context": "It rained for three days on end. Nobody in the valley had seen\nsuch a river before. "
            '"When will it stop?" she asked.',
            "target": " He did not know!",
        }
    ]


def test_rouge_equals_values_worked_out_by_hand():
    # of 6 and 5 words 4 in common, of 5 and 4 pairs 2 (`on the`, `the mat`); longest common subsequence `the on the mat`
    found = rouge("The cat sat on the mat", "the dog on the mat")
    assert found["rouge1"] == pytest.approx(2 * 4 / (6 + 5))
    assert found["rouge2"] == pytest.approx(2 * 2 / (5 + 4))
    assert found["rougeL"] == pytest.approx(2 * 4 / (6 + 5))
    # order counts for pairs and for L
    assert rouge("alpha beta", "beta alpha") == {"rouge1": 1.0, "rouge2": 0.0, "rougeL": 0.5}
    # a word that stands once is found once; case and punctuation do not count, endings do
    assert rouge("return value", "Return, return: values")["rouge1"] == pytest.approx(2 * 1 / (2 + 3))
    assert rouge("some words", "") == {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0}
    assert rouge("the same words", "The same words.") == {"rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0}


def test_best_constant_line_is_the_one_no_other_beats():
    lines = ["Close the file.", "Return the file.", "Return a number."]
    # mean ROUGE-1 of each over all three: (1 + 2/3 + 0)/3, (2/3 + 1 + 1/3)/3, (0 + 1/3 + 1)/3
    assert best_constant_line(lines) == "Return the file."
    assert best_constant_line(["b c", "a c"]) == "b c"  # equals: the first


def worded_module(number: int) -> str:
    """Return an invented module, whose functions have a docstring each."""
    parts = []
    for index in range(4):
        doc = f'    """{"Return" if index % 2 else "Mix"} the paint of colour{number} in pot {index}."""\n'
        parts.append(f"def mix_{number}_{index}(paint):\n{doc}    return paint * {number} + {index}\n\n")
    return "\n".join(parts)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [
        *(worded_module(number) for number in range(6)),
        module_text(1),
        "def broken(:",
        "Some prose. And more of it.",
    ]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, texts):
    return make_corpus(tmp_path_factory.mktemp("corpus"), texts)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory, corpus):
    folder = tmp_path_factory.mktemp("tasks")
    with write_artifact(folder, "tasks", CONFIG, {}) as draft:
        draft.metrics |= build_tasks(CONFIG, corpus, draft.folder, FOLDER)
    return open_artifact(folder)


def test_study_that_does_not_name_them_builds_no_generation_task():
    default = TasksConfig(seed=1, num_documents=1, document_characters=1, num_items=1)
    assert default.tasks == ["held_out_text", "cloze", "continuation", "minimal_pairs"] == list(BUILT_TASKS[:4])


def test_items_state_what_the_best_constant_line_scores(tasks):
    items = items_of(tasks.folder, "docstring")
    line = best_constant_line([item["target"] for item in items])
    assert len(items) == CONFIG.num_items
    for item in items:
        assert item["chance"] == rouge(item["target"], line)
        assert item["context"].endswith(':\n    """') and item["target"] not in item["context"]
        ast.parse(item["context"] + item["target"] + '"""')
    facts = json.loads(tasks.file("tasks.json").read_text())["docstring"]
    assert facts["main_metric"] == "rouge1" and facts["constant_line"] == line
    assert facts["chance"] == pytest.approx(sum(item["chance"]["rouge1"] for item in items) / len(items))


def test_building_twice_gives_equal_bytes_and_another_seed_other_items(tasks, corpus, tmp_path):
    build_tasks(CONFIG, corpus, tmp_path, FOLDER)
    for name, content in content_of(tmp_path).items():
        assert content == (tasks.folder / name).read_bytes(), name
    other = tmp_path / "other"
    other.mkdir()
    build_tasks(CONFIG.model_copy(update={"seed": 4}), corpus, other, FOLDER)
    assert items_of(other, "docstring") != items_of(tmp_path, "docstring")


def test_generation_is_greedy_bounded_and_stopped_at_the_end_of_the_line(tasks):
    text = (tasks.folder / "docstring.yaml").read_text()
    assert "process_results: !function 'openspectra.evaluation.rouge.scores'" in text
    config = yaml.safe_load(text.replace("!function ", ""))
    assert config["generation_kwargs"] == {"until": ["\n", '"""'], "do_sample": False, "max_gen_toks": 64}
    assert all(entry["higher_is_better"] for entry in config["metric_list"])


def test_plan_counts_each_prompt_once_and_each_written_token():
    suite = EvaluateConfig(tasks=["docstring"], batch_size=4, dtype="float32")
    tokens, requests = evaluated(suite, CONFIG, bytes_per_token=2.5)
    assert requests == 12 * 64
    assert tokens == pytest.approx(12 * (400 / 2.5 + 64))


def test_text_without_such_items_names_what_is_wanting(tmp_path, corpus):
    prose = make_corpus(tmp_path / "corpus", ["Rain fell on the hills all day. And more rain fell on them. " * 2])
    with pytest.raises(ConfigError, match=r"`docstring` finds 0 items \(only Python source with docstrings"):
        build_tasks(CONFIG, prose, tmp_path, FOLDER)
    with pytest.raises(ConfigError, match=r"`last_sentence` finds 0 items \(only paragraphs of sentences"):
        build_tasks(CONFIG.model_copy(update={"tasks": ["last_sentence"]}), corpus, tmp_path, FOLDER)


def test_lm_eval_scores_what_the_model_writes_alone_or_in_a_batch(tasks, texts, tmp_path):
    """A random model, generated from without lm-eval too: token by token, each prompt alone, until the line ends."""
    from test_harness import make_model, rows_of

    from openspectra.evaluation.harness import evaluate

    model = make_model(tmp_path / "model", texts)
    rows = {}
    for batch_size in (1, 5):
        out = tmp_path / str(batch_size)
        out.mkdir()
        evaluate(EvaluateConfig(tasks=["docstring"], batch_size=batch_size, dtype="float32"), model, out, tasks)
        rows[batch_size] = rows_of(out / "items.parquet")
    assert rows[1] == rows[5]
    items = items_of(tasks.folder, "docstring")
    expected = [rouge(item["target"], written(model, item["context"])) for item in items]
    assert sum(each["rouge1"] for each in expected) > 0  # or this test could not tell right from wrong
    for row, item, scores in zip(rows[1], items, expected, strict=True):
        assert row["item_id"] == item["item_id"]
        assert {metric: float(row[metric]) for metric in scores} == pytest.approx(scores)
    for row in rows_of(tmp_path / "1" / "scores.csv"):
        metric = row["metric"]
        assert float(row["value"]) == pytest.approx(sum(each[metric] for each in expected) / len(items))
        assert float(row["chance"]) == pytest.approx(sum(item["chance"][metric] for item in items) / len(items))
        error = stdev(each[metric] for each in expected) / len(items) ** 0.5
        assert float(row["stderr"]) == pytest.approx(error) and row["num_samples"] == str(len(items))


def written(model, prompt: str) -> str:
    """Return what the model writes, by the likeliest token at each place, read anew for every token."""
    import torch
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM

    tokenizer = Tokenizer.from_file(str(model.file("tokenizer.json")))
    llama = LlamaForCausalLM.from_pretrained(model.folder, dtype=torch.float32)
    room = llama.config.max_position_embeddings - 64
    ids = tokenizer.encode(prompt).ids[-room:]
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + 64:
            ids.append(int(llama(torch.tensor([ids])).logits[0, -1].argmax()))
            text = tokenizer.decode(ids[start:])
            if ids[-1] == 0 or "\n" in text or '"""' in text:
                break
    return tokenizer.decode(ids[start:]).split("\n")[0].split('"""')[0]
