"""A Flask application with one route that leaks: gunicorn app:app, then python load.py."""

from flask import Flask

from heap_middleware.wsgi import HeapMetricsMiddleware


class LeakObj:
    """What /leakable leaves behind with every request."""


leakable: list[LeakObj] = []

app = Flask(__name__)
app.wsgi_app = HeapMetricsMiddleware(app.wsgi_app, attribution=True, report_path="/heap")  # type: ignore[method-assign]


@app.get("/leakable")
def leak() -> dict[str, int]:
    leakable.append(LeakObj())  # nobody ever takes it out again
    return {"leaked": len(leakable)}


@app.get("/clean")
def clean() -> dict[str, int]:
    garbage = [LeakObj() for _ in range(100)]  # a lot of work, and nothing stays
    return {"made": len(garbage)}


@app.get("/users/<int:user_id>")
def user(user_id: int) -> dict[str, object]:
    return {"id": user_id, "name": f"user {user_id}", "groups": ["readers", "writers"]}


@app.get("/search")
def search() -> str:
    return "".join(f"<li>result {number}</li>" for number in range(50))


if __name__ == "__main__":
    app.run(host="127.0.0.1", port=8000)
