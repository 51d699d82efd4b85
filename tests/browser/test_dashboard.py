"""The dashboard in a real browser, against a scripted node."""

import re
import threading
import time

import pytest

from browser.driver import Locator, Page, expect
from browser.scripted_node import Json, ScriptedNode, fixture, stage_of, wait_until

LOST = "Failed to load resource"


def live(page: Page) -> None:
    expect(page.get_by_role("status", name="Event stream")).to_have_text("Live")


def node_card(page: Page, name: str) -> Locator:
    return (
        page.get_by_role("region", name="Nodes", exact=True)
        .locator("li[data-node]")
        .filter(has=page.get_by_role("heading", name=name, exact=True))
    )


def scroll_overflow_px(page: Page) -> int:
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def test_the_cluster_is_shown(node: ScriptedNode, open_page, screenshot) -> None:
    page = open_page(node.url)
    live(page)
    banner = page.get_by_role("banner")
    for words in ("3 nodes", "master", "oak", "index", "41"):
        expect(banner).to_contain_text(words)

    oak = node_card(page, "oak")
    expect(oak).to_contain_text("master")
    expect(oak.get_by_role("meter", name="VRAM", exact=True)).to_have_attribute(
        "aria-valuetext", "4.4 GiB of 12 GiB used"
    )
    expect(oak.get_by_role("meter", name="RAM", exact=True)).to_have_attribute(
        "aria-valuetext", "16.8 GiB of 64 GiB used"
    )
    gpu = oak.get_by_role("listitem").filter(has_text="RTX 3060")
    expect(gpu).to_contain_text("GPU")
    expect(gpu).to_contain_text("63 %")
    expect(gpu).to_contain_text("71 °C")
    processor = oak.get_by_role("listitem").filter(has_text="Ryzen")
    expect(processor).to_contain_text("CPU")
    expect(processor).to_contain_text(re.compile(r"temp\s*–"))

    pine = node_card(page, "pine")
    expect(pine).to_contain_text("this node")
    expect(pine.get_by_role("meter", name="VRAM")).to_have_count(0)

    # Nothing was measured on it yet: dashes, and no bar that looks empty.
    reed = node_card(page, "reed")
    expect(reed.get_by_role("meter")).to_have_count(0)
    expect(reed).to_contain_text("Memory –")
    expect(reed).to_contain_text(re.compile(r"load\s*–"))
    screenshot(page, "cluster")


def test_a_node_that_left_is_shown_as_such(node: ScriptedNode, open_page, screenshot) -> None:
    page = open_page(node.url)
    live(page)
    state = fixture("state")
    state["topology"]["nodes"][1] |= {"is_connected": False, "left_reason": "no heartbeat for 2 s"}
    node.change(topology=state["topology"])
    pine = node_card(page, "pine")
    expect(pine).to_contain_text("not connected")
    expect(pine).to_contain_text("No heartbeat for 2 s.")
    expect(pine.get_by_role("meter")).to_have_count(0)
    expect(page.get_by_role("banner")).to_contain_text("2 of 3 nodes")
    screenshot(page, "away")


def test_nodes_of_one_machine_are_told_apart(node: ScriptedNode, open_page) -> None:
    for entry in node.state["topology"]["nodes"]:
        entry |= {"name": "oak", "host_id": "host-oak"}
    page = open_page(node.url)
    card = node_card(page, "oak 5b7e")
    expect(card).to_contain_text("same machine as oak 1f0c, oak c4d8")


def test_a_way_says_how_sure_it_is_and_who_is_left_out(node: ScriptedNode, open_page, screenshot) -> None:
    page = open_page(node.url)
    page.get_by_role("button", name="Place exo-tiny").click()
    dialog = page.get_by_role("dialog", name="Place exo-tiny")
    way = dialog.locator(".option").filter(has_text="Pipeline over 3 nodes")
    for words in ("about 667 tokens/s", "estimate", "a faster plan would save 2.0 % at most"):
        expect(way).to_contain_text(words)
    expect(dialog.locator(".option").first).to_contain_text("proven: no plan is faster")
    way.get_by_text("Why this way").click()
    expect(way).to_contain_text("2 GiB more memory on cuda:0 of oak would save 0.2 ms per token")
    expect(way).to_contain_text("Not used: 1 device")
    expect(way).to_contain_text("+1.23 ms per token with it")
    screenshot(page, "place-why")


