import itertools
import math
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from lib import masking, recipes
from lib.data.views import make_views
from lib.distillation import DINOLoss, IBOTLoss
from lib.distillation.losses import koleo
from lib.learning.base import METHODS, Learner
from lib.models import RestorationDecoder, create_model
from lib.models.heads import BatchNorm
from lib.pooling import SimPool
from lib.train import configure

SMALL = dict(
    teacher_temp=[0.04, 0.07],
    teacher_temp_epochs=2,
    train_size=32,
    local_size=16,
    out_dim=24,
    hidden_dim=32,
    bottleneck_dim=12,
    epochs=2,
    mask_probability=0.7,
    drop_path=0.0,
)
BATCH, STEPS = 3, 8  # four steps an epoch


def config(entry="smoke/ibot", **overrides):
    return configure(recipes.entry(entry), SMALL | overrides)


def made_of(settings, steps=STEPS) -> Learner:
    return METHODS[settings.method](settings, steps)


def learner(entry="smoke/ibot", steps=STEPS, **overrides):
    """A learner whose student has moved away from its teacher and whose centers are not zero."""
    torch.manual_seed(0)
    made = made_of(config(entry, **overrides), steps)
    with torch.no_grad():
        for parameter in [*made.student.parameters(), *made.student_head.parameters()]:
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
        for center in made.loss.buffers():
            center.normal_()
    return made.train()


def images():
    g = torch.Generator().manual_seed(1)
    return torch.randint(256, (BATCH, 3, 48, 48), dtype=torch.uint8, generator=g), torch.tensor([[48, 48], [40, 60], [70, 50]])


def seeded(seed=2):
    return torch.Generator().manual_seed(seed)


def step_of(made, step=0, seed=2):
    return made(*images(), torch.zeros(BATCH), step, seeded(seed))


def parameters_of_student(made):
    return [p for p in [*made.student.parameters(), *made.student_head.parameters()] if p.requires_grad]


def literal_step(made, temperature, seed=2):
    """The same losses with every view and every patch through the networks and heads, one view at a time."""
    settings, g = made.config, seeded(seed)
    pictures, sizes = images()
    views = make_views(pictures, made.global_views + made.local_views, sizes=sizes, generator=g)
    options = dict(student_temp=settings.student_temp, center_momentum=settings.center_momentum, centering=settings.centering)
    loss = DINOLoss(24, **options) if settings.method == "dino" else IBOTLoss(24, patch_center_momentum=settings.center_momentum, **options)
    loss.load_state_dict({name: b.clone() for name, b in made.loss.state_dict().items()})
    with torch.no_grad():
        targets = [made.teacher.features(view) for view in views[:2]]
        teacher_cls = torch.stack([made.teacher_head(t.cls) for t in targets])
        teacher_patches = torch.stack([made.teacher_head(t.patches) for t in targets])
    if settings.method == "dino":
        masks = [None, None]
    else:
        options = dict(
            ratio_range=settings.mask_ratio, probability=settings.mask_probability, share_ratio=settings.share_ratio, generator=g
        )
        attention = torch.cat([t.attention for t in targets]).mean(1)
        masks = masking.draw_masks(settings.masking, 2 * BATCH, targets[0].grid, attention=attention, **options).view(2, BATCH, -1)
    hidden = [made.student.features(view, mask) for view, mask in zip(views, masks)]
    locals_ = [made.student.features(view).cls for view in views[2:]]
    student_cls = torch.stack([made.student_head(x) for x in [h.cls for h in hidden] + locals_])
    named = [student_cls[1 - q].argmax(-1) == (teacher_cls[q] - loss.center).argmax(-1) for q in (0, 1)]
    agreement = torch.cat(named).float().mean()
    if settings.method == "dino":
        return {"loss": loss(student_cls, teacher_cls, temperature), "agreement": agreement}, loss, masks
    student_patches = torch.stack([made.student_head(h.patches) for h in hidden])
    losses = loss(student_cls, student_patches, teacher_cls, teacher_patches, masks, temperature, temperature)
    return {"loss": losses["total"], "cls": losses["cls"], "patch": losses["patch"], "agreement": agreement}, loss, masks


