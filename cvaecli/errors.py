"""The errors that a user sees as one line. Any other exception is a bug and keeps its traceback."""

from __future__ import annotations


class CvaeError(Exception):
    """A failure in one line: what is wrong, where, and what to do about it.

    Args:
        message: one line that names the file or key and the fault.
        hint: what to do; shown after the message. May be empty.

    ``exit_code`` is the process's exit status: 1, the run failed.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UserError(CvaeError):
    """Wrong input or usage: a config key, a file, a folder, an argument. Exit status 2."""

    exit_code = 2


class DataError(UserError):
    """A data set that cannot be used. ``faults`` lists every fault found, one line each."""

    def __init__(self, message: str, hint: str = "", faults: list[str] | None = None) -> None:
        super().__init__(message, hint)
        self.faults = faults or []


class ReportedElsewhereError(CvaeError):
    """A failure that another process of the same training reports; this process ends without a message.

    Args:
        exit_code: exit status of the reported failure.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__("ended together with the other processes")
        self.exit_code = exit_code


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of PyTorch says that a device, or the host, has no memory left.

    By name and text: importing torch here would slow down every ``--help``. CUDA itself says "CUDA error: out
    of memory".
    """
    text = str(error)
    return type(error).__name__ == "OutOfMemoryError" or "allocate memory" in text or "out of memory" in text
