"""The published weights of a model, downloaded once and kept as a weights file in the cache."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from torch import Tensor

from shiftproof.base.field_error import FieldError
from shiftproof.base.files import cache_folder, locked, write_bytes
from shiftproof.base.text import one_line
from shiftproof.models.build import find_model
from shiftproof.models.model import Published
from shiftproof.models.weights import LICENCE, NORMALISATION, SOURCE

HUB = Path("hub")
"""Where a weights file can be named: the model's published weights."""
SECONDS = 2.0
"""What takes a server longer to answer is out of reach."""


def published_weights(model: str) -> Published:
    """Return what is known of the published weights of a model, without a network.

    Raises:
        FieldError: none are known.
        ValueError: the model is unknown.
    """
    published = find_model(model).published
    if published is None:
        raise FieldError(
            "weights",
            f"no published weights of model '{model}' are known: name a file, or a model of timm that has some",
        )
    return published()


def hub_weights(model: str) -> Path:
    """Return the file of a model's published weights, which are downloaded on first use.

    The file states in its metadata what they are, their licence and the normalisation of images. It depends on nothing
    but the published weights, and so does its fingerprint.

    Raises:
        FieldError: no weights are known, they cannot be downloaded, or there is no place for them. Without a network it
            comes within `SECONDS`.
        ValueError: the model is unknown.
    """
    published = published_weights(model)
    name = "weights/" + re.sub(r"[^.\w-]", "-", published.name) + ".safetensors"
    try:
        file = cache_folder(holding=name) / name
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            with locked(file.with_suffix(".lock"), f"{published.name}: waiting for another process that downloads it"):
                if not file.exists():
                    _keep(file, published, _downloaded(published))
    except OSError as error:
        raise FieldError("weights", f"there is no place for the weights {published.name}: {error}") from error
    return file


def _keep(file: Path, published: Published, tensors: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save

    facts = {SOURCE: f"hub: {published.name}", NORMALISATION: str(published.normalisation)}
    if published.licence:
        facts[LICENCE] = published.licence
    # copies, because tensors that share memory cannot be saved
    content = save({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, facts)
    write_bytes(file, _in_order(content))


def _in_order(content: bytes) -> bytes:
    """Return a safetensors file whose metadata are sorted; the library writes them in another order every time.

    Only so has the file the same fingerprint wherever it was downloaded. A header is JSON behind its length of eight
    bytes, padded by spaces.
    """
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def _downloaded(published: Published) -> Mapping[str, Tensor]:
    if not published.is_here() and (reason := _out_of_reach(published.address)):
        raise FieldError(
            "weights",
            f"the weights {published.name} are not on this machine, and {urlsplit(published.address).netloc} cannot be "
            f"reached ({reason}): download them where it can, and name their file",
        )
    try:
        return published.read()
    except Exception as error:  # of many types, by what fails
        text = one_line(str(error).strip().partition("\n")[0])
        raise FieldError(
            "weights", f"the weights {published.name} cannot be downloaded ({type(error).__name__}: {text})"
        ) from error


def _out_of_reach(address: str) -> str:
    """Return why the server of an address cannot be reached, within `SECONDS`; "" if it can.

    The libraries that download try for most of a minute, and looking up a name alone can take longer than any timeout.
    """
    answers = [f"no answer within {SECONDS:g} s"]

    def ask() -> None:
        answers.append(_answer(address))

    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return answers[-1]


def _answer(address: str) -> str:
    try:
        build_opener(_Stay).open(Request(address, method="HEAD"), timeout=SECONDS).close()  # noqa: S310  (https)
    except HTTPError:
        return ""  # whatever it says, it is there
    except URLError as error:
        # Whom to trust is for the libraries to say.
        return "" if isinstance(error.reason, ssl.SSLError) else str(error.reason)
    except (OSError, HTTPException) as error:
        return f"{type(error).__name__}: {error}"
    return ""


class _Stay(HTTPRedirectHandler):
    """Takes a redirection for an answer."""

    def redirect_request(self, *_: Any) -> None:
        return None
