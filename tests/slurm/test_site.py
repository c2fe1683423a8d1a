"""A site is one YAML file; a wrong one is named with its line."""

from __future__ import annotations

import os

import pytest

from slurm.site import SiteError, load_site, names

GOOD = "name: mine\ndescription: a test\nlauncher: mpiexec\n"


@pytest.mark.parametrize("name", names())
def test_every_shipped_site_loads_and_bears_its_own_name(name):
    assert load_site(name).name == name


def test_a_site_without_cores_has_those_of_this_process():
    assert load_site("local").usable_cores() == len(os.sched_getaffinity(0))


def test_a_path_to_a_file_is_a_site(tmp_path):
    (tmp_path / "mine.yaml").write_text(GOOD + "cores: 7\n")
    assert load_site(str(tmp_path / "mine.yaml")).usable_cores() == 7


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD + "corse: 3\n", r":4: unknown key 'corse'; did you mean cores\?"),
        (GOOD + "cores: many\n", r":4: cores holds 'many'"),
        (GOOD + "cores: -1\n", r":4: cores holds -1"),
        (GOOD + "cores: true\n", r":4: cores holds True"),
        ("name: mine\ndescription: x\n", "'launcher' is missing"),
        ("- a\n", "mapping"),
    ],
)
def test_a_wrong_site_file_is_refused(tmp_path, text, words):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(SiteError, match=words):
        load_site(str(tmp_path / "bad.yaml"))


@pytest.mark.parametrize("name", ["frontierr", "", "../local", "local/../local"])
def test_an_unknown_site_lists_the_known_ones(name):
    with pytest.raises(SiteError, match="local"):
        load_site(name)
