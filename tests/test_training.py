"""The loop: resuming to the last bit, logs, budgets, damage, several processes, the command line."""

import importlib
import json
import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lib import paths, recipes
from lib.data import Bank
from lib.distillation.methods import IBOT, DistillationConfig
from lib.engine.checkpoint import CHECKPOINT, load_checkpoint
from lib.engine.log import LOG, read_log
from lib.engine.loop import NonFiniteLoss, train, training_steps
from lib.engine.seeds import seed_step
from lib.learning.base import Learner
from lib.learning.optimizers import clip_each, make_optimizer
from lib.results.runs import Run
from lib.train import configure, find_run, load_encoder, main, run, untrained_encoder

ENTRY = "smoke/ibot_brief"
TINY = dict(
    fraction=0.02, epochs=2, batch_size=8, canvas=32, eval_size=16, train_size=16, local_size=8, local_crops=1, patch_size=8,
    out_dim=32, hidden_dim=32, bottleneck_dim=16, knn_epochs=1, knn_k=[1], checkpoint_steps=2, log_steps=3,
)  # fmt: skip


def command(**more) -> list[str]:
    return [ENTRY, *shlex.split(recipes.words(TINY | more)), "--device=cpu"]


COMMAND = command()


def forked(function, **environment) -> int:
    """The id of a child process that calls ``function`` and exits with what it returns."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ.update(environment)
        code = function() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int, seconds: float = 300) -> int | None:
    """A child's exit code; None, and its end, when it takes longer."""
    late = time.monotonic() + seconds
    while time.monotonic() < late:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def tiny(**more) -> Run:
    return run(ENTRY, device="cpu", progress=False, **(TINY | more))


def assert_same_run(found: Run, reference: Run) -> None:
    """Weights, optimiser, log and figures agree to the last bit."""
    ours, theirs = load_file(found.folder / "encoder.safetensors"), load_file(reference.folder / "encoder.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    ours, theirs = (load_checkpoint(r.folder) for r in (found, reference))
    assert ours["step"] == theirs["step"] == 10
    assert all(torch.equal(ours["learner"][name], value) for name, value in theirs["learner"].items())
    for index, state in theirs["optimizer"]["state"].items():
        assert all(torch.equal(ours["optimizer"]["state"][index][name], value) for name, value in state.items())
    assert without_speed(found.folder) == without_speed(reference.folder)
    assert found.metrics == reference.metrics


def without_speed(folder) -> list[dict]:
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in read_log(folder)]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """An uninterrupted tiny run and the seconds that it took."""
    importlib.import_module("torch.utils.tensorboard")  # here, so that children need not

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPANION_RUNS", str(tmp_path_factory.mktemp("reference")))
        started = time.monotonic()
        found = tiny()
        seconds = time.monotonic() - started
        fixed = Fixed(found.entry, found.experiment, found.config)
        object.__setattr__(fixed, "place", found.folder)
        yield fixed, seconds


class Fixed(Run):
    """A run that stays where it was made."""

    @property
    def folder(self):
        return self.place


# ---- resuming ---------------------------------------------------------------------------------------------------------


def test_a_run_killed_at_any_moment_ends_as_if_it_had_not_been(reference, tmp_path):
    whole, seconds = reference
    generator = random.Random(0)
    kills = 0
    for number in range(10):
        pid = forked(lambda: not tiny().finished)
        time.sleep(generator.uniform(0.02, 0.12 + 0.04 * number) * seconds)
        os.kill(pid, signal.SIGKILL)
        kills += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        steps = [line["step"] for line in read_log(find_run(ENTRY, **TINY).folder)]
        assert steps == sorted(set(steps))
    assert kills >= 5
    found = tiny()
    assert found.finished and found.folder != whole.folder
    assert_same_run(found, whole)
    assert not list(found.folder.glob("*.partial"))


