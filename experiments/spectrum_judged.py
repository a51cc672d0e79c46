"""How the spectra of language models' gradients are judged."""

from collections.abc import Iterator, Sequence
from typing import Any

from lacuna.reports.claims import Claim, Spread, seeds_of, spread, verdict
from lacuna.reports.records import Place, Record, select

LEAST_P = 0.01
"""Above it the labels of the tasks may as well be shuffled, and a participation ratio is one of noise."""

MOST_CONTRAST = 0.5
"""Largest share of the scatter that may be the contrast of texts with digits, for few directions to say anything."""

PAPER = {
    "full": "not to be told from sampling noise on Qwen-7B; of smaller models unknown",
    "merged": "not to be told from sampling noise on Qwen-7B; of smaller models unknown",
    "lora": "low rank (strong on LoRA)",
}

ARMS = {
    "full": "gradients of all parameters",
    "merged": "gradients of all parameters with a warm adapter added in",
    "lora": "gradients of a warm adapter",
}


def points(records: Sequence[Record]) -> list[dict[str, Place]]:
    """Every model and arm, in the order of the records."""
    found = dict.fromkeys((record.where["model"], record.where["arm"]) for record in records)
    return [{"model": model, "arm": arm} for model, arm in found]


def settings(records: Sequence[Record]) -> Iterator[dict[str, Place]]:
    """Every model, arm, set of tasks and scaling."""
    for point in points(records):
        for tasks in ("all", "mappings"):
            for scaling in ("raw", "normalised"):
                yield {**point, "tasks": tasks, "scaling": scaling}


def num_tasks(records: Sequence[Record], where: dict[str, Place]) -> int:
    """T, of which as many energies tell."""
    seed = seeds_of(records)[0]
    return len(select(records, "energy", **where, seed=seed))


def claims(records: Sequence[Record], config: Any) -> list[Claim]:
    """One row for each model, arm, set of tasks and scaling."""
    rows = []
    for where in settings(records):
        count = num_tasks(records, where)
        ratio, p, share = (
            spread(records, quantity, **where) for quantity in ("participation_ratio", "p_value", "share_of_energy")
        )
        among = f"{count} tasks" if where["tasks"] == "all" else f"the {count} mappings alone"
        is_scatter = max(p.values) < LEAST_P
        contrast = spread(records, "share_of_contrast", **where)
        control = f"permuted labels: p {p}, largest {max(p.values):.2g}"
        control += "" if is_scatter else ": not to be told from sampling noise"
        control += f"; texts against digits hold {contrast} of the scatter" if contrast.values else ""
        is_more = not contrast.values or contrast.mean <= MOST_CONTRAST
        rows.append(
            Claim(
                "C1",
                f"{where['model']}, {ARMS[str(where['arm'])]}: those of {among} differ in few directions "
                f"({where['scaling']})",
                PAPER[str(where["arm"])],
                f"participation ratio {ratio} of at most {count - 1}, by bootstrap {between(records, where)}; "
                f"share of all energy {share}",
                control,
                verdict(is_scatter and ratio.mean < count / 2, is_more, len(seeds_of(records))),
            )
        )
    return rows


def between(records: Sequence[Record], where: dict[str, Place], quantity: str = "participation_ratio") -> str:
    """The bootstrap's interval: means over seeds of its ends."""
    low, high = (spread(records, f"{quantity}_{end}", **where).mean for end in ("low", "high"))
    return f"{low:.2g} to {high:.2g}"


def worst(records: Sequence[Record], quantity: str, **where: Place) -> float:
    """The largest value over the seeds."""
    return max(Spread(tuple(record.value for record in select(records, quantity, **where))).values)
