"""Every error a user can meet. Each says what happened, to what, and the next step.

CagError                      code    data on the wire
├── InvalidParams             -32602  {parameter}
├── InvalidRequest            -32600
├── NotInitialized            -32002
├── MethodNotFound            -32601
├── CancelledByDaemon         -32802  {reason: shuttingDown | workerRestarted | settingsChanged}
└── RequestFailed             -32803  {reason, …}
    ├── DocumentNotFound              documentNotFound
    ├── DocumentEmpty                 documentEmpty
    ├── DocumentUnreadable            documentUnreadable
    ├── DocumentTooLong               documentTooLong  {tokens, maxTokens, line}
    ├── QuestionTooLong               questionTooLong  {tokens, maxTokens}
    ├── ModelNotFound                 modelNotFound
    ├── ModelFailed                   modelFailed
    └── OutOfMemory                   outOfMemory

Stopped and Postponed are not among them: a cancelled piece of work, or one put off, is an outcome, not an error.
"""

from __future__ import annotations

from typing import Any, ClassVar


class CagError(Exception):
    """An error with a sentence for the user.

    Args:
        message: one sentence: what happened, to what, the next step.
        data: what goes out in the error's ``data`` beside ``reason``.
    """

    code: ClassVar[int] = -32803
    reason: ClassVar[str | None] = None

    def __init__(self, message: str, **data: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = data

    @property
    def data(self) -> dict[str, Any] | None:
        """The error's ``data`` as it travels; None where there is nothing to say."""
        data = {"reason": self.reason} if self.reason else {}
        return (data | self.details) or None


class InvalidParams(CagError):
    """A parameter is missing, of the wrong type or out of range; an unknown command."""

    code = -32602

    def __init__(self, message: str, parameter: str) -> None:
        super().__init__(message, parameter=parameter)


class InvalidRequest(CagError):
    """A request that may not be made now: after ``shutdown``, or a second ``initialize``."""

    code = -32600


class NotInitialized(CagError):
    """A request before ``initialize``."""

    code = -32002


class MethodNotFound(CagError):
    """A request for a method that does not exist."""

    code = -32601


class CancelledByDaemon(CagError):
    """The daemon itself gave a request up; ``reason`` says why."""

    code = -32802

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message, reason=reason)


class RequestFailed(CagError):
    """Understood, but it could not be done."""

    code = -32803


class DocumentNotFound(RequestFailed):
    """There is no such file, or no folder that a relative path could belong to."""

    reason = "documentNotFound"


class DocumentEmpty(RequestFailed):
    """The file is there and holds nothing but white space."""

    reason = "documentEmpty"


class DocumentUnreadable(RequestFailed):
    """Not a regular file, not UTF-8, or not ours to read."""

    reason = "documentUnreadable"


class DocumentTooLong(RequestFailed):
    """More tokens than the model, or memory, can hold: ``tokens``, ``maxTokens``, ``line``."""

    reason = "documentTooLong"


class QuestionTooLong(RequestFailed):
    """The question does not fit beside the document: ``tokens``, ``maxTokens``."""

    reason = "questionTooLong"


class ModelNotFound(RequestFailed):
    """No such model on this machine, or a part of it is missing."""

    reason = "modelNotFound"


class ModelFailed(RequestFailed):
    """The model is there and could not be loaded or run."""

    reason = "modelFailed"


class OutOfMemory(RequestFailed):
    """Memory did not suffice, on the device or in the machine."""

    reason = "outOfMemory"


BY_REASON: dict[str, type[RequestFailed]] = {
    kind.reason: kind for kind in RequestFailed.__subclasses__() if kind.reason
}


def failure(reason: str, message: str, details: dict[str, Any]) -> RequestFailed:
    """The error of that reason: how a failure that came over the pipe is raised again."""
    return BY_REASON[reason](message, **details)


class Stopped(Exception):
    """Work was stopped because somebody asked for it (a cancel, a newer text)."""


class Postponed(Exception):
    """A reading that nobody waits for would take too long, and was not gone on with.

    Args:
        tokens: of the document; ``max_tokens``: that it may have.
        seconds: that reading it will take, about.
    """

    def __init__(self, tokens: int, max_tokens: int, seconds: float) -> None:
        super().__init__(f"Reading {tokens} tokens takes about {seconds:.0f} s.")
        self.tokens, self.max_tokens, self.seconds = tokens, max_tokens, seconds


def one_line(error: BaseException) -> str:
    """An unexpected exception in half a line: its type and the first line of what it says."""
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first}"[:200] if first else type(error).__name__
