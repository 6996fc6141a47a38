"""The one training loop: step, log, checkpoint, resume.

All randomness of step t follows from (seed, t), and that of epoch e's order from (seed, e). A resumed run therefore
continues exactly where it was, on a CPU to the last bit.
"""

import json
import math
import os
import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lib.distillation.schedules import cosine_schedule
from lib.models import Model
from lib.pooling import pooling_names

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Keys that every recipe entry has. There are no defaults: the numbers stand in ``recipes/``."""

    method: str  # a name of lib.train.METHODS
    data: str  # a card in data_cards/
    fraction: float  # of each class's training images
    canvas: int  # pixels a side of the decoded images
    train_size: int  # pixels a side of the images that are trained on; of multi-crop, the global ones
    eval_size: int  # pixels a side of the images that are evaluated
    eval_crop: float  # evaluated part of the image, of its shorter side
    seed: int
    epochs: int
    batch_size: int  # images a step, over all processes
    lr: float  # at a batch of 256; scaled linearly
    lr_final: float  # that the cosine approaches, not scaled
    warmup_epochs: float
    weight_decay: float  # of matrices, at the start
    weight_decay_final: float  # that the cosine approaches
    clip: float  # bound of each parameter's gradient norm; 0 is none
    precision: str  # float32, or bfloat16 for autocast where the device profits
    compile: bool  # torch.compile
    arch: str  # a name that lib.models.create_model accepts
    patch_size: int  # pixels; of Vision Transformers
    drop_path: float  # probability, at the last block
    pooling: str  # a name of lib.pooling.pooling_names(); none is the network's own
    gamma: float  # of SimPool
    knn_epochs: int  # epochs between k-NN evaluations; 0 is at the end only
    knn_k: list[int]  # neighbours
    checkpoint_steps: int  # steps between checkpoints
    log_steps: int  # steps between lines of the log

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            accepted = {float: (int, float), int: (int,), bool: (bool,), str: (str,)}.get(field.type, (list,))
            if not isinstance(value, accepted) or (isinstance(value, bool) and field.type is not bool):
                name = getattr(field.type, "__name__", str(field.type)) if not str(field.type).startswith("list") else str(field.type)
                raise ValueError(f"{field.name}: got {value!r}, accepts {name}")
        if not self.knn_k or any(not isinstance(k, int) or k < 1 for k in self.knn_k):
            raise ValueError(f"knn_k: got {self.knn_k!r}, accepts a list of counts, at least one")
        if self.epochs < 1 or self.batch_size < 1 or self.log_steps < 1 or self.checkpoint_steps < 1:
            raise ValueError("epochs, batch_size, log_steps, checkpoint_steps: accept 1 or more")
        if self.pooling != "none" and self.pooling not in pooling_names():
            raise ValueError(f"pooling: got {self.pooling!r}, accepts none, {', '.join(pooling_names())}")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision: got {self.precision!r}, accepts float32, bfloat16")


class Learner(nn.Module):
    """What ``train`` trains: called as ``learner(images, sizes, labels, step, generator)`` on a batch (uint8[B, 3, S, S],
    Int[B, 2], Long[B]) it returns a dict of scalars, of which ``"loss"`` is descended and all are logged.
    """

    encoder: nn.Module  # the network to evaluate and to keep
    answers: bool = False  # whether among the scalars are ``"right"`` and ``"guess"``: parts of the questions that it asks of the
    # images, in [0, 1], answered right by the network, and by the best constant answer

    def make_optimizer(self) -> torch.optim.Optimizer:
        """With parameter groups that say under ``"decays"`` whether weight decay applies to them, and may say under ``"lr_scale"`` what
        part of the learning rate does.
        """
        return make_optimizer(self)

    def before_update(self, step: int) -> None:
        """Called between the backward pass and the optimiser's step."""

    def after_update(self, step: int) -> None:
        """Called after the optimiser's step."""

    def compile_blocks(self) -> None:
        """Compile transformer blocks one at a time, which is quick and leaves shapes free; other networks whole."""
        for network in list(self.modules()):
            if isinstance(network, Model):
                for part in network.blocks[:-1] if hasattr(network, "blocks") else [network]:  # the last block gives its attention
                    part.compile()


