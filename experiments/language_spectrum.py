"""C1: task gradients of language models are locally low-rank, by layer and by kind of matrix.

Paper: arXiv 2606.10929, abstract and Figure 5: strong on the synthetic model and on LoRA; on Qwen-7B not to be told
from sampling noise. Its tasks are not known to us. Ours are windows of texts of several kinds and the digit mappings
as text, several questions a row and named by a letter; all rows have as many tokens. The statistic is that of
`gradient_spectrum`: the scatter between tasks from two disjoint halves of the batches, its null labels permuted over
batches. Full gradients, and those of an adapter that was warmed a few steps on all tasks alike: at a fresh one B is
zero, and with it the gradient of A. No two gradients need to be in memory together (`geometry.streamed_gram`,
`geometry.sketched_gram`); layers and kinds of matrices have Gram matrices of their own from the same pass.
A text and a table of digits differ in one obvious direction: its share of the scatter is the control, and the mappings
among themselves are judged beside all. Full gradients are taken at the adapter's point too: what differs there between
the two is the adapter, and not how far the tasks have been learnt.
`python -m experiments language-spectrum:small` takes what is in `data/` (model, tokenizer, literary.txt,
technical.txt, wiki.txt), or pretrains a GPT-2 on the texts of Python's own library. A seed is another draw of batches,
and of the adapter and its warm steps; the weights of a model that is given stay what they are. `paper` takes GPT-2 and
Qwen from the hub, and sketches the gradients that do not fit. `smoke` has a tiny GPT-2 of random weights.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from experiments import language_models, task_scatter
from experiments.language_models import PYTHON, Base, LanguageModelSpec
from experiments.prefixes import Measure
from experiments.recoveries import Told, value_at
from experiments.spectrum_judged import claims as claims
from experiments.spectrum_shown import figures as figures
from experiments.spectrum_shown import tables as tables
from lacuna import derivatives, geometry, keys, models
from lacuna.errors import InvalidInput
from lacuna.reports.records import Place, Record
from lacuna.tasks import digits, mappings, row_streams, text
from lacuna.tasks.language import language_loss
from lacuna.tasks.task import Batch
from lacuna.training import TrainConfig, fit
from lacuna.types import Loss, Params

NAME, TITLE = "language_spectrum", "The spectrum of task gradients of language models"
ABOUT = (
    "Spectrum of the scatter between the gradients of several tasks, texts and mappings of digits, from two disjoint "
    "halves of the batches: in all parameters, and within each layer and kind of matrix. *full*: all parameters of the "
    "model as it is; *lora*: the factors of an adapter that was warmed a few steps on all tasks alike, for at a fresh "
    "one the gradient of its factor A is zero; *merged*: all parameters with that adapter added in, the control for "
    "where the gradients are taken. The rule: the scatter is larger than under permuted labels (p below 0.01 in every "
    "seed) and its participation ratio is below half the number of tasks. Texts differ from digits in one obvious "
    "direction: the control is that this contrast holds at most half of the scatter, and the mappings are also judged "
    "among themselves. A seed is another draw of batches, and of the adapter; a model that is given has the same "
    "weights in all of them, so the spread says what the batches do and nothing about other models."
)

Arm = Literal["full", "merged", "lora"]
GramKind = Literal["auto", "exact", "sketched"]

MOST_COMPUTED = 3
"""How often a gradient is computed, on average, before sketches are taken instead of exact products."""

KINDS = {
    "embedding": "embedding",
    "positions": "embedding",
    "head": "head",
    "attention/out": "attention out",
    "attention": "attention in",
    "mlp/down": "mlp down",
    "mlp": "mlp up",
}
"""What kind of matrix a leaf belongs to, by how its path begins; whatever has `norm` in it is a norm."""


@dataclass(frozen=True)
class Config:
    """Between-task spectra of language models.

    Attributes:
      num_seeds: seeds 0, 1, ... of the batches, and of the adapter.
      models: folders or hub ids; "" is what `base` says.
      arms: whose gradients: of all parameters where they are, of all parameters with the warm adapter added in, and of
        that adapter's factors.
      further_texts: sources of text besides those of `base`, each a task that is called as its file. None:
        `data/wiki.txt` if it is there.
      mappings: operations on digits, each a task.
      num_batches: minibatches of each task, in two halves.
      num_rows: rows of a batch.
      digits: in a question of the mappings.
      num_questions: in a row, which has as many tokens as they make, of text too.
      num_permutations: of the labels.
      num_bootstraps: draws of the batches again.
      gram: inner products of the gradients: exact, from sketches, or exact unless gradients would be computed more
        than three times on average.
      memory_gib: for gradients that are held.
      sketch_size: numbers in the sketch of each layer's part of each kind.
      lora_rank: of the adapter.
      sites: regular expression of the linear maps that it adapts.
      warm_steps: AdamW on all tasks by turns from a fresh adapter.
      warm_rate: its peak.
      base: the language model and two of the texts.

    Raises:
      InvalidInput: fewer than two mappings or unknown ones, an odd number of batches, or numbers that are too small.
    """

    num_seeds: int = 5
    models: tuple[str, ...] = ("",)
    arms: tuple[Arm, ...] = get_args(Arm)
    further_texts: tuple[str, ...] = ()
    mappings: tuple[str, ...] = ("sort", "reverse", "copy", "add", "rotate", "complement")
    num_batches: int = 8
    num_rows: int = 8
    digits: int = 4
    num_questions: int = 4
    num_permutations: int = 400
    num_bootstraps: int = 200
    gram: GramKind = "auto"
    memory_gib: float = 2.0
    sketch_size: int = 16384
    lora_rank: int = 8
    sites: str = ".*"
    warm_steps: int = 20
    warm_rate: float = 5e-3
    base: LanguageModelSpec = field(default_factory=LanguageModelSpec)

    def __post_init__(self) -> None:
        for task in self.mappings:
            digits.task_token(task)
        if not 2 <= len(set(self.mappings)) == len(self.mappings):
            raise InvalidInput("mappings must be two or more, all different", got=self.mappings)
        if self.num_batches < 2 or self.num_batches % 2:
            raise InvalidInput("num_batches must be even, in two halves", got=self.num_batches)
        if not self.models or not self.arms:
            raise InvalidInput("a model and an arm must be named", got="none of one")
        for name in ("num_rows", "digits", "num_questions", "num_permutations", "num_bootstraps", "warm_steps"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} must be at least 1", got=getattr(self, name))


PRESETS = {
    "smoke": Config(
        1,
        mappings=("sort", "copy"),
        num_batches=2,
        num_rows=2,
        digits=3,
        num_questions=2,
        num_permutations=20,
        num_bootstraps=10,
        gram="exact",
        memory_gib=0.0005,
        lora_rank=2,
        sites="attention/qkv",
        warm_steps=2,
        base=LanguageModelSpec(texts=PYTHON, vocab_size=300, width=16, num_layers=2, num_heads=2, pretrain_steps=0),
    ),
    "small": Config(),
    "paper": Config(
        models=("openai-community/gpt2", "Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-7B"),
        further_texts=("data/wiki.txt",),
        mappings=tuple(digits.DIGIT_TASKS),
        num_batches=16,
        num_questions=8,
        num_permutations=2000,
        memory_gib=40.0,
        base=LanguageModelSpec(texts=("data/literary.txt", "data/technical.txt")),
    ),
}


def _further(config: Config) -> dict[str, str]:
    """Names and sources of the further texts."""
    wiki = language_models.DATA / "wiki.txt"
    given = config.further_texts or ((str(wiki),) if wiki.exists() and not config.base.texts else ())
    return {Path(source).stem: source for source in given}


def resolved(config: Config) -> dict[str, str]:
    """What stands for defaults here."""
    found = [language_models.resolved(spec) for spec in _specs(config)]
    for source in _further(config).values():
        language_models.read_text(source, config.base)
    return {
        **{name: "; ".join(one[name] for one in found) for name in found[0]},
        "further_texts": ", ".join(_further(config).values()),
    }


def _specs(config: Config) -> list[LanguageModelSpec]:
    return [replace(config.base, model=source) if source else config.base for source in config.models]


class Drawn(NamedTuple):
    """Batches of all tasks, all of one shape.

    Attributes:
      names: of the tasks, the texts first.
      warm: to warm an adapter on, the tasks by turns; leading axis of steps.
      batches: leading axis of rows of the Gram matrix: all batches of the first task, then of the next.
    """

    names: tuple[str, ...]
    warm: Batch
    batches: Batch


def drawn(config: Config, base: Base, spec: LanguageModelSpec, seed: int) -> Drawn:
    """The batches of a seed; no row of a text is in two of them.

    Raises:
      InvalidInput: a text that is too short for that, or a tokenizer that has no single tokens for digits.
    """
    num_asked = config.num_rows * config.num_questions
    questions = {
        name: mappings.mapping(name, base.encode, seed=seed, batch_size=num_asked, length=config.digits, named=True)
        for name in config.mappings
    }
    length = config.num_questions * next(iter(questions.values()))(0).tokens.shape[1]
    sources = {name: language_models.read_text(source, spec) for name, source in _further(config).items()}
    documents = {**language_models.documents(spec), **sources}
    names = (*documents, *questions)
    num_warm = -(-config.warm_steps // len(names))
    each = num_warm + config.num_batches
    streams: dict[str, Any] = {}
    for name, found in documents.items():
        rows = text.pack_splits(found, base.encode, length=length).train
        needed = config.num_rows * each
        if rows.num_rows < needed:
            raise InvalidInput(f"`{name}` must fill {needed} rows of {length} tokens", got=rows.num_rows)
        streams[name] = row_streams.row_stream(rows, seed=seed, batch_size=config.num_rows, name=f"spectrum/{name}")
    for place, (name, stream) in enumerate(questions.items()):
        # All mappings of a seed have the same questions at a step: each has steps of its own.
        streams[name] = Partial(partial(_folded, config.num_rows), stream, jnp.int32(place * each))
    every = [jax.device_get(_first(streams[name], each)) for name in names]
    of_tasks = jax.tree.map(lambda *leaves: np.stack(leaves), *every)  # tasks, steps, rows, tokens
    step = np.arange(config.warm_steps)
    warm = jax.tree.map(lambda x: jnp.asarray(x[step % len(names), step // len(names)]), of_tasks)
    batches = jax.tree.map(lambda x: jnp.asarray(x[:, num_warm:].reshape(-1, *x.shape[2:])), of_tasks)
    return Drawn(names, warm, batches)


_first = jax.jit(lambda stream, num: jax.lax.map(stream, jnp.arange(num)), static_argnums=1)


def _folded(num_rows: int, stream: Any, offset: Any, step: Any) -> Batch:
    """Several questions of a mapping one after the other in each row."""
    return jax.tree.map(lambda x: x.reshape(num_rows, -1), stream(offset + step))


def kind(leaf_name: str) -> str:
    """The kind of matrix that a leaf belongs to; the factors of an adapter belong to that of their site."""
    if "norm" in leaf_name:
        return "norms"
    path = leaf_name.removeprefix("layers/")
    return next(name for start, name in KINDS.items() if path.startswith(start))


def group(leaf_name: str, layer: int | None) -> tuple[str, int]:
    """Kind and layer, from 1; 0 is outside of the blocks."""
    return kind(leaf_name), 0 if layer is None else layer + 1


def run_seed(config: Config, seed: int, cache: Path, told: Told) -> list[Record]:
    """All numbers of one seed."""
    found: list[Record] = []
    for spec in _specs(config):
        base = language_models.base(spec, cache, told)
        given = drawn(config, base, spec, seed)
        told(f"{base.name}: warming an adapter")
        at = points(config, base, given.warm, seed)
        for arm in config.arms:
            told(f"{base.name}, {arm}: gradients of {', '.join(given.names)}")
            where = {"seed": seed, "model": base.name, "arm": arm}
            measures = _of_arm(config, base, given, *getattr(at, arm), seed, told)
            found += [Record(NAME, q, value, _unit(q), {**where, **at}) for q, value, at in measures]
    return found


def _unit(quantity: str) -> str:
    return {"nats": "nats", "gradients_wall_s": "s"}.get(quantity, "1")


def _of_arm(
    config: Config, base: Base, given: Drawn, loss: Loss, params: Params, seed: int, told: Told
) -> Iterator[Measure]:
    """Everything about the gradients of a loss at a point."""
    yield "num_params", float(sum(x.size for x in jax.tree.leaves(params))), {}
    for place, name in enumerate(given.names):
        batch = jax.tree.map(lambda x, i=place * config.num_batches: x[i], given.batches)
        yield "nats", float(value_at(loss, params, batch)), {"task": name}
    began = time.monotonic()
    grams, num_gradients = gram_of(config, base, loss, params, given.batches, seed, told)
    yield "gradients_wall_s", time.monotonic() - began, {}
    yield "num_gradients", float(num_gradients), {}
    total = grams.total
    off = ~np.eye(len(total), dtype=bool)
    yield "sketch_error", float(np.sqrt(grams.variance.sum(axis=0)[off].mean()) / np.diag(total).mean()), {}
    yield from _measures(config, grams, given.names, np.random.default_rng(seed))


class Points(NamedTuple):
    """What is differentiated, and where.

    Attributes:
      full: loss and parameters of the model as it is.
      merged: with the warm adapter added in.
      lora: of the adapter's factors.
    """

    full: tuple[Loss, Params]
    merged: tuple[Loss, Params]
    lora: tuple[Loss, Params]


def points(config: Config, base: Base, warm: Batch, seed: int) -> Points:
    """A model, and an adapter of it after a few steps on all tasks by turns: its factor B is no longer zero."""
    of_all = language_loss(partial(models.next_token_nats, base.model))
    lora = models.lora_spec(base.model, rank=config.lora_rank, sites=config.sites)
    loss = language_loss(models.over_adapter(models.next_token_nats, base.model, base.params, lora))
    train = TrainConfig(config.warm_steps, config.warm_rate, config.warm_steps // 4, weight_decay=0.0)
    warmed = fit(loss, lora.init(keys.stream(seed, "adapter")), Partial(_at, warm), train).params
    return Points((of_all, base.params), (of_all, models.merged(base.params, lora.bind(warmed))), (loss, warmed))


def _at(batches: Batch, step: Any) -> Batch:
    return jax.tree.map(lambda x: x[step], batches)


def gram_of(
    config: Config, base: Base, loss: Loss, params: Params, batches: Batch, seed: int, told: Told
) -> tuple[geometry.Grams, int]:
    """Gram matrices of the batches' gradients by kind and layer, and how many gradients were computed for them."""
    num_rows = len(batches.tokens)
    room = int(config.memory_gib * 2**30) // sum(x.nbytes for x in jax.tree.leaves(params)) - 1
    block = max(1, min(num_rows, room))
    num_exact = sum(num_rows - start for start in range(0, num_rows, block))
    exact = config.gram == "exact" or (config.gram == "auto" and num_exact <= MOST_COMPUTED * num_rows)

    def gradient(i: int) -> Params:
        return derivatives.gradient(loss, params, _at(batches, i))

    def progress(done: int, count: int) -> None:
        if done % 200 == 0:
            told(f"{done} of {count} gradients")

    options: Any = {"group": group, "stacked": base.model.stacked, "progress": progress}
    if exact:
        return geometry.streamed_gram(gradient, num_rows, block=block, **options), num_exact
    sketch = geometry.Sketch(keys.stream(seed, "sketch"), config.sketch_size)
    return geometry.sketched_gram(gradient, num_rows, sketch, **options), num_rows


