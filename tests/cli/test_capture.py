"""`lacuna capture` from folders to a report, on models of a few thousand weights and a text of a few letters."""

import io
import json
import shutil
from contextlib import redirect_stdout

import jax.numpy as jnp
import numpy as np
import pytest
from adapter_folders import FOLDER, changed
from model_folders import GOLDEN, whole

from lacuna import cli, models, trees
from lacuna.checkpoints import export_hf, load_adapter, load_hf, load_tokenizer
from lacuna.cli import capture_points
from lacuna.cli.capture import CaptureCommand
from lacuna.cli.capture_points import _ends, _read
from lacuna.errors import TreeMismatch
from lacuna.reports import capture_report, records
from lacuna.reports.records import select, value
from lacuna.setups import LanguageModel, TaskConfig, language
from lacuna.training import RecoverConfig, recover

LETTERS = "abcdefghijklmnopqrstuvwxyz ."
SIZES = ["--rank", "2", "--num-draws", "1", "--length", "8", "--batch-size", "2"]
STEP = 0.05


def tokenizer_in(folder):
    """A tokenizer of single letters."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    own = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(LETTERS)}, unk_token="."))
    own.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    folder.mkdir()
    own.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder


def text_in(file, seed, num_letters=600):
    rng = np.random.default_rng(seed)
    file.write_text("".join(rng.choice(list(LETTERS), num_letters)))
    return file


def tuned(source, to, tokenizer, file, *, num_steps, length, batch_size):
    """A model trained by gradient descent on the batches that the command will read first."""
    model, params = load_hf(source, dtype="float32")
    config = TaskConfig(str(file), length=length, batch_size=batch_size)
    opened = LanguageModel(model, params, None, None, source)
    task = language.with_task(
        opened, language.task_data(opened.model, language.read(config), config, load_tokenizer(tokenizer)), config
    ).task
    path = recover(task.objective.loss, params, task.train, RecoverConfig("sgd", STEP, num_steps=num_steps))
    return export_hf(model, path.end, to, like=source)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, a tokenizer, two texts, and the model trained on the first of them."""
    root = tmp_path_factory.mktemp("capture")
    whole(root / "before", "olmo")
    tokenizer_in(root / "letters")
    text_in(root / "text.txt", 0)
    text_in(root / "other.txt", 1)
    where = (root / "before", root / "after", root / "letters", root / "text.txt")
    tuned(*where, num_steps=2, length=8, batch_size=2)
    return root


def between(folder, *options):
    """The command between the two models, on the first text."""
    ends = ["--from", str(folder / "before"), "--to", str(folder / "after")]
    return ["capture", *ends, "--task", str(folder / "text.txt"), "--tokenizer", str(folder / "letters"), *options]


@pytest.fixture(scope="module")
def run(folder):
    """A finished run of gradient descent's first updates, which no test may write to."""
    options = ["--basis", "prefix", "--optimiser", "sgd", "--learning-rate", str(STEP), *SIZES]
    options += ["--control-task", str(folder / "other.txt")]
    assert cli.run(between(folder, *options, "--out", str(folder / "run"))) == 0
    return folder / "run"


def test_the_same_training_done_again_spans_the_displacement(run):
    found = records.read(run / "records.jsonl")
    assert value(found, "capture_mass", basis="prefix", task="own") == pytest.approx(1, abs=1e-4)
    assert value(found, "block_capture", basis="prefix", task="own", by="all") == pytest.approx(1, abs=1e-4)
    assert value(found, "capture_mass", basis="prefix", task="control") < 0.9
    assert value(found, "loss_drop") != 0
    assert {record.where["task"] for record in select(found, "control_mass")} == {"own", "control", ""}


def test_a_report_says_what_was_found_and_how_to_do_it_again(run):
    page = (run / "report.md").read_text()
    assert page.startswith("# Captures: before to after\n")
    assert "| prefix | 2 | **1** |" in page
    assert "lacuna capture --from " in page
    for figure in ("captures", "places"):
        assert (run / "figures" / f"{figure}.png").stat().st_size > 10_000
    assert not list(run.parent.glob("*.partial"))


def test_a_report_is_redrawn_from_its_records(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "report.md").unlink()
    shutil.rmtree(copy / "figures")
    assert cli.run(["report", str(copy)]) == 0
    assert (copy / "report.md").read_text() == (run / "report.md").read_text()
    assert cli.run(["report", str(run), "--to", str(tmp_path / "elsewhere")]) == 0
    assert (tmp_path / "elsewhere" / "figures" / "places.png").exists()
    (copy / "records.jsonl").write_text("")
    assert cli.run(["report", str(copy)]) == 2
    assert "records.jsonl must be as it was written; got other bytes" in capsys.readouterr().err
    (copy / "sha256.json").unlink()
    assert cli.run(["report", str(copy)]) == 2
    assert "must hold the records of a capture" in capsys.readouterr().err


