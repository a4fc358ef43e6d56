"""The recurrence against plain loops, and what it promises of probes in lockstep."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_opt.geometry._basis import Basis
from lightning_opt.geometry._shards import Shards
from lightning_opt.geometry.lanczos import Lanczos, Operator
from oracles import lanczos as oracle
from oracles.curvature import rotated

# A bulk around zero and outliers, as Hessians of networks have it.
BULK = torch.cat([torch.linspace(-1, 1, 295), torch.tensor([4.0, 8.0, 15.0, 30.0, 60.0])]).double()


def starts(count: int, n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    vectors = torch.randn(count, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (vectors / vectors.norm(dim=1, keepdim=True)).to(dtype)


def run(operator: Operator, vectors: Tensor, steps: int, *, full: bool = True) -> Lanczos:
    probes, n = vectors.shape
    shards = Shards(n, vectors.device)
    basis = Basis(probes, steps, shards, vectors.dtype, vectors.device) if full else None
    lanczos = Lanczos(operator, vectors.clone(), steps, shards, basis)
    while lanczos.active and lanczos.step < steps:
        lanczos.advance()
    return lanczos


def vectors_of(lanczos: Lanczos, probe: int = 0) -> Tensor:
    assert lanczos.basis is not None
    return torch.stack([lanczos.basis[index][probe] for index in range(lanczos.step)])


def test_coefficients_are_those_of_plain_loops():
    matrix, vectors = rotated(BULK), starts(2, 300)
    full, none = run(matrix, vectors, 40), run(matrix, vectors, 10, full=False)
    for probe in range(2):
        alphas, betas = oracle.lanczos(matrix.numpy(), vectors[probe].numpy(), 40)
        T = full.tridiagonal(probe)
        np.testing.assert_allclose(T.alphas, alphas, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(T.betas, betas, rtol=1e-9)
        T = none.tridiagonal(probe)  # before rounding has grown
        np.testing.assert_allclose(T.alphas, alphas[:10], rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(T.betas, betas[:10], rtol=1e-6)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float64, 1e-13), (torch.float32, 5e-6)])
def test_basis_is_orthonormal_and_tridiagonalizes(dtype: torch.dtype, rounding: float):
    matrix = rotated(BULK).to(dtype)
    lanczos = run(matrix, starts(2, 300, dtype), 80)
    for probe in range(2):
        V, T = vectors_of(lanczos, probe).double(), lanczos.tridiagonal(probe)
        torch.testing.assert_close(V @ V.T, torch.eye(80).double(), atol=rounding, rtol=0)
        expected = np.diag(T.alphas) + np.diag(T.betas[:-1], 1) + np.diag(T.betas[:-1], -1)
        projected = (V @ matrix.double() @ V.T).numpy()
        np.testing.assert_allclose(projected, expected, atol=60 * rounding)


def test_basis_stays_orthogonal_where_nearly_all_of_a_vector_cancels():
    """One pass of Gram–Schmidt leaves an overlap of 1e-8 here."""
    eigenvalues = torch.cat([torch.linspace(1, 2, 50) * 1e-9, torch.tensor([0.5, 1.0])]).double()
    V = vectors_of(run(rotated(eigenvalues), starts(1, 52), 40))
    torch.testing.assert_close(V @ V.T, torch.eye(40).double(), atol=1e-13, rtol=0)


def test_probes_in_lockstep_are_those_one_by_one():
    matrix, vectors = rotated(BULK), starts(4, 300)
    together = run(matrix, vectors, 60)
    for probe in range(4):
        alone = run(matrix, vectors[probe : probe + 1], 60)
        np.testing.assert_allclose(together.alphas[probe], alone.alphas[0], rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(together.betas[probe], alone.betas[0], rtol=1e-9)
        torch.testing.assert_close(vectors_of(together, probe), vectors_of(alone))


@pytest.mark.parametrize("full", [True, False])
def test_an_exhausted_probe_drops_out_and_the_others_go_on(full: bool):
    """Its space has three dimensions; columns shrink, down to a vector for the last probe."""
    eigenvalues = torch.linspace(-1, 1, 300, dtype=torch.float64)
    operator, vectors = oracle.Reflected(eigenvalues), starts(3, 300)
    identity = torch.eye(300, dtype=torch.float64)
    eigenvectors = torch.stack([operator.coordinates(row) for row in identity])
    vectors[1] = eigenvectors[:, [0, 200, 299]].sum(dim=1) / 3**0.5
    vectors[2] = eigenvectors[:, [1, 50, 100, 150, 298]].sum(dim=1) / 5**0.5
    alone = run(operator, vectors[:1], 12, full=full)
    operator.applied.clear()
    together = run(operator, vectors, 12, full=full)
    assert operator.applied == [(300, 3)] * 3 + [(300, 2)] * 2 + [(300,)] * 7
    assert together.active == [0]
    np.testing.assert_allclose(together.alphas[0], alone.alphas[0], rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(together.ritz(1).values, eigenvalues[[0, 200, 299]])
    np.testing.assert_allclose(together.ritz(2).values, eigenvalues[[1, 50, 100, 150, 298]])
    # The weights are those of the eigenvectors in the start vector.
    np.testing.assert_allclose(together.ritz(1).vectors[0] ** 2, 1 / 3)


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("exponent", [-1000, -40, 1, 900])
def test_a_power_of_two_scales_every_coefficient_exactly(exponent: int, full: bool):
    matrix, vectors = rotated(BULK), starts(2, 300)
    one, other = (run(H, vectors, 30, full=full) for H in (matrix, matrix * 2.0**exponent))
    for probe in range(2):
        T, scaled = one.tridiagonal(probe), other.tridiagonal(probe)
        np.testing.assert_array_equal(scaled.alphas, T.alphas * 2.0**exponent)
        np.testing.assert_array_equal(scaled.betas, T.betas * 2.0**exponent)


@pytest.mark.parametrize("scale", [1e-36, 1e-20, 1e34])
def test_float32_at_the_ends_of_its_range(scale: float):
    """Where the squares of a product's entries are zero or infinite."""
    matrix, vectors = rotated(BULK).float(), starts(1, 300, torch.float32)
    one, other = run(matrix, vectors, 30), run(matrix * scale, vectors, 30)
    np.testing.assert_allclose(
        other.ritz(0).values[-5:], one.ritz(0).values[-5:] * scale, rtol=1e-4
    )


