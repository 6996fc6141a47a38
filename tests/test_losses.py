import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from lib.distillation import DINOLoss, IBOTLoss
from lib.distillation.losses import koleo, sinkhorn
from lib.models.heads import BatchNorm

VIEWS, BATCH, TOKENS, K, P = 6, 3, 5, 7, 4


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# ---- literal versions, in Python's floats -----------------------------------------------------------------------------


def log_softmax(logits):
    highest = max(logits)
    normaliser = highest + math.log(sum(math.exp(x - highest) for x in logits))
    return [x - normaliser for x in logits]


def cross_entropy(teacher, center, teacher_temp, student, student_temp=0.1):
    targets = [math.exp(x) for x in log_softmax([(t - c) / teacher_temp for t, c in zip(teacher, center)])]
    return -sum(t * s for t, s in zip(targets, log_softmax([x / student_temp for x in student])))


def literal_cls(student, teacher, center, teacher_temp, student_temp=0.1):
    views, batch, terms, total = len(student), len(student[0]), 0, 0.0
    for q in range(2):
        for v in range(views):
            if v != q:
                entropies = [cross_entropy(teacher[q][b], center, teacher_temp, student[v][b], student_temp) for b in range(batch)]
                total, terms = total + sum(entropies) / batch, terms + 1
    return total / terms


def literal_patch(student, teacher, masks, center, teacher_temp, student_temp=0.1):
    views = []
    for v in range(2):
        images = []
        for b in range(len(masks[v])):
            tokens = [n for n, masked in enumerate(masks[v][b]) if masked]
            entropies = [cross_entropy(teacher[v][b][n], center, teacher_temp, student[v][b][n], student_temp) for n in tokens]
            images.append(sum(entropies) / max(len(tokens), 1))
        views.append(sum(images) / len(images))
    return sum(views) / 2


def literal_center(center, rows, momentum):
    return [momentum * c + (1 - momentum) * sum(row[i] for row in rows) / len(rows) for i, c in enumerate(center)]


# ---- DINO -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("views", [2, 6])
@pytest.mark.parametrize("options", [dict(), dict(student_temp=0.3, center_momentum=0.5)])
def test_dino_equals_the_literal_loss_over_several_steps(views, options):
    loss, center = DINOLoss(K, **options).double(), [0.0] * K
    for step, temperature in enumerate((0.04, 0.07, 0.5)):
        student, teacher = normal(views, BATCH, K, seed=step), normal(2, BATCH, K, seed=10 + step) + 1
        expected = literal_cls(student.tolist(), teacher.tolist(), center, temperature, options.get("student_temp", 0.1))
        value = loss(student, teacher, temperature)
        assert value.shape == () and value.item() == pytest.approx(expected, rel=1e-9)
        center = literal_center(center, teacher.flatten(0, 1).tolist(), options.get("center_momentum", 0.9))
        torch.testing.assert_close(loss.center, torch.tensor(center, dtype=torch.float64))


def test_dino_of_uniform_logits_is_the_entropy():
    assert DINOLoss(K)(torch.zeros(4, BATCH, K), torch.zeros(2, BATCH, K), 0.04).item() == pytest.approx(math.log(K))


def test_dino_compares_no_view_with_itself():
    """Student view 0 has the teacher's view 1 as its only partner, and the other way round."""
    student = 5 * torch.eye(2)[:, None]  # [2, 1, 2]: one-hot
    same, swapped = DINOLoss(2)(student, student, 0.04), DINOLoss(2)(student, student.flip(0), 0.04)
    assert same > 40 and swapped < 1e-4


def test_dino_equals_lightly():
    oracle = pytest.importorskip("lightly.loss").DINOLoss(output_dim=K, student_temp=0.2, center_momentum=0.8)
    loss = DINOLoss(K, student_temp=0.2, center_momentum=0.8)
    for step in range(4):
        student, teacher = normal(VIEWS, BATCH, K, seed=step).float(), 1 + normal(2, BATCH, K, seed=9 + step).float()
        ours, theirs = student.clone().requires_grad_(), student.clone().requires_grad_()
        value, expected = loss(ours, teacher, 0.05 + 0.01 * step), oracle(list(teacher), list(theirs), teacher_temp=0.05 + 0.01 * step)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(loss.center, oracle.center.flatten())
        torch.testing.assert_close(*torch.autograd.grad(value, ours), *torch.autograd.grad(expected, theirs))


