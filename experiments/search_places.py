"""Where language models are searched: a model, a task, and rows to search on, to hold out, and to build bases on.

Two tasks. *choices*: questions with given answers; without a file who found the toy was happy, who lost it was sad, and
rows that are held out are of other events. *text*: the next token; without a file that of the source of Python's
library. Another seed takes other rows for everything.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from experiments import contrasts, language_models
from experiments.language_models import DATA, Base, LanguageModelSpec
from experiments.recoveries import Told
from lacuna import keys, models
from lacuna.checkpoints import Adapter
from lacuna.checkpoints.configs import spec_from_config
from lacuna.errors import InvalidInput
from lacuna.models.model import Model
from lacuna.setups import HELD_OUT_BATCHES, LanguageModel
from lacuna.tasks import Question, choices, row_streams, task_files, text
from lacuna.tasks.contrast import fitting
from lacuna.tasks.language import language_loss
from lacuna.tasks.task import Batch
from lacuna.training import BatchAt
from lacuna.types import Loss, Params

TaskName = Literal["choices", "text"]

RANDOM = {
    "random:gpt2": {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 128},
    "random:qwen2": {
        "model_type": "qwen2",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
        "tie_word_embeddings": True,
    },
}
"""Models of random weights and of bytes, to see that a search runs."""


@dataclass(frozen=True)
class PlacesSpec:
    """Models, and what is asked of each.

    Attributes:
      models: folders, hub ids, `random:gpt2` or `random:qwen2`. None: `data/stories` where it is there, and
        `data/model`, or a GPT-2 that is pretrained on the spot.
      tasks: of each model, `choices` or `text`. None: choices of `data/stories`, text of the other.
      questions: what `tasks.read_task` takes as multiple choice. None: happy or sad events.
      text: what `tasks.read_task` takes as text. None: the source of Python's library.
      num_questions: that every candidate is asked.
      num_rows: of text, that every candidate is scored on.
      length: tokens of a row of text.
      num_characters: of the text, from a place that the seed chooses.
      held_out_share: of the rows, by events or passages.
      adapter_rank: of the adapter whose factors are searched.
    """

    models: tuple[str, ...] = ()
    tasks: tuple[TaskName, ...] = ()
    questions: str = ""
    text: str = ""
    num_questions: int = 32
    num_rows: int = 24
    length: int = 32
    num_characters: int = 100_000
    held_out_share: float = 0.4
    adapter_rank: int = 4

    def __post_init__(self) -> None:
        if len(self.models) != len(self.tasks) or not {*self.tasks} <= {*get_args(TaskName)}:
            asked = f"tasks must be one of {', '.join(get_args(TaskName))} for each model"
            raise InvalidInput(asked, got=f"{len(self.models)} models, tasks {', '.join(self.tasks) or 'none'}")

    @property
    def asked(self) -> tuple[tuple[str, TaskName], ...]:
        """Models and their tasks, here and now."""
        stories = (str(contrasts.STORIES / "model"), "choices")
        found = ("", "text")  # `language_models` knows which
        here = (stories, found) if Path(stories[0]).is_dir() else (found,)
        return tuple(zip(self.models, self.tasks, strict=True)) or here


class Opened(NamedTuple):
    """A model, and its losses: the same functions for every seed, so that they are compiled once.

    Attributes:
      base: model, weights and tokenizer.
      begin: the token in front of every question; None where there is none.
      losses: by name: `nats` and `accuracy` of choices, `text`, and with `, adapter` the first and the last over the
        factors of an adapter.
      adapter: a fresh one.
    """

    base: Base
    begin: int | None
    losses: dict[str, Loss]
    adapter: Adapter


class Rows(NamedTuple):
    """Rows by what they are for; of one shape for every seed, so that nothing is compiled twice.

    Attributes:
      scored: what every candidate is scored on.
      held_out: batches that none of them saw.
      others: batches of rows that are neither; they may be of groups that scored rows are of.
    """

    scored: Batch
    held_out: tuple[Batch, ...]
    others: BatchAt


class Place(NamedTuple):
    """Where a model is searched.

    Attributes:
      name: of the model and the task.
      task: of the two.
      model: its architecture.
      params: the point.
      loss: nats.
      error: the share of wrong answers; None of text.
      adapter: fresh, beside the weights.
      adapter_loss: nats, over its factors.
      nats_at: of choices, as `choices.choice_nats` takes it.
      rows: of a seed.
    """

    name: str
    task: TaskName
    model: Model
    params: Params
    loss: Loss
    error: Loss | None
    adapter: Adapter
    adapter_loss: Loss
    nats_at: Callable[..., Any]
    rows: Rows


_OPENED: dict[tuple[str, PlacesSpec], Opened] = {}


def resolved(spec: PlacesSpec) -> dict[str, str]:
    """What a specification stands for here and now.

    Raises:
      InvalidInput: a model or a file that cannot be read, before anything is written or trained.
    """
    names = []
    for source, _ in spec.asked:
        found = {} if source in RANDOM else language_models.resolved(_model_spec(source))
        names.append(found.get("model", source))
    for source, kind in ((spec.questions, task_files.ChoiceFile), (spec.text, task_files.TextFile)):
        if source and not isinstance(task_files.read_task(source), kind):
            raise InvalidInput(f"{source} must be a task of the kind it stands for", got="another")
    return {"models": ", ".join(names), "tasks": ", ".join(task for _, task in spec.asked)}


def places(spec: PlacesSpec, seed: int, cache: Path, told: Told) -> Iterator[Place]:
    """Every model with its task, on the rows of a seed."""
    for source, task in spec.asked:
        opened = _OPENED.get((source, spec)) or _OPENED.setdefault((source, spec), _open(spec, source, cache, told))
        name = "nats" if task == "choices" else "text"
        yield Place(
            name=f"{opened.base.name}, {task}",
            task=task,
            model=opened.base.model,
            params=opened.base.params,
            loss=opened.losses[name],
            error=opened.losses["accuracy"] if task == "choices" else None,
            adapter=opened.adapter,
            adapter_loss=opened.losses[f"{name}, adapter"],
            nats_at=partial(models.nats_at, opened.base.model),
            rows=_choice_rows(spec, opened, seed) if task == "choices" else _text_rows(spec, opened, seed),
        )


def untrained(place: Place, seed: int) -> Place:
    """The place's model with new random weights, on the same rows."""
    params = place.model.init(keys.stream(seed, "untrained"))
    return place._replace(name=f"{place.name}, untrained", params=params)


