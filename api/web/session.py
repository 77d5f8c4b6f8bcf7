"""Log-ins: a sealed cookie that holds the API key, so that a key that is revoked opens nothing from the next call on.

Nothing about sessions is stored. A cookie is worth nothing after `web.session_seconds`, to whoever has it.
"""

import time
from dataclasses import dataclass, field

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from fastapi import Request, Response

from jobs import vault
from jobs.errors import QuotaExceeded
from jobs.settings import Web

COOKIE = "promptmill_session"
# A key has 192 random bits: this keeps the log short, not the key safe.
MAX_BAD_LOGINS, BAD_LOGINS_SECONDS, MAX_ADDRESSES = 10, 60, 10_000


@dataclass
class Sessions:
    """The log-ins of one API process."""

    settings: Web
    own: Fernet = field(default_factory=lambda: Fernet(vault.new_key()))
    """Seals where no file names keys."""

    def seal(self, key: str) -> str:
        """Return an API key as the cookie holds it."""
        return self._cipher().encrypt(key.encode()).decode()

    def open(self, request: Request) -> str | None:
        """Return the API key that the call's cookie holds; None without one, or if it is too old or not ours."""
        try:
            token = request.cookies.get(COOKIE, "").encode()
            return self._cipher().decrypt(token, ttl=self.settings.session_seconds).decode()
        except InvalidToken:
            return None

    def _cipher(self) -> Fernet | MultiFernet:
        path = self.settings.key_file
        return self.own if path is None else vault.read_keys(path, "web.key_file")


def keep(response: Response, request: Request, token: str, seconds: int) -> None:
    """Have the browser keep a log-in, out of the reach of scripts and of other sites' forms."""
    response.set_cookie(
        COOKIE, token, max_age=seconds, path="/", secure=_is_tls(request), httponly=True, samesite="lax"
    )


def forget(response: Response, request: Request) -> None:
    """Have the browser forget it, if it has one."""
    if COOKIE not in request.cookies:
        return
    response.delete_cookie(COOKIE, path="/", secure=_is_tls(request), httponly=True, samesite="lax")


def _is_tls(request: Request) -> bool:
    # A proxy in front says it; a client that says it makes its own cookie stricter.
    return "https" in (request.scope["scheme"], request.headers.get("x-forwarded-proto"))


@dataclass
class BadLogins:
    """How many log-ins of an address failed in the last minute, in this process."""

    _since: dict[str, tuple[float, int]] = field(default_factory=dict)

    def check(self, address: str) -> None:
        """Let an address try.

        Raises:
            QuotaExceeded: it failed too often.
        """
        since, count = self._since.get(address, (0.0, 0))
        left = since + BAD_LOGINS_SECONDS - time.monotonic()
        if count >= MAX_BAD_LOGINS and left > 0:
            message = f"Too many log-ins failed. Please try again in {left:.0f} s."
            raise QuotaExceeded(message, code="rate_limit_exceeded", retry_after_ms=max(1, round(left * 1_000)))

    def note(self, address: str) -> None:
        """Count a failure."""
        now = time.monotonic()
        since, count = self._since.get(address, (now, 0))
        if len(self._since) >= MAX_ADDRESSES:
            self._since.clear()
        is_over = now - since >= BAD_LOGINS_SECONDS
        self._since[address] = (now, 1) if is_over else (since, count + 1)
