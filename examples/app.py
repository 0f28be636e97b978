"""Serve MAGNET in a browser: infill, encode, generate, and inspect attention. Can be used as a Space of the Hub.

    python examples/app.py
    python examples/app.py --model DIR_OR_HUB_ID --port 7860

Without `--model` it shows the quickstart's model, which the first start trains. The page loads nothing from other
hosts; only a model of the Hub is downloaded.
"""

import argparse
import os
import sys
from pathlib import Path

# Set before gradio is imported, which would send analytics.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
# Busy-waiting threads slow a tiny model down many times if other jobs share the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from transformers.utils import logging

from examples.command_line import OneLineParser, add_device, add_model, require_extra, start
from examples.models import not_adapted
from examples.toy.model import describe_model, open_model


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options; see `--help`."""
    parser = OneLineParser(description=__doc__)
    add_model(parser, required=False, help="a MAGNET directory or Hub id; defaults to the quickstart model")
    add_device(parser)
    # A Space sets these variables to the address that it serves.
    port, host = os.environ.get("GRADIO_SERVER_PORT", "7860"), os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")
    parser.add_argument("--port", type=int, default=port, help="address to listen on")
    parser.add_argument("--host", default=host, help="0.0.0.0 lets other machines in")
    parser.add_argument("--share", action="store_true", help="a public address, through gradio's host")
    args = parser.parse_args(arguments)
    if not 1 <= args.port <= 65535:
        parser.error(f"--port is {args.port}; expected a number from 1 to 65535")
    return args


def main(arguments: list[str] | None = None) -> None:
    """Open the model and serve the page until it is interrupted."""
    args = parse_arguments(arguments)
    require_extra("demo", "gradio")
    from examples.demo.page import build_page, launch_options

    logging.disable_progress_bar()  # hides the bar of reading weights; training keeps its own
    model = open_model(args.model, device=args.device)
    if args.model is not None and (note := not_adapted(args.model)):
        print(note, file=sys.stderr)
    page = build_page(model, described=describe_model(model, named=args.model))
    try:
        page.launch(
            server_name=args.host,
            server_port=args.port,
            share=args.share,
            prevent_thread_lock=True,
            quiet=True,
            **launch_options(),
        )
    except OSError as error:
        raise ValueError(f"Cannot listen on {args.host}:{args.port} ({error}). Pass another `--port`.") from error
    print(f"app: OK (http://{args.host}:{args.port}; end it with Ctrl+C)", flush=True)
    page.block_thread()


if __name__ == "__main__":
    start(main)
