"""The page: valid HTML, reachable by keyboard, sorted the best first, and each column under its own name."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from importlib import resources

import pytest

from tests.bench.test_comparison import HARD, result_of, system
from tests.reports.checked import checked
from vidchat.bench.report_page import write_page

node = shutil.which("node")


@pytest.fixture
def page(tmp_path):
    odd = system("<b>&'\"", HARD, dimension="audio-visual sync", string="metric=<M>; 'quoted'")
    systems = [system("truth", HARD + 2), system("ours", HARD + 1), odd, system("none", [math.nan] * 30)]
    return write_page([result_of(*systems, date="2031-02-03 04:05 UTC")], tmp_path / "index.html", 0).read_text()


def test_the_page_is_valid_and_its_links_lead_somewhere(page):
    links = checked(page).values("href")
    assert {"#protocol", "#pairs", "#clips", "#video-quality", "#audio-visual-sync"} <= set(links), "contents"
    assert "scored on 2031-02-03 04:05 UTC" in page


def test_a_column_leads_to_its_own_protocol_string(page):
    heads = re.findall(r'<th scope="col"><a href="#(number-\d+)"', page)
    assert len(heads) == 2
    for place in heads:
        assert f'<tr id="{place}">' in page
    assert "metric=&lt;M&gt;; &#39;quoted&#39;" in page


def script(*names):
    return "\n".join((resources.files("vidchat.reports") / "templates" / name).read_text() for name in names)


def played(code):
    done = subprocess.run([node, "-e", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(node is None, reason="needs node")
@pytest.mark.parametrize(
    ("better", "first", "last"),
    [("higher", 5, -4), ("lower", -4, 5)],
)
def test_the_first_click_shows_the_best_and_the_second_the_worst(better, first, last):
    code = (
        script("sort.js")
        + f"""
    const rows = [3, null, 1, 5, undefined, -4];
    const order = backwards => ranked(rows, value => costOf("{better}", value), backwards);
    console.log(JSON.stringify([order(false), order(true)]));"""
    )
    once, twice = played(code)
    assert (once[0], once[3], once[4:]) == (first, last, [None, None]), "what has no value is last"
    assert (twice[0], twice[3], twice[4:]) == (last, first, [None, None])


@pytest.mark.skipif(node is None, reason="needs node")
def test_aria_sort_states_the_direction():
    code = (
        script("sort.js")
        + """
    const both = better => [direction(better, false), direction(better, true)];
    console.log(JSON.stringify(["higher", "lower", undefined].map(both)));
    """
    )
    up, down = "ascending", "descending"
    assert played(code) == [[down, up], [up, down], [up, down]]


DOM = """
class Element {
  constructor(tag) { Object.assign(this, { tag, children: [], attributes: {}, dataset: {}, textContent: "" }); }
  setAttribute(name, value) { this.attributes[name] = String(value); }
  append(...more) { this.children.push(...more); }
  replaceChildren(...more) { this.children = more; }
  all() { return this.children.flatMap(child => child.all ? [child, ...child.all()] : []); }
  querySelectorAll(what) { return this.all().filter(one => one.tag === what); }
  querySelector(what) { return this.all().find(one => one.tag === what.split("[")[0]) ?? null; }
  focus() { focused = this; }
}
let focused = null;
const places = {}, document = {
  createElement: tag => new Element(tag),
  getElementById: id => places[id] ??= Object.assign(new Element(id), { value: "" }),
};
const every = document.getElementById("every");
every.tHead = new Element("thead"); every.tBodies = [new Element("tbody")];
every.querySelector = () => new Element("button");
"""


@pytest.mark.skipif(node is None, reason="needs node")
def test_column_heads_are_buttons_that_sort(page):
    data = re.search(r'id="data">(.*?)</script>', page, re.S)[1]
    code = DOM + f"document.getElementById('data').textContent = {json.dumps(data)};" + script("sort.js", "bench.js")
    code += """
    const head = () => every.tHead.children[0].children.find(cell => cell.children[0].dataset.name === "M");
    const shownNow = () => every.tBodies[0].children.map(row => Number(row.children[2].textContent));
    const steps = [];
    for (let click = 0; click < 2; click++) {
      head().children[0].onclick();
      steps.push({ tag: head().children[0].tag, sort: head().attributes["aria-sort"], values: shownNow(),
        focused: focused.dataset.name });
    }
    console.log(JSON.stringify(steps));"""
    once, twice = played(code)
    values = sorted((round(value + 1, 3) for value in HARD), reverse=True)
    assert once == {"tag": "button", "sort": "descending", "values": pytest.approx(values, abs=1e-3), "focused": "M"}
    assert twice["sort"] == "ascending"
    assert twice["values"] == pytest.approx(values[::-1], abs=1e-3)
