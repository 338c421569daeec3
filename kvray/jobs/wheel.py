"""A wheel of the kvray that runs, made from its installed files: the same code, from a checkout too."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from importlib.metadata import distribution
from pathlib import Path

_TIME = (1980, 1, 1, 0, 0, 0)
"""The same code makes the same wheel, which a cluster then has already."""
_WHEEL = "Wheel-Version: 1.0\nGenerator: kvray\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def write_wheel(folder: Path) -> Path:
    """Write `kvray-VERSION-py3-none-any.whl` into `folder`."""
    installed = distribution("kvray")
    info = f"kvray-{installed.version}.dist-info"
    package = Path(__file__).parent.parent
    paths = (path for path in sorted(package.rglob("*")) if path.is_file() and "__pycache__" not in path.parts)
    content = {f"kvray/{path.relative_to(package).as_posix()}": path.read_bytes() for path in paths}
    content[f"{info}/METADATA"] = (installed.read_text("METADATA") or "").encode()
    content[f"{info}/entry_points.txt"] = (installed.read_text("entry_points.txt") or "").encode()
    content[f"{info}/WHEEL"] = _WHEEL.encode()
    lines = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in content.items()]
    content[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,", ""]).encode()
    wheel = folder / f"kvray-{installed.version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(zipfile.ZipInfo(name, _TIME), data, zipfile.ZIP_DEFLATED)
    return wheel


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
