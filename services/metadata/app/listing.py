"""Page tokens and filters, AIP-158 and AIP-160 (the part of it that lists need)."""

from __future__ import annotations

import base64
import binascii
import json
import re

from services.common.errors import Reason, invalid
from services.metadata.model.page import Page

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000
MAX_TEXT = 2000
MAX_TOKEN = 64_000

_TERM = re.compile(r'([a-z_]+(?:\.[A-Za-z0-9_.-]+)?)\s*=\s*(?:"([^"]*)"|([^\s"]+))')


def page_of(
    page_size: int,
    page_token: str,
    *,
    filter_text: str = "",
    order_by: str = "",
    query: str = "",
) -> Page:
    """The page that a request asks for.

    Raises:
        VoxfleetError: INVALID_ARGUMENT, INVALID_PAGE_TOKEN.
    """
    if page_size < 0:
        raise invalid(Reason.INVALID_ARGUMENT, "page_size must not be negative", field="page_size")
    for field, text in (("filter", filter_text), ("query", query), ("page_token", page_token)):
        # Before anything reads them: a filter of a million blanks takes its parser minutes.
        if len(text) > (MAX_TOKEN if field == "page_token" else MAX_TEXT):
            raise invalid(Reason.INVALID_ARGUMENT, f"{field} is too long", field=field)
    if order_by not in ("", "create_time", "create_time desc"):
        raise invalid(
            Reason.INVALID_ARGUMENT, "order_by is `create_time` or `create_time desc`", field="order_by"
        )
    scope = [filter_text, order_by, query]
    after = ""
    if page_token:
        try:
            decoded = json.loads(base64.urlsafe_b64decode(page_token.encode()))
            after, token_scope = str(decoded["after"]), decoded["scope"]
        except (ValueError, binascii.Error, KeyError, TypeError, RecursionError):
            raise _bad_token() from None
        if token_scope != scope:
            raise _bad_token()
    return Page(
        size=min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE),
        after=after,
        filters=parse_filter(filter_text),
        query=query,
        ascending=order_by == "create_time",
    )


def next_token(after: str, *, filter_text: str = "", order_by: str = "", query: str = "") -> str:
    """The token of the page after the row at ``after``."""
    body = json.dumps({"after": after, "scope": [filter_text, order_by, query]})
    return base64.urlsafe_b64encode(body.encode()).decode()


def parse_filter(text: str) -> dict[str, str]:
    """Terms ``key=value`` joined by AND; a value with blanks stands in double quotes.

    Raises:
        VoxfleetError: INVALID_ARGUMENT where it is anything else.
    """
    terms: dict[str, str] = {}
    for part in re.split(r"\s+AND\s+", text.strip()) if text.strip() else []:
        found = _TERM.fullmatch(part.strip())
        if found is None:
            raise invalid(
                Reason.INVALID_ARGUMENT,
                f'cannot read the filter at {part[:60]!r}: write key=value AND key="two words"',
                field="filter",
            )
        terms[found[1]] = found[2] if found[2] is not None else found[3]
    return terms


def _bad_token() -> Exception:
    return invalid(
        Reason.INVALID_PAGE_TOKEN,
        "page_token is not from an answer to this same list: begin again without one",
        field="page_token",
    )
