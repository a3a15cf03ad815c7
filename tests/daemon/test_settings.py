"""The section ``cag``: what is accepted, from where, and what a change at run time does."""

from __future__ import annotations

from typing import Any

import pytest

from tests.client import Client, version_of
from tests.daemon.conftest import Daemons
from tests.documents import GREENHOUSE, LIGHTHOUSE

QUESTION, EXPECTED = "Where is the logbook kept?", "oak chest"

# key, value, a word of what is accepted
BAD_OPTIONS = [
    {
        "maxNewTokens": ("5", "integer"),
        "refresh": ("sometimes", "auto"),
        "device": ("gpu", "cpu"),
        "dtype": ("int8", "float32"),
        "threads": (0, "1"),
        "idleUnloadMinutes": (-1, "0"),
        "document": (5, "string"),
        "quantization": ("int3", "none"),
        "cacheMaxGigabytes": ("much", "number"),
        "memoryMaxGigabytes": (-2, "0"),
        "model": (["embedded"], "string"),
    },
    {
        "maxNewTokens": (4097, "4096"),
        "refresh": (True, "auto"),
        "device": ("cuda:x", "cuda"),
        "dtype": (16, "float16"),
        "threads": (1.5, "integer"),
        "idleUnloadMinutes": ("never", "number"),
        "quantization": ("int5", "none"),
        "systemPrompt": (7, "string"),
        "cacheDirectory": (7, "string"),
    },
    {"maxNewTokens": (0, "1"), "threads": (True, "integer"), "quantization": (4, "none")},
]


def shown(client: Client, since: int = 0) -> list[str]:
    return [each["params"]["message"] for each in client.messages("window/showMessage", since=since)]


@pytest.mark.parametrize("bad", BAD_OPTIONS, ids=range(3))
def test_a_bad_option_is_shown_once_and_the_default_used(daemon: Daemons, bad: dict[str, tuple[Any, str]]) -> None:
    client = daemon(None, options={key: value for key, (value, _) in bad.items()})
    client.wait_until(lambda: len(shown(client)) >= len(bad), 20, "a message for each option")
    status = client.wait_status("noDocument")
    messages = shown(client)
    for key, (value, accepted) in bad.items():
        mine = [each for each in messages if key in each]
        assert len(mine) == 1, (key, messages)
        assert str(value) in mine[0]
        assert accepted in mine[0], mine[0]
    assert len(messages) == len(bad)
    assert status["documents"][0]["uri"] == client.document.as_uri()


def test_good_and_unknown_and_null_options_are_taken_in_silence(daemon: Daemons) -> None:
    good = {
        "document": "notes.txt",
        "systemPrompt": "",
        "maxNewTokens": 4096,
        "refresh": "save",
        "model": "embedded",
        "device": "cpu",
        "dtype": "auto",
        "quantization": "none",
        "threads": 2,
        "idleUnloadMinutes": 0,
        "cacheDirectory": "/tmp/x",
        "cacheMaxGigabytes": 0,
        "memoryMaxGigabytes": 0.5,
        "showAnswers": False,
        "someday": {"maybe": 1},
    }
    client = daemon(None, options=good)
    status = client.wait_status("noDocument")
    assert status["documents"][0]["uri"] == (client.folder / "notes.txt").as_uri()
    client.configure({"cag": dict.fromkeys(good) | {"document": "notes.txt"}})
    client.configure({"cag": good, "other": {"refresh": "x"}})
    assert client.status()["state"] == "noDocument"
    assert shown(client) == []


def documents(client: Client) -> list[str]:
    return [each["uri"].rsplit("/", 1)[1] for each in client.wait_status("noDocument")["documents"]]


def test_flags_come_before_the_environment_before_the_editor(daemon: Daemons) -> None:
    flags, env, options = ["--document", "flag.txt"], {"CAG_DOCUMENT": "env.txt"}, {"document": "editor.txt"}
    assert documents(daemon(None, flags=flags, env=env, options=options)) == ["flag.txt"]
    assert documents(daemon(None, env=env, options=options)) == ["env.txt"]
    assert documents(daemon(None, options=options)) == ["editor.txt"]
    client = daemon(None, flags=flags, options={"document": "editor.txt"})
    client.configure({"cag": {"document": "later.txt"}})
    assert client.wait_status("noDocument")
    assert documents(client) == ["flag.txt"], "a flag holds for the whole life"


