"""Talking to the Hub: tried again where that can help, and errors that say what to do."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import uniform
from typing import Any, TypeVar

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

from saft_hf.errors import SAFTHubError

logger = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_SECONDS = 300.0
"""How long a request that failed is tried again before we give up."""
ANSWER_SECONDS = 300.0
"""How long the Hub may be silent: the clients themselves would wait forever."""
FIRST_WAIT = 1.0
"""Seconds before the second try; the wait doubles from there."""
LONGEST_WAIT = 30.0
"""Seconds, where the Hub does not ask for more."""
LOG_IN = "log in with `hf auth login`, set HF_TOKEN, or pass `token=`"

_PASSING = {408, 409, 412, 429, 500, 502, 503, 504}
# The classes belong to whichever HTTP client huggingface_hub uses (requests, httpx), or to Python.
_LOST = {"NetworkError", "RemoteProtocolError", "TimeoutException", "ConnectionError", "Timeout", "TimeoutError"}
_OWN = (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
_TOKEN = re.compile(r"hf_\w{4,}|(?<=Bearer )\S+")
_QUERY = re.compile(r"(?<=\?)\S*(?:sig|Signature|token)=\S*", re.IGNORECASE)


@dataclass(frozen=True)
class Repository:
    """A repository on the Hub, and who asks for it.

    Attributes:
        repo_id: `user/name`.
        repo_type: `model` or `dataset`.
        revision: branch, tag or commit; None for the main branch.
        token: of the user; None for the one that is logged in.
    """

    repo_id: str
    repo_type: str = "model"
    revision: str | None = None
    token: str | bool | None = field(default=None, repr=False)

    @property
    def api(self) -> HfApi:
        """The client, with this token."""
        return HfApi(token=self.token, library_name="saft_hf")

    def __str__(self) -> str:
        return f"the {self.repo_type} repository {self.repo_id}"


def with_retries(action: Callable[[], T], where: Repository, seconds: float | None = None) -> T:
    """Do something with the Hub; where the network or the Hub fails in passing, do it again.

    The clients repeat downloads and uploads, but not a commit: one that answers 5xx, 409, 412 or 429, or whose answer
    is lost, ends them. So the action must be one that may be repeated: it looks at what is there each time.

    Args:
        action: called until it returns.
        where: what it talks to, for messages.
        seconds: how long it is tried; by default `RETRY_SECONDS`.

    Returns:
        What the action returns.

    Raises:
        SAFTHubError: the Hub refuses (the message says why), or fails for longer than that. The message holds no
            token.
    """
    check_token(where.token or get_token())
    seconds = RETRY_SECONDS if seconds is None else seconds
    deadline = time.monotonic() + seconds
    wait = FIRST_WAIT
    with _no_endless_silence():
        while True:
            try:
                return action()
            except Exception as error:
                source = _of_the_hub(error)
                if source is None:
                    raise
                pause = max(wait * uniform(0.5, 1.5), _asked_to_wait(source))  # noqa: S311 - no secret
                if not _is_passing(source) or time.monotonic() + pause > deadline:
                    # Not `from error`: the traceback of some clients shows the request's headers.
                    raise SAFTHubError(_why(error, source, where, seconds)) from None
                logger.warning("%s: %s. Trying again in %.1f s.", where, _said(source, where), pause)
            time.sleep(pause)
            wait = min(2 * wait, LONGEST_WAIT)


def redact(text: str, token: str | bool | None = None) -> str:
    """Take out of a text what nobody else may read: tokens, and the signatures of storage addresses.

    Args:
        text: that others may see.
        token: taken out wherever it is, beside the one that is logged in and what looks like one.
    """
    for secret in (token, get_token()):
        if isinstance(secret, str) and secret:
            text = text.replace(secret, "[token]")
    return _QUERY.sub("...", _TOKEN.sub("[token]", text))


def check_token(token: str | bool | None) -> None:
    """Refuse a token that cannot be sent: some clients show the header in their error.

    Raises:
        SAFTHubError: it holds what no token does. The message does not show it.
    """
    if isinstance(token, str) and not re.fullmatch("[!-~]+", token):
        raise SAFTHubError(f"the token holds spaces, line ends or letters that no token has: {LOG_IN}")


@contextmanager
def _no_endless_silence() -> Iterator[None]:
    session: Any = get_session()
    before = getattr(session, "timeout", None)
    session.timeout = ANSWER_SECONDS
    try:
        yield
    finally:
        session.timeout = before


def _of_the_hub(error: BaseException | None) -> BaseException | None:
    """The error of the Hub or the network that this one is, or was raised from; None where it is another's."""
    while error is not None:
        cause = error.__cause__
        # A file that could not be fetched: what kept it from being fetched says more.
        if not (isinstance(error, LocalEntryNotFoundError) and cause) and (isinstance(error, _OWN) or _is_lost(error)):
            return error
        error = cause
    return None


