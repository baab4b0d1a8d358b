"""The hub data sets that lm-eval's tasks of the shipped studies read: their layout and columns, rows of our own."""

import json
import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import yaml

COMMIT = "a" * 40
WORDS = [
    "the",
    "a",
    "red",
    "old",
    "small",
    "house",
    "river",
    "engine",
    "letter",
    "garden",
    "carries",
    "holds",
    "under",
    "near",
    "of",
    "and",
    "with",
    "before",
]
Row = dict[str, Any]


def write_benchmarks(hub: Path, subjects: list[str], num_rows: int = 3) -> None:
    """Write every data set below `hub` for `hub_server.hub`, `num_rows` rows a split; `subjects` are those of MMLU."""
    held = {"train", "validation"}
    data_sets = {
        ("allenai/ai2_arc", "ARC-Easy"): (arc_row, held | {"test"}),
        ("allenai/ai2_arc", "ARC-Challenge"): (arc_row, held | {"test"}),
        ("Rowan/hellaswag", "default"): (hellaswag_row, held),
        ("aps/super_glue", "boolq"): (boolq_row, held),
        ("baber/piqa", "default"): (piqa_row, held),
        ("allenai/winogrande", "winogrande_xl"): (winogrande_row, held),
        ("EleutherAI/lambada_openai", "default"): (lambada_row, {"test"}),
        ("allenai/sciq", "default"): (sciq_row, held | {"test"}),
        ("mandarjoshi/trivia_qa", "rc.nocontext"): (triviaqa_row, held),
        ("jannalu/crows_pairs_multilingual", "english"): (crows_pairs_row, {"test"}),
        ("truthfulqa/truthful_qa", "multiple_choice"): (truthfulqa_row, {"validation"}),
        ("hails/bigbench", "bbq_lite_json_zero_shot"): (bigbench_row, {"default", *held}),
        ("oskarvanderwal/bbq", "All"): (bbq_row, {"test"}),
        ("skg/toxigen-data", "annotated"): (toxigen_row, {"train", "test"}),
    }
    data_sets[("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1")] = (page_row, held | {"test"})
    paloma = ("ptb", "c4_en", "dolma-v1_5", "m2d2_s2orc_unsplit", "m2d2_wikipedia_unsplit", "falcon-refinedweb")
    data_sets |= {("allenai/paloma", name): (text_row, {"val", "test"}) for name in paloma}
    data_sets |= {("cais/mmlu", subject): (mmlu_row, {"dev", "validation", "test"}) for subject in subjects}
    configs: dict[str, list[Row]] = {}
    for (repository, name), (make_row, splits) in data_sets.items():
        files = []
        for split in sorted(splits):
            rng = random.Random(f"{repository}/{name}/{split}")
            path = f"{name}/{split}-00000-of-00001.parquet"
            target = hub / repository / COMMIT / path
            target.parent.mkdir(parents=True, exist_ok=True)
            table = pyarrow.Table.from_pylist([make_row(rng, number) for number in range(num_rows)])
            pyarrow.parquet.write_table(table, target)
            files.append({"split": split, "path": path})
        configs.setdefault(repository, []).append({"config_name": name, "data_files": files})
    rng = random.Random("corpora")
    rows = [text_row(rng, number) for number in range(num_rows)]
    cosmopedia = hub / "HuggingFaceTB/cosmopedia" / COMMIT / "data/stanford/train-00000-of-00013.parquet"
    cosmopedia.parent.mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), cosmopedia)
    slimpajama = hub / "cerebras/SlimPajama-627B" / COMMIT / "validation/chunk1/example_holdout_0.jsonl.zst"
    slimpajama.parent.mkdir(parents=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    with pyarrow.CompressedOutputStream(str(slimpajama), "zstd") as file:
        file.write(lines.encode())
    for repository, listed in configs.items():
        card = yaml.safe_dump({"configs": listed})
        (hub / repository / COMMIT / "README.md").write_text(f"---\n{card}---\n", encoding="utf-8")


def mmlu_subjects() -> list[str]:
    """Return the subjects that lm-eval's `mmlu_continuation` is made of, by the files of that group."""
    (folder,) = find_spec("lm_eval.tasks.mmlu").submodule_search_locations
    names = sorted(path.stem for path in Path(folder, "continuation").glob("mmlu_*.yaml"))
    return [name.removeprefix("mmlu_") for name in names]


def phrase(rng: random.Random, num_words: int = 6) -> str:
    return " ".join(rng.choices(WORDS, k=num_words))


def options(rng: random.Random, count: int = 4) -> list[str]:
    return [f"{phrase(rng, 3)} {number}" for number in range(count)]


def arc_row(rng: random.Random, number: int) -> Row:
    choices = {"text": options(rng), "label": ["A", "B", "C", "D"]}
    return {"id": f"m{number}", "question": phrase(rng), "choices": choices, "answerKey": rng.choice("ABCD")}


def hellaswag_row(rng: random.Random, number: int) -> Row:
    start, end = phrase(rng), phrase(rng, 2)
    row = {"ind": number, "activity_label": "Gardening", "ctx_a": start, "ctx_b": end, "ctx": f"{start} {end}"}
    return row | {
        "endings": options(rng),
        "source_id": f"s~{number}",
        "split": "val",
        "split_type": "indomain",
        "label": rng.choice("0123"),
    }


def boolq_row(rng: random.Random, number: int) -> Row:
    return {"question": phrase(rng), "passage": phrase(rng, 30), "idx": number, "label": rng.randrange(2)}


def piqa_row(rng: random.Random, number: int) -> Row:
    return {"goal": phrase(rng), "sol1": phrase(rng), "sol2": phrase(rng), "label": rng.randrange(2)}


def winogrande_row(rng: random.Random, number: int) -> Row:
    sentence = f"{phrase(rng)} because _ {phrase(rng)}."
    return {"sentence": sentence, "option1": "Ada", "option2": "Max", "answer": rng.choice("12")}


def text_row(rng: random.Random, number: int) -> Row:
    return {"text": phrase(rng, 60)}


def page_row(rng: random.Random, number: int) -> Row:
    return {"page": phrase(rng, 60)}


def lambada_row(rng: random.Random, number: int) -> Row:
    return {"text": phrase(rng, 30)}


def sciq_row(rng: random.Random, number: int) -> Row:
    first, second, third, right = options(rng)
    row = {"question": phrase(rng), "distractor3": third, "distractor1": first, "distractor2": second}
    return row | {"correct_answer": right, "support": phrase(rng, 20) if number else ""}


def triviaqa_row(rng: random.Random, number: int) -> Row:
    answer = {"aliases": ["Onion", phrase(rng, 2)], "normalized_aliases": ["onion"], "matched_wiki_entity_name": ""}
    answer |= {"normalized_matched_wiki_entity_name": "", "normalized_value": "onion", "type": "W", "value": "Onion"}
    pages = {"doc_source": ["w"], "filename": ["f"], "title": ["t"], "wiki_context": [""]}
    row = {"question": phrase(rng), "question_id": f"q{number}", "question_source": "http://example.org/"}
    return row | {"entity_pages": pages, "answer": answer}


def mmlu_row(rng: random.Random, number: int) -> Row:
    return {"question": phrase(rng), "subject": "any", "choices": options(rng), "answer": rng.randrange(4)}


def crows_pairs_row(rng: random.Random, number: int) -> Row:
    row = {"id": number, "sent_more": phrase(rng), "sent_less": phrase(rng)}
    return row | {"stereo_antistereo": "stereo", "bias_type": "age"}


def truthfulqa_row(rng: random.Random, number: int) -> Row:
    choices = options(rng, 2 + number)
    targets = {"choices": choices, "labels": [1] + [0] * (len(choices) - 1)}
    return {"question": phrase(rng), "mc1_targets": targets, "mc2_targets": targets}


def bigbench_row(rng: random.Random, number: int) -> Row:
    choices = options(rng, 3)
    row = {"idx": number, "inputs": phrase(rng, 20), "targets": [choices[1]], "multiple_choice_targets": choices}
    return row | {"multiple_choice_scores": [0, 1, 0]}


def bbq_row(rng: random.Random, number: int) -> Row:
    groups = {"ans0": ["man", "old"], "ans1": ["boy", "nonOld"], "ans2": ["Not known", "unknown"]}
    about = {"subcategory": "None", "stereotyped_groups": ["old"], "version": "a", "source": phrase(rng)}
    condition, label = (("ambig", 2), ("disambig", number % 2))[number % 2]
    row = {"example_id": number, "question_index": "1", "question_polarity": "neg", "category": "Age", "label": label}
    row |= {"context_condition": condition, "answer_info": groups, "additional_metadata": about}
    row |= {"context": phrase(rng, 20), "question": f"Who {phrase(rng, 3)}?"}
    return row | {"ans0": "The man", "ans1": "The boy", "ans2": "Not known"}


def toxigen_row(rng: random.Random, number: int) -> Row:
    return {"text": phrase(rng, 12), "toxicity_ai": float(1 + number % 5), "toxicity_human": float(1 + number % 5)}


def logiqa_row(rng: random.Random, number: int) -> Row:
    return {"label": rng.choice("abcd"), "context": phrase(rng, 20), "question": phrase(rng), "options": options(rng)}
