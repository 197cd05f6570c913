"""A cluster that is joined asks for a token, or the user has said that it need not."""

import os

import pytest
from ray._private import ray_constants

from verl.utils.errors import UserError
from verl.utils.ray_access import check_token, loopback_only


def test_a_cluster_open_to_everybody_is_refused_unless_that_is_asked_for(monkeypatch):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with pytest.raises(UserError, match="asks nobody for a token"):
        check_token("auto")
    for mode in ("token", "disabled"):
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
        check_token("auto")


def test_what_was_set_for_a_local_cluster_is_as_before_afterwards(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth7")
    before = {**os.environ}
    with loopback_only():
        assert not ray_constants.ENABLE_RAY_CLUSTER
        assert os.environ["NCCL_SOCKET_IFNAME"] == os.environ["GLOO_SOCKET_IFNAME"] != "eth7"
    assert ray_constants.ENABLE_RAY_CLUSTER
    assert {**os.environ} == before
