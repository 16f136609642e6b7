"""A real Prometheus with the file that is shipped, changed only in targets, times and where the rules are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.charts.chart import CHART
from tests.charts.debian import program
from tests.deploy.processes import running
from tests.deploy.proxies import DEPLOY
from tests.support.server import free_port

CONFIG = DEPLOY / "prometheus" / "prometheus.yml"
EVERY_S = 1.0
"""Between two looks, at the servers and at the rules."""

Json = dict[str, Any]


class Prometheus:
    """What it answers."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=30)

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, **parameters: Any) -> Any:
        """The data of an answer; an error of the query's fails the test with its words."""
        body = self._http.get(f"/api/v1/{path}", params=parameters).json()
        assert body["status"] == "success", f"{parameters}: {body.get('error')}"
        return body["data"]

    def query(self, expression: str) -> list[Json]:
        """The elements of the result now."""
        data = self.get("query", query=expression)
        assert data["resultType"] == "vector", f"{expression}: a {data['resultType']}"
        found: list[Json] = data["result"]
        return found

    def query_range(self, expression: str, start_s: float, end_s: float, step_s: float) -> list[Json]:
        """The series of the result between two times."""
        data = self.get("query_range", query=expression, start=start_s, end=end_s, step=step_s)
        found: list[Json] = data["result"]
        return found

    def rules(self) -> list[Json]:
        """Every rule, with how its last evaluation went."""
        return [rule for group in self.get("rules")["groups"] for rule in group["rules"]]

    def targets(self) -> list[Json]:
        """Every target, with how its last scrape went."""
        found: list[Json] = self.get("targets", state="active")["activeTargets"]
        return found


@contextmanager
def prometheus(folder: Path, groups: Mapping[str, Sequence[int]]) -> Iterator[Prometheus]:
    """Prometheus that looks at these ports; each group is a namespace, and one port may be in several."""
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": f"{EVERY_S:g}s", "evaluation_interval": f"{EVERY_S:g}s"}
    (scrape,) = config["scrape_configs"]
    (static,) = scrape["static_configs"]
    scrape["static_configs"] = [
        {"targets": [f"127.0.0.1:{port}" for port in ports], "labels": static["labels"] | {"namespace": namespace}}
        for namespace, ports in groups.items()
    ]
    config["rule_files"] = [str(CHART / "files" / "rules" / "*.yaml")]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    port = free_port()
    words = [
        program("prometheus"),
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return httpx.get(f"{url}/-/ready").status_code == 200
        except httpx.HTTPError:
            return False

    with running(words, folder, answers):
        one = Prometheus(url)
        try:
            yield one
        finally:
            one.close()


__all__ = ["CONFIG", "EVERY_S", "Prometheus", "prometheus"]
