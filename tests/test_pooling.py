import copy
import math
import re
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erf
from timm.layers import SimPool1d, SimPool2d
from torch import nn

from lib.pooling import Pooling, SimPool, create_pooling, landscape, pooling_names
from lib.pooling.framework import POOLINGS, Exponential, Power, part, uniform
from lib.results import papers

NAMES = ["gap", "max", "gem", "lse", "how", "otk", "kmeans", "slot", "se", "ge", "cbam", "cls", "cait", "simpool"]
SEVERAL = ("otk", "kmeans", "slot")  # give three vectors unless told otherwise
SCOPES = ["image", "channel", "batch"]
GAMMAS = [None, 1, 1.25, 2, 3]
D = 8
few = settings(max_examples=100, deadline=None, derandomize=True)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def pooling(name, dim=D, *, seed=0, dtype=torch.float64, **options):
    """In evaluation mode, with no weight and no statistic left at a special value such as 0 or 1."""
    torch.manual_seed(seed)
    module = create_pooling(name, dim, **options).eval()
    with torch.no_grad():
        for key, value in module.state_dict().items():
            if value.ndim:
                value += 0.3 * (torch.rand_like(value) if key.endswith("running_var") else torch.randn_like(value))
    return module.to(dtype)


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=tolerance, atol=tolerance)


def gradients(module, output, *inputs):
    """Of a fixed combination of the output's elements."""
    total = (output.float() * normal(*output.shape, seed=9, dtype=torch.float32)).sum()
    return torch.autograd.grad(total, [*module.parameters(), *inputs])


@pytest.fixture
def declarations():
    """What the test declares is forgotten after it."""
    known = dict(POOLINGS)
    yield
    POOLINGS.clear()
    POOLINGS.update(known)


# ---- literal versions, of one image [N, D], in NumPy: weights are all that they share with the library -----------------------
# Each returns the vectors [k, D] and the attention [k, N].


def softmax(scores):
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def relu(x):
    return np.maximum(x, 0)


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)


