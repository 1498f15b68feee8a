"""Everything that can differ from one release to the next stands in settings.ini; this file only passes it on."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

config = ConfigParser(delimiters=["="])
config.read(Path(__file__).with_name("settings.ini"), encoding="utf-8")
settings = config["DEFAULT"]
extras = {key.removesuffix("_requirements"): settings[key].split() for key in settings if key.endswith("_requirements")}
extras["dev"] = [requirement for names in extras.values() for requirement in names]  # who changes the course needs everything

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    author_email=settings["author_email"],
    url=settings["git_url"],
    keywords=settings["keywords"].split(),
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=" + settings["min_python"],
    install_requires=settings["requirements"].split(),
    extras_require=extras,
    entry_points={"console_scripts": settings["console_scripts"].split()},
    # data/ at the root travels as lessonlib._data (not lessonlib.data: that is the module data.py).
    packages=["lessonlib", "lessonlib._data"],
    package_dir={"lessonlib._data": "data"},
    package_data={"lessonlib._data": ["**/*"]},
    zip_safe=False,
)
