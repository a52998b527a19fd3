from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_flax.errors import UserError
from resnet_flax.models import catalogue, vgg
from resnet_flax.models.blocks import BLOCKS
from resnet_flax.models.catalogue import build_resnet
from resnet_flax.models.resnet import Part, part_of

CIFAR_SHORTCUTS = ("none", "pad")
# Trainable parameters of Sec. 4.2, 10 classes, by arithmetic: with n = (depth-2)/6,
# conv 3*3*3*16, stages 9*16*16*2n, 9*16*32 + 9*32*32*(2n-1), 9*32*64 + 9*64*64*(2n-1),
# BN 2*16*(2n+1) + 2*32*2n + 2*64*2n, fully connected 64*10 + 10.
CIFAR = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962, 1202: 19_421_274}
# Table 1, 1000 classes, by shortcut. B is the well-known count. Plain and A: B less its projections
# and their BN: 18, 34: 64*128 + 128*256 + 256*512 + 2*(128+256+512) = 173,824; 50 and deeper:
# 64*256 + 256*512 + 512*1024 + 1024*2048 + 2*(256+512+1024+2048) = 2,776,576. C: B plus w*w + 2w
# for each identity block of w channels:
# 18: w = 64 twice, 128, 256, 512 once: 354,304; 34: 3 of 64, 3 of 128, 5 of 256, 2 of 512: 919,168;
# 50: 2 of 256, 3 of 512, 5 of 1024, 2 of 2048: 14,571,520; 101: 2, 3, 22, 2: 32,432,128;
# 152: 2, 7, 35, 2: 47,142,912.
IMAGENET = {
    18: {"none": 11_515_688, "projection": 11_689_512, "projection_all": 12_043_816},
    34: {"none": 21_623_848, "projection": 21_797_672, "projection_all": 22_716_840},
    50: {"none": 22_780_456, "projection": 25_557_032, "projection_all": 40_128_552},
    101: {"none": 41_772_584, "projection": 44_549_160, "projection_all": 76_981_288},
    152: {"none": 57_416_232, "projection": 60_192_808, "projection_all": 107_335_720},
}
# Pre-activation: a BN before each convolution of F and one before the pool is as many scales and
# biases as one after each. Projections have no BN, 2w less for w channels. B: 18, 34:
# 2*(128+256+512) = 1,792; 50 and deeper: 2*(256+512+1024+2048) = 7,680; 50 and 101 are then the
# published counts of BiT R50x1 and R101x1. C, all blocks: 18: 2*2*(64+128+256+512) = 3,840;
# 34: 2*(3*64+4*128+6*256+3*512) = 7,552; 50: 2*(3*256+4*512+6*1024+3*2048) = 30,208;
# 101: 23*1024 for 6*1024: 65,024; 152: 8*512 and 36*1024: 95,744.
PREACTIVATION = {
    18: {"none": 11_515_688, "projection": 11_687_720, "projection_all": 12_039_976},
    34: {"none": 21_623_848, "projection": 21_795_880, "projection_all": 22_709_288},
    50: {"none": 22_780_456, "projection": 25_549_352, "projection_all": 40_098_344},
    101: {"none": 41_772_584, "projection": 44_541_480, "projection_all": 76_916_264},
    152: {"none": 57_416_232, "projection": 60_185_128, "projection_all": 107_239_976},
}
# By model.block: the counts on CIFAR, and on ImageNet by shortcut.
OF_BLOCKS = {"postactivation": (CIFAR, IMAGENET), "preactivation": (CIFAR, PREACTIVATION)}
VGG = {16: 138_357_544, 19: 143_667_240}


def parameters(model, image_shape):
    """Their shapes, by path; nothing is computed."""
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
    return variables["params"]


def count(model, image_shape):
    """With scan, as many as without (`test_stacking.py`), and as fast for 1202 layers as for 20."""
    return sum(leaf.size for leaf in jax.tree.leaves(parameters(model, image_shape)))


