"""The VS Code client says what the daemon says: methods, features, states, params, results, settings, versions."""

from __future__ import annotations

import json
import re
from typing import Any, get_args, get_origin, get_type_hints

import pytest

import cag_daemon
from cag_daemon import errors
from cag_daemon.config import KEYS, WORKER_FIELDS, Settings
from cag_daemon.errors import BY_REASON
from cag_daemon.front import jsonrpc, protocol
from tests.client import ROOT
from tests.editors.found import missing

VSCODE = ROOT / "editor-clients" / "vscode"
PACKAGE = json.loads((VSCODE / "package.json").read_text("utf-8"))
PROPERTIES = PACKAGE["contributes"]["configuration"]["properties"]
TABLES = (VSCODE / "src" / "protocol.ts").read_text("utf-8")
OWN = {"cag.executable"}  # settings that are the client's and not the daemon's


def source(name: str) -> str:
    return (VSCODE / "src" / name).read_text("utf-8")


def listed(name: str, text: str = TABLES) -> list[str]:
    """A constant that is a list of strings."""
    match = re.search(rf"export const {name} = \[(.*?)\]", text, re.DOTALL)
    assert match is not None, name
    return re.findall(r"'([^']*)'", match[1])


def interface(name: str) -> dict[str, str]:
    """The keys of an interface with their types, those that may be absent with a question mark."""
    match = re.search(rf"export interface {name} \{{\n(.*?)\n\}}", TABLES, re.DOTALL)
    assert match is not None, name
    return dict(re.findall(r"^  (\w+\??): (.*);$", match[1], re.MULTILINE))


def inner(kind: str) -> set[str]:
    return set(re.findall(r"(\w+)\??:", kind))


def keys_of(kind: Any) -> set[str]:
    hints = get_type_hints(kind, include_extras=True)
    return {key + "?" * (str(get_origin(hint)).endswith("NotRequired")) for key, hint in hints.items()}


def test_the_protocol_is_of_the_same_version() -> None:
    assert f"export const PROTOCOL_VERSION = {protocol.PROTOCOL_VERSION};" in TABLES


def test_the_features_it_needs_are_those_the_daemon_lists() -> None:
    assert set(listed("FEATURES")) <= set(protocol.FEATURES)


def test_the_methods_are_the_daemons() -> None:
    ours = dict(re.findall(r"^  (\w+): '(cag/\w+)',$", TABLES, re.MULTILINE))
    theirs = {value for name, value in vars(protocol).items() if isinstance(value, str) and value.startswith("cag/")}
    assert set(ours.values()) == theirs - {protocol.DOCUMENT_CHANGED}  # what it says, the status says, too
    elsewhere = [file.name for file in (VSCODE / "src").glob("*.ts") if "'cag/" in source(file.name)]
    assert elsewhere == ["protocol.ts"]


def test_the_states_are_the_daemons() -> None:
    assert tuple(listed("STATES")) == get_args(protocol.State)
    shown = re.findall(r"^  (\w+): '\$\(", source("status.ts"), re.MULTILINE)
    assert shown == listed("STATES")  # each has an icon
    states = re.findall(r"'(\w+)'", interface("DocumentStatus")["state"])
    assert tuple(states) == get_args(protocol.DocumentState)


def test_the_errors_are_the_daemons() -> None:
    codes = dict(re.findall(r"(\w+): (-32\d{3})", TABLES))
    assert int(codes["cancelled"]) == jsonrpc.REQUEST_CANCELLED
    assert int(codes["cancelledByDaemon"]) == errors.CancelledByDaemon.code
    assert int(codes["failed"]) == errors.RequestFailed.code
    remedies = set(re.findall(r"case '(\w+)':", source("errors.ts")))
    client_only = {each for each in remedies if each.startswith("daemon")}
    assert remedies - client_only <= set(BY_REASON)
    assert set(BY_REASON) - remedies == {"questionTooLong"}  # the sentence says all that helps


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Status", protocol.Status),
        ("DocumentStatus", protocol.Document),
        ("AskResult", protocol.AskResult),
        ("RefreshResult", protocol.RefreshResult),
        ("LocateResult", protocol.LocateResult),
    ],
)
def test_results_have_the_daemons_keys(name: str, kind: Any) -> None:
    assert set(interface(name)) == keys_of(kind)


