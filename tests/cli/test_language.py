"""Searches around a language model from the command line: what is read, searched, reported, exported, and refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from lacuna import search, setups
from lacuna.reports import records

GOLDEN = Path(__file__).parents[1] / "golden"
FEW = ["--num-candidates", "3", "--sigmas", "1e-2", "3e-2", "--batch-size", "6", "--top-k", "2", "--probes", "0"]
WORDS = [f"w{i}" for i in range(53)]


@pytest.fixture
def questions(tmp_path):
    """A file of questions with two answers each."""
    rows = [{"prompt": f"w{i % 7} w{i} w3", "choices": [" w4", " w5"], "label": i % 2} for i in range(40)]
    return written(tmp_path / "questions.jsonl", rows)


def written(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def told(captured):
    return " ".join(captured.err.split())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gpt2", ["--dtype", "bfloat16"]),
        ("gpt2_untied", ["--basis", "gradient", "--basis-rank", "2"]),
    ],
)
def test_a_winner_is_exported_and_scores_from_its_files_as_the_sweep_recorded(
    lacuna, capsys, tmp_path, tokenizer, questions, name, options
):
    model = str(GOLDEN / name)
    asked = ["--model", model, "--tokenizer", tokenizer, "--task", questions, *options]
    assert lacuna("sweep", *asked, *FEW, "--out", "run") == 0
    report = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert name in report
    assert "On data the search did not see" in report
    assert ("What rounding left" in report) == ("bfloat16" in options)
    assert lacuna("export", "run", "--to", "winner") == 0
    assert "bit for bit the same" in " ".join(capsys.readouterr().out.split())
    top = records.select(records.read(tmp_path / "run" / "records.jsonl"), "top_score")[0]
    task = setups.TaskConfig(questions, batch_size=6)
    config = setups.ModelConfig(str(tmp_path / "winner"), tokenizer)
    setup = setups.prepare_language(config, task)
    loss = float(search.score(setup.task.objective, setup.params, setup.batch))
    np.testing.assert_allclose(loss, top.value, rtol=1e-2 if "bfloat16" in options else 1e-5)


def test_a_search_for_right_answers_says_that_nothing_was_predicted(lacuna, capsys, tmp_path, tokenizer, questions):
    asked = ["--model", str(GOLDEN / "qwen2"), "--tokenizer", tokenizer, "--task", questions, *FEW]
    assert lacuna("sweep", *asked, "--objective", "accuracy", "--out", "run") == 0
    report = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert "a loss that moves in steps has no gradient" in report
    assert "nan" not in report
    assert "in band" not in report
    assert not (tmp_path / "run" / "figures" / "linear_regime.png").exists()


def test_files_that_score_otherwise_and_rows_that_are_lost_are_noticed(
    lacuna, capsys, monkeypatch, tmp_path, tokenizer, questions
):
    asked = ["--model", str(GOLDEN / "qwen2"), "--tokenizer", tokenizer, "--task", questions, *FEW]
    assert lacuna("sweep", *asked, "--out", "run") == 0
    with monkeypatch.context() as patched:
        patched.setattr("lacuna.cli.export_candidate._score_of_files", lambda *ignored: 0.0)
        assert lacuna("export", "run", "--to", "winner") == 2
    assert "what was written must score as the sweep recorded" in told(capsys.readouterr())
    assert not (tmp_path / "winner").exists()
    rows = [json.loads(line) for line in Path(questions).read_text(encoding="utf-8").splitlines()]
    written(Path(questions), [row | {"label": 1 - row["label"]} for row in rows])
    assert lacuna("export", "run", "--to", "winner") == 2
    assert "the rows that run was scored on must be there" in told(capsys.readouterr())
    assert not (tmp_path / "winner").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--model", "MODEL"], "needs a task"),
        (["--dtype", "bfloat16"], "dtype is an option of a language model"),
        (["--objective", "accuracy"], "objective is an option of a language model"),
        (["--model", "MODEL", "--task", "TASK", "--objective", "exact_match"], "objective must be one of nats"),
        (
            ["--model", "MODEL", "--task", "TASK", "--basis", "krylov", "--objective", "accuracy"],
            "loss with a gradient",
        ),
        (["--model", "MODEL", "--task", "TASK", "--basis", "random", "--noise", "low_rank"], "noise in a basis"),
        (["--model", "MODEL", "--task", "TASK", "--probes", "1"], "probes must be at least 2, or 0"),
        (["--model", "nowhere", "--task", "TASK"], "nowhere"),
        (["--model", "MODEL", "--task", "nothing.jsonl"], "nothing.jsonl must be a file"),
    ],
)
def test_what_cannot_be_is_one_sentence(lacuna, capsys, tokenizer, questions, options, sentence):
    names = {"MODEL": str(GOLDEN / "qwen2"), "TASK": questions}
    given = [names.get(option, option) for option in options]
    tokens = ["--tokenizer", tokenizer] if "--model" in given else []
    assert lacuna("sweep", *given, *tokens, "--num-candidates", "2", "--sigmas", "1e-2", "--out", "run") == 2
    captured = told(capsys.readouterr())
    assert sentence in captured
    assert captured.startswith("lacuna: ")
    assert not Path("run").exists()


def test_a_label_that_is_no_choice_is_told_with_its_line(lacuna, capsys, tmp_path, tokenizer):
    rows = [{"prompt": "w1", "choices": [" w4", " w5"], "label": label} for label in (0, " w5", " w6")]
    task = written(tmp_path / "wrong.jsonl", rows)
    assert lacuna("sweep", "--model", str(GOLDEN / "qwen2"), "--tokenizer", tokenizer, "--task", task) == 2
    captured = told(capsys.readouterr())
    assert "`label`" in captured
    assert f"line 3 of {task}" in captured


def test_a_plan_of_a_search_around_a_language_model(lacuna, capsys, tokenizer, questions):
    asked = ["--model", str(GOLDEN / "qwen2"), "--tokenizer", tokenizer, "--task", questions]
    assert lacuna("plan", *asked, *FEW) == 0
    printed = capsys.readouterr().out
    assert "candidates a second" in printed
    assert "lacuna sweep --model" in " ".join(printed.split())
