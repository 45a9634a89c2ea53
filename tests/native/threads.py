"""Threads that allocate and free in and out of requests, with the interpreter's lock and without: for ThreadSanitizer.

python threads.py SECONDS
"""

import ctypes
import os
import sys
import threading
import time

from heap_middleware import _native

raw_malloc = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t)(("PyMem_RawMalloc", ctypes.CDLL(None)))
raw_free = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(("PyMem_RawFree", ctypes.CDLL(None)))


def main(seconds):
    _native.start(10_000, 1, 0.01)
    over = time.monotonic() + seconds
    handed = []
    served = 0

    def serve(endpoint):
        kept = []
        nonlocal served
        while time.monotonic() < over:
            request = _native.Request()
            request.enter()
            kept.append([{}, bytes(600), str(time.monotonic())])
            handed.append(bytearray(1000))
            if len(kept) > 200:
                kept.clear()
            request.leave()
            request.finish(endpoint)
            served += 1

    def let_go():
        while time.monotonic() < over:
            if handed:
                handed.pop()

    def without_lock():  # ctypes lets it go while it calls
        while time.monotonic() < over:
            raw_free(raw_malloc(300))

    def watch():
        while time.monotonic() < over:
            _native.snapshot(), _native.statistics(), _native.sites(), _native.census(False)

    threads = [threading.Thread(target=serve, args=(number + 1,)) for number in range(4)]
    threads += [threading.Thread(target=one) for one in (let_go, let_go, without_lock, without_lock, watch)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _native.stop()
    print(f"about {served} requests in {len(threads)} threads", flush=True)
    os._exit(0)  # what the interpreter does at its end is none of ours


if __name__ == "__main__":
    main(float(sys.argv[1]))
