"""The command line on a model that is hardly trained, and one finished sweep of it."""

import io
import json
import shutil
from contextlib import redirect_stdout
from functools import partial

import pytest
from small_run import SHORT, SMALL

from lacuna import cli, setups
from lacuna.search.ledger import Ledger

CACHED = ("sweep", "plan", "export")
"""Commands that prepare a starting point."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """The folder of a tokenizer with a word for every token of the tiny models."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({f"w{i}": i for i in range(53)}, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder = tmp_path_factory.mktemp("tokenizer")
    made.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "w0"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(folder)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", autouse=True)
def _quick_training():
    with pytest.MonkeyPatch.context() as patched:
        quick = partial(setups.SetupConfig, batch_size=20, train=SHORT, undertrained_steps=2, forget=SHORT)
        patched.setattr(setups, "SetupConfig", quick)
        patched.setenv("COLUMNS", "200")
        yield


@pytest.fixture
def lacuna(monkeypatch, cache, tmp_path):
    """`lacuna(*arguments)` runs the command in an empty folder and gives its exit status."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: cli.run([*arguments, "--cache", str(cache)] if arguments[0] in CACHED else arguments)


@pytest.fixture(scope="module")
def finished(cache, tmp_path_factory):
    """The folder of a finished sweep, which no test may write to, and what it printed."""
    run, printed = tmp_path_factory.mktemp("finished") / "run", io.StringIO()
    with redirect_stdout(printed):
        assert cli.run(["sweep", *SMALL, "--out", str(run), "--cache", str(cache)]) == 0
    return run, printed.getvalue()


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished sweep."""
    return shutil.copytree(finished[0], tmp_path / "run")


@pytest.fixture
def interrupted(lacuna, tmp_path, monkeypatch):
    """The folder of a run that was stopped after its first chunk."""
    append = Ledger.append

    def stop_after_the_first(ledger, start, scores):
        if start:
            raise KeyboardInterrupt
        append(ledger, start, scores)

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "append", stop_after_the_first)
        assert lacuna("sweep", *SMALL, "--out", "run") == cli.INTERRUPTED
    return tmp_path / "run"
