"""Errors: code, reason and data, and the way over the pipe."""

from __future__ import annotations

import pytest

from cag_daemon.errors import (
    BY_REASON,
    CagError,
    CancelledByDaemon,
    DocumentTooLong,
    InvalidParams,
    InvalidRequest,
    RequestFailed,
    Stopped,
    failure,
)


@pytest.mark.parametrize(("reason", "kind"), BY_REASON.items())
def test_a_failure_that_came_over_the_pipe_is_raised_as_what_it_was(reason: str, kind: type[RequestFailed]) -> None:
    sent = kind("What happened; do this.", tokens=9)
    came = failure(reason, sent.message, sent.details)
    assert (type(came), came.message, came.data) == (kind, "What happened; do this.", {"reason": reason, "tokens": 9})


def test_every_failure_has_a_reason_of_its_own() -> None:
    assert set(BY_REASON.values()) == set(RequestFailed.__subclasses__())


def test_data_is_what_the_contract_says() -> None:
    assert DocumentTooLong("…", tokens=9, maxTokens=8, line=7).data == {
        "reason": "documentTooLong",
        **{"tokens": 9, "maxTokens": 8, "line": 7},
    }
    assert InvalidParams("…", parameter="question").data == {"parameter": "question"}
    assert CancelledByDaemon("…", "shuttingDown").data == {"reason": "shuttingDown"}
    assert InvalidRequest("…").data is None


def test_an_error_is_its_sentence() -> None:
    assert str(DocumentTooLong("Too long; shorten it.", tokens=1)) == "Too long; shorten it."


def test_stopped_is_an_outcome_and_no_error() -> None:
    assert not issubclass(Stopped, CagError)
