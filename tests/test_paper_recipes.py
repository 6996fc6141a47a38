"""The paper-scale recipes are the authors' commands, number by number, and every entry takes a step."""

import copy

import pytest
import torch
import yaml

from lib import paths, recipes
from lib.authors import author_settings, deviations, same
from lib.engine.seeds import seed_step
from lib.evaluation.finetune import FineTuning
from lib.measure import create_evaluation
from lib.models import create_model
from lib.train import build, configure

COMMANDS = yaml.safe_load((paths.RECIPES / "authors.yaml").read_text(encoding="utf-8"))["commands"]
# Once more from the commands themselves, so that a number must be wrong twice to go unseen:
# global batch, epochs, rate at 256, last rate, decay at the start and the end, clip, K, gain fixed, frozen epochs, ramp, momentum, scales, locals
PRETRAINED = {
    "ibot_20pct": (4 * 60, 100, 5e-4, 1e-6, 0.04, 0.4, 3.0, 8192, False, 1, 30, 0.99, [0.25, 1], [0.05, 0.25], 6),
    "ibot_fraction": (4 * 60, 100, 5e-4, 1e-6, 0.04, 0.4, 3.0, 8192, False, 1, 30, 0.99, [0.25, 1], [0.05, 0.25], 6),
    "ibot_100pct": (4 * 60, 100, 5e-4, 1e-6, 0.04, 0.4, 3.0, 8192, False, 1, 30, 0.996, [0.25, 1], [0.05, 0.25], 10),
    "ibot_100pct_300ep": (8 * 100, 300, 5e-4, 1e-6, 0.04, 0.4, 3.0, 8192, False, 1, 30, 0.996, [0.32, 1], [0.05, 0.32], 10),
    "dino_vit_s": (8 * 100, 100, 5e-4, 1e-5, 0.04, 0.4, 0.0, 65536, False, 1, 30, 0.996, [0.25, 1], [0.05, 0.25], 6),
    "dino_resnet50": (16 * 90, 100, 0.3, 0.0048, 1e-6, 1e-6, 0.0, 60000, True, 1, 50, 0.996, [0.14, 1], [0.05, 0.14], 6),
    "dino_convnext_s": (8 * 60, 100, 1e-3, 2e-6, 0.04, 0.4, 0.3, 65536, True, 3, 50, 0.996, [0.14, 1], [0.05, 0.14], 6),
}
KEYS = (
    "batch_size epochs lr lr_final weight_decay weight_decay_final clip out_dim norm_last_layer freeze_epochs teacher_temp_epochs momentum"
)
KEYS = [*KEYS.split(), "global_scale", "local_scale", "local_crops"]
# global batch, the rate itself, decay, mixup, cutmix, erasing, splits, drop-path, average of the weights, crop and mean of the inputs
SUPERVISED = {
    "supervised_vit_s": (8 * 74, 5e-4, 0.05, 0.2, 0.0, 0.25, 0, 0.1, 0.99996, 0.9, 0.5),
    "supervised_resnet50": (8 * 128, 0.4, 2e-5, 0.0, 0.0, 0.6, 3, 0.0, 0.0, 0.95, 0.485),
    "supervised_convnext_s": (8 * 128, 1e-3, 0.05, 0.8, 1.0, 0.25, 0, 0.4, 0.9999, 0.875, 0.485),
}
# What the talk's other rows have that no command is published for.
OTHERS = {
    "dino_100pct": dict(method="dino", masking="none", fraction=1.0, out_dim=65536, local_crops=10, momentum=0.996),
    "mst_100pct": dict(method="mst", masking="attmask_low", fraction=1.0, out_dim=65536, local_crops=10, momentum=0.996),
    "benchmark": dict(arch="resnet18", fraction=0.2, gamma=2.0, splits=0, batch_size=1024, lr=0.1, auto_augment="rand-m9-mstd0.5-inc1"),
    "supervised_vit_b": dict(arch="vit_base_patch16_224", batch_size=592, token_dropout=0.1, mean=[0.5] * 3),
    "depth_vit_s": dict(arch="vit_small_patch16_224", batch_size=592, token_dropout=0.1, mean=[0.5] * 3),
}


