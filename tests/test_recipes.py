"""Every number of every recipe entry, and what happens to a wrong one."""

import dataclasses
import shlex

import pytest
import yaml

from lib import files, paths, recipes
from lib.distillation.methods import DistillationConfig
from lib.keys import neutral
from lib.learning.base import METHODS, TrainingConfig
from lib.measure import measurement_of
from lib.results.tables import _otherwise
from lib.train import configure, find_run, method_names

DEVICES = ("cpu", "cuda")
# All keys that entries need not state, their neutral values, and settings in which they have another value.
OPTIONAL = {
    "pooling_options": ({}, dict(pooling="simpool", pooling_options={"beta": True})),
    "checks": ({}, dict(checks={"hiding": {"data": "scenes"}})),
    "hint_pool": (0.1, dict(hint_pool=0.2)),
    "centering": ("ema", dict(centering="sinkhorn")),
    "head_norm": ("none", dict(head_norm="batch")),
    "koleo": (0.0, dict(koleo=0.1)),
    "blur": ([1.0, 0.1, 0.5], dict(blur=[0.5, 0.5, 0.5])),
    "blur_sigma": ([0.1, 2.0], dict(blur_sigma=[0.1, 1.0])),
    "solarise": (0.2, dict(solarise=0.0)),
    "guide": ("", dict(guide="supervised_cpu-none")),
    "optimizer": ("adamw", dict(optimizer="lars")),
    "teacher_drop_path": (0.0, dict(teacher_drop_path=0.1)),
    "released_positions": (False, dict(released_positions=True)),
    "auto_augment": ("", dict(auto_augment="rand-m9", randaugment=0)),
    "repeats": (1, dict(repeats=3)),
    "token_dropout": (0.0, dict(token_dropout=0.1)),
    "split_norm": (False, dict(split_norm=True, splits=3, mixup=0.0, cutmix=0.0)),
    "mean": ([0.485, 0.456, 0.406], dict(mean=[0.5, 0.5, 0.5])),
    "std": ([0.229, 0.224, 0.225], dict(std=[0.5, 0.5, 0.5])),
}
NEUTRAL = {name: value for name, (value, _) in OPTIONAL.items()}


@pytest.mark.parametrize("name", recipes.names())
def test_every_entry_is_complete_and_says_what_it_is(name):
    chosen = recipes.entry(name)
    config = configure(chosen, {})
    left_out = {field.name: neutral(field) for field in dataclasses.fields(config)}
    assert config.stated().keys() == {key for key, value in chosen.settings.items() if value != left_out[key]}
    assert len(chosen.about) > 20 and chosen.experiment.isidentifier()
    if chosen.scale == "paper":
        assert f"-m lib.train {name}" in chosen.about and "Expect" in chosen.about
    for field in dataclasses.fields(config):
        if field.type is float:
            assert type(getattr(config, field.name)) is float
    assert 0 < config.fraction <= 1 and config.lr > config.lr_final and config.weight_decay <= config.weight_decay_final
    assert config.train_size % config.patch_size == getattr(config, "local_size", 0) % config.patch_size == 0


@pytest.mark.parametrize("method", method_names())
def test_neutral_values_are_left_out_of_what_is_stated(method):
    entry = next(recipes.entry(name) for name in recipes.names() if recipes.entry(name).settings["method"] == method)
    config, fields = configure(entry, {}), {field.name: field for field in dataclasses.fields(METHODS[method].Config)}
    with_default = {name: neutral(field) for name, field in fields.items() if neutral(field) is not dataclasses.MISSING}
    assert with_default == {name: NEUTRAL[name] for name in with_default} and "pooling_options" in with_default
    for name, value in with_default.items():
        assert name not in config.stated() and getattr(config, name) == value
        assert configure(entry, {name: value}).stated() == config.stated()
        other = OPTIONAL[name][1]
        assert configure(entry, other).stated() == config.stated() | other
    assert config.stated() == {name: value for name, value in dataclasses.asdict(config).items() if name not in with_default}
    with pytest.raises(TypeError):
        METHODS[method].Config()


def test_configurations_of_trainings_have_no_defaults():
    assert all(neutral(field) is dataclasses.MISSING for field in dataclasses.fields(TrainingConfig))
    with pytest.raises(TypeError):
        TrainingConfig()


def test_a_new_neutral_key_changes_the_keys_of_no_runs(monkeypatch):
    before = find_run("smoke/ibot")

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Longer(DistillationConfig):
        sharpness: float = 1.0
        parts: list[int] = dataclasses.field(default_factory=list)

    monkeypatch.setattr(METHODS["ibot"], "Config", Longer)
    for added in ({}, dict(sharpness=1), dict(sharpness="1.0", parts=())):
        after = find_run("smoke/ibot", **added)
        assert (after.key, after.config, after.changes) == (before.key, before.config, {})
    after = find_run("smoke/ibot", sharpness=2)
    assert after.key != before.key and after.config == before.config | {"sharpness": 2.0} and after.changes == {"sharpness": 2.0}


