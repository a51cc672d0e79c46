"""Tables and sizes, as the commands print them."""

from collections.abc import Sequence

from rich import box
from rich.table import Table


def plain_table(*heads: str, text: Sequence[int] = (0,)) -> Table:
    """Text on the left, in the columns at the positions `text`; numbers on the right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i in text else "right", no_wrap=True, vertical="bottom")
    return table


def format_bytes(num_bytes: int) -> str:
    """In GB, or in MB if it is less than one GB."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.2f} MB"
