"""Access control of `rlvr serve`: a request needs the token, and a Host header that names the server itself.

vLLM's development endpoints run what they are sent, and any page in a browser of the machine can send to its ports: a
cross-site POST of plain text needs no permission, and a host name that an attacker points at this machine lets the page
read the response. A page has no token, and its host name is not one of the server's.

Both sides read the token from the environment variable `TOKEN_VARIABLE`, else from a file that only this user can read
and that the first of them writes: one user on one machine, or with one home on several, need not think of it.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

TOKEN_VARIABLE = "RLVR_SERVER_TOKEN"
HOST_VARIABLE = "RLVR_SERVER_HOST"
"""What a server was told to bind to, which is a name of its own."""


def server_token() -> str:
    """The token that servers of this user want, made if there is none yet."""
    if given := os.environ.get(TOKEN_VARIABLE):
        return given
    path = _token_file()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(32))
        try:
            os.link(draft, path)  # whoever comes second takes the first one's
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_text(encoding="ascii").strip()


def token_header(token: str) -> dict[str, str]:
    """The HTTP header that carries the token."""
    return {"Authorization": f"Bearer {token}"}


class Guard:
    """ASGI middleware that lets through only what has the token and names this server; the rest gets 401 or 421."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._expected = token_header(os.environ[TOKEN_VARIABLE])["Authorization"].encode()
        self._names = {"localhost", socket.gethostname(), socket.getfqdn(), os.environ.get(HOST_VARIABLE, "")}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        refusal = None
        if not self._is_own(headers.get(b"host", b"").decode("latin-1")):
            refusal = 421, "the Host header is no name of this server: use an address, or the name given as --host"
        elif not hmac.compare_digest(headers.get(b"authorization", b""), self._expected):
            refusal = (
                401,
                (
                    f"the token of this server is missing or another one: set {TOKEN_VARIABLE} to the same secret for "
                    f"`rlvr serve` and for the run, or let both read {_token_file()}"
                ),
            )
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            status, message = refusal
            body = json.dumps({"error": {"message": message}}).encode()
            await send(
                {"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]}
            )
            await send({"type": "http.response.body", "body": body})

    def _is_own(self, host: str) -> bool:
        """Whether a Host header is an IP address or one of this server's names; DNS cannot redirect an IP address."""
        name = host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name != "" and name.lower() in {own.lower() for own in self._names}
        return True


def reachable_by_others(host: str) -> str | None:
    """Why binding to `host` lets more than a private network in; None where it does not. Raises `OSError` for a name
    without an address."""
    for *_, place in socket.getaddrinfo(host, None):
        address = ipaddress.ip_address(str(place[0]).partition("%")[0])
        if address.is_unspecified:
            return "it stands for every address of this machine"
        if address.is_global:
            return f"{address} is a public address"
    return None


def _token_file() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "rlvr" / "server_token"
