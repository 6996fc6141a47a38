"""The procedural set: everything follows from (seed, index), and what it says about itself is exact."""

import pytest
import torch

from lib.data import scenes
from lib.data.scenes import CLASSES, Scenes, render, videos

FIELDS = tuple(Scenes.__dataclass_fields__)


def same(a: Scenes, b: Scenes) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in FIELDS)


def at(found: Scenes, rows) -> Scenes:
    return Scenes(*(getattr(found, name)[rows] for name in FIELDS))


def test_fields_have_the_promised_shapes_and_types():
    found = render(torch.arange(5), size=32, objects=3)
    assert found.images.shape == (5, 3, 32, 32) and found.images.dtype == torch.uint8
    assert found.masks.shape == (5, 3, 32, 32) and found.masks.dtype == torch.bool
    assert found.boxes.shape == (5, 3, 4) and found.boxes.dtype == torch.float32
    assert found.labels.shape == found.backgrounds.shape == (5,) and found.classes.shape == (5, 3)
    assert found.labels.dtype == found.classes.dtype == found.backgrounds.dtype == torch.int64
    assert torch.equal(found.labels, found.classes[:, 0])


@pytest.mark.parametrize("options", [{}, {"objects": 3}, {"instances": True, "correlation": 0.0}, {"time": 0.7}, {"size": 20, "seed": 5}])
def test_a_scene_follows_from_seed_and_index_in_any_batch_and_order(options):
    indices = torch.tensor([3, 150, 0, 77, 64, 3, 1_000_000])
    whole = render(indices, **options)
    for i, index in enumerate(indices):
        assert same(at(whole, slice(i, i + 1)), render(index.view(1), **options))
    assert same(at(whole, torch.arange(6, -1, -1)), render(indices.flip(0), **options))
    long = render(torch.arange(200), **options)  # more than are rendered at a time
    assert same(at(long, torch.tensor([150, 77, 64])), at(whole, torch.tensor([1, 3, 4])))


def test_scenes_do_not_depend_on_the_global_generator_or_change_it():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = render(torch.arange(4))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert same(first, render(torch.arange(4)))


def test_other_seeds_and_indices_give_other_scenes():
    a, b = render(torch.arange(40)), render(torch.arange(40), seed=1)
    assert not (a.images == b.images).flatten(1).all(1).any()
    assert len({image.numpy().tobytes() for image in a.images}) == 40
    train, test = scenes.SPLIT_SEEDS["train"], scenes.SPLIT_SEEDS["validation"]
    assert train != test
    shared = {x.numpy().tobytes() for x in render(torch.arange(300), seed=train, size=16).images}
    assert not shared & {x.numpy().tobytes() for x in render(torch.arange(300), seed=test, size=16).images}


@pytest.mark.parametrize("size", [16, 64, 224])
def test_boxes_are_the_tight_boxes_of_the_masks(size):
    found = render(torch.arange(20), size=size, objects=2)
    for masks, boxes in zip(found.masks, found.boxes):
        for mask, box in zip(masks, boxes):
            rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
            if len(rows):
                assert box.tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            else:
                assert box.tolist() == [0, 0, 0, 0]
    assert found.masks[:, 0].flatten(1).any(1).all()  # the main object is always seen


def test_objects_are_smaller_than_the_frame():
    area = render(torch.arange(300)).masks.float().mean((1, 2, 3))
    assert 0.03 < area.min() and area.max() < 0.6 and 0.1 < area.mean() < 0.35


def test_sizes_show_the_same_scene():
    small, large = render(torch.arange(6), size=32), render(torch.arange(6), size=128)
    shrunk = torch.nn.functional.avg_pool2d(large.masks.float(), 4)
    assert torch.equal(small.labels, large.labels) and torch.equal(small.backgrounds, large.backgrounds)
    assert (shrunk - small.masks.float()).abs().mean() < 0.02
    assert (small.boxes - large.boxes / 4).abs().max() <= 2


def test_classes_are_balanced():
    counts = render(torch.arange(4000), size=16).labels.bincount(minlength=len(CLASSES))
    assert len(CLASSES) == len(set(CLASSES)) == 10
    assert counts.min() > 330 and counts.max() < 470


@pytest.mark.parametrize("correlation, rate", [(0.0, 0.1), (0.5, 0.55), (1.0, 1.0)])
def test_the_knob_says_how_often_the_background_is_the_classes_own(correlation, rate):
    found = render(torch.arange(4000), size=16, correlation=correlation)
    own = (found.backgrounds == found.labels).float().mean().item()
    assert own == pytest.approx(rate, abs=0.0 if rate == 1 else 0.025)
    assert found.backgrounds.bincount(minlength=10).min() > 300


def test_the_knob_changes_backgrounds_only():
    free, tied = render(torch.arange(60), correlation=0.0), render(torch.arange(60), correlation=1.0)
    assert torch.equal(free.masks, tied.masks) and torch.equal(free.labels, tied.labels)
    shown = free.masks.expand(-1, 3, -1, -1)
    assert torch.equal(free.images[shown], tied.images[shown])
    other = free.backgrounds != tied.backgrounds
    assert other.any() and (free.images[other] != tied.images[other]).any()


