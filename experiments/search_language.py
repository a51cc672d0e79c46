"""C13: random search works on language models.

Paper: arXiv 2606.10929; which models and tasks it searched is not available to us, ours are named in the report. The
best of N random steps around a trained language model lowers the loss of the rows that it is chosen on, as Theorem 1
says. Whether that is worth anything is asked on rows that no candidate saw: the top K stand beside K random
candidates, and a search over right answers beside one over shuffled labels. Also: the share of candidates that improve
at all, against the step and the size of the model; and families of steps at one root mean square length.
Expect: on the scored rows what theory says; on others a part of it, all the smaller the fewer rows were scored.
Fifty minutes on two cores of an Intel Xeon that others kept busy, too. `python -m experiments search-language:small`.
`paper`: GPT-2, Qwen2.5 and OLMo-2 on BoolQ, by accelerators; not run here. `smoke`: random weights, few draws.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments import search_kept, search_language_judged, search_language_shown, search_places, search_steps
from experiments.recoveries import Told
from experiments.search_places import Place, PlacesSpec
from experiments.searches import PROGRAMS, noise_seed
from lacuna import search, theory, trees
from lacuna.errors import InvalidInput
from lacuna.reports.claims import Claim
from lacuna.reports.records import Place as At
from lacuna.reports.records import Record
from lacuna.types import Loss

NAME, TITLE = "search_language", "Random search around language models"
ABOUT = (
    "Random steps around the weights of a trained language model, both signs of each, scored on a few rows; the best "
    "are scored again on rows that no candidate saw. Steps are given by their root mean square length as a share of "
    "the weights' norm; which length is judged is chosen on rows apart. The rule, for each model and objective: the "
    "95 % interval over seeds of the top K's mean gain on held-out rows is above zero; the control: so is that of its "
    "distance to as many random candidates of that length, and for a search over right answers also that of its "
    "distance to the top K of a search over shuffled labels, which can gain on the scored rows alone. Where nothing "
    "else is given, questions tell of an event and ask who was happy or sad, and text is the source of Python's "
    "library. A seed is another split of the same questions, or another stretch of the same text, and other noise, "
    "around the same weights; held-out questions are of other events. Of questions with few answers a search may "
    "merely learn how often each is right: beside it stands what one number for each answer, added to its "
    "log-probability and fitted on the scored rows, gains on held-out ones. "
    "Which share of candidates improves is foretold from gradient a and Hessian H by one normal law: at σ for each "
    "coordinate the loss changes by σ|a|Z + σ²/2 (tr H + s Z'), s the standard deviation of zᵀHz, so that the share "
    "is Φ(-σ tr H / 2 over the root of |a|² + σ²s²/4): half for small steps, and less where curvature costs."
)


@dataclass(frozen=True)
class Config:
    """Searches around language models.

    Attributes:
      num_seeds: seeds 0, 1, ... of rows and noise.
      num_draws: N of Gaussian steps; each draw is tried with both signs.
      num_family_draws: of each other family, and around untrained weights.
      radii: root mean square lengths of a step as shares of the weights' norm, ascending.
      error_radii: of them, those of the searches over right answers.
      family_radii: of them, those at which families are compared.
      families: of `search_steps.FAMILIES`.
      rank: of the bases.
      top_k: how many of the best are scored on held-out rows, and how many random ones beside them.
      num_probes: Hessian products for the trace.
      places: models, tasks and rows.

    Raises:
      InvalidInput: no such family, radii out of order, or more of the best than candidates.
    """

    num_seeds: int = 5
    num_draws: int = 128
    num_family_draws: int = 16
    radii: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1)
    error_radii: tuple[float, ...] = (0.03, 0.1)
    family_radii: tuple[float, ...] = (0.003, 0.03)
    families: tuple[str, ...] = search_steps.FAMILIES
    rank: int = 8
    top_k: int = 8
    num_probes: int = 16
    places: PlacesSpec = field(default_factory=PlacesSpec)

    def __post_init__(self) -> None:
        if not {*self.families} <= {*search_steps.FAMILIES}:
            raise InvalidInput(f"families must be of {', '.join(search_steps.FAMILIES)}", got=", ".join(self.families))
        for name in ("radii", "error_radii", "family_radii"):
            several = getattr(self, name)
            if not several or several[0] <= 0 or np.any(np.diff(several) <= 0) or not {*several} <= {*self.radii}:
                raise InvalidInput(f"{name} must be positive, ascending and of radii", got=several)
        if not 1 <= self.top_k <= 2 * self.num_family_draws <= 2 * self.num_draws:
            got = self.top_k, self.num_family_draws, self.num_draws
            raise InvalidInput("top_k, twice num_family_draws and twice num_draws must ascend", got=got)

    @property
    def num_compared(self) -> int:
        """Draws of which the best are compared over families: half, so that the mean is one over many subsets."""
        return max(1, self.num_family_draws // 2)


PRESETS = {
    "smoke": Config(
        1,
        num_draws=8,
        num_family_draws=4,
        radii=(0.03, 0.1),
        error_radii=(0.1,),
        family_radii=(0.03,),
        families=("adapter",),
        rank=2,
        top_k=2,
        num_probes=2,
        places=PlacesSpec(
            ("random:qwen2", "random:gpt2"),
            ("choices", "text"),
            num_questions=4,
            num_rows=2,
            length=16,
            num_characters=2000,
        ),
    ),
    "small": Config(),
    "paper": Config(
        num_draws=4096,
        num_family_draws=512,
        radii=(0.001, 0.003, 0.01, 0.03, 0.1),
        families=tuple(
            name for name in search_steps.FAMILIES if not name.startswith("in ")
        ),  # 7B times a rank is no small basis
        top_k=16,
        places=PlacesSpec(
            ("openai-community/gpt2", "Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-7B", "allenai/OLMo-2-1124-7B"),
            ("text", "choices", "choices", "choices"),
            questions="google/boolq",
            num_questions=64,
            num_rows=64,
            length=128,
            num_characters=2_000_000,
        ),
    ),
}


def resolved(config: Config) -> dict[str, str]:
    """What models and texts stand for here and now."""
    return search_places.resolved(config.places)


def run_seed(config: Config, seed: int, cache: Path, told: Told) -> list[Record]:
    """All numbers of one seed."""
    found: list[Record] = []
    for place in search_places.places(config.places, seed, cache, told):
        where: dict[str, At] = {"seed": seed, "place": place.name, "num_params": trees.size(place.params)}
        for measured in (_main, _by_answers, _families):
            found += [_placed(record, where) for record in measured(config, place, seed, told)]
        found += [_placed(record, where) for record in search_kept.one_step(place, config.radii[0])]
        twin = search_places.untrained(place, seed)
        told(f"{twin.name}: which share improves")
        result = _searched(config, twin, twin.loss, seed, config.num_family_draws, config.radii)
        where = {**where, "place": twin.name}
        found += [_placed(record, where) for record in _density(config, twin, result, seed)]
    return found


def _placed(record: Record, where: dict[str, At]) -> Record:
    return replace(record, experiment=NAME, where={**where, **record.where})


def _searched(
    config: Config,
    place: Place,
    loss: Loss,
    seed: int,
    num_draws: int,
    radii: Sequence[float],
    *,
    batch: Any = None,
    name: str = "one σ",
) -> search.SweepResult:
    """Search by Gaussian steps of one sigma, of these lengths."""
    norm = float(trees.norm(place.params))
    sweep = search.Sweep(
        search.gaussian(stacked=place.model.stacked),
        tuple(radius * norm for radius in radii),
        num_draws,
        seed=noise_seed(NAME, place.name, seed, name),
        top_k=config.top_k,
        chunk=config.num_family_draws,  # of one size, so that searches of more and of fewer draws are one program
        unit="rms_radius",
    )
    return search.run_sweep(loss, place.params, place.rows.scored if batch is None else batch, sweep, programs=PROGRAMS)


def _main(config: Config, place: Place, seed: int, told: Told) -> Iterator[Record]:
    """Gaussian steps, scored by nats: curves, density, and what is left on held-out rows."""
    told(f"{place.name}: {config.num_draws} Gaussian draws")
    result = _searched(config, place, place.loss, seed, config.num_draws, config.radii)
    yield Record(NAME, "base", result.base_score, "nats")
    sizes = search.subset_sizes(config.num_draws, per_octave=1)
    sizes = np.union1d(sizes, config.num_compared)
    curves = search.measured_curves(result.base_score, result.scores, sizes)["both"]
    regime = theory.linear_regime(np.float32(config.radii), *np.moveaxis(result.scores, 2, 0), result.base_score)
    for j, radius in enumerate(config.radii):
        yield Record(NAME, "f1_share", float(regime.share[j]), "1", {"radius": radius})
        for n, gain in zip(sizes.tolist(), curves[:, j].tolist(), strict=True):
            yield Record(NAME, "gain", gain, "nats", {"radius": radius, "n": n, "family": "one σ"})
    yield from _density(config, place, result, seed)
    yield from search_kept.held_out(result, place.loss, place, place.rows.scored, "nats")
    for radius in config.family_radii:
        sub = search_kept.at_length(result, config.radii.index(radius))
        yield from search_kept.few_held_out(sub, place, place.loss, place.params, {"radius": radius, "family": "one σ"})
    yield Record(NAME, "share_foretold", search_kept.share_foretold(place), "1")
    if place.task == "choices":
        yield Record(NAME, "bias_gain", search_kept.bias_gain(place), "nats")


def _density(config: Config, place: Place, result: search.SweepResult, seed: int) -> Iterator[Record]:
    """How many candidates improve, and what gradient and curvature foretell, in units of the weights' norm."""
    norm = float(trees.norm(place.params))
    known = search.landscape(
        place.loss, place.params, place.rows.scored, result.sweep, seed=seed, num_probes=config.num_probes
    )
    for name, number in (
        ("slope", known.slope * norm),
        ("along", known.curvature_along * norm**2),
        ("trace", known.curvature_trace * norm**2),
        ("trace_error", known.curvature_trace_error * norm**2),
        ("curvature_spread", known.curvature_spread * norm**2),
    ):
        yield Record(NAME, name, number, "nats")
    for j, radius in enumerate(config.radii):
        share = float(np.mean(result.scores[:, j] < result.base_score))
        yield Record(NAME, "improving", share, "1", {"radius": radius})


