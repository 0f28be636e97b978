"""Whether the Hub can be reached, asked once: its libraries would try each file six times, for half a minute."""

import functools
import os
import sys

# Long enough for a slow connection, and no more than one try of the libraries.
SECONDS = 5.0


@functools.cache
def offline_where_unreachable() -> None:
    """Let the Hub's libraries use only what was downloaded before, and say so, where the Hub does not answer."""
    import datasets
    from huggingface_hub import constants, get_session

    if constants.is_offline_mode():
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception as error:  # of sockets, of proxies, of certificates, of the client
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
        os.environ["HF_HUB_OFFLINE"] = "1"  # for processes that are started from here
        reason = str(error) or type(error).__name__
        print(
            f"note: {constants.ENDPOINT} cannot be reached ({reason}): only what is on disk is used", file=sys.stderr
        )


__all__ = ["offline_where_unreachable"]
