"""The editors' clients that come along: where they are, and how they get into the editor.

In an installed package they lie in ``cag_daemon/editor_clients``, where the build puts them; in a checkout beside the
package, in ``editor-clients``. The .vsix has to be built before it is there at all.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from cag_daemon.errors import CagError

PACKAGE = Path(__file__).resolve().parent
VSIX = "cag-daemon.vsix"
BUILD = "npm ci --ignore-scripts && npm run package"
# What installs extensions, by the name it has on PATH, the commonest first.
CODES = ("code", "code-insiders", "codium", "code-server", "cursor", "windsurf", "positron")


def neovim_folder() -> Path:
    """The plugin's folder, as ``runtimepath`` wants it.

    Raises:
        CagError: it is not there.
    """
    return _first(
        [PACKAGE / "editor_clients" / "neovim", PACKAGE.parent / "editor-clients" / "neovim"],
        "The Neovim plugin is not part of this installation: install cag-daemon again.",
    )


def vscode_vsix() -> Path:
    """The extension's .vsix.

    Raises:
        CagError: it was not built; how that is done.
    """
    return _first(
        [PACKAGE / "editor_clients" / VSIX, PACKAGE.parent / "editor-clients" / "vscode" / "dist" / VSIX],
        "The VS Code extension was not built into this installation: in a clone of cag-daemon run "
        f"`{BUILD}` in editor-clients/vscode (it needs Node 22 or newer), then install cag-daemon from that clone.",
    )


def install_neovim() -> str:
    """Link the plugin into Neovim's packages, so that it follows this installation; what was done, and what is next.

    Raises:
        CagError: something else is there already.
    """
    folder, place = neovim_folder(), _neovim_data() / "site" / "pack" / "cag-daemon" / "start" / "cag-daemon"
    copied = (place / "lua" / "cag").is_dir() and not (place / ".git").exists()
    if place.exists() and not place.is_symlink() and not copied:
        raise CagError(f"{place} is there already, and not by this command: move it away, then try again.")
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_symlink():
        place.unlink()
    elif place.exists():
        shutil.rmtree(place)
    try:
        place.symlink_to(folder, target_is_directory=True)
        done = f"Linked {place} to {folder}."
    except OSError:  # on Windows not everybody may
        shutil.copytree(folder, place)
        done = f"Copied the plugin to {place}; do this again after an upgrade of cag-daemon."
    return f"{done}\nNext, in your init.lua: vim.lsp.enable('cag')   (Neovim 0.10: require('cag').setup())"


def install_vscode(program: str | None) -> str:
    """Have VS Code, or one of its relatives, install the .vsix; what was done.

    Args:
        program: what installs it; None: the first of `CODES` that is on PATH.

    Raises:
        CagError: there is no such program, or it would not.
    """
    vsix = vscode_vsix()
    names = (program,) if program is not None else CODES
    found = [each for name in names if (each := shutil.which(name)) is not None]
    if not found:
        tried = ", ".join(names)
        raise CagError(
            f"No VS Code is on PATH (tried {tried}): name its program with --with, or run "
            f"“Extensions: Install from VSIX…” in the editor and choose {vsix}."
        )
    done = subprocess.run([found[0], "--install-extension", str(vsix), "--force"], capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise CagError(f"{found[0]} would not install {vsix}: {said[-1] if said else f'exit code {done.returncode}'}.")
    others = "".join(f"\nAlso there, and left alone: {each} (choose it with --with)." for each in found[1:])
    return f"Installed {vsix.name} with {found[0]}. Reload the windows that are open.{others}"


def _first(places: list[Path], otherwise: str) -> Path:
    for place in places:
        if place.exists():
            return place
    raise CagError(otherwise)


def _neovim_data() -> Path:
    """What Neovim calls ``stdpath('data')``."""
    name = os.environ.get("NVIM_APPNAME") or "nvim"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / f"{name}-data"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / name
