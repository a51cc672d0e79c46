"""Odd values of every option: refused in one sentence and with status 2 before long work, or valid by another rule."""

import contextlib
import io
import itertools
import json
import math
import re

import fuzzing
import jax
import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from model_folders import GOLDEN

import lacuna.cli.capture_points
from experiments import commands, registry
from lacuna import cli, meshes, models, setups, trees
from lacuna.checkpoints import hf, verify
from lacuna.setups import digit_models
from lacuna.tasks.digits import DIGIT_TASKS

ODD = [
    *("", " ", "nan", "inf", "-inf", "-0", "0", "-1", "1", "2", "8", "1.5", "1e-3", "1e400", "1e-400", "1e39", "1e-50"),
    *("2147483647", "2147483648", "4294967295", "4294967296", "9223372036854775808", "1" + "0" * 400, "1_000", "１"),
    *("ä", "\udcff", "\ud800", "a\0b", "\n", "folder", "file", "file/below", "nowhere", ".", "~nobody-is-here/x"),
    *("(", "*", "[", ".*", "head/kernel", "sort", "x" * 5000, "True", "-x"),
]
texts = st.sampled_from(ODD) | st.integers(-(2**70), 2**70).map(str) | st.floats().map(str) | st.text(max_size=5)
CASES = fuzzing.cases(22)


class Accepted(BaseException):
    """The long work would begin now."""


