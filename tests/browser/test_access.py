"""Who decides, who may come in, and pages that need a key: in a real browser, against a scripted node."""

import pytest

from browser.driver import Locator, Page, expect
from browser.scripted_node import ScriptedNode, problem, wait_until
from browser.test_dashboard import CONTRAST_SCRIPT, LOST, live, node_card, scroll_overflow_px

OAK, PINE, REED = "1f0c9a52d7e84b36", "5b7e21c0f94d4a18", "c4d81e6f02a74c95"
BIRCH = "9a64e0d2b75f1c38"
BIRCH_KEY = "3f9c1b7a8e60d4525d18c6f2097be3a417f0c8d96b2e5a43907d1fce862b4a05"
GROUPED_KEY = " ".join(BIRCH_KEY[start : start + 4] for start in range(0, 64, 4))
KEY = "exo-1a2b3c4d-" + "5e" * 32


def joining(page: Page) -> Locator:
    return page.get_by_role("region", name="Nodes that want to join")


def what_happened(page: Page) -> Locator:
    return page.get_by_role("status", name="What happened")


def changes(node: ScriptedNode) -> list[tuple[str, str, object]]:
    return [request for request in node.requests if request[1].startswith("/nodes/")]


def test_each_node_says_in_words_what_it_is_to_decisions(node: ScriptedNode, open_page) -> None:
    page = open_page(node.url)
    expect(node_card(page, "oak").get_by_text("master", exact=True)).to_be_visible()
    for name in ("pine", "reed"):
        expect(node_card(page, name).get_by_text("votes", exact=True)).to_be_visible()
    expect(page.get_by_text("2 of 3 voters decide: oak, pine, reed")).to_be_visible()

    node.change(voters={"voters": [OAK], "replicas": [PINE]})
    expect(node_card(page, "pine").get_by_text("holds a copy", exact=True)).to_be_visible()
    expect(node_card(page, "reed").get_by_text("votes", exact=True)).to_have_count(0)
    expect(page.get_by_text("oak decides; pine holds a copy in sync")).to_be_visible()


@pytest.mark.parametrize("width", [375, 1440])
def test_without_a_master_the_page_says_who_is_needed(
    node: ScriptedNode, open_page, screenshot, width: int
) -> None:
    page = open_page(node.url, width=width, height=900)
    live(page)
    expect(page.get_by_role("alert")).to_have_count(0)
    node.change(master_node_id=None)
    banner = page.get_by_role("alert")
    expect(banner).to_contain_text("No master: 2 of 3 voters have to reach each other: oak, pine, reed.")
    expect(banner).to_contain_text("Start those that are away.")
    expect(page.get_by_text("exo node forget")).to_be_visible()
    for name in ("oak", "pine", "reed"):
        expect(node_card(page, name).get_by_text("votes", exact=True)).to_be_visible()
    assert scroll_overflow_px(page) == 0
    screenshot(page, f"no-master-{width}")
    node.change(master_node_id=REED, term=3)
    expect(banner).to_have_count(0)
    expect(node_card(page, "reed").get_by_text("master", exact=True)).to_be_visible()


@pytest.mark.parametrize("width", [375, 1440])
def test_a_node_is_let_in_by_the_key_that_was_shown(
    node: ScriptedNode, open_page, screenshot, width: int
) -> None:
    page = open_page(node.url, width=width, height=900)
    live(page)
    card = joining(page).locator("[data-wish]").filter(has_text="birch")
    expect(card).to_contain_text("192.168.7.31:52416")
    expect(card).to_contain_text(GROUPED_KEY[:39])
    expect(card.locator("time")).to_have_attribute("datetime", "2026-03-04T09:15:00.000Z")
    assert scroll_overflow_px(page) == 0
    screenshot(page, f"joining-{width}")

    card.get_by_role("button", name="Approve birch").click()
    dialog = page.get_by_role("dialog", name="Let birch join?")
    expect(dialog).to_contain_text(GROUPED_KEY)
    assert scroll_overflow_px(page) == 0
    screenshot(page, f"approve-{width}")
    dialog.get_by_role("button", name="Cancel").click()
    expect(card.get_by_role("button", name="Approve birch")).to_be_focused()
    assert changes(node) == []

    card.get_by_role("button", name="Approve birch").click()
    dialog.get_by_role("button", name="Approve", exact=True).click()
    expect(dialog).to_have_count(0)
    expect(card).to_have_count(0)
    expect(what_happened(page)).to_have_text("birch may join. It comes in when it asks again.")
    assert changes(node) == [("POST", f"/nodes/{BIRCH}/approve", {"fingerprint": BIRCH_KEY})]
    # The keyboard goes on from where the card was.
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Approve e21b7c90")).to_be_focused()


