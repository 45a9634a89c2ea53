"""Heap metrics for Prometheus from any WSGI or ASGI application, and which route leaks.

The middleware is imported from where it fits: `heap_middleware.wsgi` or `heap_middleware.asgi`.
"""

from heap_middleware.errors import BackendUnavailable, HeapMiddlewareError, SettingsError
from heap_middleware.exposition.collector import HeapCollector
from heap_middleware.heap.dendrogram import HeapDendrogram
from heap_middleware.monitor import HeapMonitor
from heap_middleware.settings import HeapSettings

__all__ = [
    "BackendUnavailable",
    "HeapCollector",
    "HeapDendrogram",
    "HeapMiddlewareError",
    "HeapMonitor",
    "HeapSettings",
    "SettingsError",
]