# ---- iBOT -------------------------------------------------------------------------------------------------------------


def ibot_arguments(views=VIEWS, patch_dim=P, seed=0, dtype=torch.float64):
    """Logits and masks; one image has no masked token and one has nothing else."""
    masks = torch.rand(2, BATCH, TOKENS, generator=torch.Generator().manual_seed(seed)) < 0.5
    masks[0, 0], masks[1, 1] = False, True
    shapes = ((views, BATCH, K), (2, BATCH, TOKENS, patch_dim), (2, BATCH, K), (2, BATCH, TOKENS, patch_dim))
    return [normal(*shape, seed=10 * seed + i, dtype=dtype) + (i > 1) for i, shape in enumerate(shapes)] + [masks]


@pytest.mark.parametrize("views", [2, 6])
@pytest.mark.parametrize("patch_dim", [None, P])
@pytest.mark.parametrize("options", [dict(), dict(student_temp=0.3, center_momentum=0.5, patch_center_momentum=0.7)])
def test_ibot_equals_the_literal_loss_over_several_steps(views, patch_dim, options):
    loss = IBOTLoss(K, patch_dim, **options).double()
    width, student_temp = patch_dim or K, options.get("student_temp", 0.1)
    center, patch_center = [0.0] * K, [0.0] * width
    for step, (temperature, patch_temperature) in enumerate(((0.04, 0.05), (0.07, 0.04), (0.5, 0.2))):
        arguments = ibot_arguments(views, width, seed=step)
        student_cls, student_patches, teacher_cls, teacher_patches, masks = (a.tolist() for a in arguments)
        cls = literal_cls(student_cls, teacher_cls, center, temperature, student_temp)
        patch = literal_patch(student_patches, teacher_patches, masks, patch_center, patch_temperature, student_temp)
        losses = loss(*arguments, temperature, patch_temperature)
        assert {name: value.item() for name, value in losses.items()} == pytest.approx(
            {"cls": cls, "patch": patch, "total": cls + patch}, rel=1e-9
        )
        center = literal_center(center, arguments[2].flatten(0, 1).tolist(), options.get("center_momentum", 0.9))
        patch_center = literal_center(patch_center, arguments[3].flatten(0, 2).tolist(), options.get("patch_center_momentum", 0.9))
        torch.testing.assert_close(loss.center, torch.tensor(center, dtype=torch.float64))
        torch.testing.assert_close(loss.patch_center, torch.tensor(patch_center, dtype=torch.float64))


