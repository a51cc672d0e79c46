"""The handbook does what it says: its Python runs, its commands run or are understood, its links lead somewhere.

The Python of a section (`##`) runs from top to bottom in a folder and a namespace of its own. What a reader would bring
is there, tiny: models of the golden folders, a tokenizer of letters, texts of them, and what the section's commands
would have left. Every command is parsed by the command line itself; `pytest -m slow` runs them, too, among the Python.
`SIZES` and `WORDS` say all that is changed.
"""

import importlib
import json
import re
import shlex
import shutil
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_folders import GOLDEN
from small_run import SETTINGS, SHORT
from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel

from experiments import commands as experiments
from experiments import handbook, running
from lacuna import captures, checkpoints, cli, geometry, models, search, setups, steering
from lacuna.cli import commands as typed
from lacuna.cli.options import SweepOptions
from lacuna.reports import records

ROOT = Path(__file__).parent.parent
PAGES = {name: (ROOT / name).read_text() for name in ("README.md", "experiments/README.md")}
README = PAGES["README.md"]

LANGUAGE = ["--sigmas", "1e-2", "--batch-size", "4", "--probes", "0", "--top-k", "2", "--num-candidates", "3"]
SIZES = {
    "sweep": SETTINGS,
    "sweep --model": LANGUAGE,
    "plan": SETTINGS,
    "plan --model": [],
    "capture": ["--num-draws", "1", "--batch-size", "2", "--rank", "2"],
    "capture --from": ["--num-draws", "1", "--length", "16", "--batch-size", "2", "--rank", "2"],
}
"""Options that are added to a command, so that it takes seconds."""

WORDS = {
    "1000000": "8", "1024": "4", "4096": "6", "--rank 8": "--rank 2", "google/boolq": "boolq.jsonl",
    '"attention/.*"': '"attention/out"', "SOURCE": "before", "ADAPTER": "adapter", "questions.jsonl": "boolq.jsonl",
}  # fmt: skip
"""Words that are replaced."""

ELSEWHERE = ("verify-hf", "--distributed", "--coordinator")
"""Commands with one of these are parsed and never run: they need torch or another process."""

LETTERS = [*"abcdefghijklmnopqrstuvwxyz .?:\n", " yes", " no"]
MODELS = ("before", "Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-7B")
"""Folders of models, all of them the same OLMo of 5,000 weights; of Qwens transformers would change the tokenizer."""


def blocks(page):
    """The fenced blocks of each section: language and text."""
    found, section, fence, inside = {}, "", None, []
    for line in page.splitlines():
        if line.startswith("```"):
            if fence is None:
                fence, inside = line[3:], []
            else:
                found.setdefault(section, []).append((fence, "\n".join(inside)))
                fence = None
        elif fence is not None:
            inside.append(line)
        elif line.startswith("## "):
            section = line[3:]
    assert fence is None
    return found


def commands(text):
    """The commands of a block as lists of words, comments left out, those in quotes for another shell too."""
    lines = text.replace("\\\n", " ").splitlines()
    for line in lines:
        for inner in re.findall(r'--command "(.*)"', line):
            yield from commands(inner.split("&& ")[-1])
        words = shlex.split(line.removesuffix(" &"), comments=True)
        while words and "/" in words[0]:
            words[0] = words[0].rpartition("/")[2]
        if "srun" in words[:1]:
            words = words[next(i for i, word in enumerate(words) if word.endswith("/lacuna")) :]
            words[0] = "lacuna"
        if words[:1] == ["lacuna"] or words[:3] == ["python", "-m", "experiments"]:
            yield words


SECTIONS = blocks(README)
RUN = [name for name, found in SECTIONS.items() if any(language == "python" for language, _ in found)]


