"""Parameters on disk."""

from lacuna.checkpoints.adapters import Adapter as Adapter
from lacuna.checkpoints.adapters import load_adapter as load_adapter
from lacuna.checkpoints.adapters import save_adapter as save_adapter
from lacuna.checkpoints.export import export_hf as export_hf
from lacuna.checkpoints.hf import LoadReport as LoadReport
from lacuna.checkpoints.hf import load_hf as load_hf
from lacuna.checkpoints.hf import load_tokenizer as load_tokenizer
from lacuna.checkpoints.safetensors_file import BadCheckpoint as BadCheckpoint
