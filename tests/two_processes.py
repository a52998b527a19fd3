"""One of several processes that train together; test_processes.py starts them.

python -m tests.two_processes RANK COUNT DEVICES_EACH BACKEND PORT: prints the end as JSON.
"""

import functools
import json
import sys

import jax
import numpy as np

from resnet_flax import optim, steps
from resnet_flax.evaluation import Evaluator
from resnet_flax.models.resnet import build_resnet
from resnet_flax.parallel import DATA_AXIS, Devices


def train(backend):
    net = build_resnet("cifar", 8, "pad", (4, 8, 8), num_classes=10, norm_axis=DATA_AXIS)
    optimizer = optim.sgd(lambda _: 0.1)
    images = np.random.RandomState(0).randint(0, 256, (50, 8, 8, 1)).astype(np.uint8)
    labels = np.random.RandomState(1).randint(0, 10, 50).astype(np.int32)
    devices = Devices(backend)
    train_steps = functools.partial(
        steps.train_steps, model=net, optimizer=optimizer, pad=1, flip=True, log_every=100
    )
    mapped = devices.map(train_steps, (False, False, True), donate=0)
    data = devices.replicate(steps.Images(images, labels))
    mean = images.mean(0, dtype=np.float32)
    state = devices.replicate(steps.init_state(net, optimizer, np.uint32(0), mean))
    for indices in np.random.RandomState(2).randint(0, 50, (3, 1, 16)).astype(np.int32):
        state = mapped(state, data, devices.shard(indices))
    scores = Evaluator(net, devices, batch_size=8)(state.variables, state.image_mean, data)
    params = [leaf.tolist() for leaf in jax.tree.leaves(jax.device_get(state.params))]
    return {"devices": len(devices.devices), "scores": scores, "params": params}


if __name__ == "__main__":
    rank, count, devices_each = map(int, sys.argv[1:4])
    jax.config.update("jax_num_cpu_devices", devices_each)
    if count > 1:
        jax.distributed.initialize(f"127.0.0.1:{sys.argv[5]}", count, rank)
    print(json.dumps(train(sys.argv[4])), flush=True)
