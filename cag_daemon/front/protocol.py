"""The wire contract: method names, params, results and states, as docs/PROTOCOL.md tells them.

Params are pydantic models, strict: what does not fit is an `InvalidParams` that names the parameter. Results are plain
dictionaries in the contract's own camelCase, shaped by the typed dictionaries below.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import NotRequired, TypedDict

from cag_daemon import citations, messages
from cag_daemon.errors import InvalidParams
from cag_daemon.text import Text, normalise

PROTOCOL_VERSION = 1
FEATURES = (
    *("ask", "citations", "commands", "locate", "partial", "previous"),
    *("refresh", "selection", "short", "status", "typing", "unload"),
)

ASK = "cag/ask"
STATUS = "cag/status"
REFRESH = "cag/refresh"
LOCATE = "cag/locate"
UNLOAD = "cag/unload"
TYPING = "cag/typing"
PARTIAL = "cag/partial"
STATUS_CHANGED = "cag/statusChanged"
DOCUMENT_CHANGED = "cag/documentChanged"

COMMANDS = ("cag.ask", "cag.askSelection", "cag.refresh", "cag.status", "cag.unload")

State = Literal["starting", "noDocument", "loading", "reading", "ready", "answering", "unloaded", "failed"]
DocumentState = Literal["missing", "waiting", "reading", "ready", "failed"]


class _Params(BaseModel):
    """Params of a request: strict types, unknown keys ignored; null is as good as absent."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class Position(_Params):
    """A place in a text: line, and UTF-16 code units into it."""

    line: int = Field(ge=0)
    character: int = Field(ge=0)


class Range(_Params):
    """From a place up to, not including, another."""

    start: Position
    end: Position


class Selection(_Params):
    """What the user had selected, and where."""

    uri: str
    range: Range
    text: str


class AskParams(_Params):
    """Params of ``cag/ask``."""

    question: str
    id: str | None = None
    document: str | None = None
    selection: Selection | None = None
    maxNewTokens: Annotated[int, Field(ge=1, le=4096)] | None = None
    whileRefreshing: Literal["wait", "previous"] | None = "wait"
    conversation: str | None = None

    def checked(self) -> AskParams:
        """These params, the question cleaned; `InvalidParams` where a value cannot be served."""
        if self.conversation is not None:
            raise InvalidParams(
                "conversation: follow-up questions are not built yet; ask without it.", parameter="conversation"
            )
        question = normalise(self.question).strip()
        if not question:
            raise InvalidParams("question: it is blank; ask something.", parameter="question")
        return self.model_copy(update={"question": question})


class TypingParams(_Params):
    """Params of ``cag/typing``."""

    question: str
    document: str | None = None
    selection: Selection | None = None

    def checked(self) -> TypingParams:
        """These params, the question as ``cag/ask`` would have it."""
        return self.model_copy(update={"question": normalise(self.question).strip()})


class RefreshParams(_Params):
    """Params of ``cag/refresh``."""

    document: str | None = None
    force: bool | None = False


class LocateParams(_Params):
    """Params of ``cag/locate``."""

    text: str
    document: str | None = None

    def checked(self) -> LocateParams:
        """These params; `InvalidParams` where the text is blank."""
        if not self.text.strip():
            raise InvalidParams("text: it is blank; send words of an answer.", parameter="text")
        return self


P = TypeVar("P", bound=_Params)


def parse(kind: type[P], params: Any) -> P:
    """The params as ``kind``; `InvalidParams` with the first parameter that does not fit. None is as good as {}."""
    params = {} if params is None else params
    if not isinstance(params, dict):
        raise InvalidParams(f"params: expected an object, got {type(params).__name__}.", parameter="params")
    try:
        return kind.model_validate(params)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = [str(part) for part in problem["loc"]]
        parameter = where[0] if where else "params"
        words = problem["msg"]
        raise InvalidParams(
            f"{'.'.join(where) or 'params'}: {words[0].lower()}{words[1:]}.", parameter=parameter
        ) from None


class Model(TypedDict):
    """``model`` of ``cag/status``; an answer's has only name and quantization."""

    name: str
    device: str
    dtype: str
    quantization: str
    parameters: int
    bytes: int
    chunk: int


class Cached(TypedDict):
    """The last whole cache of a document: of ``tokens`` so many had to be computed, the others were kept."""

    version: str
    tokens: int
    computed: int


