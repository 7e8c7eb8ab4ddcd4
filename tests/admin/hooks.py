"""The run leaves the key alone that it comes with, and its owner: what came after their end would test nothing."""

import os

import schemathesis

OWN = set(os.environ["HEARTH_OWN"].split())
# An id as they are, and nobody's.
NOBODY = "AAAAAAAAAA"


@schemathesis.hook
def before_call(_context, case, _kwargs):
    names = case.path_parameters or {}
    if case.method.upper() != "GET" and names.get("id") in OWN:
        names["id"] = NOBODY
