"""The laws of docs/DESIGN.md, kept by looking at the sources. Each test is named as its law."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cag_daemon
from cag_daemon import errors

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "cag_daemon"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def name_of(file: Path) -> str:
    """``front.server``, as the house calls its rooms; a floor's own page is ``front``."""
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


TREES = {name_of(file): ast.parse(file.read_text("utf-8")) for file in FILES}
DOOR = ast.parse((PACKAGE / "__init__.py").read_text("utf-8"))
NETWORK = "download"  # the one room that may fetch something
SHARED = {"runtime", "front.host", "front.shim"}  # the only rooms with sockets: those of shared mode, which are files
TOP = {
    *("__main__", "cli", "once", "joined", "control", "doctor", "clients"),
    *("pull", "download", "choice", "refusals", "clean"),
}


def floor_of(room: str) -> str:
    if room in TOP:
        return "top"
    return room.partition(".")[0] if room.partition(".")[0] in ("front", "engine") else "ground"


def imports(tree: ast.AST, *, late: bool = True) -> Iterator[str]:
    """The dotted names that are imported; with ``late=False`` only those that importing the module imports."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports name the whole way"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif late or not _waits(node):
            yield from imports(node, late=late)


def _waits(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def rooms_used(tree: ast.AST) -> set[str]:
    """The rooms of ours that a module imports anything from."""
    used = set()
    for name in imports(tree):
        if name.startswith("cag_daemon."):
            inner = name.removeprefix("cag_daemon.")
            used |= {inner if inner in TREES else inner.rpartition(".")[0]}
    return used - {""}  # a name of the door itself, such as __version__


def libraries(tree: ast.AST, *, late: bool = True) -> set[str]:
    return {name.partition(".")[0] for name in imports(tree, late=late)} - {"cag_daemon"}


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """The calls in a module, with the name of what is called: ``torch.load``, ``print``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def tracked_files() -> list[Path]:
    """What belongs to the project: known to git, or about to be."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git here, or no repository: what belongs to the project is not known")
    return [path for name in names if name and (path := ROOT / name).is_file()]


def tracked_texts() -> Iterator[tuple[str, str]]:
    for path in tracked_files():
        try:
            yield str(path.relative_to(ROOT)), path.read_text("utf-8")
        except UnicodeDecodeError:
            continue


# ── walls ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("room", TREES)
def test_a_room_imports_only_from_lower_floors(room: str) -> None:
    allowed = {"top": {"top", "front", "engine", "ground"}, "ground": {"ground"}}
    below = allowed.get(floor_of(room), {floor_of(room), "ground"})
    wrong = sorted(used for used in rooms_used(TREES[room]) if floor_of(used) not in below)
    assert wrong == []


def test_front_and_engine_never_import_each_other() -> None:
    for room, tree in TREES.items():
        floors = {floor_of(used) for used in rooms_used(tree)}
        assert room in TOP or not {"front", "engine"} <= floors | {floor_of(room)}, room


def test_there_are_no_circles() -> None:
    graph = {room: rooms_used(tree) - {room} for room, tree in TREES.items()}
    list(graphlib.TopologicalSorter(graph).static_order())


def test_the_door_imports_nothing_until_it_is_used() -> None:
    assert set(imports(DOOR, late=False)) <= {"__future__.annotations", "typing.TYPE_CHECKING", "typing.Any"}


def test_only_front_knows_lsp() -> None:
    lsp = {"pygls", "lsprotocol"}
    assert {floor_of(room) for room, tree in TREES.items() if libraries(tree) & lsp} == {"front"}


def test_only_engine_knows_torch() -> None:
    heavy = {"torch", "transformers", "safetensors", "tokenizers", "accelerate"}
    assert {room for room, tree in TREES.items() if libraries(tree) & heavy and floor_of(room) != "engine"} == set()


def test_only_download_knows_how_to_fetch() -> None:
    users = {room for room, tree in TREES.items() if "huggingface_hub" in libraries(tree)}
    assert {room for room in users if floor_of(room) != "engine"} == {NETWORK}
    for room in users - {NETWORK}:
        taken = {name.rpartition(".")[2] for name in imports(TREES[room]) if name.startswith("huggingface_hub.")}
        looks = {"snapshot_download", "scan_cache_dir", "constants", "CacheNotFound", "IncompleteSnapshotError"}
        assert taken <= looks, room


def test_the_command_line_imports_only_the_standard_library_on_its_way_to_serve() -> None:
    for room in ("__main__", "cli"):
        assert libraries(TREES[room], late=False) <= set(sys.stdlib_module_names), room


@pytest.mark.parametrize("module", ["cag_daemon", "cag_daemon.cli", "cag_daemon.front.server", "cag_daemon.doctor"])
def test_torch_is_not_imported_by(module: str) -> None:
    found = run_python(f"import sys, {module}; print([m for m in ('torch', 'transformers') if m in sys.modules])")
    assert found == "[]\n"


def test_the_tutorials_functions_are_the_engines() -> None:
    code = (
        "from cag_daemon import get_kv_cache, clean_up, generate, prefill, generate_step\n"
        "from cag_daemon.engine import cag\n"
        "ours = (get_kv_cache, clean_up, generate, prefill, generate_step)\n"
        "print(all(getattr(cag, each.__name__) is each for each in ours))"
    )
    assert run_python(code) == "True\n"


def test_public_names_are_what_all_says() -> None:
    assert set(cag_daemon.__all__) == {
        *("__version__", "clean_up", "generate", "generate_step", "get_kv_cache", "prefill"),
    }
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = cag_daemon.nonsense


def test_the_house_map_names_exactly_the_rooms_that_exist() -> None:
    drawn, floor = set(), ""
    for line in (cag_daemon.__doc__ or "").splitlines():
        if (match := re.match(r"( {4}| {6})(\w+)(/?) {2,}\S", line)) is not None:
            indent, name, folder = match.groups()
            floor = (f"{name}." if folder else "") if len(indent) == 4 else floor
            drawn |= set() if folder else {floor + name if len(indent) == 6 else name}
    exist = {room for room in TREES if room not in ("__main__", "front", "engine")}
    assert drawn == exist


def test_the_design_page_draws_every_room_and_no_other() -> None:
    page = (ROOT / "docs" / "DESIGN.md").read_text("utf-8")
    names = re.findall(r"^(?:│   )?[├└]── (\w+\.py) ", page, re.MULTILINE)
    exist = [file.name for file in FILES if file.name != "__init__.py"]
    assert sorted(names) == sorted([*exist, "__init__.py"])


def test_no_module_is_named_generate() -> None:
    assert not [room for room in TREES if room.split(".")[-1] == "generate"]  # it would shadow the function


# ── absences ────────────────────────────────────────────────────────────────────────────────


def test_nothing_here_can_open_a_connection() -> None:
    network = {
        *("socket", "socketserver", "ssl", "http", "urllib", "ftplib", "smtplib", "xmlrpc", "telnetlib"),
        *("requests", "httpx", "urllib3", "aiohttp", "websockets", "curl_cffi", "fsspec"),
    }
    openers = re.compile(r"\b(start_tcp|start_ws|open_connection|open_unix_connection|create_connection|start_server)$")
    for room, tree in TREES.items():
        assert libraries(tree) & network <= ({"socket"} if room in SHARED else set()), room
        assert not [name for name, _ in calls(tree) if openers.search(name)], room
        for name, call in calls(tree):
            if name == "socket.socket":
                assert [ast.unparse(each) for each in call.args] == ["socket.AF_UNIX", "socket.SOCK_STREAM"], room


def test_models_and_tokenizers_come_from_local_files_only() -> None:
    seen = 0
    for room, tree in TREES.items():
        for name, call in calls(tree) if room != NETWORK else ():
            if re.search(r"(\.from_pretrained|\b(snapshot_download|hf_hub_download|cached_file))$", name):
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
                assert given.get("local_files_only") == "True", f"{room}: {ast.unparse(call)}"
                seen += 1
    assert seen >= 3


def test_no_pickle() -> None:
    pickles = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for room, tree in TREES.items():
        assert not libraries(tree) & pickles, room
        assert not [name for name, _ in calls(tree) if name in ("torch.save", "torch.load")], room


def test_no_remote_code() -> None:
    for room, tree in TREES.items():
        for name, call in calls(tree):
            trust = [ast.unparse(each.value) for each in call.keywords if each.arg == "trust_remote_code"]
            assert trust in ([], ["False"]), f"{room}: {name}"


def test_nothing_prints_where_the_protocol_is() -> None:
    for room, tree in TREES.items():
        if room not in TOP:
            assert "print" not in {name for name, _ in calls(tree)}, room


def test_one_thread_owns_the_tensors_so_there_are_no_locks_around_them() -> None:
    locks = ("Lock", "RLock", "Semaphore", "Condition")
    for room, tree in TREES.items():
        if floor_of(room) == "engine":
            assert not [name for name, _ in calls(tree) if name.rpartition(".")[2] in locks], room


# ── pages ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("room", TREES)
def test_everything_public_has_a_docstring(room: str) -> None:
    missing = []

    def look(node: ast.Module | ast.ClassDef, where: str) -> None:
        if not ast.get_docstring(node):
            missing.append(where)
        for child in node.body:
            kinds = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            if not isinstance(child, kinds) or child.name.startswith("_"):
                continue
            if isinstance(child, ast.ClassDef):
                look(child, f"{where}.{child.name}")
            elif not ast.get_docstring(child):
                missing.append(f"{where}.{child.name}")

    look(TREES[room], room)
    assert missing == []


def test_the_error_tree_is_drawn_as_it_is() -> None:
    """Each line of the drawing: the class, under its parent, with its code and its reason."""
    drawn: dict[str, tuple[str, int, str | None]] = {}
    branch = ["CagError"]
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"([│├└─ ]*[├└]── )(\w+) *(-\d+)? *(\w+)?", line)
        if match is None:
            continue
        stem, name, code, reason = match.groups()
        depth = len(stem) // 4
        branch = [*branch[:depth], name]
        parent = branch[depth - 1]
        drawn[name] = (parent, int(code) if code else drawn[parent][1], reason)

    exist = {
        name: (kind.__base__.__name__, kind.code, kind.reason)
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.CagError) and kind is not errors.CagError
    }
    assert drawn == exist


def test_no_path_of_a_machine_stands_in_the_project() -> None:
    places = [str(place) for place in (ROOT, Path.home()) if len(place.parts) > 1]
    of_a_machine = re.compile(rf"(?<![\w.])(?:{'|'.join(map(re.escape, places))}|[A-Z]:\\+Users)\b")
    found = [f"{name}: {match[0]}" for name, text in tracked_texts() for match in of_a_machine.finditer(text)]
    assert found == []


def test_no_registry_host_stands_in_the_project() -> None:
    hosts = re.compile(
        r"pypi\.org|pythonhosted\.org|download\.pytorch\.org|registry\.npmjs\.org|proxy\.golang\.org"
        r"|crates\.io|index[-_]url\s*="
    )
    found = [f"{name}: {match[0]}" for name, text in tracked_texts() for match in hosts.finditer(text)]
    assert found == []


def test_no_file_is_larger_than_15_megabytes() -> None:
    assert [str(path) for path in tracked_files() if path.stat().st_size > 15e6] == []
