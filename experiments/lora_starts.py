"""Adapters that have learnt a task and forgotten it: the starting points of recoveries on a language model.

A fresh adapter is trained on task A, driven away from it by training on task B, and is to recover A. Two pairs ship;
the paper's own are not available to us, these are ours. *domains*: A is a literary text, B a technical one. *mappings*:
A and B are two operations on the same digits, with nothing in the question that says which is asked, so that to learn
one is to forget the other. The geometry is taken at the forgotten point and along the recovery, where the factor B of
the adapter is not zero: at a fresh adapter the gradient of the factor A would be.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from experiments.language_models import Base, LanguageModelSpec, text_names, text_rows
from experiments.recoveries import Start, Stretches, Told
from lacuna import keys, models
from lacuna.errors import InvalidInput
from lacuna.tasks import digits, mappings, row_streams, text
from lacuna.tasks.language import language_task
from lacuna.training import BatchAt, Optimiser, TrainConfig, fit
from lacuna.types import Delta, Params

Pair = Literal["domains", "mappings"]

NUM_PARTS = 4
"""Stretches that each text is cut into, so that two texts make eight tasks, as there are eight mappings."""

RATES: dict[Pair, dict[Optimiser, float]] = {
    "domains": {"sgd": 3e-2, "momentum": 3e-3, "adam": 1e-3},
    "mappings": {"sgd": 1e-2, "momentum": 2e-3, "adam": 1e-3},
}
"""Constant learning rates of the recoveries, at which the loss falls from the first steps on. The paper's are not
available to us; these are ours."""


@dataclass(frozen=True)
class LoraStartSpec:
    """An adapter, what it learns and forgets, and how it is recovered.

    Attributes:
      lora_rank: r of the adapter.
      lora_alpha: its scale is alpha / r.
      sites: regular expression of the linear maps that are adapted.
      learn_steps: AdamW on task A from a fresh adapter.
      learn_rate: its peak.
      forget_steps: AdamW on task B from there.
      recovery_steps: constant steps on A.
      rate_factor: times the learning rates of `RATES`.
      length: tokens of a row of text.
      num_rows: rows of a batch of text.
      digits: in a question of the mappings.
      num_questions: rows of a batch of the mappings.
      mapping: A of the mappings.
      interfering: B of the mappings.

    Raises:
      InvalidInput: numbers that are not positive, unknown mappings, or twice the same.
    """

    lora_rank: int = 8
    lora_alpha: float = 16.0
    sites: str = ".*"
    learn_steps: int = 120
    learn_rate: float = 5e-3
    forget_steps: int = 30
    recovery_steps: int = 100
    rate_factor: float = 1.0
    length: int = 48
    num_rows: int = 6
    digits: int = 4
    num_questions: int = 24
    mapping: str = "reverse"
    interfering: str = "sort"

    def __post_init__(self) -> None:
        for name in ("learn_steps", "forget_steps", "recovery_steps", "num_rows", "num_questions", "digits"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} must be at least 1", got=getattr(self, name))
        if not self.rate_factor > 0:
            raise InvalidInput("rate_factor must be positive", got=self.rate_factor)
        for name in (self.mapping, self.interfering):
            digits.task_token(name)
        if self.mapping == self.interfering:
            raise InvalidInput("mapping and interfering must differ, or nothing is forgotten", got=f"`{self.mapping}`")


def _train_config(num_steps: int, rate: float) -> TrainConfig:
    return TrainConfig(num_steps, rate, min(10, num_steps // 2), weight_decay=0.0)


def lora_start(
    spec: LoraStartSpec, pair: Pair, base: Base, texts: LanguageModelSpec, seed: int, told: Told
) -> tuple[Start, Params, dict[str, BatchAt]]:
    """The forgotten point of a pair, the fresh adapter, and the eight tasks whose gradients are compared."""
    lora = models.lora_spec(base.model, rank=spec.lora_rank, alpha=spec.lora_alpha, sites=spec.sites)
    data = (_domains if pair == "domains" else _mappings)(spec, base, texts, seed)
    wanted, streams = data.wanted, data.streams
    nats, right = (
        models.over_adapter(of_next, base.model, base.params, lora)
        for of_next in (models.next_token_nats, models.next_token_right)
    )
    task = language_task(wanted, streams[wanted], data.held_out, nats, right)
    loss = task.objective.loss
    forget = _train_config(spec.forget_steps, spec.learn_rate)

    told(f"learning {wanted}, then forgetting it by {data.interfering}")
    fresh = lora.init(keys.stream(seed, "adapter"))
    learnt = fit(loss, fresh, streams[wanted], _train_config(spec.learn_steps, spec.learn_rate)).params
    forgotten = fit(loss, learnt, data.forgetting, forget).params

    def specialise(name: str) -> Delta:
        return jax.tree.map(jnp.subtract, fit(loss, learnt, streams[name], forget).params, learnt)

    # One after the other, for a text is finite: what is longer than it begins it again, in another order.
    steps = spec.recovery_steps
    stretches = Stretches(spec.learn_steps, spec.learn_steps + steps, spec.learn_steps + 2 * steps)
    rates = {optimiser: spec.rate_factor * rate for optimiser, rate in RATES[pair].items()}
    rest = (task, streams, specialise, rates, steps, stretches, seed)
    return Start(spec, base.model, learnt, forgotten, loss, *rest), fresh, data.parts


class _Data(NamedTuple):
    """The rows of a pair."""

    wanted: str
    interfering: str
    forgetting: BatchAt
    streams: dict[str, BatchAt]
    held_out: BatchAt
    parts: dict[str, BatchAt]


def _domains(spec: LoraStartSpec, base: Base, texts: LanguageModelSpec, seed: int) -> _Data:
    rows = text_rows(texts, base.encode, length=spec.length)
    # As many rows of either text, so that all programs are compiled once.
    least = min(train.num_rows for train, _ in rows.values())
    if least < NUM_PARTS * spec.num_rows:
        raise InvalidInput(
            f"each text must fill {NUM_PARTS * spec.num_rows} rows of {spec.length} tokens",
            got=f"{least}",
            hint="more text, or a smaller --length",
        )
    rows = {name: (_first(train, least), held_out) for name, (train, held_out) in rows.items()}
    stream = partial(row_streams.row_stream, seed=seed, batch_size=spec.num_rows)
    parts: dict[str, BatchAt] = {}
    for name, (train, _) in rows.items():
        for i in range(NUM_PARTS):
            part = _first(train, least // NUM_PARTS, after=i * (least // NUM_PARTS))
            parts[f"{name} {i + 1}"] = stream(part, name=f"{name} {i + 1}")
    wanted, interfering = text_names(texts)
    train, held_out = rows[wanted]
    streams = {wanted: stream(train, name=wanted)}
    streams |= {name: one for name, one in parts.items() if name.startswith(interfering)}
    forgetting = stream(rows[interfering][0], name=interfering)
    return _Data(
        wanted, interfering, forgetting, streams, row_streams.in_order(held_out, batch_size=spec.num_rows), parts
    )


def _first(rows: text.TokenRows, num: int, *, after: int = 0) -> text.TokenRows:
    return jax.tree.map(lambda x: x[after : after + num], rows)


def _mappings(spec: LoraStartSpec, base: Base, texts: LanguageModelSpec, seed: int) -> _Data:
    made = partial(mappings.mapping, encode=base.encode, seed=seed, batch_size=spec.num_questions, length=spec.digits)
    first = (spec.mapping, spec.interfering)
    names = [*first, *(name for name in digits.DIGIT_TASKS if name not in first)][: 2 * NUM_PARTS]
    parts: dict[str, BatchAt] = {name: made(name) for name in names}
    # Training on the interfering one is the forgetting itself, bit for bit: it is no task vector of another task.
    streams = {name: stream for name, stream in parts.items() if name != spec.interfering}
    return _Data(*first, parts[spec.interfering], streams, made(spec.mapping, split="held_out"), parts)