# ---- the step ---------------------------------------------------------------------------------------------------------

VARIANTS = [("smoke/ibot", dict(masking=s)) for s in masking.STRATEGIES] + [
    ("smoke/ibot", dict(share_ratio=False)),
    ("smoke/ibot", dict(local_crops=0)),
    ("smoke/ibot", dict(mask_probability=0.0)),
    ("smoke/ibot", dict(mask_probability=1.0, norm_last_layer=False)),
    ("smoke/ibot", dict(centering="sinkhorn")),
    ("smoke/dino", dict()),
    ("smoke/dino", dict(local_crops=0)),
    ("smoke/dino", dict(centering="sinkhorn")),
]


@pytest.mark.parametrize(
    "entry, overrides", VARIANTS, ids=lambda v: v if isinstance(v, str) else " ".join(f"{k}={x}" for k, x in v.items())
)
@pytest.mark.parametrize("step, temperature", [(0, 0.04), (7, 0.07)])
def test_a_step_equals_the_literal_one(entry, overrides, step, temperature):
    made = learner(entry, **overrides)
    expected, loss, masks = literal_step(made, temperature)
    gradients = torch.autograd.grad(expected["loss"], parameters_of_student(made), materialize_grads=True)
    found = step_of(made, step)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)
    found["loss"].backward()
    for parameter, gradient in zip(parameters_of_student(made), gradients):
        got = torch.zeros_like(gradient) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(got, gradient, rtol=1e-3, atol=1e-5 * max(1.0, gradient.abs().max().item()))
    torch.testing.assert_close(dict(made.loss.named_buffers()), dict(loss.named_buffers()), rtol=1e-5, atol=1e-6)
    if entry == "smoke/ibot" and overrides.get("mask_probability") != 0.0:
        assert masks.any() and found["patch"] > 0.1


@pytest.mark.parametrize("strategy", masking.STRATEGIES)
def test_every_strategy_hides_tokens_from_the_student_alone(strategy):
    made, shown = learner(masking=strategy, mask_probability=1.0), {}
    for name in ("student", "teacher"):
        network = getattr(made, name)
        features = network.features

        def watched(x, mask=None, *, name=name, features=features):
            shown.setdefault(name, []).append((len(x), mask))
            return features(x, mask)

        network.features = watched
    losses = step_of(made)
    assert set(losses) == {"loss", "cls", "patch", "agreement"} and all(v.isfinite() for v in losses.values())
    torch.testing.assert_close(losses["loss"], losses["cls"] + losses["patch"])
    (whole, mask), (parts, none) = shown["student"]
    assert (whole, parts) == (2 * BATCH, 2 * BATCH) and none is None
    assert mask.shape == (2 * BATCH, 16) and mask.any(1).all() and not mask.all(1).any()
    assert shown["teacher"] == [(2 * BATCH, None)]


def test_attention_strategies_follow_the_teachers_attention():
    made = learner(masking="attmask_high", mask_probability=1.0, mask_ratio=[0.25, 0.25])
    target = made.teacher.features(make_views(images()[0], made.global_views, generator=seeded())[0])
    expected = torch.zeros(BATCH, 16, dtype=torch.bool).scatter_(1, target.attention.mean(1).topk(4).indices, True)
    assert torch.equal(made.draw_masks(target, seeded()), expected)


def test_a_guides_attention_replaces_the_teachers():
    made = learner(masking="attmask_high", mask_probability=1.0, mask_ratio=[0.25, 0.25], local_crops=0)
    made.guide = create_model("vit_nano", img_size=64).eval()  # of another size than the views
    with torch.no_grad():
        for parameter in made.guide.parameters():
            parameter.mul_(3.0)
    with mock.patch.object(made.student, "features", side_effect=made.student.features) as features:
        step_of(made)
    whole, masks = features.call_args_list[0].args
    for network, same in ((made.guide, True), (made.teacher, False)):
        attended = network.features(whole).attention.mean(1).topk(4).indices
        assert torch.equal(masks, torch.zeros_like(masks).scatter_(1, attended, True)) is same
    assert not made.guide.training