def test_a_node_is_declined_with_a_reason(node: ScriptedNode, open_page, screenshot) -> None:
    page = open_page(node.url)
    page.get_by_role("button", name="Decline birch").click()
    dialog = page.get_by_role("dialog", name="Decline birch?")
    expect(dialog).to_contain_text(GROUPED_KEY)
    dialog.get_by_label("Reason").fill(" not ours ")
    screenshot(page, "decline")
    dialog.get_by_role("button", name="Decline", exact=True).click()
    expect(joining(page).locator("[data-wish]")).to_have_count(1)
    assert changes(node) == [("POST", f"/nodes/{BIRCH}/decline", {"reason": "not ours"})]


def test_a_refused_approval_says_why(node: ScriptedNode, open_page) -> None:
    detail = f"the node that asks as {BIRCH} has another key now; look again: exo node list"
    node.approve_error = (409, problem(409, "other_key", detail))
    page = open_page(node.url, may_log=LOST)
    page.get_by_role("button", name="Approve birch").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Approve", exact=True).click()
    expect(dialog.get_by_role("alert")).to_contain_text("has another key now")
    # A later answer changes neither the dialog nor what would be approved.
    other = [wish | {"fingerprint": "0" * 64} for wish in node.nodes["wishes"][:1]]
    node.set_nodes(wishes=other)
    expect(page.locator("[data-wish]").first).to_contain_text("0000 0000")
    expect(dialog).to_contain_text(GROUPED_KEY)
    dialog.get_by_role("button", name="Approve", exact=True).click()
    wait_until(lambda: len(changes(node)) == 2, "a second try")
    assert [body for _, _, body in changes(node)] == [{"fingerprint": BIRCH_KEY}] * 2


def test_a_node_that_begins_to_ask_appears_by_itself(node: ScriptedNode, open_page) -> None:
    wishes = node.nodes["wishes"]
    node.nodes = node.nodes | {"wishes": []}
    page = open_page(node.url)
    live(page)
    expect(joining(page)).to_have_count(0)
    node.set_nodes(wishes=wishes[:1])
    expect(joining(page).locator("[data-wish]")).to_have_count(1)
    expect(what_happened(page)).to_have_text("Wants to join: birch.")
    node.set_nodes(wishes=[])
    expect(joining(page)).to_have_count(0)


@pytest.mark.parametrize("width", [375, 1440])
def test_a_member_is_removed_from_its_detail(node: ScriptedNode, open_page, screenshot, width: int) -> None:
    node.place(node.previews["previews"][2]["request"])
    page = open_page(node.url, width=width, height=900)
    details = page.get_by_role("button", name="Details of reed")
    details.click()
    detail = page.get_by_role("dialog", name="reed")
    expect(detail).to_contain_text(REED)
    expect(detail).to_contain_text("Votes: a decision counts once most voters have it on disk.")
    expect(detail).to_contain_text("until May 1, 2031")
    assert scroll_overflow_px(page) == 0
    screenshot(page, f"detail-{width}")
    detail.get_by_role("button", name="Remove…").click()
    dialog = page.get_by_role("dialog", name="Remove reed from the cluster?")
    expect(dialog).to_contain_text("1 instance with layers on it fails.")
    dialog.get_by_label("Reason").fill("sold")
    screenshot(page, f"remove-{width}")
    dialog.get_by_role("button", name="Keep").click()
    expect(details).to_be_focused()
    assert changes(node) == []

    details.click()
    page.get_by_role("button", name="Remove…").click()
    dialog.get_by_role("button", name="Remove", exact=True).click()
    expect(node_card(page, "reed")).to_have_count(0)
    expect(page.get_by_text("2 of 2 voters decide: oak, pine")).to_be_visible()
    assert changes(node) == [("DELETE", f"/nodes/{REED}?reason=", None)]
    expect(what_happened(page)).to_have_text("reed was removed.")


def test_the_master_is_not_removed_and_its_detail_says_how(node: ScriptedNode, open_page) -> None:
    page = open_page(node.url)
    page.get_by_role("button", name="Details of oak").click()
    detail = page.get_by_role("dialog", name="oak")
    expect(detail).to_contain_text("stop it first, so that another node leads")
    expect(detail.get_by_role("button", name="Remove…")).to_have_count(0)


