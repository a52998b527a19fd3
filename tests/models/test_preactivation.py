"""The pre-activation block computes what He et al. (2016) and PyTorch do."""

import functools
import re
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from resnet_flax.errors import UserError
from resnet_flax.models import stacking
from resnet_flax.models.blocks import BLOCKS
from resnet_flax.models.catalogue import build_resnet
from resnet_flax.models.resnet import ResNet
from resnet_flax.models.torch_weights import from_torch, to_torch
from resnet_flax.training import metrics
from tests import prepared
from tests.given import is_stacked

CLASSES = 11
WIDTHS = {"cifar": (6, 10, 14), "imagenet": (8, 12, 16, 24)}
# Our nets for the cases of `reference_preactivation.py`.
CASES = {
    "none14": ("cifar", 14, "none", {}),
    "pad20": ("cifar", 20, "pad", {}),
    "projection18": ("imagenet", 18, "projection", {}),
    "all18": ("imagenet", 18, "projection_all", {}),
    "projection_3x3": ("imagenet", 50, "projection", {"bottleneck_stride": "3x3"}),
    "pad_1x1": ("imagenet", 50, "pad", {"bottleneck_stride": "1x1"}),
}
# Our arrays and PyTorch's. Modules have the same names.
ARRAYS = {"kernel": "weight", "scale": "weight", "bias": "bias"}
ARRAYS |= {"mean": "running_mean", "var": "running_var"}
TO_TORCH = {2: (1, 0), 4: (3, 2, 0, 1)}


def net(family, depth, shortcut, fields, block="preactivation"):
    return build_resnet(
        family, depth, shortcut, WIDTHS[family], block, num_classes=CLASSES, **fields
    )


def random_variables(model, shape=(1, 32, 32, 3)):
    """Of the net's shapes; no two values are equal, and variances are positive."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros(shape))
    uniform = np.random.default_rng(0).uniform
    drawn = jax.tree.map(lambda leaf: np.float32(uniform(-0.3, 0.5, leaf.shape)), shapes)
    return drawn | {"batch_stats": jax.tree.map(np.abs, drawn.get("batch_stats", {}))}


def theirs_of(tree):
    """Our arrays, by PyTorch's names and in its axes."""
    arrays = {}
    for path, leaf in traverse_util.flatten_dict(tree).items():
        axes = TO_TORCH.get(np.ndim(leaf))
        arrays[".".join([*path[:-1], ARRAYS[path[-1]]])] = np.transpose(leaf, axes)
    return arrays


def ours_of(shapes, state):
    """A tree of these shapes, from PyTorch's arrays. All of them are used."""
    flat, used = {}, set()
    for path, leaf in traverse_util.flatten_dict(shapes).items():
        name = ".".join([*path[1:-1], ARRAYS[path[-1]]])
        axes = np.argsort(TO_TORCH.get(leaf.ndim, range(leaf.ndim)))
        flat[path] = np.ascontiguousarray(state[name].transpose(axes))
        assert flat[path].shape == leaf.shape, name
        used.add(name)
    assert {name for name in state if "num_batches" not in name} == used
    return traverse_util.unflatten_dict(flat)


def step(model, variables, images, labels):
    """An evaluation, and the loss, logits, new statistics and gradients of a training step."""
    stats = {"batch_stats": variables["batch_stats"]}

    def loss_fn(params):
        logits, updates = model.apply(
            {"params": params, **stats}, images, train=True, mutable=["batch_stats"]
        )
        return metrics.cross_entropy(logits, labels).mean(), (logits, updates["batch_stats"])

    @jax.jit
    def both(params):
        evaluated = model.apply({"params": params, **stats}, images)
        return evaluated, jax.value_and_grad(loss_fn, has_aux=True)(params)

    return jax.device_get(both(variables["params"]))


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    folder = tmp_path_factory.mktemp("references")
    python = prepared.torch_python()
    subprocess.run([python, "-m", "tests.reference_preactivation", folder], check=True)
    return folder


