"""Whatever happened before – edits, cancels, restarts, damaged files – the cache is a fresh one, to the bit."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cag_daemon.engine import store
from cag_daemon.engine.engine import Answer, Engine
from cag_daemon.engine.model import LoadedModel
from cag_daemon.errors import Stopped
from cag_daemon.places import CACHES
from tests.engine.caches import BAKERY, After, identical, kv
from tests.engine.test_engine import EDITS
from tests.engine.test_keeping import DAMAGE
from tests.models import embedded_tokenizer, loaded_random

TOKENIZER = embedded_tokenizer()
NAMES = ("one", "two")
WHAT = (
    *("edit", "edit", "edit", "undo", "force", "ask", "quiet", "crowd"),
    *("restart", "restart", "kill", "key", "damage", "damage", "damage"),
)

HISTORY = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.sampled_from(NAMES),
            "what": st.sampled_from(WHAT),
            "edit": EDITS,
            "stop": st.none() | st.none() | st.integers(0, 90),
            "saved": st.sampled_from([True, True, False]),
            "damage": st.tuples(st.sampled_from(sorted(DAMAGE)), st.floats(0, 0.999)),
            "between": st.booleans(),
        }
    ),
    min_size=4,
    max_size=16,
)


class Campaign:
    """One history, on engines that come and go, beside readings from nothing."""

    _models: dict[str, LoadedModel] = {}
    _fresh: dict[tuple[str, str], tuple[list[torch.Tensor], Answer]] = {}

    def __init__(self, dtype: str, base: Path) -> None:
        if dtype not in self._models:
            loaded = loaded_random(TOKENIZER, sliding_window=40 if dtype == "bfloat16" else None)
            loaded.model.to(getattr(torch, dtype))
            self._models[dtype] = loaded
        self.dtype, self.base, self.key = dtype, base, 0
        self.texts = dict.fromkeys(NAMES, BAKERY)
        self.whole: dict[str, list[str]] = {name: [] for name in NAMES}
        self.engine = self.start()

    def start(self) -> Engine:
        loaded = dataclasses.replace(self._models[self.dtype], key=f"a model {self.key}")
        self.whole = {name: [] for name in NAMES}
        return Engine(loaded, keep_in=str(self.base / "cache"))

    def fresh(self, text: str) -> tuple[list[torch.Tensor], Answer]:
        key = (self.dtype, text)
        if key not in self._fresh:
            other = Engine(self._models[self.dtype])
            other.prepare("d", str(hash(text)), text)
            self._fresh[key] = kv(other), other.ask("d", "Why?", max_new_tokens=3)
        return self._fresh[key]

    def step(
        self,
        name: str,
        what: str,
        edit: tuple[float, float, str],
        stop: int | None,
        saved: bool,
        damage: tuple[str, float],
        between: bool,
    ) -> None:
        keeping = self.engine.keeping
        assert keeping is not None
        if what in ("edit", "undo", "force"):
            self._read(name, what, edit, stop, saved, between)
        elif what == "ask":
            self.check(name)
        elif what in ("restart", "kill", "key"):
            if what == "restart":
                keeping.finish()
            self.key += what == "key"
            self.engine = self.start()
        elif what == "quiet":
            for _ in range(stop if stop is not None else 1000):
                if keeping.busy:
                    keeping.work(None if saved else After(round(edit[0] * 20)))
        elif what == "damage":
            how, which = damage
            files = sorted(each for each in (self.base / "cache" / CACHES).glob("*/*/*.safetensors") if each.is_file())
            if files:
                DAMAGE[how](files[int(which * len(files))])
                self.engine = self.start()
                self._read(name, "as it is", edit, None, True, False)
        elif what == "crowd":
            self.engine.limit(1)
            self.engine.limit(None)
            self.whole = {each: found if self.engine.has(each) else [] for each, found in self.whole.items()}

    def _read(
        self, name: str, what: str, edit: tuple[float, float, str], stop: int | None, saved: bool, between: bool
    ) -> None:
        where, length, words = edit
        text, whole = self.texts[name], self.whole[name]
        start = round(where * len(text))
        if what == "edit":
            text = (text[:start] + words + text[start + round(length * len(text)) :])[:900]
        elif what == "undo" and whole:
            text = whole[round(where * (len(whole) - 1))]
        self.texts[name] = text
        asked: list[Answer] = []
        try:
            reading = self.engine.prepare(
                name,
                str(hash(text)),
                text,
                force=what == "force",
                file=str(self.base / f"{name}.txt"),
                saved=saved,
                should_stop=None if stop is None else After(stop),
                between_chunks=(
                    (lambda: asked.append(self.engine.ask(name, "Why?", max_new_tokens=3)))
                    if between and whole
                    else None
                ),
            )
        except Stopped:
            assert stop is not None
        else:
            assert reading.kept + reading.computed == reading.tokens
            whole.append(text)
            before = whole[-2:-1] or None
            if asked:
                assert before is not None
                assert all(each == self.fresh(before[0])[1] for each in asked)
        self.check(name)

    def check(self, name: str) -> None:
        """What the document answers, and the bits that it answers from."""
        assert self.engine.has(name) == bool(self.whole[name])
        if self.whole[name]:
            bits, answer = self.fresh(self.whole[name][-1])
            assert self.engine.ask(name, "Why?", max_new_tokens=3) == answer
            cached = self.engine._caches.get(name)
            cached.cache.turn_to(cached.text.ids)
            assert identical(kv(self.engine, name), bits)


@pytest.fixture(autouse=True)
def _no_disk_is_too_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "FREE_AFTERWARDS", 0)


def run(dtype: str, history: list[dict[str, Any]], base: Path) -> None:
    campaign = Campaign(dtype, base)
    try:
        for step in history:
            campaign.step(**step)
        for name in NAMES:
            campaign.check(name)
    finally:
        shutil.rmtree(base)
        Campaign._fresh.clear()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@settings(settings.get_profile("engine"), max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=HISTORY)
def test_the_cache_is_a_fresh_one(
    dtype: str, history: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    run(dtype, history, tmp_path_factory.mktemp("history"))


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@settings(
    settings.get_profile("engine"),
    derandomize=False,
    max_examples=2000,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(history=HISTORY)
def test_the_cache_is_a_fresh_one_for_hours(
    dtype: str, history: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    run(dtype, history, tmp_path_factory.mktemp("history"))
