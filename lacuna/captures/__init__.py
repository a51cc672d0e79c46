"""How much of a displacement lies in which basis: bases of a task at a point, and the shares that they capture."""

from lacuna.captures.bases import BasisKind as BasisKind
from lacuna.captures.bases import BasisSpec as BasisSpec
from lacuna.captures.bases import task_basis as task_basis
from lacuna.captures.measurement import TaskAt as TaskAt
from lacuna.captures.measurement import displacement as displacement
from lacuna.captures.measurement import measure as measure
from lacuna.captures.measurement import measure_basis as measure_basis
