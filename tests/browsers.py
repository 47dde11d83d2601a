"""A real browser without a screen: Chromium, driven as WebDriver has it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from selenium import webdriver

from worker.embedded import ServerFailedError

_FLAGS = (
    "--headless=new",
    "--hide-scrollbars",
    "--no-sandbox",  # which root is refused, and most containers
    "--disable-dev-shm-usage",  # /dev/shm of a container is small
    # It asks nobody but the page.
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
#: The page is 1440 x 900, and a picture of it 1280 x 800.
_WINDOW = {"width": 1440, "height": 900, "deviceScaleFactor": 8 / 9, "mobile": False}


@contextmanager
def running_chromium() -> Iterator[webdriver.Chrome]:
    """A Chromium, until the end of the block.

    Raises:
        ServerFailedError: it is not installed.
    """
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not chromedriver:
        raise ServerFailedError("no Chromium: chromium and chromedriver are not on PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in _FLAGS:
        options.add_argument(flag)
    with webdriver.Chrome(options, webdriver.ChromeService(chromedriver)) as browser:
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", _WINDOW)
        yield browser