def config_of(name, **overrides):
    return configure(recipes.entry(f"paper/{name}"), overrides)


def test_every_setting_is_the_authors_or_has_a_reason():
    table = author_settings()
    assert set(table.index.unique("command")) == set(COMMANDS) and len(table) == sum(
        len(c["of"]) * len(c["settings"]) for c in COMMANDS.values()
    )
    assert (table.equal == (table.why == "")).all()
    assert table.equal.mean() > 0.9
    # Where we have the setting, it differs in what is listed alone.
    assert set(table[~table.equal & table.ours.notna()].index.unique("setting")) == {"precision", "seed"}


def test_numbers_of_the_commands():
    assert {f"paper/{name}" for name in (*PRETRAINED, *SUPERVISED, *OTHERS)} == set(recipes.names(("paper",)))
    for name, numbers in PRETRAINED.items():
        assert [getattr(config_of(name), key) for key in KEYS] == list(numbers), name
    for name, (batch, rate, decay, mixup, cutmix, erasing, splits, drop_path, ema, crop, mean) in SUPERVISED.items():
        config = config_of(name)
        assert config.lr * config.batch_size / 256 == pytest.approx(rate, rel=1e-12) and config.lr_final == 0 and config.epochs == 100
        found = (
            config.batch_size,
            config.weight_decay,
            config.weight_decay_final,
            config.mixup,
            config.cutmix,
            config.erasing,
            config.splits,
        )
        assert found == (batch, decay, decay, mixup, cutmix, erasing, splits), name
        assert (config.drop_path, config.ema, config.eval_crop, config.mean[0]) == (drop_path, ema, crop, mean), name
        assert (config.token_dropout, config.dropout) == (0.1 if name == "supervised_vit_s" else 0.0, 0.0)
    for name, settings in OTHERS.items():
        assert {key: getattr(config_of(name), key) for key in settings} == settings, name
    tuned = create_evaluation("finetune", "paper").settings
    assert (tuned.batch_size, tuned.epochs, tuned.repeats) == (6 * 150, 500, 3) and tuned.lr * 900 / 256 == pytest.approx(
        7.5e-6 * 900 / 512
    )
    starts = [[draw * step for draw in range(5)] for step in create_evaluation("knn", "paper").settings.steps]
    assert starts == [[0, 5, 10, 15, 20], [0, 5, 10, 15, 20], [0, 10, 20, 30, 40], [0, 20, 40, 60, 80]]


def with_recipes(monkeypatch, change):
    """Paper-scale recipes with a change made."""
    changed = copy.deepcopy(recipes._read("paper"))
    change(changed)
    monkeypatch.setattr(recipes, "_read", lambda scale: changed)


ENTRY_ROWS = [(name, entry, key) for name, c in COMMANDS.items() if "measurement" not in c for entry in c["of"] for key in c["settings"]]


@pytest.mark.parametrize("entry", sorted({entry for _, entry, _ in ENTRY_ROWS}))
def test_each_number_that_changes_is_named(entry, monkeypatch):
    original, tried = recipes._read("paper"), 0
    table = author_settings()
    for command, of, key in ENTRY_ROWS:
        value = original["entries"][entry].get(key)
        if of != entry or not isinstance(value, (bool, int, float)) or not table.loc[(command, entry, key), "equal"]:
            continue
        other = (not value) if isinstance(value, bool) else value / 2 if isinstance(value, float) and value else value + 1
        with monkeypatch.context() as patch:
            with_recipes(patch, lambda changed, key=key, other=other: changed["entries"][entry].update({key: other}))
            with pytest.raises(ValueError, match=rf"^(deviations: lacks {key} of|{key}: |\w+: .*{key})"):
                author_settings()
        tried += 1
    assert tried > 15


