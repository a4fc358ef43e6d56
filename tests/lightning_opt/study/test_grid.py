"""From study file to cells: what a grid expands to, what a hash depends on, what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lightning_opt.configs import shipped
from lightning_opt.errors import UsageError
from lightning_opt.study import load_study


def study(**changes):
    content = {
        "name": "small",
        "tasks": ["digits"],
        "optimizers": {"adam": {"space": {"lr": [0.001, 0.01]}}},
        "seeds": [0, 1],
        "select": {"metric": "val_accuracy", "mode": "max"},
        "test_metric": "test_accuracy",
    }
    content.update(changes)
    return {key: value for key, value in content.items() if value is not ...}


@pytest.fixture
def load(tmp_path: Path):
    def write_and_load(**changes):
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump(study(**changes)))
        return load_study(str(path))

    return write_and_load


def test_cells_are_the_whole_product(load):
    cells = load().cells()
    assert [(cell.point["lr"], cell.seed) for cell in cells] == [
        (0.001, 0),
        (0.01, 0),
        (0.001, 1),
        (0.01, 1),
    ]
    assert len({cell.hash for cell in cells}) == 4
    assert len({cell.directory for cell in cells}) == 4


def test_a_cell_is_a_whole_lightning_cli_configuration(load):
    cell = load(trainer={"max_epochs": 3}).cells()[1]
    assert cell.config["optimizer"]["init_args"]["lr"] == 0.01
    assert cell.config["seed_everything"] == 0
    assert cell.config["trainer"]["max_epochs"] == 3
    assert cell.config["trainer"]["log_every_n_steps"] == 1, "the task's own trainer options stay"
    assert cell.config["data"]["class_path"] == "lightning_opt.datamodules.Digits"


def test_dots_descend_into_a_nested_class(load):
    study = load(optimizers={"lookahead": {"space": {"base.lr": [0.5]}}})
    options = study.cells()[0].config["optimizer"]["init_args"]
    assert options["base"]["init_args"]["lr"] == 0.5
    assert "lr" not in options


def test_log_grid_is_geometric_with_both_ends(load):
    study = load(optimizers={"sgd": {"space": {"lr": {"low": 0.001, "high": 0.1, "points": 5}}}})
    assert study.spaces["sgd"]["lr"] == (0.001, 0.003162, 0.01, 0.03162, 0.1)


def test_exponents_are_numbers_as_in_lightning_cli(tmp_path: Path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(study()).replace("0.001", "1e-3").replace("0.01", "1E+1"))
    assert load_study(str(path)).spaces["adam"]["lr"] == (0.001, 10.0)


def test_adding_a_learning_rate_keeps_the_hashes_of_the_others(load):
    before = {cell.hash for cell in load().cells()}
    after = load(optimizers={"adam": {"space": {"lr": [0.001, 0.01, 0.1]}}}).cells()
    assert before < {cell.hash for cell in after}


def test_ends_of_a_grid_are_as_given(load):
    grid = {"low": 0.00012345, "high": 0.987654, "points": 3}
    values = load(optimizers={"sgd": {"space": {"lr": grid}}}).spaces["sgd"]["lr"]
    assert values == (0.00012345, 0.01104, 0.987654)


@pytest.mark.parametrize("own", ["AdamW", "Adam"])
def test_options_of_the_tasks_own_optimizer_do_not_leak(tmp_path: Path, own: str):
    """They would make every method run with another one's weight decay."""
    (tmp_path / "task.yaml").write_text(
        f"optimizer: {{class_path: torch.optim.{own}, init_args: {{weight_decay: 0.5}}}}\n"
        "model: {class_path: a.Model, init_args: {width: 3}}\n"
    )
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study(tasks=["./task.yaml"])))
    config = load_study(str(path)).cells()[0].config
    assert config["optimizer"]["class_path"] == "torch.optim.Adam"
    assert "weight_decay" not in config["optimizer"]["init_args"]
    assert config["model"]["init_args"] == {"width": 3}


@pytest.mark.parametrize("value", ["null", "a.ckpt"])
def test_a_printed_configuration_is_a_task(tmp_path: Path, value: str):
    """`fit --print_config` adds the arguments of fit, null unless they were given."""
    (tmp_path / "task.yaml").write_text(
        "# pytorch_lightning==2.6.6\nmodel: {class_path: a.Model}\n"
        f"ckpt_path: {value}\nweights_only: null\n"
    )
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study(tasks=["./task.yaml"])))
    if value == "null":
        loaded = load_study(str(path))
        assert "ckpt_path" not in loaded.cells()[0].config
        assert loaded.task_descriptions == {"task": ""}, "a version describes nothing"
    else:
        with pytest.raises(UsageError, match=r"task\.yaml sets ckpt_path"):
            load_study(str(path))


def test_hash_depends_on_what_runs(load):
    hashes = {load(trainer=trainer).cells()[0].hash for trainer in ({}, {"max_epochs": 3})}
    assert len(hashes) == 2


def test_selection_is_no_part_of_the_hash(load):
    changed = load(select={"metric": "val_loss", "mode": "min"}, description="Another line.")
    assert changed.cells()[0].hash == load().cells()[0].hash


def test_paths_are_relative_to_the_study_file(tmp_path: Path):
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "mine.yaml").write_text(shipped("optimizers")["adam"].read_text())
    (folder / "task.yaml").write_text("# A task of mine.\nmodel: {class_path: x.Y}\n")
    path = folder / "study.yaml"
    path.write_text(
        yaml.safe_dump(
            study(
                tasks=["./task.yaml"],
                optimizers={"mine": {"config": "mine.yaml", "space": {"lr": [1.0]}}},
            )
        )
    )
    loaded = load_study(str(path))
    assert loaded.cells()[0].config["model"] == {"class_path": "x.Y"}
    assert loaded.task_descriptions == {"task": "A task of mine."}


