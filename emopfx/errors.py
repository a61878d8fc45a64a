"""The two ways a command ends badly; the command line turns them into one sentence and an exit code."""


class InputError(Exception):
    """What was asked for is wrong (a config, a flag, a file): exit code 2, and asking again will not help."""


class RunError(Exception):
    """What was asked for is right but did not work out: exit code 1, and running it again may help."""
