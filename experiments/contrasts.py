"""The labelled contrasts of the experiments: a model, questions with two answers, and what is not to be harmed.

*feelings*: who found the toy was happy, who lost it was sad. The label belongs to the event, so prompts of one event
are no independent evidence: the parts share no event, and labels are shuffled over events. Made for a model of
children's stories. *boolq*: yes or no, of a passage; the parts share no passage. Neither is to harm whether a model
knows who is a she and who a he. *digits*: the synthetic model's own, which of two digits a sorted sequence begins with;
it needs no file. Of these two every question is an event of its own.
"""

import itertools
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from experiments.language_models import DATA
from experiments.recoveries import Told
from lacuna import derivatives, keys, models, setups, steering, trees
from lacuna.checkpoints import load_hf, load_tokenizer, sources
from lacuna.errors import InvalidInput
from lacuna.tasks import Prompts, Question, digits, pack, prompt_rows
from lacuna.tasks.boolq import boolq_split, passage_of, read_boolq
from lacuna.tasks.contrast import fitting
from lacuna.tasks.digit_contrast import digit_contrast
from lacuna.training import TrainConfig
from lacuna.types import Delta, Key, Params

STORIES = DATA / "stories"
"""Where the model of children's stories is looked for: `model` and `tokenizer` in it."""

BOOLQ = DATA / "boolq.jsonl"

TASK, DIGITS = "sort", (0, 1)
"""Of the synthetic model: is the least of eight digits a 0 or a 1?"""

AT_A_TIME = 32
"""Questions whose gradients or shifts are in memory together."""

HAPPY = (
    "found the toy", "got a new ball", "went to the park", "played with the dog", "ate a big cake", "had a fun day",
    "saw a pretty bird", "made a new friend", "won the game", "got a big hug", "went to a party",
    "opened a nice gift", "helped the cat", "found a shiny stone", "rode a new bike", "sang a happy song",
    "built a big tower", "had a yummy snack", "played in the sun", "saw a rainbow", "got a red balloon",
    "danced with mom", "found the lost dog", "heard a funny joke", "went to the beach", "picked a nice flower",
    "fed the little duck", "shared the cookies",
)  # fmt: skip

SAD = (
    "lost the toy", "broke the ball", "fell down and got hurt", "could not find the dog", "dropped the cake",
    "had a bad dream", "saw a dead bird", "lost a good friend", "lost the game", "got a big cut", "missed the party",
    "tore the nice gift", "hurt the cat", "lost a shiny stone", "fell off the bike", "heard a scary noise",
    "broke the big tower", "had no food", "had to stay in bed", "got wet in the rain", "popped the red balloon",
    "had a fight with mom", "lost the little dog", "heard a mean word", "got sick at the beach",
    "stepped on a flower", "saw the duck go away", "spilled the milk",
)  # fmt: skip

GIRLS, BOYS = ("Lily", "Anna", "Mia", "Lucy", "Sue", "Sara"), ("Tim", "Tom", "Ben", "Max", "Sam", "Jack")

TEMPLATES = {"feelings": "{name} {event}. {name} was very", "digits": "[task] d_1 .. d_8 [separator]"}
"""Of the prompts; that of BoolQ is `lacuna.tasks.boolq.TEMPLATE`."""

Contrast = Literal["", "feelings", "boolq", "digits"]


@dataclass(frozen=True)
class ContrastSpec:
    """A contrast, and how many questions of it.

    Attributes:
      contrast: `feelings`, `boolq` or `digits`. None: `feelings` where a model is named or `data/stories` is there,
        else `digits`.
      model: folder or hub id of the language model. None: that of `data/stories`.
      tokenizer: folder or hub id. None: that of `data/stories`, or the model's own.
      begin_token: text of a token that stands in front of every row. None: `<s>` for the model of `data/stories`, and
        nothing for another.
      questions: BoolQ: a .jsonl file or an id of `datasets`. None: `data/boolq.jsonl`.
      num_names: names an event is told of, half of them girls'.
      num_fit_events: events of either kind to fit on; a third as many to choose on, and the rest to judge on.
      num_fit: questions to fit on where they are not told of events.
      num_chosen_on: of those, questions to choose levels and strengths on.
      num_judged_on: of those, questions that are looked at last.
      max_length: tokens of a question; BoolQ's longer ones are left out.
      train_steps: of the synthetic model.
    """

    contrast: Contrast = ""
    model: str = ""
    tokenizer: str = ""
    begin_token: str = ""
    questions: str = ""
    num_names: int = 4
    num_fit_events: int = 14
    num_fit: int = 128
    num_chosen_on: int = 64
    num_judged_on: int = 128
    max_length: int = 256
    train_steps: int = 150

    def __post_init__(self) -> None:
        if not 2 <= self.num_names <= 2 * len(GIRLS) or self.num_names % 2:
            raise InvalidInput(f"num_names must be even, from 2 to {2 * len(GIRLS)}", got=self.num_names)
        if not 2 <= self.num_fit_events <= 18:
            raise InvalidInput("num_fit_events must be from 2 to 18", got=self.num_fit_events)
        for name in ("num_fit", "num_chosen_on", "num_judged_on"):
            if getattr(self, name) < 2 or getattr(self, name) % 2:
                raise InvalidInput(f"{name} must be even and at least 2", got=getattr(self, name))
        if self.questions and self.contrast != "boolq":
            raise InvalidInput("questions are those of boolq", got=f"`{self.questions}`", hint="--contrast boolq")
        if self.contrast == "digits" and (self.model or self.tokenizer or self.begin_token):
            raise InvalidInput("digits are asked of the synthetic model alone", hint="--contrast feelings")