def tokenizer_in(folder):
    """Letters, and the two answers of BoolQ as one token each."""
    own = Tokenizer(WordLevel({letter: i for i, letter in enumerate(LETTERS)}, unk_token="."))
    own.pre_tokenizer = pre_tokenizers.Split(Regex(r" yes$| no$|[\s\S]"), "isolated")
    own.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": ".", "pad_token": "."}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def moved(folder):
    """Every tensor of a model's file moved a little."""
    from safetensors.numpy import load_file, save_file

    rng = np.random.default_rng(1)
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: x + 0.01 * rng.normal(size=x.shape).astype(x.dtype) for name, x in tensors.items()},
        folder / "model.safetensors",
    )


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """What a reader would bring, in an empty folder."""
    for name in MODELS:
        shutil.copytree(GOLDEN / "olmo", tmp_path / name, ignore=shutil.ignore_patterns("gradients", "*.npz"))
        tokenizer_in(tmp_path / name)
    moved(shutil.copytree(tmp_path / "before", tmp_path / "after"))
    rng = np.random.default_rng(0)
    for name in ("text.txt", "other.txt"):
        (tmp_path / name).write_text("".join(rng.choice(list(LETTERS[:28]), 6000)))
    rows = [
        {"passage": f"{rng.choice(list('abcdefgh'))} is {'above' if i % 2 else 'below'} {i}", "answer": bool(i % 2)}
        | {"question": f"is it {'low' if i % 3 else 'high'}"}
        for i in range(24)
    ]
    (tmp_path / "boolq.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("HOME", str(tmp_path))  # starting points are kept below it
    quick = partial(setups.SetupConfig, batch_size=20, train=SHORT, undertrained_steps=2, forget=SHORT)
    monkeypatch.setattr(setups, "SetupConfig", quick)
    monkeypatch.setattr(importlib.import_module("lacuna.cli.plan"), "TRIAL_S", 0.01)
    return tmp_path


def replaced(text):
    for word, other in WORDS.items():
        text = text.replace(word, other)
    return text


def run(words, cache):
    """A command of `lacuna`, at the sizes of the tests."""
    name = " ".join([words[1], *({"--model", "--from"} & set(words))])
    added = SIZES.get(name, []) if not {"--resume", "--extend"} & set(words) else []
    kept = ["--cache", str(cache)] if words[1] in ("sweep", "plan", "export", "capture") else []
    given = [*shlex.split(replaced(shlex.join(words[1:]))), *kept]
    assert cli.run([*given, *added]) == 0, given


def left_by_commands():
    """What `lacuna sweep --out first` and `lacuna capture --out captured` leave, of a model of six weights."""
    params, batch = {"w": jnp.ones((2, 3))}, jnp.arange(2.0)
    sweep = search.Sweep(search.gaussian(), sigmas=(0.1, 0.2), num_candidates=6)
    search.run_sweep(of_six, params, batch, sweep, out="first")
    spec, task = captures.BasisSpec("gradient", rank=2), captures.TaskAt(of_six, lambda step: batch + step)
    found = captures.measure(params, {"w": jnp.ones((2, 3))}, [spec], task=task, num_draws=1)
    Path("captured").mkdir()
    records.write(Path("captured/records.jsonl"), found)


def of_six(params, batch):
    return jnp.sum((batch @ params["w"] - 1) ** 2)


@pytest.mark.parametrize("commands_too", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["python", "all"])
@pytest.mark.parametrize("section", RUN)
def test_a_section_of_the_readme_runs_from_top_to_bottom(section, commands_too, desk, tmp_path_factory, capsys):
    namespace = {}
    cache = tmp_path_factory.getbasetemp() / "cache"
    if commands_too:
        model = checkpoints.load_hf("before")[0]
        spec = models.lora_spec(model, rank=2)
        factors = jax.tree.map(lambda leaf: leaf + 0.01, spec.init(jax.random.key(0)))  # or it would move nothing
        checkpoints.save_adapter("adapter", model, checkpoints.Adapter(spec, factors), base="before")
    elif section in LEAVE:
        left_by_commands()
    for language, text in SECTIONS[section]:
        if language == "python":
            exec(compile(replaced(text), f"README.md, {section}", "exec"), namespace)
        elif language == "bash" and commands_too:
            for words in commands(text):
                if words[0] == "lacuna" and not any(word in words for word in ELSEWHERE):
                    run(words, cache)
    CHECKED[section](namespace, capsys.readouterr().out)


def random_search(namespace, printed):
    assert namespace["scores"].num_rows == 6 * 2 * 2
    first, second, third = re.findall(r"'score': ([\d.]+)", printed)
    assert float(first) <= float(second) <= float(third)


def captured(namespace, printed):
    lines = re.findall(r"^(\w+) +\w* +(\S+) of the squared displacement, (\S+) by chance$", printed, re.MULTILINE)
    assert {"gradient", "random"} <= {basis for basis, _, _ in lines}
    assert all(0 <= float(mass) <= 1 and 0 < float(level) < 1 for _, mass, level in lines)
    assert "directions of at most 6; <Status: 0>" in printed
    assert 1 <= float(namespace["spectrum"].participation_ratio) <= 6
    plain = np.asarray(geometry.prefix_captures(namespace["path"].updates, namespace["moved"]))
    assert len(plain) == 16
    assert np.all(np.diff(plain) > -1e-4)
    assert 0 < plain[0] < plain[-1] < 1


def kernels(namespace, printed):
    assert int(namespace["basis"].rank) == int(namespace["again"].rank) == 8
    assert "8 <Status.DEPENDENT: 2>" in printed
    masses = [float(line) for line in re.findall(r"^(?:8 )?([\d.]+)$", printed, re.MULTILINE)]
    assert masses[0] == pytest.approx(1)
    assert masses[1] == pytest.approx(8 / (64 * 32 + 32))
    assert float(namespace["drift"](namespace["rows"], namespace["delta"]).mass) == pytest.approx(1)
    ritz = jnp.linalg.eigvalsh(namespace["seen"].matrix)
    assert float(ritz[0]) > 1
    assert float(ritz[-1]) < 33


def your_own(namespace, printed):
    search_line, *captured, geometry_line, page, prediction, best_sigma, in_basis, nnx, eqx = printed.splitlines()
    base, best, gain = (float(x) for x in re.findall(r"\d+\.\d+", search_line))
    assert gain > 0
    assert abs(base - best - gain) < 2e-4  # four decimals of each
    mass, level = (float(x) for x in re.findall(r"\d+\.\d+", geometry_line))
    assert level == pytest.approx(4 / 24)
    assert level < mass <= 1
    assert Path(page).exists()
    assert float(prediction) > 0
    assert float(best_sigma.split()[0]) > 0
    expected, found = (float(x) for x in re.findall(r"\d+\.\d+", in_basis))
    assert 0.5 < found / expected < 1.5
    assert [line.split("'")[3] for line in captured] == ["krylov", "prefix", "random"]
    for line in (nnx, eqx):
        gain, mass = map(float, line.split())
        assert gain > 0
        assert 0 < mass < 1
    assert all(layer.kernel.shape for layer in namespace["network"].layers if hasattr(layer, "kernel"))
    inputs, targets = namespace["batch"]
    found = jnp.mean((jax.vmap(namespace["mlp"])(inputs) - targets) ** 2)
    assert float(found) == pytest.approx(namespace["result"].best.score, abs=1e-5)


def language_models(namespace, printed):
    assert namespace["output"].logits.shape == (1, 24, 53)
    assert namespace["more"].shape == (1, 5)
    assert "where shuffled labels give" in printed
    for folder in ("path/to/mine", "path/to/adapter"):
        assert any(Path(folder).iterdir())


LEAVE = ("Ten minutes: random search", "Ten minutes: captures")
"""Sections whose Python reads what their commands left."""

CHECKED = {
    "Ten minutes: random search": random_search,
    "Ten minutes: captures": captured,
    "Ten minutes: the kernels": kernels,
    "Bring your model, your task, your loss": your_own,
    "Language models": language_models,
}


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_understood(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running, "run", lambda *_, **__: tmp_path)
    monkeypatch.setattr(experiments, "_report", lambda *_: None)
    fenced = [text for found in blocks(PAGES[page]).values() for _, text in found]
    inline = re.findall(r"`(python -m experiments [^`\n]*)`", PAGES[page])
    shown = [words for text in [*fenced, *inline] for words in commands(text)]
    assert len(shown) > 10
    for words in shown:
        if words[0] == "lacuna":
            typed.parse(words[1:])  # ends the process where an option does not exist
        elif words[3:] != ["handbook"]:
            assert experiments.run(words[3:]) == 0, words


def test_every_option_that_is_named_exists():
    known = {"help", *(name.replace("_", "-") for name in SweepOptions.__dataclass_fields__)}
    asked = (typed.SweepCommand, typed.CaptureCommand, typed.PlanCommand, typed.ExportCommand, typed.VerifyCommand)
    for command in asked:
        known |= {name.strip("_").replace("_", "-") for name in command.__dataclass_fields__}
    for code in re.findall(r"`(lacuna [^`\n]*|--[^`\n]*)`", README):
        for option in re.findall(r"--([a-z][a-z-]*)", code):
            assert option in known, code


def test_every_status_is_explained():
    (section,) = re.findall(r"## What each status means\n(.*?)\n## ", README, re.DOTALL)
    for status in (*geometry.Status, *steering.MatchStatus):
        assert f"| `{status.name}` |" in section
    assert set(re.findall(r"^\| (\d+) \|", section, re.MULTILINE)) == {
        "0", "2", str(cli.CRASHED), str(cli.INTERRUPTED), "143"
    }  # fmt: skip


def test_the_readme_sets_up_with_two_commands():
    assert len(re.findall(r"```sh\n[^\n]*\n```", README)) == README.count("```sh") == 2


def test_the_first_picture_is_the_prefix_capture_with_its_controls():
    first = re.search(r"!\[[^\]]*\]\(([^)]*)\)", README)
    assert first[1] == "experiments/results/trajectory_prefix/figures/prefix_captures.png"


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    headings = re.findall(r"^#+ (.*)$", PAGES[page], re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for target in re.findall(r"\]\(((?!http)[^)]+)\)", PAGES[page].replace("\n", " ")):
        file, _, anchor = target.partition("#")
        assert ((ROOT / page).parent / file).exists(), target
        assert not anchor or file or anchor in anchors, target


def test_the_tables_of_the_readme_say_what_the_gallery_and_the_code_say():
    assert handbook.with_blocks(README) == README, "python -m experiments handbook"


def test_no_row_of_the_gallery_is_left_out():
    reports = [path.read_text() for path in handbook.GALLERY.glob("*/report.md")]
    rows = handbook.gallery_rows()
    assert len(rows) == sum(len(re.findall(r"^\| C\d+ \|", report, re.MULTILINE)) for report in reports) > 50
    verdicts = {"reproduced", "reproduced but the control fails", "not reproduced", "not run at the paper's scale"}
    assert {row.verdict for row in rows} <= verdicts
    assert {row.name for row in rows} == {f"C{i}" for i in range(1, 15)}


REPEATED = {
    "lacuna/hosts.py": 1,
    "lacuna/search/run_folder.py": 1,
    "lacuna/theory/maxima.py": 1,
    "lacuna/cli/__init__.py": 2,
}
"""Errors that say another's sentence again, or their caller's."""


def test_no_error_of_the_command_line_is_left_out():
    kinds = handbook.kinds()
    assert {"InvalidInput", "RunMismatch", "BadCheckpoint", "MissingPeer"} <= kinds
    (block,) = re.findall(r"<!-- errors: written.*?-->(.*)<!-- errors: end -->", README, re.DOTALL)
    raised = re.compile(rf"(?<!class )(?<![.\w])({'|'.join(kinds)})\(")
    files = handbook.reachable()
    assert ROOT / "lacuna" / "search" / "run.py" in files
    for file in files:
        said = list(handbook.said_in(file, kinds))
        name = str(file.relative_to(ROOT))
        in_code = re.sub(r'"""(.|\n)*?"""', "", file.read_text())
        complaints = len(re.findall(r"return complain\(", in_code))
        assert len(said) == len(raised.findall(in_code)) + complaints, name
        assert sum(not one.sentence for one in said) == REPEATED.get(name, 0), name
        for one in said:
            assert not one.sentence or f"| {handbook._plain(one.sentence)} |" in block, one
