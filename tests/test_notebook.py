"""How objects and progress bars look in a notebook: the HTML itself, and in a real kernel if nbclient is installed."""

import multiprocessing
import pickle
import re
import time
from html.parser import HTMLParser

import numpy as np
import pytest

import copyless
from tests.test_stopped import stopped_in

FORK = multiprocessing.get_context("fork")


class _Reader(HTMLParser):
    """Cells of the tables, and whether every element is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.cells, self.pre = [], [], ""

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        if tag in ("td", "th", "caption"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "pre" in self.open:
            self.pre += data
        elif self.open:
            self.cells[-1] += data


def read(obj):
    reader = _Reader()
    reader.feed(obj._repr_html_())
    assert reader.open == []
    title, *cells = reader.cells
    return title, dict(zip(cells[::2], cells[1::2], strict=False)), reader.pre


def test_an_array():
    array = copyless.zeros((2, 3), "f4")
    title, rows, values = read(array)
    assert title == "SharedArray"
    assert (rows["shape"], rows["dtype"], rows["bytes"]) == ("(2, 3)", "float32", "24 (24 B)")
    assert rows["holders"].startswith("1 ")
    assert values == repr(array)
    message = multiprocessing.reduction.ForkingPickler.dumps(array)
    assert read(array)[1]["holders"].startswith("2 ")
    pickle.loads(message)


def test_a_view_a_large_and_an_empty_array():
    array = copyless.zeros(1 << 20, "u1")
    _, rows, _ = read(array[:4])
    assert rows["bytes"] == "4 (4 B)"
    assert "a part of 1.0 MiB" in rows["memory"]
    assert len(read(array)[2]) < 200
    array.flags.writeable = False
    assert read(array)[1]["writable"] == "no"
    assert read(copyless.zeros(0))[1]["shape"] == "(0,)"


def test_an_array_of_a_file(tmp_path):
    array = copyless.memmap(tmp_path / "file", "u1", "w+", shape=10)
    assert "file" in read(array)[1]["memory"]


def test_texts_are_escaped():
    array = copyless.zeros(2, [("<b>", "u1")])
    assert "<b>" not in array._repr_html_()
    queue = copyless.Queue(name="t-<i>")
    assert "<i>" not in queue._repr_html_()
    assert read(queue)[0] == "Queue 't-<i>'"


def test_a_queue():
    queue = copyless.Queue(5)
    queue.put("abc")
    queue.put("def")
    queue.get()
    _, rows, _ = read(queue)
    assert (rows["items"], rows["put, taken"]) == ("1 of 5", "2, 1")
    assert int(rows["bytes"].split()[0].replace(",", "")) > 0
    queue.shutdown()
    assert read(queue)[1]["state"] == "shut down"
    queue.get()


def test_a_joinable_queue_with_leases():
    queue = copyless.JoinableQueue(redeliver=True)
    queue.put(1)
    queue.get()
    assert read(queue)[1]["taken, not acknowledged"] == "1"
    queue.task_done()


def test_a_ring_and_its_readers():
    ring = copyless.RingBuffer(((4,), "u1"), slots=4)
    with ring.subscribe() as frames:
        for _ in range(3):
            ring.put(np.zeros(4, "u1"))
        html = ring._repr_html_()
        assert "3 with a frame" in html
        lag = re.search(r"<td>\d+</td><td>0</td><td>0</td><td>(\d)</td><td>drop</td>", html)
        assert lag
        assert lag[1] == "3"
        del frames


def test_a_pool_and_an_executor():
    with copyless.Pool(2, context=FORK) as pool:
        pool.map(abs, range(3))
        title, rows, _ = read(pool)
        assert title == "Pool"
        assert rows["state"] == "RUN"
        assert rows["workers"].startswith("2 of 2: processes ")
        assert rows["tasks"] == "0 sent to workers, 0 waiting"
        result = pool.map_async(time.sleep, [0.2] * 3, chunksize=1)
        assert read(pool)[1]["tasks"] == "3 sent to workers, 0 waiting"
        result.get()
    assert read(pool)[1]["state"] == "TERMINATE"
    with copyless.ProcessPoolExecutor(1, mp_context=FORK) as executor:
        executor.submit(abs, 1).result()
        assert read(executor)[1]["workers"].startswith("1 of 1")
    assert read(executor)[1]["state"] == "shut down"


@pytest.mark.parametrize("make", [copyless.Queue, copyless.SimpleQueue, copyless.JoinableQueue])
def test_a_closed_queue_still_shows_itself(make):
    queue = make()
    queue.put(1)
    queue.close()
    assert read(queue)[0] == make.__name__


def test_an_object_without_memory_says_that_it_is_closed():
    for kind in (copyless.Queue, copyless.RingBuffer):
        html = kind.__new__(kind)._repr_html_()
        assert "closed" in html


def test_it_does_not_wait_for_a_process_that_is_stopped():
    array, queue = copyless.zeros(10), copyless.Queue()
    ring = copyless.RingBuffer(((4,), "u1"))
    queue.put(1)
    for what, offset in ((None, 0), (queue, 256), (queue, 512), (ring, 64)):
        with stopped_in(what, offset) as holder:
            begun = time.monotonic()
            assert read(array)[1]["dtype"] == "float64"
            assert read(queue)[1]["items"] == "1"
            assert "slots" in read(ring)[1]
            assert time.monotonic() - begun < 5
            assert holder.is_stopped()


# ---- a real kernel


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """Runs cells in one kernel: the outputs of each."""
    pytest.importorskip("ipykernel")
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("jupyter_client")

    def run(*cells):
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "", "language": "python"}
        where = {"metadata": {"path": str(tmp_path_factory.mktemp("nb"))}}
        nbclient.NotebookClient(book, timeout=120, resources=where).execute()
        return [cell.outputs for cell in book.cells]

    return run


def test_a_cell_shows_an_array_and_a_queue(notebook):
    _, (array,), (queue,), (ended,) = notebook(
        "import copyless",
        "copyless.zeros((2, 2))",
        "q = copyless.Queue(3); q.put('x'); q",
        "del _, q\nimport gc\n_ = gc.collect()\nprint(copyless.stats().own_blocks >= 0)",
    )
    assert "<th" in array.data["text/html"]
    assert "(2, 2)" in array.data["text/html"]
    assert array.data["text/plain"].startswith("SharedArray")
    assert "1 of 3" in queue.data["text/html"]
    assert ended.text == "True\n"


def test_progress_draws_in_the_cell_without_rich_and_widgets(notebook):
    outputs = notebook(
        "import sys; sys.modules['rich'] = None; sys.modules['ipywidgets'] = None\nimport copyless",
        "with copyless.Pool(2, context=copyless.get_context('fork')) as pool:\n"
        "    print(sum(pool.map(abs, range(-50, 0), progress=True)))\n"
        "    print(sum(pool.imap(abs, iter(range(5)), progress=True)))",
    )[1]  # fmt: skip
    bars = [output for output in outputs if output.output_type == "display_data"]
    assert len(bars) == 2  # each was updated in place
    assert "50 of 50" in bars[0].data["text/html"]
    assert 'value="50" max="50"' in bars[0].data["text/html"]
    assert bars[0].data["text/plain"].startswith("abs: 50 of 50, ")
    assert bars[1].data["text/plain"].startswith("abs: 5 of 5, ")
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    assert text == "1275\n10\n"


def test_a_bar_of_bytes(notebook):
    outputs = notebook(
        "from copyless._progress import shown\n"
        "with shown('send <1>', 1 << 25) as advance:\n"
        "    advance(1 << 24)\n"
        "with shown('whole', 1 << 25, steps=False) as advance:\n"
        "    pass",
    )[0]
    first, second = [output.data["text/html"] for output in outputs]
    assert "send &lt;1&gt;" in first
    assert "32.0 MiB of 32.0 MiB" in first
    assert "whole" in second
    assert "32.0 MiB" in second
