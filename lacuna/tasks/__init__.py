"""Tasks: a loss, a metric and addressable data. Nothing here knows what a model is made of."""

from lacuna.tasks.digits import DIGIT_TASKS as DIGIT_TASKS
from lacuna.tasks.digits import Mixture as Mixture
from lacuna.tasks.digits import digit_batch as digit_batch
from lacuna.tasks.digits import digit_task as digit_task
from lacuna.tasks.digits import mixture as mixture
from lacuna.tasks.digits import vocab_size as vocab_size
from lacuna.tasks.documents import read_documents as read_documents
from lacuna.tasks.documents import read_pairs as read_pairs
from lacuna.tasks.language import language_loss as language_loss
from lacuna.tasks.language import language_task as language_task
from lacuna.tasks.losses import answer_accuracy as answer_accuracy
from lacuna.tasks.losses import answer_cross_entropy as answer_cross_entropy
from lacuna.tasks.mappings import MappingStream as MappingStream
from lacuna.tasks.mappings import mapping as mapping
from lacuna.tasks.row_streams import RowStream as RowStream
from lacuna.tasks.row_streams import in_order as in_order
from lacuna.tasks.row_streams import row_stream as row_stream
from lacuna.tasks.task import Batch as Batch
from lacuna.tasks.task import Encode as Encode
from lacuna.tasks.task import Task as Task
from lacuna.tasks.text import Splits as Splits
from lacuna.tasks.text import TokenRows as TokenRows
from lacuna.tasks.text import check_disjoint as check_disjoint
from lacuna.tasks.text import pack as pack
from lacuna.tasks.text import pack_splits as pack_splits
from lacuna.tasks.text import pair_rows as pair_rows
