"""The page at /docs: Swagger UI from this package's files, so that it works without internet access."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse, Response

from gateway.domain import AppOptions
from gateway.errors import NotFound

_FOLDER = Path(__file__).parent / "swagger_ui"
_TYPES = {
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css; charset=utf-8",
    "favicon-32x32.png": "image/png",
}
# Limited, because the file names stay the same when Swagger UI is updated.
_CACHE = {"Cache-Control": "public, max-age=3600"}


def check_enabled(options: AppOptions) -> None:
    """Raises NotFound if the documents are turned off."""
    if not options.has_docs:
        raise NotFound("This server does not describe its API (--disable-fastapi-docs).")


def add(app: FastAPI, options: Callable[[], AppOptions]) -> None:
    """Add the page and its files to `app`."""

    def page() -> HTMLResponse:
        check_enabled(options())
        root = options().root_path
        return get_swagger_ui_html(
            openapi_url=root + "/openapi.json",
            title="Sluice",
            swagger_js_url=root + "/docs/swagger-ui-bundle.js",
            swagger_css_url=root + "/docs/swagger-ui.css",
            swagger_favicon_url=root + "/docs/favicon-32x32.png",
            # By default a service on the internet would validate the document.
            swagger_ui_parameters={"validatorUrl": None},
        )

    def file(name: str) -> Response:
        check_enabled(options())
        if name not in _TYPES:
            raise NotFound(f"There is nothing at /docs/{name[:200]}.")
        return Response(_read(name), media_type=_TYPES[name], headers=_CACHE)

    app.add_api_route("/docs", page, include_in_schema=False)
    app.add_api_route("/docs/{name}", file, include_in_schema=False)


@cache
def _read(name: str) -> bytes:
    return (_FOLDER / name).read_bytes()
