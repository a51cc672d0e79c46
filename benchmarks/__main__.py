"""`python -m benchmarks NAME`: measure and write `benchmarks/results/NAME.md`."""

import argparse
import importlib
from pathlib import Path

import jax

from lacuna import meshes
from lacuna.reports import rundir

NAMES = ("lanczos", "pipelines", "language_models", "adapters", "checkpoints", "sweeps", "steering", "language_sweeps")


def main() -> None:
    """Run one benchmark and write its report."""
    parser = argparse.ArgumentParser(description="Measure, and write benchmarks/results/NAME.md.")
    parser.add_argument("name", choices=NAMES)
    name = parser.parse_args().name
    module = importlib.import_module(f"benchmarks.{name}")
    machine = rundir.environment(meshes.describe(meshes.candidate_mesh()))
    title, _, about = (module.__doc__ or "").partition("\n")
    versions = ", ".join(f"{package} {version}" for package, version in machine["packages"].items())
    where = f"Machine: {machine['machine']}; {jax.default_backend()}. {versions}."
    head = [f"# {title}", about.rstrip(), "", where, ""]
    target = Path(__file__).parent / "results" / f"{name}.md"
    text = "\n".join([*head, *module.report()])
    target.parent.mkdir(exist_ok=True)
    target.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