def smoke(**settings) -> recipes.Entry:
    chosen = recipes.entry("smoke/ibot")
    return dataclasses.replace(chosen, settings=chosen.settings | settings)


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"learning_rate": 0.1}, r"learning_rate: unknown key in overrides; smoke/ibot accepts .*\blr\b"),
        ({"about": "x"}, "about: unknown key"),
        ({"lr": "fast"}, "lr: got 'fast', accepts a number"),
        ({"lr": True}, "lr: got True, accepts a number"),
        ({"lr": None}, "lr: got None, accepts a number"),
        ({"epochs": 2.0}, "epochs: got 2.0, accepts an integer"),
        ({"epochs": "2"}, "epochs: got '2', accepts an integer"),
        ({"seed": False}, "seed: got False, accepts an integer"),
        ({"compile": "yes"}, "compile: got 'yes', accepts true or false"),
        ({"arch": 5}, "arch: got 5, accepts a word"),
        ({"mask_ratio": 0.3}, "mask_ratio: got 0.3, accepts a list"),
        ({"batch_size": 0}, "batch_size"),
        ({"masking": "none"}, "masking: got 'none', method ibot accepts"),
        ({"method": "dino", "masking": "most"}, "masking: got 'most', method dino accepts none, block"),
    ],
)
def test_a_wrong_override_is_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        configure(recipes.entry("smoke/ibot"), overrides)


def test_a_wrong_entry_is_named():
    with pytest.raises(ValueError, match="momentums: unknown key in smoke/ibot; smoke/ibot accepts"):
        configure(smoke(momentums=0.9), {})
    chosen = recipes.entry("smoke/ibot")
    short = dataclasses.replace(chosen, settings={k: v for k, v in chosen.settings.items() if k not in ("lr", "clip")})
    with pytest.raises(ValueError, match="smoke/ibot: lacks lr, clip"):
        configure(short, {})
    for name in ("smoke/none", "large/ibot", "ibot", ""):
        with pytest.raises(ValueError, match=f"entry: got '{name}', accepts smoke/ibot"):
            recipes.entry(name)
    with pytest.raises(ValueError, match="role: got 'nothing', smoke accepts main"):
        recipes.entry_for("smoke", "nothing", "cpu")


def test_words_that_are_numbers_become_numbers():
    config = configure(smoke(lr="1e-4", clip=3), {"lr_final": "1E-6", "mask_ratio": (0, 1)})
    assert (config.lr, config.clip, config.lr_final, config.mask_ratio) == (1e-4, 3.0, 1e-6, [0.0, 1.0])
    assert isinstance(config.clip, float)


@pytest.mark.parametrize(
    "words, value",
    [
        ("lr=1e-4", 1e-4),
        ("epochs=3", 3),
        ("seed=010", 10),  # YAML 1.1 reads 8
        ("seed=1:30", "1:30"),  # and 90
        ("seed=1_0", "1_0"),
        ("masking=no", "no"),
        ("name=2026-11-28", "2026-11-28"),
        ("compile=true", True),
        ("budget=null", None),
        ("mask_ratio=[0.1, .5]", [0.1, 0.5]),
        ("pooling_options={tau: 5.0}", {"tau": 5.0}),
        ("data=a=b", "a=b"),
        ("masking=attmask_high", "attmask_high"),
    ],
)
def test_parse_reads_assignments(words, value):
    parsed = recipes.parse([words])
    assert parsed == {words.partition("=")[0]: value} and type(*parsed.values()) is type(value)


def test_parse_refuses_what_is_no_assignment():
    for text in ("lr", "", "lr=[", "lr={", "lr=a: b: c", "options={a: 1, a: 2}"):
        with pytest.raises(ValueError):
            recipes.parse([text])
    with pytest.raises(ValueError, match="^seed: got seed=1 and seed=2, accepts one value$"):
        recipes.parse(["seed=1", "seed=2"])


