"""Lines and planes against losses that are known everywhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lightning_opt.geometry import _points, line, plane
from oracles.curvature import rotated


@pytest.fixture
def quadratic():
    """A rotated quadratic in two tensors, its minimum away from zero, and two directions."""
    matrix = rotated(torch.tensor([1.0, 2.0, 5.0, 9.0, 20.0, 40.0]))
    generator = torch.Generator().manual_seed(1)

    def draw() -> list[torch.Tensor]:
        return [
            torch.randn(2, 2, generator=generator, dtype=torch.float64),
            torch.randn(2, generator=generator, dtype=torch.float64),
        ]

    params, first, second = draw(), draw(), draw()

    def of(theta: list[torch.Tensor]) -> torch.Tensor:
        flat = torch.cat([t.reshape(-1) for t in theta])
        return flat @ matrix @ flat / 2 + flat.sum()

    return of, params, first, second


def at(params, first, second, a, b):
    return [p + a * d + b * e for p, d, e in zip(params, first, second, strict=True)]


def test_a_plane_that_is_not_square_has_the_exact_values_in_the_right_places(quadratic):
    of, params, first, second = quadratic
    alphas, betas = np.linspace(-2, 1, 4), np.linspace(-0.5, 3, 7)
    result = plane(lambda _: of(params), params, [None], [first, second], alphas, betas)
    expected = [[of(at(params, first, second, a, b)).item() for b in betas] for a in alphas]
    assert result.values.shape == (4, 7)
    np.testing.assert_allclose(result.values, expected, rtol=1e-12)
    np.testing.assert_array_equal(result.alphas, alphas)
    np.testing.assert_array_equal(result.betas, betas)


def test_a_line_runs_from_start_to_end_exactly(quadratic):
    of, params, start, end = quadratic
    coefficients = [-0.5, 0.0, 0.3, 1.0, 1.5]
    result = line(lambda _: of(params), params, [None], start, end, coefficients)
    blend = [
        of([(1 - c) * s + c * e for s, e in zip(start, end, strict=True)]).item()
        for c in coefficients
    ]
    np.testing.assert_allclose(result.values, blend, rtol=1e-12)
    assert result.values[1] == of(start).item()
    assert result.values[3] == of(end).item()


def test_a_line_may_end_at_the_parameters_themselves(quadratic):
    """They change in place while the line is walked, so the end has to be a copy."""
    of, params, start, _ = quadratic
    here = of(params).item()
    assert line(lambda _: of(params), params, [None], start, params, [0.5, 1]).values[1] == here


def test_uneven_batches_are_weighted_by_their_terms():
    x = torch.zeros(1)
    result = plane(
        lambda b: ((x - b).square().mean(), len(b)),
        [x],
        [torch.tensor([1.0]), torch.tensor([2.0, 3.0, 4.0])],
        [[torch.ones(1)], [torch.zeros(1)]],
        [0.0, 1.0],
        [0.0],
    )
    np.testing.assert_allclose(result.values[:, 0], [30 / 4, 14 / 4])
    assert result.terms == 4


def test_a_batch_without_terms_counts_for_nothing():
    """The mean over no masked token is NaN; it must not spread."""
    x, one = torch.zeros(1), [torch.ones(1)]
    result = line(lambda n: (x.sum() / n * n, n), [x], [2, 0], one, one, [0.0])
    assert result.values.tolist() == [1.0]


def test_nan_and_infinity_are_stored_as_they_are():
    x = torch.zeros(1)
    one, none = [torch.ones(1)], [torch.zeros(1)]
    result = plane(lambda _: (1 / x).log().sum(), [x], [None], [one, none], [-1, 0, 1], [0.0])
    assert np.isnan(result.values[0, 0])
    assert result.values[1:, 0].tolist() == [np.inf, 0.0]


def boom(_):
    raise RuntimeError("boom")


def interrupt(_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("loss", [lambda _: torch.zeros(()), boom, interrupt])
def test_weights_are_restored_bitwise_also_after_an_exception(loss):
    """Adding and subtracting a direction would leave roundoff."""
    layer = nn.Linear(50, 50)
    before = [p.detach().clone() for p in layer.parameters()]
    directions = [[torch.randn_like(p) for p in before] for _ in range(2)]
    for analysis in (
        lambda: plane(loss, layer.parameters(), [None], directions, [0.1, 0.7], [0.3]),
        lambda: line(loss, layer.parameters(), [None], *directions, [0.1, 0.7]),
    ):
        try:
            analysis()
        except (RuntimeError, KeyboardInterrupt):
            assert loss in (boom, interrupt)
        assert all(map(torch.equal, layer.parameters(), before))
        assert all(p.requires_grad and p.grad is None for p in layer.parameters())


def test_points_do_not_drift():
    """Every point starts from the pristine weights: a grid's last point equals that point alone."""
    layer = nn.Linear(20, 1)
    directions = [[torch.randn_like(p) for p in layer.parameters()] for _ in range(2)]
    x = torch.randn(8, 20)
    axis = np.linspace(-1, 1, 15)
    whole = plane(lambda b: layer(b).mean(), layer.parameters(), [x], directions, axis, axis)
    alone = plane(
        lambda b: layer(b).mean(), layer.parameters(), [x], directions, axis[-1:], axis[-1:]
    )
    assert whole.values[-1, -1] == alone.values[0, 0]


