"""Parameters on disk."""

from lacuna.checkpoints.hf import BadCheckpoint as BadCheckpoint
from lacuna.checkpoints.hf import load_hf as load_hf
from lacuna.checkpoints.hf import load_tokenizer as load_tokenizer
