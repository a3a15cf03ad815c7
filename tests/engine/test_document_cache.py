"""Which text of which document is cached, within a memory budget."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from cag_daemon.engine.document_cache import DocumentCache, DocumentCaches


def cached(size: int) -> Any:
    return DocumentCache("v", [1], SimpleNamespace(bytes=size), None)  # type: ignore[arg-type]


def three(budget: int) -> tuple[DocumentCaches, list[str]]:
    dropped: list[str] = []
    caches = DocumentCaches(budget, dropped.append)
    for name in "abc":
        caches.put(name, cached(10))
    return caches, dropped


def test_the_least_recently_used_leaves_first() -> None:
    caches, dropped = three(35)
    caches.get("a")
    caches.make_room(10)
    assert dropped == ["b"]
    assert [name for name in "abc" if name in caches] == ["a", "c"]


def test_no_more_leave_than_must() -> None:
    caches, dropped = three(30)
    caches.make_room(0)
    assert dropped == []
    caches.make_room(11)
    assert dropped == ["a", "b"]


def test_the_document_itself_stays_and_is_not_counted() -> None:
    caches, dropped = three(30)
    caches.make_room(10, "a")
    assert dropped == []
    caches.make_room(30, "a")
    assert dropped == ["b", "c"]
    assert "a" in caches


def test_what_is_forgotten_is_not_reported() -> None:
    caches, dropped = three(100)
    caches.forget("a")
    caches.forget("nobody")
    assert caches.get("a") is None
    assert dropped == []


def test_putting_replaces() -> None:
    caches, _ = three(100)
    new = cached(99)
    caches.put("a", new)
    assert caches.get("a") is new
