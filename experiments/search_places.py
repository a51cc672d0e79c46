"""Where language models are searched: a model, a task, and rows to search on, to hold out, and to build bases on.

Two tasks. *choices*: questions with given answers; without a file who found the toy was happy, who lost it was sad, and
rows that are held out are of other events. *text*: the next token; without a file that of the source of Python's
library. Another seed takes other rows for everything.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from experiments import contrasts, language_models
from experiments.language_models import DATA, Base, LanguageModelSpec
from experiments.recoveries import Told
from lacuna import keys, models
from lacuna.checkpoints import Adapter
from lacuna.checkpoints.configs import spec_from_config
from lacuna.errors import InvalidInput
from lacuna.models.model import Model
from lacuna.setups import LanguageModel, TaskConfig, language
from lacuna.tasks import Question, choices, task_files
from lacuna.tasks.language import language_loss
from lacuna.training import BatchAt
from lacuna.types import Batch, Loss, Params

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
      held_out_share: of the rows.
      adapter_rank: of the adapter whose factors are searched.
    """

    models: tuple[str, ...] = ()
    tasks: tuple[TaskName, ...] = ()
    questions: str = ""
    text: str = ""
    num_questions: int = 32
    num_rows: int = 8
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
      begin: text of the token in front of every question.
      losses: by name: `nats` and `accuracy` of choices, `text`, and with `, adapter` the first and the last over the
        factors of an adapter.
      adapter: a fresh one.
    """

    base: Base
    begin: str
    losses: dict[str, Loss]
    adapter: Adapter


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
      batch: what every candidate is scored on.
      held_out: batches that none of them saw.
      others: rows that are neither.
      nats_at: of choices, as `choices.choice_nats` takes it.
    """

    name: str
    task: TaskName
    model: Model
    params: Params
    loss: Loss
    error: Loss | None
    adapter: Adapter
    adapter_loss: Loss
    batch: Batch
    held_out: tuple[Batch, ...]
    others: BatchAt
    nats_at: Callable[..., Any]


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
        yield place(spec, source, task, seed, cache, told)


def compared(spec: PlacesSpec, seed: int, cache: Path, told: Told) -> Iterator[Place]:
    """For the density alone: a model of choices on text, and an untrained twin of a model of text on the same rows."""
    for source, task in spec.asked:
        found = place(spec, source, "text", seed, cache, told)
        if task == "text":
            found = found._replace(params=found.model.init(keys.stream(seed, "untrained")))
        yield found._replace(name=f"{found.name}, untrained" if task == "text" else found.name)


def place(spec: PlacesSpec, source: str, task: TaskName, seed: int, cache: Path, told: Told) -> Place:
    """One model with one task, on the rows of a seed."""
    opened = _OPENED.get((source, spec)) or _OPENED.setdefault((source, spec), _open(spec, source, cache, told))
    base = opened.base
    of_choices = task == "choices"
    config = TaskConfig(
        task,
        length=spec.length,
        batch_size=spec.num_questions if of_choices else spec.num_rows,
        held_out_share=spec.held_out_share,
        begin=opened.begin if of_choices else "",
        seed=seed,
    )
    at = LanguageModel(base.model, base.params, None, None, Path())
    rows = _questions(spec, seed) if of_choices else _text(spec, seed)
    setup = language.with_task(at, rows, config, _Tokenizer(base.encode), notice=told)
    name = "nats" if of_choices else "text"
    return Place(
        name=f"{base.name}, {task}",
        task=task,
        model=base.model,
        params=base.params,
        loss=opened.losses[name],
        error=opened.losses["accuracy"] if of_choices else None,
        adapter=opened.adapter,
        adapter_loss=opened.losses[f"{name}, adapter"],
        batch=setup.batch,
        held_out=setup.held_out,
        others=setup.task.train,
        nats_at=at.bound(models.nats_at),
    )


class _Tokenizer(NamedTuple):
    """A function from text to tokens where a tokenizer of transformers is asked for."""

    function: Callable[[str], list[int]]

    def encode(self, text: str, **_: Any) -> list[int]:
        return self.function(text)


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
    begin = "<s>" if source == str(contrasts.STORIES / "model") else ""
    return Opened(base._replace(name=short.get(base.name, base.name)), begin, losses, adapter)


def _random(source: str) -> Base:
    model = models.causal_lm(spec_from_config({**RANDOM[source], "vocab_size": 256}))
    name = f"a random {source.removeprefix('random:')}"
    return Base(name, model, model.init(keys.stream(0, "init")), lambda text: list(text.encode()))


def _questions(spec: PlacesSpec, seed: int) -> task_files.ChoiceFile:
    """Questions whose groups bear the seed's name, so that another seed holds out others."""
    if spec.questions:
        found = task_files.read_task(spec.questions)
        assert isinstance(found, task_files.ChoiceFile)
        return found._replace(groups=[f"{seed}/{group}" for group in found.groups])
    questions, groups = [], []
    for events in zip(contrasts.HAPPY, contrasts.SAD, strict=True):
        for right, event in enumerate(events):
            for name in contrasts.GIRLS + contrasts.BOYS:
                prompt = contrasts.TEMPLATES["feelings"].format(name=name, event=event)
                questions.append(Question(prompt, (" happy", " sad"), right))
                groups.append(f"{seed}/{event}")
    return task_files.ChoiceFile(questions, groups)


def _text(spec: PlacesSpec, seed: int) -> task_files.TextFile:
    """A stretch of the text that begins where the seed says."""
    if spec.text:
        found = task_files.read_task(spec.text)
        assert isinstance(found, task_files.TextFile)
        whole = "\n".join(found.documents)
    else:
        whole = language_models.python_code()
    first = int(np.random.default_rng(seed).integers(max(1, len(whole) - spec.num_characters)))
    return task_files.TextFile([whole[first : first + spec.num_characters]])


def shuffled(place: Place, seed: int) -> Batch:
    """The place's questions with the right answers of one another, so that there is nothing to learn from them."""
    order = np.random.default_rng(seed).permutation(len(place.batch.right))
    return place.batch._replace(right=place.batch.right[order])