def test_no_graph_is_recorded_and_progress_counts_points():
    x = torch.zeros(1, requires_grad=True)
    calls: list[bool] = []

    def loss(_):
        calls.append(torch.is_grad_enabled())
        return x.sum()

    ticks: list[None] = []
    tick = lambda: ticks.append(None)  # noqa: E731
    one = [torch.ones(1)]
    plane(loss, [x], [None], [one, one], [0, 1], [0, 1, 2], progress=tick)
    line(loss, [x], [None], one, one, [0, 1], progress=tick)
    assert calls == [False] * 8
    assert len(ticks) == 8


ONE = [torch.ones(1)]


@pytest.mark.parametrize(
    ("directions", "alphas", "message"),
    [
        ([ONE], [0.0], "directions has 1 entries"),
        ([ONE, [torch.ones(2)]], [0.0], r"directions\[1\]\[0\] has shape \(2,\)"),
        ([ONE, [*ONE, *ONE]], [0.0], r"directions\[1\] has 2 tensors"),
        ([ONE, ONE], [], "alphas has shape"),
        ([ONE, ONE], [np.nan], "alphas has shape"),
        ([ONE, ONE], [[0.0]], "alphas has shape"),
    ],
)
def test_bad_planes_are_named(directions, alphas, message):
    with pytest.raises(ValueError, match=message):
        plane(lambda _: torch.zeros(()), ONE, [None], directions, alphas, [0.0])


def test_bad_lines_are_named():
    with pytest.raises(ValueError, match=r"start\[0\] has shape \(2,\)"):
        line(lambda _: torch.zeros(()), ONE, [None], [torch.ones(2)], ONE, [0.0])
    with pytest.raises(ValueError, match="coefficients"):
        line(lambda _: torch.zeros(()), ONE, [None], ONE, ONE, [])


# Metrics


