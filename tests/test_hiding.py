"""What masks hide, on maps whose objects are known."""

import math

import pytest
import torch

from lib import recipes
from lib.data import bank
from lib.data.views import center_view
from lib.evaluation.base import Inputs, Origin
from lib.evaluation.hiding import Hiding, fill_in_losses
from lib.masking import attention_mask
from lib.measure import evaluate
from lib.models import create_model
from lib.models.base import Features
from lib.train import build, configure, find_run, run

SETTINGS = dict(data="scenes", split="validation", canvas=64, ratio=0.25, draws=400)
GRID = (4, 4)


class Attending(torch.nn.Module):
    """A network with the given attention Float[M, 16] for images that it takes in order."""

    classifier = torch.nn.Identity()

    def __init__(self, attention):
        super().__init__()
        self.attention, self.weight = attention, torch.nn.Parameter(torch.zeros(1))

    def pool(self, views):
        count = len(views)
        return Features(torch.zeros(count, 3), torch.zeros(count, 16, 3), GRID, self.attention[:count, None])


class Images:
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def batches(self, parts):
        for part in parts:
            yield torch.zeros(len(part), 3, 32, 32, dtype=torch.uint8), torch.full((len(part), 2), 32), torch.zeros(len(part))


def hiding(**settings) -> Hiding:
    return Hiding(Hiding.Settings.of("hiding", SETTINGS | settings), Origin(size=32))


def figures(attention, objects, **settings):
    return hiding(**settings).measure(Attending(attention), Inputs((Images(len(attention)), objects)))


def quarter(rows, columns):
    """An object Float[1, 32, 32] on some rows and columns of the grid of 4 x 4."""
    objects = torch.zeros(1, 4, 4)
    objects[:, rows, columns] = 1.0
    return objects.repeat_interleave(8, 1).repeat_interleave(8, 2)


def test_high_hides_what_is_attended_and_low_what_is_not():
    objects = quarter(slice(0, 2), slice(0, 2))  # 4 of the 16 patches, as many as the masks hide
    attention = torch.where(objects[:, 4::8, 4::8].flatten(1) > 0, 0.2, 0.2 / 12)
    found = figures(attention, objects)
    assert (found["hidden_attmask_high"], found["hidden_attmask_low"]) == (100, 0)
    assert found["object_area"] == 25 and found["attention_mass"] == pytest.approx(80)
    entropy = -(4 * 0.2 * math.log(0.2) + 0.2 * math.log(0.2 / 12)) / math.log(16)
    assert found["attention_entropy"] == pytest.approx(100 * entropy, rel=1e-4)
    assert found["hidden_centre"] == 25  # the four patches in the middle
    assert found["hidden_random"] == pytest.approx(25, abs=1.5) and 10 < found["hidden_block"] < 30
    assert found["images"] == 1


def test_hints_reveal_a_part_of_what_high_hides():
    objects = quarter(slice(0, 2), slice(None))
    attention = torch.linspace(1, 0.1, 16)[None]
    found = figures(attention, objects, ratio=0.5)
    assert found["hidden_attmask_high"] == 100 and 80 <= found["hidden_attmask_hint"] <= 100


def test_partly_covered_patches_count_by_their_part():
    objects = torch.zeros(1, 32, 32)
    objects[:, :8, :4] = 1.0  # half of the first patch
    objects[:, 8:16, :8] = 1.0  # and the whole of the fifth
    attention = torch.full((1, 16), 0.01)
    attention[0, :1], attention[0, 5:8] = 1.0, 0.5
    assert figures(attention, objects)["hidden_attmask_high"] == pytest.approx(100 / 3)


def test_a_uniform_attention_has_the_whole_entropy():
    attention = torch.ones(2, 16) + 1e-6 * torch.arange(16)
    assert figures(attention, quarter(slice(0, 1), slice(0, 1)).expand(2, -1, -1))["attention_entropy"] == pytest.approx(100, abs=1e-3)


def test_networks_without_attention_are_refused():
    with pytest.raises(ValueError, match="network: got one without attention, hiding accepts"):
        evaluate("hiding", create_model("resnet_mini"), scale="smoke", images=4, progress=False)