class NonFiniteLoss(RuntimeError):
    """The loss became infinite or NaN; the last good checkpoint is kept."""


def train(
    learner: Learner,
    source,
    config: TrainingConfig,
    folder: str | Path,
    *,
    budget: float | None = None,
    evaluate: Callable[[nn.Module, int], dict] | None = None,
    progress: bool = True,
) -> bool:
    """Train ``learner`` on ``source`` and leave log and checkpoints in ``folder``; a folder with a checkpoint is resumed.

    Args:
        learner: what is trained, on its device.
        source: a ``lib.data.Bank`` or ``Stream``.
        config: the recipe.
        folder: where ``log.jsonl``, ``checkpoint.pt`` and TensorBoard's files go.
        budget: seconds after which to stop with a checkpoint; None never stops.
        evaluate: called with the encoder and the number of finished epochs, before the training and after every
            ``knn_epochs`` epochs; returns figures to log.
        progress: show a bar.

    Returns:
        Whether the training is finished.

    Raises:
        NonFiniteLoss: with the step and the checkpoint to go back to.
        ValueError: a damaged checkpoint, named.
    """
    started = time.monotonic()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    device = next(learner.parameters()).device
    steps_per_epoch, steps = training_steps(source, config)
    trainer = _Processes(learner, config)
    peak = config.lr * config.batch_size / 256
    warmup = min(round(config.warmup_epochs * steps_per_epoch), steps)
    rates = cosine_schedule(peak, config.lr_final, steps, warmup_steps=warmup).tolist()
    decays = cosine_schedule(config.weight_decay, config.weight_decay_final, steps).tolist()
    optimizer = learner.make_optimizer()
    step, seconds, averages = _resume(folder / CHECKPOINT, learner, optimizer, device)
    if config.compile:
        learner.compile_blocks()
    for stale in folder.glob("checkpoint.*.partial") if trainer.main else ():
        stale.unlink(missing_ok=True)  # of a process that was killed while it wrote
    log = _Log(folder, step, enabled=trainer.main)
    if step == 0 and evaluate is not None and trainer.main:
        log.write(step, epoch=0, **evaluate(learner.encoder, 0))

    parameters = [p for p in learner.parameters() if p.requires_grad]
    healthy = torch.ones((), device=device)  # NaN or infinite once any loss since the last check was
    batches = source.batches(_indices(source, config, step, steps, trainer))
    autocast = torch.autocast(device.type, torch.bfloat16) if config.precision == "bfloat16" else nullcontext()
    bar = tqdm(total=steps, initial=step, desc=folder.name, disable=not (progress and trainer.main), mininterval=2, unit="step")
    learner.train()
    clock, clocked = time.monotonic(), step  # of the speed that is logged
    try:
        for images, sizes, labels in batches:
            generator = seed_step(config.seed, step, trainer.rank)
            with autocast:
                losses = trainer.learner(images, sizes, labels, step, generator)
            optimizer.zero_grad(set_to_none=True)
            losses["loss"].backward()
            healthy = healthy + 0 * losses["loss"].detach()
            learner.before_update(step)
            if config.clip > 0:
                clip_each(parameters, config.clip)
            for group in optimizer.param_groups:
                group["lr"] = rates[step] * group.get("lr_scale", 1.0)
                group["weight_decay"] = decays[step] if group["decays"] else 0.0
            optimizer.step()
            learner.after_update(step)
            for name, value in losses.items():
                averages[name] = averages.get(name, 0) + value.detach()
            step += 1
            bar.update()

            epoch, rest = divmod(step, steps_per_epoch)
            evaluates = rest == 0 and (step == steps or config.knn_epochs > 0 and epoch % config.knn_epochs == 0)
            late = budget is not None and trainer.any(time.monotonic() - started > budget)
            saves = step % config.checkpoint_steps == 0 or step == steps or late
            if step % config.log_steps == 0 or saves:
                _check_finite(healthy, parameters, step, folder / CHECKPOINT)
            if step % config.log_steps == 0:
                figures = {name: value.item() / config.log_steps for name, value in averages.items()}
                speed = config.batch_size * (step - clocked) / (time.monotonic() - clock)
                log.write(step, epoch=step / steps_per_epoch, **figures, lr=rates[step - 1], images_per_second=round(speed, 1))
                bar.set_postfix(loss=f"{figures['loss']:.3f}", refresh=False)
                averages, clock, clocked = {}, time.monotonic(), step
            if evaluates and evaluate is not None and trainer.main:
                log.write(step, epoch=epoch, **evaluate(learner.encoder, epoch))
                learner.train()
                clock, clocked = time.monotonic(), step
            if saves and trainer.main:
                elapsed = seconds + time.monotonic() - started
                state = {"learner": learner.state_dict(), "optimizer": optimizer.state_dict(), "averages": averages}
                save_atomically(state | {"step": step, "seconds": elapsed}, folder / CHECKPOINT)
            if late and step < steps:
                wait_for_all()
                return False
    finally:
        bar.close()
        log.close()
    wait_for_all()
    return True


