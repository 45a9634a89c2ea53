"""The command line as a script uses it: what it prints, and what it exits with."""

import io
import json
import os
import subprocess
import sys
import threading

import pytest

from heap_middleware import HeapMonitor, HeapSettings
from heap_middleware.cli import main
from heap_middleware.cli import page as page_module
from heap_middleware.exposition.requests import PageRequest

pytestmark = pytest.mark.one_python

TWO_WORKERS = """\
# TYPE heap_endpoint_requests_total counter
heap_endpoint_requests_total{method="GET",route="/leakable"} 100.0
heap_endpoint_requests_total{method="GET",route="/clean"} 900.0
heap_endpoint_measured_requests_total{method="GET",route="/leakable"} 50.0
heap_endpoint_measured_requests_total{method="GET",route="/clean"} 450.0
heap_endpoint_objects_gained_total{method="GET",route="/leakable"} 110.0
heap_endpoint_objects_gained_total{method="GET",route="/clean"} 5000.0
heap_endpoint_objects_lost_total{method="GET",route="/leakable"} 10.0
heap_endpoint_objects_lost_total{method="GET",route="/clean"} 4991.0
heap_endpoint_retained_objects{method="GET",route="/leakable",pid="7"} 60.0
heap_endpoint_retained_objects{method="GET",route="/leakable",pid="8"} 40.0
heap_endpoint_retained_objects{method="GET",route="/clean",pid="7"} 4000.0
heap_endpoint_retained_bytes{method="GET",route="/leakable",pid="7"} 6000.0
heap_endpoint_retained_objects_by_type{method="GET",route="/leakable",pid="7",module="app.LeakObj"} 60.0
heap_endpoint_retained_objects_by_type{method="GET",route="/leakable",pid="8",module="app.LeakObj"} 40.0
heap_endpoint_leak_objects_per_request{method="GET",route="/leakable"} 2.0
object_count{module="app.LeakObj",pid="7"} 61.0
object_count{module="app.LeakObj",pid="8"} 41.0
heap_size_bytes{module="app.LeakObj",pid="7"} 1000.0
heap_size_bytes_total{pid="7"} 16000000.0
heap_size_bytes_total{pid="8"} 4000000.0
heap_worker_snapshot_age_seconds{pid="7"} 0.0
heap_worker_snapshot_age_seconds{pid="8"} 14.0
heap_tracker_sampling_interval{pid="7"} 4.0
heap_middleware_overhead_seconds_total{part="census"} 1.5
heap_middleware_overhead_seconds_total{part="request"} 0.5
heap_middleware_info{version="1",backend="native",census="reachable",python="3.12.1",pid="7"} 1.0
somebody_elses{label="value"} 3
"""


def test_once_prints_the_leaking_route_first(pages, capsys):
    """`--once` names the leaking route on top, with the verdict, sums over workers and the types it keeps."""
    pages.body = TWO_WORKERS.encode()
    assert main(["top", pages.url, "--once"]) == 0
    lines = capsys.readouterr().out.splitlines()
    header = next(number for number, line in enumerate(lines) if line.startswith("route"))
    first = lines[header + 1].split()
    assert first[:2] == ["GET", "/leakable"]
    assert first[2:5] == ["2.00", "2.00", "100"]  # verdict, kept per measured request, retained over both workers
    assert "app.LeakObj × 100" in lines[header + 1]
    assert "2 workers, heap 20.0 MB" in "".join(lines)
    assert pages.asked == [("/metrics", None)]