@pytest.mark.parametrize("checkpoint_steps", [1, 3])
def test_stopping_at_every_step_changes_nothing(reference, checkpoint_steps):
    whole, _ = reference
    rounds = 0
    while not (found := tiny(checkpoint_steps=checkpoint_steps, budget=0.0)).finished:
        rounds += 1
        assert rounds < 12 and load_checkpoint(found.folder)["step"] == rounds
    assert rounds == 9
    assert_same_run(found, whole)


def test_a_log_cut_off_in_a_line_is_continued(reference):
    whole, _ = reference
    found = tiny(budget=0.0)
    file = found.folder / LOG
    file.write_text(file.read_text() + '{"step": 2, "loss": 1.0}\n{"step": 3, "lo')
    assert_same_run(tiny(), whole)


def test_a_finished_run_is_loaded_and_not_trained(reference, monkeypatch):
    found = tiny(budget=0.0)
    assert not found.finished and not (found.folder / "encoder.safetensors").exists()
    found = tiny()
    monkeypatch.setattr("lib.train.train", None)
    monkeypatch.setattr("lib.train.bank", None)
    assert tiny().metrics == found.metrics
    with torch.no_grad():
        trained, start = load_encoder(found), untrained_encoder(found)
        images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        assert not torch.allclose(trained.features(images).cls, start.features(images).cls)
    again = untrained_encoder(found)
    assert all(torch.equal(a, b) for a, b in zip(start.parameters(), again.parameters()))


def test_a_run_says_what_it_did(reference):
    whole, _ = reference
    result = json.loads((whole.folder / "result.json").read_text())
    assert result["entry"] == ENTRY and result["key"] == whole.key and result["config"]["out_dim"] == 32
    assert set(result["data"]) == {"train", "validation"} and result["seconds"] > 0
    assert {"torch", "torchvision", "timm", "numpy"} <= set(result["versions"]) and result["device"].startswith("CPU")
    assert {"knn", "knn_1", "untrained_knn", "knn_curve"} <= set(result["metrics"])
    assert [epoch for epoch, _ in result["metrics"]["knn_curve"]] == [0, 1, 2]
    lines = read_log(whole.folder)
    assert [line["step"] for line in lines if "loss" in line] == [3, 6, 9]
    assert [(line["step"], line["epoch"]) for line in lines if "knn" in line] == [(0, 0), (5, 1), (10, 2)]
    assert list((whole.folder / "tensorboard").iterdir())


# ---- a learner of which everything is known ---------------------------------------------------------------------------


class Toy(Learner):
    """Fits a linear function of the mean colour; ``spoil(step, loss)`` may change a loss."""

    def __init__(self, spoil=lambda step, loss: loss):
        super().__init__()
        self.encoder = nn.Linear(3, 4)
        nn.init.constant_(self.encoder.weight, 0.1)
        nn.init.zeros_(self.encoder.bias)
        self.spoil = spoil

    def forward(self, images, sizes, labels, step, generator):
        error = self.encoder(images.float().mean((2, 3)) / 255).mean(1) - labels
        loss = self.spoil(step, error.square().mean())
        return {"loss": loss, "number": torch.tensor(float(step))}


def colours(count: int = 24) -> Bank:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 4, 4), dtype=torch.uint8, generator=generator)
    return Bank(images, torch.full((count, 2), 4), torch.arange(count) % 3, "toy")


def settings(**overrides):
    return configure(recipes.entry(ENTRY), TINY | dict(batch_size=4, log_steps=4, checkpoint_steps=2) | overrides)


def train_toy(folder, learner=None, source=None, budget=None, **overrides) -> bool:
    config = settings(**overrides)
    return train(learner or Toy(), source or colours(), config, folder, seed=config.seed, budget=budget, progress=False)


