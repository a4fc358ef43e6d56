"""The page as a whole: complete, self-contained, honest about what is missing, repeatable."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lightning_opt.errors import UsageError
from lightning_opt.report import write_report
from lightning_opt.report.drawings import loss_curve
from lightning_opt.report.records import read_study
from lightning_opt.report.statistics import results


class Page(HTMLParser):
    """A page's elements: tag and attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        self.text += "" if tag in ("strong", "code") else " "  # cells are apart, words are not

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def page(reported_study: Path) -> Page:
    return Page((reported_study / "report.html").read_text(encoding="utf-8"))


def words(page: Page) -> str:
    return " ".join(page.text.split())


def test_the_page_loads_nothing_from_anywhere(page: Page):
    for tag, attributes in page.elements:
        assert tag not in ("script", "iframe", "object", "embed")
        for name in ("src", "srcset", "href", "data", "poster"):
            address = attributes.get(name)
            assert address is None or address.startswith(("data:", "#")), (tag, address)


def test_its_styles_load_nothing_either(reported_study: Path):
    style = (reported_study / "report.html").read_text().split("</style>")[0]
    assert "url(" not in style and "@import" not in style


def test_every_figure_is_embedded_and_described(page: Page, reported_study: Path):
    images = page.all("img")
    assert len(images) == 2 + 3  # sensitivity, training loss, a panel for each optimizer
    for image in images:
        assert (image["src"] or "").startswith(("data:image/svg+xml", "data:image/png"))
        assert len(image["alt"] or "") > 60
    assert "adam: best 97.00 % at 0.01" in (images[0]["alt"] or "")


def test_links_lead_to_sections(page: Page):
    ids = {attributes.get("id") for _, attributes in page.elements}
    assert {link["href"] for link in page.all("a")} <= {f"#{name}" for name in ids if name}


def test_tables_have_captions_and_scopes(page: Page):
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(cell.get("scope") in ("col", "row") for cell in page.all("th"))


def test_it_says_what_was_compared_and_what_came_of_it(page: Page):
    text = words(page)
    assert "27 runs planned: 21 finished, 4 diverged, 1 failed, 1 missing." in text
    assert "best mean test accuracy is that of adam: 96.00 ± 0.99 % at learning rate 0.01" in text
    assert "interval of lookahead overlaps that of adam" in text
    assert "base.lr: 0.001, 0.01, 0.1" in text
    assert "ValueError: <b>broken</b>" in text  # escaped, or it would not be text
    assert "lightning-opt fit --config cells/digits-adam-lr=0.01-seed=0/config.yaml" in text


def test_every_figure_and_table_is_also_a_file(reported_study: Path):
    figures = {path.name for path in (reported_study / "figures").iterdir()}
    stems = ["sensitivity", "training-loss", "sgd", "adam", "lookahead"]
    assert figures == {f"digits-{stem}{suffix}" for stem in stems for suffix in (".png", ".svg")}
    tables = {path.stem for path in (reported_study / "tables").iterdir()}
    assert tables == {
        "digits-summary",
        "digits-sensitivity",
        "grids",
        "incomplete",
        "machines",
        "runs",
    }


def test_the_summary_table_holds_the_numbers(reported_study: Path):
    table = pd.read_csv(reported_study / "tables/digits-summary.csv", keep_default_na=False)
    assert table["optimizer"].tolist() == ["adam", "lookahead", "sgd"]
    row = table.iloc[0]
    assert (row["learning_rate"], row["edge"], row["seeds"]) == (0.01, "", 3)
    assert row["test_accuracy_mean"] == pytest.approx(0.96)
    assert row["train_seconds"] == pytest.approx(4.0)
    assert row["top_eigenvalue"] == pytest.approx(10.0)  # 4 · 2.5, the fixture's sharpest
    assert len(pd.read_csv(reported_study / "tables/runs.csv")) == 27


def test_a_choice_at_an_edge_is_flagged_on_the_page(make_study):
    directory = make_study(rates={"adam": [0.01, 0.1]}, seeds=(0,))
    text = words(Page(write_report(directory).read_text()))
    assert "0.01 (lowest tried)" in text
    assert "With a single seed there is no interval" in text


def test_equal_directories_give_equal_reports(make_study, tmp_path: Path):
    directory = make_study(rates={"adam": [0.01, 0.1]}, seeds=(0,))
    copy = tmp_path / "elsewhere"
    shutil.copytree(directory, copy)
    write_report(directory)
    write_report(copy)
    for path in [copy / "report.html", *(copy / "figures").iterdir(), *(copy / "tables").iterdir()]:
        assert path.read_bytes() == (directory / path.relative_to(copy)).read_bytes(), path


def test_unreadable_files_are_named_and_the_rest_is_reported(make_study):
    directory = make_study(rates={"adam": [0.01], "sgd": [0.1]})
    broken = "cells/digits-adam-lr=0.01-seed=1"
    (directory / broken / "record.json").write_text("{")
    other = "cells/digits-sgd-lr=0.1-seed=0"
    (directory / other / "spectrum.npz").write_bytes(b"PK")
    text = words(Page(write_report(directory).read_text()))
    assert "6 runs planned: 5 finished, 1 unreadable." in text
    assert f"{broken} unreadable record.json: it is not whole" in text
    assert f"{other} unreadable spectrum.npz:" in text
    assert "2 of 3" in text  # adam's seeds


