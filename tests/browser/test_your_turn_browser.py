"""Lesson 14 in a real JupyterLab: it runs through, its explorers answer to keys, and the upload widget predicts for a file and refuses a text."""
import pytest

LESSON = "nbs/lessons/14_your_turn.ipynb"
UPLOAD = ".jp-OutputArea-child:has(.lessonlib-upload)"


@pytest.fixture(scope="module")
def lesson(lab):
    with lab.notebook(LESSON):
        assert not lab.errors()
        yield lab


def into_view(locator):
    locator.evaluate("(node) => node.scrollIntoView({block: 'center'})")


def test_first_screen(lesson):
    lesson.top()
    assert lesson.page.get_by_role("heading", name="Your turn").first.is_visible()
    lesson.screenshot("your_turn_first_screen")


def test_three_explorers_live_and_their_static_twins_hide(lesson):
    live = lesson.page.locator(lesson.live)
    assert live.count() == 3
    for number, name in enumerate(("levers", "limit", "alarms")):
        into_view(live.nth(number))
        lesson.screenshot(f"your_turn_{name}", live.nth(number))


def test_keys_move_the_limit(lesson):
    explorer = lesson.page.locator(lesson.live).nth(1)
    explorer.locator(".noUi-handle").first.focus()
    lesson.page.keyboard.press("Home")
    explorer.get_by_text("Below 0.50 a person decides: 0% of the pictures").wait_for(timeout=10_000)
    lesson.page.keyboard.press("End")
    explorer.get_by_text("Below 1.00 a person decides: 100% of the pictures").wait_for(timeout=10_000)


def test_the_lesson_asked_about_its_own_pictures(lesson):
    upload = lesson.page.locator(UPLOAD)
    assert upload.count() == 1
    into_view(upload)
    upload.locator(".answer.refused", has_text="letter.jpg").wait_for(timeout=10_000)
    assert upload.locator(".answer:not(.refused)").count() >= 3
    lesson.screenshot("your_turn_upload", upload)


def test_a_picture_and_a_text_are_uploaded(lesson, tmp_path):
    from lessonlib.sketches import draw_pet

    draw_pet("Siamese", 700).save(tmp_path / "my_cat.jpg")
    (tmp_path / "my_cat_too.jpg").write_text("dear model")
    upload = lesson.page.locator(UPLOAD)
    with lesson.page.expect_file_chooser() as chooser: upload.get_by_role("button", name="Choose pictures").click()
    chooser.value.set_files([tmp_path / "my_cat.jpg", tmp_path / "my_cat_too.jpg"])
    upload.locator(".answer.refused", has_text="my_cat_too.jpg").wait_for(timeout=30_000)
    answered = upload.locator(".answer", has_text="my_cat.jpg")
    assert "%" in answered.inner_text() and answered.locator("img").count() == 1
    lesson.screenshot("your_turn_uploaded", upload)


def test_the_cleaner_shows_the_training_pictures(lesson):
    cleaner = lesson.page.locator(".lessonlib-cleaner")
    into_view(cleaner)
    cleaner.locator(".card img[src]").first.wait_for()
    lesson.screenshot("your_turn_cleaner", cleaner)