SPACE = {"lr": [0.1]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizers": ...}, ["optimizers is missing"]),
        ({"seed": [0]}, ["no option seed", "Did you mean seeds"]),
        ({"tasks": "digits"}, ["tasks is a list", "'digits'"]),
        ({"tasks": []}, ["tasks is empty"]),
        ({"tasks": ["digts"]}, ["task named 'digts'", "Did you mean digits"]),
        ({"tasks": ["digits", "digits"]}, ["'digits' twice"]),
        ({"tasks": ["./nowhere.yaml"]}, ["no file", "nowhere.yaml"]),
        ({"optimizers": {}}, ["optimizers is empty"]),
        ({"optimizers": {"adm": {"space": SPACE}}}, ["optimizer named 'adm'", "adam"]),
        ({"optimizers": {"adam": {}}}, ["optimizers.adam.space", "None"]),
        ({"optimizers": {"adam": {"space": {}}}}, ["optimizers.adam.space is empty"]),
        ({"optimizers": {"adam": {"spce": SPACE}}}, ["optimizers.adam.spce", "space"]),
        ({"optimizers": {"adam": {"space": {"lr": []}}}}, ["space.lr is empty"]),
        ({"optimizers": {"adam": {"space": {"lr": [-0.1]}}}}, ["space.lr", "above 0", "-0.1"]),
        ({"optimizers": {"adam": {"space": {"lr": [0.0]}}}}, ["space.lr", "above 0"]),
        ({"optimizers": {"a b": {"space": SPACE}}}, ["an optimizer's name", "'a b'"]),
        ({"optimizers": {"adam": {"space": {"lr": [10**400]}}}}, ["space.lr", "above 0"]),
        ({"optimizers": {"adam": {"space": {"lr": ["fast"]}}}}, ["space.lr", "'fast'"]),
        ({"optimizers": {"adam": {"space": {"lr": [float("inf")]}}}}, ["plain data"]),
        ({"optimizers": {"adam": {"space": {"lr": [True]}}}}, ["space.lr", "True"]),
        ({"optimizers": {"adam": {"space": {"lr": [0.1, 0.1]}}}}, ["twice"]),
        ({"optimizers": {"adam": {"space": {"lr": 0.1}}}}, ["space.lr is a list", "0.1"]),
        ({"optimizers": {"adam": {"space": {"base.lr": [0.1]}}}}, ["no class at 'base'"]),
        (
            {"optimizers": {"adam": {"space": {"lr": {"low": 1, "high": 0.1, "points": 3}}}}},
            ["0 < low < high", "low=1"],
        ),
        (
            {"optimizers": {"adam": {"space": {"lr": {"low": 0.1, "high": 1, "points": 1}}}}},
            ["points", "at least 2"],
        ),
        (
            {"optimizers": {"adam": {"space": {"lr": {"low": 0.1, "hgh": 1, "points": 3}}}}},
            ["space.lr.hgh", "high"],
        ),
        ({"seeds": []}, ["seeds is empty"]),
        ({"seeds": [0, -1]}, ["seeds", "-1"]),
        ({"seeds": [0.5]}, ["seeds", "0.5"]),
        ({"seeds": [1, 1]}, ["twice"]),
        ({"select": {"metric": "val_loss", "mode": "least"}}, ["max or min", "'least'"]),
        ({"name": "a/b"}, ["name", "'a/b'"]),
        ({"name": 3}, ["name is a text", "3"]),
        ({"trainer": [1]}, ["trainer is a mapping"]),
    ],
)
def test_mistakes_are_named(load, changes, words):
    with pytest.raises(UsageError) as error:
        load(**changes)
    message = str(error.value)
    assert all(word in message for word in [*words, "small.yaml"]), message
    assert len(message.splitlines()) <= 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: [", ["line 1", "not valid YAML"]),
        ("- a\n- b\n", ["mapping"]),
        ("", ["mapping", "None"]),
        ("name: 2026-11-24\n", ["not plain data"]),
        ("name: \x00", ["YAML"]),
        ("name: a\nseeds: [0]\nname: b\n", ["'name' is given twice", "line 3"]),
        ("[" * 3000, ["not plain data"]),
    ],
)
def test_files_that_are_no_study(tmp_path: Path, text: str, words: list[str]):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        load_study(str(path))
    assert all(word in str(error.value) for word in [*words, "broken.yaml"]), error.value


def test_unknown_study_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match=r"no study named 'dmeo'. Did you mean demo\?"):
        load_study("dmeo")


@pytest.mark.parametrize("name", shipped("studies"))
def test_shipped_studies_load(name: str):
    assert load_study(name).cells()


def test_demo_is_the_study_that_the_readme_promises():
    demo = load_study("demo")
    assert list(demo.optimizers) == [
        "sgd",
        "adam",
        "amsgrad",
        "radam",
        "yogi",
        "lookahead",
        "ranger",
    ]
    assert len(demo.seeds) == 3
    assert len(demo.cells()) == 7 * 5 * 3


def test_reading_a_study_imports_no_torch():
    code = (
        "import sys; from lightning_opt.study import load_study, run_study; "
        "load_study('demo').manifest(); "
        "sys.exit('torch' in sys.modules or 'pytorch_lightning' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
