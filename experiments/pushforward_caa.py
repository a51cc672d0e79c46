"""C10: one gradient step shifts activations along the contrast vector.

Paper: arXiv 2606.10929, abstract: cosine 0.58. Its definition of the cosine is not available to us; ours: the step is
minus the gradient of the labels' loss (`steering.label_step`) on the fit questions, the contrast their `statement`
vector, both read at the last token of the prompt; the shift is J delta on questions of other events, and its class
difference is what is compared. Shuffled labels give large cosines, too, so every cosine stands beside what they give:
labels are shuffled over events, for prompts of one event are no independent evidence.
Expect, from a prototype on the model of stories: +0.75 and +0.55 at the last two levels against a null at -0.58, -0.68.
`python -m experiments pushforward-caa:small`. `smoke` is the synthetic model with few questions and labellings.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments import caa_judged, caa_shown
from experiments.contrasts import SMOKE, Contrasted, ContrastSpec, contrasted, of_radius, step_of
from experiments.contrasts import resolved as resolved_contrast
from experiments.recoveries import Told
from lacuna import steering
from lacuna.errors import InvalidInput
from lacuna.reports.claims import Claim
from lacuna.reports.records import Place, Record
from lacuna.steering.cosines import READOUTS, SHUFFLED
from lacuna.tasks import pair_spans

NAME, TITLE = "pushforward_caa", "The activation shift of one gradient step beside the contrast vector"
ABOUT = (
    "Cosines of a labelled gradient step's activation shift with the contrast vector of the same questions, by level "
    "of the stream and token, each beside its permutation null: the same for labels that are shuffled over events. z "
    "is signed and null-centred, (observed - mean of the null) / its deviation. The rule, for the class difference on "
    "questions of other events at the last token of the prompt: in every seed cosine and z are positive at the level "
    "of the largest |z| on yet other questions, and the largest |z| over all levels has p < 0.01; the control: so z "
    "and p are where the contrast's labels are shuffled together with the gradient's. A seed is another split of the "
    "same events, so that seeds are no independent samples. Of BoolQ and digits every question is an event of its own."
)


@dataclass(frozen=True)
class Config:
    """Cosines of shifts and contrasts.

    Attributes:
      num_seeds: splits of the questions; of the synthetic model its seeds, too.
      num_shuffled: labellings of a null; fewer than 100 have no p below 0.01.
      back: tokens of the prompt that are read, counted from its last.
      moving: regular expression of the leaves that the step moves.
      batch_rows: held-out questions that are pushed forward at a time.
      contrasts: model and questions.
    """

    num_seeds: int = 5
    num_shuffled: int = 1000
    back: tuple[int, ...] = (0, 1, 2, 3)
    moving: str = "(?!embedding|positions).*"
    batch_rows: int = 40
    contrasts: ContrastSpec = field(default_factory=ContrastSpec)

    def __post_init__(self) -> None:
        if 0 not in self.back or len(set(self.back)) < len(self.back):
            raise InvalidInput("back must hold 0, the last token of the prompt, and each token once", got=self.back)
        if self.num_shuffled < 2 or self.batch_rows < 1:
            got = f"{self.num_shuffled} and {self.batch_rows}"
            raise InvalidInput("num_shuffled must be at least 2 and batch_rows at least 1", got=got)


PRESETS = {
    "smoke": Config(1, num_shuffled=20, back=(0, 1), batch_rows=8, contrasts=SMOKE),
    "small": Config(),
    "paper": Config(
        num_shuffled=2000,
        batch_rows=8,
        contrasts=ContrastSpec("boolq", "Qwen/Qwen2.5-0.5B", questions="google/boolq", num_fit=256),
    ),
}


def resolved(config: Config) -> dict[str, str]:
    """What the contrast stands for here and now."""
    return resolved_contrast(config.contrasts)


def run_seed(config: Config, seed: int, cache: Path, told: Told) -> list[Record]:
    """All numbers of one seed."""
    found = contrasted(config.contrasts, seed, cache, told)
    where: dict[str, Place] = {"seed": seed, "contrast": found.contrast, "model": found.name}
    return [
        Record(NAME, quantity, float(number), "1", {**where, **at})
        for measured in (_maps(config, found, seed, told), _steps(config, found, told))
        for quantity, number, at in measured
        if np.isfinite(number)  # where nothing differs, as at the embedding of one and the same token, there is none
    ]


Measure = tuple[str, Any, dict[str, Place]]


def _maps(config: Config, found: Contrasted, seed: int, told: Told) -> Iterator[Measure]:
    """Cosines by level and place, each with its nulls: of other events, and of the questions of the fit itself."""
    margin, stream = partial(steering.choice_margin, found.model), partial(steering.read_stream, found.model)
    read = steering.Read(back=config.back)
    head = np.asarray(steering.unembedding_difference(found.params, found.fit.prompts.choices))
    parts = {"other events": found.judged_on, "chosen on": found.chosen_on, "fit": found.fit}
    shuffles = [("other events", "events"), ("other events", "questions"), ("chosen on", "events"), ("fit", "events")]
    if len(set(found.fit.groups.tolist())) == len(found.fit.groups):
        shuffles = [(part, over) for part, over in shuffles if over == "events"]
    for part, over in shuffles:
        told(f"shifts of {part}; labels shuffled over {over}")
        cosines = steering.cosine_map(
            margin,
            stream,
            found.params,
            found.fit.prompts,
            parts[part].prompts,
            read=read,
            num_shuffled=config.num_shuffled,
            seed=seed,
            groups=found.fit.groups if over == "events" else None,
            moving=config.moving,
            batch_size=config.batch_rows,
        )
        where: dict[str, Place] = {"part": part, "over": over}
        for readout in READOUTS:
            for shuffled in SHUFFLED:
                null = cosines.nulls[readout, shuffled]
                at = {**where, "readout": readout, "shuffled": shuffled}
                grids = {"cosine": null.observed, "null_mean": null.mean, "null_deviation": null.deviation}
                grids |= dict(zip(("null_low", "null_high"), null.middle, strict=True))
                for quantity, values in {**grids, "z": null.z, "p": null.p}.items():
                    yield from _by_place(quantity, values, config.back, at)
                for place, p in zip(config.back, null.p_of_maximum(), strict=True):
                    yield "p_of_maximum", p, {**at, "back": place}
            if readout in cosines.subtracted:
                at = {**where, "readout": readout}
                yield from _by_place("subtracted_cosine", cosines.subtracted[readout], config.back, at)
        yield from _by_place("deviation_over_prompts", cosines.deviation, config.back, where)
        for name, vectors in (("shift", cosines.class_shift), ("contrast", cosines.contrast)):
            yield from _by_place("cosine_to_unembedding", _cosine(vectors, head), config.back, {**where, "of": name})
        without = cosines.contrast - (cosines.contrast @ head)[..., None] * head / (head @ head)
        yield from _by_place("cosine_without_unembedding", _cosine(cosines.class_shift, without), config.back, where)
        if part == "other events" and over == "events" and found.encode is not None:
            yield from _against_pairs(config, found, cosines)


def _against_pairs(config: Config, found: Contrasted, cosines: steering.CosineMap) -> Iterator[Measure]:
    """Cosines with the vector of answered pairs, read at the label: for every place of the shift the same vector."""
    pairs = pair_spans(found.fit.questions, found.encode, max_length=config.contrasts.max_length + 8, begin=found.begin)
    vectors = steering.paired(found.model, found.params, *pairs).vectors[:, :1]
    for name, other in (("shift", cosines.class_shift), ("contrast", cosines.contrast)):
        yield from _by_place("cosine_to_paired", _cosine(other, vectors), config.back, {"of": name})


def _by_place(quantity: str, values: np.ndarray, back: Sequence[int], where: dict[str, Place]) -> Iterator[Measure]:
    for level, row in enumerate(np.asarray(values)):
        for place, value in zip(back, row, strict=True):
            yield quantity, value, {**where, "level": level, "back": place}


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.sum(a * b, axis=-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


def _steps(config: Config, found: Contrasted, told: Told) -> Iterator[Measure]:
    """How far steps of some radii leave the linear regime, and which modules make the shift."""
    told("steps of several radii, and the modules")
    rows = found.judged_on.prompts
    read = steering.reading(
        partial(steering.read_stream, found.model), rows.tokens, steering.Read().weights(rows.spans)
    )
    step = step_of(found, found.fit.prompts, config.moving)
    for radius in caa_judged.RADII:
        shift = steering.shift(read, found.params, of_radius(step, found.params, radius))
        for level, error in enumerate(np.asarray(shift.error)):
            yield "linear_error", error, {"radius": radius, "level": level}
    parts = steering.module_shifts(read, found.params, step, stacked=found.model.stacked)
    last = np.asarray(parts.shifts)[:, -1].reshape(len(parts.names), -1).astype(np.float64)
    whole = last.sum(axis=0)
    for name, own in zip(parts.names, last, strict=True):
        if own.any():
            yield "module_share", own @ whole / (whole @ whole), {"module": name}


def claims(records: Sequence[Record], config: Config) -> list[Claim]:
    """One row."""
    return caa_judged.claims(records)


tables, figures = caa_shown.tables, caa_shown.figures