def test_a_foreign_background_changes_all_but_the_object():
    indices, others = torch.arange(30), torch.arange(30).roll(7) + 500
    own, swapped, donor = render(indices), render(indices, backgrounds_of=others), render(others)
    shown = own.masks.expand(-1, 3, -1, -1)
    assert torch.equal(own.masks, swapped.masks) and torch.equal(own.boxes, swapped.boxes) and torch.equal(own.labels, swapped.labels)
    assert torch.equal(own.images[shown], swapped.images[shown])
    changed = (own.images != swapped.images).any(1)
    assert not (changed & own.masks[:, 0]).any()
    assert (changed & ~own.masks[:, 0]).sum() / (~own.masks).sum() > 0.9
    assert torch.equal(swapped.backgrounds, donor.backgrounds)
    behind = ~(own.masks | donor.masks).expand(-1, 3, -1, -1)
    assert (swapped.images[behind].int() - donor.images[behind].int()).abs().max() <= 0.06 * 255 + 1  # grain stays the scene's
    assert same(own, render(indices, backgrounds_of=indices))


def test_backgrounds_tell_classes_apart():
    found = render(torch.arange(1200), size=16, correlation=1.0)
    mean = found.images.float().masked_fill(found.masks, 0).sum((2, 3)) / (~found.masks).sum((2, 3))
    centres = torch.stack([mean[:600][found.labels[:600] == c].mean(0) for c in range(10)])
    right = torch.cdist(mean[600:], centres).argmin(1) == found.labels[600:]
    assert right.float().mean() > 0.4


def test_instances_come_in_pairs_of_one_thing_before_two_backgrounds():
    found = render(torch.arange(80), instances=True, correlation=0.0)
    first, second = found.labels[::2], found.labels[1::2]
    assert torch.equal(first, second)
    assert len(first.unique()) == 10
    assert not torch.equal(found.masks[::2], found.masks[1::2])
    assert (found.backgrounds[::2] != found.backgrounds[1::2]).float().mean() > 0.7
    colours = [image[:, mask[0]].float().quantile(torch.tensor([0.2, 0.8]), dim=1) for image, mask in zip(found.images, found.masks)]
    colours = torch.stack(colours).flatten(1)
    pairs = (colours[::2] - colours[1::2]).norm(dim=1)
    strangers = (colours[::2] - colours[::2].roll(1, 0)).norm(dim=1)
    assert pairs.median() < 0.3 * strangers.median()
    alone = render(torch.arange(80), correlation=0.0)
    assert (alone.labels[::2] != alone.labels[1::2]).any()


def test_later_objects_lie_behind_and_masks_do_not_overlap():
    many, one = render(torch.arange(40), objects=3), render(torch.arange(40), objects=2)
    assert many.masks.sum(1).max() == 1
    assert torch.equal(many.masks[:, 0], one.masks[:, 0])  # nothing hides the main object
    assert (one.masks[:, 1] & ~(many.masks[:, 1])).sum() == 0  # a third hides nothing of the second
    nearer = many.masks[:, :2].any(1, keepdim=True).expand(-1, 3, -1, -1)
    assert torch.equal(many.images[nearer], one.images[nearer])
    assert len(many.classes[:, 2].unique()) > 5 and (many.classes[:, 0] != many.classes[:, 1]).any()


def test_videos_move_objects_and_nothing_else():
    indices = torch.arange(10)
    film, still = videos(indices, 5, size=48), render(indices, size=48)
    assert film.images.shape == (10, 5, 3, 48, 48) and film.boxes.shape == (10, 5, 1, 4)
    for name in FIELDS:
        assert torch.equal(getattr(film, name)[:, 0], getattr(still, name))
    assert same(Scenes(*(getattr(film, name)[:, -1] for name in FIELDS)), render(indices, size=48, time=1.0))
    assert (film.labels == film.labels[:, :1]).all() and (film.backgrounds == film.backgrounds[:, :1]).all()
    moved = (film.masks[:, 1:] != film.masks[:, :-1]).flatten(2).any(2)
    assert moved.all()
    behind = ~film.masks.any(1).expand(-1, 3, -1, -1)  # never covered
    for t in range(1, 5):
        assert torch.equal(film.images[:, t][behind], film.images[:, 0][behind])
    half = videos(indices, 3, size=48, seconds=0.5)
    assert torch.equal(half.images[:, 2], film.images[:, 2])
    assert torch.equal(videos(indices, 1, size=48).images[:, 0], still.images)


@pytest.mark.parametrize("size", [16, 65, 224])
def test_sizes_from_16_up_render(size):
    found = render(torch.arange(70), size=size) if size == 16 else render(torch.arange(3), size=size, objects=2)
    assert found.images.shape[-2:] == (size, size)
    assert (found.images.float().flatten(1).std(1) > 10).all()


def test_the_table_of_a_split_holds_the_scenes():
    table = scenes.table("validation", 12)
    found = render(torch.arange(12), seed=scenes.SPLIT_SEEDS["validation"])
    assert table["label"].to_pylist() == found.labels.tolist() and table["boxes"].to_pylist() == found.boxes.tolist()
    assert table["filename"].to_pylist()[11] == "000011.png"


@pytest.mark.parametrize(
    "arguments, word",
    [
        ({"indices": torch.tensor([-1])}, "indices"),
        ({"indices": torch.tensor([], dtype=torch.int64)}, "indices"),
        ({"indices": torch.zeros(2, 2)}, "indices"),
        ({"size": 15}, "size"),
        ({"correlation": 1.1}, "correlation"),
        ({"correlation": float("nan")}, "correlation"),
        ({"objects": 0}, "objects"),
        ({"backgrounds_of": torch.arange(3)}, "backgrounds_of"),
        ({"backgrounds_of": torch.tensor([-1, 0])}, "backgrounds_of"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, word):
    with pytest.raises(ValueError, match=f"{word}: got .* accepts "):
        render(**{"indices": torch.arange(2), **arguments})


def test_a_video_has_frames():
    with pytest.raises(ValueError, match="frames: got 0, accepts 1 or more"):
        videos(torch.arange(2), 0)
