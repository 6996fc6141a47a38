"""Fine-tuning: rates of layers, evaluation, resuming; and every pre-training through every downstream task."""

import copy
from functools import cache

import pytest
import torch

from lib import recipes
from lib.data import Bank, scenes
from lib.data.bank import bank
from lib.engine.checkpoint import load_checkpoint
from lib.engine.log import read_log
from lib.engine.loop import train
from lib.evaluation.base import Context, Inputs, Origin, evaluation_class, evaluation_names
from lib.evaluation.features import accuracy, features_and_logits
from lib.evaluation.finetune import FineTune, FineTuneSettings, FineTuning
from lib.evaluation.finetuned import CLASSIFIERS, FineTunedEvaluation, starting_from
from lib.learning.optimizers import layerwise_optimizer
from lib.measure import measure
from lib.models import create_model
from lib.train import load_encoder, method_names, run, untrained_encoder

TINY = dict(
    fraction=0.016, epochs=1, batch_size=8, canvas=32, train_size=16, eval_size=16, knn_epochs=0, knn_k=[1], checkpoint_steps=9, log_steps=1,
)  # fmt: skip
SMALL = dict(epochs=1, canvas=32, train_size=32, eval_size=32, batch_size=4, fraction=1.0, warmup_epochs=0.0, log_steps=1)
FINE_TUNED = [name for name in evaluation_names() if issubclass(evaluation_class(name), FineTunedEvaluation)]
FROM_RUN = ("method", "seed", "arch", "patch_size", "pooling", "gamma", "pooling_options")  # keys that the run has set
OWN = {
    "finetune": dict(train_size=16, eval_size=16),
    "detection": dict(width=8, hidden_dim=16, proposals=8),
    "segmentation": dict(width=8, resize=[0.75, 1.0]),
}


def settings(**overrides) -> FineTuneSettings:
    return FineTuneSettings.of(
        "smoke/finetune", recipes.measurement("smoke", "finetune"), SMALL | dict(train_size=16, eval_size=16) | overrides
    )


def network(arch="vit_nano", pooling=None, classes=10, **options):
    torch.manual_seed(0)
    return create_model(arch, pooling=pooling, img_size=16, num_classes=classes, **options)


def photos(count=8, size=32) -> Bank:
    images = torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Bank(images, torch.full((count, 2), size), torch.arange(count) * 7 % 10, "photos")


# ---- rates of layers --------------------------------------------------------------------------------------------------


def layer(arch, name) -> int:
    """A parameter's layer, from 0, the embedding, to the last, the head, written out."""
    if arch == "vit_nano":
        return (
            1 + int(name.split(".")[1])
            if name.startswith("blocks.")
            else 0
            if name.startswith(("cls", "pos", "patch"))
            else 4
            if name.startswith("norm.")
            else 5
        )
    if arch == "resnet_mini":
        return int(name[5]) if name.startswith("layer") else 0 if name.startswith(("conv1", "bn1")) else 5
    first = {"0": 1, "1": 2, "2": 3, "3": 5}  # blocks of stages of 1, 1, 2 and 1; what leads to a stage learns with its first block
    if name.startswith("stages."):
        _, stage, part, *rest = name.split(".")
        return first[stage] + (int(rest[0]) if part == "blocks" else 0)
    return 0 if name.startswith("stem") else 6


@pytest.mark.parametrize("arch", ["vit_nano", "resnet_mini", "convnext_mini"])
@pytest.mark.parametrize("pooling", [None, "simpool"])
def test_rates_fall_from_layer_to_layer(arch, pooling):
    model = network(arch, pooling)
    optimizer = layerwise_optimizer(model, 0.5)
    names = {p: name for name, p in model.named_parameters()}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert type(optimizer) is torch.optim.AdamW and len(held) == len(set(held)) and set(held) == set(names)
    last = layer(arch, "head.weight")
    for group in optimizer.param_groups:
        for p in group["params"]:
            assert group["lr_scale"] == 0.5 ** (last - layer(arch, names[p])), names[p]
            assert group["decays"] == (p.ndim > 1), names[p]


