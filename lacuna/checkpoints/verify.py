"""Ours against transformers on the same folder: the stream after every layer, and the logits."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from lacuna.checkpoints.hf import load_hf
from lacuna.checkpoints.sources import find
from lacuna.errors import InvalidInput, LacunaError
from lacuna.models.causal_lm import head_kernel, logits_of, stream

LIMIT = 2e-5
"""Largest difference allowed, over the largest value of that level: float32 in another order of summation."""


class MissingPeer(LacunaError):
    """transformers or torch, which lacuna is compared with, are not installed."""


@dataclass(frozen=True)
class Level:
    """One place in the model where both were read.

    Attributes:
      name: of the place.
      difference: largest absolute difference over all tokens that are no padding.
      size: largest absolute value there, by transformers.
    """

    name: str
    difference: float
    size: float

    @property
    def relative(self) -> float:
        """Difference over size."""
        return self.difference / self.size if self.size else self.difference

    @property
    def passed(self) -> bool:
        """Within `LIMIT`; what is not finite is not."""
        return self.relative <= LIMIT


@dataclass(frozen=True)
class Verification:
    """What a comparison found.

    Attributes:
      levels: the embedding output, the stream after each block, the final norm, the logits.
      same_top: share of the positions where both prefer the same token.
      divergence_nats: mean KL divergence of our next-token distribution from theirs.
      num_tokens: compared.
    """

    levels: tuple[Level, ...]
    same_top: float
    divergence_nats: float
    num_tokens: int

    @property
    def passed(self) -> bool:
        """Whether all levels agree."""
        return all(level.passed for level in self.levels)


def sample_tokens(
    vocab_size: int, length: int, *, seed: int = 0
) -> tuple[Int[np.ndarray, "2 S"], Int[np.ndarray, "2 S"]]:
    """Two rows of random tokens and their mask: a third of the second row is padding on the left."""
    tokens = np.random.default_rng(seed).integers(0, vocab_size, (2, length))
    mask = np.ones_like(tokens)
    mask[1, : length // 3] = 0
    return tokens, mask


def verify_hf(
    source: str | Path,
    tokens: Int[np.ndarray, "B S"],
    mask: Int[np.ndarray, "B S"],
    *,
    ignore: tuple[str, ...] = (),
) -> Verification:
    """Run both in float32 on the CPU and compare.

    Args:
      source: as for `load_hf`.
      tokens: what both read.
      mask: 0 where there is padding, which is not compared.
      ignore: as for `load_hf`.

    Raises:
      InvalidInput, BadCheckpoint: as from `load_hf`; a token beyond the vocabulary; more tokens than positions; or a
        folder that transformers does not run.
      MissingPeer: torch is not installed.
    """
    folder = find(source)
    model, params = load_hf(folder, dtype=jnp.float32, ignore=ignore)
    if tokens.size and (tokens.min() < 0 or tokens.max() >= model.spec.vocab_size):
        raise InvalidInput(
            f"tokens must be below {model.spec.vocab_size}", got=int(tokens.max()), hint="the tokenizer of the model"
        )

    @jax.jit
    def ours(params: Any) -> tuple[Any, Any, Any]:
        found = stream(model.spec, params, jnp.asarray(tokens), mask=jnp.asarray(mask), taps="all")
        return found.resid, found.hidden, logits_of(found.hidden, head_kernel(model.spec, params))

    with jax.default_matmul_precision("highest"):  # a GPU would take TF32 otherwise
        resid, hidden, logits = (np.asarray(x) for x in ours(params))
    try:
        theirs = _transformers(folder, tokens, mask)
    except LacunaError:
        raise
    except Exception as fault:  # a config may ask it for anything
        what = f"{type(fault).__name__} {fault}".splitlines()[0][:300]
        raise InvalidInput(f"transformers must run {folder}", got=what) from fault
    names = ["embedding output", *(f"after block {i + 1}" for i in range(model.spec.num_layers))]
    kept = mask.astype(bool)
    pairs = zip(
        [*names, "after the final norm", "logits"], [*resid, hidden, logits], [*theirs[0], theirs[1]], strict=True
    )
    levels = tuple(
        Level(name, float(np.abs(a[kept] - b[kept]).max()), float(np.abs(b[kept]).max())) for name, a, b in pairs
    )
    mine, peer = (_log_shares(x[kept]) for x in (logits, theirs[1]))
    divergence = float(np.mean(np.sum(np.exp(peer) * (peer - mine), axis=-1)))
    same = float(np.mean((mine.argmax(-1) == peer.argmax(-1)) & np.isfinite(mine + peer).all(-1)))
    return Verification(levels, same, divergence, int(kept.sum()))


def _log_shares(logits: Float[np.ndarray, "n V"]) -> Float[np.ndarray, "n V"]:
    logits = logits.astype(np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def _transformers(folder: Path, tokens: np.ndarray, mask: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """The stream at L + 1 places, then after the final norm; and the logits: by transformers, in float32."""
    try:
        import torch  # pyrefly: ignore  (an extra, and only for this)
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging
    except ImportError as absent:
        raise MissingPeer(
            "verify-hf compares with transformers on torch", got=str(absent), hint="pip install 'lacuna[parity]'"
        ) from absent
    logging.disable_progress_bar()
    peer, info = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        local_files_only=True,
        output_loading_info=True,
    )
    # It does not raise for a tensor that is missing: it invents one.
    missing = [name for name in info["missing_keys"] if not name.endswith("lm_head.weight")]
    if missing:
        raise InvalidInput(f"transformers finds no tensor for {len(missing)} parameters of {folder}", got=missing[0])
    # It counts padding as positions unless it is told.
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    # Its last state is after the final norm; the stream after the last block is what goes into that.
    before_norm: list[Any] = []
    final_norm = getattr(peer.base_model, "ln_f", None) or peer.base_model.norm
    final_norm.register_forward_pre_hook(lambda module, inputs: before_norm.append(inputs[0]))
    with torch.no_grad():
        out = peer.eval()(
            torch.from_numpy(tokens),
            attention_mask=torch.from_numpy(mask),
            position_ids=torch.from_numpy(positions),
            output_hidden_states=True,
        )
    states = [*out.hidden_states[:-1], before_norm[0], out.hidden_states[-1]]
    return [state.numpy() for state in states], out.logits.numpy()