def test_metrics_are_weighted_by_terms_as_the_loss_is():
    x = torch.zeros(1)
    batches = [torch.tensor([1.0]), torch.tensor([2.0, 3.0, 4.0]), torch.empty(0)]

    def loss(b):
        near = ((x - b).abs() < 1.5).double()
        return (x - b).square().mean(), len(b), {"near": near.mean(), "batch size": len(b)}

    east, none = [torch.ones(1)], [torch.zeros(1)]
    result = plane(loss, [x], batches, [east, none], [0.0, 2.0], [0.0, 1.0])
    np.testing.assert_allclose(result.values, [[30 / 4] * 2, [(1 + 0 + 1 + 4) / 4] * 2])
    np.testing.assert_allclose(result.metrics["near"], [[1 / 4] * 2, [3 / 4] * 2])
    np.testing.assert_allclose(result.metrics["batch size"], 10 / 4)
    arrays = result.to_arrays()
    assert set(arrays) == {
        *("alphas", "betas", "values", "terms", "evaluated", "tolerance", "clip", "batchnorm"),
        *("metric_near", "metric_batch size"),
    }
    assert all(isinstance(array, np.ndarray) and array.dtype != object for array in arrays.values())
    walked = line(loss, [x], batches, none, east, [0.0, 2.0])
    np.testing.assert_allclose(walked.to_arrays()["metric_near"], [1 / 4, 3 / 4])


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ((torch.zeros(()), 1, 0.5), TypeError, "float as its third element"),
        (
            (torch.zeros(()), 1, {"wide": torch.zeros(2)}),
            ValueError,
            r"\(2,\) as the metric 'wide'",
        ),
    ],
)
def test_bad_metrics_are_named(value, error, message):
    with pytest.raises(error, match=message):
        line(lambda _: value, ONE, [None], ONE, ONE, [0.0])


def test_metrics_that_change_are_named():
    with pytest.raises(ValueError, match=r"\['b'\], and \['a'\] before"):
        line(lambda b: (torch.zeros(()), 1, {b: 0.0}), ONE, ["a", "b"], ONE, ONE, [0.0])


# In company, and after interruptions


class Valley:
    """A small problem; its loss may stop a run after so many evaluations."""

    def __init__(self, stop_after=None, how=None):
        generator = torch.Generator().manual_seed(0)
        self.params = [torch.randn(3, 2, generator=generator), torch.randn(2, generator=generator)]
        self.directions = [
            [torch.randn(p.shape, generator=generator) for p in self.params] for _ in range(2)
        ]
        self.batches = [torch.randn(n, 3, generator=generator) for n in (5, 3)]
        self.stop_after, self.how = stop_after, how
        self.calls = 0

    def loss(self, batch):
        if self.calls == self.stop_after:
            self.how()
        self.calls += 1
        out = batch @ self.params[0] + self.params[1]
        value = out.square().mean() + out.sin().mean()
        if out.max() > 8:
            value = value / 0
        return value, len(batch), {"positive": (out > 0).double().mean()}

    def plane(self, **options):
        return plane(
            self.loss,
            self.params,
            self.batches,
            self.directions,
            np.linspace(-1, 1, 21),
            np.linspace(-1, 1.5, 17),
            **options,
        )

    def line(self, **options):
        return line(
            self.loss, self.params, self.batches, *self.directions, np.linspace(0, 1, 13), **options
        )

    def run(self, kind, **options):
        if kind == "adaptive":
            return self.plane(tolerance=1e-3, **options)
        return getattr(self, kind)(**options)


KINDS = ["line", "plane", "adaptive"]


def assert_same(found, expected):
    for name, array in expected.to_arrays().items():
        other = found.to_arrays()[name]
        assert other.dtype == array.dtype
        assert other.tobytes() == array.tobytes(), name


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def run_until_killed(folder):
    _points.PAUSE = 0.0
    for kind, stop_after in zip(KINDS, (11, 300, 298), strict=True):
        if os.fork() == 0:
            Valley(stop_after, die).run(kind, resume=folder / f"{kind}.npz")
        os.wait()


def run_together(folder, rank):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2
    )
    group = torch.distributed.group.WORLD
    for kind in KINDS:
        valley = Valley()
        ticks = []
        result = valley.run(kind, group=group, progress=lambda: ticks.append(None))  # noqa: B023
        np.savez(folder / f"{kind}-{rank}.npz", **result.to_arrays())
        np.savez(folder / f"{kind}-{rank}-counts.npz", calls=valley.calls, ticks=len(ticks))
    # Both are interrupted at the same point, and go on together.
    _points.PAUSE = 0.0
    path = folder / "shared.npz"
    with pytest.raises(KeyboardInterrupt):
        Valley(101, interrupt_now).plane(resume=path, group=group)
    torch.distributed.barrier()
    assert path.exists()
    resumed = Valley()
    result = resumed.plane(resume=path, group=group)
    assert resumed.calls < 600
    np.savez(folder / f"resumed-{rank}.npz", **result.to_arrays())
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)  # gloo's threads may abort an interpreter that ends in order


