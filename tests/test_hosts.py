"""The address that another host sees, and the interface behind it."""

from __future__ import annotations

import socket

import pytest

from rlvr import hosts
from rlvr.hosts import address_towards, interface_of, name_gloo_interface

SEVERAL = {"MASTER_ADDR": "10.9.8.7", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}


def test_the_address_is_that_of_the_way_to_the_other_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this host's own name stands for."""
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "127.0.1.1")
    assert address_towards("127.0.0.1") == "127.0.0.1"
    with pytest.raises(OSError, match=r"not known|resolution|No address"):
        address_towards("there.is.no.such.host.invalid")


def test_an_address_has_an_interface() -> None:
    assert interface_of("127.0.0.1") == next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    assert interface_of("192.0.2.1") is None


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({}, None),
        ({"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8"}, None),
        (SEVERAL, "eth7"),
        (SEVERAL | {"GLOO_SOCKET_IFNAME": "ib0"}, "ib0"),
    ],
)
def test_gloo_listens_where_the_first_host_sees_this_one(
    environment: dict[str, str], named: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "address_towards", lambda host: "10.9.8.2")
    monkeypatch.setattr(hosts, "interface_of", lambda address: "eth7")
    environment = dict(environment)
    name_gloo_interface(environment)
    assert environment.get("GLOO_SOCKET_IFNAME") == named
