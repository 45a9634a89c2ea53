"""`python -m heap_middleware` is `heap-middleware`."""

from heap_middleware.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    raise SystemExit(main())
