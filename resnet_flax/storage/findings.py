"""Results of diagnostics, in JSON files beside a run's other records. No JAX: reports need none.

RUN/diagnostics/layers-STEP.json  `Layers` at a step; step 0: before training
RUN/diagnostics/signal.json       `Signal`, before training
RUN/diagnostics/line.json         `Line`
RUN/diagnostics/plane.json        `Plane`
SWEEP/initial.json                `Initial`: networks of a sweep and others, before training

A number that is not finite is null in the file and None here.
"""

from typing import Annotated, Self, TypeVar

import pydantic

from resnet_flax.errors import UserError
from resnet_flax.storage import filesystem
from resnet_flax.storage.filesystem import AnyPath

F = TypeVar("F", bound="Finding")
LARGEST = 2**26  # Bytes of a file.
LAYERS, LINE, PLANE, INITIAL = "layers", "line.json", "plane.json", "initial.json"
SIGNAL = "signal.json"


class Finding(pydantic.BaseModel):
    """Base class of everything that is stored in these files."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)


class Layer(Finding):
    """A layer with weights.

    Gradients are of the mean loss over a batch. Each number is a mean over batches.
    """

    name: str
    """The name that the layer's parameters have, such as `stage1_block2/conv1`."""
    weight_gradient_norm: float | None
    """L2 norm of the gradient with respect to the layer's kernel."""
    weight_gradient_rms: float | None
    weight_norm: float | None = None
    """L2 norm of the layer's kernel. If BN reads the layer, a kernel c times as large computes the
    same and has 1/c of the gradient. None: measured before this was recorded."""
    input_gradient_norm: float | None
    """L2 norm of the gradient with respect to the layer's input, over a batch."""
    input_gradient_rms: float | None
    response_std: float | None = None
    """Standard deviation of its output, after BN if BN reads it, before addition and ReLU (Fig. 7).
    None for the fully connected layer."""
    identity_share: float | None = None
    """For a block's first layer: the share of the gradient at the block's input that comes through
    h of Eqn. (1) and not through F: |h| / (|h| + |F|), in L2 norms. 0 in plain networks. None for
    other layers."""


class Layers(Finding):
    """All weighted layers of a network, in order, at one step."""

    step: int
    batches: int
    batch_size: int
    loss: float | None
    """Mean loss over these batches, in nats. BN uses the statistics of each batch."""
    layers: tuple[Layer, ...]


class StageSignal(Finding):
    """The stem or a stage. Errors are of features: the stage's output, as its mean over places."""

    name: str
    gradient_cosine: float | None
    """Mean cosine between the gradients of the stage's kernels in two batches."""
    neighbour_error: float | None
    """How many percent of images have another label than the nearest other image."""
    ridge_error: float | None
    """Leave-one-out error of a ridge regression, in percent."""


class Signal(Finding):
    """What is left of images and of the loss inside a network that is not trained."""

    batches: int
    batch_size: int
    gradient_ratio: float | None
    """|dL/dx| at the input of the first block over that at the output of the last block."""
    predicted_ratio: float | None
    """The same by mean-field theory. None: the theory does not cover the network."""
    stages: tuple[StageSignal, ...]
    """In order, the stem first. Two others at least."""

    @pydantic.model_validator(mode="after")
    def _of_two_stages(self) -> Self:
        if sum(stage.name != "stem" for stage in self.stages) < 2:
            raise ValueError("expected two stages or more beside the stem")
        return self


class _Path(Finding):
    step: int
    images: int
    positions: Annotated[tuple[pydantic.FiniteFloat, ...], pydantic.Field(min_length=2)]


class Line(_Path):
    """Training loss on the line from the initial weights (position 0) to the last (position 1)."""

    losses: tuple[float | None, ...]
    errors: tuple[float | None, ...]

    @pydantic.model_validator(mode="after")
    def _a_value_for_each_position(self) -> Self:
        if not len(self.positions) == len(self.losses) == len(self.errors):
            raise ValueError("expected a loss and an error for each position")
        return self


class Plane(_Path):
    """Training loss around the last weights, along two filter-normalised random directions.

    Li et al. (2018), arXiv 1712.09913, Sec. 4. Row i is position i along the first direction.
    Column j is position j along the second.
    """

    seed: int
    losses: tuple[tuple[float | None, ...], ...]
    errors: tuple[tuple[float | None, ...], ...]

    @pydantic.model_validator(mode="after")
    def _a_value_for_each_pair(self) -> Self:
        size = len(self.positions)
        for values in (self.losses, self.errors):
            if [len(row) for row in values] != [size] * size:
                raise ValueError("expected a loss and an error for each pair of positions")
        return self


class Network(Finding):
    """A network before training."""

    kind: str
    depth: int
    norm: str
    seed: int
    at: Layers
    signal: Signal | None = None
    """None: not measured."""


class Initial(Finding):
    """Networks of a sweep, before training."""

    networks: tuple[Network, ...]


def save(path: AnyPath, finding: Finding) -> None:
    """Replaces the file at once, and makes its folder. Raises UserError if that fails."""
    if path.name != INITIAL:  # A sweep's folder may be a link, a run's `diagnostics` may not.
        filesystem.refuse_links(path.parent.parent, path.parent.name)
    try:
        path.parent.mkdir(exist_ok=True)
        filesystem.write_json(path, finding.model_dump(mode="json"))
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}.") from error


def load(path: AnyPath, kind: type[F]) -> F | None:
    """Reads a file. None if it is missing. Raises UserError if its content is of another kind."""
    try:
        return kind.model_validate_json(filesystem.read_bytes(path, LARGEST))
    except FileNotFoundError:
        return None
    except (OSError, pydantic.ValidationError) as error:
        said = error.strerror if isinstance(error, OSError) else error.errors()[0]["msg"]
        raise UserError(f"Cannot use {path}: {said}. Delete it to go on without it.") from error


def load_initial(sweep: AnyPath) -> tuple[Network, ...]:
    """Reads the networks of a sweep that were measured before training."""
    found = load(sweep / INITIAL, Initial)
    return found.networks if found else ()


def folder(run: AnyPath) -> AnyPath:
    """The folder of a run's findings."""
    return run / "diagnostics"


def layers_file(run: AnyPath, step: int) -> AnyPath:
    return folder(run) / f"{LAYERS}-{step}.json"


def load_layers(run: AnyPath) -> list[Layers]:
    """Reads the `Layers` of all diagnosed steps, ordered by step."""
    found = (load(path, Layers) for path in folder(run).glob(f"{LAYERS}-*.json"))
    return sorted((layers for layers in found if layers), key=lambda layers: layers.step)
