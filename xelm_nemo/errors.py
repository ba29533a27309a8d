"""Errors a user can act on. Anything else that escapes is a bug and keeps its traceback."""


class XelmError(Exception):
    """Base of every error the command line prints as one line (exit code 2) instead of a traceback."""


class ConfigError(XelmError, ValueError):
    """A configuration value, or two together, that cannot work."""


class CorpusError(XelmError, ValueError):
    """Text that cannot be read: the message names the file and, where there is one, the line."""


class ArtifactError(XelmError):
    """Something on disk that is missing, damaged, or was made for another purpose."""


class CheckpointError(ArtifactError):
    """A checkpoint that is missing, damaged, or holds other tensors than the model has."""


class RunFolderError(XelmError):
    """A run folder that another process holds, or that another configuration made."""


class LaunchError(XelmError):
    """A job that was started and did not finish."""


class TrainingError(XelmError):
    """Training that cannot go on, such as a loss that is no longer a number."""


class Stopped(XelmError):
    """No failure: work that was asked to stop and has saved what it did. The same command goes on."""


def first_line(error: BaseException) -> str:
    """What somebody else's error says, its first line that is not blank; its type where it says nothing."""
    return next(filter(str.strip, str(error).splitlines()), type(error).__name__)
