"""Which tensor of a Hugging Face file is which leaf: one table a family, to be read in both directions.

torch keeps a linear map as [out, in] and GPT-2's `Conv1D` as [in, out]; here every kernel is [in, out].
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lacuna.models import CausalLMSpec


@dataclass(frozen=True)
class Rule:
    """One leaf and its tensors.

    Attributes:
      tensor: name in the file, without the prefix of the base model; `{}` stands for the layer.
      leaf: name in our tree; those under `layers/` are stacks of one tensor a layer.
      transpose: the file keeps the matrix the other way round.
    """

    tensor: str
    leaf: str
    transpose: bool = False

    @property
    def stacked(self) -> bool:
        """One tensor a layer."""
        return "{}" in self.tensor

    def tensors(self, prefix: str, num_layers: int) -> list[str]:
        """Names in the file, in the order of the layers. The head is outside of the base model: no prefix."""
        if self is HEAD:
            return [self.tensor]
        return [prefix + self.tensor.format(i) for i in range(num_layers if self.stacked else 1)]


@dataclass(frozen=True)
class Keymap:
    """The table of one family.

    Attributes:
      prefix: of the base model's tensors; a file may leave it out.
      rules: for each leaf.
      ignored: tensors that are no parameters.
    """

    prefix: str
    rules: tuple[Rule, ...]
    ignored: tuple[str, ...] = ()

    def by_leaf(self, *, tied: bool) -> dict[str, Rule]:
        """The rule of each leaf."""
        return {rule.leaf: rule for rule in (*self.rules, *(() if tied else (HEAD,)))}

    def is_ignored(self, tensor: str) -> bool:
        """A buffer that some versions have written."""
        return any(re.search(pattern, tensor) for pattern in self.ignored)


HEAD = Rule("lm_head.weight", "head/kernel", transpose=True)
"""Outside of the base model in every family; there where the head is not the embedding."""


def _linear(theirs: str, ours: str, *, bias: bool, transpose: bool = True) -> list[Rule]:
    rules = [Rule(f"{theirs}.weight", f"{ours}/kernel", transpose)]
    return [*rules, Rule(f"{theirs}.bias", f"{ours}/bias")] if bias else rules


def _gpt2(spec: CausalLMSpec) -> Keymap:
    rules = [Rule("wte.weight", "embedding"), Rule("wpe.weight", "positions")]
    for theirs, ours in (
        ("h.{}.ln_1", "layers/attention_norm"),
        ("h.{}.ln_2", "layers/mlp_norm"),
        ("ln_f", "final_norm"),
    ):
        rules += [Rule(f"{theirs}.weight", f"{ours}/scale"), Rule(f"{theirs}.bias", f"{ours}/bias")]
    for theirs, ours in (
        ("attn.c_attn", "attention/qkv"),
        ("attn.c_proj", "attention/out"),
        ("mlp.c_fc", "mlp/up"),
        ("mlp.c_proj", "mlp/down"),
    ):
        rules += _linear(f"h.{{}}.{theirs}", f"layers/{ours}", bias=True, transpose=False)
    # Causal masks that older versions saved. Not `attn.c_attn.bias`, which is a parameter.
    return Keymap("transformer.", tuple(rules), (r"(^|\.)h\.\d+\.attn\.(bias|masked_bias)$",))


def _like_llama(spec: CausalLMSpec) -> Keymap:
    rules = [Rule("embed_tokens.weight", "embedding")]
    for theirs, ours, bias in (
        ("self_attn.q_proj", "attention/query", spec.qkv_bias),
        ("self_attn.k_proj", "attention/key", spec.qkv_bias),
        ("self_attn.v_proj", "attention/value", spec.qkv_bias),
        ("self_attn.o_proj", "attention/out", spec.out_bias),
        ("mlp.gate_proj", "mlp/gate", spec.mlp_bias),
        ("mlp.up_proj", "mlp/up", spec.mlp_bias),
        ("mlp.down_proj", "mlp/down", spec.mlp_bias),
    ):
        rules += _linear(f"layers.{{}}.{theirs}", f"layers/{ours}", bias=bias)
    if spec.query_key_norm != "none":
        for theirs, ours in (("q_norm", "query_norm"), ("k_norm", "key_norm")):
            rules.append(Rule(f"layers.{{}}.self_attn.{theirs}.weight", f"layers/attention/{ours}/scale"))
    if spec.norm == "rms":
        # The same name means the norm after attention in OLMo 2 and the norm before the MLP elsewhere.
        before, after = "post_attention_layernorm", "post_feedforward_layernorm"
        first, second = (before, after) if spec.norm_after else ("input_layernorm", before)
        rules += [
            Rule(f"layers.{{}}.{first}.weight", "layers/attention_norm/scale"),
            Rule(f"layers.{{}}.{second}.weight", "layers/mlp_norm/scale"),
            Rule("norm.weight", "final_norm/scale"),
        ]
    return Keymap("model.", tuple(rules), (r"(^|\.)rotary_emb\.inv_freq$",))


KEYMAPS: dict[str, Callable[[CausalLMSpec], Keymap]] = {
    "gpt2": _gpt2,
    **dict.fromkeys(("llama", "qwen2", "qwen3", "olmo", "olmo2"), _like_llama),
}
"""By `model_type`."""


def leaf_of(tree: Any, name: str) -> Any:
    """The leaf of that name."""
    for key in name.split("/"):
        tree = tree[key]
    return tree