def _choice_rows(spec: PlacesSpec, opened: Opened, seed: int) -> Rows:
    questions, groups = _questions(spec)
    room = opened.base.model.spec.max_positions
    kept = set(fitting(questions, opened.base.encode, max_length=room, begin=opened.begin).questions)
    pairs = [(question, group) for question, group in zip(questions, groups, strict=True) if question in kept]
    questions, groups = [question for question, _ in pairs], [group for _, group in pairs]
    every = choices.choice_rows(questions, opened.base.encode, max_length=room, begin=opened.begin)
    return split(every, every.right, groups, size=spec.num_questions, share=spec.held_out_share, seed=seed)


def _text_rows(spec: PlacesSpec, opened: Opened, seed: int) -> Rows:
    stretch = _stretch(spec, seed)
    packed = text.pack([stretch], opened.base.encode, length=spec.length)
    every = Batch(packed.tokens, packed.answer)
    alone = [str(row) for row in range(packed.num_rows)]
    return split(every, np.zeros(packed.num_rows), alone, size=spec.num_rows, share=spec.held_out_share, seed=seed)


def split(every: Any, labels: np.ndarray, groups: Sequence[str], *, size: int, share: float, seed: int) -> Rows:
    """Rows by what they are for, with as many of each label everywhere as there are in all.

    A group is held out whole, and batches of held-out rows are of one group after the other.

    Args:
      every: a batch of all rows.
      labels: of each row.
      groups: of each row what it may share with others.
      size: rows that are scored, and of every batch.
      share: of the groups that are held out.
      seed: of which those are.

    Raises:
      InvalidInput: too few rows for a scored batch, one that is held out and one to build bases on.
    """
    random = np.random.default_rng(seed)
    names, first, of_row = np.unique(groups, return_index=True, return_inverse=True)
    order = _mixed(labels[first], random)
    away = order[: round(share * len(names))]
    held_out = np.concatenate([np.flatnonzero(of_row == group) for group in away] or [np.zeros(0, int)])
    here = np.flatnonzero(~np.isin(of_row, away))
    here = here[_mixed(labels[here], random)]
    searched, others = here[:size], here[size:]
    if min(len(searched), len(held_out), len(others)) < size:
        got = f"{len(searched)}, {len(held_out)} and {len(others)}"
        raise InvalidInput(f"rows to search on, to hold out and to build bases on must be {size} each", got=got)
    num_batches = min(HELD_OUT_BATCHES, len(held_out) // size)
    parts = [held_out[i * size : (i + 1) * size] for i in range(num_batches)]
    stream = row_streams.row_stream(_taken(every, others), seed=seed, batch_size=size, name="basis")
    return Rows(_taken(every, searched), tuple(_taken(every, part) for part in parts), stream)


def _mixed(labels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A random order in which every stretch holds each label about as often as the whole does."""
    order = random.permutation(len(labels))
    position = np.empty(len(labels))
    for label in np.unique(labels):
        mine = order[labels[order] == label]
        position[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
    return order[np.argsort(position[order], kind="stable")]


def _taken(rows: Any, which: np.ndarray) -> Any:
    return jax.tree.map(lambda array: jnp.asarray(np.asarray(array)[which]), rows)


def _model_spec(source: str) -> LanguageModelSpec:
    stories = contrasts.STORIES
    tokenizer = str(stories / "tokenizer") if source == str(stories / "model") else ""
    return LanguageModelSpec(model=source, tokenizer=tokenizer)


def _open(spec: PlacesSpec, source: str, cache: Path, told: Told) -> Opened:
    base = _random(source) if source in RANDOM else language_models.base(_model_spec(source), cache, told)
    short = {str(contrasts.STORIES / "model"): "stories260K", str(DATA / "model"): "GPT-2 shape"}
    adapted = models.lora_spec(base.model, rank=spec.adapter_rank, sites=".*")
    adapter = Adapter(adapted, adapted.init(keys.stream(0, "adapter")))
    points = {"": LanguageModel(base.model, base.params, None, None, Path())}
    points[", adapter"] = LanguageModel(base.model, adapter.params, base.params, adapter, Path())
    losses = {}
    for suffix, point in points.items():
        losses[f"nats{suffix}"] = choices.choice_loss(point.bound(models.nats_at))
        losses[f"text{suffix}"] = language_loss(point.bound(models.next_token_nats))
    losses["accuracy"] = choices.choice_loss(points[""].bound(models.nats_at), objective="accuracy")
    begin = base.encode("<s>")[0] if source == str(contrasts.STORIES / "model") else None
    return Opened(base._replace(name=short.get(base.name, base.name)), begin, losses, adapter)


def _random(source: str) -> Base:
    model = models.causal_lm(spec_from_config({**RANDOM[source], "vocab_size": 256}))
    name = f"a random {source.removeprefix('random:')}"
    return Base(name, model, model.init(keys.stream(0, "init")), lambda text: list(text.encode()))


def _questions(spec: PlacesSpec) -> tuple[list[Question], list[str]]:
    """Questions, and of each what it shares with others."""
    if spec.questions:
        found = task_files.read_task(spec.questions)
        assert isinstance(found, task_files.ChoiceFile)
        return found.questions, found.groups
    questions, groups = [], []
    for events in zip(contrasts.HAPPY, contrasts.SAD, strict=True):
        for right, event in enumerate(events):
            for name in contrasts.GIRLS + contrasts.BOYS:
                prompt = contrasts.TEMPLATES["feelings"].format(name=name, event=event)
                questions.append(Question(prompt, (" happy", " sad"), right))
                groups.append(event)
    return questions, groups


def _stretch(spec: PlacesSpec, seed: int) -> str:
    """A stretch of the text that begins where the seed says."""
    if spec.text:
        found = task_files.read_task(spec.text)
        assert isinstance(found, task_files.TextFile)
        whole = "\n".join(found.documents)
    else:
        whole = language_models.python_code()
    first = int(np.random.default_rng(seed).integers(max(1, len(whole) - spec.num_characters)))
    return whole[first : first + spec.num_characters]


def shuffled(place: Place, seed: int) -> Batch:
    """The scored questions with the right answers of one another, so that there is nothing to learn from them."""
    scored = place.rows.scored
    return scored._replace(right=scored.right[np.random.default_rng(seed).permutation(len(scored.right))])