SMOKE = ContrastSpec(contrast="digits", num_fit=8, num_chosen_on=8, num_judged_on=8, train_steps=20)
"""As small as can be; parts of one size, so that little is compiled."""


class Part(NamedTuple):
    """Questions of one use.

    Attributes:
      questions: as text; none for the synthetic model.
      prompts: as tokens.
      groups: of each the event that its label belongs to; of its own where there are none.
    """

    questions: tuple[Question, ...]
    prompts: Prompts
    groups: Int[np.ndarray, "n"]


class Contrasted(NamedTuple):
    """A model and a contrast.

    Attributes:
      contrast: its name.
      name: of the model, for tables.
      model: its architecture.
      params: its weights, float32.
      encode: text to tokens; None for the synthetic model.
      begin: the token in front of every row; None where there is none.
      template: of the prompts.
      fit: questions that vectors and steps are made of.
      chosen_on: questions that levels and strengths are chosen on.
      judged_on: questions that are looked at last.
      others: other tasks by name, with two answers each, which steering is not to harm.
      text: plain rows that the model knows.
    """

    contrast: str
    name: str
    model: models.Model
    params: Params
    encode: Any
    begin: int | None
    template: str
    fit: Part
    chosen_on: Part
    judged_on: Part
    others: dict[str, Prompts]
    text: Int[Array, "B S"]


def _kind(spec: ContrastSpec) -> str:
    return spec.contrast or ("feelings" if (STORIES / "model").is_dir() or spec.model else "digits")


def _source(spec: ContrastSpec) -> tuple[str, str]:
    """Model and tokenizer of a contrast of words."""
    if spec.model:
        return spec.model, spec.tokenizer or spec.model
    return str(STORIES / "model"), spec.tokenizer or str(STORIES / "tokenizer")


def resolved(spec: ContrastSpec) -> dict[str, str]:
    """What a specification stands for here and now.

    Raises:
      InvalidInput: what it needs is not there.
    """
    kind = _kind(spec)
    if kind == "digits":
        return {"contrast": kind, "model": "synthetic"}
    source, tokenizer = _source(spec)
    sources.read_config(sources.find(source, weights=False))
    load_tokenizer(tokenizer)
    if kind != "boolq":
        return {"contrast": kind, "model": source, "questions": "events"}
    questions = _questions(spec)
    found = contrasted(spec, 0, Path(), lambda sentence: None)
    check_has_learnt(found.model, found.params, found.text, name=source)
    return {"contrast": kind, "model": source, "questions": questions}


def check_has_learnt(model: models.Model, params: Params, text: Int[Array, "B S"], *, name: str) -> None:
    """Raise unless the model tells the next token of a text better than the mere frequency of its tokens does.

    Random weights cannot, and neither can a model of other texts: what such a one answers about these means nothing,
    and no score of it is to be reported.

    Raises:
      InvalidInput: says how many nats a token each takes.
    """
    nats = float(jnp.mean(models.next_token_nats(model, params, text)))
    shares = np.unique(np.asarray(text[:, 1:]), return_counts=True)[1] / text[:, 1:].size
    by_frequency = -float(np.sum(shares * np.log(shares)))
    if not nats < by_frequency:
        raise InvalidInput(
            f"a model that is asked about passages must have learnt their language; `{name}` takes {nats:.2f} nats a "
            f"token of them, their mere frequencies take {by_frequency:.2f}",
            hint="a trained model, such as Qwen/Qwen2.5-0.5B",
        )


