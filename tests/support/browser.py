"""A headless Chromium, driven by selenium (make peers); Debian: chromium chromium-driver."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def missing() -> str:
    """Why there is none here; "" if there is."""
    if importlib.util.find_spec("selenium") is None:
        return "selenium is not installed (make peers)"
    there = shutil.which("chromedriver") and shutil.which("chromium")
    return "" if there else "no chromium and chromedriver here"


@contextmanager
def chromium(profile: Path, width: int = 1100, height: int = 800) -> Iterator[Any]:
    """A driver with a new profile; the console's lines are kept (`get_log("browser")`)."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        driver.set_window_size(width, height)
        yield driver
    finally:
        driver.quit()