def test_why_an_instance_is_where_it_is(node: ScriptedNode, open_page, screenshot) -> None:
    node.place(node.previews["previews"][2]["request"])
    page = open_page(node.url)
    page.get_by_role("button", name="Why exo-tiny is here").click()
    dialog = page.get_by_role("dialog", name="Why exo-tiny is here")
    for words in (
        "decision 29, on state 41",
        "cuda:0 of oak has failed",
        "the same answer, to the last figure",
        "Fastest, fewest nodes",
        "not possible",
        "reed is not connected (no heartbeat for 2 s)",
        "Placed now: 1,667 tokens/s",
    ):
        expect(dialog).to_contain_text(words)
    screenshot(page, "why")
    assert scroll_overflow_px(page) == 0
    dialog.get_by_role("button", name="placed Jan 1, 2026").click()
    wait_until(
        lambda: any(path.endswith("/why?decision=17") for _, path, _ in node.requests), "that decision"
    )
    expect(dialog).to_contain_text("decision 29")
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_have_count(0)


def test_a_model_is_placed_and_its_stages_are_followed(node: ScriptedNode, open_page, screenshot) -> None:
    page = open_page(node.url)
    page.get_by_role("button", name="Place exo-tiny").click()
    dialog = page.get_by_role("dialog", name="Place exo-tiny")
    expect(dialog.get_by_role("radio")).to_have_count(4)
    expect(dialog.get_by_role("radio", name="Fastest")).to_be_checked()
    refused = dialog.get_by_role("radio", name="Processors")
    expect(refused).to_be_disabled()
    expect(dialog).to_contain_text("2097152 more than are free there")
    # The whole box chooses, and its explanation opens without choosing.
    dialog.get_by_role("img", name="layers 0–2 on oak").click(force=True)
    expect(dialog.get_by_role("radio", name="Pipeline over 3 nodes")).to_be_checked()
    dialog.get_by_text("Why this way").first.click()
    expect(dialog.get_by_text("all 6 layers fit on oak")).to_be_visible()
    expect(dialog.get_by_role("radio", name="Pipeline over 3 nodes")).to_be_checked()
    screenshot(page, "place")
    dialog.get_by_role("button", name="Place", exact=True).click()
    expect(dialog).to_have_count(0)
    posted = [body for method, path, body in node.requests if (method, path) == ("POST", "/instance")]
    assert posted == [node.previews["previews"][2]["request"]]

    card = page.get_by_role("region", name="Instances").locator("[data-instance]")
    expect(card).to_contain_text("pending")
    for words in ("about 667 tokens/s", "estimate", "2.2 times as fast as a split by memory alone"):
        expect(card).to_contain_text(words)
    expect(card.get_by_role("img", name="oak: 0.75 ms of each token, reading memory 0.35 ms")).to_be_visible()
    ribbon = card.get_by_role("img", name="layers 0–2 on oak, layers 3–4 on reed, layer 5 on pine")
    expect(ribbon).to_be_visible()

    node.set_stages("loading", ["loading", "ready", "starting"], [1, 2, 0])
    expect(card).to_contain_text("loading 3 of 6 layers")
    stages = card.get_by_role("listitem")
    expect(stages.filter(has_text="oak")).to_contain_text("loading 1 of 3")
    expect(stages.filter(has_text="pine")).to_contain_text("starting")
    screenshot(page, "loading")

    node.set_stages("ready", ["ready"] * 3, [3, 2, 1])
    expect(card.locator("header")).to_contain_text("ready")
    expect(card).not_to_contain_text("moved")
    expect(node_card(page, "reed").get_by_role("list", name="Placed here")).to_contain_text("layers 3–4")
    widths = [band.bounding_box()["width"] for band in card.locator(".band").all()]  # type: ignore[index]
    assert widths[0] == pytest.approx(3 * widths[2], rel=0.05)
    screenshot(page, "ready")

    node.set_stages(
        "failed", ["ready", "failed", "ready"], [3, 0, 1], "the stage's process was killed (signal 9)"
    )
    expect(card).to_contain_text("the stage's process was killed (signal 9)")
    ((instance_id, instance),) = node.state["instances"].items()
    node.change(instances={instance_id: instance | {"moved_reason": "cuda:0 of oak failed"}})
    expect(card).to_contain_text("moved: cuda:0 of oak failed")
    screenshot(page, "failed")