def test_koleo_is_added_for_each_global_view():
    plain, spread, outputs = learner(), learner(koleo=0.5), []
    spread.student.norm.register_forward_hook(lambda module, inputs, output: outputs.append(output[:, 0]))
    losses, without = step_of(spread), step_of(plain)
    first, second = outputs[0].chunk(2)
    torch.testing.assert_close(losses["koleo"], (koleo(first) + koleo(second)) / 2)
    torch.testing.assert_close(losses["loss"], without["loss"] + 0.5 * losses["koleo"])
    assert "koleo" not in without


def test_options_reach_head_loss_and_views():
    made = learner(head_norm="batch", centering="sinkhorn", blur=[0.2, 0.3, 0.4], blur_sigma=[0.5, 0.7], solarise=0.0)
    assert any(type(layer) is BatchNorm for layer in made.student_head.mlp) and made.loss.centering == "sinkhorn"
    assert [view.blur for view in (*made.global_views, made.local_views[0])] == [0.2, 0.3, 0.4]
    assert {tuple(view.blur_sigma) for view in (*made.global_views, *made.local_views)} == {(0.5, 0.7)}
    assert made.global_views[1].solarise == 0.0
    for name in ("centering", "head_norm"):
        with pytest.raises(ValueError, match=f"{name}: got 'other', accepts"):
            config(**{name: "other"})


@pytest.mark.parametrize("centering", ["ema", "sinkhorn"])
def test_the_patch_loss_of_given_masks(centering):
    made = learner(centering=centering).eval()
    views = make_views(images()[0], made.global_views, generator=seeded())[0]
    masks = torch.rand(BATCH, 16, generator=seeded()) < 0.5
    before = {name: buffer.clone() for name, buffer in made.loss.named_buffers()}
    logits = made.student_head(made.student.features(views, masks).patches)[masks]
    target = made.teacher.features(views)
    targets = made.loss.targets(made.teacher_head(target.patches)[masks], made.loss.patch_center, 0.07)
    expected = -(targets * F.log_softmax(logits / 0.1, -1)).sum(-1).mean()
    torch.testing.assert_close(made.patch_loss(views, target, masks), expected.detach())
    assert all(torch.equal(before[name], buffer) for name, buffer in made.loss.named_buffers())


def test_without_masked_crops_the_patch_loss_is_zero():
    losses = step_of(learner(mask_probability=0.0))
    assert losses["patch"] == 0 and losses["loss"] == losses["cls"] > 0


def test_dino_has_no_masks():
    made = learner("smoke/dino")
    assert not hasattr(made.student, "masked_embed") and type(made.loss) is DINOLoss
    with mock.patch.object(masking, "draw_masks", side_effect=AssertionError):
        assert set(step_of(made)) == {"loss", "cls", "agreement"}


def test_the_generator_alone_decides():
    losses = [step_of(learner(masking="attmask_hint"), seed=seed)["loss"] for seed in (2, 2, 3)]
    assert losses[0] == losses[1] != losses[2]


# ---- the teacher ------------------------------------------------------------------------------------------------------


def test_the_teacher_starts_as_the_student_and_lacks_its_mask_embedding():
    made = made_of(config())
    student, teacher = made.student.state_dict(), made.teacher.state_dict()
    assert set(student) - set(teacher) == {"masked_embed"}
    assert all(torch.equal(student[name], value) for name, value in teacher.items())
    assert all(torch.equal(a, b) for a, b in zip(made.student_head.parameters(), made.teacher_head.parameters()))
    assert made.encoder is made.teacher


