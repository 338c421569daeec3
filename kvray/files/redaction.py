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
    r"PASSWORD|PASSWD|PASSPHRASE|APIKEY|(?:^|_)(TOKENS?|SECRETS?|PASS|PWD|CREDENTIALS?|PAT|WEBHOOKS?|"
    r"(API|ACCESS|PRIVATE|SECRET|SIGNING|ENCRYPTION|ACCOUNT|STORAGE)_?KEY(_ID)?)(?:_|$)",
    re.IGNORECASE,
)
_NAMES_A_PLACE = re.compile(r"_(PATH|FILE|DIR|FOLDER|SOCK|URL|URI|TYPE|PROVIDER|VERSION)$|^(OLD)?PWD$", re.IGNORECASE)
"""Variables that say where a secret lies, not what it is."""
# Linear in the length of the text: what a hostile file says must not take minutes to read.
_URL = re.compile(r"(?<=://)[^\s'\"<>]+")
"""What follows a scheme, up to what ends a URL."""
_USERINFO = re.compile(r"[^/?#:@]*:.*@|[^/?#]*@")
"""Up to the last `@` once there is a colon: people type keys with `/` and `@` into URIs unescaped."""
_TOKEN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|api_org_[A-Za-z0-9]{16,}|gh[opsur]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|"
    r"glpat-[\w-]{16,}|(?:AKIA|ASIA)[A-Z0-9]{12,}|AIza[\w-]{30,}|sk-[\w-]{20,}|xox[abeprs]-[\w-]{10,})"
)
_JSON_WEB_TOKEN = re.compile(r"(?<![\w-])((?>[\w-]*?\b(?=eyJ)))eyJ[\w-]{8,}+\.eyJ[\w-]{8,}+\.[\w-]*")
"""Asked once for each word, from its beginning."""
_AUTHORIZATION = re.compile(r"(\b(?:bearer|authorization\W{1,4}basic)\s+)[\w.~+/=-]{16,}", re.IGNORECASE)


def redact(text: str, environment: Mapping[str, str] | None = None) -> str:
    """`text` without what may be a secret; of a URL, user name, password and query are gone without a trace.

    Args:
        environment: by default this process's own.
    """
    for secret in _secrets(os.environ if environment is None else environment):
        text = text.replace(secret, HIDDEN)
    text = _URL.sub(_without_secrets, text)
    text = _JSON_WEB_TOKEN.sub(rf"\1{HIDDEN}", _TOKEN.sub(HIDDEN, text))
    return _AUTHORIZATION.sub(rf"\1{HIDDEN}", text)


def _without_secrets(url: re.Match[str]) -> str:
    """Redact a URL within a URL too, as proxies have them."""
    kept, rest = [], url[0]
    while rest:
        if "@" in rest:
            rest = _USERINFO.sub("", rest, count=1) if _USERINFO.match(rest) else rest
        head, separator, rest = rest.partition("://")
        kept += [head, separator]
    return "".join(kept).partition("?")[0]


def _secrets(environment: Mapping[str, str]) -> list[str]:
    """Longest first: one may be a part of another. Also as they stand in a URL, and each line of what has several."""
    found: set[str] = set()
    for name, value in environment.items():
        if _SECRET_NAME.search(name) and not _NAMES_A_PLACE.search(name):
            spellings = {value, value.strip(), quote(value, safe=""), *value.splitlines()}
            found |= {one for one in spellings if len(one) >= SHORTEST_SECRET}
    return sorted(found, key=len, reverse=True)
