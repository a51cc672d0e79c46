"""C11: steering has a gain on its target and a cost elsewhere.

Paper: arXiv 2606.10929, Table 6 (OLMo on BoolQ: +1.2 points, -17 elsewhere). Its strengths, layers and other tasks are
not available to us; ours: a vector is added to the stream of every token at one level, with a strength at which the
95th percentile of KL(model || steered) by token of plain text is 0.05, 0.2 or 0.5 nats, the same for every arm, and
level and sign are those that do best on other questions. Beside the contrast vectors stand the shift of one gradient
step, the step itself, random directions, vectors of shuffled labels and the head's difference of the two answers.
A constant push moves the prior: plain and balanced accuracy reward that where a model leans to one answer, AUROC never
does, and a random direction whose sign is chosen does it, too. Expect little beyond that.
`python -m experiments boolq-steering:small`: the model of stories and its feelings, in the place of BoolQ. `paper` asks
BoolQ of Qwen2.5-0.5B. A model that has not learnt the language of the passages is refused. `smoke`: the synthetic one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from experiments import steering_judged, steering_shown
from experiments.contrasts import AT_A_TIME, SMOKE, Contrasted, ContrastSpec, contrasted, of_radius, shifts_of, step_of
from experiments.contrasts import resolved as resolved_contrast
from experiments.recoveries import Told
from lacuna import keys, steering
from lacuna.errors import InvalidInput
from lacuna.reports.claims import Claim
from lacuna.reports.records import Place, Record
from lacuna.steering import outcomes
from lacuna.tasks import Prompts, pair_spans
from lacuna.types import Delta

NAME, TITLE = "boolq_steering", "What steering gains and what it costs"
ABOUT = (
    "Questions with two answers, steered at one level of the stream; strengths are matched by the 95th percentile of "
    "KL(model || steered) by token of plain text. Level and sign of each arm are chosen on questions apart, those of "
    "every random direction, too. The rule: at 0.2 nats the lower end of the paired 95 % interval of the contrast "
    "vector's gain in balanced accuracy, a mean over seeds, is above the 95th percentile of the random directions' "
    "gains, likewise; the control: so it is in AUROC, which no bias moves, as it moves balanced accuracy. A seed is "
    "another split of the same questions, so that seeds are no independent samples. Intervals draw whole events, "
    "for questions told of one event are no independent evidence."
)


@dataclass(frozen=True)
class Config:
    """Gain and cost of steering.

    Attributes:
      num_seeds: splits of the questions; of the synthetic model its seeds, too.
      targets: KL in nats to which strengths are matched.
      chosen_at: that of them at which levels and signs are chosen.
      num_random: random directions.
      num_shuffled_labels: contrast vectors and shifts of shuffled labels.
      alphas: strengths of the curves, as shares of the stream's norm.
      moving: regular expression of the leaves that the step moves.
      num_resamples: draws of a paired interval.
      contrasts: model and questions.
    """

    num_seeds: int = 5
    targets: tuple[float, ...] = (0.05, 0.2, 0.5)
    chosen_at: float = 0.2
    num_random: int = 16
    num_shuffled_labels: int = 4
    alphas: tuple[float, ...] = (-1.0, -0.5, -0.2, -0.1, 0.0, 0.1, 0.2, 0.5, 1.0)
    moving: str = "(?!embedding|positions).*"
    num_resamples: int = 2000
    contrasts: ContrastSpec = field(default_factory=ContrastSpec)

    def __post_init__(self) -> None:
        if self.chosen_at not in self.targets or min(self.targets) <= 0:
            raise InvalidInput("chosen_at must be one of targets, which are positive", got=self.chosen_at)
        for name in ("num_random", "num_shuffled_labels", "num_resamples"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} must be at least 1", got=getattr(self, name))


PRESETS = {
    "smoke": Config(
        1,
        targets=(0.2,),
        num_random=2,
        num_shuffled_labels=1,
        alphas=(-0.2, 0.0, 0.2),
        num_resamples=50,
        contrasts=SMOKE,
    ),
    "small": Config(),
    "paper": Config(
        contrasts=ContrastSpec(
            "boolq",
            "Qwen/Qwen2.5-0.5B",
            questions="google/boolq",
            num_fit=1600,
            num_chosen_on=200,
            num_judged_on=600,
        )
    ),
}


def resolved(config: Config) -> dict[str, str]:
    """What the contrast stands for here and now."""
    return resolved_contrast(config.contrasts)


class Pushes(NamedTuple):
    """Vectors to steer by.

    Attributes:
      kinds: of each, and which of its kind.
      vectors: as long at each level as the stream.
    """

    kinds: list[tuple[str, int]]
    vectors: Float[jax.Array, "n levels D"]


Measure = tuple[str, Any, dict[str, Place]]


def run_seed(config: Config, seed: int, cache: Path, told: Told) -> list[Record]:
    """All numbers of one seed."""
    found = contrasted(config.contrasts, seed, cache, told)
    where: dict[str, Place] = {"seed": seed, "contrast": found.contrast, "model": found.name}
    measured = [*_base(found), *_arms(config, found, seed, told), *_weight_step(config, found, told)]
    return [
        Record(NAME, quantity, float(number), _unit(quantity), {**where, **at}) for quantity, number, at in measured
    ]


def _unit(quantity: str) -> str:
    return "nats" if quantity in ("kl", "nats_gain", "signed_log_odds", "signed_log_odds_gain") else "1"


METRICS = {
    "accuracy": outcomes.accuracy,
    "balanced_accuracy": outcomes.balanced_accuracy,
    "auroc": outcomes.auroc,
    "signed_log_odds": outcomes.signed_log_odds,
}


def pushes(config: Config, found: Contrasted, seed: int) -> Pushes:
    """Every vector, made of the fit questions alone."""
    fit = found.fit.prompts
    contrast = steering.statement(found.model, found.params, fit)
    shift = shifts_of(found, fit, step_of(found, fit, config.moving))
    made: list[tuple[str, Any]] = [
        ("contrast", contrast.vectors[:, 0]),
        ("shift of a step", shift.mean(axis=1)),
        ("shift, class difference", shift[:, fit.positive].mean(1) - shift[:, ~fit.positive].mean(1)),
    ]
    if found.encode is not None:
        pairs = pair_spans(
            found.fit.questions, found.encode, max_length=config.contrasts.max_length + 8, begin=found.begin
        )
        made.append(("answered pairs", steering.paired(found.model, found.params, *pairs).vectors[:, 0]))
    head = np.asarray(steering.unembedding_difference(found.params, fit.choices))
    made.append(("head's difference", np.broadcast_to(head, shift[:, 0].shape)))
    num = config.num_shuffled_labels
    for labels in steering.shuffled_labels(fit.positive, num, seed=seed, groups=found.fit.groups):
        other = fit._replace(right=np.where(labels, 0, 1).astype(np.int32))
        made.append(("contrast of shuffled labels", steering.statement(found.model, found.params, other).vectors[:, 0]))
        moved = shifts_of(found, fit, step_of(found, other, config.moving))
        made.append(("shift of shuffled labels", moved.mean(axis=1)))
    random = jax.random.normal(keys.stream(seed, "random directions"), (config.num_random, *shift[:, 0].shape))
    made += [("random", np.asarray(one)) for one in random]
    seen: dict[str, int] = {}
    kinds = [(kind, seen[kind]) for kind, _ in made if seen.update({kind: seen.get(kind, -1) + 1}) is None]
    vectors = np.stack([np.asarray(vector, np.float32) for _, vector in made])
    return Pushes(kinds, steering.scaled(vectors, contrast.norms))


def _base(found: Contrasted) -> Iterator[Measure]:
    """What the model does by itself."""
    judged = found.judged_on.prompts
    answers = _answers_of(found, judged)
    for name, metric in METRICS.items():
        yield name, metric(answers.log_odds[0], judged.positive), {"arm": "model"}
    yield "positive_share", judged.positive.mean(), {"arm": "model"}
    yield "mass", answers.mass.mean(), {"arm": "model"}
    for other, prompts in found.others.items():
        yield "other_accuracy", _answers_of(found, prompts).right.mean(), {"arm": "model", "other": other}


def _answers_of(found: Contrasted, prompts: Prompts) -> steering.Answers:
    """The model's own answers: a step of no length."""
    zero = jax.tree.map(jnp.zeros_like, found.params)
    return _stepped(found, zero, np.zeros(1, np.float32), prompts)


