"""Puts the editors' clients into the wheel: the Neovim plugin, and the .vsix where it was built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NEOVIM = ("plugin", "lua", "lsp", "doc")
VSIX = Path("vscode", "dist", "cag-daemon.vsix")


class ClientsHook(BuildHookInterface):
    """Into ``cag_daemon/editor_clients``; `cag_daemon.clients` looks for them there."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before the wheel is put together; an editable one finds the clients in the checkout."""
        if version == "editable":
            return
        clients = Path(self.root, "editor-clients")
        for folder in NEOVIM:
            build_data["force_include"][str(clients / "neovim" / folder)] = f"cag_daemon/editor_clients/neovim/{folder}"
        if (clients / VSIX).is_file():
            build_data["force_include"][str(clients / VSIX)] = f"cag_daemon/editor_clients/{VSIX.name}"
        else:
            self.app.display_warning(f"editor-clients/{VSIX} was not built: this wheel comes without it.")
