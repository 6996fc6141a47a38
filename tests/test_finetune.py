"""Fine-tuning: rates of layers, evaluation, resuming; and every pre-training through every downstream task."""

import copy
from functools import cache

import pytest
import torch

import lib.downstream
from lib import recipes
from lib.data import Bank, scenes
from lib.data.bank import bank
from lib.downstream import CLASSIFIERS, FINE_TUNED, FROM_RUN, starting_from
from lib.evaluation.features import accuracy, features_and_logits
from lib.evaluation.finetune import FineTuneConfig, FineTuning, fine_tune, layerwise_optimizer
from lib.measure import measure
from lib.models import create_model
from lib.train import METHODS, load_encoder, run, untrained_encoder
from lib.training import CHECKPOINT, load_checkpoint, read_log, train

TINY = dict(
    fraction=0.016, epochs=1, batch_size=8, canvas=32, train_size=16, eval_size=16, knn_epochs=0, knn_k=[1], checkpoint_steps=9, log_steps=1,
)  # fmt: skip
SMALL = dict(epochs=1, canvas=32, train_size=32, eval_size=32, batch_size=4, fraction=1.0, warmup_epochs=0.0, log_steps=1)
OWN = {
    "finetune": dict(train_size=16, eval_size=16),
    "detection": dict(width=8, hidden_dim=16, proposals=8),
    "segmentation": dict(width=8, resize=[0.75, 1.0]),
}


def settings(**overrides) -> FineTuneConfig:
    measured = recipes.measurement("smoke", "finetune") | dict(
        method="supervised", seed=0, arch="vit_nano", patch_size=8, pooling="none", gamma=1.25
    )
    entry = recipes.Entry("smoke", "finetune", "", "", measured | SMALL | dict(train_size=16, eval_size=16))
    return recipes.configure(entry, FineTuneConfig, overrides)


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
    assert train(learner, photos(4), config, tmp_path, progress=False)
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


def tuned(folder, *, budget=None, **overrides):
    model = network()
    return fine_tune(model, photos(8), photos(5), settings(**overrides), folder, budget=budget, progress=False), model


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
    average, weights = network(), load_checkpoint(tmp_path / CHECKPOINT)["learner"]
    average.load_state_dict({name.removeprefix("average."): value for name, value in weights.items() if name.startswith("average.")})
    _, labels, logits = features_and_logits(average, photos(5), size=16, crop=0.875)
    assert found["finetune"] == accuracy(logits, labels)["accuracy"]
    moved = [(net.head.weight - network().head.weight).norm() for net in (average, model)]
    assert 0 < moved[0] < moved[1]


def test_everything_is_learned_by_heart(tmp_path):
    """Crops of all of an image, by a network of which every layer learns."""
    model, config = network(), settings(epochs=30, batch_size=8, lr=6.4e-2, crop_scale=[1.0, 1.0], jitter=0.0, eval_crop=1.0, smoothing=0.0)
    found = fine_tune(model, photos(8), photos(8), config, tmp_path, progress=False)
    assert found == {"finetune": 100.0, "finetune_best": 100.0}
    assert all(not torch.equal(p, q) for (n, p), q in zip(model.named_parameters(), network().parameters()) if "bias" not in n)


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
MATRIX = [(method, pooling, "vit_nano") for method in METHODS for pooling in ("none", "simpool")]
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
    for module in ("lib.train", "lib.downstream"):
        monkeypatch.setattr(f"{module}.bank", lambda name, split, canvas, **_: tiny_bank(split, canvas))
    monkeypatch.setattr("lib.downstream.read_table", lambda name, split, **_: few(split).slice(0, 4))
    read = recipes.measurement
    monkeypatch.setattr(
        "lib.recipes.measurement", lambda scale, name, changes=None: read(scale, name) | SMALL | OWN[name] | (changes or {})
    )


def pretrained(method, pooling, arch):
    own = METHOD.get(method, {}) | (DISTILLED if method in ("dino", "ibot", "mst") else {})
    entry = next(name for name in recipes.names(["smoke"]) if recipes.entry(name).settings["method"] == method)
    return run(entry, device="cpu", progress=False, **TINY | own | dict(pooling=pooling, arch=arch))


@pytest.mark.parametrize("task", FINE_TUNED)
@pytest.mark.parametrize("method, pooling, arch", MATRIX, ids=lambda v: v)
def test_every_learner_serves_every_task(tiny, method, pooling, arch, task, monkeypatch):
    found = pretrained(method, pooling, arch)
    started, (*parts, trained) = [], FINE_TUNED[task]

    def spied(network, *given, **options):
        started.append(copy.deepcopy(network))
        return trained(network, *given, **options)

    monkeypatch.setitem(FINE_TUNED, task, (*parts, spied))
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
    learned = dict(method="supervised", arch=arch, train_size=16, patch_size=8, pooling="none", gamma=1.25, num_classes=10, **own)
    encoder = network(arch, **own)
    begun = starting_from(encoder, learned, settings(drop_path=0.2, dropout=0.3, arch=arch, num_classes=7))
    assert begun.classifier.out_features == 7 and len(list(begun.parameters())) == len(list(encoder.parameters()))
    rates = [module.drop_prob for module in begun.modules() if type(module).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.2)
    assert any(getattr(module, "p", 0) == 0.3 for module in begun.modules()) or begun.drop_rate == 0.3


def test_another_network_is_refused():
    learned = dict(method="supervised", arch="resnet_mini", train_size=16, patch_size=8, pooling="simpool", gamma=1.25, num_classes=10)
    with pytest.raises(ValueError, match="encoder: lacks"):
        starting_from(network("resnet_mini"), learned, settings())


def test_what_the_run_has_set_is_no_setting_of_a_task():
    for scale in recipes.SCALES:
        for task in FINE_TUNED:
            assert not set(FROM_RUN) & set(recipes.measurement(scale, task)), (scale, task)
    assert lib.downstream.FINE_TUNED.keys() == OWN.keys()


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
    spent = [load_checkpoint(folder / name / CHECKPOINT)["seconds"] for name in ("trained", "untrained")]
    assert made.result()["seconds"] == pytest.approx(sum(spent), abs=0.1)
