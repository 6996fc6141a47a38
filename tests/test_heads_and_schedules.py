import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.distillation import ProjectionHead, cosine_schedule
from lib.models.heads import BatchNorm
from lib.schedules import linear_then_constant

IN, OUT, HIDDEN, BOTTLENECK = 6, 11, 9, 5


def head(**options):
    torch.manual_seed(0)
    made = ProjectionHead(IN, OUT, hidden_dim=HIDDEN, bottleneck_dim=BOTTLENECK, **options).double()
    for parameter in made.mlp.parameters():  # far from the initial zeros and near-zeros
        torch.nn.init.normal_(parameter)
    return made


def literal_head(state, x):
    """The logits of one vector, one number at a time."""
    layers = sorted({int(name.split(".")[1]) for name in state if name.startswith("mlp")})
    for i, layer in enumerate(layers):
        if i:
            x = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x]
        weight, bias = state[f"mlp.{layer}.weight"].tolist(), state[f"mlp.{layer}.bias"].tolist()
        x = [sum(w * v for w, v in zip(row, x)) + b for row, b in zip(weight, bias)]
    length = math.hypot(*x)
    x = [v / length for v in x]
    gains, directions = state["last_layer.weight_g"].flatten().tolist(), state["last_layer.weight_v"].tolist()
    return [g * sum(w * v for w, v in zip(row, x)) / math.hypot(*row) for g, row in zip(gains, directions)]


# ---- head -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
@pytest.mark.parametrize("norm_last_layer", [True, False])
def test_head_equals_the_literal_computation(layers, norm_last_layer):
    made, x = head(layers=layers, norm_last_layer=norm_last_layer), torch.randn(3, IN, dtype=torch.float64)
    if not norm_last_layer:
        torch.nn.init.uniform_(made.last_layer.weight_g, 0.5, 2.0)
    expected = [literal_head(made.state_dict(), row) for row in x.tolist()]
    torch.testing.assert_close(made(x), torch.tensor(expected, dtype=torch.float64))


def test_head_takes_any_leading_shape():
    made, x = head(), torch.randn(2, 3, 4, IN, dtype=torch.float64)
    assert made(x).shape == (2, 3, 4, OUT)
    torch.testing.assert_close(made(x)[1, 2, 3], made(x[1, 2, 3]))


def test_projections_have_unit_length_and_logits_are_cosines():
    made, x = head(), 50 * torch.randn(4, 7, IN, dtype=torch.float64)
    torch.testing.assert_close(made.project(x).norm(dim=-1), torch.ones(4, 7, dtype=torch.float64))
    cosines = torch.nn.functional.cosine_similarity(made.project(x)[..., None, :], made.last_layer.weight_v, dim=-1)
    torch.testing.assert_close(made(x), cosines)


@pytest.mark.parametrize("layers, places", [(1, [0]), (2, [0, 2]), (3, [0, 2, 4])])
def test_parameters_are_named_as_in_the_released_checkpoints(layers, places):
    names = {f"mlp.{i}.{kind}" for i in places for kind in ("weight", "bias")}
    assert set(head(layers=layers).state_dict()) == names | {"last_layer.weight_g", "last_layer.weight_v"}


