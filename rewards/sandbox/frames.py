"""Frames on a stream: a 4-byte length, then JSON."""

from __future__ import annotations

import os
import struct
from typing import Any

from . import codec

_HEADER = struct.Struct("<I")
LIMIT = 16 << 20
"""Bytes of the largest frame."""


class Closed(Exception):
    """The other side is gone, or sent what is no frame."""


def encode(message: Any) -> bytes:
    """One message as bytes. Raises `codec.Unencodable` when it is too long."""
    body = codec.dumps(message)
    if len(body) > LIMIT:
        raise codec.Unencodable(f"{len(body)} bytes are more than a frame holds")
    return _HEADER.pack(len(body)) + body


def send(descriptor: int, message: Any) -> None:
    """Write one message whole. Raises `Closed`."""
    view = memoryview(encode(message))
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError as error:
        raise Closed(str(error)) from error


def receive(descriptor: int) -> Any:
    """The next message. Raises `Closed`."""
    try:
        return codec.loads(_exactly(descriptor, _HEADER.unpack(_exactly(descriptor, 4))[0]))
    except codec.Undecodable as error:
        raise Closed(str(error)) from error


def parse(data: bytes) -> list[Any]:
    """The complete messages at the start of `data`; what does not parse ends the list."""
    messages, position = [], 0
    while len(data) - position >= 4:
        end = position + 4 + _HEADER.unpack_from(data, position)[0]
        if end > len(data):
            break
        try:
            messages.append(codec.loads(data[position + 4 : end]))
        except codec.Undecodable:
            break
        position = end
    return messages


def _exactly(descriptor: int, count: int) -> bytes:
    if count > LIMIT:
        raise Closed(f"a frame of {count} bytes")
    parts = bytearray()
    while len(parts) < count:
        try:
            chunk = os.read(descriptor, min(count - len(parts), 1 << 20))
        except OSError as error:
            raise Closed(str(error)) from error
        if not chunk:
            raise Closed("end of stream")
        parts += chunk
    return bytes(parts)
