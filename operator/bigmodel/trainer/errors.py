"""What a trainer can fail with, one class per cause. Anything else is a fault of the program and keeps its own name.

Whoever started the process (`forkserver`, torchrun) writes the error file that names message and traceback; nothing
here does.
"""


class InvalidRecipe(Exception):
    """The recipe asks for something that it does not know, or that contradicts itself. A restart would not help."""


class InvalidMesh(Exception):
    """The parallel degrees do not multiply to the number of ranks."""


class NonFiniteStep(Exception):
    """The loss or the gradient of a step is not a number. Raised on every rank, before any parameter changed."""


class InvalidModel(Exception):
    """A script publishes something that no server could take. The script must change; nothing was published."""


class ExportMismatch(Exception):
    """The exported program does not answer what the trained model answers: nothing was published."""
