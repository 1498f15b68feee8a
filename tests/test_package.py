"""The package as users get it: what a wheel holds, what an import costs, which names are public."""
import inspect
import os
import subprocess
import sys
import venv
import zipfile
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(file.stem for file in (ROOT / "lessonlib").glob("[!_]*.py"))
CONTRACT = {
    "data": """datasets get_data image_files verify_images load_images parent_label RegexLabeller is_cat random_split Batches DataLoaders
               resize_images""",
    "pixels": "show_image show_images pixel_table l1_distance rmse PixelSimilarity",
    "fitting": "quad mk_quad add_noise mae mse rectified_linear double_relu triple_relu gradient_descent",
    "linear_sgd": "init_params linear sigmoid mnist_loss batch_accuracy BasicOptim train_epoch validate_epoch",
    "mlp": "MLP",
    "learner": "Learner load_learner Callback accuracy error_rate",
    "cross_entropy": "softmax log_softmax nll_loss cross_entropy",
    "convolution": "conv2d BatchNorm2d ResidualBlock SmallResNet",
    "vision": "image_dataloaders vision_learner",
    "interpret": "Interpretation",
    "cleaner": "CleaningPlan ImageCleaner",
    "pretrain": "pretrain Recipe read_tiny_imagenet",
    "pipeline": """Slips crest_data crest_experiment compare_rates load_several_ways turned agreement LayerLog TensorBoardLog plot_layers
                   item_table""",
    "sketches": "PET_BREEDS draw_pet contact_sheet CRESTS CrestChange crest_change draw_crest draw_crest_variant write_crests",
    "doctor": "doctor",
    "progress": "Progress store progress plot_progress calibration due class_report",
    "questions": "Question Feedback mark lint lint_glossary glossary questionnaire_template stripped",
    "quiz": "Questionnaire questionnaire guess check progress due review",
}


def settings():
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


def python(code, executable=sys.executable, **options):
    """Run code in a fresh interpreter and return what it printed; fail with its errors."""
    result = subprocess.run([executable, "-c", code], capture_output=True, text=True, **options)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize("module", CONTRACT)
def test_public_names(module):
    for name in CONTRACT[module].split():
        assert name in import_module(f"lessonlib.{module}").__all__


@pytest.mark.parametrize("module", MODULES)
def test_public_parameters_are_explained(module):
    """Every public function says in one line what it does, and its first line is a sentence."""
    loaded = import_module(f"lessonlib.{module}")
    for name in loaded.__all__:
        member = getattr(loaded, name)
        if inspect.isfunction(member) or inspect.isclass(member):
            assert (inspect.getdoc(member) or "").splitlines()[0].strip().endswith((".", ":")), f"{module}.{name}"


@pytest.mark.parametrize("module", ["quiz", "questions", "progress", "explore", "cli", "cleaner"])
def test_state_modules_import_no_torch(module):
    heavy = python(f"import sys, lessonlib.{module}; print(*sorted(set(sys.modules) & "
                   "{'torch', 'pandas', 'matplotlib', 'ipywidgets', 'anywidget', 'PIL', 'sqlalchemy', 'sklearn', 'cleanlab'}))")
    assert heavy == ""


@pytest.mark.parametrize("module", ["data", "pixels", "fitting", "linear_sgd", "mlp", "learner", "cross_entropy", "doctor",
                                    "convolution", "vision", "interpret", "pretrain", "pipeline"])
def test_lesson_modules_import_only_torch(module):
    """torchvision alone costs 2.3 s, pandas 0.23 s: nobody pays for what is not used."""
    heavy = python(f"import torch, sys; before = set(sys.modules); import lessonlib.{module}; print(*sorted((set(sys.modules) - before) & "
                   "{'torchvision', 'pandas', 'matplotlib', 'ipywidgets', 'anywidget', 'pooch', 'sklearn', 'captum'}))")
    assert heavy == ""


def test_version_has_one_source():
    import lessonlib

    assert lessonlib.__version__ == settings()["version"]


def test_users_need_nothing_of_the_developers():
    names = settings()["requirements"].lower()
    assert not [word for word in ("nbdev", "execnb", "fastcore", "ghapi", "pytest", "jupyterlab") if word in names]
    for requirement in settings()["requirements"].split():
        assert ">=" in requirement and "<" in requirement and "==" not in requirement, f"{requirement}: a range, not a pin"


@pytest.fixture(scope="session")
def wheel(clean_copy):
    """The wheel, built from the source archive, which is built from a clean copy."""
    subprocess.run([sys.executable, "-m", "build", "--outdir", clean_copy / "dist", clean_copy], check=True, capture_output=True)
    return next((clean_copy / "dist").glob("*.whl"))


def test_wheel_holds_package_and_data(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"lessonlib/{module}.py" for module in MODULES} <= set(names)
    files = [path.relative_to(ROOT / "data").as_posix() for path in (ROOT / "data").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {f"lessonlib/_data/{name}" for name in files} <= set(names)
    assert not [name for name in names if name.startswith(("tests", "nbs", "data/", "build"))]
    assert wheel.stat().st_size <= 60e6


@pytest.fixture(scope="session")
def wheel_python(wheel, tmp_path_factory):
    """The interpreter of an environment that holds the wheel, what it asks for, and nothing else."""
    folder = tmp_path_factory.mktemp("wheel") / "venv"
    venv.create(folder, with_pip=True)
    executable = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    subprocess.run([executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile", wheel], check=True)
    return executable


def test_wheel_works_in_an_empty_environment(wheel_python, tmp_path):
    """From another folder: every module imports, the embedded data are intact, a data set is there."""
    environment = {**os.environ, "LESSONLIB_HOME": str(tmp_path / "home")}
    environment.pop("PYTHONPATH", None)
    code = f"""
import importlib, importlib.util, lessonlib
from pathlib import Path
assert not Path(lessonlib.__file__).is_relative_to({str(ROOT)!r}), lessonlib.__file__
assert not [name for name in ("nbdev", "fastcore", "jupyterlab", "pytest") if importlib.util.find_spec(name)]
for module in {MODULES!r}:
    importlib.import_module("lessonlib." + module)
from lessonlib.data import get_data, image_files, verify_data
assert verify_data() == [], verify_data()
print(len(image_files(get_data("mnist_sample"))))
"""
    assert python(code, executable=wheel_python, cwd=tmp_path, env=environment).splitlines()[-1] == str(6131 + 6265 + 1010 + 1028)


def test_wheel_command_without_a_clone_says_what_to_do(wheel_python, tmp_path):
    result = subprocess.run([wheel_python.with_name("lessonlib"), "run"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2 and "inside a clone of the course" in result.stderr
