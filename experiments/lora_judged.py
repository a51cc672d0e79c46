"""How recoveries of adapters are judged: the claims by their rules, and the two answers a reader needs."""

from collections.abc import Iterator, Sequence
from typing import Any

from experiments.lora_starts import NUM_PARTS
from experiments.prefixes import best_static
from lacuna.reports.claims import Claim, Spread, seeds_of, spread, verdict
from lacuna.reports.records import Place, Record

MOST, TWICE = 0.6, 2.0
"""Least plain mass, and least held-out mass in units of the best static basis."""

REGAINED = 0.5
"""Least share of what was forgotten that a recovery must bring back, for its displacement to mean anything."""


def points(records: Sequence[Record]) -> list[dict[str, Place]]:
    """Every model and pair, in the order of the records."""
    found = dict.fromkeys((record.where["model"], record.where["pair"]) for record in records)
    return [{"model": model, "pair": pair} for model, pair in found]


def runs(records: Sequence[Record]) -> Iterator[dict[str, Place]]:
    """Every model, pair and optimiser."""
    for point in points(records):
        of_point = (r for r in records if all(r.where[k] == v for k, v in point.items()))
        for optimiser in dict.fromkeys(r.where["optimiser"] for r in of_point if "optimiser" in r.where):
            yield {**point, "optimiser": optimiser}


def claims(records: Sequence[Record], config: Any) -> list[Claim]:
    """C12 for each model, pair and optimiser; C3 and C1 for each model and pair."""
    rows = [_c12(records, config, run) for run in runs(records)]
    for point in points(records):
        rows.append(_c3(records, config, point))
        # Two texts differ in one direction, however they are cut: there low rank would say nothing.
        if point["pair"] == "mappings":
            rows += [_c1(records, point, scaling) for scaling in ("raw", "normalised")]
    return rows


def regained(records: Sequence[Record], run: dict[str, Place]) -> Spread:
    """What a recovery brings back, as a share of what was forgotten: losses on held-out rows, seed by seed.

    0 where nothing was forgotten.
    """
    point = {name: run[name] for name in ("model", "pair")}
    learnt = spread(records, "nats", point="learnt", **point).values
    start, end = (spread(records, name, **run).values for name in ("start_loss", "end_loss"))
    each = zip(start, end, learnt, strict=True)
    return Spread(tuple((s - e) / (s - low) if s > low else 0.0 for s, e, low in each))


def _c12(records: Sequence[Record], config: Any, run: dict[str, Place]) -> Claim:
    m = config.rank
    plain, held_out, remainder, functional, own = (
        spread(records, q, m=m, **run) for q in ("plain", "held_out", "remainder", "functional", "own_drop")
    )
    longer = spread(records, "plain", m=config.max_rank, **run)
    best, static = best_static(records, **run)
    _, later = best_static(records, "static_of_remainder", **run)
    back = regained(records, run)
    return Claim(
        "C12",
        f"{run['model']}, {run['pair']}: the first {m} of {config.start.recovery_steps} {run['optimiser']} updates "
        "span most of the recovery",
        "0.77 (mass or norm: unknown)",
        f"held-out {held_out}; plain {plain}, norm {plain.mean**0.5:.3g}; the first {config.max_rank}: plain {longer}, "
        f"norm {longer.mean**0.5:.3g}",
        f"best static ({best}) {static:.3g}; remainder {remainder}, the best static basis there "
        f"{later:.3g}; functional {functional}, of which the {m} steps alone make {own}; "
        f"the whole recovery regains {back} of what was forgotten",
        verdict(plain.mean >= MOST, held_out.mean >= TWICE * static and back.mean >= REGAINED, len(seeds_of(records))),
    )


def _c3(records: Sequence[Record], config: Any, point: dict[str, Place]) -> Claim:
    last = config.drift_steps[-1]
    now, ceiling = (spread(records, f"drift_{q}", step=last, **point) for q in ("with_start", "split_half"))
    level = spread(records, "drift_random_level", step=last, **point).mean
    return Claim(
        "C3",
        f"{point['model']}, {point['pair']}: the gradient basis of the adapter drifts within {last} steps of "
        f"{config.optimisers[0]}",
        "it drifts within 100 steps",
        f"overlap with the start {now}",
        f"two halves of the data at step {last}: {ceiling}; random {level:.1g}",
        verdict(now.mean < 0.5 * ceiling.mean, ceiling.mean > 0.1, len(seeds_of(records))),
    )


def _c1(records: Sequence[Record], point: dict[str, Place], scaling: str) -> Claim:
    where: dict[str, Place] = {**point, "point": "forgotten", "scaling": scaling}
    ratio, p = (spread(records, quantity, **where) for quantity in ("participation_ratio", "p_value"))
    num_tasks = 2 * NUM_PARTS
    return Claim(
        "C1",
        f"{point['model']}, {point['pair']}: adapter gradients of {num_tasks} tasks differ in few directions at the "
        f"forgotten point ({scaling})",
        "low rank (strong on LoRA)",
        f"participation ratio {ratio} of at most {num_tasks - 1}",
        f"permuted labels: p {p}, largest {max(p.values):.2g}",
        verdict(ratio.mean < num_tasks / 2, max(p.values) < 0.01, len(seeds_of(records))),
    )


def answers(records: Sequence[Record], config: Any) -> list[list[str]]:
    """For each run: does the prefix hold most of the displacement, and does it say more than its own steps?"""
    lines, m = [], config.rank
    for run in runs(records):
        plain, held_out, remainder = (spread(records, q, m=m, **run) for q in ("plain", "held_out", "remainder"))
        best, static = best_static(records, **run)
        _, best_later = best_static(records, "static_of_remainder", **run)
        most = f"{'yes' if plain.mean >= MOST else 'no'}: mass {plain.mean:.2f}, norm {plain.mean**0.5:.2f}"
        other = held_out.mean >= TWICE * static
        later = remainder.mean >= TWICE * best_later
        word = {(True, True): "yes", (False, False): "no"}.get((other, later), "in part")
        beyond = (
            f"{word}: they hold {held_out.mean:.2f} of another run, {_times(held_out.mean, static)} the best static "
            f"basis ({best}), and {remainder.mean:.2f} of their own run's later path, "
            f"{_times(remainder.mean, best_later)} the best there"
        )
        lines.append([str(run["model"]), str(run["pair"]), str(run["optimiser"]), most, beyond])
    return lines


def _times(one: float, other: float) -> str:
    return f"{one / other:.1f} times" if other > 0 else "beside nothing of"
