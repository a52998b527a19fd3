import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from resnet_flax.analysis import diagnostics
from resnet_flax.analysis.diagnostics import layer_statistics
from resnet_flax.errors import UserError
from resnet_flax.models import blocks, stacking
from resnet_flax.models.blocks import BasicBlock
from resnet_flax.models.catalogue import build_resnet
from resnet_flax.models.resnet import GlobalAveragePool
from resnet_flax.models.vgg import build_vgg
from resnet_flax.training import metrics, part_by_part
from resnet_flax.training.steps import Batch
from tests.models.test_blocks import GatedBlock

RANDOM = np.random.RandomState(0)
IMAGES = RANDOM.standard_normal((6, 8, 8, 1)).astype(np.float32)
LABELS = RANDOM.randint(0, 3, 6)
# Float32 sums in another order; a wrong axis, factor or sign is off by far more.
CLOSE = functools.partial(pytest.approx, rel=2e-5)


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def random_variables(net):
    """Not the network's own initial ones, which take long to compile; deviations above 0."""
    shapes = jax.eval_shape(functools.partial(net.init, train=False), jax.random.key(0), IMAGES)
    random = np.random.RandomState(0)
    return jax.tree.map(lambda s: np.float32(random.uniform(-0.3, 0.5, s.shape)), shapes)


def batch(images, labels):
    return Batch(jnp.asarray(images), jnp.asarray(labels, jnp.int32))


def test_a_linear_nets_gradients_are_those_of_the_closed_form():
    x, w, labels = RANDOM.randn(5, 4), RANDOM.randn(4, 3), np.array([0, 1, 2, 2, 0])
    variables = {"params": {"fc": {"kernel": np.float32(w)}}}
    parts = [nn.Dense(3, use_bias=False, name="fc")]
    found = layer_statistics(parts, variables, [batch(np.float32(x), labels)], step=7)
    # d/dlogits of the mean cross-entropy: (p - y) / B.
    p = softmax(x @ w)
    dlogits = (p - np.eye(3)[labels]) / 5
    (layer,) = found.layers
    assert layer.name == "fc"
    assert layer.weight_gradient_norm == CLOSE(np.linalg.norm(x.T @ dlogits))
    assert layer.weight_gradient_rms == CLOSE(np.sqrt(np.mean(np.square(x.T @ dlogits))))
    assert layer.weight_norm == CLOSE(np.linalg.norm(w))
    assert layer.input_gradient_norm == CLOSE(np.linalg.norm(dlogits @ w.T))
    assert layer.input_gradient_rms == CLOSE(np.sqrt(np.mean(np.square(dlogits @ w.T))))
    assert found.loss == CLOSE(-np.log(p[np.arange(5), labels]).mean())
    assert (found.step, found.batches, found.batch_size) == (7, 1, 5)
    assert (layer.response_std, layer.identity_share) == (None, None)


def test_two_layers_with_a_relu_are_as_by_hand():
    # One image, x = (1, 2); hidden (1, -1) -> relu (1, 0); logits (1, 3).
    first = np.float32([[1, 1], [0, -1]])
    second = np.float32([[1, 3], [5, 7]])
    variables = {"params": {"a": {"kernel": first}, "b": {"kernel": second}}}
    parts = [
        nn.Dense(2, use_bias=False, name="a"),
        blocks.ReLU(name="relu"),
        nn.Dense(2, use_bias=False, name="b"),
    ]
    found = layer_statistics(parts, variables, [batch(np.float32([[1, 2]]), [1])])
    # dlogits = (q, -q) with q = p(first class) = 1 / (1 + e^2); the second hidden unit is off.
    q = 1 / (1 + np.exp(2))
    a, b = found.layers
    assert b.weight_gradient_norm == CLOSE(q * np.sqrt(2))
    assert b.input_gradient_norm == CLOSE(np.hypot(q * (1 - 3), q * (5 - 7)))
    assert a.weight_gradient_norm == CLOSE(2 * q * np.sqrt(1 + 4))
    assert a.input_gradient_norm == CLOSE(2 * q * 1)


def block(shortcut, kind=BasicBlock):
    conv = functools.partial(blocks.conv, use_bias=False)
    return kind(1, 1, shortcut, conv, blocks.Identity, name="block")


