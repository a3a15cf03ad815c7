"""docs/PROTOCOL.md and README.md say what the code does: each table and list is parsed, and compared."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import platformdirs
import pytest
from pydantic import BaseModel
from typing_extensions import NotRequired

from cag_daemon import config, errors, messages
from cag_daemon.config import DEFAULT_SYSTEM_PROMPT, ENVIRONMENT, FLAGS, KEYS, WORKER_FIELDS, Settings
from cag_daemon.front import protocol, server
from cag_daemon.text import Text

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "PROTOCOL.md").read_text("utf-8")
README = (ROOT / "README.md").read_text("utf-8")


def section(heading: str) -> str:
    """What stands under a heading, up to the next one."""
    match = re.search(rf"^#+ {re.escape(heading)}[^\n]*\n(.*?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert match is not None, heading
    return match[1]


def table(text: str, first: str) -> list[list[str]]:
    """The rows of the table whose first head is that, without the head."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if re.match(rf"\| *{re.escape(first)} *\|", line))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.replace(r"\|", "|").strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


def words(cell: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`]*)`", cell)


def shape(braces: str) -> dict[str, Any]:
    """``{a, b?: {c}, d: [E]}`` as {"a": {}, "b?": {"c": {}}, "d": {}}."""
    found: dict[str, Any] = {}
    levels, key, before = [found], "", ""
    for token in re.findall(r"\w+\??|[{},:]", re.sub(r"\[[^]]*\]", "", braces)):
        if token == "{":
            levels.append(levels[-1].setdefault(key, {}))
        elif token == "}":
            levels.pop()
        elif before in ("{", ","):
            key = token
            levels[-1][key] = {}
        before = token
    return found[""]


def shape_of(kind: Any) -> set[str]:
    """The keys of a typed dictionary, those that may be absent with a question mark."""
    hints = get_type_hints(kind, include_extras=True)
    return {key + "?" * (get_origin(hint) is NotRequired) for key, hint in hints.items()}


# ── settings ────────────────────────────────────────────────────────────────────────────────


def settings_rows() -> dict[str, tuple[str, str]]:
    """By key: type with default, and what a change at run time does. Two keys may share a row."""
    rows = {}
    for keys, kinds, _, change in table(section("Settings"), "key"):
        names = words(keys)
        for name, kind in zip(names, kinds.split(";") if len(names) > 1 else [kinds], strict=True):
            rows[name] = (kind.strip(), change)
    return rows


def test_the_settings_are_those_of_the_table_in_its_order() -> None:
    assert list(settings_rows()) == list(KEYS.values())


@pytest.mark.parametrize("name", KEYS)
def test_a_setting_has_the_type_of_the_table(name: str) -> None:
    cell, _ = settings_rows()[KEYS[name]]
    kinds = {str: "string", int: "integer", float: "number"}
    annotation = Settings.model_fields[name].annotation
    if get_origin(annotation) is Literal:
        assert tuple(words(cell.partition(",")[0])) == get_args(annotation)
    elif name == "device":
        accepted = words(cell)
        assert accepted == ["auto", "cpu", "cuda", "cuda:N", "cuda+cpu", "mps"]
        assert all(Settings(device=value.replace("N", "3")).device for value in accepted)
    else:
        inner = {get_origin(each) or each for each in get_args(annotation)} - {type(None)} or {annotation}
        assert cell.startswith(kinds[inner.pop()]), cell


def test_the_defaults_are_those_of_the_table() -> None:
    rows, settings = settings_rows(), Settings()
    for name, key in KEYS.items():
        default = getattr(settings, name)
        said = rows[key][0].rpartition(", ")[2].strip("`")
        if name == "system_prompt":
            assert rows[key][0] == f"string; default: *{DEFAULT_SYSTEM_PROMPT}*"
        elif name == "device":
            assert default == words(rows[key][0])[0]  # the table names no default but the first
        elif name == "dtype":
            assert default == words(rows[key][0])[0]
        elif isinstance(default, float):
            assert float(said) == default
        elif name not in ("threads", "cache_directory", "cache_max_gigabytes", "memory_max_gigabytes"):
            assert said == str(default), key


def test_the_defaults_that_depend_on_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_rows()["threads"][0] == "integer, physical cores − 1, at least 1"
    for cores, threads in ((8, 7), (2, 1), (1, 1)):
        monkeypatch.setattr(config.psutil, "cpu_count", lambda logical, cores=cores: cores)
        assert Settings().threads == threads
    assert Settings().cache_directory == platformdirs.user_cache_dir("cag-daemon")
    # Left open here, and decided where the free memory and disk are known.
    assert Settings().memory_max_gigabytes is None
    assert Settings().cache_max_gigabytes is None


def test_the_worker_restarts_for_the_settings_of_which_the_table_says_so() -> None:
    told = {key for key, (_, change) in settings_rows().items() if change == "worker restarts"}
    assert told == {KEYS[name] for name in WORKER_FIELDS}


def test_flags_and_environment_are_named_as_the_page_says() -> None:
    (pair,) = re.findall(r"flags `(--[a-z-]+)` before environment `(\w+)`", PAGE)
    assert pair == (FLAGS["max_new_tokens"], ENVIRONMENT["max_new_tokens"])
    assert all(FLAGS[name] == "--" + name.replace("_", "-") for name in KEYS)
    assert all(ENVIRONMENT[name] == "CAG_" + name.upper() for name in KEYS)


def shown_default(name: str) -> str:
    """A default as the README shows it."""
    told = {
        "system_prompt": "the model's own",
        "threads": "physical cores − 1",
        "cache_directory": "the user's cache folder",
        "cache_max_gigabytes": "–",
        "memory_max_gigabytes": "half of what is free",
    }
    value = getattr(Settings(), name)
    return told.get(name) or f"`{f'{value:g}' if isinstance(value, float) else value}`"


def test_the_readme_has_every_setting_with_flag_environment_default_and_meaning() -> None:
    expected = [
        [f"`{KEYS[name]}`", f"`{FLAGS[name]}`", f"`{ENVIRONMENT[name]}`", shown_default(name), str(field.description)]
        for name, field in Settings.model_fields.items()
    ]
    assert table(README, "key") == expected


# ── requests ────────────────────────────────────────────────────────────────────────────────


def schema_type(kind: type[BaseModel], key: str) -> dict[str, Any]:
    """The JSON schema of a parameter; null, which is as good as absent, left out."""
    schema = kind.model_json_schema()["properties"][key]
    options = [each for each in schema.get("anyOf", [schema]) if each.get("type") != "null"]
    assert len(options) == 1
    return options[0]


def test_params_of_ask_are_those_of_the_table() -> None:
    rows = table(section("`cag/ask`"), "key")
    assert [words(row[0])[0] for row in rows] == list(protocol.AskParams.model_fields)
    required = {words(key)[0] for key, _, meaning in rows if meaning.startswith("required")}
    assert required == {name for name, field in protocol.AskParams.model_fields.items() if field.is_required()}
    for key, kind, _ in rows:
        schema = schema_type(protocol.AskParams, words(key)[0])
        if kind.startswith("integer"):
            low, high = map(int, re.findall(r"\d+", kind))
            assert (schema["type"], schema["minimum"], schema["maximum"]) == ("integer", low, high)
        elif '"' in kind:
            choices, default = words(kind)[:-1], words(kind)[-1]
            assert schema["enum"] == [choice.strip('"') for choice in choices]
            assert protocol.AskParams.model_fields[words(key)[0]].default == default.strip('"')
        elif "{" in kind:
            assert set(shape(words(kind)[0])) == set(protocol.Selection.model_fields)
        else:
            assert kind in ("string", "DocumentUri")
            assert schema["type"] == "string"


def test_params_of_refresh_are_those_of_the_page() -> None:
    (params,) = re.findall(r"### `cag/refresh` `(\{.*?\})`", PAGE)
    assert {key.strip("?") for key in shape(params)} == set(protocol.RefreshParams.model_fields)
    assert all(key.endswith("?") for key in shape(params))
    assert not any(field.is_required() for field in protocol.RefreshParams.model_fields.values())


def test_params_and_result_of_locate_are_those_of_the_page() -> None:
    (told,) = re.findall(r"### `cag/locate` `(\{.*?\})` → `(\{.*?\})`", PAGE)
    params, result = map(shape, told)
    required = {key for key, field in protocol.LocateParams.model_fields.items() if field.is_required()}
    assert {key for key in params if not key.endswith("?")} == required
    assert {key.strip("?") for key in params} == set(protocol.LocateParams.model_fields)
    assert set(result) == shape_of(protocol.LocateResult)
    assert set(result["document"]) == shape_of(protocol.Located)


def test_the_result_of_ask_is_that_of_the_table() -> None:
    rows = {words(key)[0]: kind for key, kind, _ in table(section("`cag/ask`"), "result")}
    assert list(rows) == list(protocol.AskResult.__annotations__)
    hints = get_type_hints(protocol.AskResult)
    for key in ("finishReason", "snapshot"):
        assert words(rows[key]) == [f'"{value}"' for value in get_args(hints[key])]
    assert set(shape(words(rows["tokens"])[0])) == shape_of(protocol.AskTokens)
    assert set(shape(words(rows["document"])[0])) == shape_of(protocol.AnsweredFrom)

    text = Text.of("The cat sleeps in a copper kettle.")
    answered = messages.Answered(1, text.version, "The cat sleeps in a copper kettle.", "stop", 20, 9, 8)
    milliseconds = {"queued": 1, "firstToken": 2, "total": 3}
    model = {"name": "m", "quantization": "none"}
    result = protocol.ask_result(answered, text, "file:///d", model, "current", milliseconds, 10)
    assert set(result) == set(rows)
    for key in ("model", "document", "tokens", "milliseconds"):
        assert set(result[key]) == set(shape(words(rows[key])[0])), key  # type: ignore[literal-required]
    (citation,) = result["citations"]
    told = next(each for each in words(" ".join(table(section("`cag/ask`"), "result")[5])) if each.startswith("{"))
    assert set(citation) == set(shape(told))


# ── status, notifications, methods ──────────────────────────────────────────────────────────


def status_shape() -> dict[str, Any]:
    return shape(next(each for each in words(section("`cag/status`")) if each.startswith("{state, short, message")))


def test_a_status_is_that_of_the_page() -> None:
    told = status_shape()
    assert set(told) == shape_of(protocol.Status)
    assert set(told["model?"]) == shape_of(protocol.Model)


def test_the_states_are_those_of_the_page() -> None:
    (line,) = re.findall(r"^`state`: (.*)$", PAGE, re.MULTILINE)
    assert tuple(words(re.sub(r"\([^)]*\)", "", line))) == get_args(protocol.State)


def test_a_document_of_a_status_is_that_of_the_page() -> None:
    (told,) = re.findall(r"^Document: `(.*)`\.$", PAGE, re.MULTILINE)
    states, sources = (re.findall(r'"(\w+)"', part) for part in re.findall(r"(?:state|source): ([^,}]*)", told))
    assert tuple(states) == get_args(protocol.DocumentState)
    assert tuple(sources) == get_args(get_type_hints(protocol.Document)["source"])
    assert set(shape(told)) == shape_of(protocol.Document)
    assert set(shape(told)["cached?"]) == shape_of(protocol.Cached)


def test_the_result_of_refresh_is_that_of_the_page_and_told_as_documentChanged() -> None:
    (result,) = re.findall(r"### `cag/refresh` .*? → `(\{.*?\}\S*, milliseconds\})`", PAGE)
    (params,) = re.findall(r"`cag/documentChanged` `(\{.*?\}\S*, milliseconds\})`", PAGE)
    assert shape(result) == shape(params)
    assert set(shape(result)) == shape_of(protocol.RefreshResult)
    assert set(shape(result)["tokens"]) == shape_of(protocol.RefreshTokens)


def test_the_methods_are_those_of_the_page() -> None:
    ours = {
        *(protocol.ASK, protocol.STATUS, protocol.REFRESH, protocol.LOCATE, protocol.UNLOAD, protocol.TYPING),
        *(protocol.PARTIAL, protocol.STATUS_CHANGED, protocol.DOCUMENT_CHANGED),
    }
    assert set(re.findall(r"`(cag/\w+)", PAGE)) == ours


def test_the_params_of_typing_are_those_of_the_page() -> None:
    (told,) = re.findall(r"^### `cag/typing` `(\{.*?\})`", PAGE, re.MULTILINE)
    fields = protocol.TypingParams.model_fields
    assert set(shape(told)) == {name if field.is_required() else f"{name}?" for name, field in fields.items()}


def test_every_request_of_the_page_is_served() -> None:
    served = {name for name, _ in vars(server.CagProtocol).items() if name.startswith("cag_")}
    asked = set(re.findall(r"^### `cag/(\w+)`", PAGE, re.MULTILINE))
    assert served == {f"cag_{name}" for name in asked}


def test_the_commands_are_those_of_the_page() -> None:
    heading = "Commands (`workspace/executeCommand`)"
    told = [each for each in words(section(heading)) if re.fullmatch(r"cag\.\w+", each)]
    assert tuple(dict.fromkeys(told)) == protocol.COMMANDS


def test_the_features_are_those_that_the_page_says_are_built() -> None:
    (line,) = re.findall(r"^- `features` names (.*?)\.", section("What is built"), re.MULTILINE)
    assert tuple(words(line)) == protocol.FEATURES
    assert "conversation" not in protocol.FEATURES


def test_the_version_is_that_of_the_page() -> None:
    assert PAGE.startswith(f"# The wire contract, version {protocol.PROTOCOL_VERSION}\n")
    assert f'"protocolVersion": {protocol.PROTOCOL_VERSION},' in PAGE


# ── errors ──────────────────────────────────────────────────────────────────────────────────


def test_the_codes_are_those_of_the_table() -> None:
    from cag_daemon.front import jsonrpc

    told = {int(code) for code in re.findall(r"-32\d{3}", section("Errors"))}
    ours = {kind.code for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "code")}
    assert ours | {jsonrpc.REQUEST_CANCELLED} == told


