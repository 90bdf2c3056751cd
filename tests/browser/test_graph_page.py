"""A person uses the page of attribution graphs with the mouse, the slider and the keyboard."""

import pytest

from implicit_reasoning.dictionaries.graphs.page import KIND, make_page
from implicit_reasoning.pages import write_page
from tests.dictionaries.graphs.hand_made import NAMES, hand_made

pytestmark = pytest.mark.browser

SEVEN, EIGHT = (f"feature {number} of MLP 0 at r1" for number in (7, 8))
BRIDGE = f"e2 = {NAMES[1]}"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "graph.html"
    write_page(path, make_page(hand_made()), KIND)
    return path.as_uri()


def node(page, name):
    """Return the visible node whose accessible name begins with a text."""
    return page.locator(f'#nodes .node:not(.gone)[aria-label^="{name}"]')


def card(page):
    return page.locator("#card .card")


def near(page):
    """Return the number of edges that are highlighted."""
    return page.locator("#edges .edge.near").count()


def test_pointing_shows_a_card_and_leaving_hides_it(address, open_page):
    page = open_page(address)
    assert page.locator("#step-text").inner_text() == "step 2,000"
    node(page, SEVEN).hover()
    said = card(page).inner_text()
    for text in (SEVEN, f"stands for {BRIDGE} (F1 0.90)", "Activation 1.50", "a, <i>c"):
        assert text in said
    # The edges are those of the arrays: 4 and -1 come in, 3 goes out.
    assert "+4.00 (80%)" in said and "−1.00 (20%)" in said and "+3.00 (67%)" in said  # noqa: RUF001
    assert near(page) == 3
    page.mouse.move(2, 2)
    assert card(page).count() == 0 and near(page) == 0


def test_a_click_chooses_and_escape_ends_the_choice(address, open_page):
    page = open_page(address)
    node(page, SEVEN).click()
    page.mouse.move(2, 2)
    assert SEVEN in card(page).inner_text() and near(page) == 3
    assert node(page, SEVEN).get_attribute("aria-pressed") == "true"
    # The card leads along an edge to the source.
    card(page).get_by_role("button", name="embedding of r at r1").click()
    assert card(page).locator("h3").inner_text() == "embedding of r at r1"
    page.keyboard.press("Escape")
    assert card(page).count() == 0 and near(page) == 0


def test_the_slider_changes_the_graph_and_a_node_keeps_its_place(address, open_page):
    page = open_page(address)
    place = node(page, SEVEN).locator(".shape").bounding_box()
    middle = [place[side] + place[length] / 2 for side, length in (("x", "width"), ("y", "height"))]
    filled = node(page, SEVEN).locator(".shape.of-e2")
    assert filled.count() == 1 and node(page, EIGHT).count() == 1
    assert page.locator("#now-replacement").inner_text() == "0.50"
    page.locator("#step").focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#step-text").inner_text() == "step 10"
    assert "Step 10: bridge share 0.13" in page.locator("#status").inner_text()
    there = node(page, SEVEN).locator(".shape").bounding_box()
    assert [
        there[side] + there[length] / 2 for side, length in (("x", "width"), ("y", "height"))
    ] == pytest.approx(middle, abs=0.6)
    # It stands for another value here, so it is not filled; the other feature is not there.
    assert filled.count() == 0 and node(page, EIGHT).count() == 0
    assert page.locator("#node-rows tr").count() == 9
    assert page.locator("#steps tr.now th").inner_text() == "10"


def test_all_is_possible_by_keyboard(address, open_page):
    page = open_page(address)
    page.locator("#joined").focus()
    page.keyboard.press("Tab")
    assert name_of_focus(page).startswith("embedding of a at e1")
    page.keyboard.press("ArrowRight")
    assert name_of_focus(page).startswith("embedding of r at r1")
    page.keyboard.press("ArrowUp")
    assert name_of_focus(page).startswith(SEVEN)
    page.keyboard.press("Enter")
    assert node(page, SEVEN).get_attribute("aria-pressed") == "true"
    # The buttons of its card come next, and a button keeps the focus when it is pressed.
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert name_of_focus(page) == f"Unpin {SEVEN}"
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowRight")
    assert name_of_focus(page).startswith(EIGHT)
    assert page.locator("#pins h3").inner_text() == SEVEN
    page.keyboard.press("p")
    page.keyboard.press("Escape")
    page.locator("#step").focus()
    page.keyboard.press("ArrowLeft")
    pinned = page.locator("#pins .card").all_inner_texts()
    assert "Activation 2.50" in pinned[0] and "Not in the graph at step 10." in pinned[1]
    unpin = page.get_by_role("button", name=f"Unpin {EIGHT}")
    unpin.press("Enter")
    assert page.locator("#pins h3").all_inner_texts() == [SEVEN]


def name_of_focus(page):
    return page.evaluate("document.activeElement.getAttribute('aria-label')")


def test_joined_supernodes_sum_their_edges(address, open_page):
    page = open_page(address)
    page.get_by_label("Join supernodes").check()
    joined = node(page, f"supernode {BRIDGE} of MLP 0 at r1, 2 features")
    joined.click()
    assert node(page, SEVEN).count() == 0 and joined.locator("text").first.text_content() == "×2"  # noqa: RUF001
    # 3 and 1.5 go to the row of r2.
    assert "supernode r2 = s of MLP 1 at r2\t+4.50" in card(page).inner_text()


def test_the_share_of_flow_hides_edges(address, open_page):
    page = open_page(address)
    page.locator("#shown").fill("100")
    assert page.locator("#edges .edge").count() == 5
    assert page.locator("#edges .edge.away").count() == 1
    page.locator("#shown").fill("5")
    assert page.locator("#edges .edge").count() == 1


def test_it_plays(address, open_page):
    page = open_page(address)
    page.get_by_role("button", name="Play").click()
    assert page.locator("#step-text").inner_text() == "step 10"
    page.wait_for_function("document.getElementById('step-text').textContent === 'step 2,000'")
    page.get_by_role("button", name="Play").wait_for()


def test_a_narrow_window_scrolls_the_picture_only(address, open_page):
    page = open_page(address)
    page.set_viewport_size({"width": 420, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    assert page.locator(".picture").evaluate("box => box.scrollWidth > box.clientWidth")


def test_without_scripts_there_are_tables(address, open_page):
    page = open_page(address, java_script_enabled=False)
    assert page.locator("noscript").count() == 1
    assert page.locator("#steps tr").count() == 2
    assert SEVEN in page.locator("#node-rows").inner_text()
