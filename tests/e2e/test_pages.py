"""Prefect's and MLflow's pages in a real browser, as somebody sees them who has the password and nothing else.

STEEL_PICTURES=folder keeps a picture of each page.
"""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import pytest

from tests.support.browser import chromium, missing
from tests.support.house import House, until

UNTIL = os.environ.get("STEEL_PICTURES_UNTIL", "convert")
pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    house = House(tmp_path_factory.mktemp("house"))
    try:
        done = house.run("--until", UNTIL)
        assert done.returncode == 0, done.stdout + done.stderr
        yield house
    finally:
        house.steel("down", "--cancel")


@pytest.fixture
def browser(tmp_path):
    with chromium(tmp_path / "profile", 1400, 1000) as driver:
        yield driver


def address(house: House, server: str, auth: bool = False) -> str:
    port = json.loads((house.folder / "state/ports.json").read_text())[server]
    return f"http://{password(house) + '@' if auth else ''}127.0.0.1:{port}"


def password(house: House) -> str:
    return (house.folder / "state/auth").read_text().strip()


def text(browser) -> str:
    return browser.find_element("tag name", "body").text


def shows(browser, *wanted: str) -> None:
    until(lambda: all(each in text(browser) for each in wanted), 60)


def shows_no_error(browser) -> None:
    """A notice of an error comes some moments after the page, and goes again."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        assert not re.search(r"[A-Z]+_[A-Z_]+: |not offered here", text(browser))
        time.sleep(0.2)


def keep(browser, name: str) -> None:
    if folder := os.environ.get("STEEL_PICTURES"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        browser.save_screenshot(f"{folder}/{name}.png")


def test_mlflow_opens_on_the_trainings(house, browser):
    browser.get(address(house, "mlflow", auth=True))  # the browser remembers the password
    shows(browser, "Experiments")
    browser.get(address(house, "mlflow") + "/#/experiments")
    shows(browser, "steel")
    browser.find_element("link text", "steel").click()
    shows(browser, "pipeline-smoke")
    assert "workflowType=machine_learning" in browser.current_url
    assert "Welcome to MLflow Assistant" not in text(browser)
    shows_no_error(browser)
    keep(browser, "mlflow-runs")


def test_mlflow_shows_what_a_run_was(house, browser):
    browser.get(address(house, "mlflow", auth=True))
    browser.get(house.latest("run.json")["mlflow_url"])
    shows(browser, "pipeline-smoke", "profile", "Description")
    shows_no_error(browser)
    keep(browser, "mlflow-run")


def test_prefect_asks_for_the_password_and_shows_the_run(house, browser):
    from selenium.webdriver.common.keys import Keys

    browser.get(address(house, "prefect"))
    shows(browser, "Login")
    assert "smoke" not in text(browser)
    browser.find_element("css selector", "input[type=password]").send_keys(password(house) + Keys.ENTER)
    shows(browser, "Flow Runs")
    browser.get(address(house, "prefect") + "/runs")
    shows(browser, "smoke until")
    run = house.latest("run.json")["flow_run_id"]
    browser.get(f"{address(house, 'prefect')}/runs/flow-run/{run}")
    shows(browser, "smoke until", "Completed", "Task Runs", "Artifacts")
    keep(browser, "prefect-run")
    browser.find_element("css selector", "li#artifacts").click()
    shows(browser, "configuration", "profile smoke, resolved")
    keep(browser, "prefect-artifacts")