def one_pixel(weight):
    """A 3x3 kernel that multiplies the one pixel that there is."""
    kernel = np.zeros((3, 3, 1, 1), np.float32)
    kernel[1, 1] = weight
    return {"kernel": kernel}


@pytest.mark.parametrize("shortcut, share", [("pad", 1 / (1 + 0.5 * 3)), ("none", 0)])
def test_the_identity_share_is_that_of_the_one_in_one_plus_f(shortcut, share):
    # y = relu(x + 3 relu(0.5 x)) of one positive pixel: dy/dx = 1 + 1.5.
    params = {
        "block": {"conv1": one_pixel(0.5), "conv2": one_pixel(3)},
        "fc": {"kernel": np.float32([[1, -1]])},
    }
    parts = [
        block(shortcut),
        GlobalAveragePool(name="global_average_pool"),
        nn.Dense(2, use_bias=False, name="fc"),
    ]
    found = layer_statistics(parts, {"params": params}, [batch(np.ones((1, 1, 1, 1), "f"), [0])])
    conv1, conv2, fc = found.layers
    assert [layer.name for layer in found.layers] == ["block/conv1", "block/conv2", "fc"]
    assert conv1.identity_share == CLOSE(share)
    assert conv2.identity_share is None and fc.identity_share is None
    dy = fc.input_gradient_norm
    # What conv1 reads, the shortcut reads, too; conv2 alone reads relu(0.5 x).
    assert conv1.input_gradient_norm == CLOSE(dy * (1.5 + (shortcut == "pad")))
    assert conv2.input_gradient_norm == CLOSE(dy * 3)
    assert (conv1.response_std, conv2.response_std) == (0, 0)  # One pixel.


@pytest.mark.parametrize(
    "shortcut, norm, kind",
    [
        ("pad", "batch", "postactivation"),
        ("none", "none", "postactivation"),
        ("projection", "batch", "preactivation"),
        ("pad", "batch", "gated"),  # With modules inside a block's modules.
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("projection", "batch", "postactivation"),
                ("pad", "batch", "preactivation"),
                ("none", "none", "preactivation"),
            )
        ),
    ],
)
def test_a_whole_networks_gradients_are_those_of_autodiff(shortcut, norm, kind, monkeypatch):
    monkeypatch.setitem(blocks.BLOCKS, "gated", {"basic": GatedBlock})
    net = build_resnet("cifar", 8, shortcut, (4, 4, 8), kind, num_classes=3, norm=norm)
    variables = random_variables(net)

    @jax.grad
    def gradient(params):
        logits, _ = net.apply(
            {**variables, "params": params}, IMAGES, train=True, mutable=["batch_stats"]
        )
        return metrics.cross_entropy(logits, jnp.asarray(LABELS)).mean()

    expected = {
        "/".join(key.key for key in path[:-1]): np.linalg.norm(leaf)
        for path, leaf in jax.tree.leaves_with_path(jax.jit(gradient)(variables["params"]))
        if path[-1].key == "kernel"
    }
    found = layer_statistics(net.parts(train=True), variables, [batch(IMAGES, LABELS)])
    assert found.layers[0].name == "conv" and found.layers[-1].name == "fc"
    norms = {layer.name: layer.weight_gradient_norm for layer in found.layers}
    # 1e-4: BN divides by deviations of few values, and rounding grows through the layers.
    assert norms == pytest.approx(expected, rel=1e-4)
    kernels = {name: flatten_dict(variables["params"], sep="/")[f"{name}/kernel"] for name in norms}
    for layer in found.layers:
        assert layer.weight_norm == CLOSE(np.linalg.norm(kernels[layer.name]))


def test_with_bn_a_larger_kernel_has_a_smaller_gradient_and_the_product_stays():
    net = build_resnet("cifar", 8, "none", (4, 4, 8), num_classes=3)
    small, large = random_variables(net), random_variables(net)
    large["params"]["stage2_block1"]["conv1"]["kernel"][...] *= 8
    one, other = (
        {
            layer.name: layer
            for layer in layer_statistics(net.parts(True), v, [batch(IMAGES, LABELS)]).layers
        }["stage2_block1/conv1"]
        for v in (small, large)
    )
    assert other.weight_norm == CLOSE(8 * one.weight_norm)
    # BN's epsilon, 1e-5, is not scaled: 1e-3 of a variance near 0.01.
    assert other.weight_gradient_norm == pytest.approx(one.weight_gradient_norm / 8, rel=2e-3)