def test_a_larger_cluster_lets_people_say_over_how_many_nodes(node: ScriptedNode, open_page) -> None:
    entries = node.state["topology"]["nodes"]
    more = [entries[1] | {"node_id": f"d{place}", "name": f"elm{place}"} for place in range(3)]
    node.change(topology=node.state["topology"] | {"nodes": [*entries, *more]})
    page = open_page(node.url)
    page.get_by_role("button", name="Place exo-tiny").click()
    dialog = page.get_by_role("dialog")
    number = dialog.get_by_role("spinbutton")
    expect(dialog).to_contain_text("of 6 nodes")
    number.fill("7")
    number.press("Tab")
    number.fill("5")
    number.press("Tab")
    # Seven of six nodes is refused by the field itself.
    wait_until(lambda: len(node.requests) == 2, "a second question for previews")
    assert [path.partition("min_nodes=")[2] for _, path, _ in node.requests] == ["1", "5"]


def open_what_if(page: Page) -> Locator:
    """Open the dialog that places the model, and in it what would be if the cluster were another one."""
    page.get_by_role("button", name="Place exo-tiny").click()
    dialog = page.get_by_role("dialog", name="Place exo-tiny")
    expect(dialog.get_by_role("radio").first).to_be_visible()
    dialog.get_by_text("What if a node were gone").click()
    expect(dialog.locator("datalist option").first).to_be_attached()
    return dialog


def asked(node: ScriptedNode, path: str) -> list[Json]:
    return [body for _, asked_path, body in node.requests if asked_path == path and body is not None]


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (390, 844)])
def test_a_machine_that_is_not_bought_yet_is_looked_at(
    node: ScriptedNode, open_page, screenshot, width: int, height: int
) -> None:
    page = open_page(node.url, width=width, height=height)
    dialog = open_what_if(page)
    device = dialog.get_by_role("combobox", name="Device")
    device.fill("RTX")
    dialog.get_by_role("button", name="Add").click()
    expect(dialog).to_contain_text("No known device is called that, or several are")
    assert asked(node, "/instance/plan") == []
    device.fill("rtx 3090")
    expect(dialog).to_contain_text("GeForce RTX 3090: 24 GiB · 936 GB/s")
    dialog.get_by_label("How many").fill("2")
    dialog.get_by_label("Link").select_option("10 Gbit/s")
    device.press("Enter")
    expect(dialog).to_contain_text("2,326 tokens/s instead of 1,667, 39.5 % faster")
    now, then = dialog.get_by_role("region", name="Now"), dialog.get_by_role("region", name="With 2 ×")
    expect(now).to_contain_text("about 1,667 tokens/s")
    for words in (
        "about 2,326 tokens/s",
        "proven: no plan is faster",
        "2 GiB more memory on cuda:0 of 2 × GeForce RTX 3090 (not there) would save 0.05 ms per token",
        "layers 0–5",
    ):
        expect(then).to_contain_text(words)
    expect(dialog).to_contain_text("22.8 of 24 GiB taken as free, 936 GB/s (NVIDIA")
    (wish,) = asked(node, "/instance/plan")
    assert wish["machines"] == [
        {
            "name": "2 × GeForce RTX 3090",
            "devices": [{"name": "GeForce RTX 3090", "kind": "gpu"}] * 2,
            "zone": "",
            "link_mbps": 10_000,
        }
    ]
    assert scroll_overflow_px(page) == 0
    assert dialog.evaluate("one => one.querySelector('.body').scrollWidth - one.clientWidth") <= 0
    then.scroll_into_view_if_needed()
    screenshot(page, f"what-if-{width}")
    # What is not there cannot be placed on.
    expect(dialog.get_by_role("button", name="Place without")).to_have_count(0)
    dialog.get_by_role("button", name="Take 2 × GeForce RTX 3090, 10 Gbit/s away").click()
    expect(now).to_have_count(0)


def test_sizes_are_asked_for_where_a_device_is_sold_with_several(node: ScriptedNode, open_page) -> None:
    dialog = open_what_if(open_page(node.url))
    dialog.get_by_role("combobox", name="Device").fill("4060 Ti")
    dialog.get_by_role("combobox", name="Memory").select_option("16 GiB")
    dialog.get_by_role("button", name="Add").click()
    expect(dialog).to_contain_text("GeForce RTX 4060 Ti with 16 GiB")
    dialog.get_by_role("combobox", name="Device").fill("M2 Max")
    dialog.get_by_label("Memory in GiB").fill("64")
    dialog.get_by_role("button", name="Add").click()
    expect(dialog).to_contain_text("Apple M2 Max with 64 GiB")
    expect(dialog.get_by_role("region", name="Now")).to_be_visible()
    wait_until(lambda: len(asked(node, "/instance/plan")) == 2, "both questions")
    sizes = [one["devices"][0]["memory_total_bytes"] for one in asked(node, "/instance/plan")[1]["machines"]]
    assert sizes == [16 << 30, 64 << 30]


