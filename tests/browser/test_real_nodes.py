"""The dashboard in a real browser, served by real nodes that run a real model."""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from benchmarks.nodes import NodeProcess

from browser.driver import Page, expect

pytestmark = pytest.mark.slow

MODEL = "exo-tiny"
PLAYED = Path(__file__).parent / "played.toml"
READY_TIMEOUT_MS = 60_000


@pytest.fixture(scope="module")
def nodes(dashboard: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[NodeProcess]]:
    """Three nodes of one cluster; the last one plays GPUs, on which nothing is placed."""
    folder = tmp_path_factory.mktemp("dashboard-nodes")
    played = {"EXO_GPU_BACKEND": f"simulated:{PLAYED}"}
    with NodeProcess(folder / "a", "--no-discovery") as first, ExitStack() as stack:
        address = first.addresses["cluster_address"]
        peer = f"--peer={address['host']}:{address['port']}"
        others = [
            NodeProcess(folder / "b", "--no-discovery", peer),
            NodeProcess(folder / "c", "--no-discovery", peer, environment=played),
        ]
        for node in others:
            node.launch()
            stack.push(node)
        for node in others:
            node.wait_ready()
        yield [first, *others]
        # Together: each takes its time to leave.
        for node in (first, *others):
            if node.process is not None and node.process.poll() is None:
                node.process.terminate()


def others_than_master(nodes: list[NodeProcess]) -> list[NodeProcess]:
    states = [node.get("/state") for node in nodes]
    return [
        node for node, state in zip(nodes, states, strict=True) if state["node_id"] != state["master_node_id"]
    ]


def live(page: Page, node_count: int) -> None:
    expect(page.get_by_role("status", name="Event stream")).to_have_text("Live")
    expect(page.get_by_role("region", name="Nodes", exact=True).locator("[data-node]")).to_have_count(
        node_count
    )


def ask(page: Page, question: str, answer: str) -> None:
    page.get_by_label("Message").fill(question)
    page.get_by_role("button", name="Send").click()
    last = page.get_by_role("log").locator(".answer").last
    expect(last.locator(".text")).to_contain_text(answer, timeout=READY_TIMEOUT_MS)
    expect(last).to_contain_text(re.compile(r"\d tokens/s"))
    expect(last).to_contain_text(re.compile(r"first token \d"))
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_a_model_is_placed_over_three_nodes_asked_and_deleted(
    nodes: list[NodeProcess], open_page, screenshot
) -> None:
    # Through a node that is not the master: its page must be as good as any other's.
    page = open_page(others_than_master(nodes)[0].url)
    live(page, 3)
    page.get_by_role("button", name=f"Place {MODEL}").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("radio", name="Pipeline over 3 nodes").check()
    screenshot(page, "real-place")
    dialog.get_by_role("button", name="Place", exact=True).click()
    card = page.get_by_role("region", name="Instances").locator("[data-instance]")
    expect(card.locator("header")).to_contain_text("ready", timeout=READY_TIMEOUT_MS)
    expect(card.get_by_role("listitem")).to_have_count(3)
    expect(card.locator(".band")).to_have_count(3)

    ask(page, "What is 12 + 30?", "42")
    screenshot(page, "real-answered")
    (instance,) = nodes[0].get("/instance")["instances"]
    assert len({stage["node_id"] for stage in instance["stages"]}) == 3

    page.get_by_role("button", name=f"Delete {MODEL}").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete", exact=True).click()
    expect(card).to_have_count(0)
    assert nodes[0].get("/instance")["instances"] == []