def test_the_reasons_are_those_of_the_table() -> None:
    rows = {row[0]: row[2] for row in table(section("Errors"), "code")}
    told = [each for each in words(re.sub(r"\([^)]*\)", "", rows["-32803"])) if not each.startswith("{")]
    assert told == list(errors.BY_REASON)
    given_up = [each for each in words(rows["-32802"]) if not each.startswith("{")]
    drawn = re.search(r"CancelledByDaemon +-32802 +\{reason: (.*)\}", errors.__doc__ or "")
    assert drawn is not None
    assert given_up == drawn[1].split(" | ")


def test_what_a_reason_carries_is_that_of_the_table() -> None:
    (row,) = (row[2] for row in table(section("Errors"), "code") if row[0] == "-32803")
    told = {reason: words(numbers) for reason, numbers in re.findall(r"`(\w+)` \((`tokens`[^)]*)\)", row)}
    drawn = re.findall(r"── \w+ +(\w+) +\{(tokens.*)\}", errors.__doc__ or "")
    assert told == {reason: numbers.split(", ") for reason, numbers in drawn}


def test_the_room_for_a_question_is_that_of_the_page() -> None:
    from cag_daemon.engine.memory import QUESTION_ROOM

    assert f"less `maxNewTokens` and {QUESTION_ROOM} for the question" in PAGE