def layer_norm(x, w, name, eps=1e-5):
    deviation = x - x.mean(-1, keepdims=True)
    return deviation / np.sqrt((deviation**2).mean(-1, keepdims=True) + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def batch_norm(maps, w, name):
    mean, variance, weight, bias = (w[f"{name}.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias"))
    return (maps - mean) / np.sqrt(variance + 1e-5) * weight + bias


def convolution(maps, kernels, stride=1):
    """Each of the maps [C, H, W] with its own of the kernels [C, 1, s, s], zeros around."""
    (channels, height, width), side = maps.shape, kernels.shape[-1]
    padded = np.pad(maps, [(0, 0)] + 2 * [(side // 2, side // 2)])
    out = np.zeros((channels, -(-height // stride), -(-width // stride)))
    for c, i, j in np.ndindex(out.shape):
        out[c, i, j] = (padded[c, i * stride : i * stride + side, j * stride : j * stride + side] * kernels[c, 0]).sum()
    return out


def channel_gate(vector, w):
    hidden = relu(w["gates.fc1.weight"][:, :, 0, 0] @ vector + w["gates.fc1.bias"])
    return sigmoid(w["gates.fc2.weight"][:, :, 0, 0] @ hidden + w["gates.fc2.bias"])


def mlp(x, w, name):
    hidden = linear(x, w, f"{name}.fc1")
    return linear(hidden * (1 + erf(hidden / math.sqrt(2))) / 2, w, f"{name}.fc2")


def attend(query, keys, values, heads):
    """One query [D] -> its pooled values [D] and its attention [N], the mean over heads."""
    pooled, attention, d = [], [], len(query) // heads
    for head in range(heads):
        own = slice(head * d, (head + 1) * d)
        attention.append(softmax(keys[:, own] @ query[own] / math.sqrt(d)))
        pooled.append(attention[-1] @ values[:, own])
    return np.concatenate(pooled), np.mean(attention, 0)


def literal_gap(x, grid, w):
    return [sum(x) / len(x)], [[1 / len(x)] * len(x)]


def literal_max(x, grid, w):
    return [[max(column) for column in x.T]], [[1] * len(x)]


def literal_gem(x, grid, w, gamma=2, sums=False):
    positive, weight = np.maximum(x, 1e-6), 1 if sums else 1 / len(x)
    if gamma == math.inf:
        return [positive.max(0)], [[weight] * len(x)]
    return [(weight * (positive**gamma).sum(0)) ** (1 / gamma)], [[weight] * len(x)]


def literal_lse(x, grid, w, tau=10.0):
    return [np.log(np.exp(w["tau"] * x).mean(0)) / w["tau"]], [[1 / len(x)] * len(x)]


def literal_how(x, grid, w, squared=True, normalise=True):
    maps, smooth = x.reshape(*grid, -1), np.zeros((*grid, x.shape[1]))
    for i, j in np.ndindex(grid):
        smooth[i, j] = maps[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].mean((0, 1))
    weights = np.array([sum(token**2) if squared else math.sqrt(sum(token**2)) for token in x])
    weights = weights / weights.sum() if normalise else weights
    return [weights @ linear(smooth.reshape(x.shape), w, "fc")], [weights]


def literal_otk(x, grid, w, k=3, eps=1.0, iterations=1):
    plan = np.array([[math.exp(-sum((token - reference) ** 2) / (eps * x.shape[1])) for reference in w["initial"]] for token in x])
    for _ in range(iterations):
        plan = plan / plan.sum(1, keepdims=True)
        plan = plan / plan.sum(0, keepdims=True)
    return plan.T @ relu(linear(x, w, "psi.0")), plan.T


def literal_kmeans(x, grid, w, k=3, iterations=5):
    places = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).tolist()
    centres = [x[places[i % len(x)]] for i in range(k)]
    for _ in range(iterations):
        nearest = [min(range(k), key=lambda j: sum((token - centres[j]) ** 2)) for token in x]
        members = [[i for i in range(len(x)) if nearest[i] == j] for j in range(k)]
        centres = [x[own].mean(0) if own else centre for own, centre in zip(members, centres)]
    return centres, [[(i in own) / max(len(own), 1) for i in range(len(x))] for own in members]


def literal_slot(x, grid, w, k=3, iterations=3, compete=False):
    slots, normed = w["initial"], layer_norm(x, w, "norm_x")
    for _ in range(iterations):
        scores = linear(normed, w, "wk") @ linear(layer_norm(slots, w, "norm_u"), w, "wq").T / math.sqrt(x.shape[1])  # [N, k]
        if compete:
            shares = np.stack([softmax(row) for row in scores]) + 1e-8
            attention = (shares / shares.sum(0)).T
        else:
            attention = np.stack([softmax(column) for column in scores.T])
        pooled = attention @ linear(normed, w, "wv")
        from_input = np.split(pooled @ w["gru.weight_ih"].T + w["gru.bias_ih"], 3, axis=1)
        from_state = np.split(slots @ w["gru.weight_hh"].T + w["gru.bias_hh"], 3, axis=1)
        reset, update = sigmoid(from_input[0] + from_state[0]), sigmoid(from_input[1] + from_state[1])
        slots = (1 - update) * np.tanh(from_input[2] + reset * from_state[2]) + update * slots
        slots = slots + linear(relu(linear(layer_norm(slots, w, "norm_mlp"), w, "mlp.0")), w, "mlp.2")
    return slots, attention


def literal_se(x, grid, w, reduction=16):
    return [(channel_gate(x.mean(0), w) * x).mean(0)], None


def literal_ge(x, grid, w, extent=2):
    maps = x.T.reshape(-1, *grid)
    gathered, steps = maps, int(math.log2(extent))
    for step in range(steps):
        gathered = batch_norm(convolution(gathered, w[f"gather.{3 * step}.weight"], stride=2), w, f"gather.{3 * step + 1}")
        gathered = relu(gathered) if step + 1 < steps else gathered
    (height, width), (rows, columns) = grid, gathered.shape[1:]
    gates = np.stack([[sigmoid(gathered[:, i * rows // height, j * columns // width]) for j in range(width)] for i in range(height)])
    return [(gates.reshape(x.shape) * x).mean(0)], None


def literal_cbam(x, grid, w, reduction=16, kernel=7):
    gate = channel_gate(x.mean(0), w)
    similarities = (x @ gate).reshape(1, *grid)
    attention = sigmoid(batch_norm(convolution(similarities, w["conv.conv.weight"]), w, "conv.bn")).reshape(-1)
    return [(attention[:, None] * gate * x).mean(0)], [attention]


def literal_cls(x, grid, w, heads=4, iterations=1):
    token = w["initial"][0]
    for _ in range(iterations):
        queries, keys, values = np.split(linear(layer_norm(x, w, "block.norm1", 1e-6), w, "block.attn.qkv"), 3, axis=1)
        own = linear(layer_norm(token, w, "block.norm1", 1e-6), w, "block.attn.qkv")[: x.shape[1]]
        pooled, attention = attend(own, keys, values, heads)
        token = token + linear(pooled, w, "block.attn.proj")
        token = token + mlp(layer_norm(token, w, "block.norm2", 1e-6), w, "block.mlp")
        x = x + linear(np.stack([attend(query, keys, values, heads)[0] for query in queries]), w, "block.attn.proj")
        x = x + mlp(layer_norm(x, w, "block.norm2", 1e-6), w, "block.mlp")
    return [token], [attention]


def literal_cait(x, grid, w, heads=4, iterations=1, layer_scale=1e-5, eps=1e-6):
    token, normed = w["initial"][0], layer_norm(x, w, "block.norm1", eps)
    for _ in range(iterations):
        query = linear(layer_norm(token, w, "block.norm1", eps), w, "block.attn.q")
        pooled, attention = attend(query, linear(normed, w, "block.attn.k"), linear(normed, w, "block.attn.v"), heads)
        token = token + w["block.gamma_1"] * linear(pooled, w, "block.attn.proj")
        token = token + w["block.gamma_2"] * mlp(layer_norm(token, w, "block.norm2", eps), w, "block.mlp")
    return [token], [attention]


def literal_simpool(batch, w, gamma=None, beta=False, num_heads=1, min_scope="image"):
    """Of a batch [B, N, D] -> vectors [B, D], attention [B, heads, N]."""
    values = layer_norm(batch, w, "norm_patches", 1e-6)
    vectors, attention, d = np.zeros((len(batch), batch.shape[2])), np.zeros((len(batch), num_heads, batch.shape[1])), batch.shape[2]
    for b, x in enumerate(batch):
        query, keys = w["wq.weight"] @ x.mean(0), values[b] @ w["wk.weight"].T
        for c in range(d):
            head = c // (d // num_heads)
            own = slice(head * (d // num_heads), (head + 1) * (d // num_heads))
            a = attention[b, head] = softmax(keys[:, own] @ query[own] / math.sqrt(d // num_heads))
            if gamma is None:
                vectors[b, c] = sum(a * values[b, :, c])
            else:
                lowest = {"image": values[b], "channel": values[b, :, c], "batch": values}[min_scope].min()
                vectors[b, c] = sum(a * (values[b, :, c] - lowest + 1e-6) ** gamma) ** (1 / gamma)
    return vectors + (w["beta"] if beta else 0), attention


def literal_one_simpool(x, grid, w, **options):
    vectors, attention = literal_simpool(x[None], w, **options)
    return vectors, attention[0]


LITERAL = dict(
    gap=literal_gap,
    max=literal_max,
    gem=literal_gem,
    lse=literal_lse,
    how=literal_how,
    otk=literal_otk,
    kmeans=literal_kmeans,
    slot=literal_slot,
    se=literal_se,
    ge=literal_ge,
    cbam=literal_cbam,
    cls=literal_cls,
    cait=literal_cait,
    simpool=literal_one_simpool,
)
VARIANTS = [(name, {}) for name in NAMES] + [
    ("gem", dict(gamma=3.5)),
    ("gem", dict(gamma=0.5, sums=True)),
    ("gem", dict(gamma=math.inf)),
    ("lse", dict(tau=0.3)),
    ("how", dict(squared=False)),
    ("how", dict(normalise=False)),
    ("how", dict(squared=False, normalise=False)),
    ("otk", dict(k=5, eps=0.2, iterations=4)),
    ("otk", dict(k=1)),
    ("kmeans", dict(k=4, iterations=1)),
    ("kmeans", dict(k=1)),
    ("slot", dict(compete=True)),
    ("slot", dict(k=1, iterations=1)),
    ("slot", dict(k=5, iterations=2, compete=True)),
    ("se", dict(reduction=2)),
    ("ge", dict(extent=4)),
    ("ge", dict(extent=8)),
    ("cbam", dict(reduction=3, kernel=3)),
    ("cbam", dict(kernel=1)),
    ("cls", dict(heads=1)),
    ("cls", dict(heads=2, iterations=3)),
    ("cait", dict(heads=2, layer_scale=0.7)),
    ("cait", dict(heads=1, iterations=3, layer_scale=0.7)),
    ("simpool", dict(gamma=2, beta=True)),
]


def weights(module):
    return {key: value.numpy() for key, value in module.state_dict().items()}


@pytest.mark.parametrize("grid", [(7, 3), (4, 4), (1, 1), (1, 2)])
@pytest.mark.parametrize("name, options", VARIANTS)
def test_equals_the_literal_version(name, options, grid):
    module, x = pooling(name, **options), normal(3, grid[0] * grid[1], D, seed=1)
    with torch.no_grad():
        vector, attention = module(x, grid)
    for b, image in enumerate(x.numpy()):
        vectors, rows = LITERAL[name](image, grid, weights(module), **options)
        close(vector[b] if vector.ndim == 3 else vector[b : b + 1], np.stack(vectors))
        assert (attention is None) == (rows is None)
        if rows is not None:
            close(attention[b], np.stack(rows))


# ---- the algorithm ----------------------------------------------------------------------------------------------------

MATRICES = dict(zip(["phi_Q", "phi_K", "phi_X", "phi_U"], normal(4, D, D, seed=4) / 2))


def literal_algorithm(X, left_out, iterations, gamma):
    """Of one image, features as columns: X [D, N] -> U [D, k], A [N, k]."""
    has, M = lambda symbol: symbol not in left_out, {symbol: matrix.numpy() for symbol, matrix in MATRICES.items()}
    A = np.full((X.shape[1], 1), 1 / X.shape[1])
    if has("U0"):
        U = X[:, :2]
    for _ in range(iterations):
        if has("s"):
            Q, K = M["phi_Q"] @ U, M["phi_K"] @ X
            S = np.array([[K[:, i] @ Q[:, j] for j in range(Q.shape[1])] for i in range(K.shape[1])])
            A = np.stack([softmax(S[:, j]) for j in range(S.shape[1])], axis=1)
        if has("f"):
            V = X**2 + 0.1
            Z = (V**gamma @ A) ** (1 / gamma)
        next_X = np.tanh(M["phi_X"] @ X) if has("phi_X") else X
        X, U = next_X, M["phi_U"] @ Z if has("phi_U") else None
    return (X.mean(1, keepdims=True) if U is None else U), A


def declaration(left_out, iterations, gamma):
    """The same parts, declared to the library."""
    declared = {
        "U0": lambda self, t: t.X[:, :2],
        "phi_Q": lambda self, t: t.U @ MATRICES["phi_Q"].T,
        "phi_K": lambda self, t: t.X @ MATRICES["phi_K"].T,
        "s": lambda self, t: t.K @ t.Q.mT,
        "h": uniform if "s" in left_out else lambda self, t: t.S.softmax(1),
        "phi_V": lambda self, t: t.X.square() + 0.1,
        "f": lambda self, t: Power(gamma),
        "phi_X": lambda self, t: (t.X @ MATRICES["phi_X"].T).tanh(),
        "phi_U": lambda self, t: t.Z @ MATRICES["phi_U"].T,
    }
    return type("Declared", (Pooling,), {"iterations": iterations} | {key: f for key, f in declared.items() if key not in left_out})


@pytest.mark.parametrize(
    "left_out",
    [
        (),
        ("phi_X",),
        ("U0", "phi_Q", "phi_K", "s"),
        ("U0", "phi_Q", "phi_K", "s", "phi_U"),
        ("U0", "phi_Q", "phi_K", "s", "f", "phi_U"),
        ("U0", "phi_Q", "phi_K", "s", "phi_V", "f", "phi_U"),
    ],
)
@pytest.mark.parametrize("iterations, gamma", [(1, 2), (3, 1.25), (3, 1)])
def test_any_declaration_is_run_as_the_literal_algorithm(left_out, iterations, gamma):
    x = normal(3, 5, D, seed=2)
    vector, attention = declaration(left_out, iterations, gamma)(D)(x)
    for b in range(3):
        U, A = literal_algorithm(x[b].T.numpy(), left_out, iterations, gamma)
        close(vector[b], U.T.squeeze())
        close(attention[b], A.T)


def test_a_declared_pooling_is_known_by_its_name(declarations):
    class Second(Pooling, name="second"):
        @part("2 X")
        def phi_V(self, t):
            return 2 * t.X

        @part("V")
        def phi_X(self, t):
            return t.V

    x = normal(2, 4, D)
    assert pooling_names() == [*NAMES, "second"]
    close(create_pooling("second", D)(x).vector, 2 * x.mean(1))
    assert landscape().loc["second", ["phi_V", "phi_X", "f", "phi_U"]].tolist() == ["2 X", "V", "", ""]


def test_a_subclass_without_a_name_is_not_listed(declarations):
    class Unlisted(Pooling):
        pass

    assert pooling_names() == NAMES


def test_the_names_are_the_talks():
    assert pooling_names() == NAMES


def test_landscape_equals_the_published_table():
    ours, published = landscape(), papers.published_landscape()
    assert list(ours.columns) == list(published.columns)
    assert ours.index.name == published.index.name == "method"
    assert [name for name in ours.index if name != "ge"] == list(published.index)
    for method, row in published.iterrows():
        assert ours.loc[method].to_dict() == row.to_dict()


# ---- the contract of all ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch, grid", [(2, (4, 4)), (1, (3, 3)), (3, (7, 3)), (2, (1, 1)), (1, (1, 1)), (2, (1, 5))])
@pytest.mark.parametrize("name", NAMES)
def test_tokens_and_maps_agree(name, batch, grid, dtype):
    module, maps = pooling(name, dtype=dtype), normal(batch, D, *grid, seed=1, dtype=dtype)
    vector, attention = module(maps)
    assert vector.shape == ((batch, 3, D) if name in SEVERAL else (batch, D))
    assert vector.dtype == dtype
    if attention is not None:
        assert attention.shape == (batch, 3 if name in SEVERAL else 1, grid[0] * grid[1])
        assert attention.dtype == dtype
    for given_grid in [grid] if grid[0] != grid[1] else [grid, None]:
        again = module(maps.flatten(2).mT, given_grid)
        close(again.vector, vector, 1e-5 if dtype == torch.float32 else 1e-12)
        if attention is not None:
            close(again.attention, attention, 1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_tokens_need_no_contiguous_memory(name):
    module, x = pooling(name), normal(4, 32, D)
    close(module(x[::2, ::2]).vector, module(x[::2, ::2].contiguous()).vector)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("how", "ge", "cbam")])
def test_the_grid_matters_only_to_poolings_that_look_at_neighbours(name):
    module, x = pooling(name), normal(2, 12, D)
    close(module(x).vector, module(x, (3, 4)).vector)


@pytest.mark.parametrize("name", ["how", "ge", "cbam"])
def test_the_grid_matters_to_poolings_that_look_at_neighbours(name):
    module, x = pooling(name), normal(2, 12, D)
    assert not torch.allclose(module(x, (3, 4)).vector, module(x, (4, 3)).vector)
    with pytest.raises(ValueError, match=r"^grid: got none with 12 tokens, this pooling accepts .*\(H, W\)"):
        module(x)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("kmeans", "how", "ge", "cbam")])
def test_the_order_of_the_tokens_does_not_matter(name):
    module, x, order = pooling(name), normal(2, 9, D), torch.randperm(9, generator=torch.Generator().manual_seed(1))
    (vector, attention), shuffled = module(x), module(x[:, order])
    close(shuffled.vector, vector)
    if attention is not None:
        close(shuffled.attention, attention[..., order])


@pytest.mark.parametrize("name", NAMES)
def test_an_image_does_not_depend_on_its_neighbours(name):
    module, x = pooling(name), normal(4, 9, D)
    close(module(x[1:2]).vector, module(x).vector[1:2])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("batch, grid", [(2, (3, 3)), (2, (7, 3)), (3, (1, 1))])
@pytest.mark.parametrize("name, options", [*VARIANTS, *(("simpool", dict(gamma=2, min_scope=scope)) for scope in SCOPES)])
def test_gradients_are_finite(name, options, batch, grid, training):
    module, x = pooling(name, **options).train(training), normal(batch, D, *grid, seed=1).requires_grad_()
    assert all(gradient.isfinite().all() for gradient in gradients(module, module(x).vector, x))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0.0, 2.0])
def test_a_constant_image_is_pooled_to_finite_values(name, value):
    module, x = create_pooling(name, D), torch.full((2, 9, D), value, requires_grad=True)
    vector = module(x).vector
    assert vector.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients(module, vector, x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_near_single_precision(name, dtype):
    module, x = pooling(name, dtype=dtype), normal(2, 9, D, dtype=dtype)
    vector, attention = module(x)
    assert vector.dtype == dtype
    close(vector.float(), module.float()(x.float()).vector, 0.15 if dtype == torch.bfloat16 else 0.02)


@pytest.mark.parametrize("name", NAMES)
def test_the_input_stays_as_it_is(name):
    module, x = pooling(name).train(), normal(2, 9, D)
    kept = x.clone()
    module(x)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("name", NAMES)
def test_copies_and_loaded_weights_give_the_same(name):
    module, x = pooling(name), normal(2, 9, D)
    loaded = pooling(name, seed=1)
    loaded.load_state_dict(module.state_dict())
    for other in (copy.deepcopy(module), loaded):
        assert torch.equal(other(x).vector, module(x).vector)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "shape", [(2, 9, D + 1), (2, D, 9), (2, 9), (D,), (2, D + 1, 3, 3), (2, 3, 3, D), (2, D, 3, 3, 3), (2, 0, D), (0, 9, D), (2, D, 0, 3)]
)
def test_other_shapes_are_refused(name, shape):
    with pytest.raises(ValueError, match=rf"^x: got shape {re.escape(str(shape))}, accepts tokens \[B, N, {D}\] or maps \[B, {D}, H, W\]"):
        pooling(name)(torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize("name", ["gap", "how", "simpool"])
@pytest.mark.parametrize("grid", [(3, 4), (9,), (3, 3, 1), (-3, -3), 9])
def test_other_grids_are_refused(name, grid):
    with pytest.raises(ValueError, match=rf"^grid: got {re.escape(str(grid))} for 9 tokens, accepts \(H, W\)"):
        pooling(name)(normal(2, 9, D), grid)


@pytest.mark.parametrize("name", ["", "GAP", "attention", None])
def test_unknown_names_are_refused(name):
    with pytest.raises(ValueError, match=f"^name: got {name!r}, accepts gap, max, .*simpool$"):
        create_pooling(name, D)


@pytest.mark.parametrize(
    "name, accepted",
    dict(
        gap="none",
        max="none",
        gem="gamma, sums",
        lse="tau",
        how="squared, normalise",
        otk="k, eps, iterations",
        kmeans="k, iterations",
        slot="k, iterations, compete",
        se="reduction",
        ge="extent",
        cbam="reduction, kernel",
        cls="heads, iterations",
        cait="heads, iterations, layer_scale",
        simpool="gamma, beta, num_heads, min_scope",
    ).items(),
)
def test_unknown_options_are_refused(name, accepted):
    with pytest.raises(ValueError, match=f"^wrong: unknown option of {name}, which accepts {accepted}$"):
        create_pooling(name, D, wrong=1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dim", [0, -8, 8.0, "8", None])
def test_bad_dimensions_are_refused(name, dim):
    with pytest.raises(ValueError, match=f"^dim: got {dim!r}, accepts "):
        create_pooling(name, dim)


@pytest.mark.parametrize(
    "name, option, values",
    [
        ("gem", "gamma", [0, -1.0, math.nan, "2", None]),
        ("lse", "tau", [0, -1.0, math.nan, math.inf, "2", None]),
        ("otk", "k", [0, -1, 2.0, "3", None]),
        ("otk", "eps", [0, -1.0, math.nan, "1e-3", None]),
        ("otk", "iterations", [0, 1.0, "3"]),
        ("kmeans", "k", [0, -1, 2.0, "3", None]),
        ("kmeans", "iterations", [0, 1.0]),
        ("slot", "k", [0, -1, 2.0, "3", None]),
        ("slot", "iterations", [0, 1.0]),
        ("se", "reduction", [0, -1, 2.0, "4"]),
        ("ge", "extent", [0, 1, 3, -2, 2.0, "2"]),
        ("cbam", "reduction", [0, 2.0]),
        ("cbam", "kernel", [0, 2, -1, 3.0, "3"]),
        ("cls", "heads", [0, 3, -4, 16, 4.0, "4"]),
        ("cls", "iterations", [0, 1.0]),
        ("cait", "heads", [0, 3, -4, 16, 4.0]),
        ("cait", "iterations", [0, 1.0]),
        ("cait", "layer_scale", ["1e-5", None]),
        ("simpool", "gamma", [0, -1.0, math.nan, "2"]),
        ("simpool", "num_heads", [0, 3, -4, 16, 4.0]),
        ("simpool", "min_scope", ["token", "", None]),
        ("simpool", "beta", [True]),  # without a gamma
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_option_values_are_refused(name, option, values):
    accepted = []
    for value in values:
        try:
            create_pooling(name, D, **{option: value})
            accepted.append(f"{value!r} was accepted")
        except ValueError as error:
            if not re.match(f"{option}: got {re.escape(repr(value))}.* accepts .+", str(error)):
                accepted.append(f"{value!r}: {error}")
        except TypeError as error:
            accepted.append(f"{value!r}: TypeError {error}")
    assert not accepted


# ---- SimPool ------------------------------------------------------------------------------------------------------------


def simpool(dim=D, *, seed=0, dtype=torch.float64, **options):
    return pooling("simpool", dim, seed=seed, dtype=dtype, **options)


@pytest.mark.parametrize("gamma, beta", [*((gamma, False) for gamma in GAMMAS), *((gamma, True) for gamma in GAMMAS[1:])])
@pytest.mark.parametrize("min_scope", SCOPES)
@pytest.mark.parametrize("num_heads", [1, 4])
def test_simpool_equals_the_literal_formula(gamma, beta, min_scope, num_heads):
    options = dict(gamma=gamma, beta=beta, num_heads=num_heads, min_scope=min_scope)
    module, x = simpool(**options), normal(3, 7, D, seed=1) + 0.5
    vectors, attention = literal_simpool(x.numpy(), weights(module), **options)
    vector, rows = module(x)
    close(vector, vectors)
    close(rows, attention)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("min_scope", SCOPES)
@pytest.mark.parametrize("num_heads", [1, 4])
@pytest.mark.parametrize("tokens", [7, 1])
def test_simpools_shortcut_equals_the_algorithm(gamma, min_scope, num_heads, tokens):
    module = simpool(gamma=gamma, beta=gamma is not None, num_heads=num_heads, min_scope=min_scope)
    x = normal(3, tokens, D, seed=1).requires_grad_()
    short, long = module(x), Pooling.forward(module, x)
    close(short.vector, long.vector)
    close(short.attention.mean(1, keepdim=True), long.attention)
    for of_short, of_long in zip(gradients(module, short.vector, x), gradients(module, long.vector, x)):
        close(of_short, of_long, 1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gamma", [None, 2])
def test_simpools_shortcut_equals_the_algorithm_in_half_precision(gamma, dtype):
    module, x = simpool(gamma=gamma, dtype=dtype), normal(3, 7, D, dtype=dtype)
    short, long = module(x), Pooling.forward(module, x)
    assert long.vector.dtype == dtype
    close(short.vector, long.vector, 0.1)


@pytest.mark.parametrize("gamma, min_scope", [(None, scope) for scope in SCOPES] + [(1.25, "channel"), (2, "channel")])
@pytest.mark.parametrize("num_heads", [1, 4])
@pytest.mark.parametrize("maps", [False, True])
def test_simpool_equals_timms(gamma, min_scope, num_heads, maps):
    ours = simpool(gamma=gamma, num_heads=num_heads, min_scope=min_scope)
    timms = (SimPool2d if maps else SimPool1d)(D, num_heads=num_heads, gamma=gamma, norm_layer=partial(nn.LayerNorm, eps=1e-6)).double()
    keys = {"norm_patches.weight": "norm.weight", "norm_patches.bias": "norm.bias", "wq.weight": "q.weight", "wk.weight": "k.weight"}
    timms.load_state_dict({keys[key]: value for key, value in ours.state_dict().items()})
    x = normal(3, D, 7, 3, seed=1) if maps else normal(3, 21, D, seed=1)
    close(ours(x).vector, timms(x))


@pytest.mark.parametrize("beta", [False, True])
def test_simpools_parameters_are_the_released_ones(beta):
    module = SimPool(16, gamma=2, beta=beta)
    names = ["norm_patches.weight", "norm_patches.bias", "wq.weight", "wk.weight"] + ["beta"] * beta
    assert sorted(name for name, _ in module.named_parameters()) == sorted(module.state_dict()) == sorted(names)
    assert sum(parameter.numel() for parameter in module.parameters()) == 2 * 16**2 + 2 * 16 + beta
    assert not beta or (module.beta.shape == (1,) and module.beta.item() == 0)


@pytest.mark.parametrize("min_scope", SCOPES)
@pytest.mark.parametrize("gamma", [1.25, 2])
def test_simpool_depends_on_its_neighbours_only_if_the_minimum_is_the_batchs(min_scope, gamma):
    module, x = simpool(gamma=gamma, min_scope=min_scope), normal(3, 7, D)
    x[2, 3, 5] = -20  # the lowest of all
    alone, together = module(x[:1]).vector, module(x).vector[:1]
    assert torch.allclose(alone, together, rtol=1e-12, atol=1e-12) == (min_scope != "batch")


@pytest.mark.parametrize("min_scope", SCOPES)
def test_simpool_with_gamma_1_is_the_shifted_weighted_mean(min_scope):
    plain, shifted, x = simpool(), simpool(gamma=1, min_scope=min_scope), normal(3, 7, D)
    lowest = plain.norm_patches(x).amin({"image": (1, 2), "channel": 1, "batch": (0, 1, 2)}[min_scope], keepdim=True)
    close(shifted(x).vector, plain(x).vector - lowest.expand(3, 1, -1).flatten(1).expand(3, D) + 1e-6)


@pytest.mark.parametrize("num_heads", [1, 4])
@pytest.mark.parametrize("gamma", [None, 2])
def test_simpools_attention_follows_the_tokens(num_heads, gamma):
    module, x, order = (
        simpool(num_heads=num_heads, gamma=gamma),
        normal(3, 9, D),
        torch.randperm(9, generator=torch.Generator().manual_seed(1)),
    )
    (vector, attention), shuffled = module(x), module(x[:, order])
    assert attention.shape == (3, num_heads, 9)
    close(attention.sum(-1), torch.ones(3, num_heads))
    close(shuffled.attention, attention[..., order])
    close(shuffled.vector, vector)


def test_simpools_query_is_of_the_features_as_they_are():
    """Features of another scale give the same keys and values, but another query."""
    module, x = simpool(), 10 * normal(2, 9, D)
    with torch.no_grad():
        sharper = module(3 * x).attention.amax(-1)
    assert (sharper > module(x).attention.amax(-1)).all()


IMAGES = {
    "normal": lambda: normal(3, 9, 16),
    "constant": lambda: normal(3, 1, 16).expand(-1, 9, -1),
    "zero": lambda: torch.zeros(3, 9, 16),
    "large": lambda: 1e4 * normal(3, 9, 16).clamp(-3, 3),
    "large and constant": lambda: torch.full((3, 9, 16), 1e4),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("gamma", [None, 1.25, 2])
@pytest.mark.parametrize("min_scope", SCOPES)
@pytest.mark.parametrize("images", IMAGES)
def test_simpool_is_finite_in_every_precision(images, min_scope, gamma, dtype):
    module = simpool(16, gamma=gamma, beta=gamma is not None, min_scope=min_scope, dtype=dtype)
    x = IMAGES[images]().to(dtype).requires_grad_()
    vector, attention = module(x)
    found = gradients(module, vector, x)
    assert vector.dtype == dtype and attention.dtype == dtype
    assert vector.isfinite().all() and attention.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in found)
    if images in ("normal", "constant", "zero") and dtype != torch.float32:
        exact, x = module.float(), x.detach().float().requires_grad_()
        close(vector.float(), exact(x).vector, 0.04 if dtype == torch.bfloat16 else 0.005)
        for gradient, expected in zip(found, gradients(exact, exact(x).vector, x)):
            error = (gradient.float() - expected).norm()
            assert error <= (0.1 if dtype == torch.bfloat16 else 0.02) * expected.norm() + 0.02


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gamma", [None, 1.25, 2])
@pytest.mark.parametrize("min_scope", SCOPES)
@pytest.mark.parametrize("images", IMAGES)
def test_simpool_runs_under_autocast(images, min_scope, gamma, dtype):
    module = simpool(16, gamma=gamma, beta=gamma is not None, min_scope=min_scope, dtype=torch.float32)
    x = IMAGES[images]().float().requires_grad_()
    with torch.autocast("cpu", dtype):
        vector = module(x).vector
    assert vector.dtype == torch.float32 and vector.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients(module, vector, x))
    if images in ("normal", "constant", "zero"):
        close(vector, module(x).vector.detach(), 0.04 if dtype == torch.bfloat16 else 0.005)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("gamma", [1.25, 2, 3])
def test_simpool_may_attend_to_the_lowest_token_alone(gamma, dtype, autocast):
    """There its generalised mean is 1e-6, and the derivative of its root large."""
    torch.manual_seed(0)
    module, x = SimPool(16, gamma=gamma, min_scope="channel"), normal(2, 1, 16, dtype=torch.float32).expand(-1, 9, -1).clone()
    x[:, 0] *= -1
    with torch.no_grad():
        module.wq.weight.copy_(30 * torch.eye(16))
        module.wk.weight.copy_(-torch.eye(16))
    expected = module(x).vector.detach()
    assert expected.amin() < 2e-6 and module(x).attention[..., 0].amin() == 1
    module, x = (module, x.requires_grad_()) if autocast else (module.to(dtype), x.to(dtype).requires_grad_())
    with torch.autocast("cpu", dtype, enabled=autocast and dtype != torch.float32):
        vector = module(x).vector
    close(vector.float(), expected, 0.01 if dtype == torch.bfloat16 else 0.002)
    assert all(gradient.isfinite().all() for gradient in gradients(module, vector, x))


OPTIONS = [dict(), dict(gamma=2, beta=True), dict(gamma=1.25, num_heads=4, min_scope="channel"), dict(gamma=2, min_scope="batch")]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("maps", [False, True])
def test_simpool_compiles_to_one_graph(options, maps):
    module = simpool(**options)
    compiled = torch.compile(module, fullgraph=True, backend="eager", dynamic=True)
    for shape in [(3, D, 3, 3), (2, D, 5, 4)] if maps else [(3, 9, D), (2, 20, D)]:
        x = normal(*shape, seed=1)
        for actual, expected in zip(compiled(x), module(x)):
            close(actual, expected)


@pytest.mark.parametrize("options", OPTIONS)
def test_simpool_is_exported_for_any_number_of_images_and_tokens(options):
    module = simpool(**options)
    sizes = {0: torch.export.Dim("images"), 1: torch.export.Dim("tokens")}
    exported = torch.export.export(module, (normal(3, 9, D),), dynamic_shapes={"x": sizes}).module()
    for images, tokens in [(3, 9), (2, 20), (1, 1)]:
        x = normal(images, tokens, D, seed=1)
        for actual, expected in zip(exported(x), module(x)):
            close(actual, expected)


@pytest.mark.parametrize("options", OPTIONS)
def test_simpool_is_exported_to_onnx(options, tmp_path):
    pytest.importorskip("onnxscript")
    onnx = pytest.importorskip("onnx")
    reference = pytest.importorskip("onnx.reference")
    module, x, path = simpool(dtype=torch.float32, **options), normal(3, 9, D, dtype=torch.float32), tmp_path / "simpool.onnx"
    torch.onnx.export(module, (x,), path, dynamo=True, verbose=False)
    onnx.checker.check_model(path)
    vector, attention = reference.ReferenceEvaluator(str(path)).run(None, {"x": x.numpy()})
    close(module(x).vector, vector, 1e-4)
    close(module(x).attention, attention, 1e-4)


# ---- pooling functions ---------------------------------------------------------------------------------------------------


def shares(batch=2, tokens=6, k=3, *, seed=0, dtype=torch.float64):
    """Attention that sums to 1."""
    return (2 * normal(batch, tokens, k, seed=seed)).softmax(1).to(dtype)


@pytest.mark.parametrize("alpha", [-9, -3, -1.5, -1, 0, 0.5, 1])
def test_power_means_are_f_alphas(alpha):
    values, attention = normal(2, 6, 4).exp(), shares()
    expected = (attention.mT @ values.log()).exp() if alpha == 1 else (attention.mT @ values ** ((1 - alpha) / 2)) ** (2 / (1 - alpha))
    close(Power((1 - alpha) / 2).mean(values, attention), expected)


def test_special_powers_are_average_geometric_mean_and_maximum():
    values, attention = normal(2, 6, 4).exp(), shares()
    for b, j, c in np.ndindex(2, 3, 4):
        v, a = values[b, :, c].tolist(), attention[b, :, j].tolist()
        assert Power(1).mean(values, attention)[b, j, c].item() == pytest.approx(sum(x * y for x, y in zip(a, v)))
        assert Power(0).mean(values, attention)[b, j, c].item() == pytest.approx(math.prod(y**x for x, y in zip(a, v)))
        assert Power(math.inf).mean(values, attention)[b, j, c].item() == max(v)


@few
@given(st.integers(0, 10**6), st.lists(st.one_of(st.floats(0.01, 50), st.just(0.0), st.just(math.inf)), min_size=2, max_size=6))
def test_power_means_grow_with_gamma(seed, gammas):
    values, attention = (3 * normal(2, 6, 4, seed=seed)).exp(), shares(seed=seed)
    means = [Power(gamma).mean(values, attention) for gamma in sorted(gammas)]
    assert all((low <= high * (1 + 1e-9)).all() for low, high in zip(means, means[1:]))
    assert (means[0] >= values.amin(1, keepdim=True) * (1 - 1e-9)).all()
    assert (means[-1] <= values.amax(1, keepdim=True) * (1 + 1e-9)).all()


@pytest.mark.parametrize("gamma", [0, 0.1, 1, 1.25, 2, 10, 50, math.inf])
@pytest.mark.parametrize("scale", [1e-6, 1, 1e4])
def test_powers_do_not_overflow_in_single_precision(gamma, scale):
    values = (scale * torch.rand(2, 6, 4, generator=torch.Generator().manual_seed(0)).clamp(min=1e-6)).requires_grad_()
    attention = shares(dtype=torch.float32).requires_grad_()
    mean = Power(gamma).mean(values, attention)
    mean.sum().backward()
    torch.testing.assert_close(mean.double(), Power(gamma).mean(values.double(), attention.double()), rtol=1e-4, atol=0)
    assert values.grad.isfinite().all() and (attention.grad is None or attention.grad.isfinite().all())


@pytest.mark.parametrize("gap", [1e-3, 1e-4, -1e-4])
def test_power_means_tend_to_the_geometric_mean(gap):
    values, attention = normal(2, 6, 4).exp(), shares()
    torch.testing.assert_close(Power(gap / 2).mean(values, attention), Power(0).mean(values, attention), rtol=abs(gap), atol=0)


def test_large_powers_tend_to_the_maximum():
    values, attention = 1 + normal(2, 6, 4).abs(), torch.full((2, 6, 1), 1 / 6, dtype=torch.float64)
    torch.testing.assert_close(Power(1e4).mean(values, attention), values.amax(1, keepdim=True), rtol=1e-3, atol=0)


FUNCTIONS = [*(Power(gamma) for gamma in (0, 0.5, 1, 1.25, 2, 3, 50, math.inf)), *(Exponential(tau) for tau in (0.01, 1, 10))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("large", [2, 1e4])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_token_without_attention_does_not_count(function, large, dtype):
    seen, weights = normal(2, 6, 4, dtype=dtype).exp(), shares(dtype=dtype)
    values = torch.cat([seen, torch.full((2, 1, 4), large, dtype=dtype)], 1)
    attention = torch.cat([weights, torch.zeros(2, 1, 3, dtype=dtype)], 1)
    torch.testing.assert_close(function.mean(values, attention), function.mean(seen, weights), rtol=1e-4, atol=0)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_zero_attention_has_finite_gradients(function):
    values, attention = normal(2, 6, 4).exp().requires_grad_(), shares()
    attention[:, 2] = 0
    attention.requires_grad_()
    function.mean(values, attention).sum().backward()
    assert values.grad.isfinite().all() and (values.grad[:, 2] == 0).all()
    assert attention.grad is None or attention.grad.isfinite().all()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_gradients_of_the_means_are_right(function):
    inputs = [normal(1, 3, 2).exp().requires_grad_(), shares(1, 3, 2).requires_grad_()]
    assert torch.autograd.gradcheck(function.mean, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shift", [0, 1e4, -1e4])
def test_exponential_means_go_from_the_average_to_the_maximum(shift, dtype):
    values, attention = normal(2, 6, 4, dtype=dtype) * (1 + abs(shift)) + shift, shares(dtype=dtype)
    tolerance = dict(rtol=1e-3, atol=1e-3 * (1 + abs(shift)))
    torch.testing.assert_close(Exponential(1e-4 / (1 + abs(shift))).mean(values, attention), attention.mT @ values, **tolerance)
    torch.testing.assert_close(Exponential(1e5).mean(values, attention), values.amax(1, keepdim=True).expand(-1, 3, -1), **tolerance)


@pytest.mark.parametrize("tau", [0.1, 1.0, 10.0])
def test_exponential_means_grow_with_tau_and_follow_a_shift(tau):
    values, attention = normal(2, 6, 4), shares()
    mean = Exponential(tau).mean(values, attention)
    assert (mean <= Exponential(2 * tau).mean(values, attention)).all()
    close(Exponential(tau).mean(values + 1e4, attention), mean + 1e4, 1e-9)


# ---- clustering ----------------------------------------------------------------------------------------------------------


def clusters(tokens=12):
    """Three clusters, of which the first three tokens that k-means starts from are one each: tokens, and what each belongs to."""
    start = torch.randperm(tokens, generator=torch.Generator().manual_seed(0))
    belongs = torch.empty(tokens, dtype=torch.long)
    belongs[start] = torch.arange(tokens) % 3
    return 20 * normal(3, D, seed=3)[belongs] + normal(2, tokens, D), belongs


@pytest.mark.parametrize("iterations", [1, 10])
def test_kmeans_finds_separated_clusters(iterations):
    x, belongs = clusters()
    vector, attention = create_pooling("kmeans", D, iterations=iterations).eval()(x)
    for j in range(3):
        close(vector[:, j], x[:, belongs == j].mean(1))
        close(attention[:, j], ((belongs == j).double() / (belongs == j).sum()).expand(2, -1))


@pytest.mark.parametrize("seed", range(5))
def test_kmeans_ends_where_every_vector_is_the_mean_of_its_tokens(seed):
    x = normal(3, 20, D, seed=seed)
    torch.manual_seed(seed)
    vector, attention = create_pooling("kmeans", D, k=4, iterations=50)(x)
    for b in range(3):
        nearest = torch.cdist(x[b], vector[b]).argmin(1)
        for j in range(4):
            close(vector[b, j], x[b][nearest == j].mean(0))
            close(attention[b, j], (nearest == j).double() / (nearest == j).sum())


@pytest.mark.parametrize("name", ["kmeans", "otk"])
def test_distances_keep_their_precision_far_from_the_origin(name):
    module, x = create_pooling(name, D).eval(), normal(4, 20, D, dtype=torch.float32)
    attention = module(x).attention
    if name == "otk":
        with torch.no_grad():
            module.initial += 1000
    close(module(x + 1000).attention, attention, 1e-3)


@pytest.mark.parametrize("tokens", [1, 2, 9])
def test_clusters_without_tokens_are_finite(tokens):
    module, x = create_pooling("kmeans", D, k=5), normal(2, 1, D).expand(-1, tokens, -1)
    vector, attention = module(x)
    close(vector, x[:, :1].expand(-1, 5, -1))
    assert attention.sum(-1).unique().tolist() == [0, 1]


def test_kmeans_evaluates_without_the_global_generator():
    module, x = create_pooling("kmeans", D).eval(), normal(2, 30, D)
    torch.manual_seed(0)
    state, first = torch.get_rng_state(), module(x).vector
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(module(x).vector, first)


def test_kmeans_trains_from_random_tokens():
    module, x, found = create_pooling("kmeans", D, iterations=1), normal(1, 30, D), []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        found.append(module(x).vector)
    assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])


@pytest.mark.parametrize("iterations, tolerance", [(1, None), (300, 1e-4)])
def test_transport_is_balanced(iterations, tolerance):
    attention = pooling("otk", k=3, iterations=iterations)(normal(2, 12, D)).attention  # [B, k, N]
    close(attention.sum(-1), torch.ones(2, 3), 1e-5)
    if tolerance:
        close(attention.sum(1), torch.full((2, 12), 3 / 12), tolerance)


def test_transport_of_far_tokens_is_finite():
    module, x = pooling("otk", iterations=5, dtype=torch.float32), 1e4 * normal(2, 12, D, dtype=torch.float32)
    vector, attention = module(x)
    assert vector.isfinite().all() and attention.isfinite().all()


def test_competing_slots_share_the_tokens():
    x = normal(2, 12, D)
    shared, alone = pooling("slot", compete=True, iterations=1), pooling("slot", k=1, compete=True)
    keys, queries = shared.wk(shared.norm_x(x)), shared.wq(shared.norm_u(shared.initial))
    over_slots = (keys @ queries.T / math.sqrt(D)).softmax(-1)  # [B, N, k]
    close(shared(x).attention, (over_slots / over_slots.sum(1, keepdim=True)).mT, 1e-6)
    close(alone(x).attention, torch.full((2, 1, 12), 1 / 12, dtype=x.dtype))


# ---- training ------------------------------------------------------------------------------------------------------------


def blobs(images, seed):
    """Noise with a blob somewhere, whose colour is the class."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.tensor([[2.0, -1, -1], [-1, 2, -1], [-1, -1, 2], [2, 2, -1]])
    labels = torch.randint(4, (images,), generator=generator)
    x, corners = torch.randn(images, 3, 16, 16, generator=generator), torch.randint(11, (images, 2), generator=generator)
    for image, label, (top, left) in zip(x, labels, corners):
        image[:, top : top + 5, left : left + 5] += colours[label, :, None, None]
    return x, labels


class Classifier(nn.Module):
    """Logits, the highest among the pooled vectors."""

    def __init__(self, name):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
        self.pooling, self.head = create_pooling(name, 16), nn.Linear(16, 4)

    def forward(self, x):
        vector = self.pooling(self.features(x)).vector
        return self.head(vector.view(len(x), -1, 16)).amax(1)


@pytest.mark.parametrize("name", NAMES)
def test_classifiers_learn_on_top(name):
    torch.manual_seed(0)
    classifier, (x, labels) = Classifier(name), blobs(512, seed=0)
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=1e-2)
    for step in range(80):
        some = torch.arange(step * 64, step * 64 + 64) % 512
        optimiser.zero_grad()
        F.cross_entropy(classifier(x[some]), labels[some]).backward()
        optimiser.step()
    x, labels = blobs(400, seed=1)
    with torch.no_grad():
        accuracy = (classifier.eval()(x).argmax(1) == labels).double().mean().item()
    assert accuracy > 0.8
