import pytest

from configs import cifar10, imagenet
from resnet_flax.config import RunConfig, parse
from resnet_flax.models import cost
from resnet_flax.training import architecture

# Table 1 and Sec. 4.1: multiply-adds at 224x224. VGG-16: Table 3 of the paper's comparison.
PAPER = {
    "resnet18": 1.8e9,
    "plain34": 3.6e9,
    "resnet34": 3.6e9,
    "resnet50": 3.8e9,
    "resnet101": 7.6e9,
    "resnet152": 11.3e9,
    "vgg16": 15.3e9,
    "vgg19": 19.6e9,
}


def table(config, image_shape, num_classes):
    parsed = parse(config.to_dict(), RunConfig)
    return cost.layer_table(architecture.build_model(parsed.model, num_classes), image_shape)


@pytest.mark.parametrize("net", PAPER)
def test_multiply_adds_are_the_papers_within_two_per_cent(net):
    counted = cost.totals(table(imagenet.get_config(net), (224, 224, 3), 1000))[1]
    assert counted == pytest.approx(PAPER[net], rel=0.02)


def test_a_34_layer_net_costs_18_per_cent_of_vgg_19():
    plain34 = cost.totals(table(imagenet.get_config("plain34"), (224, 224, 3), 1000))[1]
    assert plain34 / cost.vgg19_multiply_adds() == pytest.approx(0.18, abs=0.01)


def test_the_parts_of_a_network_are_all_there_in_order():
    config = cifar10.get_config("resnet8")
    config.model.shortcut = "projection"
    parts = table(config, (32, 32, 3), 10)
    basic = ["convolution", "BN", "ReLU", "convolution", "BN"]
    projection = ["ReLU", "convolution", "BN"]
    assert sorted(part.kind for part in parts) == sorted(
        ["convolution", "BN", "ReLU"]
        + ["identity block", *basic, "ReLU"]
        + 2 * ["convolution block", *basic, *projection]
        + ["global average pool", "fully connected", "softmax"]
    )
    assert [part.name for part in parts[:6]] == [
        "conv",
        "bn",
        "relu",
        "stage1_block1",
        "stage1_block1/conv1",
        "stage1_block1/bn1",
    ]
    # 32*32*16 outputs, each of 3*3*3 products.
    assert parts[0][:5] == ("conv", "convolution", (32, 32, 16), 432, 442_368)
    assert parts[-1][:5] == ("softmax", "softmax", (10,), 0, 0)


@pytest.mark.parametrize(
    "net, parameters, multiply_adds", [("plain20", 269_722, 40.6e6), ("resnet56", 853_018, 126e6)]
)
def test_totals_count_every_part_once(net, parameters, multiply_adds):
    counted = cost.totals(table(cifar10.get_config(net), (32, 32, 3), 10))
    assert counted[0] == parameters
    assert counted[1] == pytest.approx(multiply_adds, rel=0.005)  # The reference has 3 digits.


@pytest.mark.parametrize("net", ["plain8", "resnet14", "resnet44"])
@pytest.mark.parametrize("shortcut", ["none", "pad", "projection", "projection_all"])
def test_multiply_adds_of_a_whole_network_are_those_of_its_table(net, shortcut):
    config = cifar10.get_config(net)
    config.model.update(shortcut=shortcut, scan="on", remat=True)
    model = architecture.build_model(parse(config.to_dict(), RunConfig).model, num_classes=10)
    whole = cost.layer_table(model.clone(remat=False), (8, 8, 1))
    assert cost.multiply_adds(model, (8, 8, 1)) == cost.totals(whole)[1]