def test_what_is_frozen_is_left_out_and_heads_have_the_full_rate():
    model, head = network(), torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Conv2d(4, 4, 1, bias=False))
    model.pos_embed.requires_grad_(False)
    head[0].bias.requires_grad_(False)
    optimizer = layerwise_optimizer(model, 0.5, head)
    held = {p: group for group in optimizer.param_groups for p in group["params"]}
    assert set(held) == {p for p in (*model.parameters(), *head.parameters()) if p.requires_grad}
    for p in (head[0].weight, head[1].weight):
        assert held[p]["lr_scale"] == 1 and held[p]["decays"]


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_loop_multiplies_rates(tmp_path, ema, monkeypatch):
    """One step of AdamW moves a weight by about its rate."""
    config = settings(lr=0.64, batch_size=4, epochs=1, layer_decay=0.5, weight_decay=0.0, weight_decay_final=0.0, ema=ema, lr_final=0.0)
    learner, seen = FineTuning(config, network()), []
    optimizer = learner.make_optimizer()
    step = optimizer.step
    monkeypatch.setattr(
        optimizer, "step", lambda: seen.append([(g["lr"], g["lr_scale"], g["weight_decay"]) for g in optimizer.param_groups]) or step()
    )
    monkeypatch.setattr(learner, "make_optimizer", lambda: optimizer)
    before = copy.deepcopy(learner.student.state_dict())
    assert train(learner, photos(4), config, tmp_path, seed=0, progress=False)
    assert len(seen) == 1 and len({scale for _, scale, _ in seen[0]}) == 6
    assert all(rate == pytest.approx(0.01 * scale) and decay == 0 for rate, scale, decay in seen[0])
    for name, value in learner.student.named_parameters():
        if value.ndim > 1 and value.grad.abs().median() > 1e-5:
            assert (value.detach() - before[name]).abs().median().item() == pytest.approx(
                0.01 * 0.5 ** (5 - layer("vit_nano", name)), rel=0.1
            ), name


@pytest.mark.parametrize("value", [0.0, -0.5, 1.1])
def test_decays_out_of_range_are_refused(value):
    with pytest.raises(ValueError, match=rf"layer_decay: got {value}"):
        settings(layer_decay=value)


# ---- trainings --------------------------------------------------------------------------------------------------------


def tuned(folder, test=None, *, budget=None, **overrides):
    """Figures, and the trained classifier, which the network itself is not; None and None when the budget ended first."""
    tuning, model = FineTune(settings(**overrides), Origin(seed=0)), network()
    figures = tuning.measure(model, Inputs(test or photos(5), photos(8)), Context(folder=folder, budget=budget))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), network().parameters()))
    return figures, figures and tuning.restored(model, folder).student.eval()


def start(**overrides):
    """Where ``tuned`` starts from."""
    return FineTune(settings(**overrides), Origin(seed=0)).learner(network()).student


def test_the_figure_is_the_accuracy_after_the_last_epoch(tmp_path):
    """Also where it is none of those after which it is tested anyway."""
    found, model = tuned(tmp_path, epochs=5, knn_epochs=2)
    lines = {line["epoch"]: line["accuracy"] for line in read_log(tmp_path) if "accuracy" in line}
    assert list(lines) == [0, 2, 4, 5]
    _, labels, logits = features_and_logits(model, photos(5), size=16, crop=0.875)
    assert found["finetune"] == lines[5] == accuracy(logits, labels)["accuracy"]
    assert found["finetune_best"] == max(lines.values()) and 100 * lines[5] % 20 == pytest.approx(0)


def test_averaged_weights_are_tested(tmp_path):
    found, model = tuned(tmp_path, epochs=2, ema=0.9)
    average, weights = network(), load_checkpoint(tmp_path)["learner"]
    average.load_state_dict({name.removeprefix("average."): value for name, value in weights.items() if name.startswith("average.")})
    _, labels, logits = features_and_logits(average, photos(5), size=16, crop=0.875)
    assert found["finetune"] == accuracy(logits, labels)["accuracy"]
    moved = [(net.head.weight - start().head.weight).norm() for net in (average, model)]
    assert 0 < moved[0] < moved[1]


