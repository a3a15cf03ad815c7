"""The Neovim plugin as it lies: it agrees with the daemon, its help is whole, its Lua is clean."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any, get_args

import pytest

import cag_daemon
from cag_daemon.config import KEYS, Settings
from cag_daemon.errors import BY_REASON, CancelledByDaemon, RequestFailed
from cag_daemon.front import protocol
from cag_daemon.front.protocol import AskParams
from cag_daemon.front.session import GIVEN_UP
from tests.client import ROOT
from tests.editors.found import need
from tests.editors.neovim.drive import HERE, PLUGIN, neovim

HELP = (PLUGIN / "doc" / "cag.txt").read_text("utf-8")
LUA = sorted(PLUGIN.rglob("*.lua"))


def evaluate(expression: str, version: str = "0.11") -> Any:
    """A Lua expression's value in a Neovim that has the plugin on its 'runtimepath'."""
    code = f"io.stdout:write(vim.json.encode({expression}))"
    command = [str(neovim(version)), "-u", "NONE", "-i", "NONE", "--cmd", f"set rtp^={PLUGIN}", "--headless"]
    done = subprocess.run([*command, "-c", f"lua {code}", "-c", "qa!"], capture_output=True, text=True, timeout=30)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def plugin() -> dict[str, Any]:
    """The plugin's tables."""
    tables = {
        "protocol": "require('cag.protocol')",
        "levels": "vim.tbl_keys(require('cag.notice').LEVELS)",
        "subcommands": "vim.tbl_keys(require('cag.command').subcommands)",
        "keys": "require('cag.config').get().keys",
        "groups": "require('cag.window').GROUPS",
        "help": "require('cag.page').HELP",
        "public": "vim.tbl_keys(require('cag'))",
    }
    return evaluate("{ " + ", ".join(f"{name} = {value}" for name, value in tables.items()) + " }")


# ── with the daemon ──


def test_the_versions_are_the_daemons(plugin: dict[str, Any]) -> None:
    assert plugin["protocol"]["PLUGIN_VERSION"] == cag_daemon.__version__
    assert plugin["protocol"]["PROTOCOL_VERSION"] == protocol.PROTOCOL_VERSION


def test_methods_features_and_states_are_the_daemons(plugin: dict[str, Any]) -> None:
    methods = {"ask", "status", "refresh", "locate", "unload", "typing", "partial", "status_changed"}
    assert plugin["protocol"]["METHODS"] == {name: getattr(protocol, name.upper()) for name in methods}
    assert set(plugin["protocol"]["FEATURES"]) <= set(protocol.FEATURES)
    assert plugin["protocol"]["STATES"] == list(get_args(protocol.State))


def test_settings_are_the_daemons(plugin: dict[str, Any]) -> None:
    assert plugin["protocol"]["SETTINGS"] == list(KEYS.values())
    assert plugin["protocol"]["DEFAULT_DOCUMENT"] == Settings().document
    typed = re.findall(r"^---@field (\w+)\?", section(source("protocol"), "---@class cag.Settings\n"), re.MULTILINE)
    assert typed == list(KEYS.values())


def test_codes_reasons_and_limits_are_the_daemons(plugin: dict[str, Any]) -> None:
    codes = {"cancelled": -32800, "cancelled_by_daemon": CancelledByDaemon.code, "failed": RequestFailed.code}
    assert plugin["protocol"]["CODES"] == codes
    assert set(plugin["levels"]) <= {*BY_REASON, *GIVEN_UP, "workerRestarted"}
    accepted = AskParams.model_fields["maxNewTokens"].annotation
    most = max(each.le for each in get_args(get_args(accepted)[0])[1].metadata if hasattr(each, "le"))
    assert plugin["protocol"]["MOST_NEW_TOKENS"] == most


def test_params_and_results_have_the_contracts_keys() -> None:
    """The types that the plugin reads the wire with: each of their keys is one of the contract's."""
    kinds = {
        "AskParams": set(AskParams.model_fields) - {"conversation"},
        "AskResult": set(protocol.AskResult.__annotations__),
        "Status": set(protocol.Status.__annotations__),
        "DocumentStatus": set(protocol.Document.__annotations__),
        "ModelStatus": set(protocol.Model.__annotations__),
        "RefreshResult": set(protocol.RefreshResult.__annotations__),
        "LocateResult": set(protocol.LocateResult.__annotations__),
        "Selection": set(protocol.Selection.model_fields),
    }
    for name, keys in kinds.items():
        typed = re.findall(r"^---@field (\w+)\??", section(source("protocol"), f"---@class cag.{name}\n"), re.MULTILINE)
        assert set(typed) == keys, name


