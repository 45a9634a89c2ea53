"""The lock by which a process says, to whoever cannot see it, that it lives."""

import os

from heap_middleware.workers import hold
from heap_middleware.workers.hold import Hold, is_held


def test_who_cannot_be_sure_of_it_does_not_wait(tmp_path, monkeypatch):
    """A forked child may find it being changed by a thread that is none there; it goes on without closing it."""
    path = tmp_path / "owner"
    path.touch()
    mine = Hold(path)
    mine.take()
    monkeypatch.setattr(hold, "_LONG", 0.01)
    with mine._changing:
        mine.take()
        mine.close()
        assert is_held(path)
    mine.close()
    assert not is_held(path)


def test_what_is_not_there_is_held_later(tmp_path):
    """The file may be made anew before the next look."""
    path = tmp_path / "owner"
    mine = Hold(path)
    mine.take()
    assert not is_held(path)
    path.touch()
    mine.take()
    assert is_held(path)
    before = len(os.listdir("/proc/self/fd"))
    del mine
    assert not is_held(path)
    assert len(os.listdir("/proc/self/fd")) == before - 1
