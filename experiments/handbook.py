"""The parts of the README that are made of what they speak of: claims from the gallery, errors from the code.

`python -m experiments handbook` writes them; a test compares them with what the gallery and the code say.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lacuna.reports.claims import table

ROOT = Path(__file__).parent.parent
GALLERY = ROOT / "experiments" / "results"
MADE = "written by `python -m experiments handbook`"


class GalleryRow(NamedTuple):
    """One row of a report's claim table.

    Attributes:
      experiment: name of its folder in the gallery.
      name: of the claim, such as `C4`.
      claim: in a sentence.
      paper: the paper's figure.
      ours: ours, with its spread over seeds.
      verdict: by rule.
    """

    experiment: str
    name: str
    claim: str
    paper: str
    ours: str
    verdict: str


def gallery_rows(gallery: Path = GALLERY) -> list[GalleryRow]:
    """Every row of every report that judges claims, by the number of the claim."""
    rows = []
    for report in sorted(gallery.glob("*/report.md")):
        for line in report.read_text(encoding="utf-8").splitlines():
            if re.match(r"\| C\d+ \|", line):
                cells = [cell.replace("\\|", "|") for cell in re.split(r" (?<!\\)\| ", line.strip("| "))]
                name, claim, paper, ours, _, verdict = cells
                rows.append(GalleryRow(report.parent.name, name, claim, paper, ours, verdict.strip("*")))
    return sorted(rows, key=lambda row: (int(row.name[1:]), row.experiment))


def sentences() -> dict[str, str]:
    """Each claim in a sentence, as the experiment that is made for it begins."""
    found: dict[str, str] = {}
    for file in sorted((ROOT / "experiments").glob("*.py")):
        head = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").splitlines()[:1]
        match = re.match(r"(C\d+)(?:, C\d+)*: (.*)\.$", head[0] if head else "")
        if match and len(match[2]) < len(found.get(match[1], match[2] + " ")):  # the shorter one is the general one
            found[match[1]] = match[2]
    return found


def claims_block() -> str:
    """A line for each claim and experiment, and every row behind it."""
    rows, told = gallery_rows(), sentences()
    groups: dict[tuple[str, str], list[GalleryRow]] = {}
    for row in rows:
        groups.setdefault((row.name, row.experiment), []).append(row)
    lines = []
    for (name, experiment), group in groups.items():
        verdicts = Counter(row.verdict for row in group)
        papers = "; ".join(dict.fromkeys(row.paper for row in group))
        lines.append(
            [
                name,
                told[name],
                papers,
                ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items()),
                f"[{experiment}](experiments/results/{experiment}/report.md)",
            ]
        )
    short = table(["", "claim", "the paper's figure", "searched, measured and judged here: rows", "report"], lines)
    every = [[row.name, row.claim, row.ours.partition(";")[0], row.verdict] for row in rows]
    whole = table(["", "claim", "ours, mean (range over seeds)", "verdict"], every)
    summary = f"<details><summary>All {len(rows)} rows, with what was found</summary>"
    return f"{short}\n\n{summary}\n\n{whole}\n\n</details>"


class Said(NamedTuple):
    """A sentence that the code can say.

    Attributes:
      module: file that says it, from the root.
      line: where.
      sentence: what was asked, `…` for what varies; empty where it repeats another's sentence.
      hint: what it says to try; empty where the sentence is its own cure.
    """

    module: str
    line: int
    sentence: str
    hint: str


def kinds() -> set[str]:
    """Names of the package's errors, those that a module defines for itself too."""
    files = [ast.parse(file.read_text(encoding="utf-8")) for file in sorted((ROOT / "lacuna").rglob("*.py"))]
    classes = [node for tree in files for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    found = {"LacunaError"}
    while (
        more := {one.name for one in classes if {base.id for base in one.bases if isinstance(base, ast.Name)} & found}
        - found
    ):
        found |= more
    return found


THEMES: dict[str, tuple[str, str]] = {
    "Interruptions, memory, disks and devices": (
        "nothing that was scored is lost: `lacuna sweep --resume RUN` goes on.",
        "cli/__init__ cli/commands hosts meshes search/ledger",
    ),
    "Options of a search": (
        "give what the first half of the sentence asks for; `lacuna sweep --help` says what every option takes.",
        "cli/options cli/points cli/plan keys search/families search/scaling search/subspace search/sweep",
    ),
    "Run folders": (
        "name the folder that the command printed. What is in it was left alone.",
        "cli/sweep cli/export_candidate reports search/run search/run_folder",
    ),
    "Model folders": (
        "take a folder as `save_pretrained` writes it, whole; `--ignore FIELD` passes over a field of `config.json` "
        "that you know to change nothing.",
        "checkpoints cli/export cli/verify",
    ),
    "Adapters": (
        "take an adapter as PEFT writes it: plain LoRA, on linear maps of the blocks of this very model.",
        "checkpoints/adapters checkpoints/peft_config models/lora",
    ),
    "Tasks and texts": (
        "the sentence names the file and, where it can, the row and the column: mend it there.",
        "setups tasks",
    ),
    "Captures": (
        "give what the first half of the sentence asks for; `lacuna capture --help` says what every option takes.",
        "captures cli/capture cli/capture_points",
    ),
    "Calls in Python": (
        "give the argument as the first half of the sentence asks for it; the docstring of the function says its "
        "shape. A command gives few of these.",
        "derivatives geometry models search theory training trees",
    ),
}
"""Heading, the cure where a sentence gives none itself, and modules; of a path the longest prefix counts."""


def theme_of(module: str) -> str:
    """The heading under which a module's sentences stand."""
    name = module.removeprefix("lacuna/").removesuffix(".py")
    fits = [
        (len(prefix), theme)
        for theme, (_, prefixes) in THEMES.items()
        for prefix in prefixes.split()
        if f"{name}/".startswith(f"{prefix}/")
    ]
    return max(fits)[1]


def reachable() -> list[Path]:
    """Modules of the package that the command line imports, itself first."""
    package, found = ROOT / "lacuna", []
    waiting = [package / "cli" / "__init__.py"]
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.append(file)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names:
                at = ROOT / name.replace(".", "/")
                waiting += [path for path in (at.with_suffix(".py"), at / "__init__.py") if path.is_file()]
    return [file for file in found if package in file.parents]


def said_in(file: Path, kinds: set[str]) -> Iterator[Said]:
    """What a module says: its errors, and the complaints of the command line."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for function in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
        named = {
            target.id: node.value
            for node in ast.walk(function)
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for call in _own_calls(function):
            kind = call.func.id if isinstance(call.func, ast.Name) else ""
            if kind not in kinds | {"complain"} or not call.args:
                continue
            first = call.args[0]
            asked = _text(named.get(first.id, first) if isinstance(first, ast.Name) else first)
            hints = [_text(keyword.value) for keyword in call.keywords if keyword.arg == "hint"]
            if kind == "complain":
                asked, _, hint = asked.removeprefix("lacuna: ").partition(" Try: ")
                hints = [hint]
            sentence = asked.strip(" .;:") if asked.strip("… .;:") else ""
            yield Said(str(file.relative_to(ROOT)), call.lineno, sentence, hints[0].rstrip(" .") if hints else "")


def _own_calls(function: ast.FunctionDef) -> Iterator[ast.Call]:
    """Calls in a function, without those of functions inside of it."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Call):
            yield node
        if not isinstance(node, ast.FunctionDef):
            waiting += ast.iter_child_nodes(node)


def _text(node: ast.AST) -> str:
    """A string as far as it is written in the code, `…` for the rest."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return re.sub("…+", "…", "".join(_text(part) for part in node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return re.sub("…+", "…", _text(node.left) + _text(node.right))
    if isinstance(node, ast.IfExp):
        return " or ".join(dict.fromkeys(filter(None, (_text(node.body), _text(node.orelse)))))
    return "…"


def errors_block() -> str:
    """Every sentence by theme, with what to try."""
    by_theme: dict[str, dict[str, list[str]]] = {theme: {} for theme in THEMES}
    known = kinds()
    for file in reachable():
        for said in said_in(file, known):
            if said.sentence:
                hints = by_theme[theme_of(said.module)].setdefault(said.sentence, [])
                hints += [said.hint] if said.hint.strip("…") and said.hint not in hints else []
    parts = []
    for theme, (cure, _) in THEMES.items():
        lines = [[_plain(sentence), _plain("; or ".join(hints))] for sentence, hints in sorted(by_theme[theme].items())]
        parts += [
            f"<details><summary>{theme} ({len(lines)})</summary>",
            f"Where the second column is empty: {cure}",
            table(["it says", "try"], lines),
            "</details>",
        ]
    return "\n\n".join(parts)


def _plain(text: str) -> str:
    """As a reader sees it on the screen, not as markdown has it."""
    return " ".join(re.sub(r"<(?=[a-z/])", "&lt;", text).replace("*", "\\*").split())


BLOCKS = {"claims": claims_block, "errors": errors_block}


def with_blocks(page: str) -> str:
    """The README with its blocks made anew."""
    for name, make in BLOCKS.items():
        begin, end = f"<!-- {name}: {MADE} -->", f"<!-- {name}: end -->"
        head, _, rest = page.partition(begin)
        _, found, tail = rest.partition(end)
        assert found, f"the README must have a place between {begin} and {end}"
        page = f"{head}{begin}\n\n{make()}\n\n{end}{tail}"
    return page


def write(readme: Path = ROOT / "README.md") -> Path:
    """Write the blocks of the README anew; returns its path."""
    readme.write_text(with_blocks(readme.read_text(encoding="utf-8")), encoding="utf-8")
    return readme
