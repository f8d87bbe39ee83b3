"""JSON lines as pandas writes and reads them: numbers become floats where one is missing, and nothing is null."""

from __future__ import annotations

import io
import os
import urllib.request

import pandas

from clients.checks import check
from clients.requests_sent import TOPICS


def main() -> None:
    frame = pandas.DataFrame({"prompt": [*TOPICS, "Wrong"], "max_tokens": [4, None, 3, 2], "top_p": [1, 1, None, 2]})
    body = frame.to_json(orient="records", lines=True)
    check("to_json", '"max_tokens":4.0' in body and '"max_tokens":null' in body, body)
    headers = {"Content-Type": "application/jsonlines"}
    request = urllib.request.Request(f"{os.environ['LONGHAUL_URL']}/invocations", body.encode(), headers)
    with urllib.request.urlopen(request) as response:
        answers = pandas.read_json(io.BytesIO(response.read()), lines=True)
    check("it has answers and errors", {"choices", "error"} <= set(answers.columns), answers.to_json())
    check("a batch of a frame", list(answers["choices"].notna()) == [True, True, True, False], answers)
    check("its error has the field", answers["error"][3]["param"] == "top_p", answers["error"][3])


if __name__ == "__main__":
    main()
