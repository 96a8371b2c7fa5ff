from training import provenance


def test_devices_of_the_starts_that_count(tmp_path):
    assert provenance.record(tmp_path, 0, "CPU") == ["CPU"]
    assert provenance.record(tmp_path, 5, "GPU") == provenance.record(tmp_path, 9, "GPU") == ["CPU", "GPU"]
    assert provenance.record(tmp_path, 5, "CPU") == ["CPU"]  # It keeps no steps of the GPU's.
