"""Our networks compute what PyTorch's do, and weights go both ways."""

import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_flax.errors import UserError
from resnet_flax.models import blocks, cpu_convolution, stacking
from resnet_flax.models.blocks import BasicBlock, BottleneckBlock
from resnet_flax.models.catalogue import build_resnet
from resnet_flax.models.resnet import ResNet
from resnet_flax.models.torch_weights import from_torch, to_torch
from resnet_flax.training import metrics
from tests import prepared

STYLES = ("torchvision", "transformers", "pytorch-cifar")
CLASSES = 11
WIDTHS = {"cifar": (6, 10, 14), "imagenet": (8, 12, 16, 24)}
# Our nets for the cases of `reference_torch.py`; one of them also with the CPU's convolutions.
# Shallow nets have every kind of layer and of name; `make slow` has the deeper ones.
CASES = {
    "basic18": ("imagenet", 18, "projection", {}),
    "basic34": ("imagenet", 34, "projection", {}),
    "bottleneck50": ("imagenet", 50, "projection", {"bottleneck_stride": "3x3"}),
    "bottleneck_3x3": ("imagenet", 50, "projection", {"bottleneck_stride": "3x3"}),
    "bottleneck_1x1": ("imagenet", 50, "projection", {"bottleneck_stride": "1x1"}),
    "plain8": ("cifar", 8, "none", {}),
    "plain20": ("cifar", 20, "none", {}),
    "residual14_both": ("cifar", 14, "pad", {}),
    "residual8": ("cifar", 8, "pad", {}),
    "basic18 conv.py": (
        "imagenet", 18, "projection", {"conv_general_dilated": cpu_convolution.conv_general_dilated}
    ),
}  # fmt: skip
DEEP = ("basic34", "bottleneck50", "plain20")


def net(family, depth, shortcut, fields):
    return build_resnet(family, depth, shortcut, WIDTHS[family], num_classes=CLASSES, **fields)


def random_variables(model):
    """Of the net's shapes; no two values are equal."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 32, 32, 3)))
    draw = np.random.default_rng(0).standard_normal
    return jax.tree.map(lambda leaf: draw(leaf.shape, np.float32), shapes)


def part(arrays, kind):
    """The arrays of `KIND/NAME`, by name."""
    return {
        name.removeprefix(f"{kind}/"): array
        for name, array in arrays.items()
        if name.startswith(f"{kind}/")
    }


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """The folder that `reference_torch.py` has filled."""
    folder = tmp_path_factory.mktemp("references")
    subprocess.run([prepared.torch_python(), "tests/reference_torch.py", folder], check=True)
    return folder


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow if name in DEEP else ()) for name in CASES],
)
def case(request, references):
    """What PyTorch computed, and what our net does from the same state; by PyTorch's names."""
    with np.load(references / f"{request.param.split()[0]}.npz") as file:
        theirs = dict(file)
    model = net(*CASES[request.param])
    if request.param.startswith("bottleneck_"):
        model = model.clone(blocks_per_stage=(2, 1, 2, 1))
    return theirs, computed(model, theirs)


def way_of(state):
    """The names of a state, and on which side its net pads."""
    if "classifier.1.weight" in state:
        return "transformers", None
    return ("pytorch-cifar", "both") if "linear.weight" in state else ("torchvision", "end")


def computed(model, theirs):
    """An evaluation and a training step, in one program, without any mapped axis."""
    state = part(theirs, "state")
    way = way_of(state)
    variables = from_torch(state, way[1])
    stats = variables["batch_stats"]

    def loss_fn(params, images, labels):
        logits, updates = model.apply(
            {"params": params, "batch_stats": stats}, images, train=True, mutable=["batch_stats"]
        )
        return metrics.cross_entropy(logits, labels).mean(), (logits, updates["batch_stats"])

    @jax.jit
    def both(params, *batch):
        evaluated = model.apply({"params": params, "batch_stats": stats}, batch[0])
        return evaluated, jax.value_and_grad(loss_fn, has_aux=True)(params, *batch)

    images, labels = theirs["images"].transpose(0, 2, 3, 1), theirs["labels"].astype(np.int32)
    evaluated, ((loss, (trained, stepped)), gradients) = both(variables["params"], images, labels)
    return {
        "eval_logits": evaluated,
        "train_logits": trained,
        "loss": loss,
        "gradient": to_torch({"params": gradients, "batch_stats": stats}, *way),
        "stepped": to_torch({"params": variables["params"], "batch_stats": stepped}, *way),
    }


