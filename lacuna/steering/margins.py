"""By how much a model prefers the positive of two answers, and the step of the parameters that labels ask for.

Source: ours.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from lacuna import derivatives, trees
from lacuna.errors import InvalidInput
from lacuna.models import Model, logits_at
from lacuna.tasks.contrast import Prompts
from lacuna.types import Delta, Params

Margin = Callable[..., Float[Array, "B"]]
"""`margin(params, tokens, length=..., choices=...)`, such as `partial(choice_margin, model)`."""


def choice_margin(
    model: Model,
    params: Params,
    tokens: Int[Array | np.ndarray, "B S"],
    *,
    length: Int[Array | np.ndarray, "B"],
    choices: Int[Array | np.ndarray, "B 2"],
    **options: Any,
) -> Float[Array, "B"]:
    """Logit of the positive answer minus that of the other behind each prompt: their log-odds, float32.

    Args:
      model: any.
      params: its parameters.
      tokens: prompts, padded behind.
      length: tokens of each.
      choices: of each the tokens of its two answers.
      options: others of the model's `apply`: steer, lora.
    """
    tokens, length, choices = (jnp.asarray(x) for x in (tokens, length, choices))
    found = jnp.take_along_axis(logits_at(model, params, tokens, length - 1, **options), choices, axis=1)
    return found[:, 0] - found[:, 1]


def label_weights(margins: Float[Array, "n"], positive: Bool[Array, "*labellings n"]) -> Float[Array, "*labellings n"]:
    """What each prompt's margin counts in a step downhill of the labels' loss, for any number of labellings.

    The loss of a labelling s = ±1 is the mean of -log sigmoid(s_i m_i) over n prompts, so minus its gradient is
    sum_i w_i grad m_i with w_i = s_i sigmoid(-s_i m_i) / n: linear in gradients that know nothing of the labels.
    """
    sign = jnp.where(positive, 1.0, -1.0)
    return sign * jax.nn.sigmoid(-sign * margins) / margins.shape[-1]


def label_step(margin: Margin, params: Params, prompts: Prompts) -> Delta:
    """Minus the gradient of the labels' loss: the direction of one step of gradient descent, not scaled.

    Args:
      margin: of the model, `partial(choice_margin, model)`, or `models.over_adapter(choice_margin, ...)`.
      params: the point: parameters, or the factors of the adapter.
      prompts: with two answers each.

    Raises:
      InvalidInput: prompts with one label alone, or without two answers.
    """
    check_contrast(prompts)
    return _label_step(trees.as_data(margin), params, prompts)


@jax.jit
def _label_step(margin: Any, params: Params, prompts: Prompts) -> Delta:
    return jax.tree.map(jnp.negative, derivatives.gradient(Partial(_label_loss, margin), params, prompts))


def label_loss(margin: Margin, params: Params, prompts: Prompts) -> Float[Array, ""]:
    """Mean of -log sigmoid(±margin), in nats: plus where the positive answer is right."""
    return _label_loss(margin, params, prompts)


def _label_loss(margin: Any, params: Params, prompts: Prompts) -> Float[Array, ""]:
    found = margin(params, prompts.tokens, length=prompts.length, choices=prompts.choices)
    return jnp.mean(jax.nn.softplus(jnp.where(prompts.right == 0, -found, found)))


def check_contrast(prompts: Prompts) -> None:
    """Raise `InvalidInput` unless there are two answers, and prompts of either label."""
    if prompts.choices.shape[1:] != (2,):
        raise InvalidInput("a contrast needs two answers", got=f"{prompts.choices.shape[1]}")
    num_positive = int((prompts.right == 0).sum())
    if num_positive in (0, len(prompts.right)):
        raise InvalidInput(
            "a contrast needs prompts of both labels", got=f"{num_positive} positive of {len(prompts.right)}"
        )
