import portalocker

from tiny_imagenet import locks


def test_waits_until_the_lock_is_free(tmp_path, monkeypatch):
    """Also where the operating system does not wait long enough."""
    answers = [portalocker.AlreadyLocked("at once"), portalocker.AlreadyLocked("after ten seconds"), None]
    told = []

    def lock(file, flags):
        assert (portalocker.LockFlags.NON_BLOCKING in flags) == (len(answers) == 3)
        if answer := answers.pop(0):
            raise answer

    monkeypatch.setattr(portalocker, "lock", lock)
    with locks.lock(tmp_path / "file.lock", lambda: told.append("taken")) as locked:
        assert locked and not answers
    assert told == ["taken"]
