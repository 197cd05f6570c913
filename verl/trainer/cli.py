"""What all entry points share: a user's mistake is one sentence and exit code 2."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from verl.utils.errors import UserError
from verl.utils.logging import setup_logging

logger = logging.getLogger(__name__)


def run_cli(main: Callable[[list[str]], None]) -> None:
    """Call `main(arguments)`; exits with 2 on a UserError, 130 on Ctrl-C, without a traceback."""
    setup_logging()
    try:
        main(sys.argv[1:])
    except UserError as error:
        # One raised in a Ray worker arrives as a UserError whose text is the remote traceback.
        sys.stderr.write(f"error: {getattr(error, 'cause', None) or error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        logger.warning("interrupted; finished checkpoints and logs are kept")
        sys.exit(130)
