"""Servers of `rlvr serve` listen to the run alone: the token, the Host header, the addresses they bind to."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from rlvr.commands import serve as serve_command
from rlvr.config import RecipeError
from rlvr.engines.servers import guard
from rlvr.engines.servers.guard import Guard, Message, reachable_by_others, server_token
from rlvr.engines.servers.serve import serve_command as command_line
from rlvr.engines.servers.serve import serve_environment
from rlvr.engines.vllm.settings import FILE_BACKEND, VllmSettings
from tests.builders import make_recipe


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(guard.TOKEN_VARIABLE, raising=False)


def ask(monkeypatch: pytest.MonkeyPatch, host: str, authorization: str | None, **scope: Any) -> list[Message]:
    """What a server that was told to bind to `node7` sends; the inside says 200 and nothing else."""
    monkeypatch.setenv(guard.TOKEN_VARIABLE, "secret")
    monkeypatch.setenv(guard.HOST_VARIABLE, "node7")
    sent: list[Message] = []

    async def inside(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"Host", host.encode())] + ([(b"Authorization", authorization.encode())] if authorization else [])
    asyncio.run(Guard(inside)({"type": "http", "headers": headers} | scope, None, send))  # type: ignore[arg-type]
    return sent


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "10.0.0.7", "[::1]:8000", "localhost:8000", "NODE7:8000", "node7"])
def test_the_run_gets_through(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    assert [message.get("status") for message in ask(monkeypatch, host, "Bearer secret")] == [200]


@pytest.mark.parametrize("authorization", [None, "Bearer other", "secret", "bearer secret", "Bearer secretsecret"])
def test_without_the_token_nothing_is_done_and_the_message_says_where_it_is(
    monkeypatch: pytest.MonkeyPatch, authorization: str | None
) -> None:
    """What any page can send: a POST of plain text to a path of a development endpoint."""
    start, body = ask(monkeypatch, "127.0.0.1:8000", authorization, method="POST", path="/collective_rpc")
    assert start["status"] == 401
    message = json.loads(body["body"])["error"]["message"]
    assert "set RLVR_SERVER_TOKEN to the same secret" in message
    assert "secret'" not in message


@pytest.mark.parametrize("host", ["evil.example:8000", "127.0.0.1.evil.example", "", "node7.evil.example"])
def test_a_name_that_somebody_points_here_is_refused_even_with_the_token(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    start, _ = ask(monkeypatch, host, "Bearer secret")
    assert start["status"] == 421


def test_a_websocket_is_closed_and_the_start_of_the_server_is_not_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(monkeypatch, "localhost", None, type="websocket") == [{"type": "websocket.close", "code": 1008}]
    assert ask(monkeypatch, "localhost", None, type="lifespan")[0]["status"] == 200


def test_the_token_is_made_once_and_read_by_its_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = server_token()
    assert len(token) >= 32
    assert server_token() == token
    (file,) = (tmp_path / "cache/rlvr").iterdir()
    assert (file.name, stat.S_IMODE(file.stat().st_mode)) == ("server_token", 0o600)
    monkeypatch.setenv(guard.TOKEN_VARIABLE, "given")
    assert server_token() == "given"


def test_a_server_is_started_behind_the_guard_with_the_token(tiny_tied: Path) -> None:
    settings = VllmSettings(model=str(tiny_tied))
    line = command_line(settings, FILE_BACKEND, "127.0.0.1", 8000)
    module, _, name = line[line.index("--middleware") + 1].rpartition(".")
    assert (module, name) == (guard.__name__, "Guard")
    environment = serve_environment(settings, os.getpid(), "node7")
    assert environment[guard.TOKEN_VARIABLE] == server_token()
    assert environment[guard.HOST_VARIABLE] == "node7"


@pytest.mark.parametrize(
    ("host", "is_reachable"),
    [
        ("127.0.0.1", False), ("::1", False), ("localhost", False), ("10.1.2.3", False), ("192.168.0.4", False),
        ("fd00::1", False), ("0.0.0.0", True), ("::", True), ("8.8.8.8", True), ("2001:4860:4860::8888", True),
    ],
)  # fmt: skip
def test_addresses_that_others_reach(host: str, is_reachable: bool) -> None:
    assert (reachable_by_others(host) is not None) is is_reachable


def test_rlvr_serve_refuses_an_address_that_others_reach_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[tuple[str, int | None]] = []
    for name in ("check_versions", "quiet_libraries", "prepare_model", "make_accelerator"):
        monkeypatch.setattr(serve_command, name, lambda *_: None)
    monkeypatch.setattr(serve_command, "serve_recipe", lambda _, host, port: served.append((host, port)))

    def serve(host: str, public: bool) -> None:
        serve_command.run(make_recipe(), argparse.Namespace(host=host, port=8000, public=public))

    with pytest.raises(RecipeError, match=r"--host: '0\.0\.0\.0' must be a loopback or private address.*add --public"):
        serve("0.0.0.0", False)
    with pytest.raises(RecipeError, match=r"8\.8\.8\.8 is a public address"):
        serve("8.8.8.8", False)
    assert served == []
    serve("0.0.0.0", True)
    serve("10.0.0.7", False)
    assert served == [("0.0.0.0", 8000), ("10.0.0.7", 8000)]