def interrupt_now():
    raise KeyboardInterrupt


def start(function, *arguments):
    """This function in a new process, with the paths that the tests have."""
    code = "import sys, runpy, pathlib; sys.path[:0] = sys.argv[2:4]; import torch; "
    code += "torch.set_num_threads(1); "
    code += f"runpy.run_path(sys.argv[1])[{function!r}](pathlib.Path(sys.argv[4]), "
    code += "*map(int, sys.argv[5:]))"
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", code, __file__, str(root), str(root / "tests")]
    return subprocess.Popen([*command, *map(str, arguments)])


def test_a_killed_run_goes_on_and_ends_with_the_same_bits(tmp_path):
    assert start("run_until_killed", tmp_path).wait(timeout=60) == 0
    for kind, known in zip(KINDS, (5, 150, 149), strict=True):
        path = tmp_path / f"{kind}.npz"
        assert path.exists()
        whole, rest = Valley(), Valley()
        expected = whole.run(kind)
        assert_same(rest.run(kind, resume=path), expected)
        # One point is evaluated again, to see that it is the same loss.
        assert rest.calls == whole.calls - 2 * (known - 1)
        assert list(tmp_path.glob(f"*{kind}*")) == []


def test_an_interrupted_run_saves_what_it_knows(tmp_path):
    path = tmp_path / "plane.npz"
    valley = Valley(100, interrupt_now)
    before = [p.clone() for p in valley.params]
    with pytest.raises(KeyboardInterrupt):
        valley.plane(resume=path)
    assert all(map(torch.equal, valley.params, before))
    with np.load(path) as state:
        assert state["known"].sum() == 50
    assert_same(Valley().plane(resume=path), Valley().plane())


def test_a_file_of_another_computation_is_refused(tmp_path):
    path = tmp_path / "plane.npz"
    with pytest.raises(KeyboardInterrupt):
        Valley(200, interrupt_now).plane(resume=path)  # the corner alone is infinite
    content = path.read_bytes()

    def moved(valley):
        valley.params[0][1, 1] += 1e-6

    def turned(valley):
        valley.directions[1][0] *= -1

    def fewer(valley):
        valley.batches.pop()

    def other_data(valley):
        valley.batches[0] += 1

    for change in (moved, turned, fewer, other_data):
        valley = Valley()
        change(valley)
        with pytest.raises(ValueError, match="holds another computation"):
            valley.plane(resume=path)
    with pytest.raises(ValueError, match="holds another computation"):
        Valley().plane(resume=path, tolerance=0.1)
    with pytest.raises(ValueError, match="holds another computation"):
        Valley().line(resume=path)
    assert path.read_bytes() == content
    for damaged in (b"", content[: len(content) // 2], b"text"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"plane\.npz is damaged"):
            Valley().plane(resume=path)


def test_two_processes_share_the_points_and_agree_with_one(tmp_path):
    processes = [start("run_together", tmp_path, rank) for rank in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    for kind in KINDS:
        alone = Valley()
        expected = alone.run(kind).to_arrays()
        calls = []
        for rank in range(2):
            with np.load(tmp_path / f"{kind}-{rank}.npz") as found:
                for name, array in expected.items():
                    assert found[name].tobytes() == array.tobytes(), (kind, name)
            with np.load(tmp_path / f"{kind}-{rank}-counts.npz") as counts:
                calls.append(int(counts["calls"]))
                assert counts["ticks"] == alone.calls / 2  # two batches a point
        assert sum(calls) == alone.calls
        assert max(calls) <= 0.6 * alone.calls
    expected = Valley().plane().to_arrays()
    for rank in range(2):
        with np.load(tmp_path / f"resumed-{rank}.npz") as found:
            assert all(found[name].tobytes() == array.tobytes() for name, array in expected.items())
    assert not (tmp_path / "shared.npz").exists()
