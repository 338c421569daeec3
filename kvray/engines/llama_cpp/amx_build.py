"""Refuses a build of llama.cpp that would end the process at its first product on a CPU with AMX.

GCC before 11.5, 12.4 and 13.3 compiles the setting of AMX's tiles wrongly (GCC bug 114098). This looks at the library's
bytes and loads nothing.
"""

from __future__ import annotations

import re
from pathlib import Path

from kvray.engines.llama_cpp.build import library_files
from kvray.errors import EngineError
from kvray.extras import pip_command
from kvray.probes.cpu import cpu_flags

_HEADER = Path(__file__).with_name("amx_tiles.h")
_LOADS_TILES = bytes.fromhex("c4e27849")
"""The instruction `ldtilecfg`."""
_TILES = (bytes.fromhex("0808101010101010"), bytes.fromhex("4000400020002000"))
"""Rows and columns of the tiles, which a sound build loads. Source: `ggml_tile_config_init` of ggml."""
_GCC = re.compile(rb"GCC: \([^)]*\) (\d+)\.(\d+)")
_SOUND_SINCE = {11: 5, 12: 4, 13: 3}


def check_tiles() -> None:
    """Refuse the installed library if this CPU has AMX and the library cannot use it.

    Raises:
        EngineError
    """
    if "amx_int8" not in cpu_flags():
        return
    if any(loses_tiles(path.read_bytes()) for path in library_files() if "ggml-cpu" in path.name):
        raise EngineError(
            "llama-cpp-python was compiled by a GCC that compiles AMX wrongly (GCC bug 114098): on this CPU it would "
            "end at its first product (SIGSEGV).",
            hint=f'Compile it again (a newer GCC, 12.4, 13.3 or 14, needs no CXXFLAGS): CXXFLAGS="-include {_HEADER}" '
            f"{pip_command('--force-reinstall', '--no-deps', '--no-cache-dir', 'llama-cpp-python')}",
        )


def loses_tiles(library: bytes) -> bool:
    """Whether the content of a library loads tiles that an old GCC has not set."""
    if _LOADS_TILES not in library or any(tiles in library for tiles in _TILES):
        return False
    return any(_is_old(int(major), int(minor)) for major, minor in _GCC.findall(library))


def _is_old(major: int, minor: int) -> bool:
    return major < min(_SOUND_SINCE) or minor < _SOUND_SINCE.get(major, 0)
