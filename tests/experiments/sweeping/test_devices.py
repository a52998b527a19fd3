from experiments.sweeping import devices


def test_a_share_of_a_gpu_takes_the_place_of_the_users_under_either_name():
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        found = devices.of_shared_gpu({name: "0.5", "HOME": "x"}, 3)
        assert found == {"XLA_CLIENT_MEM_FRACTION": "0.300", "HOME": "x"}