def test_a_released_state_dict_loads():
    shapes = {"mlp.0": (HIDDEN, IN), "mlp.2": (HIDDEN, HIDDEN), "mlp.4": (BOTTLENECK, HIDDEN)}
    state = {f"{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    state |= {f"{name}.bias": torch.randn(shape[0]) for name, shape in shapes.items()}
    state |= {"last_layer.weight_g": torch.ones(OUT, 1), "last_layer.weight_v": torch.randn(OUT, BOTTLENECK)}
    made = head().float()
    made.load_state_dict(state)
    x = torch.randn(2, IN)
    torch.testing.assert_close(made(x), torch.tensor([literal_head(state, row) for row in x.tolist()]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm_last_layer", [True, False])
def test_the_gain_starts_at_one_and_is_frozen_on_request(norm_last_layer):
    made = head(norm_last_layer=norm_last_layer)
    assert made.last_layer.weight_g.shape == (OUT, 1) and (made.last_layer.weight_g == 1).all()
    frozen = [name for name, parameter in made.named_parameters() if not parameter.requires_grad]
    assert frozen == (["last_layer.weight_g"] if norm_last_layer else [])
    made(torch.randn(3, IN, dtype=torch.float64)).square().sum().backward()
    assert (made.last_layer.weight_g.grad is None) == norm_last_layer
    slope = (made.last_layer.weight_v.grad * made.last_layer.weight_v).sum(1)
    torch.testing.assert_close(slope, torch.zeros_like(slope))  # a longer direction is the same direction


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_number_of_parameters(layers):
    widths = [IN] + [HIDDEN] * (layers - 1) + [BOTTLENECK]
    expected = sum(a * b + b for a, b in zip(widths, widths[1:])) + OUT * BOTTLENECK + OUT
    assert sum(p.numel() for p in head(layers=layers).parameters()) == expected


def test_default_widths_are_the_papers():
    with torch.device("meta"):
        made = ProjectionHead(384, 8192)
    assert [tuple(p.shape) for n, p in made.named_parameters() if "weight" in n] == [
        (2048, 384),
        (2048, 2048),
        (256, 2048),
        (8192, 1),
        (8192, 256),
    ]


def test_initial_weights_are_small_and_biases_zero():
    made = ProjectionHead(64, 16, hidden_dim=256, bottleneck_dim=32)
    for layer in (made.mlp[0], made.mlp[2], made.mlp[4]):
        assert not layer.bias.any() and layer.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_batch_norm_equals_torchs_in_training_and_keeps_no_averages():
    torch.manual_seed(0)
    x, norm, other = torch.randn(4, 5, 6), BatchNorm(6), torch.nn.BatchNorm1d(6, track_running_stats=False)
    with torch.no_grad():
        for parameter in (*norm.parameters(), *other.parameters()):
            parameter.copy_(torch.arange(6.0))
    for mode in (True, False):
        torch.testing.assert_close(norm.train(mode)(x), other(x.flatten(0, 1)).view(x.shape), rtol=1e-5, atol=1e-5)
    assert {name for name, _ in norm.named_parameters()} == set(norm.state_dict()) == {"weight", "bias"}
    torch.testing.assert_close(norm(x[:1, :1]), x[:1, :1] * torch.arange(6.0) + torch.arange(6.0))  # one vector has no statistics
    assert norm(x[:0]).shape == (0, 5, 6)


def test_a_head_with_batch_norm_has_it_before_each_gelu():
    head = ProjectionHead(6, 9, hidden_dim=8, bottleneck_dim=4, norm="batch")
    assert [type(layer).__name__ for layer in head.mlp] == ["Linear", "BatchNorm", "GELU", "Linear", "BatchNorm", "GELU", "Linear"]
    with pytest.raises(ValueError, match="norm: got 'layer', accepts none, batch"):
        ProjectionHead(6, 9, norm="layer")


def test_head_without_layers_is_refused():
    with pytest.raises(ValueError, match="^layers: got 0, accepts"):
        head(layers=0)


# ---- schedules --------------------------------------------------------------------------------------------------------


def published_cosine(base, final, steps, warmup, start):
    """DINO's schedule of one value an iteration, with an epoch of one iteration."""
    rising = np.linspace(start, base, warmup) if warmup > 0 else np.array([])
    iterations = np.arange(steps - warmup)
    falling = np.array([final + 0.5 * (base - final) * (1 + math.cos(math.pi * i / len(iterations))) for i in iterations])
    return np.concatenate((rising, falling))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(values=st.tuples(*[st.floats(-10, 10)] * 3), lengths=st.tuples(st.integers(0, 60), st.integers(0, 60)))
def test_cosine_equals_the_published_form(values, lengths):
    (base, final, start), (warmup, steps) = values, sorted(lengths)
    schedule = cosine_schedule(base, final, steps, warmup_steps=warmup, warmup_start=start)
    assert schedule.dtype == torch.float64 and schedule.shape == (steps,)
    np.testing.assert_allclose(schedule.numpy(), published_cosine(base, final, steps, warmup, start), atol=1e-12)


def test_the_warmup_includes_its_end_point():
    assert cosine_schedule(8.0, 0.0, 10, warmup_steps=5)[:6].tolist() == [0, 2, 4, 6, 8, 8]
    assert cosine_schedule(8.0, 0.0, 5, warmup_steps=5, warmup_start=4.0).tolist() == [4, 5, 6, 7, 8]


def test_the_cosine_starts_at_its_base_and_would_end_at_step_n():
    schedule = cosine_schedule(1.0, 3.0, 4)
    assert schedule.tolist() == pytest.approx([1.0, 2 - math.sqrt(0.5), 2.0, 2 + math.sqrt(0.5)])


def test_a_momentum_schedule_rises_towards_one():
    schedule = cosine_schedule(0.996, 1.0, 1000)
    assert schedule[0] == 0.996 and (schedule.diff() > 0).all() and 0.99999 < schedule[-1] < 1


@pytest.mark.parametrize("name, steps, warmup", [("steps", -1, 0), ("warmup_steps", 4, 5), ("warmup_steps", 4, -1)])
def test_lengths_that_do_not_fit_are_refused(name, steps, warmup):
    with pytest.raises(ValueError, match=f"^{name}: got -?[0-9]+, accepts"):
        cosine_schedule(1.0, 0.0, steps, warmup_steps=warmup)


@pytest.mark.parametrize("epochs, ramp", [(100, 30), (30, 30), (5, 2), (5, 0), (1, 0), (0, 0)])
def test_temperatures_equal_the_published_form(epochs, ramp):
    expected = np.concatenate((np.linspace(0.04, 0.07, ramp), np.ones(epochs - ramp) * 0.07))
    np.testing.assert_allclose(linear_then_constant(0.04, 0.07, epochs, ramp).numpy(), expected)


def test_a_ramp_longer_than_the_training_is_shortened():
    schedule = linear_then_constant(0.04, 0.07, 4, 30)
    assert schedule.dtype == torch.float64 and schedule.tolist() == pytest.approx([0.04, 0.05, 0.06, 0.07])