@pytest.mark.parametrize("block", OF_BLOCKS)
@pytest.mark.parametrize("shortcut", CIFAR_SHORTCUTS)
@pytest.mark.parametrize("depth", CIFAR)
def test_a_cifar_net_has_the_papers_parameters(depth, shortcut, block):
    model = build_resnet("cifar", depth, shortcut, block=block, num_classes=10, scan=True)
    assert count(model, (32, 32, 3)) == OF_BLOCKS[block][0][depth]


@pytest.mark.parametrize("depth", [20, 56])
def test_without_bn_each_convolution_has_a_bias_in_place_of_scale_and_bias(depth):
    model = build_resnet("cifar", depth, "pad", num_classes=10, norm="none")
    biases = 16 + (depth - 2) // 3 * (16 + 32 + 64)
    assert count(model, (32, 32, 3)) == CIFAR[depth] - biases
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert "batch_stats" not in variables


@pytest.mark.parametrize("block", OF_BLOCKS)
@pytest.mark.parametrize("shortcut", ["none", "pad", "projection", "projection_all"])
@pytest.mark.parametrize("depth", IMAGENET)
def test_an_imagenet_net_has_the_papers_parameters(depth, shortcut, block):
    model = build_resnet("imagenet", depth, shortcut, block=block, num_classes=1000, scan=True)
    expected = OF_BLOCKS[block][1][depth]["none" if shortcut == "pad" else shortcut]
    assert count(model, (224, 224, 3)) == expected


@pytest.mark.parametrize("depth", VGG)
def test_vgg_has_the_papers_parameters(depth):
    assert count(vgg.build_vgg(depth, num_classes=1000), (224, 224, 3)) == VGG[depth]


def test_no_registered_net_is_missing_from_the_tables():
    assert OF_BLOCKS.keys() == BLOCKS.keys()
    for _, imagenet in OF_BLOCKS.values():
        assert imagenet.keys() == catalogue.IMAGENET_NETS.keys()
    assert VGG.keys() == vgg.VGG_NETS.keys()


def test_plain_and_option_a_nets_begin_with_identical_values_in_one_tree():
    image = jnp.zeros((1, 8, 8, 1))
    plain, residual = (
        build_resnet("cifar", 14, shortcut, num_classes=10).init(jax.random.key(7), image)
        for shortcut in CIFAR_SHORTCUTS
    )
    assert jax.tree.structure(plain) == jax.tree.structure(residual)
    jax.tree.map(np.testing.assert_array_equal, plain, residual)


def test_plain_and_option_a_nets_compute_different_things():
    image = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    plain, residual = (
        build_resnet("cifar", 8, shortcut, num_classes=10) for shortcut in CIFAR_SHORTCUTS
    )
    variables = plain.init(jax.random.key(7), image)
    assert not np.allclose(plain.apply(variables, image), residual.apply(variables, image))


@pytest.mark.parametrize(
    "shortcut, family, depth",
    [
        ("pad", "cifar", 8),
        ("projection_all", "cifar", 8),
        ("projection", "imagenet", 18),
        ("none", "imagenet", 50),
        ("pad", "imagenet", 50),
    ],
)
def test_any_image_size_channel_and_class_count_gives_finite_logits(family, depth, shortcut):
    model = build_resnet(
        family, depth, shortcut, (4, 8, 8, 16)[: 3 + (family != "cifar")], num_classes=7
    )
    image = jax.random.normal(jax.random.key(0), (2, 19, 28, 2))
    logits, _ = model.init_with_output(jax.random.key(0), image)
    assert logits.shape == (2, 7)
    assert logits.dtype == jnp.float32
    assert np.isfinite(logits).all()