@pytest.mark.parametrize("step", [0, 3, STEPS - 1])
def test_the_teacher_is_the_moving_average(step):
    made = learner(momentum=0.9, norm_last_layer=False)
    momentum = 1 - 0.1 * (math.cos(math.pi * step / STEPS) + 1) / 2
    pairs = [(dict(made.student.named_parameters()), made.teacher), (dict(made.student_head.named_parameters()), made.teacher_head)]
    expected = [{n: momentum * t + (1 - momentum) * student[n] for n, t in teacher.named_parameters()} for student, teacher in pairs]
    before = [{n: p.clone() for n, p in student.items()} for student, _ in pairs]
    with torch.no_grad():
        moved = [max((p - e[n]).abs().max().item() for n, p in t.named_parameters()) for (_, t), e in zip(pairs, expected)]
    made.after_update(step)
    assert min(moved) > 1e-4  # there was a way to go
    for (student, teacher), wanted, old in zip(pairs, expected, before):
        torch.testing.assert_close(dict(teacher.named_parameters()), wanted, rtol=1e-6, atol=1e-7, check_dtype=True)
        assert all(torch.equal(p, old[n]) for n, p in student.items())


@pytest.mark.parametrize("entry", ["smoke/ibot", "smoke/dino"])
def test_no_gradient_reaches_the_teacher(entry):
    made = learner(entry)
    step_of(made)["loss"].backward()
    teacher = [*made.teacher.parameters(), *made.teacher_head.parameters()]
    assert all(p.grad is None and not p.requires_grad for p in teacher)
    assert all(p.grad is not None for p in parameters_of_student(made))


def test_drop_path_acts_in_the_student_only():
    made = learner(drop_path=0.5)
    assert made.training and made.student.training and not made.teacher.training and not made.teacher_head.training
    x = torch.randn(16, 3, 32, 32, generator=seeded())
    torch.manual_seed(0)
    assert torch.equal(made.teacher.features(x).cls, made.teacher.features(x).cls)
    assert not torch.equal(made.student.features(x).cls, made.student.features(x).cls)
    assert not made.eval().student.training


# ---- the last layer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch, pooling", [("resnet_mini", "none"), ("resnet_mini", "simpool"), ("resnet_mini", "ge"), ("vit_nano", "ge")])
def test_a_teachers_batch_norms_run_on_its_batches(arch, pooling):
    """With statistics that nobody updates, a teacher would keep the means 0 and variances 1 of its first day."""
    made = learner("smoke/dino", arch=arch, pooling=pooling, local_crops=0)
    norms = [module for module in made.teacher.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    inputs = []
    norms[0].register_forward_hook(lambda module, given, output: inputs.append(given[0]))
    assert norms and all(module.training for module in norms) and not made.teacher.training
    step_of(made)
    [batch] = inputs
    torch.testing.assert_close(norms[0].running_mean, 0.1 * batch.mean((0, 2, 3)))
    assert all(module.running_mean.abs().sum() > 0 for module in norms)
    made.eval()
    assert not any(module.training for module in norms)
    before = made.teacher.features(torch.zeros(2, 3, 32, 32)).cls
    made.after_update(0)  # moves weights, not statistics
    for _ in range(60):
        made.train()(*images(), torch.zeros(BATCH), 0, seeded())
    torch.testing.assert_close(norms[0].running_mean, inputs[-1].mean((0, 2, 3)), rtol=0.05, atol=0.05)
    assert not torch.equal(before, made.eval().teacher.features(torch.zeros(2, 3, 32, 32)).cls)


@pytest.mark.parametrize("freeze_epochs, step, frozen", [(1, 0, True), (1, 3, True), (1, 4, False), (2, 7, True), (0, 0, False)])
def test_the_last_layer_is_still_in_the_first_epochs(freeze_epochs, step, frozen):
    made = learner(freeze_epochs=freeze_epochs, norm_last_layer=False)
    step_of(made, step)["loss"].backward()
    made.before_update(step)
    last = list(made.student_head.last_layer.parameters())
    assert all((p.grad is None) == frozen for p in last)
    others = [p for p in parameters_of_student(made) if all(p is not q for q in last)]
    assert others and all(p.grad is not None for p in others)
    before = [p.clone() for p in last]
    torch.optim.AdamW(made.parameters(), weight_decay=0.5).step()
    assert all(torch.equal(p, q) == frozen for p, q in zip(last, before))


# ---- configurations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entry, strategy",
    [("smoke/dino", "high"), ("smoke/ibot", "none"), ("smoke/ibot", "high"), ("smoke/mst_brief", "none"), ("smoke/mst_brief", "high")],
)
def test_strategies_that_a_method_lacks_are_refused(entry, strategy):
    with pytest.raises(ValueError, match=f"^masking: got '{strategy}'.* accepts"):
        config(entry, masking=strategy)


