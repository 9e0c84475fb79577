"""Who may use a server: its address, its token, and the pages whose scripts may call it."""

from __future__ import annotations

from dataclasses import dataclass, field

from curate.errors import InputError
from curate.serving import server


@dataclass(frozen=True)
class Access:
    """Who may use the server."""

    token: str | None = None  # None lets everyone in who reaches it
    hosts: tuple[str, ...] = ()  # names that the Host header may have; empty for any
    origins: tuple[str, ...] = field(default=())  # of pages whose scripts may use it (CORS)


@dataclass(frozen=True)
class Address:
    """Where to listen, and for whom."""

    host: str
    port: int
    token: str | None
    token_env: str  # where the token was looked for
    origins: tuple[str, ...] = ()

    @property
    def access(self) -> Access:
        """Who may use the server; raises InputError for a wrong token, or none where others reach it."""
        token = self.token
        if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
            raise InputError(
                f"the token in {self.token_env} has blanks or letters beyond ASCII; use letters, digits, - and _"
            )
        if server.is_loopback(self.host):
            return Access(self.token, ("localhost", "[::1]", self.host) if self.token is None else (), self.origins)
        if self.token is None:
            raise InputError(
                f"other machines can reach {self.host}, so a token is needed: put one into {self.token_env}, "
                "and send it as Authorization: Bearer TOKEN"
            )
        return Access(self.token, (), self.origins)
