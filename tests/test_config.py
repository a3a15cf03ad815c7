"""Settings: which of the places wins, what is accepted, and what is said of the rest."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cag_daemon.config import ENVIRONMENT, FLAGS, KEYS, Settings, resolve

# For each setting: what a user may write, as text; and as the editor's JSON.
GOOD: dict[str, tuple[str, Any]] = {
    "document": ("notes.md", "notes.md"),
    "system_prompt": ("Be brief.", "Be brief."),
    "max_new_tokens": ("64", 64),
    "refresh": ("save", "save"),
    "model": ("embedded", "embedded"),
    "device": ("cuda:1", "cuda:1"),
    "dtype": ("float16", "float16"),
    "quantization": ("int8", "int8"),
    "threads": ("3", 3),
    "idle_unload_minutes": ("0.5", 0.5),
    "linger_seconds": ("2.5", 2.5),
    "cache_directory": ("somewhere", "somewhere"),
    "cache_max_gigabytes": ("2", 2),
    "memory_max_gigabytes": ("1.5", 1.5),
}
BAD: dict[str, list[Any]] = {
    "document": ["", 5, ["x"], {}],
    "system_prompt": [5, [], True],
    "max_new_tokens": [0, -1, 4097, 1.5, "64", True, [64]],
    "refresh": ["later", "", 1, True],
    "model": ["", 5],
    "device": ["gpu", "cuda:", "cuda:x", "CPU", "", 0],
    "dtype": ["int8", "fp16", 16],
    "quantization": ["int2", 8, False],
    "threads": [0, -1, 1025, "two", 1.5, True],
    "idle_unload_minutes": [-1, float("nan"), float("inf"), "30", True],
    "linger_seconds": [-1, float("nan"), float("inf"), "60", True],
    "cache_directory": ["", 5],
    "cache_max_gigabytes": [-1, float("nan"), "2"],
    "memory_max_gigabytes": [0, -1, float("inf"), "2"],
}


def test_every_setting_is_tried_here() -> None:
    assert list(GOOD) == list(BAD) == list(Settings.model_fields)


@pytest.mark.parametrize("name", GOOD)
def test_a_setting_is_taken_from_each_of_the_three_places(name: str) -> None:
    text, value = GOOD[name]
    for flags, environment, editor in (
        ({name: text}, {}, {}),
        ({}, {ENVIRONMENT[name]: text}, {}),
        ({}, {}, {KEYS[name]: value}),
    ):
        settings, problems = resolve(flags, environment, editor)
        assert problems == []
        assert getattr(settings, name) == value


@pytest.mark.parametrize("name", GOOD)
def test_flags_come_before_the_environment_and_that_before_the_editor(name: str) -> None:
    text, value = GOOD[name]
    other: Any = {str: "auto", int: 1, float: 1}[type(value)] if name != "quantization" else "none"
    everywhere: tuple[Any, Any, Any] = ({name: text}, {ENVIRONMENT[name]: str(other)}, {KEYS[name]: other})
    assert getattr(resolve(*everywhere)[0], name) == value
    everywhere = ({name: None}, {ENVIRONMENT[name]: text}, {KEYS[name]: other})
    assert getattr(resolve(*everywhere)[0], name) == value


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_bad_value_is_named_with_what_is_accepted_and_the_default_is_used(name: str, value: Any) -> None:
    settings, problems = resolve({}, {}, {KEYS[name]: value})
    assert getattr(settings, name) == getattr(Settings(), name)
    (problem,) = problems
    assert problem.message.startswith(f"cag.{KEYS[name]}: {value!r} is not accepted (")
    assert str(problem) == f"{problem.message}; using {problem.instead}."
    assert problem.instead in ("the default", str(getattr(Settings(), name)))
    assert "\n" not in str(problem)


def test_a_bad_flag_and_a_bad_variable_are_named_as_they_were_written() -> None:
    _, problems = resolve({"threads": "many"}, {"CAG_DTYPE": "int3"}, {"refresh": "never"})
    assert [problem.message.split(":")[0] for problem in problems] == ["cag.refresh", "CAG_DTYPE", "--threads"]


def test_one_bad_value_spoils_no_other() -> None:
    settings, problems = resolve({}, {}, {"threads": "many", "maxNewTokens": 5})
    assert len(problems) == 1
    assert settings.max_new_tokens == 5


def test_a_bad_flag_does_not_let_the_editors_value_in() -> None:
    settings, _ = resolve({"max_new_tokens": "many"}, {}, {"maxNewTokens": 5})
    assert settings.max_new_tokens == Settings().max_new_tokens


def test_what_is_null_empty_or_unknown_is_not_given() -> None:
    editor = {"document": None, "threads": None, "nonsense": 1, "max_new_tokens": 5}
    assert resolve({"model": None}, {"CAG_THREADS": "", "CAG_NONSENSE": "1"}, editor) == (Settings(), [])


def test_an_empty_system_prompt_is_a_prompt() -> None:
    assert resolve({}, {}, {"systemPrompt": ""})[0].system_prompt == ""
    assert resolve({"system_prompt": ""}, {}, {})[0].system_prompt == ""


def test_a_long_value_is_shown_in_part() -> None:
    _, (problem,) = resolve({}, {}, {"refresh": "x" * 10_000})
    assert len(problem.message) < 200
    assert "…" in problem.message


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        Settings().threads = 5  # type: ignore[misc]


def test_names_are_unique_in_each_place() -> None:
    for names in (KEYS, ENVIRONMENT, FLAGS):
        assert len(set(names.values())) == len(Settings.model_fields)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # that is the machine, when it is at something else
@given(st.dictionaries(st.sampled_from(list(KEYS.values())), JSON))
def test_no_json_from_an_editor_raises(editor: dict[str, Any]) -> None:
    settings, problems = resolve({}, {}, editor)
    bad = {problem.message.split(":")[0].removeprefix("cag.") for problem in problems}
    for name, key in KEYS.items():
        expected = editor[key] if editor.get(key) is not None and key not in bad else getattr(Settings(), name)
        assert getattr(settings, name) == expected
