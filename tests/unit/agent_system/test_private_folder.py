"""A folder in the temporary one is this user's own, or is not used."""

import os

import pytest

from agent_system.environments.private_folder import private_folder


def test_it_is_for_this_user_alone_also_when_it_was_there(tmp_path):
    for _ in range(2):
        assert private_folder(tmp_path / "mine").stat().st_mode & 0o777 == 0o700
        (tmp_path / "mine").chmod(0o755)


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "mine").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError, match="not a folder of this user"):
        private_folder(tmp_path / "mine")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_somebody_elses_is_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    os.chown(tmp_path / "mine", 65534, 65534)
    with pytest.raises(PermissionError, match="set TMPDIR"):
        private_folder(tmp_path / "mine")