def test_the_log_holds_means_over_its_interval_also_when_resumed(tmp_path):
    assert train_toy(tmp_path / "whole", epochs=2)  # 12 steps
    lines = read_log(tmp_path / "whole")
    assert [(line["step"], line["number"]) for line in lines] == [(4, 1.5), (8, 5.5), (12, 9.5)]
    assert [line["epoch"] for line in lines] == pytest.approx([4 / 6, 8 / 6, 2])
    while not train_toy(tmp_path / "halting", epochs=2, budget=0.0):
        pass
    assert without_speed(tmp_path / "halting") == without_speed(tmp_path / "whole")


def test_the_rate_warms_up_and_the_decay_rises(tmp_path):
    train_toy(tmp_path, epochs=4, log_steps=1, lr=0.064, lr_final=0.0, warmup_epochs=1.0)
    rates = [line["lr"] for line in read_log(tmp_path)]
    assert rates[:6] == pytest.approx([0.001 * i / 5 for i in range(6)])  # 0.064 at 256 images is 0.001 at 4
    assert rates[6] == pytest.approx(0.001) and rates[15] == pytest.approx(0.0005) and rates[-1] < 1e-5
    group = load_checkpoint(tmp_path)["optimizer"]["param_groups"]
    assert group[0]["weight_decay"] == pytest.approx(0.4, abs=5e-3) and group[1]["weight_decay"] == 0


def test_every_image_is_seen_once_an_epoch_in_an_order_of_its_own(tmp_path):
    seen = []

    class Watching(Toy):
        def forward(self, images, sizes, labels, step, generator):
            seen.append(images[:, 0, 0, 0].tolist())
            return super().forward(images, sizes, labels, step, generator)

    source = colours(26)
    source.images[:, 0, 0, 0] = torch.arange(26).byte()
    train_toy(tmp_path, Watching(), source, epochs=2)
    first, second = sum(seen[:6], []), sum(seen[6:], [])
    assert len(seen) == 12 and len(set(first)) == len(set(second)) == 24 and first != second  # the last two are left over


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path, value):
    with pytest.raises(NonFiniteLoss, match=rf"step 6; the checkpoint before it is kept in {tmp_path / CHECKPOINT}.* lower lr"):
        train_toy(tmp_path, Toy(lambda step, loss: loss * value if step == 4 else loss))
    state = load_checkpoint(tmp_path)
    assert state["step"] == 4 and all(tensor.isfinite().all() for tensor in state["learner"].values())
    assert train_toy(tmp_path)  # and from there it goes on
    train_toy(tmp_path / "healthy")
    healthy = load_checkpoint(tmp_path / "healthy")["learner"]
    assert all(torch.equal(a, b) for a, b in zip(load_checkpoint(tmp_path)["learner"].values(), healthy.values()))


def test_a_finite_loss_with_an_infinite_gradient_does_not_spoil_the_checkpoint(tmp_path):
    """The slope of a root is infinite at 0, while its value is 0."""
    with pytest.raises(NonFiniteLoss):
        train_toy(tmp_path, Toy(lambda step, loss: (loss * 0).sqrt() if step == 3 else loss))
    state = load_checkpoint(tmp_path)
    assert state["step"] == 2 and all(tensor.isfinite().all() for tensor in state["learner"].values())


def test_no_checkpoint_yet_is_said(tmp_path):
    with pytest.raises(NonFiniteLoss, match="there was no checkpoint yet"):
        train_toy(tmp_path, Toy(lambda step, loss: loss * float("nan")))


