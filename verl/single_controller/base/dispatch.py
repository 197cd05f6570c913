"""How the arguments of one call are spread over the workers, and their results collected."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

from tensordict import TensorDict

from verl.protocol import DataProto

Batch = DataProto | TensorDict


class Dispatch(Enum):
    """How arguments reach the workers and what comes back.

    ``ONE_TO_ALL``: everyone gets the same; a list of results.
    ``ALL_TO_ALL``: arguments are lists with one entry a worker; a list of results.
    ``DP_COMPUTE_PROTO``: batches are chunked over the workers, what is no batch reaches all of them
    as it is; results are concatenated.
    ``DP_COMPUTE_METRIC``: the same; a list of results.
    """

    ONE_TO_ALL = "one_to_all"
    ALL_TO_ALL = "all_to_all"
    DP_COMPUTE_PROTO = "dp_compute_proto"
    DP_COMPUTE_METRIC = "dp_compute_metric"


class Execute(Enum):
    """Which workers run a method. The value is the method of a worker group that does it."""

    ALL = "execute_all"
    RANK_ZERO = "execute_rank_zero"


class Mode(NamedTuple):
    """`spread(value, workers)`: an argument with one entry a worker. `collect`: what comes back of
    the results in rank order."""

    spread: Callable[[Any, int], Any]
    collect: Callable[[Any], Any]


def repeated(value: Any, workers: int) -> list:
    """The same object for every worker."""
    return [value] * workers


def as_it_is(value: Any, workers: int = 1) -> Any:
    """The caller has spread it already, or wants the workers' results one by one."""
    return value


def chunked(value: Any, workers: int) -> list:
    """One chunk of a batch for each worker; of anything else, the same object.

    Raises:
        AssertionError: a batch does not split evenly.
    """
    if not isinstance(value, Batch):
        return repeated(value, workers)
    rows = len(value)
    assert rows % workers == 0, (
        f"{rows} rows do not split into {workers} equal chunks; pad with pad_dataproto_to_divisor"
    )
    return list(value.chunk(workers))


def concatenated(parts: list[Any]) -> Batch:
    """All rows of several batches of one type, `DataProto` or `TensorDict`."""
    if isinstance(parts[0], TensorDict):
        return TensorDict.cat(parts, dim=0)
    return DataProto.concat(parts)


MODES: dict[Dispatch, Mode] = {
    Dispatch.ONE_TO_ALL: Mode(repeated, as_it_is),
    Dispatch.ALL_TO_ALL: Mode(as_it_is, as_it_is),
    Dispatch.DP_COMPUTE_PROTO: Mode(chunked, concatenated),
    Dispatch.DP_COMPUTE_METRIC: Mode(chunked, as_it_is),
}
