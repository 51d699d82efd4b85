"""GPUs on the page in a real browser: memory, heat, power, load over time, health, and many on one node."""

import re

import pytest

from browser.driver import Locator, Page, expect
from browser.gpu_machines import (
    DEGRADED,
    DREAM,
    FAILED,
    FORGE,
    HOT,
    RACK,
    SPARK,
    WARM,
    state_with_gpus,
    state_with_rack,
)
from browser.scripted_node import Json, ScriptedNode
from browser.test_dashboard import CONTRAST_SCRIPT, live, node_card, scroll_overflow_px


@pytest.fixture
def gpu_node(node: ScriptedNode) -> ScriptedNode:
    """A scripted node whose cluster has machines with many GPUs."""
    node.state = state_with_gpus()
    return node


def device_line(within: Locator, device_id: str) -> Locator:
    return within.locator(f'[data-device="{device_id}"]')


def set_device(node: ScriptedNode, device_id: str, **fields: Json | float | str | None) -> None:
    states = node.state["gpu_device_state"]
    node.change(gpu_device_state=states | {device_id: states[device_id] | fields})


def test_a_node_with_eight_gpus_shows_each_with_its_own_memory(gpu_node, open_page, screenshot) -> None:
    page = open_page(gpu_node.url)
    live(page)
    forge = node_card(page, "forge")
    expect(forge.get_by_text("GPU", exact=True)).to_have_count(8)
    expect(forge.get_by_role("meter", name="RAM", exact=True)).to_have_attribute(
        "aria-valuetext", "210 GiB of 1.5 TiB used"
    )
    expect(forge.get_by_role("meter", name="VRAM", exact=True)).to_have_count(7)
    # Seven tell: the node's sum is theirs, and says so.
    expect(forge.get_by_role("meter", name="VRAM of the 7 of 8 GPUs that tell")).to_have_attribute(
        "aria-valuetext", "454 GiB of 560 GiB used"
    )
    first = device_line(forge, f"{FORGE}/cuda:0")
    for words in ("cuda:0", "NVIDIA H100 80GB HBM3", "88 %", "58 °C", "limit 87 °C", "540 W", "limit 700 W"):
        expect(first).to_contain_text(words)
    expect(first.get_by_role("meter", name="VRAM")).to_have_attribute(
        "aria-valuetext", "61.5 GiB of 80 GiB used"
    )
    expect(first).to_contain_text("healthy")
    screenshot(page, "gpus-1440-light")


def test_troubles_are_said_in_words_on_the_device_and_on_its_node(gpu_node, open_page) -> None:
    page = open_page(gpu_node.url)
    live(page)
    forge = node_card(page, "forge")
    header = forge.locator("header").first
    for words in ("1 GPU failed", "1 GPU degraded", "1 GPU slowed", "1 GPU hot"):
        expect(header).to_contain_text(words)

    failed = device_line(forge, f"{FORGE}/cuda:{FAILED}")
    expect(failed).to_contain_text("failed: GPU has fallen off the bus")
    for name in ("load", "temp", "power"):
        expect(failed).to_contain_text(re.compile(rf"{name}\s*–"))
    expect(failed).to_contain_text("– of 80 GiB used")
    expect(failed.get_by_role("meter")).to_have_count(0)

    hot = device_line(forge, f"{FORGE}/cuda:{HOT}")
    expect(hot).to_contain_text("slowed by heat, its power limit")
    expect(hot).to_contain_text("88 °C")
    expect(device_line(forge, f"{FORGE}/cuda:{WARM}")).to_contain_text("hot: 3 °C below its limit")
    expect(device_line(forge, f"{FORGE}/cuda:0")).not_to_contain_text(re.compile("slowed|hot:"))


def test_what_is_there_and_not_used_stands_apart_with_the_reason_and_what_to_do(gpu_node, open_page) -> None:
    nodes = gpu_node.state["topology"]["nodes"]
    forge_node = next(one for one in nodes if one["node_id"] == FORGE)
    forge_node["refused_devices"] = [
        {
            "backend": "cuda",
            "kind": "wrong",
            "name": "NVIDIA H100 80GB HBM3",
            "local_alias": "cuda:8",
            "reason": "its check failed: it computed wrongly",
            "next_step": "update its driver",
        }
    ]
    page = open_page(gpu_node.url)
    live(page)
    forge = node_card(page, "forge")
    refused = forge.get_by_role("list", name="Not used").get_by_role("listitem")
    expect(refused).to_have_count(1)
    expect(refused).to_contain_text("cuda:8 NVIDIA H100 80GB HBM3")
    expect(refused).to_contain_text("not used: its check failed: it computed wrongly")
    expect(forge.locator("[data-device]")).to_have_count(len(forge_node["devices"]))
    forge.get_by_role("button", name="Details of forge").click()
    expect(page.get_by_role("dialog").locator("[data-refused]")).to_contain_text("update its driver")
    expect(node_card(page, "oak").get_by_role("list", name="Not used")).to_have_count(0)


