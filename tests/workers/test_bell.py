"""How one worker wakes another, and what becomes of it when the other is gone."""

import os

import pytest

from heap_middleware.workers import bell as module
from heap_middleware.workers.bell import Bell, ring


@pytest.fixture
def bell(tmp_path):
    made = Bell(tmp_path / "bell")
    yield made
    made.close()


def test_who_is_asked_hears_it_once(bell, tmp_path):
    """However often it was rung since."""
    assert not bell.has_rung()
    assert ring(tmp_path / "bell")
    assert ring(tmp_path / "bell")
    assert bell.has_rung()
    assert not bell.has_rung()
    bell.ring()
    assert bell.has_rung()


def test_asked_often_enough_is_asked(bell, tmp_path):
    """Who stands still for hours is asked all that time: nobody waits until there is room in the pipe."""
    while True:
        try:
            os.write(bell._writer, b"!" * 4096)
        except BlockingIOError:
            break
    assert ring(tmp_path / "bell")
    assert bell.has_rung()


def test_nobody_hears_it(bell, tmp_path):
    """Where nobody listens any longer, whoever asks is told so, and does not wait for news."""
    bell.close()
    assert (tmp_path / "bell").exists()
    assert not ring(tmp_path / "bell")
    assert not ring(tmp_path / "none")


def test_who_dies_that_very_moment_hears_nothing(bell, tmp_path, monkeypatch):
    """Between the look and the ring."""
    opened = os.open

    def late(path, flags):
        descriptor = opened(path, flags)
        bell.close()
        return descriptor

    monkeypatch.setattr(module.os, "open", late)
    assert not ring(tmp_path / "bell")


def test_an_application_that_closes_all_descriptors(bell):
    """As daemons do; what has their numbers then is left alone, and the bell is known to be out of order."""
    reader, writer = bell.reader, bell._writer
    with open(os.devnull, "rb+") as other:
        os.dup2(other.fileno(), writer)
    os.close(reader)
    assert not bell.is_there()
    assert not bell.has_rung()
    bell.ring()
    bell.close()
    assert os.fstat(writer).st_rdev == os.stat(os.devnull).st_rdev
    os.close(writer)


def test_the_file_of_another_is_left_alone(bell, tmp_path):
    """Whoever made the directory anew has a pipe of the same name there; it is not taken away."""
    (tmp_path / "bell").unlink()
    assert not bell.is_there()
    other = Bell(tmp_path / "bell")
    bell.remove()
    assert other.is_there()
    other.remove()
    assert not (tmp_path / "bell").exists()
    other.close()
