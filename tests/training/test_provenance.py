from training import provenance


def test_a_start_is_kept_while_the_run_has_steps_of_it(tmp_path):
    def record(step, device):
        return [(start["step"], start["device"]) for start in provenance.record(tmp_path, step, device)]

    assert record(0, "CPU") == [(0, "CPU")]
    assert record(5, "GPU") == [(0, "CPU"), (5, "GPU")]
    assert record(9, "GPU") == [(0, "CPU"), (5, "GPU"), (9, "GPU")]
    assert record(5, "CPU") == [(0, "CPU"), (5, "CPU")]
