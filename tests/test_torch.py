"""PyTorch: tensors in each channel, modules in shared memory, DataLoader, and torch.multiprocessing in the same
program.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from multiprocessing.reduction import ForkingPickler

import pytest

import copyless
from copyless.errors import UnsendableError

METHODS = ("fork", "spawn", "forkserver")
WAIT = 60


torch = pytest.importorskip("torch", reason="PyTorch is not installed: make test-torch")
pytestmark = pytest.mark.filterwarnings("ignore")  # about what torch calls beta or deprecated, and still has
torch.set_num_threads(1)


class Own(torch.Tensor):
    pass


def bits(tensor):
    flat = tensor.detach().resolve_conj().resolve_neg()
    if flat.layout is not torch.strided:
        flat = flat.to_dense()
    if flat.is_quantized:
        flat = flat.int_repr()
    if not flat.is_contiguous():
        flat = flat.contiguous()
    return flat.reshape(-1).view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def look(tensor):
    """All properties that must be unchanged."""
    return (
        type(tensor), tensor.dtype, tuple(tensor.shape), tensor.layout, tensor.device, tensor.requires_grad,
        tensor.is_conj(),
        tensor.is_neg(), tensor.is_quantized, tensor.stride() if tensor.layout is torch.strided else None,
        dict(tensor.__dict__),
        None if tensor.device.type == "meta" else bits(tensor),
        tensor.is_coalesced() if tensor.layout is torch.sparse_coo else None,
    )  # fmt: skip


def dtypes():
    found = {getattr(torch, name) for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)}
    return sorted((dtype for dtype in found if not str(dtype).startswith("torch.q")), key=str)


def of_dtype(dtype, n):
    return torch.randint(0, 2, (n * dtype.itemsize,), dtype=torch.uint8).view(dtype)


def named(tensor, **attributes):
    for key, value in attributes.items():
        setattr(tensor, key, value)
    return tensor


def kinds():
    big = torch.arange(120_000.0).reshape(300, 400)
    yield from ((f"{dtype} {n}", of_dtype(dtype, n)) for dtype in dtypes() for n in (3, 3000))
    yield "transposed", big.T
    yield "part", big[3:5, 7:20]
    yield "steps", big[::3, ::5]
    yield "expanded", torch.ones(5000, 1).expand(5000, 7)
    yield "overlapping", torch.as_strided(torch.arange(9000.0), (4000, 3), (1, 1))
    yield "0-d", torch.tensor(3.5)
    yield "0-d part", big[3, 3]
    yield "no elements", torch.empty(0, 3)
    yield "no elements of some", big[:0]
    yield "requires_grad", torch.ones(3000, requires_grad=True)
    yield "parameter", torch.nn.Parameter(big)
    yield "integer parameter", torch.nn.Parameter(torch.ones(3, dtype=torch.int32), requires_grad=False)
    yield "buffer", torch.nn.Buffer(torch.ones(9000))
    yield "conjugate", torch.complex(torch.ones(5000), torch.ones(5000)).conj()
    yield "negative", torch.complex(torch.ones(5000), torch.ones(5000)).conj().imag
    yield "subclass", torch.ones(5000).as_subclass(Own)
    yield "attributes", named(torch.ones(5000), tag="x")
    yield "subclass with attributes", named(torch.ones(5).as_subclass(Own), tag=[1])
    yield "sparse", torch.eye(300).to_sparse()
    yield "sparse, not coalesced", torch.sparse_coo_tensor(torch.zeros(1, 3, dtype=torch.int64), torch.ones(3), (5,))
    yield "sparse, requires_grad", torch.eye(300).to_sparse().requires_grad_()
    yield "by row", torch.eye(300).to_sparse_csr()
    yield "by column", torch.eye(300).to_sparse_csc()
    yield "blocks", torch.eye(300).to_sparse_bsr((3, 3))
    yield "quantised", torch.quantize_per_tensor(torch.ones(9000), 0.1, 10, torch.quint8)
    yield (
        "quantised by channel",
        torch.quantize_per_channel(torch.ones(90, 90), torch.full((90,), 0.1), torch.zeros(90), 0, torch.qint8),
    )
    yield "meta", torch.empty(3, 4, device="meta")


ALL = dict(kinds())


class Channels:
    """Each way to send an object, there and back in this process."""

    def __init__(self):
        self.queues = {
            "queue": copyless.Queue(),
            "simple": copyless.SimpleQueue(),
            "joinable": copyless.JoinableQueue(),
            "redelivering": copyless.JoinableQueue(redeliver=True),
            "named": copyless.Queue(name="torch-test"),
        }
        self.pipe = copyless.Pipe()
        self.manager = copyless.Manager()
        self.box = self.manager.dict()
        self.ways = {**{name: self.by_queue(q) for name, q in self.queues.items()}, "pipe": self.by_pipe}
        self.ways |= {"manager": self.by_manager, "share": copyless.share}

    def by_queue(self, queue):
        def go(obj):
            queue.put(obj)
            got = queue.get()
            if isinstance(queue, copyless.JoinableQueue):
                queue.task_done(got)
            return got

        return go

    def by_pipe(self, obj):
        failed = []

        def send():
            try:
                self.pipe[0].send(obj)
            except BaseException as error:
                failed.append(error)
                self.pipe[0].send(None)

        thread = threading.Thread(target=send)
        thread.start()
        got = self.pipe[1].recv()
        thread.join()
        if failed:
            raise failed[0]
        return got

    def by_manager(self, obj):
        self.box["it"] = obj
        return self.box.pop("it")

    def close(self):
        self.ways.clear()
        self.queues.clear()
        self.manager.shutdown()
        for end in self.pipe:
            end.close()


WAYS = ("queue", "simple", "joinable", "redelivering", "named", "pipe", "manager", "share")
LASTING = ("redelivering", "named")


@pytest.fixture
def channels():
    made = Channels()
    yield made
    made.close()


def test_every_kind_arrives_as_it_was_sent(channels):
    for way, go in channels.ways.items():
        for name, tensor in ALL.items():
            assert look(go(tensor)) == look(tensor), (way, name)
        assert isinstance(go(torch.nn.Buffer(torch.ones(3))), torch.nn.Buffer)
        parts = torch.nested.nested_tensor([torch.ones(3), torch.ones(1000)])
        assert [part.tolist() for part in go([parts])[0].unbind()] == [part.tolist() for part in parts.unbind()]


def test_tensors_that_overlap_still_do(channels):
    x = torch.arange(10_000.0)
    pairs = [
        (x, x[5:50]), (x[5:50], x), (x[:50], x[30:80]), (x[:5], torch.nn.Parameter(x)),
        (x.view(100, 100), x.view(torch.int32)),
        (x[:5].as_subclass(Own), x[2:9]), (x[:5], x.as_subclass(Own)), (torch.ones(9), torch.ones(9)[:0]),
    ]  # fmt: skip
    for way, go in channels.ways.items():
        for one, other in pairs[:-1]:
            for kind in (list, tuple, lambda pair: dict(enumerate(pair))):
                got = go(kind((one, other)))
                first, second = got[0], got[1]
                assert first.data_ptr() - second.data_ptr() == one.data_ptr() - other.data_ptr(), way
                assert torch.equal(first.detach(), one.detach()), way
                assert torch.equal(second.detach().view(other.dtype), other.detach()), way
        go(pairs[-1])
        module = torch.nn.Sequential(torch.nn.Linear(50, 50), torch.nn.Linear(50, 50))
        module[1].weight = module[0].weight
        got = go(module)
        assert got[0].weight is got[1].weight, way
        state = go(module.state_dict())
        assert state["0.weight"].data_ptr() == state["1.weight"].data_ptr(), way


def test_a_part_of_a_storage_costs_what_it_is():
    rows = torch.zeros(1000, 20_000)
    q = copyless.Queue()
    q.put(rows[5])
    assert 80_000 <= q.stats().bytes < 82_000
    q.put([rows[5], rows[900]])
    assert 240_000 <= q.stats().bytes < 244_000
    assert q.get(timeout=WAIT).untyped_storage().nbytes() == 80_000
    assert torch.equal(q.get(timeout=WAIT)[1], rows[900])
    assert copyless.share(rows[5]).untyped_storage().nbytes() == 80_000
    assert [part.untyped_storage().nbytes() for part in copyless.share([rows[5], rows[900]])] == [80_000] * 2


def test_what_arrives_is_a_snapshot_and_can_be_written(channels):
    for n in (10, 5000):
        for way, go in channels.ways.items():
            sent = torch.ones(n)
            got = go(sent)
            sent[0] = 5
            got[1] = 7
            assert (got[0], sent[1]) == (1, 1), way


def test_a_tensor_in_our_memory_goes_by_handle(channels):
    shared = copyless.share(torch.zeros(5000))
    for way, go in channels.ways.items():
        got = go(shared[10:])
        got[0] += 1
        assert copyless.is_shared(got), way
    assert shared[10] == len(channels.ways)
    q = copyless.Queue()
    q.put([shared, shared[5:], torch.from_numpy(copyless.zeros(5000))])
    assert q.stats().bytes < 1500
    q.get(timeout=WAIT)


def test_thousands_of_tensors_take_no_descriptors():
    q, before = copyless.Queue(), len(os.listdir("/proc/self/fd"))
    for i in range(3000):
        q.put(torch.full((4 if i % 2 else 2000,), float(i)))
    assert len(os.listdir("/proc/self/fd")) < before + 50
    assert [float(q.get(timeout=WAIT)[-1]) for _ in range(3000)] == list(range(3000))


def test_what_cannot_cross_is_refused_and_the_channel_goes_on(channels):
    computed = torch.ones(3, requires_grad=True) * 2
    freed = torch.ones(5000)
    freed.untyped_storage().resize_(0)
    for way, go in channels.ways.items():
        if way != "manager":
            with pytest.raises(UnsendableError, match=r"detach\(\)"):
                go(computed)
            with pytest.raises(RuntimeError):  # as torch.multiprocessing does
                go([computed])
        with pytest.raises(UnsendableError, match="freed its memory"):
            go(freed)
        assert go(torch.ones(3)).tolist() == [1, 1, 1], way


# ---- torch's own shared memory, and other objects that can be received only once


def test_torchs_shared_memory_stays_shared_where_that_can_be(channels):
    for way, go in channels.ways.items():
        shared = torch.zeros(5000).share_memory_()
        if way in LASTING:
            with pytest.raises(UnsendableError, match=r"copyless\.share"):
                go([shared])
            continue
        got = go(shared)
        got[0] = 7
        assert shared[0] == (0 if way == "share" else 7), way
        assert go(copyless.share(shared))[0] == shared[0]


def square(x):
    return x * x


def test_messages_that_last_refuse_what_can_be_had_once():
    from multiprocessing.reduction import DupFd

    one, other = socket.socketpair()
    ends, theirs = copyless.Pipe(), __import__("multiprocessing").Pipe()
    before = len(os.listdir("/proc/self/fd"))
    lasting = [copyless.JoinableQueue(redeliver=True), copyless.Queue(name="torch-test")]
    lasting += [copyless.Queue(name="torch-test-kept", persist=True), copyless.open("torch-test-kept")]
    for q in lasting:
        for thing in (one, ends[0], theirs[0], DupFd(one.fileno())):
            for put in (q.put, lambda obj, q=q: q.put_many([obj]), lambda obj, q=q: q.put({"deep": [obj]})):
                with pytest.raises(UnsendableError, match="can be received only once"):
                    put(thing)
        assert q.empty()
    copyless.unlink("torch-test-kept")
    with copyless.ProcessPoolExecutor(1, retries=1) as executor:
        for thing in (one, ends[0], torch.ones(3).share_memory_()):
            with pytest.raises(UnsendableError, match="can be received only once"):
                executor.submit(square, thing).result(WAIT)
    q = copyless.Queue()  # and other queues take them
    for thing in (one, ends[0], theirs[0]):
        q.put(thing)
        with q.get(timeout=WAIT) as got:
            assert type(got) is type(thing)
    for end in (one, other, *ends, *theirs):
        end.close()
    del lasting
    assert len(os.listdir("/proc/self/fd")) <= before + 8  # the sharer's own, and none for what was refused


# ---- the sender is gone; delivered again


def put_and_end(q, shared):
    q.put(copyless.share(torch.ones(5000)) if shared else torch.ones(5000))


def take_and_die(q):
    q.get(timeout=WAIT)
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(x, place):
    if not os.path.exists(place):
        open(place, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return float(x.sum())


@pytest.mark.parametrize("shared", [False, True])
def test_a_tensor_outlives_its_sender_and_is_delivered_again(shared, tmp_path):
    context = copyless.get_context("fork")
    q = copyless.Queue()
    process = context.Process(target=put_and_end, args=(q, shared))
    process.start()
    process.join()
    assert q.get(timeout=WAIT).sum() == 5000
    x = copyless.share(torch.ones(5000)) if shared else torch.ones(5000)
    q = copyless.JoinableQueue(redeliver=True)
    q.put(x)
    process = context.Process(target=take_and_die, args=(q,))
    process.start()
    process.join()
    item = q.get(timeout=WAIT)
    assert item.sum() == 5000
    q.task_done(item)
    with copyless.ProcessPoolExecutor(1, mp_context=context, retries=2) as executor:
        assert executor.submit(die_once, x, str(tmp_path / "died")).result(WAIT) == 5000


def test_another_program_takes_tensors_by_a_name_when_this_one_has_gone():
    put = "import copyless, torch; copyless.Queue(name='torch-test', persist=True).put({'w': torch.arange(5000.).view(50, 100).T})"  # noqa: E501
    take = "import copyless; w = copyless.Queue(name='torch-test', persist=True).get(timeout=5)['w']; print(w.shape, w[3, 7].item())"  # noqa: E501
    for program, said in ((put, ""), (take, "torch.Size([100, 50]) 703.0\n")):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=WAIT)
        assert (done.stdout, done.returncode) == (said, 0), done.stderr
    copyless.unlink("torch-test")


# ---- start methods: pools, modules, DataLoader


def step(model, inputs):
    """One step of training on parameters that may be shared."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(inputs).sum().backward()
    optimizer.step()
    return model[0].weight is model[1].weight


