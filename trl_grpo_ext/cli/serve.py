"""`grpo-ext serve`: an OpenAI-compatible proxy that adds a library's lessons to each chat request."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from trl_grpo_ext._secrets import Secret
from trl_grpo_ext.experience import ExperienceError
from trl_grpo_ext.serving import Libraries, ServeSettings

DESCRIPTION = """Add the lessons of a library to each chat request, and pass it on to an OpenAI-compatible endpoint.

Give http://HOST:PORT/v1 to any client as its base URL, or http://HOST:PORT/domains/DOMAIN/v1 for the lessons of one
domain. A library that changes is read again at the next request."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    found = argparse.ArgumentParser(
        prog="grpo-ext serve", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = found.add_argument
    add("--upstream", required=True, metavar="URL", help="the endpoint, like http://127.0.0.1:8000/v1")
    help_text = "a library, or DOMAIN=FILE for the library of one domain; may be given several times"
    add("--library", required=True, action="append", metavar="[DOMAIN=]FILE", help=help_text)
    add("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    add("--port", type=int, default=8100, help="port to listen on (8100)")
    add("--api-key-env", metavar="NAME", help="environment variable with the key that clients must send")
    add("--upstream-key-env", metavar="NAME", help="environment variable with the key for the endpoint")
    add("--max-body-bytes", type=int, default=4 * 2**20, metavar="N", help="of a request (4 MiB)")
    add("--timeout", type=float, default=600.0, metavar="SECONDS", help="without a byte from the endpoint (600)")
    add("--template", metavar="TEXT", help="what surrounds the lessons, with {experiences}; as in training")
    return found


def main(arguments: Sequence[str]) -> int:
    """Serve until Ctrl-C; 1: refused, with the reason on the error output."""
    given = parser().parse_args(list(arguments))
    try:
        settings, libraries = _settings(given), _libraries(given.library)
        return _serve(settings, libraries)
    except (ExperienceError, ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _settings(given: argparse.Namespace) -> ServeSettings:
    return ServeSettings(
        given.upstream,
        _key(given.upstream_key_env, "--upstream-key-env"),
        _key(given.api_key_env, "--api-key-env"),
        host=given.host,
        port=given.port,
        max_body_bytes=given.max_body_bytes,
        timeout=given.timeout,
        template=given.template,
    )


def _key(variable: str | None, option: str) -> Secret | None:
    return None if variable is None else Secret.from_environment(variable, option)


def _libraries(given: Sequence[str]) -> Libraries:
    default, domains = None, {}
    for item in given:
        domain, equals, path = item.partition("=")
        if not equals:
            if default is not None:
                raise ValueError(f"--library: {default} and {item} both have no domain; write DOMAIN={item}.")
            default = item
        elif not domain or not path or domain in domains:
            raise ValueError(f"--library: {item!r} must be DOMAIN=FILE, with another domain each time.")
        else:
            domains[domain] = path
    return Libraries(default, domains)


def _serve(settings: ServeSettings, libraries: Libraries) -> int:
    from trl_grpo_ext.serving import create_app

    app = create_app(settings, libraries)
    try:
        import uvicorn
    except ImportError:
        raise ImportError("serving needs uvicorn: pip install 'trl-grpo-ext[serve]'.", name="uvicorn") from None
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    # It logs every request's address by itself.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    print(f"serving http://{settings.host}:{settings.port}/v1 in front of {settings.upstream}", flush=True)
    # Its log of requests holds the query, where some clients put their key.
    uvicorn.run(app, host=settings.host, port=settings.port, access_log=False, log_level="warning")
    return 0
