"""What a run will cost, before it starts: one step measured at two sizes, and the straight line through them.

The model of cost: memory and time are each `fixed + slope * voxels`, voxels being those of all images that go through the
network together. That is exact for convolutions; attention's time grows with the square of an image's voxels, so images are
only made smaller where a whole one cannot be measured here, and that is said.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from meddiff.config import Config
from meddiff.config_file import parse_config
from meddiff.data.conditions import Known
from meddiff.engines.measure import Drawn, Request, Step
from meddiff.engines.predict import evaluations
from meddiff.engines.run import Run
from meddiff.errors import ConfigError

MOST_VOXELS = 1 << 20  # that are measured in one step; larger batches and images follow from the line
HELD_OUT = 256  # images, at most, that training keeps for the held-out loss
STATE = 5 * 4  # bytes a parameter: weights, their average, gradient and two moments, float32
SAVED = 8 * 4  # bytes a parameter while a checkpoint is written: weights, average and moments, twice
CONTEXT = 1 << 29  # bytes that CUDA and its libraries take beside the tensors; an assumption
FIT = 0.9  # share of a device's memory that is planned with: allocators leave gaps
AUTOENCODER = 4  # what latents would shorten each axis by, in the advice

ProbeStep = Callable[[Request], Step]
ProbeSample = Callable[[Request], Drawn]


class TooLargeError(Exception):
    """A probe ran out of memory."""


@dataclass(frozen=True)
class Line:
    """fixed + slope * voxels."""

    fixed: float
    slope: float

    @classmethod
    def through(cls, one: tuple[float, float], two: tuple[float, float]) -> "Line":
        """The line through two points (voxels, cost); never falling, and not below 0 at 0: costs are not negative."""
        slope = max((two[1] - one[1]) / (two[0] - one[0]), 0.0)
        fixed = two[1] - slope * two[0]
        return cls(fixed, slope) if fixed >= 0 else cls(0.0, two[1] / two[0])

    def __call__(self, voxels: float) -> float:
        return self.fixed + self.slope * voxels


@dataclass(frozen=True)
class Cost:
    """Of one configuration, as measured at two sizes."""

    points: tuple[tuple[Request, Step], ...]
    memory: Line  # bytes of a step beside the libraries
    seconds: Line  # of a forward and backward pass with its share of the optimiser's
    flops: Line
    smaller: bool  # images had to be made smaller than data.size

    @property
    def step(self) -> Step:
        """The larger one measured."""
        return self.points[-1][1]


@dataclass(frozen=True)
class Need:
    """What a run of one setting takes."""

    what: str  # the setting
    how: str  # measured or computed, and from what
    memory: float  # bytes, at most
    step_s: float
    fits: bool


@dataclass(frozen=True)
class Plan:
    """What a run will cost."""

    cost: Cost
    own: Need
    budget: float  # bytes
    gpu_absent: bool  # the budget is that of a GPU that is not here
    train_hours: float  # optimiser steps alone
    else_hours: float  # held-out loss and pictures
    sample_s: float
    flops_per_step: float
    changes: tuple[Need, ...]  # what would help; empty where the run fits


def measure_cost(config: Config, known: Known, probe: ProbeStep) -> Cost:
    """Measure a training step at two sizes, smaller ones where these are too large for this machine.

    ConfigError where not even the smallest images can be trained on here.
    """
    size = tuple(config.data.size)
    while True:
        requests = _points(config, known, size)
        try:
            points = tuple((request, probe(request)) for request in requests)
            break
        except TooLargeError as e:
            smaller = _halved(size, config)
            if _halved(smaller, config) == smaller:  # two sizes are needed
                raise ConfigError(
                    f"A training step of one image of {list(size)} voxels does not fit into the memory of this machine ({e}). "
                    "Use fewer network.channels, or a smaller network."
                ) from e
            size = smaller
    at = [_voxels(request) for request, _ in points]

    def line(of: Callable[[Step], float]) -> Line:
        return Line.through((at[0], of(points[0][1])), (at[1], of(points[1][1])))

    memory = line(lambda step: step.peak - step.libraries)
    seconds, flops = line(lambda step: step.seconds), line(lambda step: step.flops)
    return Cost(points, memory, seconds, flops, size != tuple(config.data.size))


def plan(
    config: Config,
    known: Known,
    held_out: int,  # images that the held-out loss is measured on
    budget: float,  # bytes
    gpu_absent: bool,
    probe: ProbeStep,
    probe_sample: ProbeSample,
) -> Plan:
    """Memory, time and what to change where the memory is above `budget`."""
    cost = measure_cost(config, known, probe)
    voxels, micro, train = prod(config.data.size), _micro(config), config.train
    how = f"line through {' and '.join(_name(request) for request, _ in cost.points)}"
    aside = 0.0 if gpu_absent else cost.step.libraries

    def need(what: str, how: str, cost: Cost, batch: int, passes: int, voxels: float) -> Need:
        tensors = max(cost.memory(batch * voxels), cost.step.parameters * (STATE - 4 + SAVED))
        kept = 0.0 if gpu_absent else min(held_out, HELD_OUT) * prod(config.data.size) * 4.0
        memory = tensors + aside + kept + (CONTEXT if gpu_absent else 0)
        return Need(what, how, memory, passes * cost.seconds(batch * voxels), memory <= FIT * budget)

    own = need("as it is", how, cost, micro, train.accumulate, voxels)
    first = cost.points[0][0]
    drawn = probe_sample(first.model_copy(update={"batch": min(config.sample.batch, first.batch)}))
    scale = voxels / prod(first.size)
    sample_s = (
        scale
        * _sample_seconds(config, drawn)
        / (min(config.sample.batch, first.batch) if config.task == "synthesis" else 1)
    )
    pictures = sample_s * {2: 16, 3: 2}[config.network.spatial_dims] * (1 + train.steps // train.preview_every)
    judged = own.step_s / 3 * min(held_out, HELD_OUT) / train.batch * (1 + train.steps // train.validate_every)
    changes = () if own.fits else tuple(_changes(config, known, cost, need, probe))
    return Plan(
        cost,
        own,
        budget,
        gpu_absent,
        train.steps * own.step_s / 3600,
        (pictures + judged) / 3600,
        sample_s,
        train.accumulate * cost.flops(micro * voxels),
        changes,
    )


def _changes(config: Config, known: Known, cost: Cost, need: Callable[..., Need], probe: ProbeStep) -> Sequence[Need]:
    """Settings that take less memory, each alone, and the cheapest two together; with what each would take."""
    voxels, micro = prod(config.data.size), _micro(config)
    found = []
    costs = [("", cost)]
    if not config.network.checkpointing:
        tree = config.model_dump(mode="json")
        tree["network"]["checkpointing"] = True
        lean = measure_cost(parse_config(tree, "the plan"), known, probe)
        found.append(
            need("network.checkpointing=true", "measured, as above", lean, micro, config.train.accumulate, voxels)
        )
        costs.append(("network.checkpointing=true, ", lean))
    for before, of in costs:
        for batch in (n for n in range(micro - 1, 0, -1) if config.train.batch % n == 0):
            passes = config.train.batch // batch
            one = need(f"{before}train.accumulate={passes}", "computed from the line", of, batch, passes, voxels)
            if one.fits or batch == 1:
                found.append(one)
                break
    size = tuple(config.data.size)
    while (smaller := _halved(size, config)) != size:
        size = smaller
        what = f"data.size=[{','.join(map(str, size))}], data.crop=random"
        one = need(what, "computed from the line", cost, micro, config.train.accumulate, prod(size))
        if one.fits:
            found.append(one)
            break
    if config.task == "synthesis" and config.diffusion.latent is None:
        shorter = voxels / AUTOENCODER**config.network.spatial_dims
        what = f"diffusion.latent=RUN of an autoencoder that shortens each axis by {AUTOENCODER}"
        found.append(need(what, "computed from the line", cost, micro, config.train.accumulate, shorter))
    return found


def _points(config: Config, known: Known, size: tuple[int, ...]) -> tuple[Request, Request]:
    """Two sizes to measure: batches of whole images where they fit, else an image and half of one."""
    micro, whole = _micro(config), size == tuple(config.data.size)
    most = min(max(micro // 2, 2), MOST_VOXELS // prod(size)) if whole and micro > 1 else 1
    if most >= 2:
        return (
            Request(config=config, labels=tuple(known.labels), classes=known.classes, batch=most // 2, size=size),
            Request(config=config, labels=tuple(known.labels), classes=known.classes, batch=most, size=size),
        )
    while prod(size) > MOST_VOXELS and (smaller := _halved(size, config)) != size:
        size = smaller
    half = _halved(size, config)
    if half == size:
        raise ConfigError(f"data.size = {list(config.data.size)} is too small for two sizes to be measured.")
    return (
        Request(config=config, labels=tuple(known.labels), classes=known.classes, batch=1, size=half),
        Request(config=config, labels=tuple(known.labels), classes=known.classes, batch=1, size=size),
    )


def _halved(size: tuple[int, ...], config: Config) -> tuple[int, ...]:
    """The size with its longest axis halved, as far as the network goes into it; itself where it cannot be."""
    unit = _unit(config)
    axis = max(range(len(size)), key=lambda i: size[i])
    half = size[axis] // 2 // unit * unit
    return size if half < unit else tuple(half if i == axis else n for i, n in enumerate(size))


def _unit(config: Config) -> int:
    """Voxels that a size must be a multiple of."""
    if config.diffusion.latent is not None:
        return config.network.multiple * Run.open(config.diffusion.latent).config().network.multiple
    return config.network.multiple * (2 if config.task == "autoencoder" else 1)


def _micro(config: Config) -> int:
    return config.train.batch // config.train.accumulate


def _guided(config: Config) -> bool:
    return config.condition.any and config.sample.guidance != 1


def _voxels(request: Request) -> int:
    return request.batch * prod(request.size)


def _name(request: Request) -> str:
    return f"{request.batch} x {' x '.join(map(str, request.size))}"


def _sample_seconds(config: Config, drawn: Drawn) -> float:
    """Of one batch of samples, or of one scan."""
    if config.task == "synthesis":
        return drawn.once + evaluations(config.sample, _guided(config)) * drawn.evaluation
    if config.task == "autoencoder" or config.diffusion.process == "direct" or config.sample.steps == 1:
        return drawn.once + drawn.evaluation
    return drawn.once + (1 + config.sample.samples * (config.sample.steps - 1)) * drawn.evaluation