def test_any_network_is_measured_on_the_scenes():
    found = evaluate("hiding", create_model("vit_nano", img_size=64), scale="smoke", images=8, progress=False)
    assert found["images"] == 8 and 0 < found["object_area"] < 100


# ---- in a run ---------------------------------------------------------------------------------------------------------

TINY = dict(epochs=2, fraction=0.25, batch_size=8, knn_epochs=0, checks={"hiding": SETTINGS | {"draws": 2}})


def test_a_run_checks_its_network_after_each_epoch():
    done = run("smoke/ibot", progress=False, **TINY)
    metrics = done.metrics
    for name in ("hidden_attmask_high", "hidden_attmask_low", "attention_mass", "attention_entropy"):
        assert [epoch for epoch, _ in metrics[f"{name}_curve"]] == [0, 1, 2]
        assert metrics[f"{name}_curve"][-1][1] == metrics[name] and metrics[f"{name}_curve"][0][1] == metrics[f"untrained_{name}"]
    assert "hidden_random" in metrics and not {"untrained_hidden_random", "hidden_random_curve"} & metrics.keys()
    assert [epoch for epoch, _ in metrics["knn_curve"]] == [0, 2]
    assert metrics["fill_block"] > 0 and metrics["untrained_fill_block"] > 0
    assert set(done.result()["data"]) == {"train", "validation", "hiding.test"}


def test_checks_change_nothing_but_what_is_recorded():
    plain, checked = (run("smoke/ibot", progress=False, **(TINY | extra)) for extra in ({"checks": {}}, {}))
    assert plain.key != checked.key and plain.metrics["knn_curve"] == checked.metrics["knn_curve"]
    assert all(torch.equal(a, b) for a, b in zip(plain.encoder_weights().values(), checked.encoder_weights().values()))


@pytest.mark.parametrize("checks", [{"hidden": {}}, {"hiding": {"data": "scenes"}}, {"hiding": SETTINGS | {"ratios": 1}}])
def test_checks_that_do_not_exist_are_refused_before_training(checks):
    with pytest.raises(ValueError, match="name: got 'hidden'|checks.hiding: lacks|ratios: unknown key in checks.hiding"):
        run("smoke/ibot", progress=False, **(TINY | {"checks": checks}))
    assert not (find_run("smoke/ibot", **(TINY | {"checks": checks})).folder / "checkpoint.pt").exists()


def test_a_run_says_which_network_guided_it():
    done = run("smoke/ibot", progress=False, **(TINY | {"guide": "supervised_cpu-none", "checks": {}, "epochs": 1}))
    assert len(done.result()["data"]["guide"]) == 12
    config = configure(recipes.entry("smoke/ibot"), {"guide": "supervised_cpu-none"})
    learner = build(config, 10, "cpu")
    assert not any(parameter.requires_grad for parameter in learner.guide.parameters())
    with pytest.raises(ValueError, match="name: got 'nobody', accepts"):
        run("smoke/ibot", progress=False, **(TINY | {"guide": "nobody"}))


def test_the_patch_loss_of_every_strategys_masks():
    learner = build(configure(recipes.entry("smoke/ibot"), {}), 10, "cpu")
    source = bank("scenes", "validation", 64, progress=False)
    losses = fill_in_losses(learner, source, images=16, ratio=0.25)
    assert set(losses) == {f"fill_{name}" for name in ("block", "random", "attmask_low", "attmask_hint", "attmask_high")}
    [(pixels, sizes, _)] = source.batches([torch.linspace(0, len(source) - 1, 16).long()])
    views = center_view(pixels, learner.config.eval_size, crop=learner.config.eval_crop, sizes=sizes)
    target = learner.teacher.features(views)
    attention = target.attention.mean(1)
    for strategy in ("high", "low"):
        masks = attention_mask(attention, 0.25, strategy=strategy)
        assert losses[f"fill_attmask_{strategy}"] == pytest.approx(learner.patch_loss(views, target, masks).item(), rel=1e-6)
    assert not learner.training
