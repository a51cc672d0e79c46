"""The rule for the cosines of shifts and contrasts, and the level that is judged."""

from collections.abc import Sequence

from lacuna.reports.claims import Claim, Spread, seeds_of, spread, verdict
from lacuna.reports.records import Place, Record, select
from lacuna.steering.cosines import SHUFFLED

READOUT = "class_difference"
"""That is judged: what both kinds of questions share in a shift, the pull towards either answer, is not in it."""

LEAST_P = 0.01

RADII = (1e-5, 1e-4, 1e-3, 1e-2)
"""Of steps whose finite shift is compared with the exact one."""


def chosen_level(records: Sequence[Record], seed: int) -> int:
    """The level with the largest |z| on the questions to choose on, at the last token of the prompt."""
    where: dict[str, Place] = {"seed": seed, "part": "chosen on", "over": "events", "back": 0}
    found = select(records, "z", readout=READOUT, shuffled="gradient", **where)
    return int(max(found, key=lambda record: abs(record.value)).where["level"])


def at_chosen(records: Sequence[Record], quantity: str, **where: Place) -> Spread:
    """A quantity at each seed's chosen level and the last token of the prompt."""
    values = [
        record.value
        for seed in seeds_of(records)
        for record in select(records, quantity, seed=seed, level=chosen_level(records, seed), back=0, **where)
    ]
    return Spread(tuple(values))


def _stands_out(records: Sequence[Record], **where: Place) -> bool:
    """Whether in every seed labels are told apart from shuffled ones, and lie further along the contrast than they."""
    p = spread(records, "p_of_maximum", back=0, **where)
    return max(p.values) < LEAST_P and min(at_chosen(records, "z", **where).values) > 0


def claims(records: Sequence[Record]) -> list[Claim]:
    """One row."""
    judged: dict[str, Place] = {"part": "other events", "over": "events", "readout": READOUT}
    of_gradient, of_pipeline = (
        spread(records, "p_of_maximum", back=0, shuffled=shuffled, **judged) for shuffled in SHUFFLED
    )
    stands_out, control = (_stands_out(records, shuffled=shuffled, **judged) for shuffled in SHUFFLED)
    cosine, z, null, deviation = (
        at_chosen(records, quantity, shuffled="gradient", **judged)
        for quantity in ("cosine", "z", "null_mean", "null_deviation")
    )
    same = at_chosen(records, "cosine", part="fit", over="events", readout=READOUT, shuffled="gradient")
    together = at_chosen(records, "null_mean", shuffled="pipeline", **judged)
    wide = at_chosen(records, "null_deviation", shuffled="pipeline", **judged)
    levels = ", ".join(str(chosen_level(records, seed)) for seed in seeds_of(records))
    told_apart = "told apart from" if max(of_gradient.values) < LEAST_P else "not told apart from"
    return [
        Claim(
            "C10",
            f"one gradient step shifts activations along the contrast vector ({records[0].where['model']})",
            "cosine 0.58",
            f"cosine {cosine} at the level chosen on other questions ({levels}); on the fit's own {same}; the labelled "
            f"gradient is {told_apart} shuffled labels by the signed, null-centred class difference: z {z}, p over all "
            f"levels {of_gradient}",
            f"shuffled labels of the gradient: {null}, deviation {deviation.mean:.2g}; of gradient and contrast: "
            f"{together}, deviation {wide.mean:.2g}, p {of_pipeline}",
            verdict(stands_out and min(cosine.values) > 0, control, num_seeds=len(seeds_of(records))),
        )
    ]
