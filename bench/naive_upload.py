"""What D2 is compared with: an upload as it is often written.

The form is spooled by FastAPI, each line read with `json.loads`, and its body stored as `jsonb` in one COPY.
"""

import json
import os
import sys
import uuid

import psycopg
import uvicorn
from fastapi import FastAPI, UploadFile
from psycopg.types.json import Jsonb

URL = os.environ["NAIVE_DATABASE_URL"]
TABLE = "CREATE TABLE naive (file_id uuid, line_no int, custom_id text, body jsonb, PRIMARY KEY (file_id, line_no))"
COPY = "COPY naive (file_id, line_no, custom_id, body) FROM STDIN"
app = FastAPI()


@app.post("/files")
def create_file(file: UploadFile) -> dict[str, int]:
    file_id, number = uuid.uuid4(), 0
    with psycopg.connect(URL) as connection, connection.cursor().copy(COPY) as copy:
        for number, line in enumerate(file.file, 1):
            request = json.loads(line)
            copy.write_row((file_id, number, request["custom_id"], Jsonb(request["body"])))
    return {"lines": number}


if __name__ == "__main__":
    with psycopg.connect(URL) as made:
        made.execute(TABLE)
    uvicorn.run(app, port=int(sys.argv[1]), log_level="info")