def _stepped(found: Contrasted, step: Delta, strengths: np.ndarray, prompts: Prompts) -> steering.Answers:
    return jax.device_get(
        steering.stepped_answers(found.model, found.params, step, strengths, prompts, chunk=AT_A_TIME)
    )


def _arms(config: Config, found: Contrasted, seed: int, told: Told) -> Iterator[Measure]:
    """Gain and cost of every vector, at the level and with the sign that are best on the questions to choose on."""
    made = pushes(config, found, seed)
    levels = range(1, found.model.spec.num_layers + 1)
    on, after = _halves(found)
    every = steering.grid(found.model, vectors=range(len(made.kinds)), levels=levels, strengths=(1.0, -1.0))
    told(f"matching {len(every.level)} arms at {config.chosen_at} nats")
    matched = _matched(found, on, made, every, np.full(len(every.level), config.chosen_at))
    prompts = found.chosen_on.prompts
    answers = _steered(found, prompts, made, every._replace(strength=matched.strength))
    best = _best(answers, matched, prompts, len(made.kinds))
    chosen = jax.tree.map(lambda x: np.tile(x[best], len(config.targets)), every)
    targets = np.repeat(config.targets, len(best))
    told(f"{len(targets)} arms on other questions")
    matched = _matched(found, on, made, chosen, targets)
    arms = chosen._replace(strength=matched.strength)
    wheres: list[dict[str, Place]] = []
    for i, target in enumerate(targets.tolist()):
        kind, index = made.kinds[int(arms.vector[i])]
        wheres.append({"arm": kind, "index": index, "target": target})
        yield "level", arms.level[i], wheres[i]
        yield "strength", arms.strength[i], wheres[i]
        yield "status", matched.status[i], wheres[i]
    judged = _steered(found, found.judged_on.prompts, made, arms)
    others = {name: _steered(found, rows, made, arms).right for name, rows in found.others.items()}
    cost = jax.device_get(steering.steered_text(found.model, found.params, after, made.vectors, arms))
    yield from _outcomes(config, found, after, judged, others, cost, wheres)
    yield from _curves(config, found, made, chosen, made.kinds)