def _questions(spec: ContrastSpec) -> str:
    found = spec.questions or str(BOOLQ)
    if not spec.questions and not BOOLQ.is_file():
        raise InvalidInput("boolq needs its questions", got=f"no {BOOLQ}", hint="--questions google/boolq")
    return found


def contrasted(spec: ContrastSpec, seed: int, cache: Path, told: Told) -> Contrasted:
    """The model and the questions of a seed: another seed is another split of events or questions, and for the
    synthetic model another training."""
    kind = _kind(spec)
    if kind == "digits":
        return _digits(spec, seed, cache, told)
    source, tokenizer_source = _source(spec)
    told(f"reading {source}")
    model, params = load_hf(source, dtype=jnp.float32)
    tokenizer = load_tokenizer(tokenizer_source)
    encode = partial(_encoded, tokenizer)
    begin = _begin(tokenizer, spec.begin_token or ("<s>" if source == str(STORIES / "model") else ""))
    rows = partial(prompt_rows, encode=encode, max_length=spec.max_length, begin=begin)
    if kind == "feelings":
        parts = _feelings(spec, seed, rows)
        template = TEMPLATES["feelings"]
        text = own_text(model, params, begin or 0, num_rows=24, length=48, key=keys.stream(seed, "text"))
    else:
        from lacuna.tasks.boolq import TEMPLATE as template

        parts, text = _boolq(spec, seed, rows, encode, begin)
    told_of = itertools.product(GIRLS + BOYS, HAPPY[::7] + SAD[::7])
    pronouns = [Question(f"{name} {event}.", (" She", " He"), int(name in BOYS)) for name, event in told_of]
    others = {"pronouns": rows(pronouns, first_piece=True)}
    return Contrasted(kind, source, model, params, encode, begin, template, *parts, others, text)


def _begin(tokenizer: Any, token: str) -> int | None:
    """The token of a text; None for no text."""
    found = tokenizer.convert_tokens_to_ids(token) if token else None
    # One that is not there is None of some tokenizers, and of others the token of what is unknown.
    if token and (found is None or tokenizer.convert_ids_to_tokens(found) != token):
        raise InvalidInput("begin_token must be a token of the tokenizer", got=f"`{token}`")
    return found


def _encoded(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False, verbose=False)


