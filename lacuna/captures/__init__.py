"""How much of a displacement lies in which basis: bases of a task at a point, and the shares that they capture."""

from lacuna.captures.bases import BasisKind as BasisKind
from lacuna.captures.bases import BasisSpec as BasisSpec
from lacuna.captures.bases import task_basis as task_basis
