"""The only training loop: step, log, checkpoint, resume.

A resumed run continues exactly where it stopped, on a CPU with bit-equal results (see ``lib.engine.seeds``).
"""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lib.data.dataset import Dataset
from lib.engine.checkpoint import CHECKPOINT, load_checkpoint, save_checkpoint
from lib.engine.interrupts import stop_wanted
from lib.engine.log import Log
from lib.engine.processes import Processes, wait_for_all
from lib.engine.seeds import epoch_order, seed_step
from lib.learning.base import Learner, TrainingConfig
from lib.learning.optimizers import clip_each
from lib.schedules import cosine_schedule

VOTE_STEPS = 10  # steps after which several processes ask each other whether a signal has come


class NonFiniteLoss(RuntimeError):
    """The loss became infinite or NaN; the last good checkpoint is kept."""


def train(
    learner: Learner,
    dataset: Dataset,
    config: TrainingConfig,
    folder: str | Path,
    *,
    seed: int,
    budget: float | None = None,
    evaluate: Callable[[nn.Module, int], dict] | None = None,
    evaluation_epochs: int = 0,
    progress: bool = True,
) -> bool:
    """Train ``learner`` on ``dataset``; a training with a checkpoint in ``folder`` is resumed.

    Args:
        folder: where ``log.jsonl``, ``checkpoint.pt`` and TensorBoard's files go.
        seed: of the order of the images and of all randomness in a step.
        budget: seconds after which to stop with a checkpoint; None never stops.
        evaluate: called as ``evaluate(encoder, epoch)`` before the first epoch (0) and after the last one; its figures are logged.
        evaluation_epochs: epochs between further calls of ``evaluate``; 0 is none.
        progress: show a bar.

    Returns:
        True when the training is complete, False when the budget or a signal (``lib.engine.interrupts``) ended it first.

    Raises:
        ValueError: a dataset smaller than a batch, or a damaged checkpoint.
        NonFiniteLoss: the training diverged.
    """
    started = time.monotonic()
    loop = _Loop(learner, dataset, config, Path(folder), seed, started)
    if evaluate is not None and loop.step == 0:
        loop.evaluate(evaluate, 0)
    learner.train()
    title = None if not (progress and loop.processes.main) else loop.folder.name
    bar = tqdm(total=loop.steps, initial=loop.step, desc=title, disable=title is None, mininterval=2, unit="step")
    try:
        for images, sizes, targets in dataset.batches(loop.indices()):
            loop.update(images, sizes, targets)
            bar.update()
            epoch, rest = divmod(loop.step, loop.steps_per_epoch)
            late = loop.late(budget)
            complete = loop.step == loop.steps
            saves = loop.step % config.checkpoint_steps == 0 or complete or late
            if loop.step % config.log_steps == 0 or saves:
                loop.check_finite()
            if loop.step % config.log_steps == 0:
                bar.set_postfix(loss=f"{loop.write_log():.3f}", refresh=False)
            if evaluate is not None and rest == 0 and (complete or (evaluation_epochs > 0 and epoch % evaluation_epochs == 0)):
                loop.evaluate(evaluate, epoch)
            if saves:
                loop.save()
            if late and not complete:
                wait_for_all()
                return False
    finally:
        bar.close()
        loop.log.close()
    wait_for_all()
    return True


def training_steps(dataset: Dataset, config: TrainingConfig) -> tuple[int, int]:
    """(steps an epoch, steps in all); the last, incomplete batch of an epoch is dropped."""
    steps_per_epoch = len(dataset) // config.batch_size
    if steps_per_epoch == 0:
        raise ValueError(f"batch_size: got {config.batch_size}, {config.data} accepts at most {len(dataset)}, its number of images")
    return steps_per_epoch, steps_per_epoch * config.epochs