def test_nested_results_have_the_daemons_keys() -> None:
    assert inner(interface("Status")["model?"]) == keys_of(protocol.Model)
    assert inner(interface("DocumentStatus")["cached?"]) == keys_of(protocol.Cached)
    assert inner(interface("AskResult")["tokens"]) == keys_of(protocol.AskTokens)
    assert inner(interface("AskResult")["document"]) == keys_of(protocol.AnsweredFrom)
    assert inner(interface("RefreshResult")["tokens"]) == keys_of(protocol.RefreshTokens)


def test_params_are_some_of_the_daemons() -> None:
    assert {key.strip("?") for key in interface("AskParams")} <= set(protocol.AskParams.model_fields)
    assert set(interface("Selection")) == set(protocol.Selection.model_fields)
    most = protocol.AskParams.model_json_schema()["properties"]["maxNewTokens"]["anyOf"][0]["maximum"]
    assert f"MOST_NEW_TOKENS = {most};" in TABLES


# ── settings ────────────────────────────────────────────────────────────────────────────────


def test_the_settings_are_the_contracts() -> None:
    assert {key.removeprefix("cag.") for key in set(PROPERTIES) - OWN} == set(KEYS.values())
    assert set(listed("KEYS", source("settings.ts"))) == set(KEYS.values())


@pytest.mark.parametrize("name", KEYS)
def test_a_setting_has_the_daemons_type_limits_and_default(name: str) -> None:
    told = PROPERTIES[f"cag.{KEYS[name]}"]
    schema = Settings.model_json_schema()["properties"][name]
    theirs = next((each for each in schema.get("anyOf", [schema]) if each.get("type") != "null"), schema)
    kinds = [kind for kind in ([told["type"]] if isinstance(told["type"], str) else told["type"]) if kind != "null"]
    assert kinds == [theirs["type"]]
    for limit in ("minimum", "maximum", "exclusiveMinimum", "pattern", "enum", "minLength"):
        expected = theirs.get(limit)
        if limit == "minLength" and told["default"] == "":
            continue
        assert told.get(limit) == expected, limit
    default = Settings.model_fields[name].default
    if Settings.model_fields[name].default_factory is not None or default is None:
        # What depends on the machine is left to the daemon; the settings editor has no empty text but "".
        assert told["default"] == ("" if told["type"] == "string" else None)
    else:
        assert told["default"] == default


def test_a_cloned_workspace_chooses_no_program_and_no_model() -> None:
    machine = {key for key, told in PROPERTIES.items() if told["scope"] == "machine"}
    wanted = {f"cag.{KEYS[name]}" for name in (*WORKER_FIELDS, "cache_directory", "memory_max_gigabytes")}
    assert wanted | {"cag.executable"} <= machine
    free = set(PROPERTIES) - machine
    restricted = set(PACKAGE["capabilities"]["untrustedWorkspaces"]["restrictedConfigurations"])
    assert restricted == {"cag.document", "cag.systemPrompt"}
    assert free - restricted == {"cag.maxNewTokens", "cag.refresh"}


def test_every_setting_says_what_it_is() -> None:
    assert all(told["markdownDescription"].endswith(".") for told in PROPERTIES.values())


# ── the extension ───────────────────────────────────────────────────────────────────────────


def test_it_has_the_version_of_the_package() -> None:
    assert PACKAGE["version"] == cag_daemon.__version__
    lock = json.loads((VSCODE / "package-lock.json").read_text("utf-8"))
    assert lock["version"] == lock["packages"][""]["version"] == cag_daemon.__version__


def test_its_commands_are_not_the_daemons_own() -> None:
    commands = [each["command"] for each in PACKAGE["contributes"]["commands"]]
    assert not set(commands) & set(protocol.COMMANDS)
    assert all(command.startswith("cagDaemon.") for command in commands)
    titles = [each["title"] for each in PACKAGE["contributes"]["commands"]]
    assert len(set(titles)) == len(titles)


def test_what_the_daemons_answers_need_is_not_shown_twice() -> None:
    assert "showAnswers: false" in source("daemon.ts")


def test_the_vsix_is_small() -> None:
    vsix = VSCODE / "dist" / "cag-daemon.vsix"
    if not vsix.is_file():
        missing("it was not built: npm ci --ignore-scripts && npm run package in editor-clients/vscode")
    assert vsix.stat().st_size < 1_000_000
