"""`redact`: takes secrets out of text that is about to leave: logs, records, reports, messages on the terminal.

Three nets, each for what the others miss: the form of a URL, the form of a well-known token, and the values of this
process's environment variables whose names say secret. What none of them knows is not found.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import quote

HIDDEN = "***"
SHORTEST_SECRET = 8
"""Characters. Shorter values are words that text is full of."""

_SECRET_NAME = re.compile(
    r"PASSWORD|PASSWD|PASSPHRASE|APIKEY|(?:^|_)(TOKENS?|SECRETS?|PASS|PWD|CREDENTIALS?|PAT|"
    r"(API|ACCESS|PRIVATE|SECRET|SIGNING|ENCRYPTION|ACCOUNT|STORAGE)_?KEY(_ID)?)(?:_|$)",
    re.IGNORECASE,
)
_NAMES_A_PLACE = re.compile(r"_(PATH|FILE|DIR|FOLDER|SOCK|URL|URI|TYPE|PROVIDER|VERSION)$|^(OLD)?PWD$", re.IGNORECASE)
"""Variables that say where a secret lies, not what it is."""
# Each begins at a fixed text and looks a bounded way ahead: what a hostile file says must not take minutes to read.
_USERINFO = re.compile(r"(?<=://)(?:[^\s'\"<>/?#:@]{0,4096}:[^\s'\"<>]{0,4096}@|[^\s'\"<>/?#]{0,4096}@)")
"""Up to the last `@` once there is a colon: people type keys with `/` and `@` into URIs unescaped."""
_QUERY = re.compile(r"(?<=://)([^\s'\"<>?]{0,4096})\?[^\s'\"<>]*")
_TOKEN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|api_org_[A-Za-z0-9]{16,}|gh[opsur]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|"
    r"glpat-[\w-]{16,}|(?:AKIA|ASIA)[A-Z0-9]{12,}|AIza[\w-]{30,}|sk-[\w-]{20,}|xox[abeprs]-[\w-]{10,}|"
    r"eyJ[\w-]{8,4096}\.eyJ[\w-]{8,4096}\.[\w-]*)"
)
_AUTHORIZATION = re.compile(r"(\b(?:bearer|authorization\W{1,4}basic)\s+)[\w.~+/=-]{16,}", re.IGNORECASE)


def redact(text: str, environment: Mapping[str, str] | None = None) -> str:
    """`text` without what may be a secret; of a URL, user name, password and query are gone without a trace.

    Args:
        environment: by default this process's own.
    """
    for secret in _secrets(os.environ if environment is None else environment):
        text = text.replace(secret, HIDDEN)
    text = _QUERY.sub(r"\1", _USERINFO.sub("", text))
    return _AUTHORIZATION.sub(rf"\1{HIDDEN}", _TOKEN.sub(HIDDEN, text))


def _secrets(environment: Mapping[str, str]) -> list[str]:
    """Longest first: one may be a part of another. Also as they stand in a URL, and each line of what has several."""
    found: set[str] = set()
    for name, value in environment.items():
        if _SECRET_NAME.search(name) and not _NAMES_A_PLACE.search(name):
            spellings = {value, value.strip(), quote(value, safe=""), *value.splitlines()}
            found |= {one for one in spellings if len(one) >= SHORTEST_SECRET}
    return sorted(found, key=len, reverse=True)
