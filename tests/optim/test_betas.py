"""The update parameters against their published vector formulas, in NumPy, and against each other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from convexlab.errors import MisuseError
from convexlab.optim import beta_names
from convexlab.optim.betas import Products, beta_formula

Vector = np.ndarray

PUBLISHED: dict[str, Callable[[Vector, Vector, Vector], float]] = {
    # Arguments: previous gradient, gradient, previous direction.
    "fletcher-reeves": lambda g, new, d: np.linalg.norm(new) ** 2 / np.linalg.norm(g) ** 2,
    "polak-ribiere+": lambda g, new, d: max(0.0, new @ (new - g) / np.linalg.norm(g) ** 2),
    "hestenes-stiefel": lambda g, new, d: new @ (new - g) / (d @ (new - g)),
    "dai-yuan": lambda g, new, d: np.linalg.norm(new) ** 2 / (d @ (new - g)),
    "hager-zhang": lambda g, new, d: max(
        ((new - g) - 2.0 * d * np.linalg.norm(new - g) ** 2 / (d @ (new - g))) @ new / (d @ (new - g)),
        0.4 * (d @ g) / np.linalg.norm(d) ** 2,
    ),
}


def _vectors(seed: int) -> tuple[Vector, Vector, Vector]:
    generator = np.random.default_rng(seed)
    g, new, d = generator.standard_normal((3, 6))
    return g, new, d if d @ g < 0.0 else -d


def _products(g: Vector, new: Vector, d: Vector, root: Vector) -> Products:
    """Return the products for P = R Rᵀ."""
    p, y = root @ root.T, new - g
    return Products(
        g_z=g @ p @ g,
        new_g_z=new @ p @ new,
        y_new_z=y @ p @ new,
        y_z=y @ p @ y,
        d_y=d @ y,
        d_new_g=d @ new,
        d_g=d @ g,
        d_d=d @ np.linalg.solve(p, d),
    )


def test_every_name_is_tested() -> None:
    assert set(beta_names()) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_formula_is_the_published_one(name: str) -> None:
    for seed in range(10):
        vectors = _vectors(seed)
        expected = pytest.approx(PUBLISHED[name](*vectors), rel=1e-12)
        assert beta_formula(name)(_products(*vectors, np.eye(6))) == expected, f"seed {seed}"


@pytest.mark.parametrize("name", PUBLISHED)
def test_preconditioning_is_a_change_of_variables(name: str) -> None:
    # With x = Ru and P = RRᵀ, gradients in u are Rᵀg and directions R⁻¹d.
    for seed in range(10):
        g, new, d = _vectors(seed)
        root = np.random.default_rng(100 + seed).standard_normal((6, 6)) + 4.0 * np.eye(6)
        expected = pytest.approx(PUBLISHED[name](root.T @ g, root.T @ new, np.linalg.solve(root, d)), rel=1e-9)
        assert beta_formula(name)(_products(g, new, d, root)) == expected, f"seed {seed}"


@pytest.mark.parametrize("name", PUBLISHED)
def test_all_agree_on_a_quadratic_with_exact_steps(name: str) -> None:
    # There gᵀg₊ = dᵀg₊ = 0, and linear conjugate gradients have β = g₊ᵀg₊ / gᵀg.
    generator = np.random.default_rng(3)
    root = generator.standard_normal((6, 6))
    matrix, g = root @ root.T + np.eye(6), generator.standard_normal(6)
    new = g - (g @ g) / (g @ matrix @ g) * matrix @ g
    assert beta_formula(name)(_products(g, new, -g, np.eye(6))) == pytest.approx((new @ new) / (g @ g), rel=1e-12)


whole_vectors = arrays(np.float64, 6, elements=st.integers(-1000, 1000).map(float))


@given(whole_vectors, whole_vectors, whole_vectors)
def test_hager_zhang_descends_whatever_the_step(g: Vector, new: Vector, d: Vector) -> None:
    # Theorem 1.1 of Hager and Zhang (2005): g₊ᵀd₊ <= -7/8 ‖g₊‖² if dᵀy is not zero.
    d = d if d @ g < 0.0 else -d
    assume(d @ g < 0.0 and d @ (new - g) != 0.0)
    beta = beta_formula("hager-zhang")(_products(g, new, d, np.eye(6)))
    # Products of whole numbers are exact, which leaves some ten roundings of the terms yᵀg₊/dᵀy and 2 yᵀy dᵀg₊/(dᵀy)²,
    # each times dᵀg₊: no more than c² and 2c² times ‖g₊‖², if c is ‖d‖‖y‖/|dᵀy|.
    squared = (d @ d) * ((new - g) @ (new - g)) / (d @ (new - g)) ** 2
    assert new @ (beta * d - new) <= (-7.0 / 8.0 + 10.0 * 2.0**-52 * (1.0 + 3.0 * squared)) * (new @ new)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_scale_of_the_loss_does_not_matter(name: str, scale: float) -> None:
    g, new, d = _vectors(5)
    plain, scaled = (beta_formula(name)(_products(s * g, s * new, s * d, np.eye(6))) for s in (1.0, scale))
    assert scaled == pytest.approx(plain, rel=1e-12)


def test_unknown_name() -> None:
    with pytest.raises(MisuseError, match=r"Did you mean 'polak-ribiere\+'"):
        beta_formula("polak-ribiere")
