"""What saving and loading can fail with, one class per cause."""


class InvalidState(Exception):
    """The state holds something that no checkpoint can hold. The program must change; a restart would not help."""


class MismatchedState(Exception):
    """The checkpoint is of another program: its tensors or entries are not those of the state."""


class SaveFailed(Exception):
    """Nothing was committed, for a reason outside the program. Training goes on with the checkpoint before."""


class CorruptCheckpoint(Exception):
    """Bytes of a committed checkpoint are gone or are not those that were saved."""
