"""Scores every image of a split with a checkpoint. It needs only the run's folder.

.venv/bin/python -m experiments.evaluate --workdir=runs/plain56 --split=train
"""

from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from experiments import cli
from resnet_flax.config import LARGEST_SIDE, RunConfig, parse
from resnet_flax.data.stream import Stream
from resnet_flax.errors import UserError
from resnet_flax.runs import Run, load_run, saved_steps
from resnet_flax.runtime import cpu, parallel
from resnet_flax.runtime.parallel import Devices
from resnet_flax.storage.run_folder import RunFolder
from resnet_flax.training import build
from resnet_flax.training.evaluation import Evaluator

CENTER, TEN_CROP, MULTI_SCALE = "center", "ten_crop", "multi_scale"
SIDES = (224, 256, 384, 480, 640)
"""Lengths of the shorter side in Sec. 3.4, for crops of 224 pixels."""


def score(
    run: Run, known: Mapping[str, Any], split: str | None, view: str, sides: Sequence[int]
) -> None:
    """Prints error and loss in one line.

    - `known`: the fingerprints of the run's splits.
    - `sides`: empty for those of Sec. 3.4.
    """
    data = run.config.data
    split = split or data.test_split
    devices = Devices(run.config.parallel)
    images = build.open_seen(data, split, run.image_mean, run.num_classes, known)
    if view == CENTER:
        evaluate = Evaluator(run.model, devices, data.eval_batch_size)
        feed = build.feed(images, devices, print)
        scores = evaluate(devices.replicate(run.variables), devices.replicate(run.image_mean), feed)
    else:
        _check_view(run.config, view)
        assert isinstance(images, Stream)
        from resnet_flax.training.views import Views  # Needs packages that images in memory do not.

        views = Views(run.model, devices, run.variables, run.image_mean, print)
        if view == TEN_CROP:
            scores = views.ten_crop(images, data.eval_batch_size)
        else:
            sides = sides or [round(side * data.image_size / SIDES[0]) for side in SIDES]
            scores = views.multi_scale(images, data.eval_batch_size, sides)
    seen = split if view == CENTER else f"{split} {view}"
    print(
        f"step {run.step}  {data.name} {seen}: error {scores['error']:.2%}  loss"
        f" {scores['loss']:.4f}  images {scores['images']}"
    )


def _check_view(config: RunConfig, view: str) -> None:
    if config.data.crop == "none":
        raise UserError(
            f"Expected --view={CENTER}, since the images of this run have one size"
            f' (data.crop="none"), got {view}.'
        )
    if view == MULTI_SCALE and config.model.family == "vgg":
        raise UserError(
            f"Expected --view={CENTER} or {TEN_CROP}, since VGG's dense layers take images of one"
            f" size, got {view}."
        )


def _sides(given: Sequence[str] | None) -> list[int]:
    if given is None:
        return []
    if not given or not all(str(s).isdecimal() and 0 < int(s) <= LARGEST_SIDE for s in given):
        raise UserError(
            f"Expected --sides=224,256,... in pixels, at most {LARGEST_SIDE}, got"
            f" {','.join(map(str, given))}."
        )
    return [int(side) for side in given]


def main(args: flags.FlagValues) -> int:
    if args.all_steps and args.step is not None:
        raise UserError(f"Expected --all_steps or --step, got both (step {args.step}).")
    if args["sides"].present and args.view != MULTI_SCALE:
        raise UserError(f"Expected --sides with --view={MULTI_SCALE}, got --view={args.view}.")
    sides = _sides(args.sides)
    records = RunFolder(folder := cli.run_folder(args))
    data = parse(records.config(), RunConfig).data
    # Images in memory are copied to each device, so there are no more devices than help.
    shares = data.eval_batch_size // cpu.SMALLEST_SHARE if data.crop == "none" else cpu.cores()
    cpu.use_cores(max(shares, 1) * cpu.SMALLEST_SHARE)
    parallel.open_devices()
    how = records.images(), args.split, args.view, sides
    if not args.all_steps:
        score(load_run(folder, args.step, args.data_dir), *how)
        return 0
    scored = 0
    for step in saved_steps(folder):
        try:
            run = load_run(folder, step, args.data_dir)
        except UserError as error:  # It is damaged, or the run is training and has deleted it.
            print(error)
        else:
            score(run, *how)
            scored += 1
    return 0 if scored else cli.FAILURE


if __name__ == "__main__":
    flags.DEFINE_integer("step", None, "The checkpoint's step; by default the last one.")
    flags.DEFINE_bool("all_steps", False, "Every saved checkpoint, with one line each.")
    flags.DEFINE_string("split", None, "A TFDS split; by default the config's test split.")
    flags.DEFINE_enum(
        "view", CENTER, [CENTER, TEN_CROP, MULTI_SCALE], "How images of varying size are cropped."
    )
    flags.DEFINE_list(
        "sides",
        None,
        f"Lengths of the shorter side for {MULTI_SCALE}, in pixels; by default"
        f" {', '.join(map(str, SIDES))}, or in this proportion to data.image_size.",
    )
    cli.run(main, config="none", workdir="The run's folder.", data_dir=True)
