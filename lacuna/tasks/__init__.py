"""Tasks: a loss, a metric and addressable data. Nothing here knows what a model is made of."""

from lacuna.tasks.digits import DIGIT_TASKS as DIGIT_TASKS
from lacuna.tasks.digits import Mixture as Mixture
from lacuna.tasks.digits import digit_batch as digit_batch
from lacuna.tasks.digits import digit_task as digit_task
from lacuna.tasks.digits import mixture as mixture
from lacuna.tasks.digits import vocab_size as vocab_size
from lacuna.tasks.losses import answer_accuracy as answer_accuracy
from lacuna.tasks.losses import answer_cross_entropy as answer_cross_entropy
from lacuna.tasks.task import Batch as Batch
from lacuna.tasks.task import Task as Task
