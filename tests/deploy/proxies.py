"""nginx and Envoy with the files that are shipped, changed only in addresses and ports."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import httpx
import yaml

from tests.charts.debian import program
from tests.deploy.processes import running
from tests.support.server import free_port

DEPLOY = Path(__file__).parents[2] / "deploy"
NGINX = DEPLOY / "nginx" / "sluice.conf"
ENVOY = DEPLOY / "envoy" / "envoy.yaml"
CADDY = DEPLOY / "caddy" / "Caddyfile"

# nginx itself comes without any of this; what a stock nginx.conf adds and matters here is in no file of ours.
_MAIN = """\
daemon off;
pid {folder}/nginx.pid;
error_log stderr warn;
{user}
worker_processes 1;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/sluice.conf;
}}
"""


class Upstream(Protocol):
    """What a proxy passes requests on to."""

    @property
    def port(self) -> int:
        """On this machine."""


def _open(port: int) -> bool:
    try:
        # Ours is not served; a 404 comes from the proxy itself.
        return httpx.get(f"http://127.0.0.1:{port}/metrics").status_code == 404
    except httpx.HTTPError:
        return False


@contextmanager
def nginx(folder: Path, servers: Sequence[Upstream], healthy: int | None = None) -> Iterator[int]:
    """nginx before these servers; its port. It does not look how many are healthy."""
    port = free_port()
    text = NGINX.read_text(encoding="utf-8")
    for line in re.findall(r"^    server gateway:8000.*$", text, flags=re.MULTILINE):
        lines = (line.replace("gateway:8000", f"127.0.0.1:{server.port}") for server in servers)
        text = text.replace(line, "\n".join(lines))
    assert text.count("listen 8080;") == 1
    text = text.replace("listen 8080;", f"listen 127.0.0.1:{port};")
    (folder / "sluice.conf").write_text(text, encoding="utf-8")
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(_MAIN.format(folder=folder, user=user), encoding="utf-8")
    with running([program("nginx"), "-c", f"{folder}/nginx.conf", "-p", str(folder)], folder, lambda: _open(port)):
        yield port


@contextmanager
def envoy(folder: Path, servers: Sequence[Upstream], healthy: int | None = None) -> Iterator[int]:
    """Envoy before these servers, once it has found so many healthy, or all; its port."""
    port = free_port()
    tree: dict[str, Any] = yaml.safe_load(ENVOY.read_text(encoding="utf-8"))
    (listener,), (cluster,) = tree["static_resources"]["listeners"], tree["static_resources"]["clusters"]
    # Else what is found healthy would get requests only a second later.
    cluster["common_lb_config"]["update_merge_window"] = "0s"
    listener["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": port}
    tree["admin"]["address"]["socket_address"]["port_value"] = admin = free_port()
    (endpoints,) = cluster["load_assignment"]["endpoints"]
    (template,) = endpoints["lb_endpoints"]
    assert template["endpoint"]["address"]["socket_address"] == {"address": "gateway", "port_value": 8000}
    endpoints["lb_endpoints"] = [
        {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": server.port}}}}
        for server in servers
    ]
    (folder / "envoy.json").write_text(json.dumps(tree), encoding="utf-8")

    def ready() -> bool:
        if not _open(port):
            return False
        text = httpx.get(f"http://127.0.0.1:{admin}/clusters").text
        return text.count("health_flags::healthy") == (healthy or len(servers))

    # The set-up installs it as a Python package.
    envoy_path = str(Path(sys.executable).with_name("envoy"))
    words = [envoy_path, "-c", f"{folder}/envoy.json", "--concurrency", "1", "--disable-hot-restart", "-l", "warn"]
    with running(words, folder, ready):
        yield port


@contextmanager
def caddy(folder: Path, servers: Sequence[Upstream]) -> Iterator[int]:
    """Caddy before these servers; its port."""
    port = free_port()
    text = CADDY.read_text(encoding="utf-8")
    assert (text.count(":8080 {"), text.count(" gateway:8000 ")) == (1, 1)
    text = text.replace(":8080 {", f":{port} {{\n\tbind 127.0.0.1")
    text = text.replace(" gateway:8000 ", f" {' '.join(f'127.0.0.1:{server.port}' for server in servers)} ")
    (folder / "Caddyfile").write_text(text, encoding="utf-8")
    words = [program("caddy"), "run", "--config", f"{folder}/Caddyfile", "--adapter", "caddyfile"]
    with running(words, folder, lambda: _open(port)):
        yield port


class Proxy(Protocol):
    """Starts one of them."""

    def __call__(
        self, folder: Path, servers: Sequence[Upstream], healthy: int | None = None
    ) -> AbstractContextManager[int]:
        """As `nginx` and `envoy`."""


PROXIES: dict[str, Proxy] = {"nginx": nginx, "envoy": envoy}