def test_a_refused_removal_says_why(node: ScriptedNode, open_page) -> None:
    node.delete_error = (503, problem(503, "no_master", "there is no master to decide it; try again"))
    page = open_page(node.url, may_log=LOST)
    page.get_by_role("button", name="Details of pine").click()
    page.get_by_role("button", name="Remove…").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove", exact=True).click()
    expect(page.get_by_role("dialog").get_by_role("alert")).to_have_text(
        "There is no master to decide it; try again."
    )


@pytest.mark.parametrize("width", [375, 1440])
def test_where_a_key_is_needed_the_page_asks_for_one_and_shows_it_everywhere(
    node: ScriptedNode, open_page, screenshot, width: int
) -> None:
    node.needed_key = KEY
    page = open_page(node.url, width=width, height=900, may_log=LOST)
    field = page.get_by_label("API key")
    expect(field).to_be_focused()
    expect(page.get_by_role("status", name="Event stream")).to_have_text("Key needed")
    expect(page.get_by_role("alert")).to_contain_text("make one on a node with: exo key create")
    assert scroll_overflow_px(page) == 0
    screenshot(page, f"key-{width}")
    assert node.unkeyed == ["/state"], "without a key nothing else is asked, and not again"

    page.keyboard.type("hunter2")
    page.keyboard.press("Enter")
    expect(page.get_by_text("This is no key of exo")).to_be_visible()
    assert node.unkeyed == ["/state"], "what is no key is not sent"

    field.fill("exo-1a2b3c4d-wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("This key is not known here")
    expect(field).to_be_focused()

    field.fill(f" {KEY} ")
    page.keyboard.press("Enter")
    live(page)
    expect(node_card(page, "oak")).to_be_visible()
    expect(page.get_by_text("exo-tiny", exact=True).first).to_be_visible()
    assert node.unkeyed == ["/state", "/state"]
    node.change(term=9)
    page.get_by_role("button", name="Approve birch").click()
    page.get_by_role("dialog").get_by_role("button", name="Approve", exact=True).click()
    expect(page.locator("[data-wish]")).to_have_count(1)
    assert node.unkeyed == ["/state", "/state"], "the stream of changes and commands show it, too"

    stored = page.evaluate("[localStorage, sessionStorage].map((storage) => JSON.stringify(storage))")
    assert KEY not in stored[0]
    assert KEY in stored[1]
    page.reload()
    live(page)
    assert len(node.unkeyed) == 2


def test_a_key_is_forgotten_when_asked_to(node: ScriptedNode, open_page, screenshot) -> None:
    node.needed_key = KEY
    page = open_page(node.url, may_log=LOST)
    page.get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    live(page)
    page.get_by_role("button", name="API key 1a2b3c4d. Change").click()
    dialog = page.get_by_role("dialog", name="API key")
    expect(dialog).not_to_contain_text(KEY)
    screenshot(page, "key-kept")
    dialog.get_by_role("button", name="Forget it").click()
    expect(page.get_by_role("heading", name="This node wants a key")).to_be_visible()
    expect(page.get_by_text("oak", exact=True)).to_have_count(0)
    assert page.evaluate("sessionStorage.length") == 0
    node.needed_key = None
    page.get_by_role("button", name="Try again without a key").click()
    live(page)


def test_a_key_that_is_deleted_meanwhile_brings_the_question_back(node: ScriptedNode, open_page) -> None:
    page = open_page(node.url, may_log=LOST)
    live(page)
    node.needed_key = KEY
    node.end_events()
    expect(page.get_by_role("heading", name="This node wants a key")).to_be_visible()
    page.get_by_label("API key").fill(KEY)
    page.get_by_role("button", name="Use this key").click()
    live(page)
    expect(node_card(page, "oak")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_about_access_stands_out_from_its_ground(
    node: ScriptedNode, open_page, screenshot, scheme: str
) -> None:
    node.change(master_node_id=None)
    page = open_page(node.url, color_scheme=scheme, may_log=LOST)
    live(page)
    expect(page.locator("[data-wish]")).to_have_count(2)
    screenshot(page, f"access-{scheme}")
    assert page.evaluate(CONTRAST_SCRIPT) == []
    page.get_by_role("button", name="Decline birch").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert page.evaluate(CONTRAST_SCRIPT) == []
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    node.needed_key = KEY
    node.end_events()
    expect(page.get_by_role("heading", name="This node wants a key")).to_be_visible()
    screenshot(page, f"key-{scheme}")
    assert page.evaluate(CONTRAST_SCRIPT) == []
