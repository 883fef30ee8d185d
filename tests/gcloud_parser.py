"""Run by gcloud's own Python: has gcloud's own parser read calls, and looks their flags up in gcloud's help.

Standard input: a JSON list of calls, each a list of words without `gcloud`. Standard output: a JSON list with, for
each, null or what is wrong. Exit status 3: this version of gcloud keeps its parser elsewhere. Nothing is sent anywhere.
"""

import contextlib
import io
import json
import os
import re
import sys
from typing import Any


def open_client(root: str) -> Any:
    """gcloud's command line, from its installation's folder."""
    sys.path[:0] = [os.path.join(root, "lib"), os.path.join(root, "lib", "third_party")]
    from googlecloudsdk import gcloud_main

    return gcloud_main.CreateCLI([])


def help_of(top: Any, words: list[str]) -> str:
    """What `gcloud … --help` prints for the command that begins a call."""
    from googlecloudsdk.calliope import markdown
    from googlecloudsdk.core.document_renderers import render_document

    element = top
    for word in words:
        below = element.LoadSubElement(word)
        if below is None:
            break
        element = below
        if not hasattr(element, "AllSubElements") or not element.AllSubElements():
            break
    out = io.StringIO()
    render_document.RenderDocument("text", io.StringIO(markdown.Markdown(element)), out=out)
    return out.getvalue()


def problem(client: Any, words: list[str]) -> str | None:
    """What is wrong with a call."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            client._CLI__parser.parse_args(words)
        except SystemExit:
            return said.getvalue().strip() or "refused"
    text = help_of(client._CLI__top_element, words)
    for word in words:
        flag = word.partition("=")[0]
        if flag.startswith("--") and not re.search(rf"{flag}\b", text):
            return f"{flag}: not in its help"
    return None


if __name__ == "__main__":
    gcloud = open_client(sys.argv[1])
    if not hasattr(gcloud, "_CLI__parser") or not hasattr(gcloud, "_CLI__top_element"):
        sys.exit(3)
    print(json.dumps([problem(gcloud, call) for call in json.load(sys.stdin)]))