# ── the help ──


def test_the_tags_are_those_of_the_help(tmp_path: Path) -> None:
    (tmp_path / "doc").mkdir()
    (tmp_path / "doc" / "cag.txt").write_text(HELP, encoding="utf-8")
    subprocess.run(
        [str(neovim("0.11")), "--headless", "-u", "NONE", "-i", "NONE", "-c", f"helptags {tmp_path}/doc", "-c", "qa!"],
        **{"check": True, "capture_output": True, "timeout": 30},
    )
    assert (tmp_path / "doc" / "tags").read_text("utf-8") == (PLUGIN / "doc" / "tags").read_text("utf-8")


def test_the_help_is_78_columns_wide() -> None:
    assert [line for line in HELP.splitlines() if len(line) > 78] == []


@pytest.mark.parametrize("version", ["0.10", "0.11", "0.12"])
def test_what_the_help_links_is_there(version: str) -> None:
    runtime = Path(evaluate("vim.env.VIMRUNTIME", version))
    tags = [line.split("\t")[0] for line in (runtime / "doc" / "tags").read_text("utf-8").splitlines()]
    ours = re.findall(r"\*(\S+)\*", HELP)
    links = re.findall(r"(?<!\S)\|([^|\s]+)\|", HELP)
    assert len(links) > 20
    since_0_11 = {"vim.lsp.config()", "vim.lsp.enable()"} if version == "0.10" else set()
    assert set(links) - set(tags) - set(ours) == since_0_11


def test_the_help_tells_all_subcommands_settings_keys_groups_and_functions(plugin: dict[str, Any]) -> None:
    tags = re.findall(r"\*(\S+)\*", HELP)
    assert sorted(tag.removeprefix(":Cag-") for tag in tags if tag.startswith(":Cag-")) == sorted(plugin["subcommands"])
    assert re.findall(r"^    `(\w+)`  ", HELP, re.MULTILINE) == plugin["protocol"]["SETTINGS"]
    keys = {name: key for key, name in re.findall(r"^    ([^\s*]+) +`(\w+)` ", HELP, re.MULTILINE)}
    assert keys == plugin["keys"]
    groups = dict(re.findall(r"^    \*(Cag\w+)\* +`(\w+)`", HELP, re.MULTILINE))
    assert groups == plugin["groups"]
    assert [name for name in plugin["public"] if f".{name}(" not in HELP] == []


def test_the_windows_own_help_tells_all_keys(plugin: dict[str, Any]) -> None:
    assert sorted(name for name, _ in plugin["help"]) == sorted(plugin["keys"])


def test_the_lua_in_the_help_can_be_read() -> None:
    blocks = re.findall(r">lua\n(.*?)\n<", HELP, re.DOTALL)
    assert len(blocks) >= 10
    for block in blocks:
        code = re.sub(r"^    ", "", block, flags=re.MULTILINE).strip()
        whole = f"return {code}" if code.startswith("{") else code
        assert evaluate(f"loadstring({json.dumps(whole)}) ~= nil") is True, code


# ── the Lua ──


def test_it_needs_nothing_but_neovim() -> None:
    for file in LUA:
        for module in re.findall(r"require\('([^']+)'\)", file.read_text("utf-8")):
            assert (
                module == "vim.lsp.log"
                or (PLUGIN / "lua" / f"{module.replace('.', '/')}.lua").is_file()
                or (module == "cag")
            ), f"{file.name}: {module}"


def test_every_module_says_first_what_it_is_for() -> None:
    for file in (PLUGIN / "lua").rglob("*.lua"):
        assert re.match(r"--- [A-Z`].*\.\n", file.read_text("utf-8")), file.name


def test_luacheck_finds_nothing() -> None:
    done = subprocess.run(
        [str(need("luacheck")), "--no-color", "-q", "."], cwd=PLUGIN, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("folder", [PLUGIN, HERE])
def test_stylua_would_change_nothing(folder: Path) -> None:
    stylua = need("stylua/node_modules/.bin/stylua")
    done = subprocess.run([str(stylua), "--check", "."], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_its_licence_is_the_projects() -> None:
    assert (PLUGIN / "LICENSE").read_text("utf-8") == (ROOT / "LICENSE").read_text("utf-8")


def source(module: str) -> str:
    return (PLUGIN / "lua" / "cag" / f"{module}.lua").read_text("utf-8")


def section(text: str, first: str) -> str:
    """From a line up to the next empty one."""
    start = text.index(first)
    return text[start : text.index("\n\n", start)]