# float32 sums in another order. The logits' deviation is 0.7 to 4.1; measured: 1.3e-5 at most.
def test_logits_are_pytorchs_in_evaluation(case):
    theirs, ours = case
    np.testing.assert_allclose(ours["eval_logits"], theirs["eval_logits"], rtol=0, atol=1e-4)


# Deviation 0.7 to 2.2; measured: 6e-6 at most.
def test_logits_and_loss_are_pytorchs_in_training(case):
    theirs, ours = case
    np.testing.assert_allclose(ours["train_logits"], theirs["train_logits"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=0, atol=1e-5)


# Each array for itself, by its norm (which spans four orders), so that none hides behind others.
# Measured: 1.7e-5 at most, 2e-6 in the shallow nets; rounding grows with depth.
def test_each_gradient_is_pytorchs(case):
    theirs, ours = case
    wrong = {}
    for name in (name for name in ours["gradient"] if "running" not in name):
        mine, array = ours["gradient"][name], theirs[f"gradient/{name}"]
        difference = np.linalg.norm(mine - array) / np.linalg.norm(array)
        if not difference < 2e-4:
            wrong[name] = float(difference)
    assert wrong == {}


# Moved by a tenth to the batch's own: the mean exactly, the variance but for n / (n-1).
def test_running_statistics_are_pytorchs_but_for_the_unbiased_variance(case):
    theirs, ours = case
    for name in (name for name in ours["stepped"] if "running" in name):
        mine, array = ours["stepped"][name], theirs[f"stepped/{name}"]
        if name.endswith("mean"):
            np.testing.assert_allclose(mine, array, rtol=0, atol=1e-5 * array.std(), err_msg=name)
        else:
            kept, n = 0.9 * theirs[f"state/{name}"], theirs[f"values/{name.rpartition('.')[0]}"]
            unbiased = kept + (mine - kept) * n / (n - 1)
            np.testing.assert_allclose(unbiased, array, rtol=1e-5, err_msg=name)
            assert not np.allclose(mine, array, rtol=1e-5), name


def test_pytorchs_own_arrays_come_back_whole(case):
    state = part(case[0], "state")
    names, padding = way_of(state)
    back = to_torch(from_torch(state, padding), names, padding)
    counters = {name for name in state if name.endswith("num_batches_tracked")}
    assert back.keys() == state.keys() - counters and counters
    for name, array in back.items():
        np.testing.assert_array_equal(array, state[name], strict=True)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    "family, depth, shortcut, padding",
    [
        ("imagenet", 18, "projection_all", None),
        ("imagenet", 50, "pad", "both"),
        ("cifar", 14, "none", "end"),
        ("cifar", 14, "pad", "both"),
    ],
)
def test_ours_come_back_whole_stacked_or_not(family, depth, shortcut, padding, style):
    variables = random_variables(net(family, depth, shortcut, {}))
    state = to_torch(variables, style, padding)
    jax.tree.map(np.testing.assert_array_equal, from_torch(state, padding), variables)
    stacked = to_torch(stacking.stack(variables), style, padding)
    assert stacked.keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(stacked[name], array, strict=True)


