"""A training rank's death within one command."""

import os

import pytest

from verl.config.trainer import SessionConfig
from verl.trainer.endings import ending_of
from verl.trainer.restarts import surviving_deaths
from verl.utils.errors import UserError, WorkerDiedError


def attempts(run, *errors, saving=()):
    """The settings of each attempt; attempt n raises `errors[n]`, those in `saving` save before."""
    seen = []

    def attempt(settings):
        seen.append(settings)
        number = len(seen) - 1
        if number in saving:
            os.makedirs(os.path.join(run.default_local_dir, f"global_step_{number + 1}"))
        if number < len(errors):
            raise errors[number]

    return seen, attempt


def make_run(folder, **settings):
    return SessionConfig(default_local_dir=str(folder), **settings)


def test_a_death_is_survived_as_often_as_asked_for(tmp_path, caplog):
    run = make_run(tmp_path, max_restarts=2)
    seen, attempt = attempts(run, WorkerDiedError("rank 0 died"), WorkerDiedError("rank 1 died"))
    surviving_deaths(run, attempt)
    assert seen == [run] * 3
    assert [record.getMessage() for record in caplog.records] == [
        "rank 0 died; all workers are started anew now, 1 restarts left",
        "rank 1 died; all workers are started anew now, 0 restarts left",
    ]


def test_after_that_it_ends(tmp_path):
    run = make_run(tmp_path)
    seen, attempt = attempts(run, WorkerDiedError("rank 0 died"), WorkerDiedError("it died again"))
    with pytest.raises(WorkerDiedError, match="it died again"):
        surviving_deaths(run, attempt)
    assert len(seen) == 2


def test_other_errors_are_not_tried_again(tmp_path):
    run = make_run(tmp_path)
    seen, attempt = attempts(run, UserError("x=1 is too small"))
    with pytest.raises(UserError):
        surviving_deaths(run, attempt)
    assert len(seen) == 1


def test_what_refuses_a_new_start_ends_the_run_as_the_death_that_it_follows(tmp_path):
    """Without the machine that died there may be no room."""
    run = make_run(tmp_path, max_restarts=2)
    death = WorkerDiedError("rank 1 died")
    seen, attempt = attempts(run, death, UserError("cannot place [1, 1] workers"))
    with pytest.raises(WorkerDiedError, match="rank 1 died"):
        surviving_deaths(run, attempt)
    assert len(seen) == 2
    ending = ending_of(death)
    assert ending.code == 3
    assert ending.sentence == (
        "rank 1 died; it could not be started anew: cannot place [1, 1] workers"
    )


def test_what_this_command_has_saved_is_gone_on_from_even_when_it_began_afresh(tmp_path):
    run = make_run(tmp_path, resume_mode="disable")
    seen, attempt = attempts(run, WorkerDiedError("rank 0 died"), saving=[0])
    surviving_deaths(run, attempt)
    assert [settings.resume_mode for settings in seen] == ["disable", "auto"]


def test_checkpoints_of_an_earlier_command_are_not(tmp_path):
    (tmp_path / "global_step_9").mkdir()
    run = make_run(tmp_path, resume_mode="disable")
    seen, attempt = attempts(run, WorkerDiedError("rank 0 died"))
    surviving_deaths(run, attempt)
    assert [settings.resume_mode for settings in seen] == ["disable", "disable"]
