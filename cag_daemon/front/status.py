"""The state of a session in the contract's words, and in the user's."""

from __future__ import annotations

from cag_daemon.errors import DocumentNotFound, RequestFailed
from cag_daemon.front import protocol
from cag_daemon.front.document import Document, Held
from cag_daemon.front.protocol import Status
from cag_daemon.front.session import Session


def status_of(session: Session) -> Status:
    """``cag/status`` at this moment."""
    state, message, problem = _state(session)
    percent = _percent(session, state)
    status: Status = {
        "state": state,
        "short": _short(session, state, percent),
        "message": message,
        "documents": [_document(session, document) for document in session.documents.values()],
        "queue": session.queue,
    }
    if problem is not None and problem.reason is not None:
        status["reason"] = problem.reason
    if percent is not None:
        status["percent"] = percent
    if (model := session.backend.model) is not None:
        status["model"] = {
            "name": model.name,
            "device": model.device,
            "dtype": model.dtype,
            "quantization": model.quantization,
            "parameters": model.parameters,
            "bytes": model.bytes,
            "chunk": model.chunk,
        }
    if (left := session.unloads_in) is not None:
        status["unloadsInSeconds"] = round(left)
    if (clients := session.clients()) is not None:
        status["clients"] = clients
    return status


def _state(session: Session) -> tuple[protocol.State, str, RequestFailed | None]:
    """The state, the sentence that tells it, and what is wrong where something is."""
    documents, backend = list(session.documents.values()), session.backend
    if session.stopped:
        return "unloaded", "The daemon was stopped; the next question starts it again.", None
    if not session.started:
        return "starting", "Starting.", None
    if backend.error is not None:
        return "failed", backend.error.message, backend.error
    if backend.model is None and (backend.state == "loading" or any(document.reading for document in documents)):
        model, held = session.settings.model, session.settings.quantization
        first = "" if held == "none" else f", in {held}: the first time takes minutes"
        return "loading", f"Loading the model ({model}){first}.", None
    if session.answering:
        return "answering", "Answering.", None
    for document in documents:
        if (reading := document.reading) is not None:
            so_far = f": {reading.done:,} of {reading.total:,} tokens" if reading.total else ""
            return "reading", f"Reading {document.path.name}{so_far}.", None
    if not documents:
        nowhere = DocumentNotFound(f"No folder is open that {session.settings.document} could be in; open one.")
        return "noDocument", nowhere.message, nowhere
    if all(isinstance(document.error, DocumentNotFound) for document in documents):
        return "noDocument", str(documents[0].error), documents[0].error
    if any(each.held is not None and each.error is None and each.has_failed() is None for each in documents):
        return "ready", _ready(session, documents), None
    for document in documents:
        problem = document.error or document.has_failed()
        if problem is not None and not isinstance(problem, DocumentNotFound):
            return "failed", problem.message, problem
    if session.unloaded:
        return "unloaded", "The model is not in memory; the next question brings it back.", None
    for document in documents:
        if (seconds := session.reader.postponed(document)) is not None:
            words = f"Reading {document.path.name} takes {_duration(round(seconds))}"
            return "ready", f"{words}: it begins with a question, or refresh to begin now.", None
    return "ready", "Ready: the document is read with the next question.", None


def _ready(session: Session, documents: list[Document]) -> str:
    read = [
        f"{document.path.name}, {held.tokens:,} of {_most(session, held.limit):,} tokens"
        for document in documents
        if (held := document.held) is not None
    ]
    model = session.backend.model
    notices = [words for each in documents if each.held is not None and (words := _notice(session, each.held))]
    told = f"Ready: {'; '.join(read)}." + (f" Model: {model.name} ({model.why})." if model is not None else "")
    return " ".join([told, *notices[:1]])


def _notice(session: Session, held: Held) -> str | None:
    model = session.backend.model
    return protocol.notice(model.name, model.reads, held.tokens) if model is not None else None