NAMES = {
    "torchvision": """conv1.weight bn1.running_var layer4.1.conv2.weight layer4.1.bn2.running_mean
        layer4.0.downsample.0.weight layer4.0.downsample.1.bias fc.weight fc.bias""",
    "transformers": """resnet.embedder.embedder.convolution.weight
        resnet.embedder.embedder.normalization.running_var
        resnet.encoder.stages.3.layers.1.layer.1.convolution.weight
        resnet.encoder.stages.3.layers.1.layer.1.normalization.running_mean
        resnet.encoder.stages.3.layers.0.shortcut.convolution.weight
        resnet.encoder.stages.3.layers.0.shortcut.normalization.bias
        classifier.1.weight classifier.1.bias""",
    "pytorch-cifar": """conv1.weight bn1.running_var layer4.1.conv2.weight layer4.1.bn2.running_mean
        layer4.0.shortcut.0.weight layer4.0.shortcut.1.bias linear.weight linear.bias""",
}


@pytest.mark.parametrize("style", STYLES)
def test_names_and_shapes_are_those_of_the_three_libraries(style):
    state = to_torch(random_variables(net("imagenet", 18, "projection", {})), style)
    assert [state[name].shape for name in NAMES[style].split()] == [
        (8, 3, 7, 7), (8,), (24, 24, 3, 3), (24,), (24, 16, 1, 1), (24,), (11, 24), (11,)
    ]  # fmt: skip
    assert len(state) == 20 * 5 + 2  # 20 convolutions, each with a norm, and the last layer.


@pytest.fixture(scope="module")
def state():
    return to_torch(random_variables(net("imagenet", 18, "projection", {})))


def test_what_is_converted_shares_no_memory(state):
    for array in jax.tree.leaves(from_torch(state)):
        assert array.base is None and array.flags.c_contiguous and array.dtype == np.float32


@pytest.mark.parametrize(
    "prefix, style", [*(("module.", style) for style in STYLES), ("module.net.", "torchvision")]
)
def test_a_prefix_of_all_names_changes_nothing(state, prefix, style):
    theirs = to_torch(from_torch(state), style)
    prefixed = from_torch({f"{prefix}{name}": array for name, array in theirs.items()})
    jax.tree.map(np.testing.assert_array_equal, prefixed, from_torch(state))


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_other_floats_are_taken_at_their_value(state, dtype):
    given = {name: array.astype(dtype) for name, array in state.items()}
    expected = {name: array.astype(np.float32) for name, array in given.items()}
    jax.tree.map(np.testing.assert_array_equal, from_torch(given), from_torch(expected))


def without(name):
    return lambda state: {other: array for other, array in state.items() if other != name}


def having(name, *shape, dtype=float):
    return lambda state: state | {name: np.zeros(shape, dtype)}


class OnAnotherDevice:
    """As a tensor of PyTorch in a GPU's memory."""

    def __array__(self, *_, **__):
        raise TypeError("can't convert\nSecond line.")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda state: {}, r"Expected conv1.weight \[O, I, H, W\], got none among 0 arrays"),
        (lambda state: None, "Expected a state dict, got NoneType"),
        (
            lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"state": {}}},
            "got a dict of epoch, state_dict, optimizer; give what .*: state_dict, optimizer",
        ),
        (lambda state: state | {"epoch": 3}, "Expected epoch to be floats, got int64; give"),
        (having("fc.bias", 11, dtype=np.int8), "Expected fc.bias to be floats, got int8;"),
        (having("fc.bias", 11, dtype=complex), "Expected fc.bias to be floats, got complex128;"),
        (having("fc.bias", 11, dtype=object), "Expected fc.bias to be floats, got object;"),
        (
            lambda state: state | {"fc.bias": OnAnotherDevice()},
            r"OnAnotherDevice \(TypeError: can't convert\); for a tensor of floats give tensor\.",
        ),
        (having("layer1.0.se.weight", 3), "unknown: layer1.0.se.weight;"),
        (having("resnet.pooler", 8), "Expected resnet.embedder.embedder.convolution.weight"),
        (
            lambda state: state | to_torch(from_torch(state), "transformers"),
            "by the names of transformers.* unknown: bn1.running_mean, .* and 99 more;",
        ),
        (without("layer2.1.bn2.running_var"), "missing: layer2.1.bn2.running_var;"),
        (without("layer3.0.downsample.0.weight"), "missing: layer3.0.downsample.0.weight;"),
        (without("fc.weight"), r"Expected fc.weight \[classes, I\], got none"),
        (without("layer1.0.conv2.weight"), "Expected layer1.0.conv2.weight"),
        (having("fc.bias", 12), r"of another shape: fc.bias \[12\] for \[11\];"),
        (
            lambda state: state | {"fc.weight": state["fc.weight"].T},
            r"fc.weight \[24, 11\] for \[24, 24\]",
        ),
        (having("conv1.weight", 8, 3, 5, 5), r"\[\(7, 7\), \(3, 3\)\], got \(5, 5\)"),
        (having("conv1.weight", 8, 3, 7), r"\[O, I, H, W\], got \[8, 3, 7\]"),
        (having("fc.weight"), r"Expected fc.weight \[classes, I\], got \[\] among"),
    ],
)
def test_a_dict_of_no_whole_net_is_refused_in_one_line(state, change, message):
    with pytest.raises(UserError, match=message) as caught:
        from_torch(change(state))
    assert "\n" not in str(caught.value)