@pytest.fixture(scope="module")
def recovered(cache):
    """A finished run without a model of one's own, which no test may write to, and what it printed."""
    run, printed = cache / "recovered", io.StringIO()
    options = ["--optimiser", "sgd", "--learning-rate", "1e-3", "--batch-size", "4", "--rank", "2", "--num-draws", "1"]
    with redirect_stdout(printed):
        assert cli.run(["capture", *options, "--control-task", "copy", "--out", str(run), "--cache", str(cache)]) == 0
    return run, printed.getvalue()


def test_without_a_model_a_recovery_of_a_digit_task_is_measured(recovered):
    run, printed = recovered
    found = records.read(run / "records.jsonl")
    rows = capture_report.rows_of(found)
    assert [row.name for row in rows] == [
        "gradient", "gradient, control task", "krylov", "krylov, control task", "prefix", "prefix, control task",
        "random",
    ]  # fmt: skip
    masses = {row.name: row.mass for row in rows}
    assert masses["krylov"] > 10 * masses["random"]
    assert value(found, "loss_drop") > 0
    assert "Recovering `sort`: 100 steps of sgd at 0.001, 4 rows each" in printed
    page = (run / "report.md").read_text()
    assert page.startswith("# Captures: a recovery of `sort`\n")
    assert "| to | the same after 100 steps of sgd at 0.001, 4 rows each |" in page
    assert "\nlacuna capture --rank 2 --control-task copy --batch-size 4 --optimiser sgd" in page


