"""Sizes at which the command line is tested: a model that is hardly trained, and few draws."""

from lacuna.training import TrainConfig

SHORT = TrainConfig(num_steps=3, warmup_steps=1)
SETTINGS = ["--sigmas", "1e-3", "1e-2", "--batch-size", "8", "--top-k", "3", "--probes", "2", "--chunk", "1"]
SMALL = ["--num-candidates", "20", *SETTINGS]
