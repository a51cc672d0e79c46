"""Reading the residual stream: at which tokens, and with which weights."""

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
        num_rows, num_tokens = spans.tokens.shape
        found = np.zeros((num_rows, len(self.back), num_tokens), np.float32)
        for i in range(num_rows):
            first, last = self._range(spans, i)
            for q, back in enumerate(self.back):
                if not 0 <= first - back <= last - back < spans.end[i]:
                    raise InvalidInput(
                        f"row {i} has {spans.end[i]} tokens, of which {max(0, spans.end[i] - spans.start[i])} are its "
                        f"answer; there is none to read at `{self.where}`"
                        + (f" {self.index}" if self.where == "index" else "")
                        + (f", {back} tokens back" if back else "")
                    )
                found[i, q, first - back : last - back + 1] = 1 / (last - first + 1)
        return found

    def _range(self, spans: Spans, row: int) -> tuple[int, int]:
        """The first and the last token of a row."""
        start, end = int(spans.start[row]), int(spans.end[row])
        if self.where == "answer_mean":
            return (start, end - 1) if end > start else (-1, -1)
        at = {
            "last_prompt": start - 1,
            "label": int(spans.label[row]),
            "index": self.index + end if self.index < 0 else self.index,
        }[self.where]
        return at, at


LAST_PROMPT = Read()


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
      model: that reports its stream: `causal_lm` or `synthetic`.
      params: its parameters.
      tokens: rows; padding may stand behind them.
      weights: of `Read.weights`.
      options: others of the model's `apply`: steer, lora.
    """
    resid: Any = model.apply(params, jnp.asarray(tokens), taps="all", **options).resid
    wide = jnp.promote_types(resid.dtype, jnp.float32)
    highest = jax.lax.Precision.HIGHEST
    return jnp.einsum("lbsd,bqs->lbqd", resid.astype(wide), jnp.asarray(weights, wide), precision=highest)


def stream_norms(resid: Float[Array, "levels B Q D"]) -> Float[Array, "levels"]:
    """The mean norm of the stream at each level: what strengths of steering are fractions of."""
    return jnp.mean(jnp.linalg.norm(resid.astype(jnp.float32), axis=-1), axis=(1, 2))