@pytest.mark.parametrize(("begins", "least", "most"), [(0, 1 - 1e-4, 1 + 1e-4), (None, 0, 0.99)])
def test_the_recovery_sees_other_rows_than_the_bases(begins, least, most, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(capture_points, "RECOVERY_STEPS", 2)
    monkeypatch.setattr(capture_points, "RECOVERY_AT", capture_points.RECOVERY_AT if begins is None else begins)
    options = ["--basis", "prefix", "--optimiser", "sgd", "--learning-rate", "1e-2", "--batch-size", "4", "--rank", "2"]
    run = tmp_path / "run"
    assert cli.run(["capture", *options, "--num-draws", "1", "--out", str(run), "--cache", str(cache)]) == 0
    assert least <= value(records.read(run / "records.jsonl"), "capture_mass", basis="prefix") <= most


UNRECOVERED = {
    "one end": (["--from", "before"], "a displacement has two ends; got --from alone. Try: --to FOLDER"),
    "the other end": (["--to", "after"], "a displacement has two ends; got --to alone. Try: --from FOLDER"),
    "itself as its control": (["--control-task", "sort"], "a control task is another one; got sort as both"),
    "an option of text": (
        ["--tokenizer", "x"],
        "tokenizer is an option of a language model; got no --from. Try: --from",
    ),
    "a file": (["--control-task", "x.txt"], "a task is one on digits; got x.txt. Try: --from FOLDER --to FOLDER"),
    "no room": (["--num-batches", "2000000000"], "the bases must fit: the largest takes "),
    "no step": (["--learning-rate", "0"], "learning_rate must be positive and finite; got 0.0"),
    "no digit task": (["--task", "sord"], "a digit task is one of "),
    "no digit task to compare with": (["--control-task", "sord"], "a digit task is one of "),
    "more directions than parameters": (
        ["--rank", "2000000000"],
        "rank must be at most the ",
    ),
    "steps that diverge": (
        ["--optimiser", "sgd", "--learning-rate", "1e30", "--batch-size", "2"],
        "the recovery by sgd must lower the loss on held-out rows; got ",
    ),
}


@pytest.mark.parametrize("what", UNRECOVERED)
def test_what_cannot_be_recovered_is_one_sentence_and_nothing_is_written(what, cache, tmp_path, capsys):
    given, message = UNRECOVERED[what]
    run = tmp_path / "run"
    assert cli.run(["capture", "--rank", "2", *given, "--out", str(run), "--cache", str(cache)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not run.exists()


def points(first, last, **options):
    """What the command reads, and what it says of it."""
    command = CaptureCommand(str(first), str(last), **options)
    ends = _ends(command)
    return ends, _read(ends, command, print)


def test_an_adapter_of_a_model_moves_the_merged_weights():
    ends, (opened, end) = points(GOLDEN / "gpt2", FOLDER / "gpt2")
    start = opened.params
    model, params = load_hf(GOLDEN / "gpt2", dtype="float32")
    merged = models.merged(params, load_adapter(FOLDER / "gpt2", model).lora)
    assert trees.content_digest(start) == trees.content_digest(params)
    assert trees.content_digest(end) == trees.content_digest(merged) != trees.content_digest(params)
    assert not ends.notes


def test_from_adapter_to_adapter_the_factors_are_moved(tmp_path):
    def fresh(tensors):
        return {name: 0 * x if "lora_B" in name else x for name, x in tensors.items()}

    folder = changed(tmp_path / "fresh", "gpt2", fresh)
    ends, (opened, end) = points(folder, FOLDER / "gpt2", base=str(GOLDEN / "gpt2"), task="any")
    model, params = load_hf(GOLDEN / "gpt2", dtype="float32")
    adapter = load_adapter(FOLDER / "gpt2", model)
    assert trees.content_digest(end) == trees.content_digest(adapter.params)
    assert {name[-1] for name, leaf in trees.named_leaves(opened.params) if not np.any(leaf)} == {"B"}
    tokens = jnp.arange(6)[None]
    nats = models.next_token_nats(model, params, tokens, lora=adapter.lora)
    np.testing.assert_array_equal(opened.bound(models.next_token_nats)(end, tokens), nats)
    first, second = ends.notes
    assert "of the adapters' factors" in first
    assert "see B alone" in second


def test_adapters_of_other_strengths_are_not_compared(tmp_path):
    other = changed(tmp_path / "other", "llama", lora_alpha=99)
    with pytest.raises(TreeMismatch, match=r"same sites, ranks and strengths; got .* alphas 99"):
        points(FOLDER / "llama", other, base=str(GOLDEN / "llama"))


REFUSED = {
    "the same model twice": (["--to", "BEFORE"], "two whose weights are all equal"),
    "another architecture": (
        ["--to", str(GOLDEN / "llama")],
        "two models of one architecture; got `layers/attention/key/kernel`: [2, 16, 8] in",
    ),
    "a basis without its task": (["--basis", "krylov"], "the basis `krylov` needs a task; got no --task"),
    "more directions than rows": (["--task", "TEXT", "--rank", "400"], "none of them twice; got "),
    "fewer batches than directions": (["--task", "TEXT", "--num-batches", "1"], "got 1 batches for rank 2"),
    "weights that are NaN": (["--to", "SPOILED"], "the end of a displacement must be finite; got 3 not so in `"),
    "a control alone": (["--control-task", "TEXT"], "a control task stands beside a task"),
    "no such text": (["--task", "nowhere.txt"], "nowhere.txt must be a file that can be read"),
    "from an adapter to a model": (["--from", str(FOLDER / "gpt2")], "from its model to it, or to another adapter"),
    "a folder that is not empty": (["--out", "BEFORE"], "a capture is written to a new folder"),
    "no rows": (["--batch-size", "0"], "batch_size must be at least 1"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_compared_is_one_sentence_and_nothing_is_written(what, folder, tmp_path, capsys):
    def spoil(tensors):
        name = next(name for name in tensors if name.endswith("mlp.up_proj.weight"))
        values = tensors[name].copy()
        values.ravel()[:3] = np.nan
        return tensors | {name: values}

    named = {
        "BEFORE": lambda: str(folder / "before"),
        "TEXT": lambda: str(folder / "text.txt"),
        "SPOILED": lambda: str(whole(tmp_path / "spoiled", "olmo", spoil)),
    }
    given, message = REFUSED[what]
    options = {"--from": str(folder / "before"), "--to": str(folder / "after"), "--out": str(tmp_path / "run")}
    options |= {"--rank": "2"} | (
        {"--tokenizer": str(folder / "letters"), "--length": "8"} if "--task" in given else {}
    )
    options |= {
        flag: named[word]() if word in named else word for flag, word in zip(given[::2], given[1::2], strict=True)
    }
    assert cli.run(["capture", *(word for pair in options.items() for word in pair)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.slow
def test_a_trained_model_is_compared_with_its_fine_tuned_copy(data, tmp_path):
    source, tokenizer = data / "tiny_ckpt" / "hf", data / "tiny_ckpt" / "tokenizer"
    if not source.is_dir():
        pytest.skip(f"no trained checkpoint at {source}")
    file = tmp_path / "text.txt"
    tale = (f"Once upon a time there was a robot with {n} wheels, and it counted them every day." for n in range(40))
    file.write_text("\n".join(tale))
    after = tuned(source, tmp_path / "after", tokenizer, file, num_steps=1, length=12, batch_size=2)
    ends = ["--from", str(source), "--to", str(after), "--task", str(file), "--tokenizer", str(tokenizer)]
    options = ["--basis", "prefix", "--optimiser", "sgd", "--learning-rate", str(STEP), "--rank", "1"]
    options += ["--num-draws", "1", "--length", "12", "--batch-size", "2", "--out", str(tmp_path / "run")]
    assert cli.run(["capture", *ends, *options]) == 0
    (row, random) = capture_report.rows_of(records.read(tmp_path / "run" / "records.jsonl"))
    assert (row.mass, row.recovery) == (pytest.approx(1, abs=1e-4), pytest.approx(1, abs=1e-3))
    assert random.mass < 1e-3
