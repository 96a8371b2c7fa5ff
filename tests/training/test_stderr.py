import os

from training.stderr import quiet


def test_quiet(capfd):
    with quiet():
        os.write(2, b"a library's message\n")
    os.write(2, b"ours\n")
    assert capfd.readouterr().err == "ours\n"
