"""Finds the sets that TFDS has prepared on a disk, and says how to prepare or mend others."""

import os
import re
import shlex
from pathlib import Path

import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils.version import list_all_versions

from resnet_flax.errors import UserError, summary

# Random access needs this format. TFDS prepares TFRecord files by default.
FILE_FORMAT = "array_record"


def find_builder(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """The builder of a set, which need not be prepared. Raises UserError if it is unknown."""
    data_dir = data_folder(data_dir)
    try:
        return tfds.builder(_with_version(name, data_dir), data_dir=data_dir, try_gcs=False)
    except Exception as error:  # Such as a wrong version, or a missing library that a set needs.
        reason = "" if isinstance(error, tfds.core.DatasetNotFoundError) else f" ({summary(error)})"
        raise UserError(
            f"Unknown data set data.name={name!r}{reason}: it is neither digits, nor registered in"
            f" TFDS, nor prepared in {data_dir}.{_other_version(name, data_dir)}"
        ) from error


def prepared_builder(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """The builder of a prepared set that can be read at random. Raises UserError for others."""
    builder, data_dir = find_builder(name, data_dir), data_folder(data_dir)
    # TFDS must not download here: without a network it retries for minutes.
    if not builder.info.splits:
        raise UserError(
            f"Data set {name!r} is not prepared in {data_dir}: run"
            f" {_prepare_command(name, data_dir)}, or set TFDS_DATA_DIR or data.data_dir to the"
            f" folder that has it.{_other_version(name, data_dir)}"
        )
    formats = _choose_format(builder.info)
    if FILE_FORMAT not in formats:
        raise UserError(
            f"Data set {name!r} is in {data_dir} as {' and '.join(sorted(formats))}, but only"
            f" {FILE_FORMAT} allows random access: {_prepare_command(name, data_dir)} converts"
            " it, without a download."
        )
    return builder


def _choose_format(info: tfds.core.DatasetInfo) -> set[str]:
    """Chooses FILE_FORMAT if the set has it. Returns all formats that the set has."""
    # `available_file_formats` omits some formats of sets for which TFDS has code.
    proto = info.as_proto
    formats = {proto.file_format, *proto.alternative_file_formats}
    if FILE_FORMAT in formats:
        info.set_file_format(FILE_FORMAT, override=True, override_if_initialized=True)
    return formats


def check_files(builder: tfds.core.DatasetBuilder, name: str, split: str, data_dir: str) -> None:
    """Raises UserError if a split lacks files. It says how to get them back."""
    lacking = _lacking(builder.info, split)
    if not lacking:
        return
    remedy = f"run {_prepare_command(name, data_folder(data_dir))}"
    if not _has_code(name) and _choose_format(builder.info) == {FILE_FORMAT}:
        # Nothing is left to convert. It was made from a folder of images.
        whole = Path(builder.data_dir).parent
        target = f"NAME={whole.name} TFDS_DATA_DIR={shlex.quote(str(whole.parent))}"
        remedy = (
            f"delete {whole} and make it again from its images: `make prepare FOLDER=photos"
            f" {target}`"
        )
    raise UserError(
        f"Split {split!r} of {name} lacks {lacking[0]} (files missing: {len(lacking)}). Copy"
        f" them there, or {remedy}."
    )


def _lacking(info: tfds.core.DatasetInfo, split: str) -> list[str]:
    """The paths of the files that are missing from a prepared split."""
    files = [Path(part.filename) for part in info.splits[split].file_instructions]
    return [str(file) for file in files if not file.exists()]


def _prepare_command(name: str, data_dir: str) -> str:
    full_name = _with_version(name, data_dir)
    return f"`make prepare DATASET={full_name} TFDS_DATA_DIR={shlex.quote(data_dir)}`"


def _with_version(name: str, data_dir: str) -> str:
    """Adds the newest complete version to a name without a version.

    If TFDS has code for the set, that code gives the version and `name` stays unchanged. Without
    such code, TFDS itself would take the newest folder, even an empty one.
    """
    if ":" in name or _has_code(name):
        return name
    versions = _whole_versions(Path(data_dir, name))
    return f"{name}:{versions[-1]}" if versions else name


def _has_code(name: str) -> bool:
    """Whether TFDS has code that makes this set."""
    try:
        tfds.builder_cls(name.partition(":")[0].partition("/")[0])
    except tfds.core.DatasetNotFoundError:
        return False
    return True


def _other_version(name: str, data_dir: str) -> str:
    base = name.partition(":")[0]
    versions = _whole_versions(Path(data_dir, base))
    if not versions:
        return ""
    return f" Version {versions[-1]} is there: data.name={base}:{versions[-1]} reads it."


def _whole_versions(folder: Path) -> list[str]:
    """The versions of a set that have all their files, oldest first."""
    versions = [str(version) for version in list_all_versions(folder)]
    return [version for version in versions if _is_whole(folder / version)]


def _is_whole(folder: Path) -> bool:
    try:
        info = tfds.builder_from_directory(folder).info
    except Exception:  # An incomplete set may raise errors of many kinds.
        return False
    _choose_format(info)
    return bool(info.splits) and not any(_lacking(info, split) for split in info.splits)


def data_folder(data_dir: str) -> str:
    """The full path of the folder of prepared sets. Arguments: `load_split`."""
    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR", "") or str(tfds.core.constants.DATA_DIR)
    if re.match(r"\w[\w+.\-]*:/", data_dir):
        raise UserError(
            "Expected a folder on a disk in data.data_dir or TFDS_DATA_DIR, because images are read"
            f" in random order, got {data_dir}. Copy the prepared set to a disk."
        )
    try:
        return str(Path(data_dir).expanduser().absolute())
    except RuntimeError as error:  # The user has no home folder.
        raise UserError(
            f"Cannot find {data_dir}: {error} Give data.data_dir or TFDS_DATA_DIR."
        ) from error
