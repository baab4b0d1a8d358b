"""Rows and batches of requests against lm-eval's own way, and evaluations that are killed and go on."""

# ruff: noqa: F811  (fixtures of test_harness are parameters here)

import json
import os
import random
import signal
import time
import traceback

import pytest
from test_harness import (  # noqa: F401
    CONFIG,
    MAX_LENGTH,
    TASKS,
    make_model,
    make_tasks,
    one_thread,
    project,
    rows_of,
    tasks,
    texts,
)

from openspectra.artifacts import FINISHED
from openspectra.evaluation.answers import FILE, Answers
from openspectra.evaluation.batches import batches_of
from openspectra.evaluation.batches import rows_of as rows_of_requests
from openspectra.evaluation.suites import Suite, evaluate_suites

KILLS = 20


@pytest.fixture(scope="module")
def model(project, texts):
    return make_model(project / "results/demo/quantlm/tiny-8bit", texts)


@pytest.fixture(scope="module")
def language_model(model):
    from openspectra.evaluation.harness import Evaluation

    return Evaluation(model)._language_model(CONFIG)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in ("run.json", FINISHED)}


def hard_requests() -> list[tuple[None, list[int], list[int]]]:
    """Contexts that are shared, alone, one token, exactly as long as fits, and too long; continuations of 1 to 40 tokens."""
    draw = random.Random(1)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(1, 384) for _ in range(count)]

    found = []
    for length in (1, 2, 9, 60, MAX_LENGTH - 3, MAX_LENGTH, MAX_LENGTH + 30):
        context = tokens(length)
        found += [(None, context, tokens(count)) for count in (1, 4, 40, 1, 7)]
    found += [(None, tokens(30), tokens(3)) for _ in range(3)]
    draw.shuffle(found)
    return found


def test_rows_hold_every_request_once_and_no_row_is_too_long():
    requests = [(context, continuation) for _, context, continuation in hard_requests()]
    rows = rows_of_requests(requests, MAX_LENGTH)
    assert sorted(place for row in rows for place in row.places) == list(range(len(requests)))
    assert len(rows) < len(requests) and max(row.length for row in rows) <= MAX_LENGTH
    for row in rows:
        assert len(row.tokens) == len(row.positions) == len(row.branches) == row.length
        for place, continuation, scored in zip(row.places, row.continuations, row.scored, strict=True):
            context, wanted = requests[place]
            assert continuation == wanted
            read = [row.tokens[each] for each in range(row.length) if row.branches[each] == 0]
            assert read == (context + wanted)[-(MAX_LENGTH + 1) : -len(wanted)]
            assert [row.tokens[each] for each in scored[1:]] == wanted[:-1]
    for size in (1, 4, 16):
        batches = batches_of(rows, size)
        assert sum(map(len, batches)) == len(rows)
        assert all(len(batch) == 1 or sum(len(row.places) for row in batch) <= size for batch in batches)


def test_answers_are_those_of_lm_eval_at_every_batch_size(language_model):
    from lm_eval.models.huggingface import HFLM

    requests = hard_requests()
    language_model.batch_size_per_gpu = 4
    expected = HFLM._loglikelihood_tokens(language_model, requests, disable_tqdm=True)
    for size in (1, 4, 16, 64):
        language_model.batch_size_per_gpu = size
        found = language_model._loglikelihood_tokens(requests)
        assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-4)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_choices_and_log_likelihoods_are_the_same_at_every_batch_size(model, tasks, tmp_path):
    from openspectra.evaluation.harness import Evaluation

    evaluation, found = Evaluation(model, tasks), {}
    for size in (1, 4, 16, 64):
        out = tmp_path / str(size)
        out.mkdir()
        evaluation.run(CONFIG.model_copy(update={"batch_size": size, "tasks": TASKS[1:]}), out)
        found[size] = rows_of(out / "items.parquet")
    for size in (4, 16, 64):
        for one, other in zip(found[1], found[size], strict=True):
            assert {key: one[key] for key in one if key != "log_likelihoods"} == {
                key: other[key] for key in other if key != "log_likelihoods"
            }
            assert one["log_likelihoods"] == pytest.approx(other["log_likelihoods"], abs=1e-4)


def test_answers_of_other_weights_and_lines_cut_off_are_not_taken(tmp_path):
    path = tmp_path / "unit" / FILE
    answers = Answers(path, ["weights", 1])
    answers.put("a", [[-1.5, True]])
    answers.put("b", [[-2.5, False]])
    answers.close()
    content = path.read_bytes()
    path.write_bytes(content[:-5])  # killed while it wrote
    again = Answers(path, ["weights", 1])
    assert again.get("a") == [[-1.5, True]] and again.get("b") is None
    again.put("b", [[-2.5, False]])
    again.close()
    assert path.read_bytes() == content
    assert Answers(path, ["weights", 2]).get("a") is None
    assert Answers().get("a") is None


@pytest.mark.slow
def test_killed_twenty_times_an_evaluation_gives_the_same_bytes(model, tasks, tmp_path):
    """Killed with signal 9 at moments drawn at random while it scores, each time having answered at least one more batch."""
    config = CONFIG.model_copy(update={"batch_size": 1})
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    evaluate_suites([Suite(config, whole)], model, tasks)
    expected = contents(whole)
    assert FILE not in expected
    draw, kept, num_kills = random.Random(1), killed / FILE, 0

    def num_lines() -> int:
        return kept.read_bytes().count(b"\n") if kept.is_file() else 0

    while num_kills < KILLS:
        before = num_lines()
        process = os.fork()
        if process == 0:
            try:
                evaluate_suites([Suite(config, killed)], model, tasks)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        while num_lines() <= max(1, before) and os.waitpid(process, os.WNOHANG) == (0, 0):
            time.sleep(0.0005)
        time.sleep(draw.uniform(0, 0.004))
        os.kill(process, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        assert code == -signal.SIGKILL, f"ended by itself after {num_kills} kills"
        assert num_lines() > max(1, before)  # it goes on, and does not begin again
        num_kills += 1
    keys = [json.loads(line)[0] for line in kept.read_bytes().split(b"\n")[1:-1]]
    assert len(keys) == len(set(keys))  # no item is doubled
    evaluate_suites([Suite(config, killed)], model, tasks)
    assert contents(killed) == expected