def state_of(state):
    return {key: value * 2 for key, value in state.items()}


class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, i):
        return torch.full((2000,), float(i)), i


@pytest.mark.parametrize("method", METHODS)
def test_pools_modules_and_data_loaders_under_each_start_method(method):
    context = copyless.get_context(method)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    model[1].weight = model[0].weight
    shared = copyless.share(model)
    assert copyless.is_shared(shared)
    assert shared[0].weight is shared[1].weight
    before = shared[0].weight.detach().clone()
    with context.Pool(1) as pool:
        state = pool.apply(state_of, (model.state_dict(),))
        assert torch.equal(state["0.weight"], 2 * model[0].weight)
        assert state["0.weight"].data_ptr() != state["1.weight"].data_ptr()  # the worker made two
        assert pool.map(square, list(torch.arange(4.0))) == [0, 1, 4, 9]
        assert pool.apply(step, (shared, torch.ones(1, 8)))  # tied in the worker too
    assert not torch.equal(shared[0].weight, before)  # what the worker learnt is visible here
    process = context.Process(target=step, args=(shared, torch.ones(1, 8)))  # multiprocessing's own pickler
    after = shared[0].weight.detach().clone()
    process.start()
    process.join()
    assert process.exitcode == 0
    assert not torch.equal(shared[0].weight, after)
    assert copyless.is_shared(shared)
    loader = torch.utils.data.DataLoader(
        Numbers(), batch_size=4, num_workers=2, multiprocessing_context=context, persistent_workers=True
    )
    before = len(os.listdir("/proc/self/fd"))
    kept = []
    for _ in range(2):
        kept += list(loader)
    assert [numbers.tolist() for _, numbers in kept] == 2 * [list(range(i, i + 4)) for i in range(0, 16, 4)]
    assert all(torch.equal(rows[:, -1], numbers.float()) for rows, numbers in kept)
    assert not any(rows.is_shared() for rows, _ in kept)  # by our queue, and not by descriptors
    assert len(os.listdir("/proc/self/fd")) < before + 20
    loader._iterator._shutdown_workers()


