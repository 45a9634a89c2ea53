"""gunicorn reads this file where it starts: four workers, and any of them answers a scrape for all."""

workers = 4
raw_env = ["HEAP_MIDDLEWARE_WORKERS_DIR=.heap_workers"]  # on a server of yours, say, /run/flask_app/heap