def test_json_is_for_scripts(pages, capsys):
    """`--once --json` is one JSON object, with numbers as they are."""
    pages.body = TWO_WORKERS.encode()
    assert main(["top", pages.url + "/metrics", "--once", "--json", "--sort", "retained"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == 1
    assert [row["route"] for row in found["routes"]] == ["/clean", "/leakable"]
    assert found["routes"][0]["leak_objects_per_request"] is None
    assert found["routes"][1]["leak_objects_per_request"] == 2.0
    assert found["routes"][1]["objects_per_request"] == 2.0
    assert found["types"][0] == {
        "module": "app.LeakObj",
        "objects": 102.0,
        "bytes": 1000.0,
        "objects_grown": 102.0,
        "bytes_grown": 1000.0,
    }
    assert found["workers"]["8"]["age"] == 14.0
    assert found["overhead"] == {"census": 1.5, "request": 0.5}


def test_it_reads_the_page_that_we_serve(pages, capsys):
    """A page of the middleware itself is read whole, without attribution as well."""
    monitor = HeapMonitor(HeapSettings())
    pages.body = monitor.respond(PageRequest("GET", "/metrics")).body
    assert main(["top", pages.url, "--once"]) == 0
    out = capsys.readouterr().out
    assert "Set attribution=True" in out
    assert "builtins.function" in out


def test_limit_cuts_and_says_so(pages, capsys):
    """Of more routes than `--limit` the rest is a number."""
    pages.body = TWO_WORKERS.encode()
    assert main(["top", pages.url, "--once", "--limit", "1"]) == 0
    out = capsys.readouterr().out
    assert "… 1 more" in out
    assert "/clean" not in out


def test_a_token_is_sent(pages, capsys, monkeypatch):
    """A token comes from --token or from the variable that the service itself reads."""
    pages.body = TWO_WORKERS.encode()
    main(["top", pages.url, "--once", "--token", "a-long-enough-token"])
    monkeypatch.setenv("HEAP_MIDDLEWARE_METRICS_ACCESS", "the-services-own-token")
    main(["top", pages.url, "--once"])
    assert [token for _, token in pages.asked] == ["Bearer a-long-enough-token", "Bearer the-services-own-token"]


def test_names_cannot_steer_the_terminal(pages, capsys):
    """Control characters in a label are shown as such, not obeyed."""
    pages.body = TWO_WORKERS.replace("/leakable", "/\x1b[2J\x1b[31mleak\x07").encode()
    assert main(["top", pages.url, "--once"]) == 0
    assert "\x1b" not in capsys.readouterr().out


PAGE = "<!doctype html><title>My shop</title>"
OTHER = '# TYPE up gauge\nup{job="x"} 1\n'


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (200, PAGE, "is not a metrics page: give the URL of the middleware's /metrics"),
        (200, "", "is not a metrics page"),
        (200, OTHER, "has metrics, and none of heap_middleware among them"),
        (200, "heap_endpoint_requests_total{method= 3", "is not a metrics page as it should be"),
        (200, "heap_middleware_info{} not-a-number\n", "is not a metrics page as it should be"),
        (403, "forbidden", "answers 403: it wants a token, or another one: --token"),
        (404, "no", "answers 404: there is no such page"),
        (503, "no", "answers 503: its census failed"),
        (500, "no", "answers 500: Internal Server Error"),
    ],
)
def test_a_page_that_is_none(pages, capsys, status, body, says):
    """What cannot be read is one clear line on standard error, and exit code 2."""
    pages.status, pages.body = status, body.encode()
    assert main(["top", pages.url, "--once"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("heap-middleware: http://127.0.0.1:")
    assert says in err


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://127.0.0.1:1/metrics", "cannot be read: Connection refused"),
        ("http://user:secret@127.0.0.1:1/", "cannot be read"),
        ("http://nowhere.invalid", "cannot be read"),
        ("ftp://127.0.0.1/metrics", "is no URL of a web page"),
        ("http://[::1", "is no URL"),
        ("http://127.0.0.1:port/", "is no URL"),
        ("", "is no URL"),
        ("http://127.0.0.1:99999/metrics", "has the port 99999; allowed: 1 to 65535"),
        ("http://", "is no URL"),
    ],
)
def test_an_address_that_is_none(capsys, url, says):
    """A wrong address is one clear line without the password in it, and exit code 2."""
    assert main(["top", url, "--once", "--timeout", "3"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert says in err
    assert "secret" not in err


def test_a_page_that_does_not_answer(pages, capsys):
    """A server that keeps us waiting is given up, with the time we waited."""
    pages.hang = threading.Event()
    assert main(["top", pages.url, "--once", "--timeout", "0.2"]) == 2
    assert "does not answer within 0.2 seconds" in capsys.readouterr().err


def test_a_page_that_leads_to_itself(pages, capsys):
    """What is no answer of the system's is said in the words of who noticed it, in one line."""
    pages.status, pages.headers = 302, {"Location": "/metrics"}
    assert main(["top", pages.url, "--once"]) == 2
    err = capsys.readouterr().err
    assert err.endswith("cannot be read: Exceeded maximum allowed redirects.\n")
    assert err.count("\n") == 1


def test_a_page_without_end(pages, capsys, monkeypatch):
    """What is larger than any metrics page is not read to its end."""
    monkeypatch.setattr(page_module, "_LARGEST", 1 << 20)
    pages.body = TWO_WORKERS.encode() + b"#" * (1 << 20)
    assert main(["top", pages.url, "--once"]) == 2
    assert "sends more than 1 MiB: that is no metrics page" in capsys.readouterr().err


def test_faults_of_the_middleware_are_told(pages, capsys):
    """A census that failed says in the service's log why; the view says that there is something to read."""
    pages.body = (TWO_WORKERS + 'heap_middleware_faults_total{part="census"} 2.0\n').encode()
    assert main(["top", pages.url, "--once"]) == 0
    assert "2 faults, see the service's log" in capsys.readouterr().out


def test_a_backend_that_knows_neither_bytes_nor_types(pages, capsys):
    """Of pure Python's figures no column is shown that would be empty."""
    known = [line for line in TWO_WORKERS.splitlines(keepends=True) if "_by_type" not in line and "_bytes{" not in line]
    pages.body = "".join(known).encode()
    assert main(["top", pages.url, "--once"]) == 0
    (heading,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("route")]
    assert heading.split() == ["route", "leaks/req", "kept/req", "retained", "requests", "req/s"]


def test_a_token_that_is_none(capsys):
    """A token that no header can carry is refused without being shown."""
    assert main(["top", "http://127.0.0.1:1", "--token", "sécret\n"]) == 2
    err = capsys.readouterr().err
    assert "printable ASCII" in err
    assert "cret" not in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "command"),
        (["top"], "url"),
        (["top", "x", "--interval", "0"], "'0' is no number of seconds"),
        (["top", "x", "--timeout", "soon"], "'soon' is no number of seconds"),
        (["top", "x", "--limit", "none"], "'none' is no number of rows"),
        (["top", "x", "--sort", "size"], "size"),
        (["bottom"], "bottom"),
    ],
)
def test_wrong_arguments(arguments, says, capsys):
    """A wrong argument is named, and exit code 2."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_without_the_extra_it_says_what_to_install(monkeypatch, capsys):
    """Where rich or httpx are missing, one line says how to get them."""
    monkeypatch.setattr("heap_middleware.cli._NEEDED", ("httpx", "a_module_that_nobody_has"))
    assert main(["top", "x"]) == 2
    assert "top needs a_module_that_nobody_has: pip install 'heap_middleware[cli]'" in capsys.readouterr().err


def test_python_m_and_a_closed_pipe(tmp_path):
    """`python -m heap_middleware` is the same command, and a reader that has seen enough is no error."""

    def run(command):  # elsewhere: in the checkout, -m would find its package and not the installed one
        return subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, cwd=tmp_path)

    assert run(f"{sys.executable} -m heap_middleware --version").stdout.strip()
    pipe = run(f"{sys.executable} -m heap_middleware dashboard | head -c 1")
    assert (pipe.stdout, pipe.stderr) == ("{", "")


def test_a_reader_that_has_seen_enough(monkeypatch):
    """`heap-middleware rules | head`: a pipe that nobody reads any longer is no error, now and when Python ends."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main(["rules"]) == 0
        pipe.write("what is written later goes nowhere")


