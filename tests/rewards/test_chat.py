"""The client against a real server on this machine that does everything an endpoint can do wrong."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import rewards.chat
from rewards.chat import ChatEndpoint, EndpointError, Reply
from tests.rewards.judge_servers import Scripted, completion, free_port

QUESTION = [{"role": "user", "content": "4?"}]
GOOD = (200, {}, completion("four"))


def ask(
    endpoint: str, *, attempts: int = 3, request_seconds: float = 5.0, total: float = 20.0, key: str | None = None
) -> Reply:
    chat = ChatEndpoint(endpoint, "judge", key, request_seconds, attempts)
    return chat.ask(QUESTION, {"max_tokens": 4, "seed": None}, time.monotonic() + total)


def after(failures: list[Any]) -> Callable[[int, dict[str, Any]], Any]:
    """Those failures one after the other, then a good answer."""
    return lambda number, _: failures[number] if number < len(failures) else GOOD


def test_a_good_reply_and_what_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", " sk-secret\n")
    with Scripted(after([])) as server:
        assert ask(server.endpoint + "/", key="JUDGE_KEY") == Reply("four", True)
    assert server.requests == [{"model": "judge", "messages": QUESTION, "max_tokens": 4}]  # None leaves a field out
    assert server.headers[0]["authorization"] == "Bearer sk-secret"


def test_a_reply_cut_by_its_limit_and_one_without_content() -> None:
    with Scripted(lambda number, _: (200, {}, [completion("fo", "length"), completion(None)][number])) as server:
        assert ask(server.endpoint) == Reply("fo", False)
        assert ask(server.endpoint) == Reply("", True)


def drop(handler: Any) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def cut_short(handler: Any) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
    handler.close_connection = True


FAILURES = {
    "429": (429, {"Retry-After": "0"}, "slow down"),
    "500": (500, {}, "oops"),
    "503": (503, {"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"}, ""),
    "garbage": (200, {}, "<html>gateway</html>"),
    "other JSON": (200, {}, '{"choices": []}'),
    "deep JSON": (200, {}, "[" * 100_000),
    "dropped connection": drop,
    "cut reply": cut_short,
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_what_passes_is_asked_again_and_a_bounded_number_of_times(
    failure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewards.chat, "FIRST_BACKOFF", 0.01)
    with Scripted(after([failure, failure])) as server:
        assert ask(server.endpoint).text == "four"
        assert len(server.requests) == 3
    with Scripted(after([failure] * 9)) as server:
        with pytest.raises(EndpointError, match="no reply in 3 attempts"):
            ask(server.endpoint)
        assert len(server.requests) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_what_will_not_change_is_not_asked_again(status: int) -> None:
    with Scripted(after([(status, {}, "The model `judge` does not exist")])) as server:
        with pytest.raises(EndpointError, match=f"HTTP {status} .*does not exist"):
            ask(server.endpoint)
        assert len(server.requests) == 1


def test_a_redirect_is_not_followed_and_takes_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    with Scripted(after([])) as thief:
        moved = (307, {"Location": thief.endpoint + "/chat/completions"}, "")
        with Scripted(after([moved])) as server, pytest.raises(EndpointError, match="HTTP 307"):
            ask(server.endpoint, key="JUDGE_KEY")
        assert thief.requests == []


def test_a_server_that_quotes_the_key_does_not_bring_it_into_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    quoting = (401, {}, "Incorrect API key provided: sk-secret.")
    with Scripted(after([quoting])) as server, pytest.raises(EndpointError) as raised:
        ask(server.endpoint, key="JUDGE_KEY")
    assert "Incorrect API key provided: [key]." in str(raised.value)
    assert "sk-secret" not in str(raised.value)


def test_nobody_listens() -> None:
    with pytest.raises(EndpointError, match="no reply in 2 attempts: ConnectionRefusedError"):
        ask(f"http://127.0.0.1:{free_port()}/v1", attempts=2)


@pytest.mark.slow
def test_a_server_that_hangs_costs_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    with Scripted(lambda *_: lambda _handler: over.wait(60)) as server:
        start = time.monotonic()
        with pytest.raises(EndpointError, match="no reply in 2 attempts"):
            ask(server.endpoint, request_seconds=0.3, attempts=2)
        with pytest.raises(EndpointError, match="no reply in 1 attempts"):
            ask(server.endpoint, request_seconds=50, total=0.3)
        assert time.monotonic() - start < 20  # not the 60 s of the server, nor 50
        over.set()


@pytest.mark.slow
def test_a_server_that_drips_costs_its_limit() -> None:
    """Each byte comes in time, the whole never does: the limit is on the whole, in the headers and in the body."""
    over = threading.Event()

    def drip(handler: Any, start: bytes) -> None:
        handler.wfile.write(start)
        while not over.wait(0.05):
            handler.wfile.write(b"x")
            handler.wfile.flush()

    starts = [
        b"HTTP/1.1 200 OK\r\nX-Slow: ",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
    ]
    with Scripted(lambda number, _: lambda handler: drip(handler, starts[number])) as server:
        start = time.monotonic()
        for _ in starts:
            with pytest.raises(EndpointError):
                ask(server.endpoint, request_seconds=0.4, attempts=1)
        assert time.monotonic() - start < 20
        over.set()


def test_a_reply_without_end_is_not_read_to_its_end() -> None:
    endless = (200, {}, "x" * (rewards.chat.MAX_REPLY + 10))
    with Scripted(after([endless])) as server, pytest.raises(EndpointError, match="longer than"):
        ask(server.endpoint, attempts=1)


def test_a_pause_beyond_the_deadline_is_not_waited_for() -> None:
    with Scripted(after([(429, {"Retry-After": "3600"}, "")])) as server:
        start = time.monotonic()
        with pytest.raises(EndpointError, match="HTTP 429"):
            ask(server.endpoint, total=10)
        assert time.monotonic() - start < 8
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        ("localhost:8000", "is no address"),
        ("ftp://host/v1", "is no address"),
        ("http://", "is no address"),
        ("http://user:key@host/v1", "is no address"),
        ("http://host:99999/v1", "Port out of range"),
        ("http://host/v1/chat/completions", "must stop before"),
    ],
)
def test_addresses_that_cannot_work(endpoint: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ChatEndpoint(endpoint, "judge", None, 1.0, 1)


def test_settings_that_cannot_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    monkeypatch.setenv("BAD_KEY", "a\nb")
    for arguments, says in (
        (("", None, 1.0, 1), "model: "),
        (("m", "NO_SUCH_KEY", 1.0, 1), "api_key_env: the environment variable 'NO_SUCH_KEY' is not set"),
        (("m", "BAD_KEY", 1.0, 1), "api_key_env: .* cannot stand in a header"),
        (("m", None, 0.0, 1), "request_seconds: 0.0 must be above 0"),
        (("m", None, 1.0, 0), "attempts: 0 must be at least 1"),
    ):
        with pytest.raises(ValueError, match=says):
            ChatEndpoint("http://host/v1", *arguments)