def test_a_bad_value_of_the_environment_is_shown(daemon: Daemons) -> None:
    client = daemon(None, env={"CAG_MAX_NEW_TOKENS": "plenty", "CAG_REFRESH": "never", "CAG_THREADS": "2"})
    client.wait_until(lambda: len(shown(client)) >= 2, 20, "the messages")
    first, second = sorted(shown(client))
    assert "CAG_MAX_NEW_TOKENS" in first
    assert "plenty" in first
    assert "CAG_REFRESH" in second
    assert "never" in second


def generated(client: Client) -> int:
    return client.ask(QUESTION).result()["tokens"]["generated"]


@pytest.fixture(scope="module")
def shared(module_daemon: Daemons) -> Client:
    client = module_daemon()
    client.wait_status("ready")
    return client


@pytest.fixture
def client(shared: Client) -> Client:
    """A daemon that has the default settings."""
    shared.document.write_text(LIGHTHOUSE.text, encoding="utf-8")
    reset(shared)
    return shared


def reset(client: Client) -> None:
    client.configure({"cag": dict.fromkeys(("document", "maxNewTokens", "refresh", "systemPrompt", "threads"))})
    assert EXPECTED in client.answer(QUESTION)


def test_max_new_tokens_changes_at_once_and_the_worker_stays(client: Client) -> None:
    worker = client.worker().pid
    client.configure({"cag": {"maxNewTokens": 5}})
    assert generated(client) == 5
    assert client.ask(QUESTION, maxNewTokens=2).result()["tokens"]["generated"] == 2
    client.configure({"cag": {"maxNewTokens": 6}})
    assert generated(client) == 6
    assert client.worker().pid == worker
    client.configure({"cag": {"maxNewTokens": 4096}})  # more than this model can see at once
    status = client.wait_status(lambda status: status["documents"][0].get("maxTokens", 1) == 0)
    assert " of 0 tokens" in status["short"]


def test_a_bad_change_is_shown_once_and_the_daemon_lives_on(client: Client) -> None:
    since = client.mark()
    client.configure({"cag": {"maxNewTokens": "many", "refresh": "auto"}})
    client.wait_until(lambda: shown(client, since), 20, "the message")
    assert EXPECTED in client.answer(QUESTION), "the default is used"
    (message,) = shown(client, since)
    assert "maxNewTokens" in message
    assert "many" in message


def test_another_document_is_read(client: Client) -> None:
    other = client.folder / "notes" / "greenhouse.md"
    other.parent.mkdir(exist_ok=True)
    other.write_text(GREENHOUSE.text, encoding="utf-8")
    for name in ("notes/greenhouse.md", str(other)):  # relative, and absolute
        client.configure({"cag": {"document": name}})
        result = client.ask("How can the caretaker be reached?").result()
        assert "417" in result["answer"]
        assert result["document"]["uri"] == other.as_uri()
        assert [each["uri"] for each in client.status()["documents"]] == [other.as_uri()]
        reset(client)


def test_another_system_prompt_is_read_before_the_document(client: Client) -> None:
    plain = client.ask(QUESTION).result()
    client.configure({"cag": {"systemPrompt": "You are a seagull. Answer like one, please."}})
    other = client.ask(QUESTION).result()
    assert other["document"]["version"] == plain["document"]["version"]
    assert other["tokens"]["cached"] >= plain["tokens"]["cached"] + 8
    reset(client)
    again = client.ask(QUESTION).result()
    assert (again["answer"], again["tokens"]) == (plain["answer"], plain["tokens"])


def test_other_threads_need_another_worker(client: Client) -> None:
    worker = client.worker().pid
    # Not the default, which may be as many.
    client.configure({"cag": {"threads": 3}})
    assert EXPECTED in client.answer(QUESTION)
    assert client.worker().pid != worker
    assert len(client.workers()) == 1