def test_everything_is_learned_by_heart(tmp_path):
    """Crops of all of an image, by a network of which every layer learns."""
    options = dict(epochs=30, batch_size=8, lr=6.4e-2, crop_scale=[1.0, 1.0], jitter=0.0, eval_crop=1.0, smoothing=0.0)
    found, model = tuned(tmp_path, photos(8), **options)
    assert found == {"finetune": 100.0, "finetune_best": 100.0}
    assert all(not torch.equal(p, q) for (n, p), q in zip(model.named_parameters(), start().parameters()) if "bias" not in n)


def test_a_stopped_training_goes_on_to_the_last_bit(tmp_path):
    options = dict(epochs=2, batch_size=4, dropout=0.2, mixup=0.5, erasing=0.2)
    whole, model = tuned(tmp_path / "whole", **options)
    for _ in range(3):
        assert tuned(tmp_path / "parts", budget=0.0, **options)[0] is None
    parts, same = tuned(tmp_path / "parts", **options)
    assert parts == whole and all(torch.equal(p, q) for p, q in zip(model.parameters(), same.parameters()))


# ---- every pre-training through every downstream task -----------------------------------------------------------------

METHOD = {"jigsaw": dict(cell_size=12, tile_size=8, permutations=8), "ibot": {}, "dino": {}, "mst": {}}
DISTILLED = dict(local_size=8, out_dim=32, hidden_dim=32, bottleneck_dim=16)
MATRIX = [(method, pooling, "vit_nano") for method in method_names() for pooling in ("none", "simpool")]
MATRIX += [("supervised", "simpool", "convnext_mini"), ("contrastive", "none", "resnet_mini"), ("supervised", "none", "resnet_mini")]


@cache
def few(split, count=8):
    return scenes.table(split, count)


@cache
def tiny_bank(split, canvas):
    whole = bank("scenes", split, canvas, fraction=0.016 if split == "train" else 1.0, progress=False)
    return Bank(whole.images[:32], whole.sizes[:32], whole.labels[:32], whole.fingerprint)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def tiny(store, monkeypatch):
    """A store that all share, few images, and a step or two of whatever is trained."""
    monkeypatch.setenv("COMPANION_RUNS", str(store))
    for module in ("lib.train", "lib.evaluation.finetune"):
        monkeypatch.setattr(f"{module}.bank", lambda name, split, canvas, **_: tiny_bank(split, canvas))
    for function in ("read_table", "read_part"):
        monkeypatch.setattr(f"lib.data.segmentation.{function}", lambda name, split, *_, **__: few(split).slice(0, 4))
    read = recipes.measurement
    monkeypatch.setattr("lib.recipes.measurement", lambda scale, name: read(scale, name) | SMALL | OWN[name])


def pretrained(method, pooling, arch):
    own = METHOD.get(method, {}) | (DISTILLED if method in ("dino", "ibot", "mst") else {})
    entry = next(name for name in recipes.names(["smoke"]) if recipes.entry(name).settings["method"] == method)
    return run(entry, device="cpu", progress=False, **TINY | own | dict(pooling=pooling, arch=arch))


