"""The web page in Debian's Chromium, driven by Playwright."""

import base64
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from conftest import EXAMPLES, random_network
from serving_helpers import serving
from vgg import Labels

CHROMIUM = shutil.which("chromium")
PHOTO = EXAMPLES / "chelsea.png"
LIMIT = 60_000  # bytes of a page load


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("needs Debian's chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with playwright.sync_playwright() as running:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = running.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, server):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.troubles = []
    page.on("console", lambda message: page.troubles.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: page.troubles.append(str(error)))
    page.goto(server.address)
    page.wait_for_selector("#model option", state="attached")
    yield page
    context.close()


def bars(page) -> list[str]:
    page.wait_for_selector("main:not(.busy) #bars li")
    return page.locator("#bars b").all_inner_texts()


def has_text(page, selector: str, text: str) -> None:
    """Wait until an element contains a text. The content security policy of the page forbids evaluating strings in it."""
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_contain_text(text, timeout=30_000)


def expected(server, data: bytes, **params) -> list[str]:
    result = server.ask("POST", "/v1/classify", content=data, params=params).json()["results"][0]
    return [one["label"] for one in result["predictions"]]


def test_a_page_load_is_small_and_from_this_server_only(browser, server):
    context = browser.new_context()
    page, responses = context.new_page(), []
    page.on("response", lambda response: responses.append(response))
    page.goto(server.address, wait_until="networkidle")
    assert all(response.url.startswith(server.address) for response in responses)
    assert all(response.status == 200 for response in responses)
    sizes = [response.request.sizes() for response in responses]
    assert sum(one["responseBodySize"] + one["responseHeadersSize"] for one in sizes) < LIMIT
    policy = responses[0].headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    context.close()


def test_an_example_shows_predictions_facts_and_a_heat_map(page, server):
    page.click("[data-example='cat.webp']")
    cat = server.ask("GET", "/page/cat.webp").content
    page.wait_for_selector("#facts dd")
    assert bars(page) == expected(server, cat, model="gap", version="2")  # the default of the page
    assert page.locator("#best").inner_text().lower() == bars(page)[0]
    assert "Parameters" in page.locator("#facts").inner_text()
    assert page.locator("#heat").evaluate("canvas => canvas.classList.contains('on')")
    painted = """canvas => {
        const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return data.some((value, place) => place % 4 == 3 && value > 100);
    }"""
    assert page.locator("#heat").evaluate(painted)
    shown, heat = page.locator("#image").bounding_box(), page.locator("#heat").bounding_box()
    assert shown["x"] < heat["x"] < heat["x"] + heat["width"] < shown["x"] + shown["width"]
    page.locator(".switch").click()
    assert not page.locator("#heat").evaluate("canvas => canvas.classList.contains('on')")
    assert page.troubles == []


def test_a_heat_map_fades_out_only_inside_the_image(page):
    painted = """async () => {
        const { paint } = await import("/page/heat.js"), canvas = new OffscreenCanvas(50, 50);
        paint(canvas, [[1, 1], [1, 1]], [0, 0.2, 0.8, 1]);
        const opacity = (x, y) => canvas.getContext("2d").getImageData(x, y, 1, 1).data[3];
        return [opacity(0, 25), opacity(25, 0), opacity(49, 25), opacity(25, 49), opacity(25, 25)];
    }"""
    left, top, right, bottom, middle = page.evaluate(painted)
    assert left == bottom == middle > 100
    assert max(top, right) < 20


def test_the_model_can_be_chosen(page, server):
    page.set_input_files("#choose", PHOTO)
    bars(page)
    page.select_option("#model", label="fc")
    has_text(page, "#facts", "fc")
    assert bars(page) == expected(server, PHOTO.read_bytes(), model="fc")
    assert page.locator("#heat-switch").is_visible()
    assert page.troubles == []


def test_several_images_become_a_gallery(page, server, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    photos = sorted(EXAMPLES.glob("*.*g"))
    page.set_input_files("#choose", [*photos, broken])
    page.wait_for_selector("#gallery ul:not(:has(button:not([aria-label])))")
    cards = page.locator("#gallery button")
    assert cards.count() == 4
    for place, photo in enumerate(photos):
        best = expected(server, photo.read_bytes(), model="gap", version="2")[0]
        assert cards.nth(place).get_attribute("aria-label").startswith(f"{photo.name}: {best}")
    cards.nth(3).click()
    assert page.locator("#error").inner_text() == "Not an image, or an unsupported format"
    cards.nth(1).click()
    assert page.locator("#error").is_hidden()
    assert page.locator("#file").inner_text() == photos[1].name


def test_an_image_the_browser_cannot_show_is_classified(page, server, tmp_path):
    image = tmp_path / "photo.tiff"
    Image.open(PHOTO).save(image)
    page.set_input_files("#choose", image)
    assert bars(page) == expected(server, image.read_bytes(), model="gap", version="2")
    page.wait_for_selector("#frame.blank")
    page.click("[data-example='cat.webp']")
    page.wait_for_selector("#frame:not(.blank)")


def test_the_last_choice_of_a_model_counts(page, server):
    page.set_input_files("#choose", sorted(EXAMPLES.glob("*.*g")) * 4)
    for label in ("fc", "gap, version 2", "fc"):
        page.select_option("#model", label=label)
    has_text(page, "#facts", "fc")
    page.wait_for_load_state("networkidle")
    best = [expected(server, photo.read_bytes(), model="fc")[0] for photo in sorted(EXAMPLES.glob("*.*g"))]
    assert page.locator("#gallery b").all_inner_texts() == best * 4
    assert page.troubles == []


def test_a_card_of_the_gallery_leads_to_its_result(browser, server):
    context = browser.new_context(viewport={"width": 390, "height": 700}, reduced_motion="reduce")
    page = context.new_page()
    page.goto(server.address)
    page.set_input_files("#choose", sorted(EXAMPLES.glob("*.*g")))
    page.wait_for_selector("#gallery ul:not(:has(button:not([aria-label])))")
    page.locator("#gallery button").nth(2).click()
    assert page.locator("#shown").evaluate("one => one.getBoundingClientRect().top") >= 0
    context.close()


def test_it_works_with_a_keyboard_and_a_screen_reader(page, server):
    seen, focus = [], "(({id, dataset, innerText}) => id || dataset.example || innerText)(document.activeElement)"
    for _ in range(12):
        page.keyboard.press("Tab")
        seen.append(page.evaluate(focus))
    order = ["model", "API", "choose", "cat.webp"]
    assert [one for one in seen if one in order][:4] == order
    page.locator("[data-example='coffee.webp']").focus()
    page.keyboard.press("Enter")
    has_text(page, "#status", "coffee.webp: ")
    best = bars(page)[0]
    assert page.locator("#status").text_content().startswith(f"coffee.webp: {best}, ")
    assert page.locator("[role=status]").count() == 1
    unnamed = """[...document.querySelectorAll("button, input, select")].filter((one) =>
        !one.labels?.length && !one.title && !one.innerText && !one.ariaLabel).length"""
    assert page.evaluate(unnamed) == 0


def test_independent_classes_one_logit_and_no_head_are_shown(browser, tmp_path):
    labels = Labels(("ant", "bee", "cat", "dog", "eel", "fox", "gnu"))
    networks = {
        "several": random_network(labels=labels, head="average, 24 relu, classes sigmoid", seed=3),
        "none": random_network(labels=labels, head="average, classes sigmoid", seed=3),
        "binary": random_network(head="max, classes binary", classes=2, seed=2),
        "backbone": random_network(head="none", classes=0),
    }
    bias = {"fc6.bias": np.full(7, -20, np.float32)}
    networks["none"] = replace(networks["none"], parameters={**networks["none"].parameters, **bias})
    options = []
    for name, network in networks.items():
        network.write(tmp_path / f"{name}.onnx")
        options += ["-m", tmp_path / f"{name}.onnx"]
    with serving(*options) as server:
        page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
        page.goto(server.address)
        page.wait_for_selector("#model option", state="attached")
        page.set_input_files("#choose", PHOTO)
        several = expected(server, PHOTO.read_bytes(), model="several")
        assert 1 < len(several) < 7
        assert bars(page) == several
        assert page.locator("#note").is_visible()
        page.select_option("#model", "none")
        has_text(page, "#best", "No class above 50%")
        assert page.locator("#bars li").count() == 0
        assert page.locator("#score").inner_text() == ""
        page.select_option("#model", "binary")
        has_text(page, "#bars", "negative")
        assert sorted(bars(page)) == ["negative", "positive"]
        assert not page.locator("#note").is_visible()
        page.select_option("#model", "backbone")
        has_text(page, "#error", "This vgg11 has no head, so it can't classify")
        page.context.close()


def test_pasting_and_dropping_work(page, server):
    for kind in ("paste", "drop"):
        page.evaluate(
            """([kind, data]) => {
                const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0)), transfer = new DataTransfer();
                transfer.items.add(new File([bytes], kind + ".png", {type: "image/png"}));
                const init = {bubbles: true, cancelable: true, clipboardData: transfer, dataTransfer: transfer};
                dispatchEvent(kind == "paste" ? new ClipboardEvent(kind, init) : new DragEvent(kind, init));
            }""",
            [kind, base64.b64encode(PHOTO.read_bytes()).decode()],
        )
        has_text(page, "#status", f"{kind}.png: ")
        assert bars(page) == expected(server, PHOTO.read_bytes(), model="gap", version="2")
    assert page.troubles == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_it_fits_every_screen_in_dark_and_light(browser, server, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.goto(server.address)
    page.wait_for_selector("#model option", state="attached")
    page.click("[data-example='rocket.webp']")
    bars(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    # Contrast as WCAG 2 counts it: 4.5 for text.
    contrast = """() => {
        const linear = (part) => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
        const light = (selector, property) => {
            const canvas = new OffscreenCanvas(1, 1).getContext("2d");
            canvas.fillStyle = getComputedStyle(document.querySelector(selector))[property];
            canvas.fillRect(0, 0, 1, 1);
            const [red, green, blue] = [...canvas.getImageData(0, 0, 1, 1).data].map((value) => linear(value / 255));
            return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
        };
        const card = light("#result", "backgroundColor");
        return ["#best", "#score", "#bars i", "#facts dt", "#file"].map((one) => {
            const ink = light(one, "color");
            return (Math.max(card, ink) + 0.05) / (Math.min(card, ink) + 0.05);
        });
    }"""
    assert min(page.evaluate(contrast)) >= 4.5
    context.close()


def test_it_asks_for_a_required_key(browser, models, tmp_path):
    (tmp_path / "keys").write_text("secret\n")
    with serving("-m", models["gap"], "--api-key-file", tmp_path / "keys") as guarded:
        context = browser.new_context()
        page = context.new_page()
        page.goto(guarded.address)
        page.fill("#key-field", "guess")
        page.click("#key button")
        has_text(page, "#key", "Invalid API key")
        page.fill("#key-field", "secret")
        page.click("#key button")
        page.wait_for_selector("#model option", state="attached")
        assert page.locator("#key").is_hidden()
        page.set_input_files("#choose", PHOTO)
        assert bars(page) == expected_with_key(guarded)
        context.close()


def expected_with_key(guarded) -> list[str]:
    response = guarded.ask("POST", "/v1/classify", content=PHOTO.read_bytes(), headers={"x-api-key": "secret"})
    return [one["label"] for one in response.json()["results"][0]["predictions"]]


def test_a_click_takes_one_request_and_little_cpu_time(page, server):
    page.click("[data-example='cat.webp']")
    page.wait_for_selector("#facts dd")
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})  # CPU time of the page's main thread

    def cpu_seconds() -> float:
        metrics = session.send("Performance.getMetrics")["metrics"]
        return next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")

    used, requests = [], []
    page.on("request", lambda request: requests.append(request.url.partition("?")[0]))
    for _ in range(5):
        for name in ("coffee.webp", "cat.webp"):
            before = cpu_seconds()
            requests.clear()
            page.click(f"[data-example='{name}']")
            has_text(page, "#status", f"{name}: ")
            used.append(cpu_seconds() - before)
            sent = [url.removeprefix(server.address) for url in requests if url.startswith(server.address)]
            assert sent == [f"/page/{name}", "/v1/classify"]  # the example itself, and its classification
            facts = page.locator("#facts dt").all_inner_texts()
            assert facts[:3] == ["Inference", "Decoding", "Total"]
    assert min(used) < 0.1


def test_the_description_can_be_read(page, server):
    page.goto(server.address + "/docs")
    page.wait_for_selector("#classify[open]")
    assert page.locator("details").count() == 37
    assert f"curl --data-binary @cat.jpg {server.address}/v1/classify" in page.locator("#classify").inner_text()
    assert page.troubles == []
