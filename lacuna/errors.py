"""The errors that a user can cause, each of them one sentence: what was asked, what came, what to do.

The command line prints the sentence and exits with status 2; a library caller catches `LacunaError`.
"""


class LacunaError(Exception):
    """Base of every error that lacuna raises on purpose.

    Args:
      asked: what was asked, with the name of the argument or the flag.
      got: what came instead; empty where `asked` says it all.
      hint: what to do about it.

    >>> print(InvalidInput("sigmas must be positive", got=-1.0, hint="1e-3"))
    sigmas must be positive; got -1.0. Try: 1e-3.
    """

    def __init__(self, asked: str, *, got: object = "", hint: str = ""):
        sentence = asked
        if got != "":
            sentence += f"; got {got}"
        if hint:
            sentence += f". Try: {hint}"
        # One line, whatever came: a name may hold a line break, or half a character that no terminal takes.
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in sentence)
        super().__init__(shown.rstrip(".") + ".")


class InvalidInput(LacunaError):
    """An argument outside its domain."""


class GeometryError(LacunaError):
    """Vectors that cannot be worked with: not on one tree, not floating, not finite, or too few."""


class TreeMismatch(GeometryError):
    """Two trees that must have the same leaves and shapes do not."""


class RunMismatch(LacunaError):
    """A folder holds a run of another identity; nothing in it was touched."""


class NotFinite(LacunaError):
    """A loss that must be finite for the question to make sense is not."""
