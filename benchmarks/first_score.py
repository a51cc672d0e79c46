"""A user's script: seconds from the start of the process to the first score of a sweep, step by step.

    python -m benchmarks.first_score BEGAN [FILE.npz]

Started by `benchmarks.sweeps`, which hands over its clock, because what the interpreter takes to start is part
of the wait. Without a file it is a small network and a loss of the user's own, with one it is the synthetic
transformer, its parameters and its batch read from there. Every import stands where the script needs it.
"""

import sys
import time
from itertools import pairwise
from typing import Any


def small() -> tuple[Any, Any, Any, Any]:
    """Loss, parameters, batch and law of the noise of a network of the user's own."""
    import jax.numpy as jnp
    import numpy as np

    from lacuna import search

    rng = np.random.default_rng(0)
    params = {name: rng.normal(0, 0.2, shape).astype("f4") for name, shape in (("in", (16, 32)), ("out", (32, 4)))}
    batch = rng.normal(size=(64, 16)).astype("f4"), rng.normal(size=(64, 4)).astype("f4")

    def loss(params: Any, batch: Any) -> Any:
        inputs, targets = batch
        return jnp.mean((jnp.tanh(inputs @ params["in"]) @ params["out"] - targets) ** 2)

    return loss, params, batch, search.gaussian()


def from_file(path: str) -> tuple[Any, Any, Any, Any]:
    """The same of the synthetic transformer; leaves are kept under their names, `batch/` before those of the batch."""
    import numpy as np

    from lacuna import search
    from lacuna.models.synthetic import SyntheticSpec, synthetic
    from lacuna.tasks import digits
    from lacuna.tasks.task import Batch

    model = synthetic(SyntheticSpec(digits.vocab_size))
    params: dict[str, Any] = {}
    with np.load(path) as file:
        batch = Batch(file["batch/tokens"], file["batch/answer"])
        for name in file.files:
            *folders, last = name.split("/")
            if folders != ["batch"]:
                inner = params
                for folder in folders:
                    inner = inner.setdefault(folder, {})
                inner[last] = file[name]
    task = digits.digit_task("sort", model.apply, seed=0, batch_size=len(batch.tokens))
    return task.objective.loss, params, batch, search.gaussian(stacked=model.stacked)


def main() -> None:
    """Print the seconds of every step, in order."""
    marks = [float(sys.argv[1]), time.monotonic()]
    import jax

    marks.append(time.monotonic())
    from lacuna import search

    marks.append(time.monotonic())
    loss, params, batch, family = from_file(sys.argv[2]) if len(sys.argv) > 2 else small()
    params, batch = jax.device_put((params, batch))
    marks.append(time.monotonic())

    def progress(done: int, total: int) -> None:
        if len(marks) < 6 or (done and len(marks) < 7):  # compiled; the first scores
            marks.append(time.monotonic())

    # The smallest chunk: what is asked is when the first score comes, not how many come with it.
    search.run_sweep(loss, params, batch, search.Sweep(family, (1e-3,), 8, chunk=1), progress=progress)
    print(*(after - before for before, after in pairwise(marks)))


if __name__ == "__main__":
    main()
