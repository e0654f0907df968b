"""Loading configurations, overrides from the command line, and launch.py's answers to mistakes."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from ml_collections import ConfigDict, config_dict

from common import config as config_lib
from common import workdir as workdir_lib

ROOT = pathlib.Path(__file__).resolve().parents[2]

CONFIG_FILE = '''
from ml_collections import ConfigDict
from common.config import apply_variant

def get_config(variant=""):
    config = ConfigDict(dict(name="toy", experiment="toy_experiment", seed=0, rate=0.5, end="fine"))
    config.optimiser = dict(steps=10, decay=0.1)
    return apply_variant(config, variant, {"smoke": {"optimiser.steps": 2, "rate": 1}})
'''
EXPERIMENT_FILE = '''
from common import loop

def run(config, workdir):
    (workdir / "seen.txt").write_text(f"{config.seed} {config.optimiser.steps} {config.rate}")
    if config.end == "preempted":
        raise loop.Preempted(3, saved=True)
    if config.end == "nan":
        raise loop.NonFiniteLoss(7, float("nan"))
    if config.end == "bug":
        raise KeyError("a bug")
'''


def toy() -> ConfigDict:
    config = ConfigDict(
        {
            "seed": 0,
            "rate": 0.5,
            "flag": False,
            "label": "a",
            "sizes": (64, 96),
            "scales": [0.5, 1],
            "names": ("a", "b"),
            "blocks": ((1, 2), (3,)),
            "empty": (),
            "free": None,
            "optimiser": {"steps": 10, "decay": 0.1, "warm": {"steps": 1}},
        }
    )
    config.limit = config_dict.placeholder(int)
    return config


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("seed", "7", 7),
        ("seed", "-1_000", -1000),
        ("rate", "2", 2.0),
        ("rate", "1e-4", 1e-4),
        ("flag", "true", True),
        ("flag", "0", False),
        ("label", "1", "1"),
        ("label", "", ""),
        ("label", "x=y", "x=y"),
        ("sizes", "1,2,3", (1, 2, 3)),
        ("sizes", "(8,)", (8,)),
        ("sizes", "[8, 9]", (8, 9)),
        ("sizes", "", ()),
        ("scales", "1,2", [1.0, 2.0]),
        ("names", "x,'y'", ("x", "y")),
        ("blocks", "((4,),(5,6))", ((4,), (5, 6))),
        ("empty", "1,a", (1, "a")),
        ("free", "3", 3),
        ("free", "text", "text"),
        ("free", "None", None),
        ("limit", "5", 5),
        ("limit", "None", None),
        ("optimiser.warm.steps", "4", 4),
    ],
)
def test_override_takes_the_type_of_the_default(key, text, expected):
    config = config_lib.apply_overrides(toy(), [(key, text)])
    value = config
    for part in key.split("."):
        value = value[part]
    assert value == expected and type(value) is type(expected)
    if isinstance(expected, tuple | list):
        assert [type(item) for item in value] == [type(item) for item in expected]


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("sed", "1", "unknown key config.sed; did you mean config.seed?"),
        ("optimizer.steps", "1", "did you mean config.optimiser.steps"),
        ("decay", "1", "unknown key config.decay; did you mean config.optimiser.decay?"),
        ("qqqq", "1", "known keys: blocks, empty"),
        ("optimiser", "1", "config.optimiser is a group; set one of its keys: config.optimiser.de"),
        ("seed.x", "1", "config.seed is a value, it has no keys of its own"),
        ("seed", "1.5", "config.seed expects an int, got '1.5'"),
        ("seed", "None", "config.seed expects an int, got 'None'"),
        ("rate", "fast", "config.rate expects a float, got 'fast'"),
        ("flag", "2", "config.flag expects true or false, got '2'"),
        ("sizes", "1,two", "config.sizes[1] expects an int, got 'two'"),
        ("limit", "x", "config.limit expects an int, got 'x'"),
        ("blocks", "1)(", "config.blocks expects a Python literal"),
    ],
)
def test_wrong_override_is_one_clear_line(key, text, message):
    with pytest.raises(config_lib.ConfigError) as caught:
        config_lib.apply_overrides(toy(), [(key, text)])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_variant_sets_dotted_keys_and_refuses_others():
    config = config_lib.apply_variant(toy(), "fast", {"fast": {"optimiser.steps": 1, "rate": 3}})
    assert config.optimiser.steps == 1 and config.rate == 3.0 and type(config.rate) is float
    with pytest.raises(ValueError, match="unknown variant 'fats'; known: fast"):
        config_lib.apply_variant(toy(), "fats", {"fast": {}})
    with pytest.raises(config_lib.ConfigError, match="unknown key config.optimiser.step"):
        config_lib.apply_variant(toy(), "fast", {"fast": {"optimiser.step": 1}})
    with pytest.raises(config_lib.ConfigError, match="config.seed"):
        config_lib.apply_variant(toy(), "fast", {"fast": {"seed": "zero"}})


def test_to_plain_names_what_has_no_json_form():
    with pytest.raises(TypeError, match=r"config\.a\[1\].*object"):
        config_lib.to_plain({"a": [1, object()]}, "config")
    with pytest.raises(ValueError, match=r"config\.a is nan"):
        config_lib.to_plain({"a": float("nan")}, "config")


def test_claim_keeps_other_configurations_out(tmp_path):
    config = ConfigDict({"name": "one", "seed": 0})
    workdir_lib.claim(tmp_path / "run", config)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["values"]["seed"] == 0
    with pytest.raises(config_lib.ConfigError, match="holds a run of 'one', not of 'two'"):
        workdir_lib.claim(tmp_path / "run", ConfigDict({"name": "two"}))
    with pytest.raises(config_lib.ConfigError, match=f"in use by .* .process {os.getpid()}"):
        workdir_lib.claim(tmp_path / "run", config)
    (tmp_path / "file").write_text("")
    with pytest.raises(config_lib.ConfigError, match="cannot be a directory"):
        workdir_lib.claim(tmp_path / "file", config)


# launch.py itself, as a user starts it.


@pytest.fixture
def project(tmp_path):
    (tmp_path / "toy.py").write_text(CONFIG_FILE)
    (tmp_path / "toy_experiment.py").write_text(EXPERIMENT_FILE)
    (tmp_path / "empty.py").write_text("")
    return tmp_path


def launch(project, *arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(project)])}
    command = [sys.executable, str(ROOT / "launch.py"), *arguments]
    return subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, timeout=600
    )


CLUSTER = ["--config=toy.py", "--coordinator=localhost:1", "--num_processes=2", "--process_id=2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config=FILE[:variant] is missing"),
        (["--config=tou.py"], "no configuration file tou.py; did you mean toy.py?"),
        (["--config=empty.py"], "empty.py does not define get_config"),
        (["--config=toy.py:smok"], "toy.py:smok: unknown variant 'smok'; known: smoke"),
        (["--config=toy.py", "--config.optimiser.step=3"], "did you mean config.optimiser.steps"),
        (["--config=toy.py", "--config.seed=x"], "config.seed expects an int, got 'x'"),
        (["--config=toy.py", "--config.seed", "3"], "--config.seed has no value"),
        (["--config=toy.py", "seed=3"], "stray argument 'seed=3'"),
        (["--config=toy.py", "--wokdir=x"], "Unknown command line flag 'wokdir'. Did you mean"),
        (["--config=toy.py", "--num_processes=2"], "--process_id go together"),
        (CLUSTER, "process_id=2 is not in 0..1"),
        (["--config=toy.py", "--config.experiment=toy_experimnt"], "no module 'toy_experimnt'"),
    ],
)
def test_command_line_mistake_is_one_line_and_exit_code_2(project, arguments, message):
    result = launch(project, *arguments)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1 and result.stdout == ""
    assert not (project / "runs").exists()


def test_launch_runs_the_experiment_and_guards_its_workdir(project):
    result = launch(project, "--config=toy.py:smoke", "--config.seed=3")
    assert result.returncode == 0, result.stderr
    assert (project / "runs/toy-smoke/seen.txt").read_text() == "3 2 1.0"
    assert "toy.py:smoke -> toy_experiment, in runs/toy-smoke" in result.stdout

    other = launch(project, "--config=toy.py", "--config.name=other", "--workdir=runs/toy-smoke")
    assert other.returncode == 2
    assert "--workdir=runs/toy-smoke holds a run of 'toy', not of 'other'" in other.stderr
    assert len(other.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("end", "code", "line"),
    [
        ("preempted", 143, "preempted after 3 steps"),
        ("nan", 1, "stopped: loss is nan at step 7"),
        ("bug", 1, "KeyError"),
    ],
)
def test_launch_exit_codes(project, end, code, line):
    result = launch(project, "--config=toy.py", f"--config.end={end}", "--workdir=run")
    assert result.returncode == code, result.stderr
    assert line in result.stderr
    assert ("Traceback" in result.stderr) == (end == "bug")  # a bug keeps its traceback