def test_a_response_is_what_bn_gives_before_relu_and_addition():
    net = build_resnet("cifar", 8, "pad", (4, 4, 8), num_classes=3)
    variables = random_variables(net)
    for path, leaf in jax.tree.leaves_with_path(variables["params"]):
        if path[-1].key in ("scale", "bias"):
            leaf[...] = path[-1].key == "scale"
    variables["params"]["stage2_block1"]["bn2"]["scale"][...] = 3
    found = layer_statistics(net.parts(train=True), variables, [batch(IMAGES, LABELS)])
    responses = {layer.name: layer.response_std for layer in found.layers}
    # BN's epsilon keeps a deviation a little below 1; 1e-3 of a variance near 0.01.
    assert responses.pop("stage2_block1/conv2") == pytest.approx(3, rel=2e-3)
    assert responses.pop("fc") is None
    assert list(responses.values()) == pytest.approx([1] * len(responses), rel=2e-3)


def whole_net(net, variables, where, change):
    """Gradients of the loss by a zero added at places of the whole net, and outputs of its modules.

    `where(module)`: whether a module is such a place. `change(call, args, zero)`: its output.
    """
    places = {}

    def loss(zeros):
        def look(call, args, kwargs, context):
            path = "/".join(context.module.path)
            if context.method_name != "__call__" or not where(context.module):
                return call(*args, **kwargs)
            places[path] = jax.eval_shape(lambda: args[0]) if args else None
            return change(call, args, zeros.get(path, 0))

        with nn.intercept_methods(look):
            logits, seen = net.apply(
                variables,
                IMAGES,
                train=True,
                mutable=["batch_stats", "intermediates"],
                capture_intermediates=True,
            )
        return metrics.cross_entropy(logits, jnp.asarray(LABELS)).mean(), seen["intermediates"]

    jax.eval_shape(loss, {})
    zeros = {path: jnp.zeros(place.shape, place.dtype) for path, place in places.items()}
    return jax.jit(jax.grad(loss, has_aux=True))(zeros)


def is_block(module):
    return isinstance(module, blocks.Block)


def at_the_input(call, args, zero):
    return call(args[0] + zero, *args[1:])


def preactivation_net(shortcut):
    net = build_resnet("cifar", 14, shortcut, (4, 4, 8), "preactivation", num_classes=3)
    variables = random_variables(net)
    found = layer_statistics(net.parts(train=True), variables, [batch(IMAGES, LABELS)])
    return net, variables, {layer.name: layer for layer in found.layers}


def test_the_share_of_an_identity_without_relu_is_the_gradient_behind_the_block():
    net, variables, layers = preactivation_net("pad")
    gradients, _ = whole_net(net, variables, is_block, at_the_input)
    # y = x + F(x): through x the gradient passes unchanged, and F gives the rest.
    for name, after in (("stage1_block1", "stage1_block2"), ("stage1_block2", "stage2_block1")):
        by_h = np.linalg.norm(gradients[after])
        by_f = np.linalg.norm(gradients[name] - gradients[after])
        # 1e-4: BN divides by deviations of few values, and rounding grows through the layers.
        assert layers[f"{name}/conv1"].identity_share == pytest.approx(
            by_h / (by_h + by_f), rel=1e-4
        )
    # Zeros are added behind the channels and between the pixels: their gradient is dropped.
    by_h = np.linalg.norm(gradients["stage3_block2"][..., :4])
    whole = np.array(gradients["stage3_block1"])
    whole[:, ::2, ::2] -= gradients["stage3_block2"][..., :4]
    share = by_h / (by_h + np.linalg.norm(whole))
    assert layers["stage3_block1/conv1"].identity_share == pytest.approx(share, rel=1e-4)


def test_the_share_of_a_projection_that_reads_what_f_reads_is_its_own():
    net, variables, layers = preactivation_net("projection")
    gradients, seen = whole_net(net, variables, is_block, at_the_input)
    params = variables["params"]["stage2_block1"]

    def h(x):
        deviation = jnp.sqrt(x.var((0, 1, 2), keepdims=True) + 1e-5)
        scale, bias = (params["bn1"][name][None, None, None] for name in ("scale", "bias"))
        u = nn.relu((x - x.mean((0, 1, 2), keepdims=True)) / deviation * scale + bias)
        return u[:, ::2, ::2] @ params["shortcut_conv"]["kernel"][0, 0]

    x = seen["stage1_block2"]["__call__"][0]
    (of_h,) = jax.vjp(h, x)[1](gradients["stage2_block2"])
    by_h, by_f = np.linalg.norm(of_h), np.linalg.norm(gradients["stage2_block1"] - of_h)
    found = layers["stage2_block1/conv1"].identity_share
    assert 0.01 < found < 0.99
    assert found == pytest.approx(by_h / (by_h + by_f), rel=1e-4)


