"""``python -m pipelines bench-data``: how many data processes a GPU needs, and what each stage costs."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pipelines.terminal.arguments import add_json, add_overrides, stage_parser
from pretrain.check.derived import load_complete
from pretrain.command_line import Parser
from pretrain.errors import ConfigError
from pretrain.names import tell

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pretrain.config.schema.experiment import Experiment
    from pretrain.data.images.colour import Pixels
    from pretrain.data.images.decode import Box, EncodedImage
    from pretrain.data.stream import TrainStream

STAGES = ("read", "decode", "augment", "copy")
HEADROOM = 1.2  # extra processes beyond the mean rate: batches are uneven, and the rank itself needs a core
WARMUP_IMAGES = 32
EXAMPLE = """\
example: python -m pipelines bench-data --config configs/pretrain/vit_l16_i21k_90ep.yaml --images-per-second 450
         python -m pipelines bench-data --config configs/pretrain/demo_digits.yaml --num-images 200"""


@dataclass(frozen=True)
class Answer:
    """The measured times, and the number of data processes that they imply.

    Attributes:
        microseconds: stage → median time per image in one process.
        images_per_second_per_worker: rate of one process, all stages together.
        limit: the slowest stage.
        images_per_second: rate of one GPU; None: unknown.
        num_workers: data processes that one GPU needs; None: unknown.
        cores: of this machine.
        num_gpus: GPUs of a node.
    """

    microseconds: dict[str, float]
    images_per_second_per_worker: float
    limit: str
    images_per_second: float | None
    num_workers: int | None
    cores: int
    num_gpus: int

    def lines(self) -> list[str]:
        """The answer as lines of text."""
        total = sum(self.microseconds.values())
        found = [
            f"{stage:<10}{micros:>9.0f} µs an image {micros / total:>6.0%}"
            for stage, micros in self.microseconds.items()
        ]
        found.append(
            f"one data process makes {self.images_per_second_per_worker:,.0f} images/s; {self.limit} limits it"
        )
        if self.images_per_second is None or self.num_workers is None:
            return [*found, "no GPU found: give its rate with --images-per-second"]
        found.append(
            f"a GPU that takes {self.images_per_second:,.0f} images/s needs cluster.num_workers: {self.num_workers}"
        )
        needed = self.num_workers * self.num_gpus
        if needed > self.cores:
            found.append(
                f"a node with {self.num_gpus} such GPUs needs {needed} processes, this machine has {self.cores} cores: "
                "pack the photos with a cap on their size, choose cheaper augmentation, or a node with more cores"
            )
        return found


def answer(microseconds: dict[str, float], images_per_second: float | None, *, cores: int, num_gpus: int) -> Answer:
    """Computes the data processes that a GPU of this rate needs from the times of the stages."""
    rate = 1e6 / sum(microseconds.values())
    workers = None if images_per_second is None else math.ceil(HEADROOM * images_per_second / rate)
    limit = max(microseconds, key=lambda stage: microseconds[stage])
    return Answer(microseconds, rate, limit, images_per_second, workers, cores, num_gpus)


# long: the stages are timed in one loop, since a function call between two clock readings would be timed too.
def measure(experiment: Experiment, num_images: int) -> dict[str, float]:
    """Median microseconds per image in each stage, in this process; the median hides other load on the machine.

    Raises:
        ConfigError: the set does not fit the config. DataError: it is missing or damaged.
    """
    import numpy as np
    import torch

    from pretrain.data.batch import to_model_input
    from pretrain.data.images.augment import TrainTransform
    from pretrain.data.images.decode import open_image
    from pretrain.data.stream import TrainStream
    from pretrain.distributed.device import choose_device
    from pretrain.errors import BadSample

    torch.set_num_threads(1)
    stream = TrainStream(experiment, 0, 1, experiment.global_batch_size)
    reader, (height, width), data = stream.reader(), experiment.model.size, experiment.data
    transform = TrainTransform(data.augmentation, height, width, experiment.seed, data.mean)
    epochs, ids = _first_draws(stream, num_images + WARMUP_IMAGES, experiment.batches.unit)
    places, _ = reader.places(ids)  # for complete batches, as in training; a few microseconds per image
    device = choose_device()
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    batch = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    seconds = []
    for index, row in enumerate(transform.numbers(epochs, ids)[: num_images + WARMUP_IMAGES]):
        started = time.perf_counter()
        try:
            encoded = reader.read_at(int(ids[index]), places[index])
        except BadSample:  # training replaces it by another image
            continue
        read = time.perf_counter()
        image = TimedImage(open_image(encoded))
        opened = time.perf_counter()
        transform.of_image(image, row, pixels)
        made = time.perf_counter()
        to_model_input(batch.to(device), data.mean, data.std)
        copied = time.perf_counter()
        seconds.append((read - started, opened - read + image.seconds, made - opened - image.seconds, copied - made))
    return _medians(seconds[WARMUP_IMAGES:])


def _first_draws(stream: TrainStream, count: int, batch_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Epochs and sample ids of the first complete global batches that have at least ``count`` samples."""
    import numpy as np

    draws = [stream.order.batch(number * batch_size) for number in range(math.ceil(count / batch_size))]
    return np.concatenate([draw.epochs for draw in draws]), np.concatenate([draw.sample_ids for draw in draws])