def test_what_is_wrong_stands_before_all_nodes_until_it_is_mended(gpu_node, open_page) -> None:
    gpu_node.nodes |= {"wishes": []}
    page = open_page(gpu_node.url)
    live(page)
    said = page.get_by_role("status", name="What happened")
    expect(said).to_have_text(
        re.compile(r"^forge cuda:5 failed: GPU has fallen off .* forge cuda:6 degraded")
    )
    rows = page.locator("[data-concern]")
    expect(page.get_by_role("heading", name="4 devices need a look")).to_be_visible()
    expect(rows).to_have_text(
        [
            re.compile(r"^\s*forge cuda:5\s*failed: GPU has fallen off the bus; kept out for 120 s"),
            re.compile(r"^\s*forge cuda:2\s*slowed by heat, its power limit"),
            re.compile(r"^\s*forge cuda:6\s*degraded: 1 memory error that could not be corrected"),
            re.compile(r"^\s*dream simulated:0\s*slowed to 71\s% at 75\s°C: 79\s°C predicted within 60 s"),
        ]
    )
    # With the keyboard from there to all that is known of it, and back.
    button = page.get_by_role("button", name="Details of forge cuda:5")
    button.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="forge")
    failed = device_line(dialog, f"{FORGE}/cuda:{FAILED}")
    expect(failed.locator("summary")).to_be_focused()
    expect(failed.get_by_text("Xid 79: GPU has fallen off the bus.")).to_be_in_viewport()
    expect(dialog.locator("details[open]")).to_have_count(1)
    page.keyboard.press("Escape")
    expect(button).to_be_focused()

    set_device(gpu_node, f"{FORGE}/cuda:{FAILED}", health="healthy", health_reason=None)
    expect(rows).to_have_count(3)
    set_device(gpu_node, f"{FORGE}/cuda:0", health="failed", health_reason="it hangs")
    expect(rows.first).to_contain_text("forge cuda:0")
    expect(said).to_have_text("forge cuda:0 failed: it hangs.")
    well = {"health": "healthy", "health_reason": None}
    cool = {"is_thermal_throttling": False, "throttle_reasons": [], "thermal_temperature_c": 60.0}
    for place in (0, HOT, DEGRADED, WARM):
        set_device(gpu_node, f"{FORGE}/cuda:{place}", **well, **cool)
    expect(rows).to_have_count(1)
    set_device(gpu_node, f"{DREAM}/simulated:0", thermal=None)
    expect(rows).to_have_count(0)
    header = node_card(page, "forge").locator("header").first
    expect(header).not_to_contain_text("GPU")


@pytest.mark.parametrize("width", [375, 1440])
def test_of_two_hundred_gpus_the_failed_one_is_seen_first(node, open_page, screenshot, width: int) -> None:
    node.state = state_with_rack()
    page = open_page(node.url, width=width, height=1200)
    live(page)
    rack = node_card(page, "rack")
    expect(rack.locator("header").first).to_contain_text("1 GPU failed")
    lines = rack.locator("[data-device]")
    expect(lines).to_have_count(9)
    expect(lines.last).to_contain_text("failed: it computes wrong products")
    assert scroll_overflow_px(page) == 0
    rack.scroll_into_view_if_needed()
    screenshot(page, f"gpus-200-{width}")
    rack.get_by_role("button", name="Show all 201 devices of rack").click()
    expect(lines).to_have_count(201)
    assert scroll_overflow_px(page) == 0
    # They are told apart, and what they tell goes on.
    one = device_line(rack, f"{RACK}/cuda:199")
    expect(one).to_contain_text("cuda:199")
    set_device(node, f"{RACK}/cuda:199", thermal_temperature_c=52.0)
    expect(one).to_contain_text("52 °C")
    rack.get_by_role("button", name="Show fewer devices of rack").click()
    expect(lines).to_have_count(9)


def test_what_is_simulated_and_what_is_unified_is_named(gpu_node, open_page) -> None:
    page = open_page(gpu_node.url)
    live(page)
    dream = node_card(page, "dream")
    expect(dream.get_by_text("simulated", exact=True)).to_have_count(1)
    expect(page.get_by_text("simulated", exact=True)).to_have_count(1)
    expect(device_line(dream, f"{DREAM}/simulated:0").locator(".what")).to_have_text(
        re.compile(r"^\s*GPU\s*NVIDIA GeForce RTX 4090\s*simulated\s*$")
    )

    spark = node_card(page, "spark")
    expect(spark.get_by_role("meter")).to_have_count(1)
    expect(spark.get_by_role("meter", name="Unified memory")).to_have_attribute(
        "aria-valuetext", "44 GiB of 128 GiB used"
    )


