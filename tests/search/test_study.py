"""Trials in a storage: drawn by their place, done once each, taken back from who was killed, by random and by grid."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune.errors import RecipeError, ResourceError
from finetune.search import study as studies
from finetune.search.space import ChoiceList, Range, Space, grid_points
from finetune.search.study import Search, TrialFacts, check_sampler, is_left_behind, is_rung
from tests.killing import forked

SPACE: Space = {"x": Range("log", 1e-4, 1.0), "y": Range("lin", 0.0, 1.0), "z": ChoiceList(("a", "b"))}
Objective = Callable[[dict[str, Any]], float]


def opened(folder: Path, *, sampler: str = "random", seed: int = 0, url: str | None = None) -> Search:
    folder.mkdir(exist_ok=True)
    return Search(folder, name="test", url=url, seed=seed, sampler=check_sampler(sampler))


def do(search: Search, count: int, *, of: Objective = lambda params: params["y"], most: int = 99,
       space: Space = SPACE, points: Any = ()) -> list[TrialFacts]:  # fmt: skip
    """Do at most so many trials, and return all that ended."""
    study = search.plan("s", count, points)
    with search.working() as worker:
        for _ in range(most):
            trial = search.claim(study, space, worker)
            if trial is None:
                break
            params = dict(trial.params)
            search.end(study, trial, TrialFacts("s", trial.number, params, "done", of(params), 1.0, (of(params),)))
    return search.ended("s")


@pytest.mark.parametrize(("sampler", "count"), [("random", 9), ("tpe", 15)])  # tpe draws at random up to its tenth
def test_a_search_that_is_gone_on_with_draws_what_it_would_have_drawn(tmp_path: Path, sampler: str, count: int) -> None:
    whole = do(opened(tmp_path / "whole", sampler=sampler), count)
    do(opened(tmp_path / "parts", sampler=sampler), count, most=4)
    do(opened(tmp_path / "parts", sampler=sampler), count, most=3)
    assert do(opened(tmp_path / "parts", sampler=sampler), count) == whole
    assert len({facts.params["x"] for facts in whole}) == count
    other = do(opened(tmp_path / "other", sampler=sampler, seed=1), count)
    assert [facts.params for facts in other] != [facts.params for facts in whole]


def test_a_trial_whose_process_was_killed_is_done_again_with_its_number_and_values(tmp_path: Path) -> None:
    whole = do(opened(tmp_path / "whole"), 6)

    def killed() -> None:
        calls: list[int] = []

        def dying(params: dict[str, Any]) -> float:
            calls.append(1)
            if len(calls) == 5:  # in the third trial: each is asked twice
                os.kill(os.getpid(), 9)
            return float(params["y"])

        do(opened(tmp_path / "killed"), 6, of=dying)

    ended = forked(killed)
    assert ended.signal == 9
    again = opened(tmp_path / "killed")
    assert len(again.ended("s")) == 2
    assert do(again, 6) == whole


def test_one_that_is_still_at_work_keeps_its_trial(tmp_path: Path) -> None:
    first, second = opened(tmp_path / "s"), opened(tmp_path / "s")
    study = first.plan("s", 2)
    with first.working() as one, second.working() as other:
        held = first.claim(study, SPACE, one)
        taken = second.claim(second.study("s"), SPACE, other)
        assert held is not None and taken is not None and held.number != taken.number
        assert second.claim(second.study("s"), SPACE, other) is None
        assert not second.is_over(second.study("s"))
        for search, trial in ((first, held), (second, taken)):
            facts = TrialFacts("s", trial.number, dict(trial.params), "done", 0.5, 1.0, (0.5,))
            search.end(search.study("s"), trial, facts)
    assert second.is_over(second.study("s"))
    assert [facts.number for facts in first.ended("s")] == [0, 1]


def test_what_a_trial_showed_comes_back_as_it_was(tmp_path: Path) -> None:
    search = opened(tmp_path / "s")
    study = search.plan("s", 3)
    rows = ({"epoch": 1, "val_loss": 0.25},)
    shown = []
    with search.working() as worker:
        for state, score in (("done", 0.75), ("pruned", 0.5), ("failed", None)):
            trial = search.claim(study, SPACE, worker)
            assert trial is not None
            facts = TrialFacts("s", trial.number, dict(trial.params), state, score, 0.25, (0.5, 0.75), "why", rows)  # type: ignore[arg-type]
            search.end(study, trial, facts)
            shown.append(facts)
    found = search.ended("s")
    assert found[0] == shown[0]
    assert [facts.state for facts in found] == ["done", "pruned", "failed"]
    assert found[2].reason == "why" and found[0].rank > found[2].rank


def test_nothing_in_the_storage_is_a_pickle(tmp_path: Path) -> None:
    do(opened(tmp_path / "s", sampler="tpe"), 12)
    content = (tmp_path / "s" / "study.sqlite").read_bytes()
    assert b"\x80\x04\x95" not in content and b"cbuiltins" not in content and b"optuna.samplers" not in content


@pytest.mark.slow
def test_random_finds_more_than_a_grid_where_one_of_two_hardly_matters(tmp_path: Path) -> None:
    """Source: Bergstra & Bengio 2012, Random search for hyper-parameter optimization: the picture of the notes."""
    space: Space = {"x": Range("lin", 0.0, 1.0), "y": Range("lin", 0.0, 1.0)}

    def of(params: dict[str, Any]) -> float:
        return -abs(params["x"] - 0.37) - 0.01 * abs(params["y"] - 0.5)

    best: dict[str, list[float]] = {"random": [], "grid": []}
    for seed in range(5):
        points = grid_points(space, 16)
        grid = do(opened(tmp_path / f"grid{seed}", sampler="grid"), 16, of=of, space=space, points=points)
        random = do(opened(tmp_path / f"random{seed}", seed=seed), 16, of=of, space=space)
        assert len(grid) == len(random) == 16
        assert len({facts.params["x"] for facts in grid}) == 4 and len({facts.params["x"] for facts in random}) == 16
        for name, found in (("grid", grid), ("random", random)):
            best[name].append(max(facts.score for facts in found if facts.score is not None))
    assert sum(best["random"]) / 5 > max(best["grid"])
    assert sum(one > best["grid"][0] for one in best["random"]) >= 4


def test_of_those_that_came_to_a_rung_the_best_third_goes_on() -> None:
    assert [epoch for epoch in range(1, 28) if is_rung(epoch)] == [1, 3, 9, 27]
    others = [(0.1,), (0.5,)]
    assert is_left_behind([0.4], others) and not is_left_behind([0.6], others)
    assert not is_left_behind([0.0], others[:1])  # two tell nothing yet
    assert not is_left_behind([0.0, 0.0], [(1.0, 1.0)] * 9)  # no rung
    many = [(value / 10, value / 10, value / 10) for value in range(8)]
    assert not is_left_behind([0.0, 0.0, 0.55], many) and is_left_behind([0.0, 0.0, 0.45], many)


def test_what_is_no_sampler_or_no_storage_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="sampler 'bayes' is not one of random, grid, tpe"):
        check_sampler("bayes")
    for url in ("nonsense", "postgresql+psycopg://nobody@127.0.0.1:1/none"):
        with pytest.raises(ResourceError, match="cannot be used") as refused:
            opened(tmp_path / "s", url=url)
        assert "nobody" not in refused.value.message.split("cannot be used")[0]  # a URL may hold a password
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(ResourceError, match="needs Optuna") as missing:
        studies.load_optuna()
    assert "finetune[tune]" in missing.value.hint


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """A PostgreSQL server of our own, as a user that may run one; its URL."""
    programs = {name: shutil.which(name) for name in ("initdb", "pg_ctl", "postgres")}
    if not all(programs.values()):
        pytest.skip("no PostgreSQL on this machine")
    as_user: list[str] = []
    place = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    if os.geteuid() == 0:
        if not shutil.which("runuser") or subprocess.run(["id", "postgres"], capture_output=True).returncode:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        as_user = ["runuser", "-u", "postgres", "--"]
        shutil.chown(place, "postgres")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = str(place / "data")
    subprocess.run([*as_user, str(programs["initdb"]), "-D", data, "-A", "trust", "-U", "postgres"], check=True,
                   capture_output=True, cwd="/")  # fmt: skip
    control = [*as_user, str(programs["pg_ctl"]), "-D", data]
    settings = f"-p {port} -k {place} -c listen_addresses=127.0.0.1"
    subprocess.run([*control, "-o", settings, "-l", str(place / "log"), "-w", "start"], check=True,
                   stdout=subprocess.DEVNULL, cwd="/")  # fmt: skip
    try:
        yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "-w", "stop"], check=False, stdout=subprocess.DEVNULL, cwd="/")
        shutil.rmtree(place, ignore_errors=True)


def test_a_postgresql_server_holds_the_trials_of_two_processes(tmp_path: Path, postgres: str) -> None:
    whole = do(opened(tmp_path / "file"), 20)
    folder = tmp_path / "shared"
    folder.mkdir()
    opened(folder, url=postgres).plan("s", 20)
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            try:
                do(opened(folder, url=postgres), 20)
                os._exit(0)
            except BaseException:
                os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    found = opened(folder, url=postgres).ended("s")
    assert found == whole
    workers = {trial.user_attrs["worker"] for trial in opened(folder, url=postgres).study("s").get_trials()}
    assert 1 <= len(workers) <= 2
