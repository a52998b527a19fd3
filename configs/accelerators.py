"""Networks to compile for chips that are not here: `--config=configs/accelerators.py:cifar10`.

- `cifar10`: 20, 56 and 110 layers, in both types.
- `deep`: 110 and 1202 layers with stacked blocks, with and without recomputation.
- `pod`: 20 and 56 layers, BN over a device or over all of them.
- `imagenet`: 18 to 152 layers, a batch of 256 or 1,024.
- `batch`: 50 layers and larger batches, to see which one is too large.

Command:
 .venv/bin/python -m experiments.compile --config=configs/accelerators.py:cifar10 --topology=v5e:1x1
Results: experiments/results/accelerators.md.
"""

import ml_collections

from configs import cifar10, imagenet


def get_config(name: str = "cifar10") -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict(convert_dict=False)  # A dict keeps the order of kinds.
    config.run = cifar10.get_config("resnet56")
    config.run.model.dtype = "bfloat16"
    config.seeds = (0,)
    types = {dtype: {"model": {"dtype": dtype}} for dtype in ("bfloat16", "float32")}
    if name == "cifar10":
        config.kinds, config.depths = types, (20, 56, 110)
    elif name == "deep":
        config.run.model.scan = "on"
        config.kinds, config.depths = types, (110, 1202)
        config.vary = {"model": {"remat": (False, True)}}
    elif name == "pod":
        config.kinds = {scope: {"model": {"bn_scope": scope}} for scope in ("device", "global")}
        config.depths = (20, 56)
    elif name in ("imagenet", "batch"):
        config.run = imagenet.get_config("resnet50")
        config.run.model.dtype = "bfloat16"
        config.kinds = {"option B": {"model": {"shortcut": "projection"}}}
        config.depths = (18, 34, 50, 101, 152) if name == "imagenet" else (50,)
        sizes = (256, 1024) if name == "imagenet" else (512, 2048, 4096)
        config.vary = {"data": {"batch_size": sizes}}
    else:
        raise ValueError(f"Expected cifar10, deep, pod, imagenet or batch, got {name!r}.")
    return config
