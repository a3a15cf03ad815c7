"""The state of a session in the contract's words, and in the user's."""

from __future__ import annotations

from cag_daemon.errors import DocumentNotFound
from cag_daemon.front import protocol
from cag_daemon.front.document import Document
from cag_daemon.front.protocol import Status
from cag_daemon.front.session import Session


def status_of(session: Session) -> Status:
    """``cag/status`` at this moment."""
    state, message = _state(session)
    status: Status = {
        "state": state,
        "message": message,
        "documents": [_document(session, document) for document in session.documents.values()],
        "queue": session.queue,
    }
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
    return status


def _state(session: Session) -> tuple[protocol.State, str]:
    documents, backend = list(session.documents.values()), session.backend
    if not session.started:
        return "starting", "Starting."
    if backend.error is not None:
        return "failed", backend.error.message
    if backend.model is None and (backend.state == "loading" or any(document.reading for document in documents)):
        return "loading", f"Loading the model ({session.settings.model})."
    if session.answering:
        return "answering", "Answering."
    for document in documents:
        if (reading := document.reading) is not None:
            so_far = f": {reading.done:,} of {reading.total:,} tokens" if reading.total else ""
            return "reading", f"Reading {document.path.name}{so_far}."
    if not documents:
        return "noDocument", f"No folder is open that {session.settings.document} could be in; open one."
    if all(isinstance(document.error, DocumentNotFound) for document in documents):
        return "noDocument", str(documents[0].error)
    if any(document.held is not None and document.error is None for document in documents):
        return "ready", _ready(session, documents)
    for document in documents:
        problem = document.error or document.has_failed()
        if problem is not None and not isinstance(problem, DocumentNotFound):
            return "failed", problem.message
    if session.unloaded:
        return "unloaded", "The model is not in memory; the next question brings it back."
    return "ready", "Ready: the document is read with the next question."


def _ready(session: Session, documents: list[Document]) -> str:
    answer = session.settings.max_new_tokens
    read = [
        f"{document.path.name}, {held.tokens:,} of {held.limit - answer:,} tokens"
        for document in documents
        if (held := document.held) is not None
    ]
    model = session.backend.model
    return f"Ready: {'; '.join(read)}." + (f" Model: {model.name} ({model.why})." if model is not None else "")


def _document(session: Session, document: Document) -> protocol.Document:
    status: protocol.Document = {"uri": document.uri, "state": "waiting", "source": document.source}
    held, reading, failure = document.held, document.reading, document.has_failed()
    limit = 0
    if document.known is not None:
        status["version"] = document.known.version
    if held is not None:
        status["tokens"], status["bytes"], limit = held.tokens, held.bytes, held.limit
    if document.error is not None:
        status["state"] = "missing" if isinstance(document.error, DocumentNotFound) else "failed"
        status["message"] = document.error.message
    elif reading is not None and session.backend.state == "ready":
        status["state"], limit = "reading", reading.limit
        if reading.total:
            status["tokens"], status["read"] = reading.total, reading.done
        if (left := reading.seconds_left) is not None:
            status["secondsLeft"] = left
    elif failure is not None:
        status["state"], status["message"] = "failed", failure.message
        if "tokens" in failure.details and "maxTokens" in failure.details:
            status["tokens"] = failure.details["tokens"]
            limit = failure.details["maxTokens"] + session.settings.max_new_tokens
    elif document.is_held(session.settings.system_prompt):
        status["state"] = "ready"
    if limit:
        status["maxTokens"] = limit - session.settings.max_new_tokens
    return status