class _Loop:
    """The state of a training: the step, the optimiser, sums of the losses since the last line of the log, and times."""

    def __init__(self, learner: Learner, dataset: Dataset, config: TrainingConfig, folder: Path, seed: int, started: float):
        self.learner, self.config, self.folder, self.seed, self.started = learner, config, folder, seed, started
        folder.mkdir(parents=True, exist_ok=True)
        self.device = next(learner.parameters()).device
        self.images = len(dataset)
        self.steps_per_epoch, self.steps = training_steps(dataset, config)
        self.processes = Processes(learner, config.batch_size)
        warmup = min(round(config.warmup_epochs * self.steps_per_epoch), self.steps)
        peak = config.lr * config.batch_size / 256
        self.rates = cosine_schedule(peak, config.lr_final, self.steps, warmup_steps=warmup).tolist()
        self.decays = cosine_schedule(config.weight_decay, config.weight_decay_final, self.steps).tolist()
        self.optimizer = learner.make_optimizer()
        self.step, self.seconds = 0, 0.0  # completed steps; seconds of earlier calls
        self.sums: dict[str, Tensor] = {}
        if (folder / CHECKPOINT).is_file():
            state = load_checkpoint(folder, self.device)
            learner.load_state_dict(state["learner"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds, self.sums = state["step"], state["seconds"], state["averages"]
        if config.compile:
            learner.compile_blocks()
        if self.processes.main:
            for partial in folder.glob(f"{CHECKPOINT}.*.partial"):  # of a process that was killed while it wrote
                partial.unlink(missing_ok=True)
        self.log = Log(folder, self.step, enabled=self.processes.main)
        self.parameters = [p for p in learner.parameters() if p.requires_grad]
        self.healthy = torch.ones((), device=self.device)  # NaN or infinite as soon as a loss was
        self._start_clock()

    def _start_clock(self) -> None:
        """Start the measurement of the speed that is logged."""
        self.clock, self.clock_step = time.monotonic(), self.step

    def indices(self) -> Iterator[Tensor]:
        """The numbers of the images in each remaining step, this process's part of each batch."""
        epoch, order = -1, torch.empty(0)
        for step in range(self.step, self.steps):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = epoch_order(self.seed, epoch, self.images)
            start = step % self.steps_per_epoch * self.config.batch_size
            yield self.processes.part(order[start : start + self.config.batch_size])

    def update(self, images: Any, sizes: Tensor, targets: Any) -> None:
        """One step of the training."""
        config, step = self.config, self.step
        generator = seed_step(self.seed, step, self.processes.rank)
        with torch.autocast(self.device.type, torch.bfloat16) if config.precision == "bfloat16" else nullcontext():
            losses = self.processes.learner(images, sizes, targets, step, generator)
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        self.healthy = self.healthy + 0 * losses["loss"].detach()
        self.learner.before_update(step)
        if config.clip > 0:
            clip_each(self.parameters, config.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rates[step] * group.get("lr_scale", 1.0)
            group["weight_decay"] = self.decays[step] if group["decays"] else 0.0
        self.optimizer.step()
        self.learner.after_update(step)
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()
        self.step += 1

    def write_log(self) -> float:
        """Write the mean losses since the last line, and return the mean of ``"loss"``."""
        figures = {name: value.item() / self.config.log_steps for name, value in self.sums.items()}
        speed = self.config.batch_size * (self.step - self.clock_step) / (time.monotonic() - self.clock)
        epoch, rate = self.step / self.steps_per_epoch, self.rates[self.step - 1]
        self.log.write(self.step, epoch=epoch, **figures, lr=rate, images_per_second=round(speed, 1))
        self.sums = {}
        self._start_clock()
        return figures["loss"]

    def evaluate(self, function: Callable[[nn.Module, int], dict], epoch: int) -> None:
        if self.processes.main:
            self.log.write(self.step, epoch=epoch, **function(self.learner.encoder, epoch))
            self.learner.train()
            self._start_clock()

    def late(self, budget: float | None) -> bool:
        """Whether to stop now: the budget is spent or a signal has come. Several processes agree on it."""
        if self.processes.count > 1 and budget is None and self.step % VOTE_STEPS:
            return False
        spent = budget is not None and time.monotonic() - self.started > budget
        return self.processes.any(spent or stop_wanted())

    def save(self) -> None:
        if self.processes.main:
            elapsed = self.seconds + time.monotonic() - self.started
            state = {"learner": self.learner.state_dict(), "optimizer": self.optimizer.state_dict(), "averages": self.sums}
            save_checkpoint(state | {"step": self.step, "seconds": elapsed}, self.folder)

    def check_finite(self) -> None:
        largest = torch.stack(torch._foreach_norm([p.detach() for p in self.parameters], float("inf")))
        if not (torch.isfinite(self.healthy) and torch.isfinite(largest).all()):
            file = self.folder / CHECKPOINT
            last = f"the checkpoint before it is kept in {file}" if file.is_file() else "there was no checkpoint yet"
            place = f"at or shortly before step {self.step}"
            raise NonFiniteLoss(f"the loss or a weight is not finite {place}; {last}. A lower lr or a longer warm-up helps.")