def test_option_b_projects_only_where_a_stage_changes_the_dimensions():
    def projected(shortcut, depth):
        params = parameters(build_resnet("imagenet", depth, shortcut, num_classes=10), (64, 64, 3))
        return [name for name, block in params.items() if "shortcut_conv" in block]

    firsts = ["stage2_block1", "stage3_block1", "stage4_block1"]
    assert projected("projection", 18) == firsts
    assert projected("projection", 50) == ["stage1_block1", *firsts]
    assert len(projected("projection_all", 34)) == 16


def test_no_scale_begins_at_zero_and_kernels_have_he_variance():
    model = build_resnet("cifar", 20, "pad", num_classes=10)
    params = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path)
        if "scale" in name:
            np.testing.assert_array_equal(leaf, 1)
        if "kernel" in name and leaf.size > 2000:
            # The variance of n Gaussian draws is within 6 sqrt(2/n) of 2 / fan-in, relatively.
            fan_in = leaf.size // leaf.shape[-1]
            assert leaf.var() * fan_in / 2 == pytest.approx(1, abs=6 * (2 / leaf.size) ** 0.5), name


def test_running_averages_keep_nine_tenths_at_a_step():
    model = build_resnet("cifar", 8, "none", num_classes=10)
    image = jax.random.normal(jax.random.key(0), (4, 8, 8, 1)) + 3
    variables = model.init(jax.random.key(0), image)
    _, updated = model.apply(variables, image, train=True, mutable=["batch_stats"])
    stem = model.apply(
        variables,
        image,
        capture_intermediates=lambda m, _: m.name == "conv",
        mutable="intermediates",
    )[1]["intermediates"]["conv"]["__call__"][0]
    # 1e-5: float32 sums over 256 values in another order.
    np.testing.assert_allclose(
        updated["batch_stats"]["bn"]["mean"], 0.1 * stem.mean((0, 1, 2)), rtol=1e-5, atol=1e-6
    )


def test_bfloat16_is_of_the_computation_alone():
    model = build_resnet("cifar", 8, "pad", num_classes=10, dtype=jnp.bfloat16)
    image = jnp.ones((2, 8, 8, 1))
    logits, variables = model.init_with_output(jax.random.key(0), image)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert logits.dtype == jnp.float32
    _, captured = model.apply(variables, image, capture_intermediates=True)
    for name in ("conv", "bn", "stage3_block1"):
        assert captured["intermediates"][name]["__call__"][0].dtype == jnp.bfloat16
    wide = build_resnet("cifar", 8, "pad", num_classes=10).apply(variables, image)
    assert not np.array_equal(wide, logits)


@pytest.mark.parametrize(
    "family, depth, shortcut, widths, message",
    [
        ("cifar", 21, "pad", (), "got 21; the nearest: 20 and 26"),
        ("cifar", 2, "pad", (), "got 2; the nearest: 8"),
        ("cifar", -4, "pad", (), "got -4; the nearest: 8"),
        ("imagenet", 20, "pad", (), "18, 34, 50, 101, 152.*got 20"),
        ("cifar", 20, "foo", (), "projection_all.*got 'foo'"),
        ("cifar", 20, "pad", (16, 32), "Expected 3 positive"),
        ("cifar", 20, "pad", (16, 8, 8), "do not shrink"),
    ],
)
def test_a_net_that_does_not_exist_is_refused_in_words(family, depth, shortcut, widths, message):
    with pytest.raises(UserError, match=message):
        build_resnet(family, depth, shortcut, widths, num_classes=10)


def test_vgg_of_another_depth_is_refused_in_words():
    with pytest.raises(UserError, match="16, 19.*got 17"):
        vgg.build_vgg(17, num_classes=10)


@pytest.mark.parametrize(
    "net",
    [
        build_resnet("cifar", 8, "pad", num_classes=3),
        build_resnet("imagenet", 18, "pad", num_classes=3),
        vgg.build_vgg(16, num_classes=3),
    ],
)
def test_a_network_names_its_parts(net):
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert set(net.part_names) == {part_of(name) for name in shapes["params"]}
    assert set(net.part_names) <= set(get_args(Part))