# ---- masks without a patch loss, and restoration ----------------------------------------------------------------------


def shown_to(made, seed=2):
    """((images, mask) of every call) of the student, of the teacher, and what the step returns."""
    calls = {"student": [], "teacher": []}
    for name, seen in calls.items():
        network = getattr(made, name)

        def watched(x, mask=None, *, seen=seen, features=network.features):
            seen.append((x, mask))
            return features(x, mask)

        network.features = watched
    return calls["student"], calls["teacher"], step_of(made, seed=seed)


def literal_masked_step(made, temperature, seed=2):
    """[CLS] loss and decoded views of a step, one view at a time, and the center after it."""
    settings, g = made.config, seeded(seed)
    pictures, sizes = images()
    views = make_views(pictures, made.global_views + made.local_views, sizes=sizes, generator=g)
    loss = DINOLoss(24, student_temp=settings.student_temp, center_momentum=settings.center_momentum)
    loss.load_state_dict({name: b.clone() for name, b in made.loss.state_dict().items()})
    with torch.no_grad():
        targets = [made.teacher.features(view) for view in views[:2]]
        teacher_cls = torch.stack([made.teacher_head(t.cls) for t in targets])
    options = dict(ratio_range=settings.mask_ratio, probability=settings.mask_probability, share_ratio=settings.share_ratio, generator=g)
    attention = torch.cat([t.attention for t in targets]).mean(1)
    masks = masking.draw_masks(settings.masking, 2 * BATCH, targets[0].grid, attention=attention, **options).view(2, BATCH, -1)
    hidden = [made.student.features(view, mask) for view, mask in zip(views, masks)]
    vectors = [h.cls for h in hidden] + [made.student.features(view).cls for view in views[2:]]
    return loss(torch.stack([made.student_head(x) for x in vectors]), teacher_cls, temperature), hidden, views[:2], masks, loss


def literal_restored(decoder, patches, grid, size):
    """A convolution over the grid, and the pixels of each patch as 3 planes of size x size, from its vector alone."""
    vectors = decoder[1](decoder[0](patches.mT.unflatten(2, grid)))
    image = torch.zeros(len(patches), 3, grid[0] * size, grid[1] * size)
    for r, c in itertools.product(range(grid[0]), range(grid[1])):
        pixels = F.linear(vectors[:, :, r, c], decoder[2].weight[:, :, 0, 0], decoder[2].bias).view(-1, 3, size, size)
        image[:, :, r * size : (r + 1) * size, c * size : (c + 1) * size] = pixels
    return image


@pytest.mark.parametrize("restoration", [0.0, 0.6, 2])
@pytest.mark.parametrize("strategy", ["attmask_low", "block"])
def test_mst_learns_the_cls_and_all_pixels(strategy, restoration):
    made = learner("smoke/mst_brief", masking=strategy, restoration=restoration, patch_size=8)
    cls, hidden, views, masks, loss = literal_masked_step(made, 0.07)
    restored = torch.cat([literal_restored(made.decoder, h.patches, h.grid, 8) for h in hidden])
    image = (restored - torch.cat(views)).abs().mean()
    total = cls + restoration * image
    trained = [*parameters_of_student(made), *made.decoder.parameters()]
    gradients = torch.autograd.grad(total, trained, materialize_grads=True)
    found = step_of(made, 7)
    assert set(found) == {"loss", "cls", "image", "agreement"} and masks.any()
    for name, value in {"loss": total, "cls": cls, "image": image}.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)
    assert [name for name, value in found.items() if value.requires_grad] == ["loss"]
    found["loss"].backward()
    for parameter, gradient in zip(trained, gradients):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5 * max(1.0, gradient.abs().max().item()))
    torch.testing.assert_close(made.loss.center, loss.center)
    assert any(p is made.decoder[0].weight for group in made.make_optimizer().param_groups for p in group["params"])