def test_a_node_is_left_out_with_the_keyboard_and_what_is_in_the_way_is_given_up(
    node: ScriptedNode, open_page, screenshot
) -> None:
    page = open_page(node.url)
    place = page.get_by_role("button", name="Place exo-tiny")
    place.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Place exo-tiny")
    dialog.get_by_role("radio", name="Pipeline over 3 nodes").focus()
    page.keyboard.press("Space")
    summary = dialog.locator("summary").filter(has_text="What if")
    summary.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(dialog.get_by_role("checkbox", name="oak")).to_be_focused()
    page.keyboard.press("Space")
    expect(dialog.get_by_role("status")).to_contain_text(["it would not fit any more; now it runs at 667"])
    then = dialog.get_by_role("region", name="Without oak")
    expect(then).to_contain_text("2 of the 3 nodes wanted can take part")
    remedy = then.get_by_role("button", name="Ask for 2 nodes, not 3")
    remedy.scroll_into_view_if_needed()
    screenshot(page, "what-if-refused")
    node.previews = {"previews": [node.previews["previews"][1]]}
    remedy.focus()
    page.keyboard.press("Enter")
    expect(dialog.locator(".given")).to_contain_text("Ask for 2 nodes, not 3.")
    expect(then).to_contain_text("about 417 tokens/s")
    assert node.requests[-2][1].startswith("/instance/previews?") and "min_nodes=2" in node.requests[-2][1]
    screenshot(page, "what-if-without")
    dialog.get_by_role("button", name="Place without oak").press("Enter")
    expect(dialog).to_have_count(0)
    (placed,) = asked(node, "/instance")
    assert (placed["min_nodes"], placed["exclude"]) == (2, ["1f0c9a52d7e84b36"])


def test_what_is_given_up_can_be_had_back(node: ScriptedNode, open_page) -> None:
    node.place(node.previews["previews"][0]["request"])
    node.requests.clear()
    refused = fixture("planned_refused")["answer"] | {"title": "Fastest"}
    refused["remedy"] = refused["remedy"] | {"without": []}
    node.previews["previews"][0] = refused
    page = open_page(node.url)
    page.get_by_role("button", name="Place exo-tiny").click()
    dialog = page.get_by_role("dialog", name="Place exo-tiny")
    dialog.get_by_role("button", name="Ask for 2 nodes, not 3").click()
    expect(dialog.locator(".given")).to_contain_text("Ask for 2 nodes, not 3.")
    dialog.get_by_role("button", name="Undo").click()
    expect(dialog.locator(".given")).to_have_count(0)
    # An instance that is in the way is not stopped: it is looked at as if it were.
    words = "Stop exo-tiny (7d93e1b0), which takes 65.0 MiB"
    refused["remedy"] |= {"words": words, "request": refused["request"], "instead": ["7d93e1b0"]}
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Place exo-tiny").click()
    expect(dialog).to_contain_text(f"What would help: {words}.")
    dialog.get_by_role("button", name="Look at it without that").click()
    wait_until(lambda: asked(node, "/instance/plan") != [], "the question")
    assert asked(node, "/instance/plan")[-1]["instead"] == ["7d93e1b0"]
    assert not any(method == "DELETE" for method, _, _ in node.requests)


def test_an_instance_is_deleted_after_a_question(node: ScriptedNode, open_page, screenshot) -> None:
    node.place(node.previews["previews"][0]["request"])
    page = open_page(node.url)
    delete = page.get_by_role("button", name="Delete exo-tiny")
    delete.click()
    dialog = page.get_by_role("dialog", name="Delete this instance of exo-tiny?")
    screenshot(page, "delete")
    dialog.get_by_role("button", name="Keep").click()
    expect(dialog).to_have_count(0)
    expect(delete).to_be_focused()
    assert not [request for request in node.requests if request[0] == "DELETE"]

    delete.click()
    dialog.get_by_role("button", name="Delete", exact=True).click()
    expect(page.get_by_text("No model is placed.")).to_be_visible()
    assert [path for method, path, _ in node.requests if method == "DELETE"] == ["/instance/7d93e1b0"]