@pytest.mark.parametrize("status", ["missing", "failed", "diverged"])
def test_a_study_without_a_finished_run_has_a_page_that_says_so(make_study, status: str):
    rates = {"adam": [0.01, 0.1]}
    every = {("adam", lr, seed): status for lr in rates["adam"] for seed in range(3)}
    text = words(Page(write_report(make_study(rates=rates, status=every)).read_text()))
    assert f"6 runs planned: 0 finished, 6 {status}." in text
    assert "nothing to compare" in text


def test_two_tasks_have_a_section_each(make_study):
    directory = make_study(tasks=("digits", "a <task>"), rates={"adam": [0.01, 0.1]}, seeds=(0,))
    page = Page(write_report(directory).read_text())
    assert "Results on digits" in page.text and "Results on a <task>" in page.text
    assert (directory / "figures/a_task_-adam.png").is_file()


def test_grids_with_other_options_and_without_a_learning_rate(make_study):
    """Such points have no place on the learning-rate axis, but a panel and a row in the table."""
    directory = make_study(rates={"adam": [0.01, 0.1]}, seeds=(0, 1))
    study = json.loads((directory / "study.json").read_text())
    for cell in study["cells"]:
        cell["point"] = {"betas": [0.9, 0.99]} if cell["point"]["lr"] == 0.1 else {}
    (directory / "study.json").write_text(json.dumps(study))
    page = Page(write_report(directory).read_text())
    assert "defaults" in page.text and "betas=[0.9, 0.99]" in page.text
    assert len(page.all("img")) == 2  # training loss and panel: no sensitivity


def test_nothing_already_there_is_lost(make_study, tmp_path: Path):
    directory = make_study(rates={"adam": [0.01]}, seeds=(0,))
    write_report(directory)
    mine = directory / "figures/mine.png"
    mine.write_text("mine")
    before = {
        path: path.read_bytes() for path in (directory / "cells").rglob("*.*") if path.is_file()
    }
    page = (directory / "report.html").read_text()
    write_report(directory)
    assert mine.read_text() == "mine"
    assert {path: path.read_bytes() for path in before} == before
    (directory / "study.json").write_text("{")
    with pytest.raises(UsageError):
        write_report(directory)
    assert (directory / "report.html").read_text() == page
    assert not list(directory.rglob("*.tmp*"))


def test_the_old_page_stays_until_the_new_one_is_whole(make_study, monkeypatch: pytest.MonkeyPatch):
    directory = make_study(rates={"adam": [0.01]}, seeds=(0,))
    (directory / "report.html").write_text("the old page")

    def fail(*_: object) -> str:
        raise MemoryError

    monkeypatch.setattr("lightning_opt.report.write.render", fail)
    with pytest.raises(MemoryError):
        write_report(directory)
    assert (directory / "report.html").read_text() == "the old page"


def test_a_directory_that_is_no_study_is_refused_and_left_alone(tmp_path: Path):
    with pytest.raises(UsageError, match="lightning-opt study"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_torch_is_never_imported(make_study):
    directory = make_study(rates={"adam": [0.01]}, seeds=(0,))
    code = (
        "import sys; from lightning_opt.report import write_report; "
        "assert not {'pandas', 'matplotlib'} & set(sys.modules), 'importing must be cheap'; "
        f"write_report({str(directory)!r}); "
        "assert not {'torch', 'pytorch_lightning', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_loss_curve_is_the_median_over_seeds_of_the_mean_in_a_bin(make_study):
    study = read_study(make_study(rates={"adam": [0.01]}))
    (result,) = results(study, "digits")
    curve = loss_curve(result.runs)
    losses = np.stack([run.history.losses for run in result.runs]).reshape(3, 150, 2).mean(axis=2)
    np.testing.assert_allclose(curve.middle, np.median(losses, axis=0))
    np.testing.assert_allclose(curve.low, losses.min(axis=0))
    np.testing.assert_allclose(curve.high, losses.max(axis=0))
    np.testing.assert_allclose(curve.steps, np.arange(150) * 2 + 0.5)
    assert not curve.diverged


def test_a_diverged_seed_does_not_widen_the_band_of_those_that_finished(make_study):
    study = read_study(make_study(rates={"adam": [0.01]}, status={("adam", 0.01, 0): "diverged"}))
    (result,) = results(study, "digits")
    curve = loss_curve(result.runs)
    assert curve.high.max() < 5 and not curve.diverged
    only = [run for run in result.runs if run.status == "diverged"]
    assert loss_curve(only).diverged and loss_curve([]) is None


def test_a_study_that_looked_at_no_minimum_has_no_chapter_about_them(make_study):
    """Grey boxes for every run would be no news; how to have them looked at is."""
    directory = make_study()
    for path in directory.glob("cells/*/s*.npz"):
        path.unlink()
    text = words(Page(write_report(directory).read_text(encoding="utf-8")))
    assert "Minima on" not in text
    assert "No run looked at its minimum" in text and "HessianSpectrum" in text
