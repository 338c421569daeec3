"""Write the JSON Schemas in docs/schema: of the file of `kvray batch`, and of the `check.json` of `kvray check`.

python docs/make_schema.py   (a test compares each file with the code)
"""

import json
from pathlib import Path

from pydantic import BaseModel

from kvray.check.result import CheckResult
from kvray.tuning.batch_file import BatchFile

SCHEMAS: dict[str, type[BaseModel]] = {"batch": BatchFile, "check": CheckResult}

if __name__ == "__main__":
    for name, model in SCHEMAS.items():
        path = Path(__file__).parent / "schema" / f"{name}.schema.json"
        path.write_text(json.dumps(model.model_json_schema(), indent=2) + "\n", encoding="utf-8")