def test_a_refused_deletion_says_why(node: ScriptedNode, open_page) -> None:
    node.place(node.previews["previews"][0]["request"])
    detail = "there is no master to decide it; try again in a moment"
    problem = {"type": "about:blank", "title": "", "status": 503, "detail": detail, "code": "no_master"}
    node.delete_error = (503, problem)
    page = open_page(node.url, may_log=LOST)
    page.get_by_role("button", name="Delete exo-tiny").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete", exact=True).click()
    expect(page.get_by_role("dialog").get_by_role("alert")).to_have_text(
        "There is no master to decide it; try again in a moment."
    )


def test_a_model_with_a_problem_cannot_be_placed(node: ScriptedNode, open_page) -> None:
    page = open_page(node.url)
    expect(page.get_by_text("model-00002-of-00003.safetensors is missing")).to_be_visible()
    expect(page.get_by_role("button", name="Place org/broken-7b")).to_be_disabled()
    models = page.get_by_label("Model", exact=True).get_by_role("option")
    expect(models).to_have_text([re.compile("^exo-tiny"), re.compile("^org/large-8b-4bit")])


def test_an_answer_appears_piece_by_piece(node: ScriptedNode, open_page, screenshot) -> None:
    node.chat_tokens = ["The", " answer", " is", " 42", "."]
    page = open_page(node.url)
    page.get_by_label("Message").fill("What is 12 + 30?")
    expect(page.get_by_role("button", name="Send")).to_be_enabled()
    page.get_by_label("Message").press("Enter")
    log = page.get_by_role("log", name="Conversation")
    expect(log).to_contain_text("What is 12 + 30?")
    expect(log).to_contain_text("Placing exo-tiny")

    answer = log.locator(".answer")
    for place, text in enumerate(["The", "The answer", "The answer is", "The answer is 42"]):
        node.chat_gate.release()
        expect(answer.locator(".text")).to_have_text(text)
        # The next token is still behind its gate: what is there came by itself.
        assert "first token" in answer.inner_text(), place
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    screenshot(page, "streaming")
    node.chat_gate.release()
    expect(answer).to_contain_text("57.3 tokens/s")
    expect(answer).to_contain_text("5 tokens")
    expect(answer).to_contain_text(re.compile(r"first token \d+(\.\d)? (ms|s)"))
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    ((_, _, body),) = [request for request in node.requests if request[0] == "POST"]
    assert body is not None
    assert body["messages"] == [{"role": "user", "content": "What is 12 + 30?"}]
    assert body["stream"] is True
    screenshot(page, "answered")


def test_an_answer_can_be_stopped(node: ScriptedNode, open_page) -> None:
    node.chat_tokens = [f" {number}" for number in range(1, 10_000)]
    page = open_page(node.url)
    page.get_by_label("Message").fill("Count to 9999.")
    page.get_by_role("button", name="Send").click()
    node.chat_gate.release(2)
    answer = page.get_by_role("log").locator(".answer")
    expect(answer.locator(".text")).to_contain_text("1 2")
    page.get_by_role("button", name="Stop").click()
    expect(answer).to_contain_text("stopped")

    def writes_on() -> bool:
        node.chat_gate.release()
        return node.chat_client_left.is_set()

    wait_until(writes_on, "the end of the request")
    expect(answer.locator(".text")).to_have_text("1 2")


def test_a_refused_chat_says_why_and_can_be_asked_again(node: ScriptedNode, open_page, screenshot) -> None:
    message = "the prompt has 5000 tokens, 904 more than the context of 4096; shorten it"
    node.chat_error = (
        422,
        {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}},
    )
    node.chat_tokens = ["42"]
    page = open_page(node.url, may_log=LOST)
    page.get_by_label("Message").fill("Hello")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("log").get_by_role("alert")).to_contain_text("904 more than the context")
    screenshot(page, "chat-error")
    node.chat_error = None
    node.chat_gate.release()
    page.get_by_role("button", name="Ask again").click()
    expect(page.get_by_role("log").locator(".text")).to_have_text("42")
    expect(page.get_by_role("log").get_by_role("alert")).to_have_count(0)


