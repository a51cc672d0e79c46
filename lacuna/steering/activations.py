"""Reading the residual stream: at which tokens, and with which weights.

Source: ours.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from lacuna.errors import InvalidInput
from lacuna.models import Model
from lacuna.tasks.contrast import Spans
from lacuna.types import Params

Where = Literal["last_prompt", "index", "label", "answer_mean"]


@dataclass(frozen=True)
class Read:
    """The tokens of a row at which its activations are read.

    Attributes:
      where: `last_prompt`, the token before the answer; `index`, counted from the row's end if it is negative and from
        its beginning otherwise; `label`, the first token at which the two answers of a pair differ; `answer_mean`,
        the mean over the tokens of the answer.
      index: of `index`. The published CAA reads at -2: the letter of `(A)`.
      back: further places, each so many tokens before that one, 0 being that itself; all the places come side by side.
    """

    where: Where = "last_prompt"
    index: int = -1
    back: tuple[int, ...] = (0,)

    def weights(self, spans: Spans) -> Float32[np.ndarray, "B Q S"]:
        """What each token counts at each of Q = len(back) places; every place's weights sum to one.

        Raises:
          InvalidInput: no such rule, or a row that has no such token; names it.
        """
        if self.where not in get_args(Where):
            raise InvalidInput(f"where must be one of {', '.join(get_args(Where))}", got=f"`{self.where}`")
        if not self.back or min(self.back) < 0:
            raise InvalidInput("back must be numbers of tokens, at least one of them and none negative", got=self.back)
        back = np.asarray(self.back, np.int32)
        first, last = (at[:, None] - back for at in self._range(spans))
        there = (first >= 0) & (first <= last) & (last < spans.end[:, None])
        if not there.all():
            row, place = np.argwhere(~there)[0].tolist()
            num_answer = max(0, int(spans.end[row] - spans.start[row]))
            rule = f"`index` {self.index}" if self.where == "index" else f"`{self.where}`"
            raise InvalidInput(
                f"row {row} must have a token to read at {rule}"
                + (f", {self.back[place]} tokens back" if self.back[place] else ""),
                got=f"{spans.end[row]} tokens, {num_answer} of them an answer",
            )
        at = np.arange(spans.tokens.shape[1])
        inside = (first[..., None] <= at) & (at <= last[..., None])
        return inside / (last - first + 1).astype(np.float32)[..., None]

    def _range(self, spans: Spans) -> tuple[Int[np.ndarray, "B"], Int[np.ndarray, "B"]]:
        """The first and the last token of each row, before going back."""
        if self.where == "answer_mean":
            return spans.start, spans.end - 1
        at = {
            "last_prompt": spans.start - 1,
            "label": spans.label,
            "index": spans.end + self.index if self.index < 0 else np.full_like(spans.end, self.index),
        }[self.where]
        return at, at


LAST_PROMPT = Read()
"""Where `statement` contrasts are read: the answer is never seen."""

LABEL = Read("label")
"""Where `paired` contrasts are read."""


def read_stream(
    model: Model,
    params: Params,
    tokens: Int[Array | np.ndarray, "B S"],
    *,
    weights: Float[Array | np.ndarray, "B Q S"],
    **options: Any,
) -> Float[Array, "levels B Q D"]:
    """The residual stream at all levels, at the places that weights name; float32 or the model's own if wider.

    Level 0 is the embedding output, l the stream after block l, before the final norm. The stream itself, of
    (L + 1) x B x S x D, is there for one batch at a time: give it in batches.

    Args:
      model: one that reports its stream.
      params: its parameters.
      tokens: rows; padding may stand behind them.
      weights: of `Read.weights`.
      options: others of the model's `apply`: steer, lora.

    Raises:
      InvalidInput: the model does not report its stream.
    """
    resid: Any = model.apply(params, jnp.asarray(tokens), taps="all", **options).resid
    if resid is None:
        raise InvalidInput('the model must report its residual stream with taps="all"', got="logits alone")
    wide = jnp.promote_types(resid.dtype, jnp.float32)
    highest = jax.lax.Precision.HIGHEST
    return jnp.einsum("lbsd,bqs->lbqd", resid.astype(wide), jnp.asarray(weights, wide), precision=highest)
