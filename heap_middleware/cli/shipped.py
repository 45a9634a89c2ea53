"""The files for Prometheus and Grafana that come with the package."""

from importlib.resources import files
from pathlib import Path
from typing import Final

from heap_middleware.errors import CommandError

__all__ = ["DASHBOARD", "RULES", "shipped"]

RULES: Final = "rules.yml"
DASHBOARD: Final = "grafana/heap.json"


def shipped(name: str) -> str:
    """The text of one of them. Raises `CommandError` if this installation lacks it."""
    package = files("heap_middleware")
    # The build copies the folder into the package; a checkout has it beside the package.
    for folder in (package / "monitoring", Path(str(package)).parent / "monitoring"):
        file = folder.joinpath(*name.split("/"))
        if file.is_file():
            return file.read_text("utf-8")
    raise CommandError(f"this installation has no {name}; it is in the folder monitoring/ of the sources")
