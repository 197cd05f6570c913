"""What all entry points share: however a run ends, it ends in one sentence and an exit code."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable

from verl.trainer.endings import ExitCode, ending_of
from verl.trainer.stop_requests import StopRequests
from verl.utils.logging import FILE_ONLY, log_file, setup_logging

logger = logging.getLogger(__name__)


def run_cli(main: Callable[[list[str]], None]) -> None:
    """Call `main(arguments)`; exits with a code of `ExitCode` when it raises.

    A traceback goes to `run.log`, and to the console only where there is no such file yet.
    """
    setup_logging()
    try:
        with StopRequests():
            main(sys.argv[1:])
    except SystemExit:  # of --help
        raise
    except BaseException as error:
        sys.exit(tell_ending(error))


def tell_ending(error: BaseException) -> ExitCode:
    """Write the sentence to stderr and to `run.log`."""
    ending = ending_of(error)
    sentence, file = ending.sentence, log_file()
    logger.error("%s", sentence, extra=FILE_ONLY)
    if ending.code not in (ExitCode.REFUSED, ExitCode.INTERRUPTED, ExitCode.TERMINATED):
        trace = "".join(traceback.format_exception(error))
        logger.error("%s", trace, extra=FILE_ONLY)
        if ending.code is ExitCode.BUG:
            sentence += f"; traceback in {file}" if file else ""
            sys.stderr.write("" if file else trace)
    sys.stderr.write(f"error: {sentence}\n")
    return ending.code
