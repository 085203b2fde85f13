"""Run untrusted programs: no daemon, no root, and nothing left behind.

`Sandbox` starts a jail (`jail`, `zygote`) at the first program and runs each program in isolation (`case`, `runner`);
`client` is the caller's side, `limits` what may be set and what is reported, `codec` the form in which values travel,
`referee` and `remote` the two sides of tests that are code. Standard library only.
"""

from .client import CaseResult, Job, Sandbox
from .limits import Level, Limits, Report, SandboxError

__all__ = ["CaseResult", "Job", "Level", "Limits", "Report", "Sandbox", "SandboxError"]