def wait_for_all() -> None:
    """Let several processes go on together: torchrun ends them all as soon as one has ended otherwise than well."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def training_steps(source, config: TrainingConfig) -> tuple[int, int]:
    """(steps an epoch, steps in all); the last, incomplete batch of an epoch is dropped."""
    steps_per_epoch = len(source) // config.batch_size
    if steps_per_epoch == 0:
        raise ValueError(f"batch_size: got {config.batch_size}, {config.data} accepts at most {len(source)}, its number of images")
    return steps_per_epoch, steps_per_epoch * config.epochs


@contextmanager
def seeded(seed: int):
    """Torch's global generator starts from a seed within, and goes on outside as if nothing had been."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def seed_step(seed: int, step: int, rank: int = 0) -> torch.Generator:
    """A CPU generator for one step; also seeds the global ones, from which dropout and drop-path draw."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) * 1009 + rank)
    torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
    return generator


def make_optimizer(learner: nn.Module, name: str = "adamw") -> torch.optim.Optimizer:
    """AdamW or SGD (momentum 0.9) with weight decay on matrices only; rates and decays are set at every step."""
    trainable = [p for p in learner.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "decays": True},
        {"params": [p for p in trainable if p.ndim <= 1], "decays": False},
    ]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=0.9, nesterov=True, fused=True)
    return torch.optim.AdamW(groups, fused=True)


def clip_each(parameters: list[Tensor], limit: float) -> None:
    """Bound the norm of each parameter's gradient on its own (DINO, iBOT), in place."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch._foreach_norm(gradients)
    torch._foreach_add_(norms, 1e-6)
    factors = torch._foreach_reciprocal(norms)
    torch._foreach_mul_(factors, limit)
    torch._foreach_clamp_max_(factors, 1.0)
    torch._foreach_mul_(gradients, factors)