@pytest.fixture(scope="module", params=CASES)
def case(request, references):
    """What PyTorch computed, and what our net does from the same state."""
    with np.load(references / f"{request.param}.npz") as file:
        theirs = dict(file)
    model = net(*CASES[request.param])
    if request.param.endswith(("1x1", "3x3")):
        model = model.clone(blocks_per_stage=(2, 1, 2, 1))
    state = {k.removeprefix("state/"): v for k, v in theirs.items() if k.startswith("state/")}
    images = theirs["images"].transpose(0, 2, 3, 1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = ours_of(shapes, state)
    return theirs, step(model, variables, images, theirs["labels"].astype(np.int32))


# Float32 sums in another order. The logits' deviation is 1.2 to 5.3; measured: 1e-5 at most.
def test_logits_and_loss_are_pytorchs(case):
    theirs, (evaluated, ((loss, (trained, _)), _)) = case
    np.testing.assert_allclose(evaluated, theirs["eval_logits"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(trained, theirs["train_logits"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(loss, theirs["loss"], rtol=0, atol=1e-5)


# Each array for itself, by its norm. Rounding grows with depth; measured: 9e-6 at most.
def test_each_gradient_is_pytorchs(case):
    theirs, (_, (_, gradients)) = case
    wrong = {}
    for name, mine in theirs_of(gradients).items():
        array = theirs[f"gradient/{name}"]
        difference = np.linalg.norm(mine - array) / np.linalg.norm(array)
        if not difference < 2e-4:
            wrong[name] = float(difference)
    assert wrong == {}


def test_running_means_are_pytorchs(case):
    theirs, (_, ((_, (_, stepped)), _)) = case
    for name, mine in theirs_of(stepped).items():
        if name.endswith("running_mean"):
            array = theirs[f"stepped/{name}"]
            # Sums over a batch in another order.
            np.testing.assert_allclose(mine, array, rtol=0, atol=1e-5 * array.std(), err_msg=name)


def renamed(variables, model):
    """The variables of a plain net with the paper's block, by the names of its twin's modules.

    Each BN moves to the block whose convolution reads its output, the last one to the end.
    """
    count = 3 if model.block.expansion > 1 else 2
    blocks = [
        f"stage{s}_block{b + 1}" for s, n in enumerate(model.blocks_per_stage, 1) for b in range(n)
    ]
    following = dict(zip(["", *blocks], [*blocks, ""], strict=True))
    flat = {}
    for path, leaf in traverse_util.flatten_dict(variables).items():
        *block, module, array = path[1:]
        if found := re.fullmatch(r"bn(\d?)", module):
            place = int(found[1] or count)
            target = following[block[0] if block else ""]
            inside = (block[0], f"bn{place + 1}") if place < count else None
            moved = inside or ((target, "bn1") if target else ("bn_out",))
            flat[(path[0], *moved, array)] = leaf
        else:
            flat[path] = leaf
    return traverse_util.unflatten_dict(flat)


@pytest.mark.parametrize("form", ["basic", "bottleneck"])
def test_a_plain_net_is_the_same_function_in_either_order(form):
    # Without h and without a max pool, both are conv-BN-relu-conv-BN-relu-... from end to end.
    images = np.random.default_rng(1).standard_normal((4, 8, 8, 3), np.float32)
    labels = np.arange(4)
    nets = [
        ResNet("cifar", BLOCKS[name][form], (1, 2, 1), (4, 6, 8), 5, "none")
        for name in ("postactivation", "preactivation")
    ]
    variables = random_variables(nets[0], images.shape)
    twins = renamed(variables, nets[0])
    shapes = jax.eval_shape(nets[1].init, jax.random.key(0), images)
    assert jax.tree.map(np.shape, twins) == jax.tree.map(np.shape, shapes)
    (post, ((loss, _), gradients)), (pre, ((twin_loss, _), twin_gradients)) = (
        step(model, of, images, labels) for model, of in zip(nets, (variables, twins), strict=True)
    )
    # The same operations in the same order; XLA may fuse them otherwise, so float32 rounding.
    np.testing.assert_allclose(pre, post, rtol=1e-5, atol=1e-5 * np.abs(post).max())
    assert twin_loss == pytest.approx(loss, rel=1e-6)
    expected = renamed({"params": gradients}, nets[0])["params"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(b).max() + 1e-8),
        twin_gradients,
        expected,
    )


def test_the_sum_passes_from_block_to_block_as_it_is():
    # With F = 0, y = x: the identity path has no ReLU, so negative values stay.
    model = net("cifar", 14, "pad", {})
    variables = random_variables(model)
    for name, block in variables["params"].items():
        if name.startswith("stage"):
            block["conv2"]["kernel"][...] = 0
    images = np.random.default_rng(1).standard_normal((2, 16, 16, 3), np.float32)
    _, seen = model.apply(variables, images, capture_intermediates=True)
    values = seen["intermediates"]
    stem = values["conv"]["__call__"][0]
    assert (stem < 0).any()
    np.testing.assert_array_equal(values["stage1_block2"]["__call__"][0], stem)
    last = values["stage3_block2"]["__call__"][0]
    np.testing.assert_array_equal(last[..., :6], stem[:, ::4, ::4])
    np.testing.assert_array_equal(last[..., 6:], 0)


@pytest.mark.parametrize("shortcut, norm", [("pad", "batch"), ("projection_all", "none")])
def test_scanned_and_rematerialised_networks_are_the_network(shortcut, norm):
    model = net("cifar", 20, shortcut, {"norm": norm})
    images = np.random.default_rng(1).standard_normal((4, 8, 8, 3), np.float32)
    variables = random_variables(model, images.shape)
    expected = step_loss(model, variables, images)
    stacked = stacking.stack(variables)
    assert is_stacked(stacked)
    found = step_loss(model.clone(scan=True, remat=True), stacked, images)
    # 2e-5 of the largest value: float32 sums in another order.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(b).max()),
        stacking.unstack(found),
        expected,
    )


def step_loss(model, variables, images):
    def loss_fn(params):
        state = {**variables, "params": params}
        logits, _ = model.apply(state, images, train=True, mutable=["batch_stats"])
        return metrics.cross_entropy(logits, jnp.arange(len(images))).mean()

    return jax.device_get(jax.jit(jax.value_and_grad(loss_fn))(variables["params"]))


def test_global_statistics_of_two_devices_are_those_of_the_whole_batch():
    model = net("cifar", 8, "projection", {})
    images = np.random.default_rng(1).standard_normal((4, 8, 8, 3), np.float32)
    variables = random_variables(model, images.shape)

    def logits(model, images):
        return model.apply(variables, images, train=True, mutable=["batch_stats"])[0]

    halves = images.reshape(2, 2, *images.shape[1:])
    over_both = jax.vmap(functools.partial(logits, model.clone(norm_axis="data")), axis_name="data")
    alone = jax.vmap(functools.partial(logits, model))
    whole = jax.jit(logits, static_argnums=0)(model, images)
    # Means of means: float32 sums in another order.
    np.testing.assert_allclose(
        jax.jit(over_both)(halves).reshape(whole.shape), whole, rtol=0, atol=1e-4
    )
    assert np.abs(jax.jit(alone)(halves).reshape(whole.shape) - whole).max() > 1e-2


def test_bfloat16_is_of_the_computation_alone():
    model = net("cifar", 8, "projection", {"dtype": jnp.bfloat16})
    image = np.ones((2, 8, 8, 3), np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    apply = functools.partial(model.apply, capture_intermediates=True)
    logits, captured = jax.eval_shape(apply, variables, image)
    assert logits.dtype == jnp.float32
    for name in ("conv", "stage2_block1", "stage3_block1", "bn_out"):
        assert captured["intermediates"][name]["__call__"][0].dtype == jnp.bfloat16


@pytest.mark.parametrize("names", ["torchvision", "transformers", "pytorch-cifar"])
def test_pytorchs_libraries_have_no_names_for_its_arrays(names):
    variables = random_variables(net("cifar", 8, "pad", {}))
    message = f"model.block='postactivation', as {names} .*params.bn_out.*export_run"
    with pytest.raises(UserError, match=message) as error:
        to_torch(variables, names, padding="end")
    assert "\n" not in str(error.value)


def test_a_pre_activation_net_of_pytorch_is_refused():
    post = to_torch(random_variables(net("imagenet", 18, "projection", {}, "postactivation")))
    # As kuangliu/pytorch-cifar's PreActResNet18: no BN after the stem, none after a projection.
    state = {k: v for k, v in post.items() if not k.startswith("bn1.") and "downsample.1" not in k}
    with pytest.raises(UserError, match="of a post-activation ResNet .*; missing: bn1") as error:
        from_torch(state)
    assert "\n" not in str(error.value)