class Document(TypedDict):
    """A workspace folder's document, as ``cag/status`` tells it."""

    uri: str
    state: DocumentState
    message: NotRequired[str]
    reason: NotRequired[str]
    version: NotRequired[str]
    source: Literal["disk", "buffer"]
    tokens: NotRequired[int]
    read: NotRequired[int]
    maxTokens: NotRequired[int]
    bytes: NotRequired[int]
    secondsLeft: NotRequired[int]
    cached: NotRequired[Cached]
    notice: NotRequired[str]


class Client(TypedDict):
    """An editor that shares the daemon; ``documents`` are URIs."""

    name: str
    documents: list[str]


class Status(TypedDict):
    """The result of ``cag/status``, and the params of ``cag/statusChanged``."""

    state: State
    short: str
    message: str
    reason: NotRequired[str]
    percent: NotRequired[int]
    model: NotRequired[Model]
    documents: list[Document]
    queue: int
    unloadsInSeconds: NotRequired[int]
    clients: NotRequired[list[Client]]


class AnsweredFrom(TypedDict):
    """What an answer was answered from, or what a refresh has read; ``tokens`` with the template around it."""

    uri: str
    version: str
    tokens: int


class AskTokens(TypedDict):
    """Counts of tokens of one answer."""

    cached: int
    prompt: int
    generated: int
    drafted: int
    accepted: int


class AskResult(TypedDict):
    """The result of ``cag/ask``."""

    answer: str
    finishReason: Literal["stop", "length"]
    model: dict[str, str]
    document: AnsweredFrom
    snapshot: Literal["current", "previous"]
    citations: list[dict[str, Any]]
    tokens: AskTokens
    milliseconds: dict[str, int]
    notice: NotRequired[str]


class Located(TypedDict):
    """Which text of a document words were looked for in."""

    uri: str
    version: str


class LocateResult(TypedDict):
    """The result of ``cag/locate``."""

    document: Located
    citations: list[dict[str, Any]]


def cite(words: str, text: Text, uri: str) -> list[dict[str, Any]]:
    """Where the words stand in the text, as the contract's citations. In a long text it takes its time."""
    return [
        {
            "answerRange": [each.answer_start, each.answer_end],
            "location": {"uri": uri, "range": text.range(each.start, each.end)},
            "match": "exact",
        }
        for each in citations.find(words, text)
    ]


def ask_result(
    answered: messages.Answered,
    text: Text | None,
    uri: str,
    model: dict[str, str],
    snapshot: Literal["current", "previous"],
    milliseconds: dict[str, int],
    reads: int | None,
) -> AskResult:
    """The result of ``cag/ask``.

    Args:
        text: what was answered from, where the answer's words are looked for.
        reads: see `notice`.
    """
    result: AskResult = {
        "answer": answered.text,
        "finishReason": "length" if answered.finish_reason == "length" else "stop",
        "model": model,
        "document": {"uri": uri, "version": answered.version, "tokens": answered.cached},
        "snapshot": snapshot,
        "citations": cite(answered.text, text, uri) if text is not None else [],
        "tokens": {
            "cached": answered.cached,
            "prompt": answered.prompt,
            "generated": answered.generated,
            "drafted": answered.drafted,
            "accepted": answered.accepted,
        },
        "milliseconds": milliseconds,
    }
    if (words := notice(model["name"], reads, answered.cached)) is not None:
        result["notice"] = words
    return result


def notice(model: str, reads: int | None, tokens: int) -> str | None:
    """What to say where a document is longer than a model is good for; None: it is not.

    Args:
        reads: tokens up to which it is good; None: nobody has measured it.
    """
    if reads is None or tokens <= reads:
        return None
    return (
        f"The document has {tokens:,} tokens, and the {model} model is good for about {reads:,}: "
        "look at what it quotes. A real Mistral reads more: run `cag-daemon pull`."
    )


class RefreshTokens(TypedDict):
    """What a reading cost: ``kept + computed = total``."""

    total: int
    kept: int
    computed: int


class RefreshResult(TypedDict):
    """The result of ``cag/refresh``, and the params of ``cag/documentChanged``."""

    document: AnsweredFrom
    tokens: RefreshTokens
    milliseconds: int
