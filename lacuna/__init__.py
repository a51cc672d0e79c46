"""Local linear geometry of trained networks, in JAX.

Subpackages are imported by name (`from lacuna import search`); none is imported here, so that a
user of one of them pays for nothing else.
"""

__version__ = "0.1.0"
