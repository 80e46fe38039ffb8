"""The chat page in a real browser: streams, stops, compares, and shows whatever a model says as text."""

import json

import pytest

from serve.dialogue import Template
from serve.models import Offer
from serve.rows import Row
from tests.support import browser as browsers
from tests.support import exports
from tests.support.serving import served, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(browsers.missing()), reason=browsers.missing())]
EVIL = "<img src=x onerror=\"document.title='owned'\"> **b** `c<i>`\n```\n<script>document.title='owned'</script>\n```"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    work = tmp_path_factory.mktemp("page")
    tokenizer = exports.qwen_tokenizer(work / "tokenizer")
    folder = exports.export(work / "model", tokenizer, max_position_embeddings=4096)
    with served({"sft": Offer(folder), "base": Offer(folder, chat=False)}) as (address, models):
        yield address, models


@pytest.fixture
def browser(address, tmp_path):
    with browsers.chromium(tmp_path / "p") as driver:
        driver.get(address[0])
        wait_for(
            lambda: driver.execute_script("return document.getElementById('model-a').options.length") == 2
        )
        yield driver


def by(driver, identity):
    return driver.find_element("id", identity)


def ask(driver, text):
    from selenium.webdriver.common.keys import Keys

    by(driver, "text").send_keys(text + Keys.ENTER)


def turns(driver):
    """[(role, text, facts)] of each side."""
    return driver.execute_script(
        "return [...document.querySelectorAll('.side')].map(side => [...side.querySelectorAll('.turn')].map(turn => "
        "[turn.classList[1], turn.querySelector('.text').textContent, turn.querySelector('.facts')?.textContent ?? '']))"
    )


def idle(driver):
    wait_for(lambda: not by(driver, "stop").is_enabled())


def dialogue(driver):
    return json.loads(driver.execute_script("return localStorage.getItem('steel.dialogue')"))


def test_a_question_is_answered_and_asked_again(browser):
    by(browser, "tokens").clear()
    ask(browser, "")
    assert turns(browser) == [[]], "nothing is not sent"
    by(browser, "tokens").send_keys("12")
    ask(browser, "你是谁？")
    idle(browser)
    ((question, reply),) = turns(browser)
    assert question[:2] == ["user", "你是谁？"]
    assert "tokens" in reply[2]
    assert "sft" in reply[2]
    by(browser, "again").click()
    idle(browser)
    assert [turn[:2] for turn in turns(browser)[0]] == [question[:2], reply[:2]], "greedy: the same"
    saved = dialogue(browser)
    assert saved["format"] == "steel-dialogue"
    assert [turn["role"] for turn in saved["sides"][0]["turns"]] == ["user", "assistant"]
    browser.refresh()
    wait_for(lambda: len(turns(browser)[0]) == 2)


def test_stop_stops_the_server_and_the_half_is_not_sent_back(browser, address, monkeypatch):
    from serve.engine import Engine

    monkeypatch.setattr(Engine, "ends", frozenset())
    engine = address[1].get("sft").engine
    by(browser, "tokens").clear()
    by(browser, "tokens").send_keys("4000")
    ask(browser, "a")
    wait_for(lambda: engine.load == 1 and len(turns(browser)[0]) == 2 and turns(browser)[0][1][1])
    by(browser, "stop").click()
    wait_for(lambda: engine.load == 0)
    idle(browser)
    assert "stopped" in turns(browser)[0][1][2]
    sent = []
    monkeypatch.setattr(Template, "ids", lambda self, messages: sent.append(messages) or [1])
    by(browser, "tokens").clear()
    by(browser, "tokens").send_keys("2")
    ask(browser, "b")
    idle(browser)
    assert sent == [[{"role": "user", "content": "b"}]]


def test_two_models_side_by_side(browser):
    by(browser, "compare").click()
    by(browser, "tokens").clear()
    by(browser, "tokens").send_keys("5")
    ask(browser, "水")
    idle(browser)
    sides = turns(browser)
    assert [side[0][:2] for side in sides] == [["user", "水"]] * 2
    assert "sft" in sides[0][1][2]
    assert "base" in sides[1][1][2]
    assert [side["model"] for side in dialogue(browser)["sides"]] == ["sft", "base"]


def test_what_a_model_says_is_text(browser, monkeypatch):
    from serve.rows import Event

    def say(self, logits, best, known):
        self.made.append(best)
        self.over = True
        self.tell(Event(EVIL, (), (), "stop"))

    monkeypatch.setattr(Row, "take", say)
    ask(browser, EVIL.replace("\n", " "))
    idle(browser)
    assert "onerror" in turns(browser)[0][1][1]
    assert browser.title == "Steel"
    assert not browser.find_elements("css selector", "#sides img, #sides script, #sides i")
    assert browser.find_element("css selector", ".turn.assistant pre code").text.startswith("<script>")
    messages = [line["message"] for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    assert not messages, "nothing was refused, nothing failed"


def test_enter_that_takes_a_word_of_an_input_method_does_not_send(browser):
    by(browser, "text").send_keys("zhong")
    press = "document.getElementById('text').dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', bubbles: true%s}))"
    browser.execute_script(press % ", isComposing: true")
    browser.execute_script(press % ", keyCode: 229")
    browser.execute_script(press % ", shiftKey: true")
    assert turns(browser) == [[]]
    browser.execute_script(press % "")
    wait_for(lambda: len(turns(browser)[0]) == 2)
    idle(browser)


def test_the_page_asks_nobody_else(browser, address):
    asked = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert asked
    assert all(place.startswith(address[0]) for place in asked)


def test_a_dialogue_that_was_exported_can_be_read_again(browser, tmp_path):
    turn = {"role": "assistant", "content": EVIL, "facts": "x"}
    kept = {
        "format": "steel-dialogue",
        "sides": [{"model": "sft", "turns": [{"role": "user", "content": "q"}, turn]}],
    }
    (tmp_path / "d.json").write_text(json.dumps(kept))
    by(browser, "import").send_keys(str(tmp_path / "d.json"))
    wait_for(lambda: len(turns(browser)[0]) == 2)
    assert browser.title == "Steel"
    (tmp_path / "bad.json").write_text("[]")
    by(browser, "import").send_keys(str(tmp_path / "bad.json"))
    wait_for(lambda: "no dialogue" in by(browser, "notice").text)
    assert len(turns(browser)[0]) == 2
