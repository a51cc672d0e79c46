"""Sweeps around language models by command: from a file of questions to a folder that scores as the winner did."""

import json
import re

import pytest
from model_folders import GOLDEN

from lacuna import cli
from lacuna.checkpoints.plan import plan_hf
from lacuna.cli import points
from lacuna.setups import language, language_models

MODEL = str(GOLDEN / "qwen2")
ASKED = ("--model", MODEL, "--task", "task.jsonl")
SHORT = ("--num-candidates", "3", "--sigmas", "1e-2", "--batch-size", "4", "--probes", "0")


class Characters:
    """A tokenizer of letters."""

    def encode(self, text, **options):
        return [ord(character) - 70 for character in text]


@pytest.fixture
def lacuna(monkeypatch, tmp_path):
    """`lacuna(*arguments)` beside a file of questions, no two of one length, whose letters are tokens."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(language, "load_tokenizer", lambda source: Characters())
    rows = [{"prompt": "abcdefgh"[i % 8] * (3 + i), "choices": ["k", "lm"], "label": i % 2} for i in range(16)]
    (tmp_path / "task.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return lambda *arguments: cli.run([*map(str, arguments)])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--adapter", "new"), "bit for bit the same"),
        pytest.param(
            ("--dtype", "bfloat16", "--noise", "low_rank"), "stood beside narrow weights", marks=pytest.mark.slow
        ),
    ],
    ids=["adapter", "factors"],
)
def test_a_winner_is_exported_and_scored_from_its_files(lacuna, capsys, tmp_path, options, told):
    assert lacuna("sweep", *ASKED, *SHORT, *options, "--out", "run") == 0
    assert "What rounding left" not in (tmp_path / "run" / "report.md").read_text()  # factors are not rounded
    assert lacuna("export", "run", "--to", "winner") == 0
    printed = capsys.readouterr().out
    assert told in printed
    assert re.search(r"read from there its loss is -?\d", printed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--length", "9"), "length is an option of a language model; got no --model"),
        (("--model", MODEL), "needs a task"),
        ((*ASKED, "--state", "trained"), "state is an option of the synthetic transformer; got --model"),
        ((*ASKED, "--adapter-rank", "4"), "adapter_rank is an option of a new adapter"),
        ((*ASKED, "--basis-rank", "4"), "basis_rank is an option of a search in a basis"),
        ((*ASKED, "--layerwise", "--noise", "low_rank"), "layerwise .*; got --noise low_rank"),
        ((*ASKED, "--layerwise", "--adapter", "new"), "layerwise .*; got --adapter new"),
        ((*ASKED, "--relative", "--adapter", "new"), "relative would not move a new adapter"),
        ((*ASKED, "--basis", "krylov", "--objective", "accuracy"), "needs a loss with a gradient; got acc"),
        (("--model", MODEL, "--task", "sort", "--begin", "a"), "begin is for the rows of a file"),
    ],
)
def test_what_would_go_unheeded_is_refused(lacuna, capsys, options, message):
    assert lacuna("sweep", *SHORT, *options) == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))


@pytest.mark.parametrize(
    ("options", "per_weight", "hint"),
    [
        (("--probes", "0"), 8, "--layerwise"),
        ((), 28, "--probes 0"),
        (("--probes", "0", "--dtype", "bfloat16"), 6, "--layerwise"),
        (("--probes", "0", "--basis", "random", "--basis-rank", "4"), 36, "--dtype bfloat16"),
        (("--probes", "0", "--basis", "gradient", "--basis-rank", "4"), 68, "--dtype bfloat16"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_with_what_would(lacuna, capsys, monkeypatch, options, per_weight, hint):
    num_weights = plan_hf(MODEL).num_parameters
    monkeypatch.setattr(language_models, "load_hf", None)  # nothing is loaded
    for room in (0, 1):
        monkeypatch.setattr(points, "device_bytes", lambda mesh, room=room: per_weight * num_weights + room)
        if room:
            with pytest.raises(TypeError):  # it would be loaded
                lacuna("sweep", *ASKED, *options)
        else:
            assert lacuna("sweep", *ASKED, *options) == 2
            told = " ".join(capsys.readouterr().err.split())
            assert "must fit: its weights and a " in told
            assert f"Try: {hint}." in told


def test_low_rank_noise_takes_no_room_beside_the_weights(lacuna, monkeypatch):
    num_weights = plan_hf(MODEL).num_parameters
    monkeypatch.setattr(language_models, "load_hf", None)
    monkeypatch.setattr(points, "device_bytes", lambda mesh: 4 * num_weights + 1)
    with pytest.raises(TypeError):  # it would be loaded
        lacuna("sweep", *ASKED, "--noise", "low_rank", "--probes", "0")