def _by_answers(config: Config, place: Place, seed: int, told: Told) -> Iterator[Record]:
    """The same search over right answers, and over shuffled labels."""
    if place.error is None:
        return
    told(f"{place.name}: a search over right answers, and one over shuffled labels")
    for objective, batch in (("accuracy", place.rows.scored), ("shuffled labels", search_places.shuffled(place, seed))):
        result = _searched(
            config, place, place.error, seed, config.num_draws, config.error_radii, batch=batch, name=objective
        )
        yield Record(NAME, "base", result.base_score, "1", {"objective": objective})
        yield from search_kept.held_out(result, place.error, place, batch, objective)


def _families(config: Config, place: Place, seed: int, told: Told) -> Iterator[Record]:
    """Every family at the same lengths, with as many draws."""
    norm = float(trees.norm(place.params))
    slope = search_steps.slope_of(place)
    for name in config.families:
        told(f"{place.name}: {name}")
        if name == "adapter":
            at = place._replace(params=place.adapter.params, loss=place.adapter_loss)
            sigmas = [
                search_steps.factor_sigma(place.adapter.spec, at.params, radius * norm)
                for radius in config.family_radii
            ]
            family, unit = search.gaussian(stacked=place.model.stacked), "sigma"
        else:
            at, unit = place, "rms_radius"
            sigmas = [radius * norm for radius in config.family_radii]
            family = search_steps.family_of(name, place, slope, rank=config.rank)
        seed_of_noise = noise_seed(NAME, place.name, seed, name)
        sweep = search.Sweep(
            family, tuple(sigmas), config.num_family_draws, seed_of_noise, top_k=config.top_k, unit=unit
        )
        result = search.run_sweep(at.loss, at.params, place.rows.scored, sweep, programs=PROGRAMS)
        sizes = np.unique([1, config.num_compared, config.num_family_draws])
        curves = search.measured_curves(result.base_score, result.scores, sizes)["both"]
        for j, radius in enumerate(config.family_radii):
            for n, gain in zip(sizes.tolist(), curves[:, j].tolist(), strict=True):
                yield Record(NAME, "gain", gain, "nats", {"radius": radius, "n": n, "family": name})
            where: dict[str, At] = {"radius": radius, "family": name}
            yield from search_kept.few_held_out(search_kept.at_length(result, j), place, at.loss, at.params, where)


def claims(records: Sequence[Record], config: Config) -> list[Claim]:
    """One row for each model and objective."""
    return search_language_judged.claims(records, config)


tables, figures = search_language_shown.tables, search_language_shown.figures