@pytest.mark.parametrize("task", FINE_TUNED)
@pytest.mark.parametrize("method, pooling, arch", MATRIX, ids=lambda v: v)
def test_every_learner_serves_every_task(tiny, method, pooling, arch, task, monkeypatch):
    found = pretrained(method, pooling, arch)
    started, kind = [], evaluation_class(task)
    learner_class = kind.learner_class

    def spied(config, network):
        started.append(copy.deepcopy(network))
        return learner_class(config, network)

    monkeypatch.setattr(kind, "learner_class", staticmethod(spied))
    metrics = measure(task, found, device="cpu", progress=False).metrics
    names = {name.removeprefix("untrained_") for name in metrics}
    assert all(0 <= value <= 100 for value in metrics.values())
    assert names == {name for name in metrics if not name.startswith("untrained_")}
    assert {f"untrained_{name}" for name in names - {"images", "left_out"}} == {name for name in metrics if name.startswith("untrained_")}
    assert {"finetune": "finetune", "detection": "ap_box", "segmentation": "miou"}[task] in names

    encoders = [load_encoder(found), untrained_encoder(found)]
    for network, encoder in zip(started, encoders, strict=True):
        weights, learned = network.state_dict(), encoder.state_dict()
        own = {name for name in weights if name.startswith(CLASSIFIERS)}
        assert len(own) == (2 if task == "finetune" else 0)
        assert weights.keys() - own == {name for name in learned if not name.startswith(CLASSIFIERS)}
        assert all(torch.equal(weights[name], learned[name]) for name in weights.keys() - own)
    differ = [
        name
        for name, p in started[0].named_parameters()
        if not name.startswith(CLASSIFIERS) and not torch.equal(p, started[1].get_parameter(name))
    ]
    assert len(differ) > 10
    if task == "finetune":  # a new classifier, the same for both
        assert torch.equal(started[0].classifier.weight, started[1].classifier.weight)


def test_a_budget_stops_and_the_next_call_goes_on(tiny, store, monkeypatch, tmp_path):
    found = pretrained("supervised", "none", "vit_nano")
    whole = measure("finetune", found, device="cpu", progress=False)
    metrics = whole.metrics
    folder = found.folder / f"finetune-{whole.key}"
    whole.file.rename(tmp_path / "result")
    folder.rename(tmp_path / "trained")
    assert not measure("finetune", found, device="cpu", budget=0, progress=False).finished
    assert (folder / "trained" / "checkpoint.pt").is_file() and not (folder / "untrained").exists()
    assert measure("finetune", found, device="cpu", progress=False).metrics == metrics


@pytest.mark.parametrize("arch, own", [("vit_nano", dict(depth=2)), ("resnet_mini", {}), ("convnext_mini", {})])
def test_networks_of_their_own_depth_and_regularisers_are_taken_over(arch, own):
    """Stochastic depth and dropout are those of what follows."""
    encoder = network(arch, drop_path_rate=0.05, **own)
    begun = FineTune(settings(drop_path=0.2, dropout=0.3, num_classes=7)).learner(encoder).student
    assert begun.classifier.out_features == 7 and len(list(begun.parameters())) == len(list(encoder.parameters()))
    rates = [module.drop_prob for module in begun.modules() if type(module).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.2)
    assert any(getattr(module, "p", 0) == 0.3 for module in begun.modules()) or begun.drop_rate == 0.3


def test_another_network_is_refused():
    with pytest.raises(ValueError, match="^network: lacks"):
        starting_from(network("resnet_mini"), seed=0, pooling="simpool")


def test_what_the_run_has_set_is_no_setting_of_a_task():
    for scale in recipes.SCALES:
        for task in FINE_TUNED:
            assert not set(FROM_RUN) & set(recipes.measurement(scale, task)), (scale, task)
            assert not set(FROM_RUN) & set(evaluation_class(task).Settings.__dataclass_fields__), task
    assert set(FINE_TUNED) == OWN.keys()


def test_another_number_of_classes_is_refused(tiny, store):
    found = pretrained("supervised", "none", "vit_nano")
    for task in ("finetune", "detection"):
        with pytest.raises(ValueError, match="^num_classes: got 3, scenes accepts 10"):
            measure(task, found, device="cpu", progress=False, num_classes=3)


def test_the_seconds_of_a_resumed_fine_tuning_are_those_of_all_calls(tiny, store):
    found = pretrained("supervised", "none", "vit_nano")
    assert not measure("finetune", found, device="cpu", budget=0, progress=False, epochs=3).finished
    made = measure("finetune", found, device="cpu", progress=False, epochs=3)
    folder = found.folder / f"finetune-{made.key}"
    spent = [load_checkpoint(folder / name)["seconds"] for name in ("trained", "untrained")]
    assert made.result()["seconds"] == pytest.approx(sum(spent), abs=0.1)
