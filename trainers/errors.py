"""Failures that are explained to the person at the graph."""


class UserError(Exception):
    """A problem that the user can solve. Its text says what is wrong, in which field or file, and what to do."""


class Cancelled(Exception):
    """The run was stopped on request, after its work was saved."""