def add_one(tensor):
    tensor += 1


def test_process_arguments_in_torchs_memory_stay_shared():
    weights = torch.zeros(50).share_memory_()
    process = copyless.get_context("spawn").Process(target=add_one, args=(weights,))
    process.start()
    process.join()
    assert weights.tolist() == [1] * 50


# ---- torch.multiprocessing in the same program


def pass_on(theirs, ours, answers):
    for _ in range(2):
        answers.put(theirs.get(timeout=WAIT) + 1)
        got = ours.get(timeout=WAIT)
        answers.put(got + 1)
        got[0] = 9
    theirs.put(None)


def test_both_kinds_of_queue_in_one_program():
    import torch.multiprocessing as torch_mp

    theirs, ours, answers = torch_mp.get_context("fork").Queue(), copyless.Queue(), copyless.Queue()
    process = torch_mp.get_context("fork").Process(target=pass_on, args=(theirs, ours, answers))
    process.start()
    plain, shared = torch.ones(5000), copyless.share(torch.ones(5000))
    for one in (plain, shared):
        theirs.put(
            one.clone() if one is plain else one
        )  # torch moves what it sends into its shared memory, in a thread
        ours.put(one)
        assert answers.get(timeout=WAIT)[1] == answers.get(timeout=WAIT)[1] == 2
    process.join()
    assert copyless.is_shared(shared)  # torch has not moved it
    assert shared[0] == 9
    assert plain[0] == 1
    theirs.close()
    theirs.join_thread()


