"""Limit what a hostile input may take, and silence the libraries."""

import faulthandler
import logging
import resource
from pathlib import Path

import datasets
import pytest
from transformers.utils import logging as transformers_logging

from .strategies import MORE

LIMIT_SECONDS, LIMIT_SPACE = 120, 4 << 30


@pytest.fixture(autouse=True)
def limits():
    """Limit the address space, and end the process with a traceback if a test hangs, even in native code."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT_SPACE, hard))
    faulthandler.dump_traceback_later(LIMIT_SECONDS * MORE, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture(scope="module", autouse=True)
def quiet():
    """Silence warnings and progress bars of libraries for thousands of inputs."""
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
    transformers_logging.enable_progress_bar()
    datasets.enable_progress_bars()
