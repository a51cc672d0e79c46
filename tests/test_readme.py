"""The README's code runs as it is written."""

import re
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_snippets_of_the_readme_run_one_after_the_other(capsys):
    snippets = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(snippets) == 4
    exec("\n".join(snippets), {})
    search_line, prediction, best_sigma, geometry_line, in_basis = capsys.readouterr().out.splitlines()
    base, best, gain = (float(x) for x in re.findall(r"\d+\.\d+", search_line))
    assert gain > 0
    assert abs(base - best - gain) < 2e-4  # four decimals of each
    assert float(prediction) > 0
    assert float(best_sigma.split()[0]) > 0
    mass, level = (float(x) for x in re.findall(r"\d+\.\d+", geometry_line))
    assert 0 < level <= 4 / 24
    assert level < mass <= 1
    expected, found = (float(x) for x in re.findall(r"\d+\.\d+", in_basis))
    assert 0.5 < found / expected < 1.5


def test_the_readme_sets_up_with_two_commands():
    assert len(re.findall(r"```sh\n[^\n]*\n```", README)) == README.count("```sh") == 2


def test_every_file_that_the_readme_shows_is_there():
    for target in re.findall(r"\]\(((?!http)[^)]+)\)", README):
        assert (Path(__file__).parent.parent / target).exists(), target