def test_an_image_without_masked_tokens_counts_as_zero():
    arguments = ibot_arguments()
    arguments[-1][:] = False
    arguments[-1][0, 0, 0] = True
    alone = IBOTLoss(K, P)(*arguments, 0.04, 0.04)["patch"]
    arguments[-1][1, 2] = arguments[-1][0, 0]
    arguments[1][1, 2, 0], arguments[3][1, 2, 0] = arguments[1][0, 0, 0], arguments[3][0, 0, 0]
    torch.testing.assert_close(IBOTLoss(K, P)(*arguments, 0.04, 0.04)["patch"], 2 * alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_any_masked_token_the_patch_loss_is_zero(dtype):
    arguments = ibot_arguments(dtype=dtype)
    arguments[-1][:] = False
    arguments[1].requires_grad_()
    losses = IBOTLoss(K, P)(*arguments, 0.04, 0.04)
    assert losses["patch"] == 0 and losses["total"] == losses["cls"]
    losses["total"].backward()
    assert not arguments[1].grad.any()


def test_the_masked_tokens_alone_give_the_same_loss_gradients_and_centers():
    full, short = IBOTLoss(K, P).double(), IBOTLoss(K, P).double()
    for seed in range(3):
        results = []
        for loss in (full, short):
            student_cls, student_patches, teacher_cls, teacher_patches, masks = ibot_arguments(seed=seed)
            student_cls.requires_grad_(), student_patches.requires_grad_()
            if loss is full:
                losses = loss(student_cls, student_patches, teacher_cls, teacher_patches, masks, 0.04, 0.06)
            else:
                masked = (student_cls, student_patches[masks], teacher_cls, teacher_patches[masks], masks)
                losses = loss.of_masked(*masked, teacher_patches.mean((0, 1, 2)), 0.04, 0.06)
            results.append((losses, *torch.autograd.grad(losses["total"], (student_cls, student_patches)), loss.center, loss.patch_center))
        torch.testing.assert_close(*results)
        assert not results[0][2][~masks].any()


# ---- both -------------------------------------------------------------------------------------------------------------


def test_buffers_and_their_sizes():
    assert {n: b.shape for n, b in DINOLoss(K).state_dict().items()} == {"center": (K,)}
    assert {n: b.shape for n, b in IBOTLoss(K).state_dict().items()} == {"center": (K,), "patch_center": (K,)}
    assert {n: b.shape for n, b in IBOTLoss(K, P).state_dict().items()} == {"center": (K,), "patch_center": (P,)}


def test_gradients_reach_the_student_and_never_the_teacher():
    student_cls, student_patches, teacher_cls, teacher_patches, masks = ibot_arguments(views=3)
    student_cls.requires_grad_(), student_patches.requires_grad_()
    teacher_cls.requires_grad_(), teacher_patches.requires_grad_()
    still = dict(student_temp=0.5, center_momentum=1.0)  # gradcheck calls the loss many times
    dino, ibot = DINOLoss(K, **still).double(), IBOTLoss(K, P, patch_center_momentum=1.0, **still).double()
    assert torch.autograd.gradcheck(lambda s: dino(s, teacher_cls.detach(), 0.3), student_cls)

    def total(cls, patches):
        return ibot(cls, patches, teacher_cls.detach(), teacher_patches.detach(), masks, 0.3, 0.4)["total"]

    assert torch.autograd.gradcheck(total, (student_cls, student_patches))
    for loss in (
        dino(student_cls, teacher_cls, 0.3),
        ibot(student_cls, student_patches, teacher_cls, teacher_patches, masks, 0.3, 0.4)["total"],
    ):
        loss.backward()
    assert teacher_cls.grad is None and teacher_patches.grad is None
    assert student_cls.grad.any() and student_patches.grad.any()
    assert not any(b.requires_grad for b in ibot.buffers())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_finite_and_close(dtype):
    arguments = [a if a.dtype == torch.bool else 30 * a for a in ibot_arguments(dtype=dtype)]
    arguments[0].requires_grad_(), arguments[1].requires_grad_()
    losses = IBOTLoss(K, P)(*arguments, 0.04, 0.07)
    expected = IBOTLoss(K, P).double()(*(a if a.dtype == torch.bool else a.detach().double() for a in arguments), 0.04, 0.07)
    assert {n: v.item() for n, v in losses.items()} == pytest.approx({n: v.item() for n, v in expected.items()}, rel=1e-3)
    losses["total"].backward()
    assert arguments[0].grad.isfinite().all() and arguments[1].grad.isfinite().all()


@pytest.mark.parametrize(
    "student, teacher",
    [
        ((2, BATCH, K), (3, BATCH, K)),
        ((2, BATCH, K), (1, BATCH, K)),
        ((2, BATCH, K), (2, BATCH, K + 1)),
        ((2, BATCH, K), (2, K)),
        ((1, BATCH, K), (2, BATCH, K)),
        ((2, BATCH + 1, K), (2, BATCH, K)),
        ((2, BATCH, K + 1), (2, BATCH, K)),
        ((BATCH, K), (2, BATCH, K)),
    ],
)
def test_views_that_do_not_fit_are_refused(student, teacher):
    with pytest.raises(ValueError, match="^(student|teacher): got shape"):
        DINOLoss(K)(torch.zeros(student), torch.zeros(teacher), 0.04)
    patches, masks = torch.zeros(2, BATCH, TOKENS, P), torch.zeros(2, BATCH, TOKENS, dtype=torch.bool)
    with pytest.raises(ValueError, match="^(student|teacher)(_cls)?: got shape"):
        IBOTLoss(K, P)(torch.zeros(student), patches, torch.zeros(teacher), patches, masks, 0.04, 0.04)


@pytest.mark.parametrize(
    "name, student, teacher, masks, dtype",
    [
        ("student_patches", (2, BATCH, TOKENS, P + 1), (2, BATCH, TOKENS, P + 1), (2, BATCH, TOKENS), torch.bool),
        ("student_patches", (2, BATCH, TOKENS, P), (2, BATCH, TOKENS + 1, P), (2, BATCH, TOKENS), torch.bool),
        ("student_patches", (3, BATCH, TOKENS, P), (3, BATCH, TOKENS, P), (3, BATCH, TOKENS), torch.bool),
        ("student_patches", (2, BATCH + 1, TOKENS, P), (2, BATCH + 1, TOKENS, P), (2, BATCH + 1, TOKENS), torch.bool),
        ("masks", (2, BATCH, TOKENS, P), (2, BATCH, TOKENS, P), (2, BATCH, TOKENS + 1), torch.bool),
        ("masks", (2, BATCH, TOKENS, P), (2, BATCH, TOKENS, P), (2, BATCH * TOKENS), torch.bool),
        ("masks", (2, BATCH, TOKENS, P), (2, BATCH, TOKENS, P), (2, BATCH, TOKENS), torch.float32),
        ("masks", (2, BATCH, TOKENS, P), (2, BATCH, TOKENS, P), (2, BATCH, TOKENS), torch.int64),
    ],
)
def test_patches_and_masks_that_do_not_fit_are_refused(name, student, teacher, masks, dtype):
    cls, masks = torch.zeros(2, BATCH, K), torch.zeros(masks, dtype=dtype)
    with pytest.raises(ValueError, match=f"^{name}: got"):
        IBOTLoss(K, P)(cls, torch.zeros(student), cls, torch.zeros(teacher), masks, 0.04, 0.04)


# ---- Sinkhorn-Knopp centering, KoLeo ------------------------------------------------------------------------------------


def literal_sinkhorn(teacher, temperature, iterations=3):
    """Rows are samples and columns prototypes, in Python's floats."""
    rows = [[math.exp(x) for x in log_softmax([t / temperature for t in sample])] for sample in teacher]
    for _ in range(iterations):
        weights = [sum(row[k] for row in rows) for k in range(len(rows[0]))]
        rows = [[value / weight for value, weight in zip(row, weights)] for row in rows]
        rows = [[value / sum(row) for value in row] for row in rows]
    return rows


@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_sinkhorn_equals_the_literal_iterations(iterations):
    teacher = normal(2, BATCH, K)
    targets = sinkhorn(teacher, 0.5, iterations=iterations)
    assert targets.shape == teacher.shape
    expected = literal_sinkhorn(teacher.flatten(0, 1).tolist(), 0.5, iterations)
    torch.testing.assert_close(targets.flatten(0, 1), torch.tensor(expected, dtype=torch.float64))


def test_sinkhorn_gives_all_prototypes_the_same_weight_in_the_end():
    """A prototype that all samples prefer, as in a collapse, is preferred no more."""
    teacher = normal(40, K)
    teacher[:, 2] += 3.0
    assert teacher.softmax(-1).sum(0).argmax() == 2 and teacher.softmax(-1).sum(0)[2] > 25
    weights = sinkhorn(teacher, 1.0, iterations=200).sum(0)
    torch.testing.assert_close(weights, torch.full((K,), 40 / K, dtype=torch.float64))


def test_sinkhorn_of_no_samples_and_of_half_precision():
    assert sinkhorn(torch.zeros(0, K), 0.1).shape == (0, K)
    targets = sinkhorn(1e4 * normal(4, K, dtype=torch.float16), 0.04)
    assert targets.dtype == torch.float32 and targets.isfinite().all()
    torch.testing.assert_close(targets.sum(-1), torch.ones(4))


def test_sinkhorn_is_the_centering_of_both_losses_on_request():
    student, teacher = normal(VIEWS, BATCH, K), normal(2, BATCH, K, seed=1)
    targets = sinkhorn(teacher, 0.04)
    loss = DINOLoss(K, centering="sinkhorn").double()
    entropy = [[-(targets[q] * F.log_softmax(student[v] / 0.1, -1)).sum(-1).mean() for v in range(VIEWS) if v != q] for q in range(2)]
    torch.testing.assert_close(loss(student, teacher, 0.04), torch.stack(sum(entropy, [])).mean())
    assert not loss.center.any()  # it is not used

    arguments = ibot_arguments()
    _, student_patches, _, teacher_patches, masks, *_ = arguments
    together = IBOTLoss(K, P, centering="sinkhorn").double()
    losses = together(*arguments, 0.04, 0.05)
    patch_targets = sinkhorn(teacher_patches[masks], 0.05)  # of the masked patches alone
    entropy = -(patch_targets * F.log_softmax(student_patches[masks] / 0.1, -1)).sum(-1)
    per_image = [entropy[(masks.nonzero()[:, :2] == torch.tensor([v, b])).all(1)] for v in range(2) for b in range(masks.shape[1])]
    expected = sum(tokens.mean() for tokens in per_image if len(tokens)) / len(per_image)
    torch.testing.assert_close(losses["patch"], expected)
    assert not together.patch_center.any()


def test_unknown_centerings_are_refused():
    for loss in (DINOLoss, IBOTLoss):
        with pytest.raises(ValueError, match="centering: got 'mean', accepts ema, sinkhorn"):
            loss(K, centering="mean")


def test_koleo_is_minus_the_mean_log_distance_to_the_nearest():
    vectors = normal(6, 4)
    unit = [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in vectors.tolist()]
    nearest = [min(math.dist(a, b) for j, b in enumerate(unit) if j != i) for i, a in enumerate(unit)]
    assert koleo(vectors).item() == pytest.approx(-sum(map(math.log, nearest)) / len(nearest), abs=1e-5)
    assert koleo(3 * vectors).item() == pytest.approx(koleo(vectors).item(), abs=1e-6)


def test_koleo_spreads_vectors():
    vectors = F.normalize(normal(1, 3) + 0.1 * normal(4, 3, seed=1)).requires_grad_()
    closest = [F.pdist(vectors).min()]
    for _ in range(300):
        [gradient] = torch.autograd.grad(koleo(vectors), vectors)
        vectors = F.normalize(vectors - 0.02 * gradient).detach().requires_grad_()
    assert F.pdist(vectors).min() > 1.4 > 8 * closest[0]  # four vectors, nearly as far apart as they can be: 1.63


def test_koleo_of_equal_vectors_is_finite():
    vectors = torch.ones(4, 3, requires_grad=True)
    koleo(vectors).backward()
    assert vectors.grad.isfinite().all()


# ---- two processes ------------------------------------------------------------------------------------------------------


def _join(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)


def _one_of_two(rank, folder, centering):
    _join(rank, folder)
    loss = IBOTLoss(K, P, centering=centering).double()
    with torch.no_grad():
        losses = [loss(*ibot_arguments(seed=2 * step + rank), 0.04, 0.05) for step in range(2)]
    torch.save((losses, loss.state_dict()), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("centering", ["ema", "sinkhorn"])
@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
def test_two_processes_share_their_centers(tmp_path, centering):
    mp.start_processes(_one_of_two, (str(tmp_path), centering), nprocs=2, start_method="fork")
    (first, centers), (second, others) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    torch.testing.assert_close(centers, others, rtol=0, atol=0)
    together = IBOTLoss(K, P, centering=centering).double()
    for step in range(2):
        both = [ibot_arguments(seed=2 * step + rank) for rank in range(2)]
        losses = together(*(torch.cat(pair, 1) for pair in zip(*both)), 0.04, 0.05)  # the same images in one process
        torch.testing.assert_close({n: (first[step][n] + second[step][n]) / 2 for n in losses}, losses)
    torch.testing.assert_close(centers, together.state_dict())


VECTORS, WEIGHTS = normal(7, K), normal(7, K, seed=1)  # the first process has three of them, the second four


def _normalised(norm, part):
    vectors = VECTORS[part].clone().requires_grad_()
    output = norm(vectors)
    (output * WEIGHTS[part]).sum().backward()
    return output.detach(), vectors.grad, norm.weight.grad, norm.bias.grad


def _normalises(rank, folder):
    _join(rank, folder)
    torch.save(_normalised(BatchNorm(K).double(), slice(0, 3) if rank == 0 else slice(3, 7)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
def test_two_processes_normalise_over_their_common_batch(tmp_path):
    mp.start_processes(_normalises, (str(tmp_path),), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    output, vectors, weight, bias = _normalised(BatchNorm(K).double(), slice(None))
    torch.testing.assert_close(torch.cat([first[0], second[0]]), output)
    torch.testing.assert_close(torch.cat([first[1], second[1]]), vectors)
    torch.testing.assert_close((first[2] + second[2], first[3] + second[3]), (weight, bias))
