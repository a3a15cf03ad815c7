"""The command line: ask · serve · status · unload · stop · doctor · pull · clean · client. Arguments in, words out.

On its way to ``serve`` it takes stdout away from everybody, before it imports anything: that is the protocol's. And it
stays small there, since each editor has one such process running: nothing is imported that is not needed.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, BinaryIO, NoReturn

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130
FOR_PEOPLE = (
    "cag-daemon: waiting for an editor on stdin; Ctrl-C ends it. To ask from here: cag-daemon ask QUESTION. "
    "All commands: cag-daemon --help."
)
WITHOUT_SHARED = (
    "cag-daemon: one daemon for all editors needs Unix; this editor has its own (--standalone says so, too)."
)


def main() -> None:
    """The console script ``cag-daemon``."""
    arguments = sys.argv[1:]
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("--help", "-h", "--version")):
        arguments = ["serve", *arguments]  # `cag-daemon --stdio`, as editors call a language server
    serving = arguments[0] == "serve" and not {"--help", "-h"} & set(arguments)
    if serving and not sys.argv[1:] and sys.stdin is not None and sys.stdin.isatty():
        print(FOR_PEOPLE, file=sys.stderr)
    stdout = _take_stdout() if serving else None
    _without_workspace()
    if stdout is not None and "--standalone" not in arguments:
        _forward(stdout, _passed_on(arguments[1:]))
    sys.exit(_command_line(arguments, stdout))


def _forward(stdout: BinaryIO, arguments: list[str]) -> None:
    """Hand this editor on to the front, and end with it; return where there can be no front."""
    from cag_daemon.front.shim import forward
    from cag_daemon.runtime import RuntimeUnusable, shareable

    if not shareable():
        print(WITHOUT_SHARED, file=sys.stderr)
        return
    try:
        code = forward(sys.stdin.buffer, stdout, arguments)
    except RuntimeUnusable as error:
        print(f"cag-daemon: {error} Until then this editor has a daemon of its own.", file=sys.stderr)
    except KeyboardInterrupt:
        _end(INTERRUPTED)
    else:
        _end(code)


def _passed_on(arguments: list[str]) -> list[str]:
    """The arguments that are for the front: without those that only say how this process is connected."""
    kept, rest = [], iter(arguments)
    for each in rest:
        if each == "--clientProcessId":
            next(rest, None)
        elif each != "--stdio" and not each.startswith("--clientProcessId="):
            kept.append(each)
    return kept


def _take_stdout() -> BinaryIO:
    """Move fd 1 away and put stderr in its place: whatever prints from now on cannot disturb the protocol."""
    real = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return os.fdopen(real, "wb")


def _without_workspace() -> None:
    """Drop the working folder from the module path: the project that is edited must not choose the code that runs."""
    here = os.path.realpath(os.curdir)
    if here != os.path.dirname(os.path.dirname(os.path.realpath(__file__))):  # noqa: PTH120 (pathlib takes a megabyte)
        sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry) != here]


def _command_line(arguments: list[str], stdout: BinaryIO | None) -> int:
    import gc
    import signal

    import click

    from cag_daemon import __version__
    from cag_daemon.config import FLAGS
    from cag_daemon.flags import serve_flags, settings_flags

    @click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
    @click.version_option(__version__, prog_name="cag-daemon")
    def group() -> None:
        """Knows one document of your project by heart, and answers questions about it. Offline."""

    @group.command()
    @click.argument("question")
    @click.option("--json", "as_json", is_flag=True, help="the result of cag/ask, alone, on stdout")
    @click.option(
        "--standalone", is_flag=True, help="answer in this process, even where the editors' daemon is running"
    )
    @settings_flags
    def ask(question: str, as_json: bool, standalone: bool, **flags: Any) -> int:
        """Answer QUESTION from a document: the answer as it comes, and where in the document it stands."""
        from cag_daemon.once import ask_once

        return ask_once(question, as_json, _settings(flags), flags, standalone)

    @group.command()
    @serve_flags
    def serve(stdio: bool, standalone: bool, client: str | None, **flags: Any) -> NoReturn:
        """Speak LSP on stdin and stdout: what an editor starts. Also without the word `serve`.

        All editors of a user share one daemon, and one model in memory; it ends a minute after the last of them.
        """
        # lsprotocol makes thousands of classes; to look for garbage among them takes a fifth of the start.
        gc.disable()
        from cag_daemon.front.server import run

        gc.enable()
        assert stdout is not None
        _end(run(sys.stdin.buffer, stdout, flags))

    json_flag = click.option("--json", "as_json", is_flag=True, help="the same as JSON, alone, on stdout")

    @group.command()
    @json_flag
    def status(as_json: bool) -> int:
        """What the editors' daemon does: for whom, which documents and models, how much memory."""
        from cag_daemon import control

        return control.status(as_json)

    @group.command()
    @json_flag
    def unload(as_json: bool) -> int:
        """Have the models leave memory now; the next question brings them back."""
        from cag_daemon import control

        return control.unload(as_json)

    @group.command()
    @json_flag
    def stop(as_json: bool) -> int:
        """End the editors' daemon; their next question starts it again."""
        from cag_daemon import control

        return control.stop(as_json)

    @group.command()
    @click.option("--json", "as_json", is_flag=True, help="the findings as JSON, alone, on stdout")
    @settings_flags
    @click.option(
        "--check", is_flag=False, flag_value="", metavar="[MODEL]", help="load the model, compare cached with uncached"
    )
    @click.option("--offline", is_flag=True, help="do so with no network at all, and tell what wanted it")
    def doctor(as_json: bool, check: str | None, offline: bool, **flags: Any) -> int:
        """What is installed, which model would be used and why, and whether everything is there to work offline."""
        from cag_daemon.doctor import examine

        settings = _settings(flags)
        return examine(as_json, settings, settings.model if check == "" else check, offline)

    @group.command()
    @click.argument("model", required=False)
    @click.option("--json", "as_json", is_flag=True, help="what was found or done as JSON, alone, on stdout")
    @click.option(FLAGS["document"], "document", metavar="…", help="without MODEL: what would be read, for the times")
    def pull(model: str | None, as_json: bool, document: str | None) -> int:
        """Fetch MODEL from the hub, the one thing that uses the network; alone: which models suit this machine."""
        if model is None:
            from cag_daemon.choice import show

            return show(as_json, _settings({"document": document}))
        from cag_daemon.pull import pull as fetch

        return fetch(model, as_json)

    @group.command()
    @click.option("--document", metavar="FILE", help="only what is kept of that file")
    @click.option("--models", is_flag=True, help="also the models that `pull` fetched")
    @click.option("--yes", is_flag=True, help="delete without asking")
    @click.option("--json", "as_json", is_flag=True, help="the list as JSON, alone, on stdout; deletes only with --yes")
    @click.option(
        FLAGS["cache_directory"], "cache_directory", metavar="…", help="where caches are, if set in an editor"
    )
    def clean(document: str | None, models: bool, yes: bool, as_json: bool, cache_directory: str | None) -> int:
        """List what is kept on this machine, and delete it when you say so."""
        from cag_daemon.clean import clean as delete

        return delete(_settings({"cache_directory": cache_directory}), document, models, yes, as_json)

    @group.group()
    def client() -> None:
        """The clients for editors that come along: where they are, and --install."""

    install = click.option("--install", is_flag=True, help="put it into the editor, instead of printing where it is")

    @client.command()
    @install
    def neovim(install: bool) -> None:
        """Print the folder of the Neovim plugin, for lazy.nvim's dir, vim.pack, packpath or runtimepath."""
        from cag_daemon import clients

        print(clients.install_neovim() if install else clients.neovim_folder())

    @client.command()
    @install
    @click.option("--with", "program", metavar="PROGRAM", help="what installs it: code, codium, code-server, cursor, …")
    def vscode(install: bool, program: str | None) -> None:
        """Print the path of the VS Code extension's .vsix."""
        from cag_daemon import clients

        if program is not None and not install:
            raise click.UsageError("--with says what is to install it: give --install, too.")
        print(clients.install_vscode(program) if install else clients.vscode_vsix())

    from cag_daemon.errors import CagError, InvalidParams

    interrupted: list[int] = []

    def interrupt(number: int, _: object) -> NoReturn:
        interrupted.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        return group.main(arguments, prog_name="cag-daemon", standalone_mode=False) or DONE
    except click.exceptions.Abort:
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        # What libraries make of an interrupt in the midst of them is many things.
        if interrupted:
            print(file=sys.stderr)
            return INTERRUPTED
        if not isinstance(error, CagError):
            if type(error).__name__ == "AcceleratorError":  # torch's, which is not imported for its name
                print(f"cag-daemon: The device failed ({error}); try again, or set --device cpu.", file=sys.stderr)
                return FAILED
            raise
        print(f"cag-daemon: {error.message}", file=sys.stderr)
        return WRONG_USAGE if isinstance(error, InvalidParams) else FAILED


def _settings(flags: dict[str, Any]) -> Any:
    """The settings in force; a value that is not accepted is wrong usage here, where nobody edits a file meanwhile."""
    import click

    from cag_daemon.config import resolve

    settings, problems = resolve(flags, os.environ, {})
    if problems:
        raise click.UsageError("; ".join(problem.message for problem in problems) + ".")
    return settings


def _end(code: int) -> NoReturn:
    """End at once: the thread that reads stdin is blocked, and would be waited for."""
    sys.stderr.flush()
    os._exit(code)