def _measures(
    config: Config, grams: geometry.Grams, names: Sequence[str], rng: np.random.Generator
) -> Iterator[Measure]:
    """The scatter between all tasks and between the mappings, in all parameters and by parts."""
    first = len(names) - len(config.mappings)
    for tasks, start in (("all", 0), ("mappings", first)):
        rows = slice(start * config.num_batches, None)
        is_mapping = (np.arange(start, len(names)) >= first).astype(float)
        yield from scatter_measures(config, _restricted(grams, rows), is_mapping, {"tasks": tasks}, rng)
    for place, name in enumerate(names):
        own = slice(place * config.num_batches, (place + 1) * config.num_batches)
        values = np.linalg.eigvalsh(grams.total[own, own])[::-1]
        yield "one_task_participation_ratio", task_scatter.participation_ratio(values), {"task": name}
        yield "one_task_top_energy", float(values[0] / values.sum()), {"task": name}
        for i, value in enumerate(values / values.sum(), start=1):
            yield "one_task_energy", float(value), {"task": name, "i": i}


def _restricted(grams: geometry.Grams, rows: slice) -> geometry.Grams:
    return grams._replace(products=grams.products[:, rows, rows], variance=grams.variance[:, rows, rows])


def scatter_measures(
    config: Config, grams: geometry.Grams, is_mapping: np.ndarray, where: dict[str, Place], rng: np.random.Generator
) -> Iterator[Measure]:
    """The scatter between some tasks, with gradients as they are and each scaled to length one."""
    labels, half = task_scatter.halves(len(is_mapping), config.num_batches)
    shuffles = [task_scatter.permuted(labels, half, rng) for _ in range(config.num_permutations)]
    for scaling, scaled in (("raw", lambda gram: gram), ("normalised", task_scatter.normalised)):
        at = {**where, "scaling": scaling}
        gram = scaled(grams.total)
        found = task_scatter.scatter(gram, labels, half, shuffles)
        yield "p_value", found.p_value, at
        yield "participation_ratio", found.participation_ratio, at
        yield "share_of_energy", found.share, at
        if not is_mapping.all():
            yield "share_of_contrast", task_scatter.share_along(gram, labels, half, is_mapping), at
        bounds = np.quantile(found.null, 0.95, axis=0)
        for i, (energy, bound) in enumerate(zip(found.energy, bounds, strict=True), start=1):
            yield "energy", float(energy), {**at, "i": i}
            yield "energy_at_random", float(bound), {**at, "i": i}
        again = task_scatter.bootstrap(gram, labels, half, rng, num=config.num_bootstraps)
        for name, values in zip(("participation_ratio", "share_of_energy"), again, strict=True):
            for bound, level in (("low", 0.05), ("high", 0.95)):
                yield f"{name}_{bound}", float(np.quantile(values, level)), at
        for cut in ("cell", "layer", "kind"):
            parts = grams.merged(lambda own, cut=cut: _cut(cut, own))
            within = np.stack([scaled(products) for products in parts.products])
            scattered = task_scatter.scatter_of_parts(within, labels, half, shuffles)
            for j, (kind, layer) in enumerate(parts.groups):
                place: dict[str, Place] = {**at, "cut": cut, "kind": kind, "layer": layer}
                for name, values in zip(scattered._fields, scattered, strict=True):
                    yield f"part_{name}", float(values[j]), place


def _cut(cut: str, own: Any) -> tuple[str, int]:
    """Kind and layer, of which what is added up is left out."""
    kind, layer = own
    return ("all" if cut == "layer" else kind), (-1 if cut == "kind" else layer)