def save_atomically(state: dict, file: Path) -> None:
    """Write beside the old file and then take its place, so that a kill at any moment leaves one whole file."""
    partial = file.with_suffix(f".{os.getpid()}.partial")
    with open(partial, "wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, file)


def load_checkpoint(file: Path, device="cpu") -> dict:
    """Read a checkpoint without executing pickled code.

    Raises:
        ValueError: a damaged file, named.
    """
    try:
        return torch.load(file, map_location=device, weights_only=True)
    except Exception as error:
        raise ValueError(f"{file}: damaged checkpoint ({type(error).__name__}: {error}); delete it to start this run anew") from error


def read_log(folder: str | Path) -> list[dict]:
    """The lines of a run's ``log.jsonl``; a last line that was cut off is left out."""
    file = Path(folder) / LOG
    lines = []
    for line in file.read_text().splitlines() if file.is_file() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def _resume(file: Path, learner: nn.Module, optimizer, device) -> tuple[int, float, dict[str, Tensor]]:
    """(steps done, seconds spent, sums of the losses since the last line of the log)"""
    if not file.is_file():
        return 0, 0.0, {}
    state = load_checkpoint(file, device)
    learner.load_state_dict(state["learner"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["seconds"], state["averages"]


def _check_finite(healthy: Tensor, parameters: list[Tensor], step: int, checkpoint: Path) -> None:
    largest = torch.stack(torch._foreach_norm([p.detach() for p in parameters], float("inf")))
    if not (torch.isfinite(healthy) and torch.isfinite(largest).all()):
        kept = f"the checkpoint before it is kept in {checkpoint}" if checkpoint.is_file() else "there was no checkpoint yet"
        raise NonFiniteLoss(
            f"the loss or a weight is not finite at or shortly before step {step}; {kept}. A lower lr or a longer warm-up helps."
        )


def _indices(source, config: TrainingConfig, step: int, steps: int, trainer: "_Processes"):
    """Index tensors of the remaining steps; this process's part of each batch."""
    steps_per_epoch, _ = training_steps(source, config)
    epoch, order = -1, None
    for current in range(step, steps):
        if current // steps_per_epoch != epoch:
            epoch = current // steps_per_epoch
            order = torch.randperm(len(source), generator=torch.Generator().manual_seed(config.seed * 7919 + epoch))
        start = current % steps_per_epoch * config.batch_size
        yield trainer.part(order[start : start + config.batch_size])


class _Processes:
    """One process, or the several that ``torchrun`` started (by accelerate, imported only then)."""

    def __init__(self, learner: nn.Module, config: TrainingConfig):
        self.learner, self.rank, self.count = learner, 0, int(os.environ.get("WORLD_SIZE", 1))
        if self.count > 1:
            if config.batch_size % self.count:
                raise ValueError(f"batch_size: got {config.batch_size}, {self.count} processes accept a multiple of {self.count}")
            from accelerate import Accelerator, InitProcessGroupKwargs

            # The others wait while the first one evaluates.
            patience = InitProcessGroupKwargs(timeout=timedelta(hours=6))
            accelerator = Accelerator(cpu=next(learner.parameters()).device.type == "cpu", kwargs_handlers=[patience])
            self.learner, self.rank = accelerator.prepare_model(learner), accelerator.process_index

    def any(self, flag: bool) -> bool:
        """Whether any process says so; all processes have to ask."""
        if self.count == 1:
            return flag
        votes = torch.tensor(float(flag), device=next(self.learner.parameters()).device)
        torch.distributed.all_reduce(votes)
        return votes.item() > 0

    @property
    def main(self) -> bool:
        return self.rank == 0

    def part(self, indices: Tensor) -> Tensor:
        return indices[self.rank :: self.count]


class _Log:
    """JSON lines, and TensorBoard where it is installed. On resuming, lines after the checkpoint are dropped."""

    def __init__(self, folder: Path, step: int, *, enabled: bool):
        self.file = self.board = None
        if not enabled:
            return
        kept = [line for line in read_log(folder) if line["step"] <= step] if step else []
        partial = folder / f"{LOG}.partial"
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(partial, folder / LOG)
        self.file = open(folder / LOG, "a")
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step)
        except ImportError:  # a compute node without it
            pass

    def write(self, step: int, **figures) -> None:
        if self.file is None:
            return
        self.file.write(json.dumps({"step": step, **figures}) + "\n")
        self.file.flush()
        for name, value in figures.items() if self.board else ():
            if isinstance(value, (int, float)) and math.isfinite(value):
                self.board.add_scalar(name, value, step)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
        if self.board is not None:
            self.board.close()
