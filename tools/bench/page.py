# SPDX-License-Identifier: GPL-3.0-or-later
"""How does a table get into a document that people write? Between two marks, which stay. Pure."""


class UnmarkedError(ValueError):
    """The document has no place for the table."""


def replace_marked(page: str, name: str, content: str) -> str:
    """The page with other content between the marks of a name.

    Raises:
        UnmarkedError: the two marks are not there, once each and in their order.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed or begin in after or end in after:
        raise UnmarkedError(f"the page needs one {begin} and, after it, one {end}")
    return f"{before}{begin}\n\n{content.strip()}\n\n{end}{after}"