def test_a_lost_node_is_said_and_found_again(node: ScriptedNode, open_page, screenshot) -> None:
    page = open_page(node.url, may_log=LOST)
    live(page)
    node.stop()
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("Node unreachable.")
    expect(page.get_by_role("status", name="Event stream")).to_have_text("Unreachable")
    # What was known stays readable.
    expect(node_card(page, "oak")).to_be_visible()
    screenshot(page, "unreachable")
    node.change(master_node_id="5b7e21c0f94d4a18")
    node.start()
    live(page)
    expect(alert).to_have_count(0)
    expect(node_card(page, "pine")).to_contain_text("master")


def test_without_an_event_stream_the_page_catches_up(node: ScriptedNode, open_page) -> None:
    node.refuses_events = True
    page = open_page(node.url, may_log=LOST)
    expect(page.get_by_role("status", name="Event stream")).to_have_text("Reconnecting")
    node.change(term=7)
    node.refuses_events = False
    live(page)
    expect(page.get_by_role("banner")).to_contain_text("term 7")


def test_many_events_lead_to_few_requests(node: ScriptedNode, open_page) -> None:
    page = open_page(node.url)
    live(page)
    wait_until(lambda: node.watcher_count == 1, "the event stream")
    before = node.state_request_count
    started_s = time.monotonic()
    for seq in range(200):
        node.tell("telemetry", {"seq": seq})
        threading.Event().wait(0.005)
    node.change(term=9)
    expect(page.get_by_role("banner")).to_contain_text("term 9")
    # Four a second at most; one before the first second begins, and one that was under way.
    allowed = 4 * (time.monotonic() - started_s) + 2
    assert 2 <= node.state_request_count - before <= allowed


def test_everything_is_reached_with_the_keyboard(node: ScriptedNode, open_page) -> None:
    node.place(node.previews["previews"][0]["request"])
    node.chat_tokens = ["42"]
    node.chat_gate.release()
    page = open_page(node.url)
    live(page)
    expect(page.get_by_role("button", name="Place exo-tiny")).to_be_visible()
    describe = "(document.activeElement.ariaLabel || document.activeElement.textContent || document.activeElement.id)"
    reached: list[str] = []
    for _ in range(25):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(describe).strip().split("(")[0].strip())
        has_outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle !== 'none'")
        assert has_outline, f"{reached[-1]} does not show that it has the focus"
        if reached[-1] == "question":
            break
    assert reached[0].startswith("Theme")
    assert reached[1:5] == ["Approve birch", "Decline birch", "Approve e21b7c90", "Decline e21b7c90"]
    assert reached[5:8] == ["Details of oak", "Details of pine", "Details of reed"]
    assert reached[8:11] == ["Why exo-tiny is here", "Delete exo-tiny", "Why this way"]
    assert reached[11:13] == ["Place exo-tiny", "Place org/large-8b-4bit"]
    assert reached[-1] == "question"
    page.keyboard.type("What is 12 + 30?")
    page.keyboard.press("Enter")
    expect(page.get_by_role("log").locator(".text")).to_have_text("42")

    place = page.get_by_role("button", name="Place exo-tiny")
    place.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("radio", name="Fastest")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(place).to_be_focused()


def test_a_phone_shows_one_part_at_a_time_without_scrolling_sideways(
    node: ScriptedNode, open_page, screenshot
) -> None:
    node.place(node.previews["previews"][2]["request"])
    node.set_stages("ready", ["ready"] * 3, [3, 2, 1])
    node.chat_tokens = ["The answer is ", "42", "."]
    node.chat_gate.release(3)
    page = open_page(node.url, width=375, height=812, is_touched=True)
    live(page)
    expect(page.get_by_text("org/broken-7b", exact=True)).to_be_visible()
    assert scroll_overflow_px(page) == 0
    expect(page.get_by_role("log")).to_be_hidden()
    screenshot(page, "phone")
    page.get_by_role("button", name="Place exo-tiny").click()
    expect(page.get_by_role("radio")).to_have_count(4)
    assert scroll_overflow_px(page) == 0
    screenshot(page, "phone-place")
    page.keyboard.press("Escape")

    page.get_by_role("link", name="Chat").click()
    expect(page.get_by_role("region", name="Nodes", exact=True)).to_be_hidden()
    page.get_by_label("Message").fill("What is 12 + 30?")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("log").locator(".text")).to_have_text("The answer is 42.")
    assert scroll_overflow_px(page) == 0
    screenshot(page, "phone-chat")
    page.go_back()
    expect(page.get_by_role("region", name="Nodes", exact=True)).to_be_visible()


