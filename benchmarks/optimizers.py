"""What the optimizers cost beside their peers: time, memory, and what amortizing costs in loss.

    .venv/bin/python benchmarks/optimizers.py [PART ...]      # `make demo` has made .venv

    step     a step alone, gradients there; what the first steps cost, compiling cold and cached
    memory   the state, and what a step allocates beyond it
    shampoo  a training step with amortized roots; the step alone beside peers set alike
    kfac     a training step with amortized factors and inverses, beside kfac-pytorch
    svrg     a training step, and memory on ResNet18 and VGG11
    digits   training loss of the amortized forms and of those that do all work at every step

Without a PART all run, for hours. The network is ResNet18 for 32 × 32 images, 100 classes, 11.2M
parameters, in float32. The peers are installed into an environment of the benchmark's own, which
takes torch and all else from this one.

Times are medians over repeats that alternate: every measure once, then every one once more, a step
of milliseconds in a new process each time. A ratio is the median of the ratios within the repeats,
so that a machine that slows down in between slows both sides. What is amortized is measured once
its intervals are as long as asked for. Interrupting a part shows what it has measured so far and
goes on to the next.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, cached_property, partial
from importlib import import_module, metadata
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile, record_function

PEERS = ("pytorch_optimizer", "torch-optimizer", "timm", "heavyball", "schedulefree")
KFAC_PYTORCH = "git+https://github.com/gpauloski/kfac_pytorch"  # not on PyPI
OURS = "lightning_opt.optimizers."
FUSED = "torch Adam, fused"
SGD = "torch SGD"
GRADIENT = "forward and backward"
FACTOR_EVERY, INVERSE_EVERY = 20, 100
SETTLED = 16 * INVERSE_EVERY  # steps after which KFAC's intervals are that long

Build = Callable[[Any], Any]  # from parameters to their optimizer
Update = Callable[..., Any]  # a training step, of a closure


class Contender(NamedTuple):
    name: str
    build: Build
    cycle: int = 30  # steps after which its work repeats itself; 30 covers Lookahead's 5 and 6
    settled: int = 0  # steps until then, at first


def of(path: str, **options: Any) -> Build:
    """The optimizer of a class path, imported only when it is built."""

    def build(params: Any) -> Any:
        module, _, name = path.rpartition(".")
        return getattr(import_module(module), name)(params, **options)

    return build


fused_adam = partial(torch.optim.Adam, fused=True)


def around_adam(path: str) -> Build:
    """A wrapper of the peers' kind around torch's fused Adam."""
    return lambda params: of(path)(fused_adam(params))


def heavyball(name: str, **options: Any) -> Build:
    """An optimizer of heavyball, compiled without its search for the fastest kernel.

    By default that search takes several minutes on a CPU, and finds PyTorch's own.
    """

    def build(params: Any) -> Any:
        utils: Any = import_module("heavyball.utils")
        utils.compile_mode = "default"
        return of(f"heavyball.{name}", **options)(params)

    return build


# One line an optimizer, with its own defaults.
STEP = (
    Contender(FUSED, fused_adam),
    Contender("torch Adam, plain", of("torch.optim.Adam", foreach=False)),
    Contender("torch RAdam", of("torch.optim.RAdam")),
    Contender("Yogi", of(OURS + "Yogi")),
    Contender("Yogi, compiled", of(OURS + "Yogi", compile=True)),
    Contender("pytorch_optimizer Yogi", of("pytorch_optimizer.Yogi")),
    Contender("torch_optimizer Yogi", of("torch_optimizer.Yogi")),
    Contender("Ranger", of(OURS + "Ranger")),
    Contender("Ranger, compiled", of(OURS + "Ranger", compile=True)),
    Contender("pytorch_optimizer Ranger", of("pytorch_optimizer.Ranger")),
    Contender("torch_optimizer Ranger", of("torch_optimizer.Ranger")),
    Contender("Lookahead, fused Adam", of(OURS + "Lookahead", base=fused_adam)),
    Contender(
        "pytorch_optimizer Lookahead, fused Adam", around_adam("pytorch_optimizer.Lookahead")
    ),
    Contender("timm Lookahead, fused Adam", around_adam("timm.optim.Lookahead")),
    Contender("schedulefree AdamW", of("schedulefree.AdamWScheduleFree")),
    Contender("heavyball AdamW", heavyball("AdamW")),
)
# ScalableShampoo's roots are due every 1000 steps: its figure is without them. SOAP's bases are due
# every 2.
HEAVY = (
    Contender(FUSED, fused_adam),
    Contender("Shampoo", of(OURS + "Shampoo"), 20, 320),
    Contender("pytorch_optimizer Shampoo", of("pytorch_optimizer.Shampoo"), 2),
    Contender("pytorch_optimizer ScalableShampoo", of("pytorch_optimizer.ScalableShampoo")),
    Contender("heavyball SOAP", heavyball("SOAP"), 20),
)

# Alike: blocks of 256, statistics at every step, roots (SOAP: bases) every 20.
SHAMPOO = (
    Contender(SGD, of("torch.optim.SGD", lr=0.1, momentum=0.9)),
    Contender("Shampoo", of(OURS + "Shampoo"), 20, 320),
    Contender(
        "Shampoo, alike",
        of(OURS + "Shampoo", block_size=256, statistics_every=1, root_every=20),
        20,
        320,
    ),
    Contender(
        "pytorch_optimizer ScalableShampoo, alike",
        of(
            "pytorch_optimizer.ScalableShampoo",
            block_size=256,
            statistics_compute_steps=1,
            preconditioning_compute_steps=20,
            start_preconditioning_step=1,
        ),
        20,
    ),
    Contender(
        "heavyball SOAP, alike",
        heavyball("SOAP", precondition_frequency=20, max_precond_dim=256, split=True),
        20,
    ),
)

# The figures to reach: at most so many times another's time in the same table.
GOALS = (
    ("Yogi", 3, FUSED),
    ("Yogi, compiled", 1.15, FUSED),
    ("Yogi, compiled", 1 / 4, "pytorch_optimizer Yogi"),
    ("Ranger", 3, FUSED),
    ("Ranger, compiled", 1.15, FUSED),
    ("Ranger, compiled", 1 / 4, "pytorch_optimizer Ranger"),
    ("Lookahead, fused Adam", 1.2, FUSED),
    ("Shampoo, alike", 1 / 2, "pytorch_optimizer ScalableShampoo, alike"),
    ("Shampoo, alike", 1 / 2, "heavyball SOAP, alike"),
    ("Shampoo, training", 1.08, f"{SGD}, training"),
    ("KFAC, averaged", 1.15, SGD),
    ("SVRG", 2.1, SGD),
)
FIRST = ("Yogi", "Yogi, compiled", "Ranger", "Ranger, compiled")
LEAN = (*FIRST, "Lookahead, fused Adam")  # at most 5 % of the parameters beyond the state

# The amortized defaults, and what makes them do all work at every step.
DIGITS: Mapping[str, Mapping[str, int]] = {
    "Shampoo": {"statistics_every": 1, "root_every": 1},
    "KFAC": {"factor_every": 1, "inverse_every": 1},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="all, unless given")
    parser.add_argument("--repeats", type=int, default=7, help="alternating repeats (7)")
    parser.add_argument("--batch", type=int, default=128, help="images a training step (128)")
    parser.add_argument("--seeds", type=int, default=5, help="of the digits, at least 2 (5)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="(all cores)")
    parser.add_argument("--env", type=Path, default=default_environment(), help="of the peers")
    parser.add_argument("--kfac-pytorch", default=KFAC_PYTORCH, help="where pip finds it")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}: there are {', '.join(PARTS)}")
    enter_environment(options.env.resolve(), [*PEERS, options.kfac_pytorch])
    torch.set_num_threads(options.threads)
    print(versions(), f"{options.threads} threads", sep=", ")
    for part in options.parts or PARTS:
        try:
            PARTS[part](options)
        except KeyboardInterrupt:
            say(f"{part}: interrupted")


# The environment of the peers


def default_environment() -> Path:
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return caches / "lightning_opt" / "benchmarks" / f"{python}-torch{torch.__version__}"


def enter_environment(folder: Path, peers: Sequence[str]) -> None:
    """Go on in the environment that has the peers, made if there is none yet."""
    if Path(sys.prefix).resolve() == folder:
        return
    python = folder / "bin" / "python"
    if not python.exists():
        say(f"Making {folder} ...")
        venv.create(folder, with_pip=True)
    # Its own packages come first, then this environment's: torch is not installed a second time.
    shared = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    own = sysconfig.get_path("purelib", "venv", {"base": str(folder)})
    lines = [f"import site; site.addsitedir({path!r})\n" for path in shared]
    Path(own, "shared.pth").write_text("".join(lines))
    install(python, peers, folder / "tried.txt")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler looks for a GPU, aloud
    os.execv(python, [str(python), *sys.argv])


def install(python: Path, peers: Sequence[str], record: Path) -> None:
    """Install each peer unless an earlier run has tried; one that fails is left out."""
    tried = record.read_text().splitlines() if record.exists() else []
    constraint = record.with_name("constraint.txt")
    constraint.write_text(f"torch=={torch.__version__.partition('+')[0]}\n")
    for peer in peers:
        if peer not in tried:
            say(f"Installing {peer} ...")
            pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            if subprocess.call([*pip, "--constraint", str(constraint), peer]):
                say(f"{peer} is not installable here: its rows will say so.")
            tried.append(peer)
    record.write_text("\n".join(tried))


def versions() -> str:
    names = ("torch", *PEERS, "kfac_pytorch")
    found = {dist.name: dist.version for dist in metadata.distributions()}
    return ", ".join(
        [f"Python {sys.version.split()[0]}", *(f"{n} {found.get(n, 'missing')}" for n in names)]
    )


# Measuring


class Results:
    """Seconds by name, one a repeat, and why those without any failed."""

    def __init__(self, measures: Mapping[str, Callable[[], float]], repeats: int) -> None:
        """Take every measure once to warm up, then every one once a repeat."""
        self.seconds: dict[str, list[float]] = {name: [] for name in measures}
        self.failed: dict[str, str] = {}
        try:
            for repeat in range(repeats + 1):
                for name, measure in measures.items():
                    if name not in self.failed:
                        say(f"{f'{repeat}/{repeats}' if repeat else 'warming up'}: {name}")
                        self._take(name, measure, keep=repeat > 0)
        except KeyboardInterrupt:
            say("interrupted: this is what there is")

    def _take(self, name: str, measure: Callable[[], float], *, keep: bool) -> None:
        try:
            seconds = measure()
        except Exception as error:  # a peer may fail in any way
            self.failed[name] = reason(error)
        else:
            self.seconds[name] += [seconds] if keep else []

    def combine(self, name: str, others: Iterable[str], function: Callable[..., float]) -> None:
        """Add what is computed, repeat by repeat, from other measures."""
        others = list(others)
        rows = zip(*(self.seconds[other] for other in others), strict=False)
        self.seconds[name] = [function(*row) for row in rows]
        for other in set(others) & set(self.failed):
            self.failed[name] = self.failed[other]

    def ratio(self, name: str, other: str) -> float:
        pairs = zip(self.seconds[name], self.seconds[other], strict=False)
        return median([mine / theirs for mine, theirs in pairs] or [float("nan")])

    def show(self, title: str, names: Iterable[str], reference: str) -> None:
        header = ["", "ms", f"× {reference}", "to reach", "reached"]
        print_table(title, header, (self._row(name, reference) for name in names))

    def _row(self, name: str, reference: str) -> list[str]:
        if name in self.failed or not self.seconds[name]:
            return [name, f"none: {self.failed.get(name, 'interrupted')}", "", "", ""]
        goals = [(bound, o) for n, bound, o in GOALS if n == name and self.seconds.get(o)]
        ratios = [self.ratio(name, other) for _, other in goals]
        return [
            name,
            f"{1000 * median(self.seconds[name]):.4g}",
            f"{self.ratio(name, reference):.3g}",
            "; ".join(f"≤ {bound:.3g} × {other}" for bound, other in goals),
            "; ".join(
                f"{yes(ratio <= bound)}, {ratio:.3g}"
                for ratio, (bound, _) in zip(ratios, goals, strict=True)
            ),
        ]


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def allocations(**phases: Callable[[], object]) -> dict[str, tuple[int, int]]:
    """Bytes of tensors that each phase leaves, and the most that it holds, beyond those before it.

    PyTorch's profiler records every allocation of a tensor: those inside of a kernel, which a
    dispatch mode does not see, those of compiled code, and none of the caches that the memory of a
    process includes. It misses the release of what is older than itself, so all phases run in one.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        for name, phase in phases.items():
            with record_function(name):
                phase()
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(path := f"{folder}/trace.json")
        events = json.loads(Path(path).read_bytes())["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    found = {}
    for name in phases:
        event = next(e for e in events if e["name"] == name)
        start, end = event["ts"], event["ts"] + event["dur"]
        held = list(itertools.accumulate((b for t, b in changes if start <= t <= end), initial=0))
        found[name] = held[-1], max(held)
    return found


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


# What is measured


def resnet18() -> nn.Module:
    module: nn.Module = import_module("lightning_opt.models").ResNet18(num_classes=100)
    return module


def vgg11() -> nn.Module:
    module: nn.Module = import_module("torchvision.models").vgg11(num_classes=100)
    return module


@cache
def gradients() -> list[list[Tensor]]:
    """Four sets of gradients, of a usual size."""
    shapes = [theta.shape for theta in resnet18().parameters()]
    return [[1e-3 * torch.randn(shape) for shape in shapes] for _ in range(4)]


class Steps:
    """One optimizer's steps on a network of its own, with gradients already there."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self._gradients = itertools.cycle(gradients())
        self._taken = 0

    @cached_property
    def params(self) -> list[nn.Parameter]:
        """Parameters, whose gradients lie where backward has put them."""
        torch.manual_seed(0)
        model = resnet18()
        cross_entropy(model(torch.randn(16, 3, 32, 32)), torch.randint(100, (16,))).backward()  # type: ignore[no-untyped-call]
        return list(model.parameters())

    @cached_property
    def optimizer(self) -> Any:
        optimizer = self.contender.build(self.params)
        getattr(optimizer, "train", lambda: None)()  # Schedule-Free insists
        return optimizer

    def fill(self) -> None:
        """Give the parameters fresh gradients; some peers change or drop those they had."""
        for theta, g in zip(self.params, next(self._gradients), strict=True):
            theta.grad = g.clone() if theta.grad is None else theta.grad.copy_(g)

    def step(self) -> float:
        self.fill()
        self._taken += 1
        return timed(self.optimizer.step)

    def __call__(self) -> float:
        """Mean seconds of a step over one cycle."""
        while self._taken < self.contender.settled:
            self.step()
        seconds = mean(self.step() for _ in range(self.contender.cycle))
        self.fill()
        return seconds


def named(name: str) -> Contender:
    return next(contender for contender in STEP if contender.name == name)


def step_seconds(name: str, threads: int) -> float:
    """Mean seconds of a step, after one cycle of them."""
    torch.set_num_threads(threads)
    steps = Steps(named(name))
    steps()
    return steps()


def alone(contenders: Iterable[Contender], threads: int) -> dict[str, Callable[[], float]]:
    """Measures of a step, each in a process of its own.

    Where the parameters, gradients and state of a process happen to lie in memory makes torch's
    fused Adam and other single passes 1.5 times as fast in one process as in another, throughout.
    """
    return {c.name: partial(in_new_process, step_seconds, c.name, threads) for c in contenders}


def first_seconds(name: str, threads: int) -> float:
    """Seconds that a process' first 12 steps, or two periods of Lookahead, take beyond 12 later."""
    torch.set_num_threads(threads)
    steps = Steps(named(name))
    steps.fill()
    first = timed(lambda: steps.optimizer) + sum(steps.step() for _ in range(12))
    return first - 12 * median(steps.step() for _ in range(12))


class Training:
    """Training steps on one batch of random images.

    Args:
        make: makes the model.
        attach: from this object to its update, a function of a closure, made before the first step.
        batch: number of images.
    """

    def __init__(
        self, make: Callable[[], nn.Module], attach: Callable[[Any], Update], batch: int
    ) -> None:
        torch.manual_seed(0)
        self.model = make()
        self.attach = attach
        self.images = torch.randn(batch, 3, 32, 32)
        self.labels = torch.randint(100, (batch,))

    @cached_property
    def update(self) -> Update:
        return self.attach(self)

    def closure(self, size: int | None = None) -> Tensor:
        """The loss, and its gradients; of the first ``size`` images only, if given."""
        self.model.zero_grad()
        loss = cross_entropy(self.model(self.images[:size]), self.labels[:size])
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    def __call__(self, size: int | None = None) -> float:
        """Seconds of a step."""
        return timed(partial(self.update, partial(self.closure, size)))


class Amortized(Training):
    """Training steps of ResNet18 whose cost depends on what is due; ``number`` is the first's."""

    KINDS = ("plain", "factors", "inverses")

    def __init__(self, attach: Callable[[Any], Update], batch: int, number: int) -> None:
        super().__init__(resnet18, attach, batch)
        self.number = number

    def kind(self) -> str:
        if self.number % INVERSE_EVERY == 0:
            return "inverses"
        return "factors" if self.number % FACTOR_EVERY == 0 else "plain"

    def __call__(self, size: int | None = None) -> float:
        seconds = super().__call__(size)
        self.number += 1
        return seconds

    def next(self, kind: str) -> float:
        """Seconds of the next step of this kind, reached by steps on four images."""
        while self.kind() != kind:
            self(4)
        return self()

    @staticmethod
    def average(plain: float, factors: float, inverses: float) -> float:
        """Of a cycle; where inverses are due, so are factors."""
        with_factors = INVERSE_EVERY // FACTOR_EVERY - 1
        plains = INVERSE_EVERY - 1 - with_factors
        return (inverses + with_factors * factors + plains * plain) / INVERSE_EVERY


def sgd(training: Training) -> Update:
    return torch.optim.SGD(training.model.parameters(), lr=0.01).step


def our_svrg(training: Training) -> Update:
    build = of(OURS + "SVRG", lr=0.01, model=training.model)
    optimizer = build(training.model.parameters())
    optimizer.snapshot([training.closure])
    return optimizer.step  # type: ignore[no-any-return]


def our_kfac(training: Training) -> Update:
    intervals = {"factor_every": FACTOR_EVERY, "inverse_every": INVERSE_EVERY}
    build = of(OURS + "KFAC", model=training.model, **intervals)
    optimizer = build(training.model.parameters())
    training.closure(4)
    optimizer.step()
    for state in optimizer.state.values():
        if "step" in state:
            state["step"].fill_(SETTLED)
    return optimizer.step  # type: ignore[no-any-return]


def kfac_pytorch(training: Training) -> Update:
    preconditioner = import_module("kfac.preconditioner").KFACPreconditioner(
        training.model, factor_update_steps=FACTOR_EVERY, inv_update_steps=INVERSE_EVERY
    )
    step = sgd(training)

    def update(closure: Callable[[], Tensor]) -> None:
        closure()
        preconditioner.step()
        step()

    return update


def two_steps(make: Callable[[], nn.Module], attach: Callable[[Any], Update], batch: int) -> None:
    training = Training(make, attach, batch)
    for _ in range(2):
        training()


def resident_peak(threads: int, *arguments: Any) -> int:
    """Peak memory of this process after two training steps, in bytes (Linux only)."""
    torch.set_num_threads(threads)
    two_steps(*arguments)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def digits_losses(name: str, options: Mapping[str, int], seed: int) -> dict[str, float]:
    """Training losses of a run of ten epochs on the digits."""
    torch.manual_seed(seed)
    data = import_module("lightning_opt.datamodules").Digits()
    data.setup("fit")
    loader = data.train_dataloader()
    model: nn.Module = import_module("lightning_opt.models").ShallowCNN()
    extra = {"model": model} if name == "KFAC" else {}
    optimizer = of(OURS + name, **extra, **options)(model.parameters())
    steps, found = [], {}
    for epoch in range(10):
        loader.sampler.sampler.epoch = epoch
        for images, labels in loader:
            model.zero_grad()
            loss = cross_entropy(model(images), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            steps.append(loss.item())
        if epoch in (0, 2, 9):
            images, labels = loader.dataset.tensors
            with torch.no_grad():
                found[f"epoch {epoch + 1}"] = cross_entropy(model(images), labels).item()
    return {**found, "mean of all steps": mean(steps)}


# The parts


def step(options: argparse.Namespace) -> None:
    results = Results(alone(STEP, options.threads), options.repeats)
    results.show("A step alone, gradients there", results.seconds, FUSED)
    header = ["", "without a cache", "in the process after it"]
    rows = (first_row(name, options.threads) for name in FIRST if name not in results.failed)
    print_table("The first 12 steps of a process, beyond 12 later ones", header, rows)
    results = Results({c.name: Steps(c) for c in HEAVY}, options.repeats)
    results.show("A step alone, of methods that precondition", results.seconds, FUSED)


def first_row(name: str, threads: int) -> list[str]:
    say(f"first steps: {name}")
    with tempfile.TemporaryDirectory() as folder:
        with patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=folder):
            both = [in_new_process(first_seconds, name, threads) for _ in range(2)]
    return [name, *(f"{seconds:.1f} s" for seconds in both)]


def memory(options: argparse.Namespace) -> None:
    header = ["bytes, of the parameters'", "state", "a step beyond it", "to reach", "reached"]
    print_table("Memory of a step", header, (memory_row(c) for c in (*STEP, *HEAVY[1:])))


def memory_row(contender: Contender) -> list[str]:
    say(f"memory: {contender.name}")
    steps = Steps(contender)
    try:
        found = allocations(network=steps.fill, state=steps, step=steps)
    except Exception as error:  # a peer may fail in any way
        return [contender.name, f"none: {reason(error)}", "", "", ""]
    percent = 100 / sum(p.nbytes for p in steps.params)
    state, extra = percent * found["state"][0], percent * found["step"][1]
    goal = ["≤ 5 %", yes(extra <= 5)] if contender.name in LEAN else ["", ""]
    return [contender.name, f"{state:.1f} %", f"{extra:.2f} %", *goal]


def shampoo(options: argparse.Namespace) -> None:
    training = Training(resnet18, sgd, options.batch)
    measures: dict[str, Callable[[], float]] = {GRADIENT: partial(timed, training.closure)}
    measures |= {c.name: Steps(c) for c in SHAMPOO}
    results = Results(measures, options.repeats)
    results.show("Shampoo's step alone", [c.name for c in SHAMPOO], SGD)
    trained = {f"{c.name}, training": (GRADIENT, c.name) for c in SHAMPOO}
    for name, parts in trained.items():
        results.combine(name, parts, lambda gradient, step: gradient + step)
    title = f"A training step with Shampoo, batch {options.batch}: {GRADIENT}, then the step"
    results.show(title, trained, f"{SGD}, training")


def kfac(options: argparse.Namespace) -> None:
    measures: dict[str, Callable[[], float]] = {SGD: Training(resnet18, sgd, options.batch)}
    averages = {}
    for name, attach, number in (
        ("KFAC", our_kfac, SETTLED + 1),
        ("kfac-pytorch", kfac_pytorch, 0),
    ):
        training = Amortized(attach, options.batch, number)
        kinds = {f"{name}, {kind}": partial(training.next, kind) for kind in Amortized.KINDS}
        averages[f"{name}, averaged"] = tuple(kinds)
        measures |= kinds
    results = Results(measures, options.repeats)
    for name, parts in averages.items():
        results.combine(name, parts, Amortized.average)
    title = (
        f"A training step with KFAC, batch {options.batch}, "
        f"factors every {FACTOR_EVERY}, inverses every {INVERSE_EVERY}"
    )
    results.show(title, results.seconds, SGD)


def svrg(options: argparse.Namespace) -> None:
    attach = {SGD: sgd, "SVRG": our_svrg}
    trainings = {name: Training(resnet18, a, options.batch) for name, a in attach.items()}
    results = Results(trainings, options.repeats)
    title = f"A training step with SVRG, batch {options.batch}, the snapshot apart"
    results.show(title, attach, SGD)
    header = ["", "parameters", "SGD: tensors", "process", "SVRG: tensors", "process", "more"]
    title = f"Memory at the peak of training, batch {options.batch}, the snapshot included"
    rows = (svrg_memory(make, options) for make in (resnet18, vgg11) if not results.failed)
    print_table(title, [*header, "to reach", "reached"], rows)


def svrg_memory(make: Callable[[], nn.Module], options: argparse.Namespace) -> list[str]:
    size = sum(p.nbytes for p in make().parameters())
    peaks = []
    for attach in (sgd, our_svrg):
        say(f"memory: {make.__name__}, {attach.__name__}")
        peaks += [allocations(run=partial(two_steps, make, attach, options.batch))["run"][1]]
        peaks += [in_new_process(resident_peak, options.threads, make, attach, options.batch)]
    more = (peaks[2] - peaks[0]) / size
    # Two copies of the parameters, and a gradient; the rest is a batch of buffers.
    goal = ["tensors ≤ 3.05 × the parameters", yes(more <= 3.05)]
    sizes = [f"{number / 1e9:.2f} GB" for number in (size, *peaks)]
    return [make.__name__, *sizes, f"{more:.2f}", *goal]


def digits(options: argparse.Namespace) -> None:
    header = ["training loss", "default", "all work at every step", "difference"]
    title = (
        f"Digits, 17 steps an epoch, means over {options.seeds} seeds (± standard error of pairs)"
    )
    rows = (row for name in DIGITS for row in digits_rows(name, options.seeds))
    print_table(title, [*header, "to reach", "reached"], rows)


def digits_rows(name: str, seeds: int) -> Iterator[list[str]]:
    say(f"digits: {name}")
    try:
        default = [digits_losses(name, {}, seed) for seed in range(seeds)]
        full = [digits_losses(name, DIGITS[name], seed) for seed in range(seeds)]
    except Exception as error:  # as everywhere: what fails leaves a row that says so
        yield [name, f"none: {reason(error)}", "", "", "", ""]
        return
    for when in full[0]:
        ours, theirs = [run[when] for run in default], [run[when] for run in full]
        unit = mean(theirs) / 100
        more = (mean(ours) - mean(theirs)) / unit
        spread = stdev(a - b for a, b in zip(ours, theirs, strict=True)) / seeds**0.5 / unit
        losses = [f"{mean(ours):.4g}", f"{mean(theirs):.4g}", f"{more:+.2f} ± {spread:.2f} %"]
        noise = ", within the noise" if abs(more - 2) < 2 * spread else ""
        yield [f"{name}, {when}", *losses, "≤ +2 %", yes(more <= 2) + noise]


PARTS: Mapping[str, Callable[[argparse.Namespace], None]] = {
    "step": step,
    "memory": memory,
    "shampoo": shampoo,
    "kfac": kfac,
    "svrg": svrg,
    "digits": digits,
}


# Words


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def yes(reached: bool) -> str:
    return "yes" if reached else "no"


def reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table, each row as soon as it is there."""
    print(f"\n{title}\n")
    for line in itertools.chain([header, ["---"] * len(header)], rows):
        print(f"| {' | '.join(line)} |", flush=True)


if __name__ == "__main__":
    main()
