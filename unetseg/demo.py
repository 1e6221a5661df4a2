"""A local web page: choose an example or drop a picture, see the mask, switch long skips off.

python -m unetseg.demo checkpoint=runs/NAME               prints the page's address; Ctrl-C ends it
python -m unetseg.demo checkpoint=FILE.ckpt port=8000     at a port of your choice, as for a tunnel

Only this machine reaches the page, and the page asks nothing of any other. Pictures that were
dropped are deleted when it ends. Needs gradio: pip install 'unetseg[demo]'.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

from unetseg.errors import UserError
from unetseg.options import command
from unetseg.options.command_schema import Demo
from unetseg.options.output import explain_write_errors, say

HOST = "127.0.0.1"


def demo(options: Demo) -> None:
    """Serve the page until Ctrl-C or SIGTERM, which arrive as a KeyboardInterrupt."""
    with explain_write_errors(Path(tempfile.gettempdir()), "TMPDIR"):
        folder = tempfile.TemporaryDirectory(prefix="unetseg-demo-")
    with folder as pictures:
        # gradio reads both when it is imported
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": pictures}
        from unetseg.inference import demo_page
        from unetseg.inference.demo_examples import draw_examples
        from unetseg.model import checkpoint

        model, known = checkpoint.load(options.checkpoint, trust=options.trust)
        rgb = known["data"].get("channels") in (None, 3)  # the examples are drawn in colours
        examples = draw_examples(known["classes"], known["data"].get("border", "pet")) if rgb else []
        page = demo_page.page(demo_page.SwitchedModel(model, known), options.checkpoint, known, examples)
        address = demo_page.launch(page, HOST, free_port(options.port))
        say(f"{address}   (Ctrl-C ends it)")
        with suppress(KeyboardInterrupt):  # here Ctrl-C is the way to end, and no interruption
            threading.Event().wait()
        print()


def check(options: Demo) -> None:
    """Raise a UserError where gradio is absent, the port can't be had, or there is no room for pictures."""
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the page needs gradio", advice="pip install 'unetseg[demo]'")
    free_port(options.port)
    try:
        tempfile.gettempdir()
    except OSError as error:
        raise UserError(
            f"pictures can't be kept: {error.strerror}", advice="TMPDIR=FOLDER before the command"
        ) from None


def free_port(port: int) -> int:
    """Return the port if this machine can listen on it, or a free one for 0; otherwise raise a UserError."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a page that has just ended leaves it waiting
        try:
            probe.bind((HOST, port))
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise UserError(f"port={port} can't be had: {reason}", accepted="a free port", advice="port=0") from None
        return int(probe.getsockname()[1])


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    command.run("demo", Demo, demo, preflight=check, about=__doc__)


if __name__ == "__main__":
    main()
