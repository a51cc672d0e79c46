"""What every model is: a description, an initialiser, a forward pass, and which of its leaves are stacked."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float

from lacuna.types import Key, Params


class Output(NamedTuple):
    """What a forward pass returns.

    Attributes:
      logits: unnormalised log-probabilities in nats; those at position s are of the token at s + 1.
      resid: the residual stream, index 0 the embedding output, l the stream after block l, before the final
        norm; None unless it was asked for.
    """

    logits: Float[Array, "B S V"]
    resid: Float[Array, "L+1 B S D"] | None = None


class Model(NamedTuple):
    """A model, pure throughout: no state, and parameters are an argument.

    Attributes:
      spec: the frozen description it was built from.
      init: `init(key) -> params`, a plain tree of dicts.
      apply: `apply(params, tokens) -> Output`; a model may take further keyword arguments.
      stacked: `stacked(leaf_name) -> bool`, whether the leaf carries a leading layer axis. Leaf names are
        those of `trees.leaf_names`, e.g. `layers/attention/qkv/kernel`.
    """

    spec: Any
    init: Callable[[Key], Params]
    apply: Callable[..., Output]
    stacked: Callable[[str], bool]