def test_a_machine_more_and_a_node_less_are_weighed_by_real_nodes(
    nodes: list[NodeProcess], open_page, screenshot
) -> None:
    page = open_page(others_than_master(nodes)[0].url)
    live(page, 3)
    page.get_by_role("button", name=f"Place {MODEL}").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("radio", name="Pipeline over 3 nodes").check()
    dialog.get_by_text("What if a node were gone").click()
    dialog.get_by_role("combobox", name="Device").fill("RTX 3090")
    expect(dialog).to_contain_text("GeForce RTX 3090: 24 GiB · 936 GB/s")
    dialog.get_by_role("button", name="Add").click()
    expect(dialog.locator(".verdict")).to_contain_text("With GeForce RTX 3090", timeout=READY_TIMEOUT_MS)
    expect(dialog.get_by_role("region", name="Now")).to_contain_text("tokens/s")
    screenshot(page, "real-what-if")
    dialog.get_by_role("button", name="Take GeForce RTX 3090 away").click()
    dialog.get_by_role("checkbox").first.check()
    expect(dialog.locator(".verdict")).to_contain_text("it would not fit any more", timeout=READY_TIMEOUT_MS)
    dialog.get_by_role("button", name="Ask for 2 nodes, not 3").click()
    expect(dialog.locator(".verdict")).to_contain_text("tokens/s", timeout=READY_TIMEOUT_MS)
    expect(dialog.get_by_role("button", name="Place without")).to_be_visible()
    dialog.get_by_role("button", name="Cancel").click()
    assert nodes[0].get("/instance")["instances"] == []


def test_the_first_message_places_the_model(nodes: list[NodeProcess], open_page) -> None:
    page = open_page(nodes[0].url)
    live(page, 3)
    expect(page.get_by_text("No model is placed.")).to_be_visible()
    page.get_by_role("button", name="Count to 12.").click()
    expect(page.get_by_role("log").locator(".text")).to_contain_text("11, 12", timeout=READY_TIMEOUT_MS)
    expect(page.get_by_role("region", name="Instances").locator("[data-instance] header")).to_contain_text(
        "ready"
    )


def test_gpus_that_a_node_plays_are_shown_as_it_tells_of_them(
    nodes: list[NodeProcess], open_page, screenshot
) -> None:
    page = open_page(nodes[0].url)
    live(page, 3)
    card = page.locator(f'[data-node="{nodes[2].get("/state")["node_id"]}"]')
    lines = card.locator("[data-device]")
    expect(lines).to_have_count(5)
    # The processor is real, the cards are not.
    expect(page.get_by_text("simulated", exact=True)).to_have_count(4)
    well = lines.filter(has_text="NVIDIA GeForce RTX 4090")
    for words in ("60 %", "limit 90 °C", "limit 450 W", "simulated:0", "healthy"):
        expect(well).to_contain_text(words)
    expect(well).to_contain_text(re.compile(r"temp\s*\d+ °C"))
    expect(well).to_contain_text(re.compile(r"power\s*\d+ W"))
    expect(well.get_by_role("meter", name="VRAM")).to_have_attribute(
        "aria-valuetext", "7.5 GiB of 24 GiB used"
    )
    hot = lines.filter(has_text="NVIDIA GeForce RTX 3060")
    expect(hot).to_contain_text("93 °C")
    expect(hot).to_contain_text("slowed by heat")
    expect(lines.filter(has_text="RTX PRO 6000")).to_contain_text(re.compile(r"temp\s*–\s*power\s*–"))
    failed = lines.filter(has_text="AMD Radeon RX 7900 XTX")
    expect(failed).to_contain_text(re.compile(r"failed: .+"), timeout=READY_TIMEOUT_MS)
    concerns = page.locator("[data-concern]")
    expect(concerns.nth(0)).to_contain_text(re.compile(r"simulated:2\s*failed: "))
    expect(concerns.nth(1)).to_contain_text(re.compile(r"simulated:1\s*slowed by heat"))
    # Telemetry goes on, and so does the picture.
    expect(well.get_by_role("img")).to_have_accessible_name(
        re.compile(r"^Load in the last \d+ s: 60 % throughout$")
    )
    card.scroll_into_view_if_needed()
    screenshot(page, "real-simulated")


def test_a_killed_node_is_said_to_be_gone_and_its_own_page_says_so_too(
    nodes: list[NodeProcess], open_page, screenshot
) -> None:
    watcher, victim = others_than_master(nodes)
    seen_from_other = open_page(watcher.url)
    own_page = open_page(victim.url, may_log="Failed to load resource")
    live(seen_from_other, 3)
    live(own_page, 3)
    victim.kill()
    expect(own_page.get_by_role("alert")).to_contain_text("Node unreachable.")
    expect(seen_from_other.get_by_role("region", name="Nodes", exact=True)).to_contain_text(
        "not connected", timeout=30_000
    )
    expect(seen_from_other.get_by_role("banner")).to_contain_text("2 of 3 nodes")
    screenshot(seen_from_other, "real-away")