@pytest.mark.parametrize("shortcut", ["pad", "projection"])
def test_input_gradients_are_by_all_that_reads_an_input(shortcut):
    net, variables, layers = preactivation_net(shortcut)

    def is_relu(module):
        return isinstance(module, blocks.ReLU)

    gradients, _ = whole_net(net, variables, is_relu, lambda call, args, zero: call(*args) + zero)
    # A convolution of F reads a ReLU's output. A projection reads that of the first one, too.
    checked = 0
    for path, gradient in gradients.items():
        layer = layers.get(path.replace("relu", "conv"))
        if layer:
            checked += 1
            norm = pytest.approx(np.linalg.norm(gradient), rel=1e-4)
            assert layer.input_gradient_norm == norm, path
    assert checked == 12
    for name in ("stage2_block1", "stage3_block1"):
        if shortcut == "projection":
            conv1, projection = layers[f"{name}/conv1"], layers[f"{name}/shortcut_conv"]
            assert conv1.input_gradient_norm == projection.input_gradient_norm


def test_a_response_without_a_norm_of_its_own_is_what_the_convolution_gives():
    net, variables, layers = preactivation_net("projection")
    _, seen = whole_net(net, variables, lambda _: False, at_the_input)

    def std(*path):
        output = functools.reduce(lambda tree, name: tree[name], path, seen)["__call__"][0]
        return pytest.approx(np.std(np.asarray(output)), rel=1e-4)

    for name in ("stage1_block1", "stage2_block1", "stage3_block2"):
        assert layers[f"{name}/conv1"].response_std == std(name, "bn2")
        assert layers[f"{name}/conv2"].response_std == std(name, "conv2")
    assert layers["stage2_block1/shortcut_conv"].response_std == std(
        "stage2_block1", "shortcut_conv"
    )
    assert layers["conv"].response_std == std("conv")
    assert layers["fc"].response_std is None
    assert "bn_out" not in layers


class BlockWithGroupNorm(BasicBlock):
    def residual(self, x: jax.Array) -> jax.Array:
        f = self.conv(self.features, 3, name="conv1")(x)
        return nn.GroupNorm(num_groups=1, name="group_norm")(f)


def test_the_response_of_a_convolution_comes_after_any_norm_that_reads_it():
    params = {
        "block": {
            "conv1": one_pixel(5),
            "group_norm": {"scale": np.float32([3]), "bias": np.float32([0])},
        },
        "fc": {"kernel": np.float32([[1, -1]])},
    }
    parts = [
        block("none", BlockWithGroupNorm),
        GlobalAveragePool(name="global_average_pool"),
        nn.Dense(2, use_bias=False, name="fc"),
    ]
    image = np.float32([1, 2, 3, 4]).reshape(1, 2, 2, 1)
    found = layer_statistics(parts, {"params": params}, [batch(image, [0])])
    assert found.layers[0].response_std == CLOSE(3)  # The scale of the norm.


def test_variables_whose_blocks_are_stacked_are_seen_as_single_blocks():
    net = build_resnet("cifar", 14, "pad", (4, 4, 8), num_classes=3)
    variables = random_variables(net)
    parts, batches = part_by_part.parts_of(net.clone(scan=True)), [batch(IMAGES, LABELS)]
    stacked = stacking.stack(variables)  # As `load_run` gives those of very deep networks.
    assert "stage1_blocks" in stacked["params"]
    assert layer_statistics(parts, stacked, batches) == layer_statistics(parts, variables, batches)