def test_variables_without_statistics_and_unknown_styles_are_refused_in_one_line(state):
    variables = from_torch(state)
    with pytest.raises(UserError, match="missing: bn1.running_mean, .* and 37 more;"):
        to_torch({"params": variables["params"]})
    with pytest.raises(UserError, match=r"'transformers', 'pytorch-cifar'\), got 'timm'"):
        to_torch(variables, "timm")
    with pytest.raises(UserError, match="in a dict, got NoneType; a run has .variables"):
        to_torch(None)


@pytest.mark.parametrize("depth, shortcut", [(8, "pad"), (14, "none")])
def test_without_projections_the_caller_has_to_say_where_zero_channels_are(depth, shortcut):
    variables = random_variables(net("cifar", depth, shortcut, {}))
    state = to_torch(variables, padding="end")
    for convert, argument in ((from_torch, state), (to_torch, variables)):
        with pytest.raises(UserError, match="without projections, got none: no array shows"):
            convert(argument)
        with pytest.raises(UserError, match=r"padding in \('end', 'both'\), got 'left'"):
            convert(argument, padding="left")


@pytest.mark.parametrize("block", [BasicBlock, BottleneckBlock])
def test_zero_channels_on_both_sides_give_the_logits_of_a_net_that_has_them(block, monkeypatch):
    def padded(x, features, stride):
        sides = [(0, 0)] * 3 + [((features - x.shape[-1]) // 2,) * 2]
        return jnp.pad(x[:, ::stride, ::stride], sides)

    model = ResNet("cifar", block, (2, 2, 2), (2, 4, 6), CLASSES, "pad")
    images = np.random.default_rng(1).standard_normal((3, 9, 8, 3), np.float32)
    variables = random_variables(model)
    variables["batch_stats"] = jax.tree.map(np.abs, variables["batch_stats"])
    state = to_torch(variables, padding="end")
    ours = [model.apply(from_torch(state, padding), images) for padding in ("both", "end")]
    monkeypatch.setattr(blocks, "zero_pad_shortcut", padded)
    theirs = model.apply(variables, images)
    scale = theirs.std()
    np.testing.assert_allclose(ours[0] / scale, theirs / scale, rtol=0, atol=1e-5)
    assert np.abs(ours[1] - theirs).max() > 1e-3 * scale


@pytest.mark.parametrize("widths", [(4, 7, 9), (8, 6, 4)])
def test_zero_channels_on_both_sides_have_to_be_as_many(widths):
    variables = random_variables(build_resnet("cifar", 8, "none", widths, num_classes=2))
    state = to_torch(variables, padding="end")
    jax.tree.map(np.testing.assert_array_equal, from_torch(state, "end"), variables)
    with pytest.raises(
        UserError, match='grow by even numbers for padding="both", got .*"end" takes'
    ):
        from_torch(state, "both")


def test_a_net_of_one_width_pads_nothing_and_needs_no_padding():
    variables = random_variables(build_resnet("cifar", 8, "pad", (4, 4, 4), num_classes=2))
    jax.tree.map(np.testing.assert_array_equal, from_torch(to_torch(variables)), variables)
