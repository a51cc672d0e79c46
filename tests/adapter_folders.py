"""PEFT's adapter folders of the tests: the golden ones, and what is made of them by changing a tensor or a field."""

import json
import shutil
from pathlib import Path

import numpy as np
from model_folders import GOLDEN
from safetensors.numpy import load_file, save_file

from lacuna import models
from lacuna.checkpoints.configs import spec_from_config

FOLDER = Path(__file__).parent / "golden_adapters"


def model_of(name):
    return models.causal_lm(spec_from_config(json.loads((GOLDEN / name / "config.json").read_text())))


def tensors_of(folder):
    return load_file(folder / "adapter_model.safetensors")


def config_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def changed(folder, name, change=lambda tensors: tensors, **config):
    """A golden adapter with other tensors, and other fields in its config."""
    shutil.copytree(FOLDER / name, folder)
    tensors = change(tensors_of(folder))
    save_file({key: np.ascontiguousarray(x) for key, x in tensors.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config_of(folder) | config))
    return folder
