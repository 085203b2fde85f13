"""The operators on tensors: by hand, by theorem, and by formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlvr.merge.operators import consensus, drop, linear, slerp, task_arithmetic, ties, trim


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


VALUES = st.floats(-4.0, 4.0, width=32)
TENSORS = st.integers(1, 6).flatmap(
    lambda size: st.lists(
        st.lists(VALUES, min_size=size, max_size=size).map(lambda row: vector(*row)), min_size=2, max_size=4
    )
)
WEIGHTS = st.floats(0.1, 2.0)

# ---- by hand


def test_linear() -> None:
    models = [vector(1.0, 2.0), vector(5.0, -6.0)]
    assert close(linear(models, [3.0, 1.0]), vector(2.0, 0.0))  # (3 + 5) / 4, (6 - 6) / 4
    assert close(linear(models, [3.0, 1.0], normalize=False), vector(8.0, 0.0))
    assert close(linear(models, [2.0, -1.0]), vector(-3.0, 10.0))  # 2 - 5, 4 + 6: the weights sum to 1


@pytest.mark.parametrize("weights", [[1.0, -1.0], [0.0, 0.0]])
def test_weights_that_sum_to_zero(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="sum to 0"):
        linear([vector(1.0), vector(2.0)], weights)
    assert close(linear([vector(1.0), vector(2.0)], weights, normalize=False), vector(weights[0] + 2.0 * weights[1]))


def test_slerp_on_a_right_angle() -> None:
    # theta = pi/2: at t = 1/3 the shares are sin(pi/3) and sin(pi/6)
    assert close(slerp(vector(2.0, 0.0), vector(0.0, 4.0), 1 / 3), vector(1.7320508075688772, 2.0))


def test_slerp_at_sixty_degrees() -> None:
    # theta = pi/3, t = 1/2: both shares are sin(pi/6) / sin(pi/3) = 0.5773502691896258; the norm stays 1
    merged = slerp(vector(1.0, 0.0), vector(0.5, math.sqrt(3.0) / 2.0), 0.5)
    assert close(merged, vector(0.8660254037844387, 0.5))
    assert float(merged.norm()) == pytest.approx(1.0, abs=1e-12)


def test_slerp_of_colinear_and_of_empty_tensors_is_the_straight_line() -> None:
    assert close(slerp(vector(1.0, 0.0), vector(3.0, 0.0), 0.25), vector(1.5, 0.0))
    assert close(slerp(vector(1.0, 0.0), vector(-3.0, 0.0), 0.25), vector(0.0, 0.0))  # opposite: no arc is the shortest
    assert close(slerp(vector(0.0, 0.0), vector(3.0, 4.0), 0.25), vector(0.75, 1.0))


def test_slerp_changes_from_arc_to_line_at_the_limit() -> None:
    for cosine, is_line in ((0.9996, True), (0.9994, False)):
        end = 2.0 * vector(cosine, math.sqrt(1.0 - cosine**2))
        start = vector(1.0, 0.0)
        assert torch.equal(slerp(start, end, 0.5), start * 0.5 + end * 0.5) is is_line


def test_task_arithmetic() -> None:
    base, differences = vector(1.0, 1.0), [vector(2.0, -1.0), vector(4.0, 3.0)]
    assert close(task_arithmetic(base, differences, [0.5, 0.25]), vector(3.0, 1.25))
    assert close(task_arithmetic(base, differences, [0.5, 0.25], scale=2.0), vector(5.0, 1.5))
    assert close(
        task_arithmetic(base, differences, [0.5, 0.25], normalize=True), vector(1.0 + 2.0 / 0.75, 1.0 + 0.25 / 0.75)
    )
    assert close(task_arithmetic(base, differences[:1], [-1.0]), vector(-1.0, 2.0))  # forgetting by negation


def test_trim() -> None:
    assert close(trim(vector(1.0, -5.0, 3.0, 0.5), 0.5), vector(0.0, -5.0, 3.0, 0.0))
    assert close(trim(vector(1.0, -5.0, 3.0, 0.5), 0.74), vector(0.0, -5.0, 3.0, 0.0))  # int(2.96) = 2
    assert close(trim(vector(1.0, -5.0, 3.0, 0.5), 0.1), vector(0.0, -5.0, 0.0, 0.0))  # one stays at least
    assert close(trim(vector(2.0, -2.0, 2.0, 1.0), 0.5), vector(2.0, -2.0, 0.0, 0.0))  # of equal ones the first
    assert trim(vector(1.0), 1.0).tolist() == [1.0]
    assert trim(torch.zeros(2, 2), 0.5).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert trim(torch.zeros(0), 0.5).shape == (0,)


def test_consensus() -> None:
    differences = [vector(4.0, 1.0, 0.0, 2.0), vector(2.0, -3.0, 0.0, -2.0)]
    # sums 6, -2, 0, 0; signs +, -, +, +; where it is 0 the positive ones count, an entry of 0 never does
    assert close(consensus(differences, [1.0, 1.0]), vector(3.0, -3.0, 0.0, 2.0))
    assert close(consensus(differences, [1.0, 1.0], normalize=False), vector(6.0, -3.0, 0.0, 2.0))
    # weighted: 12 + 2 of 4; 3 - 3 = 0 is positive: 3 of 3; 6 - 2: 6 of 3
    assert close(consensus(differences, [3.0, 1.0]), vector(3.5, 1.0, 0.0, 2.0))


def test_ties() -> None:
    base, differences = vector(1.0, 1.0, 1.0, 1.0), [vector(4.0, 1.0, -6.0, 0.1), vector(2.0, -3.0, 5.0, 0.2)]
    # trimmed to (4, 0, -6, 0) and (0, -3, 5, 0); signs +, -, -, +; means 4, -3, -6, 0
    assert close(ties(base, differences, [1.0, 1.0], [0.5, 0.5]), vector(5.0, -2.0, -5.0, 1.0))
    assert close(ties(base, differences, [1.0, 1.0], [0.5, 0.5], scale=0.5), vector(3.0, -0.5, -2.0, 1.0))
    # the second kept whole, (2, -3, 5, 0.2): the first entry is the mean of 4 and 2
    assert close(ties(base, differences, [1.0, 1.0], [0.5, 1.0]), vector(4.0, -2.0, -5.0, 1.2))
    # a negative weight turns the sign of its difference: -(2, -3, 5, 0.2) added to (4, 0, -6, 0)
    merged = ties(base, differences, [1.0, -1.0], [0.5, 1.0], normalize=False)
    assert close(merged, vector(5.0, 4.0, -10.0, 0.8))


def test_drop() -> None:
    difference = vector(*range(1, 9))
    kept = (torch.rand(8, generator=seeded(3)) < 0.5).tolist()
    assert 0 < sum(kept) < 8
    plain = vector(*(float(value) if stays else 0.0 for value, stays in enumerate(kept, start=1)))
    assert close(drop(difference, 0.5, seeded(3), "none"), plain)
    assert close(drop(difference, 0.5, seeded(3), "density"), plain * 2.0)
    assert close(drop(difference, 0.5, seeded(3), "l1"), plain * 36.0 / plain.sum())  # 1 + ... + 8 = 36
    assert drop(difference, 1.0, seeded(3), "l1") is difference
    assert drop(torch.zeros(4), 0.5, seeded(), "l1").tolist() == [0.0] * 4
    nothing_left = drop(vector(5.0), 1e-9, seeded(), "l1")
    assert nothing_left.tolist() == [0.0]


# ---- theorems


@given(TENSORS, st.data())
@settings(deadline=None, max_examples=60)
def test_merging_a_model_with_itself_is_itself(tensors: list[Tensor], data: st.DataObject) -> None:
    tensor, weights = tensors[0], [data.draw(WEIGHTS) for _ in tensors]
    nothing = [tensor - tensor for _ in tensors]
    assert close(linear([tensor] * len(tensors), weights), tensor)
    assert close(slerp(tensor, tensor, data.draw(st.floats(0.0, 1.0))), tensor)
    assert torch.equal(task_arithmetic(tensor, nothing, weights), tensor)
    assert torch.equal(ties(tensor, nothing, weights, [0.5] * len(tensors)), tensor)
    assert torch.equal(tensor + drop(nothing[0], 0.5, seeded(), "density"), tensor)


@given(TENSORS)
@settings(deadline=None, max_examples=60)
def test_weights_one_and_zero_give_one_model_bit_for_bit(tensors: list[Tensor]) -> None:
    weights = [0.0] * (len(tensors) - 1) + [1.0]
    for dtype in (torch.float64, torch.float32):
        models = [tensor.to(dtype) for tensor in tensors]
        bits = models[-1].numpy().tobytes()  # so that -0.0 and 0.0 are different
        assert linear(models, weights).numpy().tobytes() == bits
        assert slerp(models[0], models[-1], 1.0).numpy().tobytes() == bits
        assert slerp(models[-1], models[0], 0.0).numpy().tobytes() == bits


@given(TENSORS, st.data())
@settings(deadline=None, max_examples=60)
def test_the_order_of_the_models_does_not_matter(tensors: list[Tensor], data: st.DataObject) -> None:
    weights = [data.draw(WEIGHTS) for _ in tensors]
    order = data.draw(st.permutations(range(len(tensors))))
    shuffled, theirs = [tensors[place] for place in order], [weights[place] for place in order]
    assert close(linear(shuffled, theirs), linear(tensors, weights))
    base = torch.zeros_like(tensors[0])
    assert close(task_arithmetic(base, shuffled, theirs), task_arithmetic(base, tensors, weights))
    t = data.draw(st.floats(0.0, 1.0))
    assert close(slerp(tensors[0], tensors[1], t), slerp(tensors[1], tensors[0], 1.0 - t))


@given(TENSORS, WEIGHTS)
@settings(deadline=None, max_examples=60)
def test_ties_of_one_whole_difference_is_task_arithmetic(tensors: list[Tensor], weight: float) -> None:
    base, difference = tensors[0], tensors[1]
    assert close(
        ties(base, [difference], [weight], [1.0], normalize=False), task_arithmetic(base, [difference], [weight])
    )
    assert close(ties(base, [difference], [weight], [1.0]), base + difference)  # normalized, one weight cancels


@given(TENSORS, st.data())
@settings(deadline=None, max_examples=60)
def test_ties_of_whole_differences_of_one_sign_is_linear(tensors: list[Tensor], data: st.DataObject) -> None:
    weights = [data.draw(WEIGHTS) for _ in tensors]
    differences = [tensor.abs() + 0.1 for tensor in tensors]
    base = tensors[0]
    merged = ties(base, differences, weights, [1.0] * len(tensors))
    assert close(merged, linear([base + difference for difference in differences], weights))


@pytest.mark.parametrize("density", [0.2, 0.5, 0.9])
def test_the_expectation_of_dare_is_the_difference(density: float) -> None:
    """Theorem: E[m d / p] = d for m of Bernoulli(p). The mean of n draws has variance d^2 (1 - p) / (p n)."""
    difference, draws, generator = vector(1.0, -2.0, 0.25, 3.0), 4000, seeded(7)
    dropped = [drop(difference, density, generator, "density") for _ in range(draws)]
    mean = torch.stack(dropped).mean(dim=0)
    sigma = difference.abs() * math.sqrt((1.0 - density) / (density * draws))
    assert ((mean - difference).abs() < 4.0 * sigma).all()
    unscaled = torch.stack([drop(difference, density, generator, "none") for _ in range(draws)]).mean(dim=0)
    assert ((unscaled - density * difference).abs() < 4.0 * sigma * density).all()  # the control is not the difference


# ---- by formula: the definitions of mergekit 0.1.5, written once more in numpy


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_ties_is_what_the_formula_says(seed: int, normalize: bool) -> None:
    random = np.random.default_rng(seed)
    base, models = random.normal(size=(7, 5)), random.normal(size=(3, 7, 5))
    weights, densities = random.uniform(0.1, 1.0, 3), random.uniform(0.2, 1.0, 3)
    parts = []
    for model, weight, density in zip(models, weights, densities, strict=True):
        difference = model - base
        smallest_kept = np.sort(np.abs(difference), axis=None)[::-1][int(density * 35) - 1]
        parts.append(weight * np.where(np.abs(difference) >= smallest_kept, difference, 0.0))
    sign = np.where(np.sum(parts, axis=0) >= 0.0, 1.0, -1.0)
    agrees = np.sign(parts) == sign
    total = np.sum(parts * agrees, axis=0)
    divisor = np.sum(agrees * weights[:, None, None], axis=0)
    expected = base + 0.7 * (total / np.where(divisor == 0.0, 1.0, divisor) if normalize else total)
    found = ties(
        torch.from_numpy(base), [torch.from_numpy(model - base) for model in models], weights.tolist(),
        densities.tolist(), scale=0.7, normalize=normalize,
    )  # fmt: skip
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.8])
def test_slerp_is_what_the_formula_says(t: float) -> None:
    random = np.random.default_rng(1)
    start, end = random.normal(size=(6, 4)), random.normal(size=(6, 4))
    theta = np.arccos(np.sum(start / np.linalg.norm(start) * end / np.linalg.norm(end)))
    expected = (np.sin((1 - t) * theta) * start + np.sin(t * theta) * end) / np.sin(theta)
    found = slerp(torch.from_numpy(start), torch.from_numpy(end), t)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-12)