@pytest.mark.parametrize("width", [375, 900, 1440])
def test_many_nodes_and_long_names_stay_inside_the_page(node: ScriptedNode, open_page, width: int) -> None:
    entries = node.state["topology"]["nodes"]
    name = "workstation-in-the-basement.department-of-long-names.example.org"
    nodes = [
        entries[place % 3] | {"node_id": f"{place:02}", "name": f"{name}-{place}"} for place in range(12)
    ]
    placed = node.place(node.previews["previews"][0]["request"])
    stages = [
        {"rank": place, "node_id": f"{place:02}", "device_ids": ["x"], "memory_bytes": 3 << 30}
        | {"start_layer": place * 8, "end_layer": place * 8 + 8}
        for place in range(12)
    ]
    instance = {key: value for key, value in placed.items() if key != "index"} | {
        "model_id": "org/Some-Very-Long-Model-Name-With-Version-2.5-Instruct-72B-4bit",
        "plan": placed["plan"] | {"stages": stages},
        "stages": [stage_of(stage, "loading", 3) for stage in stages],
        "layer_count": 96,
    }
    topology = node.state["topology"] | {"nodes": nodes}
    node.change(topology=topology, instances={"i": instance}, master_node_id="00")
    page = open_page(node.url, width=width, height=800)
    live(page)
    expect(page.locator("[data-instance] .band")).to_have_count(12)
    assert scroll_overflow_px(page) == 0


def brightness(page: Page) -> float:
    """Return how bright the page's ground is, 0 to 1, as painted."""
    return page.evaluate(
        """() => {
            const canvas = new OffscreenCanvas(1, 1).getContext('2d');
            canvas.fillStyle = getComputedStyle(document.body).backgroundColor;
            canvas.fillRect(0, 0, 1, 1);
            const [red, green, blue] = canvas.getImageData(0, 0, 1, 1).data;
            return (red + green + blue) / 765;
        }"""
    )


def test_light_and_dark_follow_the_system_until_someone_chooses(
    node: ScriptedNode, open_page, screenshot
) -> None:
    node.place(node.previews["previews"][2]["request"])
    node.set_stages("ready", ["ready"] * 3, [3, 2, 1])
    page = open_page(node.url, color_scheme="dark")
    live(page)
    assert brightness(page) < 0.2
    screenshot(page, "dark")
    button = page.get_by_role("button", name=re.compile("^Theme"))
    expect(button).to_have_accessible_name("Theme: system. Change to light")
    button.click()
    expect(button).to_have_accessible_name("Theme: light. Change to dark")
    assert brightness(page) > 0.9
    page.reload()
    live(page)
    assert brightness(page) > 0.9


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(node: ScriptedNode, open_page, scheme: str) -> None:
    node.place(node.previews["previews"][2]["request"])
    node.set_stages("failed", ["ready", "failed", "loading"], [3, 0, 0], "out of memory")
    page = open_page(node.url, color_scheme=scheme)
    live(page)
    expect(page.get_by_text("out of memory").first).to_be_visible()
    weak = page.evaluate(CONTRAST_SCRIPT)
    assert weak == []


# Every visible text against the ground under it, by WCAG's formula; 4.5 is its level AA for small text.
CONTRAST_SCRIPT = """() => {
    const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
    const rgba = (colour, under) => {
        canvas.clearRect(0, 0, 1, 1);
        if (under) { canvas.fillStyle = `rgb(${under.slice(0, 3).join()})`; canvas.fillRect(0, 0, 1, 1); }
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const luminance = (colour) => {
        const [r, g, b] = colour.slice(0, 3).map((v) => v / 255)
            .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (element) => {
        const layers = [];
        for (let at = element; at; at = at.parentElement) layers.unshift(getComputedStyle(at).backgroundColor);
        return layers.reduce((under, layer) => rgba(layer, under), [255, 255, 255, 255]);
    };
    const weak = [];
    for (const element of document.querySelectorAll('body *')) {
        const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
        if (!own || !element.checkVisibility() || element.closest(':disabled, option, .unseen')) continue;
        const below = ground(element);
        const [one, other] = [luminance(below), luminance(rgba(getComputedStyle(element).color, below))];
        const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
        if (ratio < 4.5) weak.push(`${element.textContent.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
    }
    return weak;
}"""