def test_torchs_reductions_stay_torchs(tmp_path):
    program = """
        import sys
        from multiprocessing.reduction import ForkingPickler
        {first}
        {second}
        def taught():
            known = ForkingPickler._extra_reducers.items()
            return {{kind: one for kind, one in known if kind.__module__.startswith("torch")}}
        reducers = taught()
        from torch.multiprocessing import reductions
        q = copyless.Queue(); q.put(torch.ones(5000)); q.get(timeout=60)
        assert reducers == taught()
        assert reducers[torch.Tensor] is reducers[torch.nn.Parameter] is reductions.reduce_tensor
        assert reducers[torch.UntypedStorage] is reductions.reduce_storage
        kept = copyless.share(torch.ones(5000))
        changed = {{kind for kind, one in taught().items() if reducers.get(kind) is not one}}
        assert changed == {{torch.UntypedStorage}}  # which asks whether the storage is ours, and leaves others to torch
        there = torch.multiprocessing.get_context("fork").SimpleQueue()
        for tensor in (torch.ones(5000), kept):
            there.put(tensor)
            there.get()[0] = 7
            assert tensor[0] == 7
        assert copyless.is_shared(kept)
    """
    for first, second in (("import torch", "import copyless"), ("import copyless; copyless.Queue()", "import torch")):
        text = textwrap.dedent(program.format(first=first, second=second))
        done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=WAIT)
        assert done.returncode == 0, done.stderr