def test_an_installation_without_the_rules(monkeypatch, tmp_path, capsys):
    """Where they were left out, it is said where they are."""
    monkeypatch.setattr(sys.modules["heap_middleware.cli.shipped"], "files", lambda _: tmp_path / "heap_middleware")
    assert main(["rules"]) == 2
    said = capsys.readouterr().err
    assert said.endswith("this installation has no rules.yml; it is in the folder monitoring/ of the sources\n")


@pytest.mark.parametrize("url", ["https://127.0.0.1:{port}", "http://xn--/"])
def test_addresses_that_cannot_be_read_have_one_line(pages, capsys, url):
    """TLS where none is spoken, a name that is none: what is wrong is said, in one line."""
    assert main(["top", url.format(port=pages.server_address[1]), "--once"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "TLS" in said if url.startswith("https") else "is no URL" in said
    assert "not permitted" not in said


def test_json_has_all_rows(pages, capsys):
    """`--limit` is for people."""
    pages.body = TWO_WORKERS.encode()
    assert main(["top", pages.url, "--once", "--json", "--limit", "1"]) == 0
    assert len(json.loads(capsys.readouterr().out)["routes"]) == 2


def test_figures_that_are_none_are_said(pages, capsys):
    """A page with NaN is not taken for figures."""
    pages.body = TWO_WORKERS.replace("16000000.0", "NaN").encode()
    assert main(["top", pages.url, "--once", "--json"]) == 2
    assert "heap_size_bytes_total is nan" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["rules"], ["top", "{url}", "--once"]])
def test_a_full_disk_has_one_line(pages, arguments):
    """What cannot be written is said, with exit code 2."""
    pages.body = TWO_WORKERS.encode()
    command = [sys.executable, "-m", "heap_middleware", *(part.format(url=pages.url) for part in arguments)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd="/", timeout=60)
    assert (done.returncode, done.stderr) == (2, "heap-middleware: cannot write: No space left on device\n")


def test_a_terminal_of_ascii_shows_what_it_can(pages):
    """Dots and crosses become question marks."""
    pages.body = TWO_WORKERS.encode()
    command = [sys.executable, "-m", "heap_middleware", "top", pages.url, "--once"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "GET /leakable" in done.stdout


def test_a_stream_of_my_own_is_written_to(monkeypatch):
    """Whatever has taken the place of standard output."""
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert main(["rules"]) == 0
    assert sys.stdout.getvalue().startswith("#")
