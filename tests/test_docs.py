"""Every public name says what it is: arguments, shapes, errors, units and sources; and the examples are true.

*Named* is what is defined without an underscore; *public* what a package's `__init__` exports, or a module of the
package itself defines. What is named says what it is; what is public also says how it is called. Docstrings are read
from the source, so that no decorator hides them.
"""

import ast
import doctest
import importlib
import itertools
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from experiments import handbook

ROOT = Path(__file__).parent.parent
TREES = {str(file.relative_to(ROOT)): ast.parse(file.read_text()) for file in sorted((ROOT / "lacuna").rglob("*.py"))}
KINDS = handbook.kinds()

SOURCED = ("geometry/", "theory/", "steering/", "captures/", "derivatives.py")
"""Where the mathematics is: each function names its source, or its module does."""

UNITS = {
    "angle": "radian",
    "drift": "radian",
    "nats": "nats",
    "bytes": "byte",
    "gain": "loss",
    "sigma": "unit|coordinate",
}
"""What a name with the one in it must say."""


class Named(NamedTuple):
    """A name that is defined.

    Attributes:
      file: from the root.
      name: dotted, of a method.
      node: its definition.
      doc: its docstring, empty where it has none.
    """

    file: str
    name: str
    node: ast.FunctionDef | ast.ClassDef
    doc: str

    def __str__(self):
        return f"{self.file}: {self.name}"


def named(file, node, prefix=""):
    """Functions, classes and their methods."""
    for one in node.body:
        if isinstance(one, (ast.FunctionDef, ast.ClassDef)) and not one.name.startswith("_"):
            yield Named(file, prefix + one.name, one, ast.get_docstring(one) or "")
            if isinstance(one, ast.ClassDef):
                yield from named(file, one, f"{one.name}.")


def exported():
    """File and name of what the packages export."""
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if file.endswith("__init__.py") and isinstance(node, ast.ImportFrom):
                yield from ((f"{node.module.replace('.', '/')}.py", alias.name) for alias in node.names if alias.asname)


NAMED = [one for file, tree in TREES.items() for one in named(file, tree)]
EXPORTED = set(exported())
PUBLIC = [
    one
    for one in NAMED
    if (one.file, one.name.partition(".")[0]) in EXPORTED or (one.file.count("/") == 1 and "__init__" not in one.file)
]


def functions(names):
    return [one for one in names if isinstance(one.node, ast.FunctionDef)]


def check(found):
    found = list(found)
    assert not found, "\n".join(["", *map(str, found)])


def sections(doc):
    """Its Google sections: name and text."""
    parts = re.split(r"^(Args|Returns|Raises|Attributes|Source):", doc, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def explained(doc, section):
    """The names that a section explains."""
    lines = re.findall(r"^  (\*{0,2}\w[\w, *]*):", sections(doc).get(section, ""), re.MULTILINE)
    return [name.strip(" *") for line in lines for name in line.split(",")]


def parameters(node):
    """All of them, without the receiver and what a decorator gives."""
    own = node.args
    every = [*own.posonlyargs, *own.args, *own.kwonlyargs, *filter(None, (own.vararg, own.kwarg))]
    return [one for one in every if one.arg not in ("self", "cls", "by_row") and not one.arg.startswith("_")]


INTERFACE = {one.name.partition(".")[2] for one in NAMED if one.name.startswith("Family.")}.union(
    *(explained(one.doc, "Attributes") for one in NAMED if one.name == "Family")
)
"""What every law of noise has; each is explained once."""


def raised(node):
    """Errors of the package that a function raises itself."""
    waiting, kinds = list(node.body), set()
    while waiting:
        one = waiting.pop()
        if isinstance(one, ast.Raise) and isinstance(one.exc, ast.Call) and isinstance(one.exc.func, ast.Name):
            kinds.add(one.exc.func.id)
        if not isinstance(one, (ast.FunctionDef, ast.Lambda, ast.ClassDef)):
            waiting += ast.iter_child_nodes(one)
    return sorted(kinds & KINDS)


def test_there_is_much_to_read():
    assert len(PUBLIC) > 300
    assert {"run_sweep", "capture", "Basis", "load_hf", "gradient", "Trajectory"} <= {one.name for one in PUBLIC}


def test_every_module_says_what_it_is():
    check([file for file, tree in TREES.items() if not ast.get_docstring(tree)])


def test_every_name_says_what_it_is():
    def is_told_elsewhere(one):
        return one.name.partition(".")[2] in INTERFACE and not one.name.startswith("Family.")

    overloads = [one for one in functions(NAMED) if any("overload" in ast.unparse(d) for d in one.node.decorator_list)]
    check([one for one in NAMED if not one.doc.strip() and one not in overloads and not is_told_elsewhere(one)])


def test_arguments_that_are_explained_are_those_that_there_are():
    check(
        f"{one} explains {told} and has {there}"
        for one in functions(PUBLIC)
        if (told := explained(one.doc, "Args")) and told != (there := [arg.arg for arg in parameters(one.node)])
    )


def test_many_arguments_are_explained():
    many = [one for one in functions(PUBLIC) if len(parameters(one.node)) > 3]
    check(one for one in many if "Args" not in sections(one.doc) and one.name.partition(".")[2] not in INTERFACE)


def test_fields_of_public_classes_are_explained():
    found = []
    for one in PUBLIC:
        if isinstance(one.node, ast.ClassDef) and not one.name.startswith("Family"):
            body = one.node.body
            fields = {line.target.id for line in body if isinstance(line, ast.AnnAssign)}
            beside = {
                line.target.id
                for line, then in itertools.pairwise(body)
                if isinstance(line, ast.AnnAssign) and isinstance(then, ast.Expr)
            }
            left = (
                {name for name in fields if not name.startswith("_")} - beside - set(explained(one.doc, "Attributes"))
            )
            found += [f"{one} leaves out {', '.join(sorted(left))}"] * bool(left)
    check(found)


def test_shapes_are_named():
    bare = re.compile(r"(?<![\w.\[])(jax\.Array|Array|np\.ndarray)(?![\w,])")
    check(
        one
        for one in functions(PUBLIC)
        if any(
            bare.search(ast.unparse(annotation))
            for annotation in [*(arg.annotation for arg in parameters(one.node)), one.node.returns]
            if annotation is not None
        )
        and not re.search(r"shape|\[", one.doc)
        and one.name.partition(".")[2] not in INTERFACE
    )


def test_errors_that_a_function_raises_are_named():
    check(
        f"{one} raises {kind}"
        for one in functions(PUBLIC)
        for kind in raised(one.node)
        if not re.search(rf"\b(Raises?|LacunaError|{kind})\b", one.doc)
    )


def test_units_are_named():
    check(
        f"{one} says nothing of {unit}"
        for one in PUBLIC
        for word, unit in UNITS.items()
        if word in one.name.lower() and not re.search(unit, one.doc.lower())
    )


def test_sources_are_named():
    def is_told(one):
        return "Source:" in one.doc or "Source:" in ast.get_docstring(TREES[one.file])

    check(
        one
        for one in functions(PUBLIC)
        if "." not in one.name and one.file.removeprefix("lacuna/").startswith(SOURCED) and not is_told(one)
    )


WITH_EXAMPLES = [file for file in TREES if ">>> " in (ROOT / file).read_text()]


@pytest.mark.parametrize("file", WITH_EXAMPLES)
def test_examples_are_true(file):
    module = importlib.import_module(file.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed


def test_there_are_examples():
    assert len(WITH_EXAMPLES) >= 5