def _percent(session: Session, state: protocol.State) -> int | None:
    """How far loading or reading has come."""
    if state == "loading":
        return session.backend.percent
    for document in session.documents.values():
        if state == "reading" and (reading := document.reading) is not None and reading.total:
            return min(100, 100 * reading.done // reading.total)
    return None


def _short(session: Session, state: protocol.State, percent: int | None) -> str:
    """The state with its numbers, in a few words."""
    documents = list(session.documents.values())
    if state == "loading":
        return f"loading {percent} %"
    if state == "reading":
        reading = next(document.reading for document in documents if document.reading is not None)
        so_far = f" {reading.done:,} of {reading.total:,} tokens" if reading.total else ""
        return f"reading{so_far}" + (f", {_duration(left)}" if (left := reading.seconds_left) else "")
    if state == "answering":
        return f"answering · {session.queue} waiting" if session.queue else "answering"
    if state == "noDocument":
        return "no document"
    if state == "ready":
        held = [document.held for document in documents if document.held is not None]
        tokens = sum(each.tokens for each in held)
        limit = max((_most(session, each.limit) for each in held), default=0)
        numbers = [f"{_round(tokens)} of {_round(limit)} tokens"] if len(held) == 1 else []
        numbers += [f"{len(held)} documents, {_round(tokens)} tokens"] if len(held) > 1 else []
        changed = any(each.known is not None and not each.is_held(session.settings.system_prompt) for each in documents)
        waits = [seconds for each in documents if (seconds := session.reader.postponed(each)) is not None]
        numbers += [f"reading takes {_duration(round(waits[0]))}"] if waits and not held else []
        return " · ".join(["ready", *numbers, *(["text changed"] if held and changed else [])])
    return state


def _round(tokens: int) -> str:
    """``850``, ``13.5k``, ``131k``."""
    if tokens < 1000:
        return str(tokens)
    return f"{tokens / 1000:.1f}".removesuffix(".0") + "k" if tokens < 99_950 else f"{tokens / 1000:.0f}k"


def _duration(seconds: int) -> str:
    """About how long, in the unit that people think in."""
    if seconds < 10:
        return "a few seconds"
    if seconds < 90:
        return f"about {round(seconds, -1)} s"
    return f"about {round(seconds / 60)} min" if seconds < 90 * 60 else f"about {round(seconds / 3600)} h"


def _document(session: Session, document: Document) -> protocol.Document:
    status: protocol.Document = {"uri": document.uri, "state": "waiting", "source": document.source}
    held, reading, failure = document.held, document.reading, document.has_failed()
    limit, problem = 0, None
    if document.known is not None:
        status["version"] = document.known.version
    if held is not None:
        status["tokens"], status["bytes"], limit = held.tokens, held.bytes, held.limit
        status["cached"] = {"version": held.text.version, "tokens": held.tokens, "computed": held.computed}
        if (words := _notice(session, held)) is not None:
            status["notice"] = words
    if document.error is not None:
        status["state"] = "missing" if isinstance(document.error, DocumentNotFound) else "failed"
        status["message"] = document.error.message
        problem = document.error
    elif reading is not None and session.backend.state == "ready":
        status["state"], limit = "reading", reading.limit
        if reading.total:
            status["tokens"], status["read"] = reading.total, reading.done
        if (left := reading.seconds_left) is not None:
            status["secondsLeft"] = left
    elif failure is not None:
        status["state"], status["message"] = "failed", failure.message
        problem = failure
        if "tokens" in failure.details and "maxTokens" in failure.details:
            status["tokens"] = failure.details["tokens"]
            limit = failure.details["maxTokens"] + session.settings.max_new_tokens
    elif document.is_held(session.settings.system_prompt):
        status["state"] = "ready"
    elif (estimate := session.reader.estimate(document)) is not None:
        status["secondsLeft"] = round(estimate)
    if problem is not None and problem.reason is not None:
        status["reason"] = problem.reason
    if limit:
        status["maxTokens"] = _most(session, limit)
    return status


def _most(session: Session, limit: int) -> int:
    """How many tokens a document may have, beside an answer as long as is set now."""
    return max(0, limit - session.settings.max_new_tokens)
