"""Length-prefixed messages over a socket, with a deadline and a size limit.

Trainer to worker: pickle, written by the trainer itself. Worker to trainer: JSON only, because a worker may have run
the model's text, and unpickling runs code.
"""

import json
import select
import socket
import struct
import time
from typing import Any

_HEADER = struct.Struct("!Q")
MAX_REPLY_BYTES = 16 << 20
MAX_REQUEST_BYTES = 4 << 30


class ChannelClosed(Exception):
    """The other side is gone."""


class DeadlineExceeded(Exception):
    """No complete message arrived in time."""


class BadMessage(Exception):
    """A message that is too long or not JSON: the worker is no longer to be trusted."""


class Channel:
    """One end of a stream socket that carries messages.

    Args:
        sock: a connected stream socket; the channel owns it.
        max_bytes: longest message accepted.
    """

    def __init__(self, sock: socket.socket, max_bytes: int) -> None:
        self._socket = sock
        self._max_bytes = max_bytes
        self._buffer = bytearray()

    def fileno(self) -> int:
        """Return the socket's file descriptor."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket; safe to call twice."""
        self._socket.close()

    def send(self, data: bytes, deadline: float | None = None) -> None:
        """Send one message.

        Args:
            data: the message.
            deadline: a time of `time.monotonic()`; None waits without limit.

        Raises:
            ChannelClosed: the other side is gone.
            DeadlineExceeded: the other side did not read in time.
        """
        self._socket.settimeout(None if deadline is None else max(deadline - time.monotonic(), 0.001))
        try:
            self._socket.sendall(_HEADER.pack(len(data)) + data)
        except TimeoutError as error:
            raise DeadlineExceeded from error
        except OSError as error:
            raise ChannelClosed from error

    def receive(self, deadline: float | None = None) -> bytes:
        """Return the next message.

        Args:
            deadline: a time of `time.monotonic()`; None waits without limit. A message that is complete by then is
                returned even when the caller is late to ask for it.

        Raises:
            ChannelClosed, DeadlineExceeded, BadMessage.
        """
        header = self._take(_HEADER.size, deadline)
        (length,) = _HEADER.unpack(header)
        if length > self._max_bytes:
            raise BadMessage(f"a message of {length} bytes; at most {self._max_bytes} are accepted")
        return self._take(length, deadline)

    def _take(self, count: int, deadline: float | None) -> bytes:
        while len(self._buffer) < count:
            self._wait(deadline)
            try:
                data = self._socket.recv(1 << 20)
            except OSError as error:
                raise ChannelClosed from error
            if not data:
                raise ChannelClosed
            self._buffer += data
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def _wait(self, deadline: float | None) -> None:
        if deadline is None:
            self._socket.settimeout(None)
            return
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if not poll.poll(max(deadline - time.monotonic(), 0) * 1000):
            raise DeadlineExceeded


def decode_reply(data: bytes) -> dict[str, Any]:
    """Return a worker's message as a dictionary.

    Raises:
        BadMessage: it is not a JSON object.
    """
    try:
        reply = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadMessage("a message that is not JSON") from error
    if not isinstance(reply, dict):
        raise BadMessage("a message that is not a JSON object")
    return reply