def test_a_text_is_read_when_the_refresh_setting_says(client: Client) -> None:
    def version(number: int) -> str:
        return LIGHTHOUSE.text + f"The cook has {number} pans.\n"

    def waits(text: str) -> None:
        client.wait_status(lambda status: status["documents"][0]["state"] == "waiting")
        assert client.messages("cag/documentChanged")[-1]["params"]["document"]["version"] != version_of(text)

    def is_read(text: str, since: int) -> None:
        wanted = version_of(text)
        client.wait_notification(
            "cag/documentChanged", lambda params: params["document"]["version"] == wanted, since=since
        )

    client.open(client.document, LIGHTHOUSE.text)
    # ask: only with a question or cag/refresh.
    client.configure({"cag": {"refresh": "ask"}})
    since = client.mark()
    client.change(client.document, version(1))
    waits(version(1))
    client.document.write_text(version(1), encoding="utf-8")
    client.save(client.document)
    waits(version(1))
    assert client.request("cag/refresh").result()["document"]["version"] == version_of(version(1))
    is_read(version(1), since)

    # save: on save, by whomever.
    client.configure({"cag": {"refresh": "save"}})
    since = client.mark()
    client.change(client.document, version(2))
    waits(version(2))
    client.document.write_text(version(2), encoding="utf-8")
    client.save(client.document)
    is_read(version(2), since)
    client.close(client.document)
    since = client.mark()
    client.document.write_text(version(3), encoding="utf-8")
    is_read(version(3), since)

    # auto: at once, also what is not saved.
    client.configure({"cag": {"refresh": "auto"}})
    client.open(client.document, version(3))
    since = client.mark()
    client.change(client.document, version(4))
    is_read(version(4), since)
    client.close(client.document)


def test_the_model_leaves_memory_and_comes_back(client: Client) -> None:
    if "unload" in client.initialized["capabilities"]["experimental"]["cag"]["features"]:
        assert client.request("cag/unload").result() == {}
        client.wait_status("unloaded")
        client.wait_until(lambda: client.worker_pids() == [], 20, "the worker's end")
        assert EXPECTED in client.answer(QUESTION)
    client.configure({"cag": {"idleUnloadMinutes": 0.02}})
    client.wait_status("unloaded")
    client.wait_until(lambda: client.worker_pids() == [], 20, "the worker's end")
    client.configure({"cag": {"idleUnloadMinutes": 10}})
    assert EXPECTED in client.answer(QUESTION)
    assert 0 < client.wait_status("ready")["unloadsInSeconds"] <= 600
    client.configure({"cag": {"idleUnloadMinutes": 0}})
    client.answer(QUESTION)
    assert "unloadsInSeconds" not in client.wait_status("ready")


PULLS = {"workspace": {"configuration": True, "didChangeConfiguration": {"dynamicRegistration": True}}}


def test_settings_are_pulled_from_a_client_that_offers_it(daemon: Daemons) -> None:
    client = daemon(None, capabilities=PULLS, settings={"document": "one.txt"}, options={"document": "one.txt"})
    client.wait_status(lambda status: [each["uri"][-8:] for each in status["documents"]] == ["/one.txt"])
    client.settings = {"document": "two.txt"}
    client.configure(None)
    client.wait_status(lambda status: [each["uri"][-8:] for each in status["documents"]] == ["/two.txt"])
    assert client.pulled >= 1
    client.settings = {"document": "two.txt", "refresh": "rarely"}
    since = client.mark()
    client.configure({})
    client.wait_until(lambda: shown(client, since), 20, "a message")
    assert "rarely" in shown(client, since)[0]


def test_a_client_with_nothing_to_pull_keeps_its_options(daemon: Daemons) -> None:
    client = daemon(None, capabilities=PULLS, settings=None, options={"document": "mine.txt"})
    assert documents(client) == ["mine.txt"]
    client.configure(None)
    client.wait_until(lambda: client.pulled, 20, "the pull")
    client.status()
    assert documents(client) == ["mine.txt"]


def test_a_client_that_offers_nothing_is_not_asked(bare: Client) -> None:
    assert bare.pulled == 0
    assert bare.registered == []