@pytest.fixture(scope="module", autouse=True)
def _nothing_long():
    def accept(*_, **__):
        raise Accepted

    def opened(*arguments, **options):
        open_hf(*arguments, **options)
        raise Accepted

    open_hf = hf.open_hf
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(digit_models, "fit", accept)
        patched.setattr(hf, "open_hf", opened)
        patched.setattr(lacuna.cli.capture_points, "_read", accept)
        patched.setattr(lacuna.cli.capture_points, "device_bytes", lambda mesh: DEVICE_BYTES)
        patched.setattr(verify, "verify_hf", accept)
        for module in registry.EXPERIMENTS.values():
            patched.setattr(module, "run_seed", accept)
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            patched.setenv(name, "1")
        yield


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in, but for a file, a folder and a task."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    rows = [{"prompt": f"w{i % 7} w{i} w3", "choices": [" w4", " w5"], "label": i % 2} for i in range(40)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def content(folder):
    return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def is_accepted(run, arguments, name="lacuna"):
    """Whether a command goes on to its long work; if not, it was refused as it should be."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = run(arguments)
    except Accepted:
        return True
    except SystemExit as stop:  # an option that does not parse
        return {2: False}[stop.code]
    finally:
        assert "Traceback" not in err.getvalue()
        assert "Warning" not in err.getvalue()
    if status == 0:
        return True
    assert status == 2
    assert re.fullmatch(rf"{name}: [^\n]+[^.]\.\n", err.getvalue()), err.getvalue()[:500]
    return False


def whole(least, most=2**31 - 1):
    """An integer in a range."""

    def rule(text):
        try:
            return least <= int(text) <= most
        except ValueError:
            return False

    return rule


def number(rule):
    def of_text(text):
        try:
            return bool(rule(float(text)))
        except ValueError:
            return False

    return of_text


def one_of(*words):
    return lambda text: text in words


SHAPES = jax.eval_shape(setups.digit_model().init, jax.random.key(0))
SITES = [*models.linear_sites(hf.load_hf(GOLDEN / "gpt2")[0])]


def matches(names):
    """A regular expression of the whole of one of the names."""

    def rule(text):
        try:
            return any(re.fullmatch(text, name) for name in names)
        except re.error:
            return False

    return rule


SWEEP = ["sweep", "--cache", "cache"]
MODEL = ["sweep", "--model", str(GOLDEN / "gpt2"), "--task", "q.jsonl", "--tokenizer", "TOKENIZER", "--batch-size", "6"]
PLAN = ["plan", "--model", str(GOLDEN / "gpt2")]
CAPTURE = ["capture", "--from", str(GOLDEN / "gpt2"), "--to", str(GOLDEN / "gpt2")]
DEVICE_BYTES = 2**33
MOST_VECTORS = DEVICE_BYTES // (16 * trees.size(SHAPES))
"""Of a gradient basis, four times in float32."""
RECOVERY = ["capture", "--cache", "cache"]
EXPORT = ["export", str(GOLDEN / "gpt2"), "--to", "new"]
VERIFY = ["verify-hf", str(GOLDEN / "gpt2")]

NUMBERS = {
    "sweep --num-candidates": (SWEEP, whole(1, 2**32)),
    "sweep --seed": (SWEEP, whole(0, 2**32 - 1)),
    "sweep --setup-seed": (SWEEP, whole(0, 2**32 - 1)),
    "sweep --batch-size": (SWEEP, whole(1)),
    "sweep --top-k": (SWEEP, whole(1, 1024 * 4 * 2)),
    "sweep --chunk": (SWEEP, whole(1)),
    "sweep --width": (SWEEP, whole(1)),
    "sweep --probes": (SWEEP, lambda text: whole(2)(text) or whole(0, 0)(text)),
    "sweep --rank": (SWEEP, whole(1, 1)),  # of full noise
    "sweep --noise low_rank --rank": (SWEEP, whole(1)),
    "sweep --basis random --basis-rank": (SWEEP, whole(1, trees.size(SHAPES))),
    "sweep --length": (SWEEP, whole(128, 128)),
    "sweep --held-out-share": (SWEEP, number(lambda x: x == 0.25)),
    "model --adapter new --adapter-rank": (MODEL, whole(1)),
    "model --length": (MODEL, whole(2)),
    "plan --device-gb": (PLAN, number(lambda x: 0 < x < math.inf)),
    "plan --num-candidates": (PLAN, whole(1024, 1024)),
    "capture --rank": (CAPTURE, whole(1)),
    "capture --num-draws": (CAPTURE, whole(1)),
    "capture --seed": (CAPTURE, whole(0, 2**32 - 1)),
    "capture --batch-size": (CAPTURE, whole(8, 8)),
    "capture --num-batches": (CAPTURE, lambda text: False),
    "capture --learning-rate": (CAPTURE, number(lambda x: x == 1e-4)),
    "recovery --rank": (RECOVERY, whole(1, MOST_VECTORS)),
    "recovery --seed": (RECOVERY, whole(0, 2**32 - 1)),
    "recovery --batch-size": (RECOVERY, whole(1)),
    "recovery --num-batches": (RECOVERY, whole(16, MOST_VECTORS)),
    "recovery --length": (RECOVERY, whole(128, 128)),
    "recovery --learning-rate": (RECOVERY, number(lambda x: 0 < x < math.inf)),
    "export --place": (EXPORT, whole(1, 1)),
    "export --max-shard-gb": (EXPORT, number(lambda x: 1e-9 <= x < math.inf)),
    "verify --length": (VERIFY, whole(2, math.inf)),
}
"""By what is typed in front of the value: the command, and the rule of what is valid there."""

WORDS = {
    "sweep --task": (SWEEP, one_of(*DIGIT_TASKS)),
    "sweep --state": (SWEEP, one_of("forgotten", "undertrained", "trained")),
    "sweep --unit": (SWEEP, one_of("sigma", "rms_radius", "exact_radius")),
    "sweep --noise": (SWEEP, one_of("gaussian", "rademacher", "low_rank")),
    "sweep --tokenizer": (SWEEP, one_of()),
    "sweep --adapter": (SWEEP, one_of()),
    "sweep --split": (SWEEP, one_of("train")),
    "sweep --begin": (SWEEP, one_of("")),
    "sweep --resume": (SWEEP, one_of()),
    "sweep --extend": (SWEEP, one_of()),
    "model --adapter": (MODEL, one_of("new")),
    "model --adapter new --adapter-sites": (MODEL, matches(SITES)),
    "plan --model": (["plan"], one_of()),
    "capture --from": (CAPTURE, one_of()),
    "capture --to": (CAPTURE, one_of()),
    "capture --basis": (CAPTURE, one_of("random")),
    "capture --tokenizer": (CAPTURE, one_of()),
    "capture --begin": (CAPTURE, one_of("")),
    "capture --base": (CAPTURE, one_of()),
    "recovery --task": (RECOVERY, one_of(*DIGIT_TASKS)),
    "recovery --control-task": (RECOVERY, one_of(*(name for name in DIGIT_TASKS if name != "sort"))),
    "recovery --from": (RECOVERY, one_of()),
    "recovery --base": (RECOVERY, one_of()),
    "export": (["export", "--to", "new"], one_of()),
    "export --adapter": (EXPORT, one_of()),
    "export --dtype": (EXPORT, one_of("float32", "bfloat16", "float16")),
    "report": (["report"], one_of()),
    "verify": (["verify-hf"], one_of()),
    "verify --text": (VERIFY, one_of()),
    "verify --tokenizer": (VERIFY, one_of()),
}

FOLDERS = {
    "sweep --out": ["sweep", "--cache", "cache"],
    "sweep --cache": ["sweep"],
    "capture --out": CAPTURE,
    "capture --cache": ["capture"],
    "export --to": EXPORT[:2],
}


def asked(command, option, *values, tokenizer=""):
    """The arguments of a command, an option and its values."""
    begun = [tokenizer if word == "TOKENIZER" else word for word in command]
    return [*begun, *option.split()[1:], *values]


def assert_taken_where(valid, here, arguments):
    """The command takes what is valid, refuses what is not, and leaves the folder as it was."""
    before = content(here)
    assert is_accepted(cli.run, arguments) == valid
    assert content(here) == before


@CASES
@given(option=st.sampled_from([*NUMBERS]), value=texts)
@example(option="sweep --width", value="2147483648")
@example(option="sweep --batch-size", value="9223372036854775808")
@example(option="sweep --basis random --basis-rank", value="2147483648")
@example(option="sweep --rank", value="2")
@example(option="capture --seed", value="4294967296")
@example(option="capture --learning-rate", value="inf")
@example(option="capture --num-batches", value="0")
@example(option="export --place", value="0")
@example(option="plan --num-candidates", value="7")
def test_a_number_is_taken_where_it_is_valid_and_else_refused(here, tokenizer, option, value):
    command, valid = NUMBERS[option]
    assert_taken_where(valid(value), here, asked(command, option, value, tokenizer=tokenizer))


@CASES
@given(option=st.sampled_from([*WORDS]), value=texts)
@example(option="sweep --task", value="")
@example(option="model --adapter", value="")
@example(option="model --adapter new --adapter-sites", value="(")
@example(option="export", value="x" * 5000)
@example(option="report", value="\n")
@example(option="verify --text", value="\udcff")
@example(option="verify --tokenizer", value="folder")
def test_a_word_is_taken_where_it_is_valid_and_else_refused(here, tokenizer, option, value):
    command, valid = WORDS[option]
    assert_taken_where(valid(value), here, asked(command, option, value, tokenizer=tokenizer))


@CASES
@given(option=st.sampled_from([*FOLDERS]), value=texts)
@example(option="sweep --cache", value="a\0b")
@example(option="sweep --out", value="file/below")
@example(option="export --to", value="~nobody-is-here/x")
@example(option="export --to", value="file/below")
@example(option="capture --out", value="x" * 5000)
def test_a_folder_is_taken_where_one_can_be_made_and_else_refused(here, option, value):
    def can_be_made():
        try:
            path = (here / value).resolve()
            missing = [one for one in (path, *path.parents) if not one.exists()]
        except (OSError, ValueError):
            return False
        if value.startswith("~nobody"):
            return False
        occupied = path.exists() and (not path.is_dir() or any(path.iterdir())) and not option.endswith("--cache")
        parent = missing[-1].parent if missing else path
        return not occupied and parent.is_dir()

    assume(not value.startswith("-"))  # may be an option
    assert_taken_where(can_be_made(), here, asked(FOLDERS[option], option, value))


@CASES
@given(values=st.lists(texts, max_size=3))
@example(values=["1e-3", "1e-3"])
@example(values=["3.4e38", "1e39"])
@example(values=["1e-45"])
@example(values=["1e-3", "1.0000000001e-3"])
def test_sigmas_are_taken_where_they_ascend_as_float32_and_else_refused(here, values):
    def ascend():
        try:
            with np.errstate(over="ignore", under="ignore"):
                sigmas = [float(np.float32(float(value))) for value in values]
        except ValueError:
            return False
        in_range = all(np.finfo(np.float32).tiny <= sigma < math.inf for sigma in sigmas)
        return bool(sigmas) and in_range and all(a < b for a, b in itertools.pairwise(sigmas))

    assert is_accepted(cli.run, [*SWEEP, "--sigmas", *values]) == ascend()


@CASES
@given(pairs=st.lists(st.tuples(texts, texts), min_size=1, max_size=2))
@example(pairs=[("head/kernel", "1e39")])
@example(pairs=[(".*", "1"), (".*", "2")])
@example(pairs=[("", "1")])
@example(pairs=[("nowhere", "1")])
@example(pairs=[("head/kernel", "1"), ("(", "1")])
def test_scales_are_taken_where_they_name_leaves_and_else_refused(here, pairs):
    def valid():
        try:
            numbers = [float(value) for _, value in pairs]
        except ValueError:
            return False
        in_range = all(x == 0 or 0.999e-12 <= x <= 1.001e12 for x in numbers)
        named = all(matches(trees.leaf_names(SHAPES))(pattern) for pattern, _ in pairs)
        several = len({pattern for pattern, _ in pairs}) == len(pairs)
        # The first pattern that matches counts; a later one may be left with nothing to move.
        return in_range and named and several and max(numbers) > 0 and numbers[0] > 0

    given = [f"{pattern}={value}" for pattern, value in pairs]
    assume(not any("=" in value for _, value in pairs) and not any(text.startswith("-") for text in given))
    assert is_accepted(cli.run, [*SWEEP, "--scales", *given]) == valid()


@CASES
@given(axes=st.lists(texts, max_size=3), command=st.sampled_from([SWEEP, PLAN]))
@example(axes=["1", "2"], command=SWEEP)
@example(axes=["2147483648", "1"], command=PLAN)
@example(axes=["-1", "-2"], command=SWEEP)
@example(axes=["1"], command=SWEEP)
def test_a_mesh_is_taken_where_it_is_one_and_else_refused(here, axes, command):
    valid = len(axes) == 2 and all(whole(1)(axis) for axis in axes)
    if valid and command is SWEEP:
        valid = int(axes[0]) * int(axes[1]) == len(meshes.all_devices())
    assert is_accepted(cli.run, [*command, "--mesh", *axes]) == valid


@CASES
@given(name=st.sampled_from(["trajectory-prefix", "krylov-recovery"]), value=texts)
@example(name="trajectory-prefix", value="-1")
@example(name="trajectory-prefix", value="2147483648")
def test_a_number_of_an_experiment_is_taken_where_it_is_valid_and_else_refused(here, name, value):
    out = ["--cache", "cache", "--out", f"run-{len(list(here.iterdir()))}"]
    given = is_accepted(commands.run, [f"{name}:smoke", "--num-seeds", value, *out], "experiments")
    assert given == whole(1)(value)


@CASES
@given(name=texts, option=st.sampled_from(["", "--out", "--cache"]), value=texts)
@example(name="all:nothing", option="", value="")
@example(name="report", option="", value="")
def test_an_experiment_that_is_none_is_refused(here, name, option, value):
    arguments = [name, *([option, value] if option else [])]
    if name not in ("", "-h", "--help"):
        assert not is_accepted(commands.run, arguments, "experiments")
