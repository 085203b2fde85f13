"""One function call on a machine that only offers standard input and output: what runs there.

The payload comes by standard input, the answer goes to standard output as one line that begins with the payload's
nonce; whatever the candidate prints goes nowhere. A line that is missing, or is not alone, is no answer. `bootstrap`
gives the program to send: this module and those that it needs, as text.
"""

from __future__ import annotations

import json
import os
import sys
import types
from pathlib import Path

from . import codec, remote

_MODULES = ("codec", "frames", "instances", "remote", "stdio")
_BOOTSTRAP = """import sys, types
package = types.ModuleType("rewards_sandbox")
package.__path__ = []
sys.modules[package.__name__] = package
for name, source in {sources!r}:
    module = types.ModuleType(package.__name__ + "." + name)
    module.__package__ = package.__name__
    sys.modules[module.__name__] = module
    setattr(package, name, module)
    exec(compile(source, name + ".py", "exec"), module.__dict__)
module.main()
"""


def bootstrap() -> str:
    """A program of one file, in Python 3.10 or newer, that does what `main` says."""
    here = Path(__file__).parent
    return _BOOTSTRAP.format(sources=[(name, (here / f"{name}.py").read_text("utf-8")) for name in _MODULES])


def main() -> None:
    """Read a payload, run its code, call its function, write the answer, end the process."""
    payload = json.loads(sys.stdin.buffer.readline())
    answers = os.dup(1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    for name in [name for name in sys.modules if name.partition(".")[0] == __package__]:
        del sys.modules[name]
    mark, path = payload["mark"].encode(), "solution.py"
    try:
        code = compile(payload["code"], path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        answer = {"kind": "compile_error", "message": f"{type(error).__name__}: {error}"[:2000]}
    else:
        module = types.ModuleType("solution")
        module.__file__ = path
        sys.modules["solution"] = module
        remote.add_names(payload.get("preamble", ""))
        answer = remote.call(code, module, payload)
    line = memoryview(mark + b" " + codec.dumps(answer) + b"\n")
    while line:
        line = line[os.write(answers, line) :]
    os._exit(0)