@pytest.mark.parametrize("strategy", masking.STRATEGIES)
def test_dino_with_masks_learns_nothing_more(strategy):
    made = learner("smoke/dino", masking=strategy)
    cls, _, _, masks, _ = literal_masked_step(made, 0.04)
    found = step_of(made)
    assert set(found) == {"loss", "cls", "agreement"} and type(made.loss) is DINOLoss and not hasattr(made, "decoder") and masks.any()
    assert found["loss"] == found["cls"]
    torch.testing.assert_close(found["loss"], cls, rtol=1e-5, atol=1e-5)
    found["loss"].backward()
    assert made.student.masked_embed.grad.abs().sum() > 0


@pytest.mark.parametrize("entry", ["smoke/mst_brief", "smoke/dino"])
def test_only_the_students_global_views_are_masked(entry):
    made = learner(entry, masking="attmask_low", mask_probability=1.0, mask_ratio=[0.25, 0.25])
    student, teacher, _ = shown_to(made)
    (whole, mask), (parts, none) = student
    assert none is None and len(teacher) == 1 and teacher[0][1] is None and torch.equal(teacher[0][0], whole)
    assert whole.shape == (2 * BATCH, 3, 32, 32) and parts.shape == (2 * BATCH, 3, 16, 16)
    attention = made.teacher.features(whole).attention.mean(1)
    assert torch.equal(mask, torch.zeros(2 * BATCH, 16, dtype=torch.bool).scatter_(1, attention.topk(4, largest=False).indices, True))


def test_only_masks_bring_a_mask_embedding():
    plain, masked = made_of(config("smoke/dino")), made_of(config("smoke/dino", masking="block"))
    assert not any("masked_embed" in name for name in plain.state_dict())
    assert [name for name in masked.state_dict() if "masked_embed" in name] == ["student.masked_embed"]
    assert set(masked.state_dict()) - set(plain.state_dict()) == {"student.masked_embed"}
    assert all(torch.equal(masked.state_dict()[name], value) for name, value in plain.state_dict().items() if "center" in name)