def test_load_over_time_is_kept_while_the_page_is_open(gpu_node, open_page, screenshot) -> None:
    device_id = f"{SPARK}/cuda:0"
    page = open_page(gpu_node.url, has_own_time=True)
    live(page)
    line = device_line(node_card(page, "spark"), device_id)
    chart = line.get_by_role("img")
    expect(chart).to_have_accessible_name(
        re.compile(r"^Load (just now: 55 %|in the last \d s: 55 % throughout)$")
    )

    def pass_with(load: float | None, words: str) -> None:
        page.clock.fast_forward(9_000)
        set_device(gpu_node, device_id, compute_utilization_percent=load)
        expect(line).to_contain_text(re.compile(rf"load\s*{words}"))

    for load in (80, 12, 33, 71, 96, 98, 95, 64):
        pass_with(load, f"{load} %")
    name = re.compile(r"^Load in the last \d+ s: 12 % to 98 %, \d\d % on average$")
    expect(chart).to_have_accessible_name(name)
    expect(chart.locator(".line")).to_have_count(1)
    # Unknown is a hole, no zero: the range stays.
    pass_with(None, "–")
    pass_with(40, "40 %")
    pass_with(45, "45 %")
    expect(chart.locator(".line")).to_have_count(2)
    expect(chart).to_have_accessible_name(re.compile(r": 12 % to 98 %, "))
    unknown = device_line(node_card(page, "reed"), "c4d81e6f02a74c95/metal:0").get_by_role("img")
    expect(unknown).to_have_accessible_name("Load over time –")
    line.scroll_into_view_if_needed()
    screenshot(page, "gpus-load")
    # Nothing older than the window is kept.
    page.clock.fast_forward(301_000)
    set_device(gpu_node, device_id, compute_utilization_percent=50.0)
    expect(chart).to_have_accessible_name("Load just now: 50 %")
    page.get_by_role("button", name="Details of spark").click()
    pass_with(51, "51 %")
    pass_with(49, "49 %")
    screenshot(page, "gpus-load-detail")


def open_detail(page: Page, name: str) -> Locator:
    page.get_by_role("button", name=f"Details of {name}", exact=True).click()
    return page.get_by_role("dialog", name=name)


def test_the_detail_tells_all_that_is_known_of_each_device(gpu_node, open_page, screenshot) -> None:
    page = open_page(gpu_node.url)
    live(page)
    dialog = open_detail(page, "dream")
    gpu = device_line(dialog, f"{DREAM}/simulated:0")
    expect(gpu).to_contain_text("simulated")
    expect(gpu).to_contain_text("412 W, limit 450 W")
    expect(gpu).to_contain_text(re.compile(r"Predicted\s*77 °C in 30 s, ± 0.6 °C"))
    expect(gpu).to_contain_text(re.compile(r"Can hold\s*66 % of full work for good"))
    expect(gpu).to_contain_text(re.compile(r"Slowed\s*–"))
    expect(gpu).to_contain_text(re.compile(r"Driver\s*–"))
    expect(gpu.get_by_role("meter", name="VRAM")).to_be_visible()
    expect(device_line(dialog, f"{DREAM}/cpu:0")).to_contain_text("81 %, not plugged in")
    screenshot(page, "gpus-detail")
    page.keyboard.press("Escape")

    # Eight are a list first; the keyboard opens one.
    dialog = open_detail(page, "forge")
    failed = device_line(dialog, f"{FORGE}/cuda:{FAILED}")
    expect(failed).to_contain_text("failed: GPU has fallen off the bus")
    fault = failed.get_by_text("Xid 79: GPU has fallen off the bus.")
    expect(fault).to_be_hidden()
    failed.locator("summary").focus()
    page.keyboard.press("Enter")
    expect(fault).to_be_visible()
    screenshot(page, "gpus-detail-failed")
    hot = device_line(dialog, f"{FORGE}/cuda:{HOT}")
    hot.locator("summary").click()
    expect(hot).to_contain_text("by heat, its power limit")
    expect(hot).to_contain_text("1290 MHz, limit 1980 MHz")
    # An opened one stays open while telemetry goes on.
    set_device(gpu_node, f"{FORGE}/cuda:{HOT}", thermal_temperature_c=91.0)
    expect(hot).to_contain_text("91 °C, limit 87 °C")
    expect(fault).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1440])
def test_gpus_fit_and_can_be_read(gpu_node, open_page, screenshot, width: int, scheme: str) -> None:
    page = open_page(gpu_node.url, width=width, height=1200, color_scheme=scheme)
    live(page)
    forge = node_card(page, "forge")
    expect(forge.locator("[data-device]")).to_have_count(9)
    assert scroll_overflow_px(page) == 0
    assert page.evaluate(CONTRAST_SCRIPT) == []
    # Nothing of a device hangs out of its card, nor over its neighbour.
    card = forge.bounding_box()
    assert card is not None
    for line in forge.locator("[data-device]").all():
        assert line.evaluate("e => e.scrollWidth <= e.clientWidth")
        box = line.bounding_box()
        assert box is not None
        assert box["x"] >= card["x"]
        assert box["x"] + box["width"] <= card["x"] + card["width"]
    forge.scroll_into_view_if_needed()
    screenshot(page, f"gpus-{width}-{scheme}")
    dialog = open_detail(page, "forge")
    dialog.locator("details").nth(HOT + 1).locator("summary").click()
    assert scroll_overflow_px(page) == 0
    assert dialog.locator(".body").evaluate("e => e.scrollWidth <= e.clientWidth")
    assert page.evaluate(CONTRAST_SCRIPT) == []
    screenshot(page, f"gpus-detail-{width}-{scheme}")
