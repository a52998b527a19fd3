"""Pictures of networks: what they show, and that it can be read."""

import functools

import pytest

from configs import cifar10, imagenet
from experiments.reporting import network_figure, networks
from experiments.reporting.networks import Network
from resnet_flax.config import RunConfig, parse
from resnet_flax.models import cost
from resnet_flax.models.blocks import BLOCKS
from resnet_flax.training import architecture
from tests.models.test_blocks import GatedBlock


@functools.cache
def network(name, **model):
    source, shape = (cifar10, (32, 32, 3)) if name[-2:] in ("14", "20") else (imagenet, (64, 64, 3))
    config = source.get_config(name)
    config.model.update(model)
    net = architecture.build_model(parse(config.to_dict(), RunConfig).model, num_classes=10)
    return Network(name, "", cost.layer_table(net, shape))


@pytest.mark.parametrize(
    "name, model, depth, identities, others",
    [
        ("vgg19", {}, 19, 0, 0),
        ("resnet34", {}, 34, 13, 3),
        ("resnet50", {}, 50, 12, 4),
        ("plain14", {}, 14, 0, 0),
        ("resnet14", {"shortcut": "projection_all"}, 14, 0, 6),
        ("resnet14", {"block": "preactivation", "norm": "none"}, 14, 4, 2),
    ],
)
def test_a_picture_has_every_layer_and_shortcut(name, model, depth, identities, others):
    rows, shortcuts = networks.column(network(name, **model).parts)
    assert sum("pool" not in row.kind for row in rows) == depth
    assert [shortcut.is_identity for shortcut in shortcuts].count(True) == identities
    assert len(shortcuts) == identities + others
    for first, last, _ in shortcuts:
        assert all(row.kind == "convolution" for row in rows[first : last + 1])


def test_a_gate_inside_a_block_is_no_layer_of_the_column(monkeypatch):
    monkeypatch.setitem(BLOCKS, "gated", {"basic": GatedBlock})
    gated, usual = (
        networks.column(network("resnet14", block=b).parts) for b in ("gated", "postactivation")
    )
    assert gated == usual


def test_resnet_34_is_that_of_figure_3():
    rows, shortcuts = networks.column(network("resnet34").parts)
    layers = ["7×7 conv, 64, /2", "max pool, /2", *6 * ["3×3 conv, 64"]]
    for width, count in ((128, 8), (256, 12), (512, 6)):
        layers += [f"3×3 conv, {width}, /2", *(count - 1) * [f"3×3 conv, {width}"]]
    assert [row.text for row in rows] == [*layers, "avg pool", "fc, 10"]
    assert [(first, last) for first, last, _ in shortcuts] == [(i, i + 1) for i in range(2, 34, 2)]
    assert [first for first, _, is_identity in shortcuts if not is_identity] == [8, 16, 28]


@pytest.mark.parametrize(
    "model, formulas",
    [
        ({"shortcut": "none"}, ["y = relu(F(x))"]),
        ({"shortcut": "projection"}, ["y = relu(F(x) + x)", "y = relu(F(x) + W x)"]),
        ({"block": "preactivation"}, ["y = F(x) + x", "y = F(x) + x"]),
        (
            {"block": "preactivation", "shortcut": "projection"},
            ["y = F(x) + x", "y = F(x) + W relu(BN(x))"],
        ),
    ],
    ids=str,
)
def test_a_block_of_each_kind_is_shown_with_its_formula(model, formulas):
    net = network("resnet14", **model)
    pictures = networks.blocks([net, net])
    assert [picture.formula for picture in pictures] == formulas


def test_many_equal_blocks_are_counted_not_drawn():
    deep = network("resnet34")
    first = next(part for part in deep.parts if part.name == "stage1_block2")
    inside = [part for part in deep.parts if part.name.startswith("stage1_block2/")]
    copies = [
        part._replace(name=part.name.replace("block2", f"block2{i}"))
        for i in range(20)
        for part in (first, *inside)
    ]
    rows, shortcuts = networks.column(copies)
    assert [row.text for row in rows][2] == "18 more of these"
    assert len(rows) == 5 and [(one.first, one.last) for one in shortcuts] == [(0, 1), (3, 4)]


def test_boxes_and_texts_are_inside_the_figure_and_apart():
    option_c = network("resnet14", shortcut="projection_all")
    figure = network_figure.draw([network("vgg19"), network("resnet50"), option_c])
    figure.draw_without_rendering()
    (axes,) = figure.axes
    texts = [text.get_window_extent() for text in axes.texts]
    boxes = [
        patch.get_window_extent()
        for patch in axes.patches
        if type(patch).__name__ == "FancyBboxPatch"
    ]
    assert len(boxes) > 19 + 50 + 14
    for one in (*texts, *boxes):
        assert figure.bbox.x0 <= one.x0 and one.x1 <= figure.bbox.x1, one
        assert figure.bbox.y0 <= one.y0 and one.y1 <= figure.bbox.y1, one
    for i, one in enumerate(boxes):
        assert not any(one.overlaps(other) for other in boxes[:i])
        held = [text for text in texts if one.overlaps(text)]
        assert len(held) == 1 and held[0].width < one.width and held[0].height < one.height * 1.2
    for i, one in enumerate(texts):
        assert not any(one.overlaps(other) for other in texts[:i])
