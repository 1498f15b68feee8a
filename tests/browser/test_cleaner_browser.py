"""The image cleaner in a real JupyterLab: relabel and delete by mouse and by keyboard, apply, look at the files, restore."""
import json

import pytest
from jupyter_browser import write_notebook

CLEANER = ".lessonlib-cleaner"
CELL = """
from lessonlib.cleaner import ImageCleaner
cleaner = ImageCleaner("pets", page_size=20)
cleaner
"""


def draw(folder):
    """Two classes of twelve sketches, one picture twice, one that cannot be opened."""
    from lessonlib.sketches import draw_pet

    for breed in ("Siamese", "beagle"):
        (folder / breed).mkdir(parents=True)
        for number in range(1, 13): draw_pet(breed, number).save(folder / breed / f"{breed}_{number}.jpg")
    draw_pet("beagle", 4).save(folder / "Siamese" / "Siamese_13.jpg")
    (folder / "beagle" / "beagle_14.jpg").write_bytes(b"half a picture")
    return folder


def contents(folder):
    """Every image file outside of the plan's own folder, with its bytes."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.jpg")) if ".lessonlib" not in path.parts}


@pytest.fixture(scope="module")
def pets(folder):
    return draw(folder / "pets")


@pytest.fixture(scope="module")
def cleaner(lab, folder, pets):
    write_notebook(folder / "cleaner.ipynb", CELL)
    with lab.notebook("cleaner.ipynb"):
        assert not lab.errors()
        view = lab.page.locator(CLEANER)
        view.locator(".card").first.wait_for()
        view.evaluate("(view) => view.scrollIntoView({block: 'start'})")
        yield view


def card(cleaner, name):
    return cleaner.locator(f'.card[title$="{name}"]')


def choose(cleaner, menu, value):
    cleaner.locator(f'.menus select[name="{menu}"]').select_option(value)


def wait_for(cleaner, part, text):
    cleaner.locator(f".{part}", has_text=text).wait_for(timeout=10_000)


def press(cleaner, *keys):
    cleaner.locator(".grid").focus()
    for key in keys: cleaner.page.keyboard.press(key)


def test_pictures_come_and_the_static_twin_hides(lab, cleaner):
    wait_for(cleaner, "caption", "Images 1-20 of 26")
    cleaner.page.wait_for_function(f"() => document.querySelectorAll('{CLEANER} .card img[src]').length >= 19")
    assert cleaner.locator(".card img.missing").count() == 1  # the one that cannot be opened says so
    twin = lab.page.locator(f".jp-OutputArea-child:has({CLEANER}) + .jp-OutputArea-child")
    assert twin.locator("img").count() == 1 and not twin.is_visible()
    assert cleaner.locator(".card").first.get_attribute("aria-label").startswith(("Siamese_13.jpg", "beagle_14.jpg"))
    lab.screenshot("cleaner_first_page", cleaner)


def test_keyboard_deletes_and_undoes(cleaner):
    choose(cleaner, "label", "beagle")
    wait_for(cleaner, "caption", "Images 1-13 of 13")
    press(cleaner, "d")  # the most suspicious beagle: the file that is no picture
    wait_for(cleaner, "status", "beagle/beagle_14.jpg: delete")
    press(cleaner, "ArrowRight", "1")
    wait_for(cleaner, "summary", "1 delete, 1 relabel")
    press(cleaner, "u")
    wait_for(cleaner, "summary", "1 delete, 0 relabel")
    press(cleaner, "r")
    wait_for(cleaner, "summary", "1 delete, 1 relabel")


def test_mouse_decides_in_another_class_and_nothing_is_lost(lab, cleaner):
    choose(cleaner, "label", "Siamese")
    wait_for(cleaner, "caption", "Images 1-13 of 13")
    card(cleaner, "Siamese_13.jpg").get_by_text("Delete").click()
    wait_for(cleaner, "summary", "2 delete, 1 relabel")
    card(cleaner, "Siamese_7.jpg").locator(".picture").click()
    wait_for(cleaner, "detail", "Siamese/Siamese_7.jpg")
    cleaner.locator('.detail select[name="relabel"]').select_option("beagle")
    wait_for(cleaner, "summary", "2 delete, 2 relabel")
    card(cleaner, "Siamese_2.jpg").get_by_text("Keep").click()
    wait_for(cleaner, "summary", "Decided: 5")
    assert card(cleaner, "Siamese_7.jpg").locator(".ribbon").text_content() == "→ beagle"
    card(cleaner, "Siamese_13.jpg").locator(".picture").click()
    wait_for(cleaner, "why", "as beagle/beagle_4.jpg")
    cleaner.locator("figure img[src]").wait_for()
    lab.screenshot("cleaner_decisions", cleaner)
    choose(cleaner, "label", "beagle")
    wait_for(cleaner, "caption", "Images 1-13 of 13")
    assert card(cleaner, "beagle_14.jpg").locator(".ribbon").text_content() == "delete"


def test_apply_asks_moves_and_restore_brings_back(lab, cleaner, pets):
    before = contents(pets)
    cleaner.get_by_role("button", name="Apply…").click()
    dialog = cleaner.get_by_role("dialog")
    dialog.wait_for()
    assert dialog.locator("tbody tr").count() == 4 and contents(pets) == before
    assert cleaner.page.evaluate("() => document.activeElement.textContent") == "Yes, apply"
    lab.screenshot("cleaner_apply", cleaner)
    cleaner.page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    assert cleaner.page.evaluate("() => document.activeElement.textContent") == "Apply…" and contents(pets) == before
    cleaner.get_by_role("button", name="Apply…").click()
    cleaner.get_by_role("button", name="Yes, apply").click()
    wait_for(cleaner, "status", "4 files moved")
    after = contents(pets)
    assert "Siamese/Siamese_13.jpg" not in after and "beagle/beagle_14.jpg" not in after
    assert after["beagle/Siamese_7.jpg"] == before["Siamese/Siamese_7.jpg"] and len(after) == len(before) - 2
    cleaner.get_by_role("button", name="Restore…").click()
    cleaner.get_by_role("dialog").locator("tbody tr").first.wait_for()
    lab.screenshot("cleaner_restore", cleaner)
    cleaner.get_by_role("button", name="Yes, restore all").click()
    wait_for(cleaner, "status", "4 files are back")
    assert contents(pets) == before


def test_filter_by_flag_has_a_threshold(lab, cleaner):
    choose(cleaner, "label", "")
    choose(cleaner, "flag", "dark")
    number = cleaner.locator(".limit input[type=number]")
    number.fill("0.999")
    number.press("Enter")
    wait_for(cleaner, "status", "dark: threshold 0.999")
    assert cleaner.locator(".card").count() > 5
    reason = cleaner.locator(".card .reason", has_text="dark").first.text_content()
    assert "< 0.999" in reason
    lab.screenshot("cleaner_threshold", cleaner)
    choose(cleaner, "flag", "")
    wait_for(cleaner, "caption", "of 26")


def test_all_controls_have_names_and_the_order_of_tab_is_that_of_the_page(cleaner):
    unnamed = cleaner.evaluate("""(view) => [...view.querySelectorAll("button, select, input")].filter((node) =>
        !(node.textContent.trim() || node.getAttribute("aria-label") || node.closest("label"))).map((node) => node.outerHTML)""")
    assert unnamed == []
    order = cleaner.evaluate("""(view) => [...view.querySelectorAll("button:not([tabindex='-1']), select, input, .grid")].map((node) =>
        ["menus", "grid", "detail", "bar"].find((name) => node.closest("." + name))).filter(Boolean)""")
    assert list(dict.fromkeys(order)) == ["menus", "grid", "detail", "bar"]
    assert cleaner.locator(".status").get_attribute("aria-live") == "polite"


def test_static_picture_follows_and_stays_without_a_kernel(lab, cleaner, folder):
    press(cleaner, "ArrowRight", "k")
    wait_for(cleaner, "summary", "2 keep")  # one of them from before: a keep is not used up by Apply
    cleaner.page.wait_for_timeout(2500)
    lab.save()
    outputs = json.loads((folder / "cleaner.ipynb").read_text())["cells"][0]["outputs"]
    static = [output for output in outputs if "image/jpeg" in output.get("data", {})]
    assert len(static) == 1 and "2 keep" in "".join(static[0]["data"]["text/plain"])


def test_without_a_kernel_the_contact_sheet_is_seen(lab, cleaner, folder):
    lab.save()
    saved = json.loads((folder / "cleaner.ipynb").read_text())
    (folder / "read_only.ipynb").write_text(json.dumps(saved | {"metadata": {}}))  # names no kernel: JupyterLab asks before it starts one
    lab.close()
    lab.open("read_only.ipynb", kernel=False)
    sheet = lab.page.locator(".jp-OutputArea-child img").first
    sheet.wait_for()
    assert sheet.is_visible() and sheet.bounding_box()["width"] > 400
    lab.screenshot("cleaner_without_kernel")