def test_numbers_are_means_over_batches():
    net = build_resnet("cifar", 8, "pad", (4, 4, 8), num_classes=3)
    variables = random_variables(net)
    batches = [batch(IMAGES, LABELS), batch(IMAGES[::-1] + 1, LABELS)]
    a, b = (layer_statistics(net.parts(train=True), variables, [one]) for one in batches)
    both = layer_statistics(net.parts(train=True), variables, batches)
    assert (both.batches, both.batch_size) == (2, 6)
    assert both.loss == CLOSE((a.loss + b.loss) / 2)
    for mean, x, y in zip(both.layers, a.layers, b.layers, strict=True):
        assert mean.input_gradient_rms == CLOSE((x.input_gradient_rms + y.input_gradient_rms) / 2)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_gradients_whose_squares_float32_lacks_have_a_norm(scale):
    x, labels = np.float32(RANDOM.randn(5, 4) * scale), np.zeros(5, int)
    variables = {"params": {"fc": {"kernel": np.zeros((4, 3), np.float32)}}}
    parts = [nn.Dense(3, use_bias=False, name="fc")]
    (layer,) = layer_statistics(parts, variables, [batch(x, labels)]).layers
    dlogits = (np.full((5, 3), 1 / 3) - np.eye(3)[labels]) / 5
    assert layer.weight_gradient_norm == CLOSE(np.linalg.norm(x.astype(float).T @ dlogits))


class BlockWithHiddenF(BasicBlock):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.conv(self.features, 3, name="conv1")(x)


def test_a_block_that_hides_f_is_refused_by_name():
    params = {"block": {"conv1": one_pixel(1)}, "fc": {"kernel": np.float32([[1, -1]])}}
    parts = [
        block("pad", BlockWithHiddenF),
        GlobalAveragePool(name="global_average_pool"),
        nn.Dense(2, use_bias=False, name="fc"),
    ]
    with pytest.raises(UserError, match="Expected BlockWithHiddenF to compute F .* residual"):
        layer_statistics(parts, {"params": params}, [batch(np.ones((1, 1, 1, 1), "f"), [0])])


def test_what_is_not_finite_is_none():
    variables = {"params": {"fc": {"kernel": np.full((4, 3), np.inf, np.float32)}}}
    parts = [nn.Dense(3, use_bias=False, name="fc")]
    found = layer_statistics(parts, variables, [batch(np.ones((2, 4), np.float32), [0, 1])])
    assert found.loss is None
    assert found.layers[0].weight_gradient_norm is None


def test_blocks_of_equal_shape_are_compiled_once_in_networks_of_any_depth():
    def compiled(depth):
        net = build_resnet("cifar", depth, "pad", (4, 4, 8), num_classes=3)
        variables = random_variables(net)
        layer_statistics(net.parts(train=True), variables, [batch(IMAGES, LABELS)])
        return part_by_part.compiled(diagnostics._backward)._cache_size()  # type: ignore[attr-defined]

    assert compiled(14) == compiled(20)


def test_where_the_loss_is_not_finite_no_gradient_is_zero():
    # ReLU passes nothing where it has seen NaN.
    kernel = np.full((2, 2), np.nan, np.float32)
    variables = {"params": {"a": {"kernel": kernel}, "b": {"kernel": kernel}}}
    parts = [
        nn.Dense(2, use_bias=False, name="a"),
        blocks.ReLU(name="relu"),
        nn.Dense(2, use_bias=False, name="b"),
    ]
    found = layer_statistics(parts, variables, [batch(np.float32([[1, 2]]), [1])])
    assert {layer.weight_gradient_norm for layer in found.layers} == {None}


def test_where_the_loss_is_not_finite_kernels_still_have_norms():
    variables = {"params": {"fc": {"kernel": np.ones((4, 3), np.float32)}}}
    parts = [nn.Dense(3, use_bias=False, name="fc")]
    images = np.full((2, 4), np.inf, np.float32)
    found = layer_statistics(parts, variables, [batch(images, [0, 1])])
    assert found.loss is None
    assert found.layers[0].weight_norm == CLOSE(12**0.5)


def test_parts_are_of_one_device_and_one_by_one_and_vgg_has_none():
    net = build_resnet("cifar", 14, "pad", num_classes=3, scan=True, norm_axis="data")
    parts = part_by_part.parts_of(net)
    assert [part.name for part in parts[3:5]] == ["stage1_block1", "stage1_block2"]
    assert parts[1].axis_name is None and not parts[1].use_running_average
    with pytest.raises(UserError, match="Expected a plain or residual network, got VGG"):
        part_by_part.parts_of(build_vgg(16, num_classes=3))
