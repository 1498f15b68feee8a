"""Pictures from the web: a server on this computer that does everything wrong that servers do, and searches without a network."""
import gzip
import hashlib
import http.server
import io
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import requests
from PIL import Image

import lessonlib.data as data
from lessonlib.data import download_images, image_files, search_images, verify_images


def picture(colour, kind="JPEG", size=(40, 30)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


ORANGE, BLUE, PNG = picture("orange"), picture("blue"), picture("green", "PNG")
PLAIN = {"/orange.jpg": ("image/jpeg", ORANGE), "/blue.jpg": ("image/jpeg", BLUE), "/mirror/orange": ("text/plain", ORANGE),
         "/really_a_png.jpg": ("image/jpeg", PNG), "/page": ("text/html", b"<html>no picture</html>"), "/empty.jpg": ("image/jpeg", b""),
         "/cut.jpg": ("image/jpeg", ORANGE[:300]), "/drawing.svg": ("image/svg+xml", b"<svg xmlns='http://www.w3.org/2000/svg'></svg>")}


class Handler(http.server.BaseHTTPRequestHandler):
    """Each path is a way to misbehave."""
    protocol_version = "HTTP/1.1"

    def head(self, status=200, **headers):
        self.send_response(status)
        for name, value in headers.items(): self.send_header(name.replace("_", "-"), value)
        self.send_header("Connection", "close")
        self.end_headers()

    def do_GET(self):
        self.server.requests.append((self.path, dict(self.headers)))
        name = self.path.strip("/").replace("/", "_")
        try:
            if self.path in PLAIN:
                kind, content = PLAIN[self.path]
                self.head(Content_Type=kind, Content_Length=len(content))
                self.wfile.write(content)
            else: getattr(self, name, self.missing)()
        except OSError: pass  # the other side has heard enough
        self.close_connection = True

    def missing(self): self.head(404)

    def broken(self): self.head(500)

    def moved(self): self.head(302, Location="/blue.jpg", Set_Cookie="track=me")

    def round(self): self.head(302, Location="/round")

    def to_a_file(self): self.head(302, Location="file:///etc/hostname")

    def to_half_an_address(self): self.head(302, Location="http://[::1/a.jpg")

    def to_an_empty_label(self): self.head(302, Location="http://..a/a.jpg")

    def to_no_port(self): self.head(302, Location="http://127.0.0.1:99999/a.jpg")

    def compressed(self):
        content = gzip.compress(ORANGE)
        self.head(Content_Type="image/jpeg", Content_Length=len(content), Content_Encoding="gzip")
        self.wfile.write(content)

    def identity(self):
        self.head(Content_Type="image/jpeg", Content_Length=len(ORANGE), Content_Encoding="Identity")
        self.wfile.write(ORANGE)

    def far_too_long(self):
        self.head(Content_Type="image/jpeg", Content_Length=10**12)
        self.wfile.write(b"0" * 10**7)

    def endless(self):
        self.head(Content_Type="image/jpeg")
        while True: self.wfile.write(b"0" * 2**16)

    def drip(self):  # a byte now and then: never silent, never ready
        self.head(Content_Type="image/jpeg")
        while not self.server.over.wait(0.05): self.wfile.write(b"0")

    def drip_head(self):
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while not self.server.over.wait(0.05): self.wfile.write(b"0")

    def silent(self): self.server.over.wait(20)

    def hangs_up(self):
        self.head(Content_Type="image/jpeg", Content_Length=5000)
        self.wfile.write(ORANGE[:400])

    def slow_but_good(self):
        self.head(Content_Type="image/jpeg", Content_Length=len(BLUE))
        self.wfile.write(BLUE[:100])
        time.sleep(0.5)
        self.wfile.write(BLUE[100:])

    def log_message(self, *args): pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 64


@pytest.fixture
def server(monkeypatch):
    for name in ("NO_PROXY", "no_proxy"): monkeypatch.setenv(name, "127.0.0.1,localhost")
    with Server(("127.0.0.1", 0), Handler) as server:
        server.requests, server.over, server.url = [], threading.Event(), f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.over.set()
        server.shutdown()


def names(folder): return sorted(path.name for path in Path(folder).iterdir())


def expected_name(content, suffix): return hashlib.sha256(content).hexdigest()[:16] + suffix


def test_good_pictures_are_kept_under_names_from_their_content(server, tmp_path, capsys):
    paths = ["orange.jpg", "really_a_png.jpg", "moved", "slow_but_good"]
    report = download_images([f"{server.url}/{path}" for path in paths], tmp_path / "new" / "folder")
    assert list(report.columns) == ["url", "path", "status", "reason", "bytes"] and report.url.tolist() == [f"{server.url}/{path}" for path in paths]
    assert report.status.tolist() == ["ok", "ok", "ok", "duplicate"] and report.reason.tolist()[:3] == [""] * 3
    assert report.bytes.tolist() == [len(content) for content in (ORANGE, PNG, BLUE, BLUE)]
    wanted = [expected_name(ORANGE, ".jpg"), expected_name(PNG, ".png"), expected_name(BLUE, ".jpg")]
    assert [Path(path).name for path in report.path[:3]] == wanted and names(tmp_path / "new" / "folder") == sorted(wanted)
    assert Path(report.path[1]).read_bytes() == PNG, "the suffix tells what is in the file, not what the server called it"
    assert capsys.readouterr().out.startswith("3 pictures saved, 1 there already, 0 failed")


FAILURES = {"missing": "404", "broken": "500", "page": "no image.*text/html", "empty.jpg": "no image", "cut.jpg": "no image",
            "drawing.svg": "no image.*svg", "round": "in circles", "to_a_file": "no address of an image",
            "to_half_an_address": "no address of an image", "to_an_empty_label": "no address of an image", "to_no_port": "no address of an image",
            "compressed": "asked not to", "far_too_long": "larger than 1 MB",
            "endless": "larger than 1 MB", "drip": "took more than 3 seconds", "drip_head": "took more than 3 seconds",
            "silent": "silent for 2 seconds", "hangs_up": "broke off"}


def test_each_kind_of_failure_has_its_reason_and_leaves_nothing(server, tmp_path):
    start = time.monotonic()
    report = download_images([f"{server.url}/{name}" for name in FAILURES], tmp_path, max_mb=1, timeout=2, seconds=3, threads=len(FAILURES))
    assert time.monotonic() - start < 15, "no server keeps us waiting"
    assert report.status.tolist() == ["failed"] * len(FAILURES) and set(report.path) == {""} and names(tmp_path) == []
    for reason, words in zip(report.reason, FAILURES.values()): assert re.search(words, reason), f"{words!r} not in {reason!r}"


def test_addresses_that_are_none(tmp_path):
    wrong = ["file:///etc/hostname", "ftp://example.org/a.jpg", "a.jpg", "", "http://", "javascript:alert(1)", "data:image/png;base64,AAAA"]
    report = download_images(wrong, tmp_path)
    assert report.status.tolist() == ["failed"] * len(wrong) and all("no address" in reason for reason in report.reason)
    assert len(download_images([], tmp_path)) == 0
    with pytest.raises(TypeError, match=r"try \[url\]"): download_images("http://127.0.0.1/a.jpg", tmp_path)


def test_a_malformed_address_spoils_nothing_for_the_others(server, tmp_path):
    """Python, urllib3 and requests each have their own error for these."""
    wrong = ["http://[::1/a.jpg", "http://a:99999/a.jpg", "http://a:b/a.jpg", f"http://{'a' * 70}.org/a.jpg", "http://..a/a.jpg", "http://a\0b/a.jpg",
             f"{server.url}/to_half_an_address", f"{server.url}/to_an_empty_label"]
    report = download_images([*wrong, f"{server.url}/orange.jpg"], tmp_path)
    assert report.status.tolist() == ["failed"] * len(wrong) + ["ok"] and names(tmp_path) == [expected_name(ORANGE, ".jpg")]
    assert all("no address of an image" in reason for reason in report.reason[:-1])


def test_compressed_pictures_are_refused_before_they_are_unpacked(server, tmp_path, monkeypatch):
    """Some versions of urllib3 unpack without a limit, so that a few bytes would fill the memory."""
    read = []
    iter_content = requests.Response.iter_content
    monkeypatch.setattr(requests.Response, "iter_content", lambda self, *sizes: read.append(self.url) or iter_content(self, *sizes))
    report = download_images([f"{server.url}/compressed", f"{server.url}/identity"], tmp_path, threads=1)
    assert report.status.tolist() == ["failed", "ok"] and "compresses the picture" in report.reason[0] and read == [f"{server.url}/identity"]
    assert [headers["Accept-Encoding"] for _, headers in server.requests] == ["identity"] * 2


def test_no_network_is_told_for_each_address(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    report = download_images(["http://127.0.0.1:9/a.jpg"], tmp_path)
    assert report.status.tolist() == ["failed"] and "no connection to the server" in report.reason[0]


def test_duplicates_are_found_by_content_also_in_the_folder_and_again(server, tmp_path):
    (tmp_path / "my own name.jpg").write_bytes(BLUE)
    urls = [f"{server.url}/{path}" for path in ("orange.jpg", "mirror/orange", "blue.jpg", "orange.jpg")]
    report = download_images(urls, tmp_path)
    assert report.status.tolist() == ["ok", "duplicate", "duplicate", "duplicate"]
    assert report.reason[1] == report.reason[3] == f"the same picture as {urls[0]}" and "before" in report.reason[2]
    assert Path(report.path[2]).name == "my own name.jpg" and report.path[0] == report.path[1]
    assert len([path for path, _ in server.requests if path == "/orange.jpg"]) == 1, "an address that is there twice is asked once"
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in names(tmp_path)}
    assert set(download_images(urls, tmp_path).status) == {"duplicate"}
    assert before == {name: (tmp_path / name).stat().st_mtime_ns for name in names(tmp_path)} and len(before) == 2


def test_neither_cookies_nor_passwords_are_sent(server, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login student password secret\ndefault login student password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert requests.utils.get_netrc_auth(server.url) == ("student", "secret"), "requests would send it"
    download_images([f"{server.url}/moved", f"{server.url}/orange.jpg"], tmp_path / "to")
    headers = [{name.lower() for name in sent} for _, sent in server.requests]
    assert len(headers) == 3 and not any({"cookie", "authorization"} & sent for sent in headers)


def test_many_at_once_and_all_of_them_whole(server, tmp_path):
    urls = [f"{server.url}/missing?{number}" for number in range(30)] + [f"{server.url}{path}" for path in PLAIN]
    report = download_images(urls, tmp_path, threads=16)
    assert (report.status == "ok").sum() == 3 and verify_images(image_files(tmp_path)) == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has another kind of Ctrl+C")
def test_ctrl_c_ends_it_soon_and_leaves_only_whole_files(server, tmp_path):
    threading.Timer(1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        download_images([f"{server.url}/orange.jpg", f"{server.url}/drip"], tmp_path, seconds=60)
    assert time.monotonic() - start < 20
    assert names(tmp_path) in ([], [expected_name(ORANGE, ".jpg")]) and verify_images(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_an_error(server, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(OSError): download_images([f"{server.url}/orange.jpg"], tmp_path / "file")

    def full(path, content): raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(data, "_write_atomically", full)
    with pytest.raises(OSError, match="No space left"): download_images([f"{server.url}/orange.jpg"], tmp_path / "to")


def test_a_picture_with_too_many_pixels_is_refused(server, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.warns(Image.DecompressionBombWarning): report = download_images([f"{server.url}/orange.jpg"], tmp_path)
    assert report.status.tolist() == ["failed"] and names(tmp_path) == []


# --- searching --------------------------------------------------------------------------------------------------------
class Engine:
    """A search engine that is asked for red pandas."""
    def __init__(self, fails_from=99, words="DNSError"):
        self.asked, self.times, self.fails_from, self.words = [], [], fails_from, words

    def images(self, query, max_results):
        self.asked.append((query, max_results))
        self.times.append(time.monotonic())
        if len(self.asked) >= self.fails_from: raise RuntimeError(self.words)
        found = {"title": query, "url": "https://example.org/page", "width": 4, "height": 3}
        return [found | {"image": f"https://example.org/{len(self.asked) * step}.jpg"} for step in range(max_results)] + [{"title": "no address"}]


def test_search_shares_the_count_pauses_and_gives_each_address_once():
    engine = Engine()
    found = search_images("red panda", count=7, variants=("", "photo", "zoo"), pause=0.2, engine=engine)
    assert engine.asked == [("red panda", 3), ("red panda photo", 3), ("red panda zoo", 3)]
    assert all(later - earlier >= 0.19 for earlier, later in zip(engine.times, engine.times[1:]))
    assert list(found.columns) == ["url", "title", "page", "width", "height", "licence"]
    assert found.url.is_unique and 5 <= len(found) <= 7 and set(found.licence) == {"unknown: see the page"}
    assert set(found.page) == {"https://example.org/page"}
    assert len(search_images("red panda", count=2, variants="photo", engine=Engine())) == 2


def test_search_that_stops_early_keeps_what_it_has(capsys):
    found = search_images("red panda", count=6, variants=("", "photo"), pause=0, engine=Engine(fails_from=2, words="Ratelimit"))
    assert len(found) == 3 and "Stopped early" in capsys.readouterr().err


def test_search_without_results_is_an_empty_table_and_without_a_network_an_error():
    assert len(search_images("qwxz", engine=Engine(1, "No results found."))) == 0
    with pytest.raises(ConnectionError, match="there is no network.*get_data"): search_images("red panda", engine=Engine(1))
    for term, count in [("  ", 5), ("red panda", 0)]:
        with pytest.raises(ValueError, match="something to look for"): search_images(term, count)


def test_search_without_the_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ddgs", None)
    with pytest.raises(ImportError, match=r'pip install "lessonlib\[search\]"'): search_images("red panda")


def test_the_real_package_without_a_network(monkeypatch):
    pytest.importorskip("ddgs")
    for name in ("DDGS_PROXY", "HTTPS_PROXY", "https_proxy"): monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match="no answer to the search"): search_images("red panda", count=3)


def test_the_note_on_licences_is_where_one_looks():
    assert "licence" in search_images.__doc__ and "search_images" in download_images.__doc__