def _medians(seconds: Sequence[tuple[float, ...]]) -> dict[str, float]:
    """Stage → median microseconds."""
    import numpy as np

    medians = np.median(seconds, axis=0) * 1e6
    return dict(zip(STAGES, medians.tolist(), strict=True))


class TimedImage:
    """An image that records how long its decoding takes."""

    def __init__(self, image: EncodedImage) -> None:
        self._image, self.seconds = image, 0.0
        self.height, self.width = image.height, image.width

    def decode(self, min_height: int | None = None, min_width: int | None = None) -> Pixels:
        """See ``EncodedImage``."""
        return self._timed(lambda: self._image.decode(min_height, min_width))

    def decode_box(self, box: Box, min_height: int | None = None, min_width: int | None = None) -> Pixels:
        """See ``EncodedImage``."""
        return self._timed(lambda: self._image.decode_box(box, min_height, min_width))

    def _timed(self, decode: Callable[[], Pixels]) -> Pixels:
        started = time.perf_counter()
        pixels = decode()
        self.seconds += time.perf_counter() - started
        return pixels


def device_rate(experiment: Experiment, device: Any, *, steps: int = 5) -> float:
    """Images per second of forward and backward on one device, after two steps of warm-up."""
    import torch

    from pretrain.models.families.registry import build_model, init_weights
    from pretrain.sharding.choice import resolve_micro_batch

    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    size = resolve_micro_batch(experiment, 1, memory)[0]
    model = build_model(experiment.model, experiment.num_outputs)
    init_weights(model, experiment.seed)
    model.to(device).train()
    images = torch.randn(size, 3, *experiment.model.size, device=device)
    for step in range(steps + 2):
        if step == 2:
            _wait_for(device)
            started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=experiment.precision != "fp32"):
            model(images).float().logsumexp(1).mean().backward()
    _wait_for(device)
    return steps * size / (time.perf_counter() - started)  # pyright: ignore[reportPossiblyUnboundVariable]


def _wait_for(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(argv: Sequence[str]) -> int:
    """Measures, prints the result, and returns the exit code."""
    options = parser().parse_intermixed_args(argv)
    if options.num_images < 1:
        raise ConfigError(f"--num-images: {options.num_images} is less than 1")
    if options.images_per_second is not None and options.images_per_second <= 0:
        raise ConfigError(f"--images-per-second: {options.images_per_second:g} is not above 0")
    experiment = load_complete(options.config, overrides=options.overrides).experiment
    if experiment.data.train_transform.sequence_lengths:
        raise ConfigError(
            f"data.train_transform.crop: {experiment.data.train_transform.crop} keeps every image's aspect ratio; "
            "bench-data measures images of one size: measure with another crop"
        )
    found = answer(
        measure(experiment, options.num_images),
        options.images_per_second or _gpu_rate(experiment),
        cores=os.cpu_count() or 1,
        num_gpus=_num_gpus(experiment),
    )
    tell(json.dumps(asdict(found)) if options.json else "\n".join(found.lines()))
    return 0


def _gpu_rate(experiment: Experiment) -> float | None:
    from pretrain.distributed.device import choose_device

    device = choose_device()
    return device_rate(experiment, device) if device.type == "cuda" else None


def _num_gpus(experiment: Experiment) -> int:
    import torch

    stated = experiment.cluster.num_devices
    return (torch.cuda.device_count() or 1) if stated == "auto" else stated


def parser() -> Parser:
    """The command line of the stage."""
    parser = stage_parser(
        "bench-data",
        "Measures how many data processes a GPU needs, and which stage is the bottleneck.",
        EXAMPLE,
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="the experiment; its training set must exist")
    parser.add_argument("--images-per-second", type=float, help="rate of one GPU (default: measured, if there is one)")
    parser.add_argument("--num-images", type=int, default=512, help="images to measure")
    add_json(parser)
    add_overrides(parser)
    return parser
