"""A training in one process, or in several that ``torchrun`` started."""

import os
from datetime import timedelta

import torch
from torch import Tensor, nn


class Processes:
    """A learner in one process or in several; several use accelerate, which is imported only then. The attribute ``learner`` is called in
    place of the learner; ``batch_size``, over all processes, is a multiple of their number.
    """

    def __init__(self, learner: nn.Module, batch_size: int):
        self.learner, self.rank, self.count = learner, 0, int(os.environ.get("WORLD_SIZE", 1))
        if self.count > 1:
            if batch_size % self.count:
                raise ValueError(f"batch_size: got {batch_size}, {self.count} processes accept a multiple of {self.count}")
            from accelerate import Accelerator, DistributedType, InitProcessGroupKwargs

            patience = InitProcessGroupKwargs(timeout=timedelta(hours=6))  # the others wait while the first one evaluates
            cpu = next(learner.parameters()).device.type == "cpu"
            # The recipe alone says the precision and whether to compile, not accelerate's environment variables.
            accelerator = Accelerator(cpu=cpu, mixed_precision="no", dynamo_backend="no", kwargs_handlers=[patience])
            if accelerator.distributed_type not in (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
                raise ValueError(f"ACCELERATE_* variables: got those of {accelerator.distributed_type}, accepts none of them")
            self.learner, self.rank = accelerator.prepare_model(learner), accelerator.process_index

    def any(self, flag: bool) -> bool:
        """Whether the flag is true in any process; all processes have to call this."""
        if self.count == 1:
            return flag
        votes = torch.tensor(float(flag), device=next(self.learner.parameters()).device)
        torch.distributed.all_reduce(votes)
        return votes.item() > 0

    @property
    def main(self) -> bool:
        return self.rank == 0

    def part(self, indices: Tensor) -> Tensor:
        """This process's part of a batch."""
        return indices[self.rank :: self.count]


def first_process() -> bool:
    """Whether this is the only process, or the first of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def wait_for_all() -> None:
    """Wait until all processes are here: torchrun ends all of them as soon as one fails."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def default_device() -> torch.device:
    """This process's GPU, or the CPU where there is none."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else torch.device("cpu")