def test_residuals_are_those_of_the_vectors_but_no_less_than_roundoff():
    matrix = rotated(BULK).float()
    lanczos = run(matrix, starts(1, 300, torch.float32), 30)
    values, residuals, S = lanczos.ritz(0)
    vectors = torch.from_numpy(S.T.copy()) @ vectors_of(lanczos).double()
    exact = (vectors @ matrix.double() - torch.from_numpy(values)[:, None] * vectors).norm(dim=1)
    np.testing.assert_allclose(residuals, exact.numpy(), rtol=0.02, atol=5e-5)
    assert residuals[-1] > 60 * torch.finfo(torch.float32).eps


class PeakBytes(TorchDispatchMode):
    """The most that the storages of live tensors ever take together."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                ref = StorageWeakRef(storage)
                self.live[ref.cdata] = ref, storage.nbytes()
        self.live = {key: entry for key, entry in self.live.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return out


class Shifted:
    """2 v − (v moved on by one) − (v moved back): its product takes one vector and no more."""

    def __init__(self, n: int) -> None:
        self.shape, self.dtype, self.device = (n, n), torch.float32, torch.device("cpu")

    def __matmul__(self, v: Tensor) -> Tensor:
        out = v * 2
        out[1:].sub_(v[:-1])
        out[:-1].sub_(v[1:])
        return out


@pytest.mark.parametrize("probes", [1, 3])
def test_memory_of_three_vectors_does_not_depend_on_steps(probes: int):
    vectors = torch.zeros(probes, 100_000)
    vectors[:, ::7] = 1

    def peak(steps: int, *, full: bool) -> float:
        """In vectors for each probe, beyond the start vectors that the caller has."""
        with PeakBytes() as measured:
            run(Shifted(100_000), vectors / vectors.norm(dim=1, keepdim=True), steps, full=full)
        return measured.peak / (4 * 100_000 * probes) - 1

    few, many = peak(5, full=False), peak(40, full=False)
    assert few == pytest.approx(many, abs=0.02)
    assert 3 <= many < 3.1
    assert peak(40, full=True) > 40


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("full", [True, False])
def test_a_number_that_is_not_finite_is_an_error_that_names_the_step(bad: float, full: bool):
    class Breaking(oracle.Reflected):
        def __matmul__(self, v: Tensor) -> Tensor:
            product = super().__matmul__(v)
            if len(self.applied) == self.breaks_at:
                product[17, ...] = bad
            return product

    for step in (1, 4):
        operator = Breaking(BULK)
        operator.breaks_at = step
        with pytest.raises(FloatingPointError, match=f"Lanczos step {step}"):
            run(operator, starts(2, 300), 10, full=full)


def test_the_operator_may_return_what_it_was_given_or_use_its_memory_again():
    class Same(oracle.Reflected):
        def __matmul__(self, v: Tensor) -> Tensor:
            return v

    class Buffered(oracle.Reflected):
        out = torch.empty(300, dtype=torch.float64)

        def __matmul__(self, v: Tensor) -> Tensor:
            return self.out.copy_(super().__matmul__(v))

    assert run(Same(BULK), starts(1, 300), 10).ritz(0).values == pytest.approx([1.0])
    expected = run(oracle.Reflected(BULK), starts(1, 300), 20)
    np.testing.assert_array_equal(run(Buffered(BULK), starts(1, 300), 20).alphas, expected.alphas)
