"""HTTP by hand, for what no client library would send."""

import contextlib
import socket
from collections.abc import Iterator

END = b"\r\n--frontier--\r\n"


def form(content: bytes, *, filename: str = "a.jsonl", purpose: str = "batch") -> bytes:
    """Return the body of an upload."""
    return (
        b'--frontier\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n' + purpose.encode() + b"\r\n"
        b'--frontier\r\nContent-Disposition: form-data; name="file"; filename="'
        + filename.encode()
        + b'"\r\n\r\n'
        + content
        + END
    )


def head(target: str, key: str | None, *headers: str, method: str = "POST") -> bytes:
    """Return the head of a call; with a key, and as a form, unless the headers say otherwise."""
    lines = [f"{method} {target} HTTP/1.1", *headers]
    names = {line.partition(":")[0].lower() for line in headers}
    if "host" not in names:
        lines.append("Host: localhost")
    if key is not None:
        lines.append(f"Authorization: Bearer {key}")
    if method == "POST" and "content-type" not in names:
        lines.append("Content-Type: multipart/form-data; boundary=frontier")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8")


@contextlib.contextmanager
def connection(port: int, seconds: float = 30, receive_buffer: int = 0) -> Iterator[socket.socket]:
    """Connect, and hang up at the end."""
    with socket.socket() as opened:
        if receive_buffer:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        opened.settimeout(seconds)
        opened.connect(("127.0.0.1", port))
        yield opened


def status(opened: socket.socket) -> int:
    """Read an answer's first line and return its status; 0 if the server hung up without one."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while b"\r\n" not in received and (piece := opened.recv(65_536)):
            received += piece
    return int(received.split()[1]) if b"\r\n" in received else 0


def is_closed(opened: socket.socket) -> bool:
    """Read to the end: the server hangs up."""
    try:
        while opened.recv(65_536):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


def ask(port: int, data: bytes) -> int:
    """Send these bytes and return the status of the answer."""
    with connection(port) as opened:
        opened.sendall(data)
        return status(opened)