def test_nothing_of_ours_imports_torch():
    program = """
        import sys, copyless, numpy as np
        q = copyless.Queue(); one, other = copyless.Pipe()
        for obj in (1, [np.ones(5000)], {1, 2}, copyless.zeros(3)):
            q.put(obj); q.get(timeout=60); one.send(obj); other.recv()
        copyless.explain(copyless.share([np.ones(3)])); copyless.is_shared([1])
        assert "torch" not in sys.modules and "copyless._libraries.torch" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=WAIT)


def test_multiprocessings_pickler_takes_a_module_in_our_memory_as_it_lies():
    shared = copyless.share(torch.nn.Linear(40, 40))
    got = ForkingPickler.loads(ForkingPickler.dumps(shared))
    with torch.no_grad():
        got.weight[0] = 5
    assert (shared.weight[0] == 5).all()
    assert copyless.is_shared(shared)


# ---- messages


def test_explain_and_is_shared_know_tensors():
    private, ours, torchs = torch.ones(5000), copyless.share(torch.ones(5000)), torch.ones(5000).share_memory_()
    report = copyless.explain([private, ours, torchs, torch.ones(5000, device="meta"), torch.ones(5000).bfloat16()])
    assert report.parts[0].kind == "torch.float32 (5000,)"
    assert [(part.shared, part.copied >= 10_000) for part in report] == [
        (0, True), (20_000, False), (0, False), (0, False), (0, True),
    ]  # fmt: skip
    assert "share()" in report.parts[0].why
    assert "torch's shared memory" in report.parts[2].why
    module = copyless.share(torch.nn.Linear(3, 40))
    assert [part.path for part in copyless.explain(module)] == ["weight", "bias"]
    assert copyless.explain(module).copied_bytes == 0
    assert [copyless.is_shared(one) for one in (private, ours, ours[3:], torchs, module)] == [
        False,
        True,
        True,
        False,
        True,
    ]
    assert not copyless.is_shared(torch.ones(3, device="meta"))
    assert copyless.share(ours) is ours


def test_rings_take_tensors():
    ring = copyless.RingBuffer(((3,), "f4"), slots=2)
    ring.put(torch.ones(3))
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        ring.put(torch.ones(3).bfloat16())


# ---- between ranks, and over sockets


def three():
    big = torch.arange(300_000.0).reshape(3, 100_000).T
    return [big, big[5:9], torch.nn.Parameter(torch.ones(3))]


def talk(world):
    sent, n = three(), world.size
    for send in (
        lambda: world.bcast(three(), 0),
        lambda: world.bcast(three(), 0, readonly=True),
        lambda: world.allgather(three())[0],
        lambda: world.alltoall([three() for _ in range(n)])[0],
    ):
        got = send()
        assert [look(one) for one in got] == [look(one) for one in sent]
        assert got[1].data_ptr() - got[0].data_ptr() == sent[1].data_ptr() - sent[0].data_ptr()
        got[0][5] = -world.rank  # no other rank's
        world.barrier()
        assert got[1][0, 0] == -world.rank
    world.send(copyless.share(sent[0]), (world.rank + 1) % n)
    assert copyless.is_shared(world.recv())


def test_ranks_send_tensors():
    from copyless import comm

    comm.spawn(talk, 2, context=copyless.get_context("fork"))


def test_a_manager_over_tcp_takes_tensors_by_value():
    from copyless import managers

    with managers.SyncManager(("127.0.0.1", 0), b"key", ctx=copyless.get_context("fork")) as manager:
        box = manager.dict()
        pair = [torch.arange(9000.0), torch.arange(9000.0)]
        pair[1] = pair[0][5:50]
        box["it"] = pair + [copyless.share(torch.ones(5000)), torch.ones(5000).share_memory_()]
        got = box["it"]
        assert [one.tolist() for one in got[:2]] == [one.tolist() for one in pair]
        assert got[1].data_ptr() - got[0].data_ptr() == 20
        assert (got[2].sum(), got[3].sum()) == (5000, 5000)