def _halves(found: Contrasted) -> tuple[np.ndarray, np.ndarray]:
    """Text to match strengths on and text to judge the cost on, row about: text may stand in an order of its own."""
    text = np.asarray(found.text)
    return text[::2], text[1::2]


def _steered(found: Contrasted, prompts: Prompts, made: Pushes, arms: steering.Arms) -> steering.Answers:
    masks = steering.position_masks(prompts, ["all", "last"])
    return jax.device_get(
        steering.steered_answers(found.model, found.params, prompts, made.vectors, arms, masks, chunk=AT_A_TIME)
    )


def _matched(
    found: Contrasted, text: np.ndarray, made: Pushes, arms: steering.Arms, targets: np.ndarray
) -> steering.Matched:
    """Strengths, with the arms' own signs."""
    sign = np.sign(np.asarray(arms.strength))

    def cost(strengths: np.ndarray) -> np.ndarray:
        pushed = arms._replace(strength=sign * strengths)
        return np.asarray(steering.steered_text(found.model, found.params, text, made.vectors, pushed).kl)

    matched = steering.match_kl(cost, targets, bounds=(1e-3, 10.0), num_rounds=4)
    return matched._replace(strength=sign * matched.strength)


def _best(answers: steering.Answers, matched: steering.Matched, prompts: Prompts, num_vectors: int) -> np.ndarray:
    """Of each vector the arm of the highest balanced accuracy, and among equals of the highest signed log odds."""
    scores = [
        (
            matched.status[i] != steering.MatchStatus.BEYOND,
            outcomes.balanced_accuracy(odds, prompts.positive),
            outcomes.signed_log_odds(odds, prompts.positive),
        )
        for i, odds in enumerate(answers.log_odds)
    ]
    each = len(scores) // num_vectors
    return np.asarray([max(range(v * each, (v + 1) * each), key=scores.__getitem__) for v in range(num_vectors)])