def _feelings(spec: ContrastSpec, seed: int, rows: Any) -> list[Part]:
    """Each part has events of its own, told of the same names."""
    random = np.random.default_rng(seed)
    names = [*random.choice(GIRLS, spec.num_names // 2, False), *random.choice(BOYS, spec.num_names // 2, False)]
    cuts = [0, spec.num_fit_events, spec.num_fit_events + max(1, spec.num_fit_events // 3), len(HAPPY)]
    orders = [random.permutation(len(HAPPY)), random.permutation(len(SAD))]
    parts = []
    for first, last in itertools.pairwise(cuts):
        told = [
            (kind * len(HAPPY) + int(event), name)
            for kind, order in enumerate(orders)
            for event in order[first:last]
            for name in names
        ]
        texts = [TEMPLATES["feelings"].format(name=name, event=(HAPPY + SAD)[event]) for event, name in told]
        questions = [
            Question(text, (" happy", " sad"), int(event >= len(HAPPY)))
            for text, (event, _) in zip(texts, told, strict=True)
        ]
        prompts = rows(questions, first_piece=True)  # the model of stories spells `sad` in two pieces
        parts.append(Part(tuple(questions), prompts, np.asarray([event for event, _ in told])))
    return parts


def _boolq(spec: ContrastSpec, seed: int, rows: Any, encode: Any, begin: int | None) -> tuple[list[Part], Any]:
    """The three parts, one question of each passage, and as plain text passages that no part has a question of."""
    source = _questions(spec)
    kept = fitting(read_boolq(source), encode, max_length=spec.max_length, begin=begin)
    of_passage = {passage_of(question): question for question in reversed(kept.questions)}
    sizes = spec.num_fit, spec.num_chosen_on, spec.num_judged_on
    whole = boolq_split(list(of_passage.values()), seed=seed)
    if any(len(part) < size for part, size in zip(whole, sizes, strict=True)):
        asked = f"{source} must have {sizes[0]}, {sizes[1]} and {sizes[2]} questions of different passages"
        several = ", ".join(str(len(part)) for part in whole)
        raise InvalidInput(
            f"{asked} to fit, to choose and to judge on", got=several, hint="fewer of them, or a greater max_length"
        )
    parts = [
        Part(tuple(part[:size]), prompts := rows(part[:size]), np.arange(len(prompts.right)))
        for part, size in zip(whole, sizes, strict=True)
    ]
    spare = [passage_of(question) for part, size in zip(whole, sizes, strict=True) for question in part[size:]]
    if not spare:
        raise InvalidInput("boolq needs questions to spare, whose passages are plain text", got=f"none in {source}")
    text = pack(spare[:200], encode, length=64).tokens[:48]
    if len(text) < 2:
        raise InvalidInput("passages to spare must have 128 tokens", got=f"{len(spare)} passages in {source}")
    return parts, jnp.asarray(text)


def _digits(spec: ContrastSpec, seed: int, cache: Path, told: Told) -> Contrasted:
    """An under-trained synthetic model: a trained one has nothing left to gain."""

    def advance(stage: str, step: int, num_steps: int, loss: float) -> None:
        if step == num_steps:
            told(f"{stage}: step {step} of {num_steps}, loss {loss:.3f}")

    train = TrainConfig(num_steps=spec.train_steps, warmup_steps=min(TrainConfig().warmup_steps, spec.train_steps // 2))
    config = setups.SetupConfig(state="trained", task=TASK, seed=seed, train=train)
    setup = setups.prepare(config, cache=cache, advance=advance, notice=told)
    several = {"fit": spec.num_fit, "chosen_on": spec.num_chosen_on, "judged_on": spec.num_judged_on}
    total = sum(several.values())
    # Of the stream that the model was not trained on.
    every = digit_contrast(seed, TASK, digits=DIGITS, num_rows=total, split="held_out")
    # Half of every part is positive, as half of all is.
    order = np.concatenate([np.flatnonzero(every.positive)[:, None], np.flatnonzero(~every.positive)[:, None]], axis=1)
    parts, first = [], 0
    for size in several.values():
        chosen = order[first // 2 : (first + size) // 2].reshape(-1)
        parts.append(Part((), Prompts(*(leaf[chosen] for leaf in every)), np.arange(len(chosen))))
        first += size
    others = {
        name: digit_contrast(seed, name, digits=DIGITS, num_rows=64, split="held_out")
        for name in ("copy", "reverse", "add")
    }
    text = digits.mixture(digits.DIGIT_TASKS, seed=seed, batch_size=36, split="held_out")(0).tokens
    name = f"synthetic, {spec.train_steps} steps"
    rest = (setup.model, setup.params, None, None, TEMPLATES["digits"])
    return Contrasted("digits", name, *rest, *parts, others, text)


@partial(jax.jit, static_argnums=0, static_argnames=("num_rows", "length"))
def own_text(model: models.Model, params: Params, begin: int, *, num_rows: int, length: int, key: Key) -> Array:
    """Rows that a model has drawn itself, token by token: what it knows best, where no text is at hand."""

    def drawn(position: Array, tokens: Array) -> Array:
        logits = model.apply(params, tokens).logits[:, position - 1]
        return tokens.at[:, position].set(jax.random.categorical(jax.random.fold_in(key, position), logits))

    rows = jnp.zeros((num_rows, length), jnp.int32).at[:, 0].set(begin)
    return lax.fori_loop(1, length, drawn, rows)


def step_of(found: Contrasted, prompts: Prompts, moving: str) -> Delta:
    """The labels' step on some of the questions, a few rows at a time, with the frozen leaves at rest."""
    loss = partial(steering.label_loss, partial(steering.choice_margin, found.model))
    num_rows = len(prompts.right)
    parts = next(n for n in range(1, num_rows + 1) if num_rows % n == 0 and num_rows // n <= AT_A_TIME)
    rows = jax.tree.map(jnp.asarray, prompts)
    slope = derivatives.gradient(loss, found.params, rows, microbatches=parts)
    return steering.restricted(jax.tree.map(jnp.negative, slope), moving)


def shifts_of(found: Contrasted, prompts: Prompts, step: Delta) -> Float[np.ndarray, "levels B D"]:
    """How a step shifts the stream at the last token of each question, to first order."""
    stream, weights = partial(steering.read_stream, found.model), steering.Read().weights(prompts.spans)
    starts = range(0, len(prompts.right), AT_A_TIME)
    several = [slice(start, start + AT_A_TIME) for start in starts]
    reads = (steering.reading(stream, prompts.tokens[rows], weights[rows]) for rows in several)
    return np.concatenate([steering.pushforward(read, found.params, step)[:, :, 0] for read in reads], axis=1)


def of_radius(delta: Delta, params: Params, radius: float) -> Delta:
    """The delta, as long as a share of the parameters' norm."""
    scale = radius * trees.norm(params) / trees.norm(delta)
    return jax.tree.map(lambda x: scale * x, delta)