def test_a_damaged_checkpoint_is_named(tmp_path):
    assert not train_toy(tmp_path, budget=0.0)
    file = tmp_path / CHECKPOINT
    good = file.read_bytes()
    for data in (good[: len(good) // 2], b"", b"nothing"):
        file.write_bytes(data)
        with pytest.raises(ValueError, match=rf"{re.escape(str(file))}: damaged checkpoint"):
            train_toy(tmp_path)
    file.write_bytes(good)
    assert train_toy(tmp_path)


def test_a_batch_larger_than_the_data_is_refused(tmp_path):
    with pytest.raises(ValueError, match="batch_size: got 25, scenes accepts at most 24"):
        train_toy(tmp_path, batch_size=25)
    assert training_steps(colours(), settings(batch_size=24, epochs=3)) == (1, 3)
    assert training_steps(colours(), settings(batch_size=5, epochs=3)) == (4, 12)


def test_a_step_has_random_numbers_of_its_own():
    numbers = set()
    for seed in range(3):
        for step in (0, 1, 2, 1009, 600_000):
            for rank in (0, 1):
                numbers.add(torch.rand((), generator=seed_step(seed, step, rank)).item())
                numbers.add(torch.rand(()).item())  # of the global generator
    assert len(numbers) == 2 * 3 * 5 * 2
    first = torch.rand(3, generator=seed_step(1, 2))
    assert torch.equal(first, torch.rand(3, generator=seed_step(1, 2)))


def test_gradients_are_clipped_one_parameter_at_a_time():
    a, b, c, d = (nn.Parameter(torch.zeros(n)) for n in (2, 2, 1, 1))
    a.grad, b.grad, c.grad = torch.tensor([30.0, 40.0]), torch.tensor([0.3, 0.4]), torch.tensor([0.0])
    clip_each([a, b, c, d], 3.0)
    torch.testing.assert_close(a.grad, torch.tensor([1.8, 2.4]))
    assert b.grad.tolist() == pytest.approx([0.3, 0.4]) and c.grad.tolist() == [0.0] and d.grad is None


def test_only_matrices_decay():
    learner = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))
    learner[2].weight.requires_grad_(False)
    optimizer = make_optimizer(learner)
    assert [[p.shape for p in group["params"]] for group in optimizer.param_groups] == [[(4, 3)], [(4,), (4,), (4,)]]
    nn.init.ones_(learner[0].bias)
    before = [p.clone() for p in learner.parameters()]
    for p in learner.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    for group in optimizer.param_groups:
        group |= {"lr": 0.1, "weight_decay": 0.5 if group["decays"] else 0.0}
    optimizer.step()
    torch.testing.assert_close(learner[0].weight, 0.95 * before[0])
    assert all(torch.equal(p, q) for p, q in zip(list(learner.parameters())[1:], before[1:]))


def test_the_student_is_trained_and_the_teacher_follows():
    config = settings(drop_path=0.0, masking="block", momentum=0.99)
    torch.manual_seed(0)
    learner = IBOT(config, 10)
    trained = {name.partition(".")[0] for name, p in learner.named_parameters() if p.requires_grad}
    assert trained == {"student", "student_head"} and isinstance(config, DistillationConfig)
    teacher = learner.teacher.blocks[0].mlp.fc1.weight.clone()
    with torch.no_grad():
        learner.student.blocks[0].mlp.fc1.weight.add_(1.0)
    learner.after_update(0)
    torch.testing.assert_close(learner.teacher.blocks[0].mlp.fc1.weight, teacher + 0.01)  # momentum 0.99 at the first step


# ---- several processes ------------------------------------------------------------------------------------------------