def _is_lost(error: BaseException) -> bool:
    return any(kind.__name__ in _LOST for kind in type(error).__mro__)


def _is_passing(error: BaseException) -> bool:
    if isinstance(error, OfflineModeIsEnabled):
        return False
    status = _status(error)
    return _is_lost(error) if status is None else status in _PASSING


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None) if isinstance(error, HfHubHTTPError) else None
    return None if response is None else int(response.status_code)


def _asked_to_wait(error: BaseException) -> float:
    response = getattr(error, "response", None)
    asked = "" if response is None else response.headers.get("retry-after", "")
    return float(asked) if asked.isdigit() else 0.0


def _said(error: BaseException, where: Repository) -> str:
    """What the Hub or the client said, in a line."""
    status = _status(error)
    own = getattr(error, "server_message", None) or str(error) or type(error).__name__
    line = " ".join(redact(own, where.token).split())
    return line[:500] if status is None else f"status {status}: {line[:500]}"


def _why(error: BaseException, source: BaseException, where: Repository, seconds: float) -> str:
    """Why it failed for good, and how to fix it."""
    status = _status(source)
    has_token = bool(where.token or get_token())
    if isinstance(source, OfflineModeIsEnabled):
        return f"{where} cannot be reached: HF_HUB_OFFLINE is set. Unset it"
    if isinstance(source, LocalEntryNotFoundError):
        return f"{where} was never fetched to this machine, and the Hub cannot be reached ({_said(source, where)})"
    if isinstance(source, GatedRepoError):
        return f"{where} is gated: ask for access on its page, then {LOG_IN}"
    if isinstance(source, RevisionNotFoundError):
        return f"{where} has no revision {where.revision!r}"
    if isinstance(source, LocalTokenNotFoundError) or (status in (401, 403, 404) and not has_token):
        return f"{where} is not there, or not open to everybody, and there is no token: {LOG_IN}"
    if isinstance(source, RepositoryNotFoundError):
        return f"{where} is not there, or this token has no access to it: check the name and the token"
    if status == 401:
        return f"the Hub does not know this token: make a new one, then {LOG_IN}"
    if status == 403:
        return _forbidden(where) + f" ({_said(source, where)})"
    said = redact(" ".join(str(error).split()), where.token)[:500] if source is not error else _said(source, where)
    if _is_passing(source):
        return f"{where} could not be reached for {seconds:.0f} s ({said}). Try again later"
    return f"{where}: the Hub refuses ({said})"


def _forbidden(where: Repository) -> str:
    try:
        me = where.api.whoami()
        role = me["auth"]["accessToken"]["role"]
    except (HfHubHTTPError, KeyError):
        me, role = {"name": "its user"}, "unknown"
    if role == "read":
        return f"{where} cannot be written: the token of {me['name']} is read-only. Make one that may write"
    return (
        f"{where} cannot be written: {me['name']} has no right to, or the token is not allowed to. Name a "
        "repository of your own, or open a pull request with `create_pr=True`"
    )
