"""Locks, and who waits for them."""

import threading
import warnings

import pytest

from lib import files


def test_whoever_waits_for_a_lock_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 0.05)
    held, done = threading.Event(), threading.Event()

    def hold():
        with files.locked(tmp_path / "deep" / "run"):
            held.set()
            done.wait(20)

    other = threading.Thread(target=hold)
    other.start()
    assert held.wait(20)
    threading.Timer(0.3, done.set).start()
    with pytest.warns(UserWarning, match=f"waiting for another process, which holds {tmp_path}/deep/run.lock"):
        with files.locked(tmp_path / "deep" / "run"):
            assert done.is_set()
    other.join()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with files.locked(tmp_path / "deep" / "run"):
            pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=f"^{tmp_path}/file/deep: cannot be written .*COMPANION_RUNS"):
        with files.locked(tmp_path / "file" / "deep" / "run"):
            pass
