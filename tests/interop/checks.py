"""Shared by the Python scripts: the address to test, and the loop over the checks of a script."""

import sys

# flowledger's address (http://HOST:PORT) or the upstream's own, and a key for it.
BASE, KEY = sys.argv[1:]
ANSWER = "Paris is the capital of France."
QUESTION = "What is the capital of France?"
# The upstream calls an offered tool for this, and answers once it has the result.
TOOL_QUESTION = "What is the weather there? [tool]"
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


def same(actual, expected=ANSWER):
    assert actual == expected, f"{actual!r} is not {expected!r}"


def run(*checks):
    for check in checks:
        check()
        print(f"{check.__name__}: ok", flush=True)