def _outcomes(
    config: Config,
    found: Contrasted,
    text: np.ndarray,
    judged: steering.Answers,
    others: dict[str, np.ndarray],
    cost: steering.TextCost,
    wheres: Sequence[dict[str, Place]],
) -> Iterator[Measure]:
    """Gains with their paired intervals, and costs; one line of each for every arm."""
    base, positive = _answers_of(found, found.judged_on.prompts), found.judged_on.prompts.positive
    before = {name: _answers_of(found, rows).right[0] for name, rows in found.others.items()}
    zero = jax.tree.map(jnp.zeros_like, found.params)
    still = steering.stepped_text(found.model, found.params, zero, np.zeros(1, np.float32), text)
    for i, where in enumerate(wheres):
        for name, metric in METRICS.items():
            own, alone = judged.log_odds[i], base.log_odds[0]
            yield f"{name}_gain", metric(own, positive) - metric(alone, positive), where
            interval = outcomes.paired_bootstrap(
                metric, alone, own, positive, groups=found.judged_on.groups, num_resamples=config.num_resamples
            )
            yield f"{name}_gain_low", interval.low, where
            yield f"{name}_gain_high", interval.high, where
        yield "mcnemar_p", outcomes.mcnemar(base.right[0], judged.right[i]), where
        yield "mass", judged.mass[i].mean(), where
        for name, right in others.items():
            yield "other_accuracy_gain", right[i].mean() - before[name].mean(), {**where, "other": name}
        yield "nats_gain", cost.nats[i].mean() - np.asarray(still.nats).mean(), where
        yield "kl", np.percentile(cost.kl[i], steering.matching.PERCENTILE), where


def _curves(
    config: Config, found: Contrasted, made: Pushes, chosen: steering.Arms, kinds: Sequence[tuple[str, int]]
) -> Iterator[Measure]:
    """Along the strength, at each vector's own level: steered at all tokens and at the last alone."""
    first = [v for v, (_, index) in enumerate(kinds) if index == 0]
    parts = [
        steering.grid(found.model, vectors=[v], levels=[int(chosen.level[v])], strengths=config.alphas, masks=(0, 1))
        for v in first
    ]
    arms = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    prompts = found.judged_on.prompts
    answers = _steered(found, prompts, made, arms)
    for i, odds in enumerate(answers.log_odds):
        at: dict[str, Place] = {
            "arm": kinds[int(arms.vector[i])][0],
            "alpha": float(arms.strength[i]),
            "mask": ("all", "last")[int(arms.mask[i])],
        }
        for name, metric in METRICS.items():
            yield f"curve_{name}", metric(odds, prompts.positive), at
        yield "curve_mass", answers.mass[i].mean(), at


def _weight_step(config: Config, found: Contrasted, told: Told) -> Iterator[Measure]:
    """The step itself, at the length at which it costs as much."""
    told("the step of the weights itself")
    step = of_radius(step_of(found, found.fit.prompts, config.moving), found.params, 1.0)
    on, after = _halves(found)
    targets = np.asarray(config.targets)

    def cost(radii: np.ndarray) -> np.ndarray:
        return np.asarray(steering.stepped_text(found.model, found.params, step, radii, on).kl)

    matched = steering.match_kl(cost, targets, bounds=(1e-5, 1.0), num_rounds=6)
    wheres: list[dict[str, Place]] = [{"arm": "step of the weights", "index": 0, "target": t} for t in targets.tolist()]
    for i, where in enumerate(wheres):
        yield "strength", matched.strength[i], where
        yield "status", matched.status[i], where

    judged = _stepped(found, step, matched.strength, found.judged_on.prompts)
    others = {name: _stepped(found, step, matched.strength, rows).right for name, rows in found.others.items()}
    text_cost = jax.device_get(steering.stepped_text(found.model, found.params, step, matched.strength, after))
    yield from _outcomes(config, found, after, judged, others, text_cost, wheres)


def claims(records: Sequence[Record], config: Config) -> list[Claim]:
    """One row."""
    return steering_judged.claims(records, config)


tables, figures = steering_shown.tables, steering_shown.figures