@pytest.mark.parametrize("entry", ["smoke/mst_brief", "smoke/dino"])
def test_masks_of_no_patch_change_nothing(entry):
    """A crop is not masked, or so little that no patch is."""
    found = [step_of(learner(entry, masking="random", **o)) for o in (dict(mask_probability=0.0), dict(mask_ratio=[0.0, 0.05]))]
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("size, grid", [(4, (2, 3)), (8, (1, 2)), (1, (3, 3))])
def test_the_decoder_puts_every_pixel_at_its_place(size, grid):
    """A last layer of ten thousands for the channel, hundreds for the row and ones for the column, and the patch's own vector."""
    decoder = RestorationDecoder(2, 1, size)
    patches = torch.randn(2, grid[0] * grid[1], 2, generator=seeded())
    with torch.no_grad():
        for p in decoder.parameters():
            p.zero_()
        decoder[0].weight[0, 0, 1, 1] = 1  # the patch's own first feature
        decoder[2].weight.fill_(0.5)
        decoder[2].bias.copy_(torch.tensor([10000.0 * c + 100 * i + j for c in range(3) for i in range(size) for j in range(size)]))
        found = decoder(patches, grid)
    assert found.shape == (2, 3, grid[0] * size, grid[1] * size)
    own = F.gelu(patches[..., 0]) / 2
    for b, c, y, x in itertools.product(range(2), range(3), range(grid[0] * size), range(grid[1] * size)):
        expected = 10000 * c + 100 * (y % size) + x % size + own[b, y // size * grid[1] + x // size].item()
        assert found[b, c, y, x].item() == pytest.approx(expected, abs=5e-3)


def test_the_decoder_sees_the_neighbours():
    torch.manual_seed(0)
    decoder, patches = RestorationDecoder(5, 6, 4), torch.randn(1, 20, 5, generator=seeded())
    changed = patches.clone()
    changed[0, 7] += 1  # row 1, column 2 of a grid of 4 x 5
    moved = (decoder(patches, (4, 5)) != decoder(changed, (4, 5))).any(1)[0].unfold(0, 4, 4).unfold(1, 4, 4).flatten(2).any(2)
    expected = torch.zeros(4, 5, dtype=torch.bool)
    expected[0:3, 1:4] = True
    assert torch.equal(moved, expected)


def test_mst_keeps_its_decoder_and_the_teacher_as_the_encoder():
    made = learner("smoke/mst_brief")
    assert made.encoder is made.teacher and not any("decoder" in name for name, _ in made.teacher.named_parameters())
    assert {name for name in made.state_dict() if name.startswith("decoder.")} == {
        f"decoder.{i}.{p}" for i in (0, 2) for p in ("weight", "bias")
    }
    before = [p.clone() for p in made.decoder.parameters()]
    made.after_update(0)
    assert all(torch.equal(a, b) for a, b in zip(before, made.decoder.parameters()))


def test_mst_in_half_precision_restores_finite_images():
    made = learner("smoke/mst_brief")
    with torch.autocast("cpu", torch.bfloat16):
        found = step_of(made)
    found["loss"].backward()
    assert all(value.isfinite() for value in found.values()) and all(p.grad.isfinite().all() for p in made.decoder.parameters())


# ---- the papers' recipes ----------------------------------------------------------------------------------------------


def test_lars_takes_literal_steps():
    made = learner("smoke/dino", optimizer="lars", arch="resnet_mini")
    optimizer, rate, decay, momenta = made.make_optimizer(), 0.3, 1e-2, {}
    groups = optimizer.param_groups
    for step in range(2):
        optimizer.zero_grad()
        step_of(made, step)["loss"].backward()
        expected = []
        for group in groups:
            group["lr"], group["weight_decay"] = rate, decay if group["decays"] else 0.0
            for p in group["params"]:
                update = p.grad.clone()
                if p.ndim > 1 and p.norm() > 0 and update.norm() > 0:
                    update = (update + decay * p) * (0.001 * p.norm() / (update.norm() + decay * p.norm() + 1e-8))
                momenta[p] = 0.9 * momenta.get(p, 0) + update
                expected.append(p.detach() - rate * momenta[p])
        optimizer.step()
        for p, wanted in zip((p for group in groups for p in group["params"]), expected):
            torch.testing.assert_close(p, wanted, rtol=1e-4, atol=1e-6)


def test_a_teacher_has_drop_path_where_the_recipe_says_so():
    made = learner("smoke/dino", arch="convnext_mini", drop_path=0.5, teacher_drop_path=0.5, local_size=32)
    whole = torch.rand(8, 3, 32, 32)
    assert not torch.equal(made.teacher.features(whole).cls, made.teacher.features(whole).cls)
    made.eval()
    assert torch.equal(made.teacher.features(whole).cls, made.teacher.features(whole).cls)
    assert torch.equal(*(learner("smoke/dino", arch="convnext_mini", drop_path=0.5).teacher.features(whole).cls for _ in range(2)))


def test_batch_norms_of_student_and_teacher_are_synchronised():
    made = learner("smoke/dino", arch="resnet_mini")
    for network in (made.student, made.teacher):
        norms = [module for module in network.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
        assert norms and all(isinstance(norm, torch.nn.SyncBatchNorm) for norm in norms)


def test_positions_of_local_crops_are_interpolated_as_the_recipe_says():
    plain, released = (learner("smoke/dino", released_positions=value) for value in (False, True))
    assert (plain.student.released_positions, plain.teacher.released_positions) == (False, False)
    assert (released.student.released_positions, released.teacher.released_positions) == (True, True)
    local, whole = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 32, 32)
    assert torch.equal(plain.student.features(whole).cls, released.student.features(whole).cls)
    assert not torch.equal(plain.student.features(local).cls, released.student.features(local).cls)


def _ratios_of_one(rank, folder, share):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    made = learner(masking="attmask_high", mask_probability=1.0, share_ratio=share, mask_ratio=[0.1, 0.9])
    target = made.teacher.features(torch.rand(4, 3, 32, 32, generator=seeded(rank)))
    torch.save([made.draw_masks(target, seeded(step * 2 + rank)).sum(1).tolist() for step in range(8)], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
def test_all_processes_have_one_ratio(tmp_path, share):
    mp.start_processes(_ratios_of_one, (str(tmp_path), share), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert (first == second) is share and len({tuple(counts) for counts in first}) > 2
    assert all(len(set(counts)) == 1 for counts in first) is share


# ---- 16 bits ----------------------------------------------------------------------------------------------------------


def test_targets_are_of_float32_under_autocast():
    made, seen = learner(mask_probability=1.0), []
    made.teacher_head.last_layer.register_forward_hook(lambda layer, given, logits: seen.append((given[0], logits)))
    before = {name: center.clone() for name, center in made.loss.named_buffers()}
    with torch.autocast("cpu", torch.bfloat16):
        step_of(made)
    assert len(seen) == 3  # class tokens, masked patches, and the mean over all patches
    layer = made.teacher_head.last_layer
    for vectors, logits in list(seen):
        assert vectors.dtype == logits.dtype == torch.float32
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(vectors.shape[:-1]), rtol=0, atol=1e-5 if vectors.shape[0] > 1 else 1)
        torch.testing.assert_close(logits, layer(vectors), rtol=0, atol=1e-6)
    means = {"center": seen[0][1].mean(0), "patch_center": seen[2][1][0]}
    for name, mean in means.items():
        torch.testing.assert_close(dict(made.loss.named_buffers())[name], 0.9 * before[name] + 0.1 * mean, rtol=1e-5, atol=1e-7)


def test_centers_of_16_bit_logits_are_means_in_float32():
    logits = torch.randn(2, 64, 24, generator=seeded()).bfloat16()
    student, patches, masks = torch.randn(3, 64, 24), torch.randn(2, 64, 5, 24, generator=seeded()).bfloat16(), torch.ones(2, 64, 5).bool()
    dino, ibot = DINOLoss(24), IBOTLoss(24)
    dino(student, logits, 0.04)
    ibot(student, patches.float(), logits, patches, masks, 0.04, 0.04)
    expected = 0.1 * logits.float().flatten(0, 1).mean(0)
    torch.testing.assert_close(dino.center, expected, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(ibot.center, expected, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(ibot.patch_center, 0.1 * patches.float().flatten(0, 2).mean(0), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("gamma", [None, 1.25])
def test_simpools_attention_is_of_float32_under_autocast(gamma):
    torch.manual_seed(0)
    pooling, tokens = SimPool(64, gamma=gamma), 3 * torch.randn(2, 50, 64)
    for layer in (pooling.wq, pooling.wk):
        torch.nn.init.normal_(layer.weight)  # scores of about ten, of which eight bits would keep one digit
    expected = pooling(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        found, rough = pooling(tokens), pooling(tokens.bfloat16())
    assert torch.equal(found.attention, expected.attention) and torch.equal(found.vector, expected.vector)
    exact = pooling(tokens.bfloat16().float())
    assert rough.vector.dtype == torch.bfloat16 and rough.attention.dtype == torch.float32
    assert torch.equal(rough.attention, exact.attention) and torch.equal(rough.vector, exact.vector.bfloat16())


def test_the_class_tokens_attention_is_of_float32_under_autocast():
    torch.manual_seed(0)
    network, seen = create_model("vit_nano", img_size=32).eval(), []
    network.blocks[-1].attn.qkv.register_forward_hook(lambda layer, given, output: seen.append(output))
    with torch.autocast("cpu", torch.bfloat16):
        attention = network.features(torch.rand(2, 3, 32, 32)).attention
    q, k, _ = seen[0].float().unflatten(2, (3, 4, 32)).permute(2, 0, 3, 1, 4)
    assert seen[0].dtype == torch.bfloat16 and attention.dtype == torch.float32
    torch.testing.assert_close(attention, (q[:, :, :1] @ k.mT / 32**0.5).softmax(-1)[:, :, 0, 1:], rtol=1e-5, atol=1e-7)