@pytest.mark.parametrize("place, key, value", [("linear", "lrs", [0.004]), ("finetune", "repeats", 1), ("masked_accuracy", "blocks", 1)])
def test_a_measurements_number_that_changes_is_named(place, key, value, monkeypatch):
    with_recipes(monkeypatch, lambda changed: changed["measurements"][place].update({key: value}))
    with pytest.raises(ValueError, match=f"deviations: lacks {key} of"):
        author_settings()


def test_a_deviation_that_is_none_and_one_that_is_listed_twice_are_named(monkeypatch):
    item = dict(settings=["clip"], commands=["attmask_100pct"], why="none")
    with monkeypatch.context() as patch:
        with_recipes(patch, lambda changed: changed["deviations"].append(item))
        with pytest.raises(ValueError, match=r"deviations: got \[\('attmask_100pct', 'clip'\)\], which do not differ"):
            author_settings()
    with_recipes(monkeypatch, lambda changed: changed["deviations"].extend([item, item]))
    with pytest.raises(ValueError, match="twice"):
        deviations()


def test_a_measurement_that_the_evidence_lacks_is_named(monkeypatch):
    with_recipes(monkeypatch, lambda changed: changed["evidence"][0].update(measure=["masked_accuracy"]))
    with pytest.raises(ValueError, match="measurement: got 'linear', which the evidence of ibot_20pct lacks"):
        author_settings()


def test_same_compares_numbers_up_to_rounding_and_words_exactly():
    assert same(5e-4, 5e-4 * 592 / 592 + 1e-19) and same([0.25, 1], [0.25, 1.0]) and same("lars", "lars") and same(False, False)
    assert not same(5e-4, 5.001e-4) and not same(1, True) and not same([1], [1, 1]) and not same("lars", "sgd") and not same(0, None)


# ---- every entry takes a step -----------------------------------------------------------------------------------------

TINY = dict(train_size=32, canvas=32, eval_size=32, batch_size=4, compile=False)
CROPS = dict(local_crops=1, out_dim=16, hidden_dim=24, bottleneck_dim=8)


def one_step(learner, config, classes=1000):
    """The loss of one step of the loop's kind, after which the weights are finite and have moved."""
    g = torch.Generator().manual_seed(0)
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8, generator=g)
    learner.train()
    optimizer = learner.make_optimizer()
    with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16"):
        losses = learner(images, torch.full((4, 2), 32), torch.randint(classes, (4,), generator=g), 0, seed_step(0, 0))
    losses["loss"].backward()
    learner.before_update(0)
    before = [p.detach().clone() for p in learner.student.parameters()]
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = 1e-3, config.weight_decay if group["decays"] else 0.0
    optimizer.step()
    learner.after_update(0)
    after = list(learner.student.parameters())
    assert all(p.isfinite().all() for p in after) and any(not torch.equal(a, b) for a, b in zip(before, after))
    return losses["loss"]


@pytest.mark.parametrize("name", [name.removeprefix("paper/") for name in recipes.names(("paper",))])
def test_every_entry_takes_a_step(name):
    own = CROPS | dict(local_size=32 if "convnext" in name else 16) if hasattr(config_of(name), "local_crops") else {}
    masking = {"masking": "attmask_hint"} if name.startswith("ibot") else {}
    pooling = {"pooling": "simpool"} if "ibot" not in name and "100pct" not in name else {}
    config = config_of(name, **TINY, **own, **masking, **pooling)
    assert one_step(build(config, 10, "cpu"), config).isfinite()


def test_fine_tuning_takes_a_step():
    config = create_evaluation("finetune", "paper", **TINY).settings
    network = create_model("vit_nano", img_size=32, num_classes=10, drop_path_rate=config.drop_path)
    assert one_step(FineTuning(config, network), config, classes=10).isfinite()