def together(function, count: int = 2, seconds: float = 300) -> list[int | None]:
    """Exit codes of ``count`` processes that call ``function(rank)`` as under torchrun."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    shared = dict(
        WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true"
    )
    pids = [forked(lambda r=rank: function(r), RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in range(count)]
    return [wait(pid, seconds) for pid in pids]


def test_two_processes_learn_what_one_does(tmp_path):
    """Each has half of every batch, and gradients are means, so a learner without randomness ends at the same weights."""
    assert train_toy(tmp_path / "one")
    assert together(lambda rank: not train_toy(tmp_path / "two")) == [0, 0]
    one, two = (load_checkpoint(tmp_path / name)["learner"] for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-5, rtol=0)
    assert [line["step"] for line in read_log(tmp_path / "two")] == [4, 8, 12]


def test_the_precision_of_several_processes_comes_from_the_recipe_alone(tmp_path, monkeypatch):
    assert together(lambda rank: not train_toy(tmp_path / "plain")) == [0, 0]
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "inductor")
    assert together(lambda rank: not train_toy(tmp_path / "meddled")) == [0, 0]
    plain, meddled = (load_checkpoint(tmp_path / name)["learner"] for name in ("plain", "meddled"))
    assert plain.keys() == meddled.keys() and all(torch.equal(plain[name], meddled[name]) for name in plain)


def test_processes_stop_together_at_the_budget(tmp_path):
    """Clocks differ, so one process has to decide for all."""
    codes = together(lambda rank: 7 if not train_toy(tmp_path, budget=(0.0, 1000.0)[rank]) else 0)
    assert codes == [7, 7]
    assert load_checkpoint(tmp_path)["step"] == 1


def test_a_batch_has_to_divide_among_processes(tmp_path):
    def refused(rank):
        with pytest.raises(ValueError, match="batch_size: got 3, 2 processes accept a multiple of 2"):
            train_toy(tmp_path, batch_size=3)

    assert together(refused) == [0, 0]


def test_the_command_trains_one_run_in_two_processes():
    """torchrun ends all processes as soon as one of them reports a failure, so each has to end with 0."""
    assert together(lambda rank: main(COMMAND)) == [0, 0]
    found = find_run(ENTRY, **TINY)
    assert found.finished and set(found.encoder_weights())
    assert [line["step"] for line in read_log(found.folder)] == [0, 3, 5, 6, 9, 10]


def test_what_is_computed_over_all_processes_does_not_wait_for_those_that_do_not_evaluate():
    assert together(lambda rank: main([*COMMAND, "centering=sinkhorn", "head_norm=batch"])) == [0, 0]
    metrics = find_run(ENTRY, **TINY, centering="sinkhorn", head_norm="batch").metrics
    assert "knn" in metrics and "fill_block" not in metrics


def test_processes_that_ask_for_a_run_at_once_train_it_once(reference):
    """As notebooks do that share a run; the second waits for the first and loads what it made."""
    pids = [forked(lambda: not tiny().finished) for _ in range(3)]
    assert [wait(pid) for pid in pids] == [0, 0, 0]
    found = find_run(ENTRY, **TINY)
    assert len(list((found.folder / "tensorboard").iterdir())) == 1  # a file a training
    assert_same_run(found, reference[0])


# ---- the command ------------------------------------------------------------------------------------------------------


def test_the_budget_leaves_a_run_that_the_same_command_continues(reference, capsys):
    assert main([*COMMAND, "--budget", "0"]) == 3
    assert "stopped early; the same command continues" in capsys.readouterr().out
    assert main(COMMAND) == 0
    assert "k-NN" in capsys.readouterr().out
    assert_same_run(find_run(ENTRY, **TINY), reference[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_command_as_a_spent_budget_does(reference, number, capsys, monkeypatch):
    step = IBOT.after_update

    def signalled(learner, at):
        step(learner, at)
        if at == 4:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), signal.SIGTERM)  # handed on by torchrun

    former = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(IBOT, "after_update", signalled)
        assert main(COMMAND) == 3
    shown = capsys.readouterr()
    assert "stopped early; the same command continues" in shown.out and "stopping after this step; once more ends at once" in shown.err
    assert load_checkpoint(find_run(ENTRY, **TINY).folder)["step"] == 5 and signal.getsignal(number) is former
    assert main(COMMAND) == 0
    assert_same_run(find_run(ENTRY, **TINY), reference[0])


def test_a_later_signal_ends_a_command_at_once(monkeypatch):
    monkeypatch.setattr("lib.engine.interrupts.ECHO", 0.0)
    step = IBOT.after_update

    def signalled(learner, at):
        step(learner, at)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(IBOT, "after_update", signalled)
    with pytest.raises(KeyboardInterrupt):
        main(COMMAND)


def test_a_store_that_cannot_be_written_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COMPANION_RUNS", str(tmp_path / "file"))
    assert main(COMMAND) == 1
    assert f"error: {tmp_path / 'file'}" in (shown := capsys.readouterr().err) and "COMPANION_RUNS names another folder" in shown


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["smoke/nothing"], r"entry: got 'smoke/nothing', accepts .*smoke/ibot_brief"),
        (["ibot"], "entry: got 'ibot', accepts "),
        (["smoke/ibot", "learning_rate=1"], r"learning_rate: unknown key .* accepts .*\blr\b"),
        (["smoke/ibot", "lr=fast"], "lr: got 'fast', accepts a number"),
        (["smoke/ibot", "lr="], "lr: got None, accepts a number"),
        (["smoke/ibot", "lr=["], "lr: .*"),
        (["smoke/ibot", "epochs=1.5"], "epochs: got 1.5, accepts an integer"),
        (["smoke/ibot", "epochs=0"], "epochs.* 1 or more"),
        (["smoke/ibot", "compile=1"], "compile: got 1, accepts true or false"),
        (["smoke/ibot", "seed=true"], "seed: got True, accepts an integer"),
        (["smoke/ibot", "data=7"], "data: got 7, accepts a word"),
        (["smoke/ibot", "mask_ratio=0.3"], "mask_ratio: got 0.3, accepts a list"),
        (["smoke/ibot", "mask_ratio=[a, b]"], "mask_ratio: got .*a"),
        (["smoke/ibot", "mask_ratio=[null, 1]"], "mask_ratio: got .*None"),
        (["smoke/ibot", "knn_k=[many]"], "knn_k: got .*many"),
        (["smoke/ibot", "knn_k=[]"], "knn_k: got "),
        (["smoke/ibot", "masking=all"], "masking: got 'all', method ibot accepts .*block"),
        (["smoke/ibot", "method=mae"], r"method: got 'mae', accepts (?=.*\bdino\b)(?=.*\bmst\b)(?=.*\bibot\b)(?=.*\bsupervised\b)"),
        (["smoke/ibot", "method=[ibot]"], "method: got .*ibot"),
        (["smoke/ibot", "precision=half"], "precision: got 'half', accepts float32, bfloat16"),
        (["smoke/ibot", "data=unknown"], "name: got 'unknown', accepts .*scenes"),
        (["smoke/ibot", "seed"], "override: got 'seed', accepts key=value"),
        (["smoke/ibot", "--device=cpu", "rate=1"], "rate: unknown key"),
    ],
)
def test_mistakes_on_the_command_line_are_named(arguments, message, capsys):
    assert main(arguments) == 1
    assert re.search(f"^error: {message}", capsys.readouterr().err)
    assert not list(paths.runs_folder().glob("*/*/checkpoint.pt"))


def test_help_and_the_list_of_entries(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(word in text for word in ("ENTRY", "key=value", "--budget", "torchrun"))
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == recipes.names() and all(len(line.split()) > 3 for line in lines)


def test_training_needs_few_packages(tmp_path):
    """A compute node without notebooks, grids and figures."""
    blocked = (
        "datasets accelerate ray papermill seaborn matplotlib IPython scipy tensorboard jupytext torchmetrics faster_coco_eval".split()
    )
    script = tmp_path / "without.py"
    script.write_text(
        f"""
import importlib.abc, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(name + " is not installed")

sys.meta_path.insert(0, Blocked())
import lib.evidence
from lib.train import main

code = main({command(fraction=0.008, epochs=1, log_steps=1)!r})
mine = "torch torchvision timm numpy pandas pyarrow PIL yaml safetensors tqdm filelock".split()
print("loaded", [name for name in {blocked!r} if name in sys.modules], [name for name in mine if name not in sys.modules])
sys.exit(code)
"""
    )
    environment = os.environ | {"PYTHONPATH": str(paths.ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "loaded [] " in done.stdout
    (log,) = (tmp_path / "runs").rglob(LOG)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines() if "loss" in line] == [1, 2]
    assert Path(log.parent / "encoder.safetensors").is_file()
