"""By which of its addresses this host reaches another: its name often means only itself (127.0.1.1 on Debian)."""

from __future__ import annotations

import socket
import struct
from collections.abc import MutableMapping

_SIOCGIFADDR = 0x8915  # linux/sockios.h


def address_towards(host: str) -> str:
    """The address of this host that `host` sees. Sends nothing. Raises `OSError` for a name that is unknown."""
    family, _, _, _, target = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(target)
        return str(probe.getsockname()[0])


def interface_of(address: str) -> str | None:
    """The name of the interface with this IPv4 address; None if there is none."""
    import fcntl  # Unix

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                found = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # an interface without such an address
                continue
            if socket.inet_ntoa(found[20:24]) == address:
                return name
    return None


def name_gloo_interface(environment: MutableMapping[str, str]) -> None:
    """Where ranks are on several hosts: have gloo listen where the first host sees this one, unless the environment
    says where. By itself it takes the address that this host's name stands for."""
    first = environment.get("MASTER_ADDR", "")
    if not first or "GLOO_SOCKET_IFNAME" in environment:
        return
    if environment.get("WORLD_SIZE") == environment.get("LOCAL_WORLD_SIZE"):
        return
    try:
        name = interface_of(address_towards(first))
    except OSError:  # torch's own message says that the name is unknown
        return
    if name is not None:
        environment["GLOO_SOCKET_IFNAME"] = name
