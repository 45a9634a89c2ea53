"""Reminders, with a leak that is not ours: dateparser 1.4.3 keeps settings for every RELATIVE_BASE.

gunicorn app:app, some traffic, and http://127.0.0.1:8000/heap says so. docs/worked-example.md tells the story.
"""

from datetime import UTC, datetime

import dateparser
from flask import Flask, request

from heap_middleware.wsgi import HeapMetricsMiddleware

app = Flask(__name__)
app.wsgi_app = HeapMetricsMiddleware(app.wsgi_app, attribution=True, report_path="/heap")  # type: ignore[method-assign]


@app.get("/reminders")
def remind() -> dict[str, str | None]:
    now = datetime.now(UTC)
    when = dateparser.parse(request.args["when"], languages=["en"], settings={"RELATIVE_BASE": now})
    return {"at": when.isoformat() if when else None}


@app.get("/health")
def health() -> dict[str, str]:
    return {"status": "ok"}
