"""Ctrl-C is heeded from the first moment: nothing that takes time is imported before the handlers stand."""

import signal
import subprocess
import sys
import time

import pytest

SLOW = {"tyro", "rich", "numpy", "jax", "transformers"}


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("module", ["lacuna.cli", "experiments.__main__"])
def test_nothing_slow_is_imported_before_a_signal_is_heeded(module):
    done = python(f"import {module}, sys; print(*sorted({SLOW!r} & sys.modules.keys()))")
    assert (done.stdout, done.stderr, done.returncode) == ("\n", "", 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_command_is_read_is_one_word(number):
    done = python(
        "import os, lacuna.cli\n"
        f"lacuna.cli.run = lambda arguments: os.kill(os.getpid(), {int(number)})\n"
        "lacuna.cli.main()"
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", "Interrupted.\n", 128 + number)


def test_a_signal_while_a_folder_is_written_leaves_nothing_of_it(tmp_path):
    done = python(
        "import os, signal, lacuna.cli\n"
        "from pathlib import Path\n"
        "from lacuna.checkpoints.whole_folder import whole_folder\n"
        "def run(arguments):\n"
        f"    with whole_folder(Path({str(tmp_path)!r}) / 'new', replace=False) as unfinished:\n"
        "        (unfinished / 'half').write_text('half')\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "lacuna.cli.run = run\n"
        "lacuna.cli.main()"
    )
    assert (done.stderr, done.returncode) == ("Interrupted.\n", 130)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["--help"], ["capture", "--help"], ["report", "run"]])
def test_who_has_read_enough_gets_no_complaint(words):
    told = "import lacuna.cli.report\nlacuna.cli.report.report = lambda command, console: console.print('x')"
    code = f"import sys, lacuna.cli\n{told}\nsys.argv = ['lacuna', *{words}]\nlacuna.cli.main()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True) as one:
        one.stdout.close()
        assert one.stderr.read() == ""
    assert one.returncode == 128 + signal.SIGPIPE


ALONE = ["lacuna", "sweep", "--coordinator", "127.0.0.1:1", "--num-processes", "2", "--process-id", "1"]


def test_a_process_that_waits_for_the_others_heeds_a_signal():
    code = f"import sys, lacuna.cli\nsys.argv = {ALONE}\nlacuna.cli.main()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True) as one:
        assert one.stdout.readline() == "Waiting for the other processes of the run ...\n"
        time.sleep(0.5)
        one.send_signal(signal.SIGTERM)
        try:
            said = one.communicate(timeout=20)[1]
        finally:
            one.kill()
    assert (one.returncode, said.splitlines()[-1]) == (143, "Interrupted.")


def test_a_process_that_nobody_joins_ends_with_a_sentence():
    soon = "import lacuna.hosts\nlacuna.hosts.WAIT_S = 1"
    done = python(f"{soon}\nimport sys, lacuna.cli\nsys.argv = {ALONE}\nlacuna.cli.main()")
    assert done.returncode == 2
    assert "the processes of a run must find each other; got no answer within 1 s" in done.stderr
    assert "stack trace" not in done.stderr


def test_a_name_that_no_terminal_shows_is_printed_all_the_same():
    done = python("import sys, lacuna.cli\nsys.argv = ['lacuna', 'report', '\\udcff']\nlacuna.cli.main()")
    assert done.returncode == 2
    assert "\\udcff/records.jsonl must be a file of records" in done.stderr
