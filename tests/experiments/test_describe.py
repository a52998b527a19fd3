import pytest

from experiments import describe


# ml_collections loads files in an old way.
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_a_network_beside_is_that_of_a_run():
    config = describe._Beside().parse("configs/cifar10.py:plain20")
    assert describe._name(config.model) == "20-layer plain"
    with pytest.raises(ValueError, match="a sweep's"):
        describe._Beside().parse("configs/degradation.py:digits")
