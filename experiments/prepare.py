"""Makes a TFDS data set readable by index. Converts the files that exist, or downloads them.

make prepare DATASET=cifar10

The script runs in an environment of its own, with TensorFlow. It imports nothing of this project.
"""

import json
import logging
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # Set before the import. Shows only errors.

import tensorflow_datasets as tfds
from tensorflow_datasets.core import file_adapters
from tensorflow_datasets.core.utils.py_utils import incomplete_file
from tqdm import tqdm

FORMAT = file_adapters.FileFormat.ARRAY_RECORD


def main(name: str) -> str | None:
    """Prepares the set in TFDS_DATA_DIR or TFDS's default folder. Returns an error's message."""
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # Hides its ten attempts to connect.
    try:
        folder = prepare(name)
    except tfds.core.DatasetNotFoundError:  # Its message lists a thousand sets.
        return (
            f"prepare: TFDS has no set {name!r}, and {tfds.core.constants.DATA_DIR} has no complete"
            " newest version of it. Name an older version like this: my_set:1.0.0."
        )
    except Exception as error:
        # The whole message: its end says which archives have to be downloaded by hand.
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return f"prepare: cannot prepare {name!r} ({reason})."
    print(f"{name} is prepared in {folder}.")
    return None


def prepare(name: str) -> Path:
    """Returns the folder of the set. Raises OSError if it cannot be written or is damaged."""
    builder = tfds.builder(name)
    folder = Path(builder.data_dir)
    if not builder.info.splits:
        _download(name, folder)
    elif FORMAT.value not in _formats(builder) or _lacking(builder):
        _convert(builder)
    return folder


def _download(name: str, folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()  # TFDS would take an empty folder for the set.
    if folder.exists():
        raise FileExistsError(f"{folder} has no dataset_info.json: delete it and run this again")
    _check_writable(folder, "name another folder in TFDS_DATA_DIR")
    tfds.builder(name, file_format=FORMAT).download_and_prepare()


def _convert(builder: tfds.core.DatasetBuilder) -> None:
    """Writes array_record files beside the set's own.

    `dataset_info.json` names the new format only when all its files are written. Until then the
    set does not change, and the same command starts over. TFDS's own converter needs Apache Beam.
    """
    folder, info = Path(builder.data_dir), builder.info
    source, target = (file_adapters.ADAPTER_FOR_FORMAT[form] for form in (info.file_format, FORMAT))
    if absent := [old.name for old, _, _ in _shards(builder) if not old.exists()]:
        raise FileNotFoundError(
            f"{folder} lacks {absent[0]}, {len(absent)} files in all: copy them there, or delete"
            " that folder and run this again"
        )
    whole_set = folder.parents[len(Path(info.full_name).parts) - 2]  # Above config and version.
    _check_writable(
        folder,
        f"copy {whole_set} into a folder of yours, such as /data/tfds, and add"
        " TFDS_DATA_DIR=/data/tfds to the command",
    )
    for old, new, length in tqdm(_shards(builder), desc="to array_record", unit=" files"):
        with incomplete_file(new) as partial:
            examples = source.make_tf_data(old).as_numpy_iterator()
            target.write_examples(partial, enumerate(examples))
            if (written := target.num_examples(partial)) != length:
                raise ValueError(f"{old} has {written} examples instead of {length}")
    _name_format(folder / "dataset_info.json")
    for left in folder.glob("incomplete.*"):  # An interrupted conversion leaves them.
        left.unlink()


def _shards(builder: tfds.core.DatasetBuilder) -> list[tuple[Path, Path, int]]:
    """For each file of the set: its path, its path as array_record, and its number of examples."""
    shards: list[tuple[Path, Path, int]] = []
    for split in builder.info.splits.values():
        template = split.filename_template.replace(filetype_suffix=FORMAT.file_suffix)
        converted = split.replace(filename_template=template)
        shards += zip(split.filepaths, converted.filepaths, split.shard_lengths, strict=True)
    return shards


def _formats(builder: tfds.core.DatasetBuilder) -> set[str]:
    info = builder.info.as_proto
    return {info.file_format, *info.alternative_file_formats}


def _lacking(builder: tfds.core.DatasetBuilder) -> list[str]:
    return [new.name for _, new, _ in _shards(builder) if not new.exists()]


def _name_format(path: Path) -> None:
    info = json.loads(path.read_text())
    formats = info.get("alternativeFileFormats", [])
    info["alternativeFileFormats"] = sorted({*formats, FORMAT.value})
    with incomplete_file(path) as partial:
        partial.write_text(json.dumps(info, indent=2, sort_keys=True))


def _check_writable(folder: Path, way_out: str) -> None:
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise PermissionError(
            f"cannot write into {nearest}, {error.strerror}: {way_out}"
        ) from error


if __name__ == "__main__":
    if len(sys.argv) != 2:
        print("prepare: Expected one name, such as: make prepare DATASET=cifar100", file=sys.stderr)
        sys.exit(2)
    sys.exit(main(sys.argv[1]))
