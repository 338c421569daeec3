"""Print docs/schema/batch.schema.json, the JSON Schema of the file of `kvray batch`.

python docs/make_schema.py > docs/schema/batch.schema.json   (a test compares the two)
"""

import json

from kvray.tuning.batch_file import BatchFile

if __name__ == "__main__":
    print(json.dumps(BatchFile.model_json_schema(), indent=2))