def test_the_recipes_mean_the_same_in_yaml_1_1():
    """Nothing in them depends on the version of YAML but numbers such as 1e-4, which 1.1 takes for words."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list):
            return [plain(item) for item in value]
        try:
            return float(value) if isinstance(value, str) else value
        except ValueError:
            return value

    for scale in recipes.SCALES:
        text = (paths.RECIPES / f"{scale}.yaml").read_text(encoding="utf-8")
        assert plain(files.parse_yaml(text)) == plain(yaml.safe_load(text))


def test_a_damaged_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RECIPES", tmp_path)
    recipes._read.cache_clear()
    try:
        with pytest.raises(ValueError, match=str(tmp_path / "smoke.yaml")):
            recipes.entry("smoke/ibot")
        (tmp_path / "smoke.yaml").write_text("entries: [")
        with pytest.raises(ValueError, match=str(tmp_path / "smoke.yaml")):
            recipes.entry("smoke/ibot")
        (tmp_path / "smoke.yaml").write_text("entries:\n  ibot: {lr: 1, lr: 2}\n")
        with pytest.raises(ValueError, match="lr stands twice"):
            recipes.entry("smoke/ibot")
    finally:
        recipes._read.cache_clear()


# ---- roles and evidence -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", recipes.SCALES)
@pytest.mark.parametrize("device", DEVICES)
def test_notebooks_find_their_entries_at_every_scale(scale, device):
    for role in ("main", "comparison", "fractions"):
        name = recipes.entry_for(scale, role, device)
        assert name in recipes.names((scale,))
    held = recipes.fractions(scale, device)
    assert held == sorted(held) and all(0 < f <= 1 for f in held)


@pytest.mark.parametrize("scale", recipes.SCALES)
@pytest.mark.parametrize("device", DEVICES)
def test_evidence_names_runs_without_repetition(scale, device):
    wanted = recipes.evidence(scale, device)
    keys = [find_run(entry, **overrides).key for entry, overrides, _ in wanted]
    assert len(keys) == len(set(keys))
    for entry, overrides, measurements in wanted:
        measured = [measurement_of(find_run(entry, **overrides), name, **settings).key for name, settings in measurements]
        assert len(measured) == len(set(measured))
    if scale == "paper":
        assert bool(wanted) == (device == "cuda")
    if scale == "small":
        seeds = {overrides["seed"] for _, overrides, _ in wanted}
        assert len(seeds) >= 3
    if scale == "smoke":
        assert not wanted


def test_evidence_multiplies_lists_with_the_first_key_slowest(monkeypatch):
    items = [
        {"entry": "a", "device": "cpu", "seed": [0, 1], "masking": ["x", "y"]},
        {"entry": "b", "device": "cuda", "measure": ["knn", "video data=davis2017 topk=3"], "seed": 3},
    ]
    monkeypatch.setattr(recipes, "_read", lambda scale: {"evidence": items})
    assert recipes.evidence("small", "cpu") == [("small/a", {"seed": s, "masking": m}, []) for s in (0, 1) for m in ("x", "y")]
    assert recipes.evidence("small", "cuda") == [("small/b", {"seed": 3}, [("knn", {}), ("video", {"data": "davis2017", "topk": 3})])]


def test_changes_are_what_the_entry_has_otherwise_and_words_bring_them_back():
    given = dict(seed=3, masking="attmask_high", mask_ratio=[0.2, 0.4], lr=1e-5, share_ratio=False)
    made = find_run("small/ibot_cpu", **given)
    assert made.changes == given and find_run("small/ibot_cpu", **recipes.entry("small/ibot_cpu").settings | given).changes == given
    measured = measurement_of(made, "video", **recipes.measurement("small", "video") | {"topk": 9})
    assert measurement_of(made, "video").changes == given and measured.changes == given | {"video.topk": 9}
    assert recipes.parse(shlex.split(recipes.words(given))) == given
    assert find_run("small/ibot_cpu", **recipes.parse(shlex.split(recipes.words(given)))).config == made.config
    assert find_run("small/ibot_cpu").changes == {} and recipes.words({}) == ""


def test_recorded_configurations_are_compared_with_the_recipes_of_now():
    given = dict(seed=3, masking="attmask_high", mask_ratio=[0.2, 0.4], lr=1e-5, share_ratio=False)
    made = find_run("small/ibot_cpu", **given)
    assert _otherwise("small/ibot_cpu", made.config) == given
    assert _otherwise("small/ibot_cpu", measurement_of(made, "video", topk=9).config) == given | {"video.topk": 9}
    assert _otherwise("small/ibot_cpu", find_run("small/ibot_cpu").config) == {} and _otherwise("small/gone", made.config) == {}


# ---- the papers -------------------------------------------------------------------------------------------------------


def test_released_checkpoints_have_published_figures():
    from lib.results.papers import paper_table

    for name in recipes._read("paper")["released"]:
        chosen = recipes.released(name)
        place = chosen["published"]
        (metric,) = {"knn", "accuracy"} & place.keys()
        assert paper_table(place["paper"], place["table"]).loc[place["row"], place[metric]] > 50
        assert chosen["source"] in ("attmask", "ibot", "dino", "simpool")
    with pytest.raises(ValueError, match="name: got 'mae', accepts attmask_high"):
        recipes.released("mae")


def test_a_comparison_differs_in_what_is_compared_alone():
    for scale in recipes.SCALES:
        for device in DEVICES:
            entry = recipes.entry_for(scale, "comparison", device)
            high, block = (find_run(entry, masking=masking).config for masking in ("attmask_high", "block"))
            assert {key for key in high if high[key] != block[key]} == {"masking"}
    assert {f.name for f in dataclasses.fields(TrainingConfig)} < {f.name for f in dataclasses.fields(DistillationConfig)}
